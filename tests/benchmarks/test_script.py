"""The command: its rows, its page and plot, and its refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from gradient_benchmark import floor as floor_module
from gradient_benchmark import pages
from gradient_benchmark.floor import Floor, MachineRate, layers_of
from gradient_benchmark.setting import CLASSES, HIDDEN
from gradient_benchmark.timing import Timing
from gradient_benchmark.works import IMPLEMENTATIONS, WORKS, Bench, Case

from postgrad.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def small_scale(script: ModuleType) -> Any:
    return script.Scale((3, 2), 1, 1, 1, probe=2, training_gradients=1, memory=("all_labels",), growth=())


@pytest.fixture
def figures(script: ModuleType, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Figures of the tiny setting, with memory and growth made up."""
    monkeypatch.setattr(floor_module, "MATRIX_PRODUCTS", {"small": (1, 64, 64, 64)})
    monkeypatch.setattr(floor_module, "_SECONDS_EACH", 0.001)
    rate = MachineRate(torch.device("cpu"))
    timings = script.time_all(bench, small_scale(script), rate)
    layers = layers_of(bench.setting.model, bench.setting.batch(1).inputs)
    floor = Floor.of(layers, HIDDEN, CLASSES)
    shares = script.sparsity.measure(bench.setting, layers, bench.setting.batch(2))
    peaks = {case: 10.0 if case.implementation == "postgrad" else 40.0 for case in timings}
    point = {"axis": "batch", "value": 2, "implementation": "postgrad", "gradients_per_second": 5.0}
    return {
        "machine_gmacs": rate.best / 1e9,
        "machine_gmacs_shape": rate.shape,
        "rows": script.make_rows(timings, peaks, floor, rate.best),
        "growth": [{**point, "axis": axis, "implementation": name} for axis in pages.AXES for name in IMPLEMENTATIONS],
        "floor": script.floor_figures(floor, shares),
        "images": "generated",
        "base_steps": 1,
        "device": "cpu",
        "environment": script.environment(),
    }


def test_rows_have_every_case_and_key(figures: dict[str, Any]) -> None:
    rows = figures["rows"]
    assert len(rows) == len(WORKS) * 2 * len(IMPLEMENTATIONS)
    wanted = {"work", "implementation", "batch", "gradients_per_second", "share_of_floor", "ratio_to_best_peer"}
    assert all(wanted | {"peak_memory_mb", "labels"} <= set(row) for row in rows)
    assert {row["labels"] for row in rows if row["work"] == "bare"} == {"one", "all"}
    assert all(row["memory_share_of_vmap"] == 0.25 for row in rows if row["implementation"] == "postgrad")


def test_ratios_are_to_the_best_peer(script: ModuleType, bench: Bench) -> None:
    """Twice the speed of vmap at this batch, the same as it has at the other."""
    seconds = {("postgrad", 2): 1.0, ("vmap", 2): 2.0, ("loop", 2): 4.0, ("postgrad", 4): 2.0, ("vmap", 4): 2.0}
    timings = {
        Case(work, "one", name, batch): Timing(value, 0.1)
        for work in ("bare", "random_label_training")
        for (name, batch), value in seconds.items()
    }
    floor = Floor.of(layers_of(bench.setting.model, bench.setting.batch(1).inputs), HIDDEN, CLASSES)
    rows = script.make_rows(timings, {}, floor, 100.0)
    row = next(r for r in rows if (r["work"], r["implementation"], r["batch"]) == ("bare", "postgrad", 2))
    assert row["gradients_per_second"] == 2.0
    assert row["ratio_to_best_peer"] == 2.0
    assert row["ratio_to_best_peer_any_batch"] == 1.0
    assert row["share_of_floor"] == 2.0 * floor.multiply_adds("bare", "one") / 100
    assert row["peak_memory_mb"] is None


def test_page_plot_and_table_come_from_the_file(
    script: ModuleType, figures: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, page, plot = tmp_path / "figures.json", tmp_path / "page.md", tmp_path / "plot.png"
    stored.write_text(json.dumps(figures))
    page.write_text(f"before\n\n{pages.BEGIN}\nold\n{pages.END}\n\nafter\n")
    arguments = ["--read", str(stored), "--page", str(page), "--plot", str(plot)]
    assert script.main(arguments) == 0
    first = page.read_text()
    assert first.startswith("before\n")
    assert first.endswith("\nafter\n")
    assert "old" not in first
    assert first.count("| postgrad |") == 4
    assert "](plot.png)" in first
    assert plot.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "Multiply-adds of dense arithmetic" in shown
    assert all(name in shown for name in IMPLEMENTATIONS)
    assert script.main(arguments) == 0
    assert page.read_text() == first


def test_a_page_without_markers_is_left_alone(figures: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(UserError, match="no place for the figures"):
        pages.write_page(figures, page)
    assert page.read_text() == "nothing here\n"


def test_the_documentation_has_the_markers() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(pages.BEGIN) == 1
    figures = text.partition(pages.BEGIN)[2].partition(pages.END)
    assert figures[1] == pages.END
    assert "[//]: #" not in figures[0], "the figures of another benchmark are written over"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--read", "nowhere.json"], "nowhere.json cannot be read"),
        (["--threads", "0"], "--threads: expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(
    script: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert script.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_missing_peers_name_the_extra(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "opacus" else find(name))
    assert script.main(["--quick"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'postgrad[bench]'" in error
    assert error.count("\n") == 1
