"""The benchmark of what growing costs: its parts add up, it sees memory, and it leaves widening as it was."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from postgrad.errors import UserError
from postgrad.growth import width


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("growth_speed")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))


def test_the_table_and_its_figures(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "in_a_process_of_its_own", benchmark.measure)
    monkeypatch.setattr(benchmark, "LAYERS", {"resnet18": ("layer1.0.conv1", "layer1.0.conv2")})
    options = ["--models", "resnet18", "--threads", "1", "--repetitions", "1", "--image", "32", "--no-certificate"]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{benchmark.BEGIN}\nold\n{benchmark.END}\nafter\n")
    assert benchmark.main([*options, "--json", str(tmp_path / "figures.json"), "--page", str(page)]) == 0
    assert page.read_text().count("| resnet18 | 1 |") == 2
    assert "old" not in page.read_text()
    assert page.read_text().startswith("before")
    assert page.read_text().endswith("after\n")
    assert capsys.readouterr().out.count("| resnet18 | 1 |") == 2
    inside, stream = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert inside["to"] == stream["to"] == 96
    assert inside["new_bytes"] == 4 * (96 * 64 * 9 + 4 * 96 + 64 * 96 * 9)  # conv1, bn1, conv2
    assert stream["new_bytes"] > inside["new_bytes"]
    for row in (inside, stream):
        parts = (row[f"{part}_seconds"] for part in ("export", "analysis", "widening"))
        assert row["seconds"] == pytest.approx(sum(parts))


def test_the_parts_are_those_of_the_call_and_widening_is_left_as_it_was(benchmark: ModuleType) -> None:
    x, real = torch.randn(2, 3, 8, 8), (width.transaction, width.Witness, width.analyse, torch.export.export)
    network, parts = small(), benchmark.Parts()
    with parts.watched(certificate=False):
        began = time.perf_counter()
        width.widen(network, "0", to=12, example=x)
        seconds = time.perf_counter() - began
    assert 0.5 * seconds < parts.export + parts.analysis + parts.widening < seconds
    assert min(parts.export, parts.analysis, parts.widening) > 0
    assert (width.transaction, width.Witness, width.analyse, torch.export.export) == real
    certificate = width.widen(copy.deepcopy(small()), "0", to=12, example=x)
    assert certificate.errors  # the one that was left out is made again


def test_memory_that_is_taken_and_given_back_is_seen(benchmark: ModuleType) -> None:
    parts = benchmark.Parts()
    with parts._memory():
        torch.ones(10_000_000)
    assert 30e6 < parts.peak < 60e6
    with parts._memory():
        pass
    assert parts.peak < 5e6


def test_a_page_without_a_place_for_the_table_is_refused(benchmark: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("text\n")
    with pytest.raises(UserError, match="are not there"):
        benchmark.write_page("table", tmp_path / "page.md")
