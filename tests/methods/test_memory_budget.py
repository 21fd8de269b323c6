"""GradNet inside its stated memory, measured as a process's high-water mark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's high-water mark")

CHILD = """
import ctypes, gc, json, re, sys
from pathlib import Path
import torch
from torch import nn
from postgrad import GradNet, UserError

def memory(field):
    return int(re.search(rf"^{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024

def net(width, depth):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(8), nn.Flatten(), nn.Linear(16 * width, 10))

options, budgets, width, depth = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
x, y = torch.randint(0, 256, (150, 3, 32, 32), dtype=torch.uint8), torch.arange(150) % 10
GradNet(net(4, depth), epochs=1, **{**options, "memory": "1GB"}).fit(x[:30], y[:30]).predict(x[:30])
peaks = []
for budget in budgets:
    model = net(width, depth)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    try:
        GradNet(model, epochs=1, random_state=0, memory=budget, **options).fit(x, y).predict(x[:50])
        peaks.append(memory("VmHWM") - before)
    except UserError as error:
        peaks.append(str(error))
print(json.dumps(peaks))
"""


def peaks(width: int, depth: int, budgets: list[str], **options: object) -> list[float | str]:
    """For each budget the megabytes (2²⁰) above the process and its model, or why the fit was refused.

    The C library gives freed memory of arrays back at once here. Left to itself it keeps some for later, more or less
    of it from run to run, and the high-water mark would be its holes and not what the fit holds.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([options, budgets, width, depth])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=250,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"project": 1024}, {"coordinates": 5000}], ids=str)
def test_the_peak_is_within_the_budget(options: dict[str, int]) -> None:
    budgets = [150, 400]
    for memory, found in zip(budgets, peaks(48, 8, [f"{each}MiB" for each in budgets], **options), strict=True):
        if isinstance(found, str):
            assert not options or memory < 400, found
            assert "memory" in found
        else:
            assert found <= 1.1 * memory


@pytest.mark.slow
def test_what_cannot_fit_is_refused_before_it_is_made() -> None:
    (found,) = peaks(64, 2, ["20MiB"], hidden=[50, 50, 50, 50])
    assert isinstance(found, str)
    assert "need" in found
