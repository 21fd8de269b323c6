"""The benchmark of PowerGrad: its table, its figures, and that its memory is no more than cross-entropy's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "powergrad.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_powergrad", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_and_its_figures(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "TARGETS", {10: 2.3})
    monkeypatch.setattr(benchmark, "CALLS", {10: 1})
    monkeypatch.setattr(benchmark, "STEP_IMAGES", 2)
    assert benchmark.main(["--repetitions", "1", "--json", str(tmp_path / "figures.json")]) == 0
    assert "| 10 | powergrad |" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    (row,) = figures["losses"]
    assert row["ratio"]["cross-entropy"] == 1
    assert row["microseconds"]["powergrad"] > 0
    assert figures["resnet18_step"]["step_milliseconds"] > 0


@pytest.mark.parametrize("classes", [5, 300])
def test_powergrad_takes_no_more_memory_than_cross_entropy(benchmark: ModuleType, classes: int) -> None:
    logits, target = benchmark.batch(64, classes)
    peaks = {name: benchmark.peak_bytes(loss, logits, target) for name, loss in benchmark.LOSSES.items()}
    assert max(peaks.values()) == peaks["cross-entropy"]

    def wasteful(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([benchmark.LOSSES["cross-entropy"](z * scale, y) for scale in (1, 2)]).sum()

    assert benchmark.peak_bytes(wasteful, logits, target) > peaks["cross-entropy"]
