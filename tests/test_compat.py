"""torchvision beside a CPU build of torch: importable after `prepare_torchvision`, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from postgrad._compat import prepare_torchvision

PREPARE = "from postgrad._compat import prepare_torchvision; kept = prepare_torchvision()\n"


USES = [
    "import torchvision; torchvision.models.resnet18(); from torchvision.transforms import v2; v2.Resize(8)",
    "import timm; timm.create_model('resnet10t')",
    "import lightning",
]
TWICE = "import torchvision, gc; del kept; gc.collect(); prepare_torchvision()\ntorchvision.ops.nms"
DECLARED = "if kept is not None: raise SystemExit('declared')"
PLAIN = "import torchvision"

FORKS = """
import json, os, sys, tempfile, torch, traceback
said = {}
for code in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as file:
        if not (child := os.fork()):
            try:
                exec(code, {})
            except BaseException:
                traceback.print_exc(file=file)
            file.flush()
            os._exit(0)
        os.waitpid(child, 0)
        file.seek(0)
        said[code] = file.read()
print(json.dumps(said))
"""
"""Runs each piece of code in a process of its own, forked from one that has imported torch alone."""


@pytest.fixture(scope="module")
def error() -> Callable[[str], str]:
    """What a piece of code ends with in a process of its own: a traceback, or nothing."""
    codes = [PLAIN, *(PREPARE + code for code in (*USES, TWICE, DECLARED))]
    words = [sys.executable, "-W", "ignore", "-c", FORKS, json.dumps(codes)]
    said = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return said.__getitem__


@pytest.mark.parametrize("use", USES)
def test_what_imports_torchvision_works_after_it(use: str, error: Callable[[str], str]) -> None:
    assert error(PREPARE + use) == ""


def test_it_may_come_after_torchvision_and_be_called_twice(error: Callable[[str], str]) -> None:
    assert error(PREPARE + TWICE) == ""


def test_torchvisions_own_import_says_why_it_is_needed(error: Callable[[str], str]) -> None:
    """The control: where the plain import works, the operators are real and nothing is declared."""
    declared = error(PREPARE + DECLARED).endswith("SystemExit: declared\n")
    assert declared == (error(PLAIN) != "")
    if declared:
        assert "operator torchvision::nms does not exist" in error(PLAIN)


def test_the_operator_is_there_in_this_process() -> None:
    prepare_torchvision()
    assert hasattr(torch.ops.torchvision, "nms")
