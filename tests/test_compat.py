"""torchvision beside a CPU build of torch: importable after `prepare_torchvision`, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from postgrad._compat import prepare_torchvision

PREPARE = "from postgrad._compat import prepare_torchvision; kept = prepare_torchvision()\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "use",
    [
        "import torchvision; torchvision.models.resnet18(); from torchvision.transforms import v2; v2.Resize(8)",
        "import timm; timm.create_model('resnet10t')",
        "import lightning",
    ],
)
def test_what_imports_torchvision_works_after_it(use: str) -> None:
    result = run(PREPARE + use)
    assert result.returncode == 0, result.stderr


def test_it_may_come_after_torchvision_and_be_called_twice() -> None:
    result = run(PREPARE + "import torchvision, gc; del kept; gc.collect(); prepare_torchvision()\ntorchvision.ops.nms")
    assert result.returncode == 0, result.stderr


def test_torchvisions_own_import_says_why_it_is_needed() -> None:
    """The control: where the plain import works, the operators are real and nothing is declared."""
    plain = run("import torchvision")
    declared = run(PREPARE + "import sys; sys.exit(3 if kept is not None else 0)").returncode == 3
    assert declared == (plain.returncode != 0)
    if declared:
        assert "operator torchvision::nms does not exist" in plain.stderr


def test_the_operator_is_there_in_this_process() -> None:
    prepare_torchvision()
    assert hasattr(torch.ops.torchvision, "nms")
