"""The benchmark of Mapper: its table and figures, that it refuses other nodes, and that it says what was not asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import postgrad.progress
from postgrad.data.datasets import load_dataset


@pytest.fixture
def benchmark(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    """The script on 60 digits and 5 new ones."""
    script = load_benchmark("mapper")
    rows = load_dataset("digits", limit=70).train.images.flatten(1).float().div(255).numpy()
    monkeypatch.setattr(script, "points", lambda images, new: ("digits", rows[:images], rows[-new:]))
    monkeypatch.setattr(postgrad.progress, "quiet", False)  # the script changes it
    settings = [
        "--images",
        "60",
        "--new",
        "5",
        "--repeats",
        "1",
        "--sizes",
        "40",
        "--json",
        str(tmp_path / "figures.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["mapper.py", *settings])
    return script


def test_the_table_and_its_figures(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main()
    table = capsys.readouterr().out
    assert "60 images of digits, 5 new ones" in table
    assert "giotto-tda was not asked" in table
    figures = json.loads((tmp_path / "figures.json").read_text())
    (size,) = figures["growth"]
    assert size["images"] == 40
    assert f"40 images: {size['fit']:.1f} s to fit" in table
    assert set(figures["seconds"]) == {
        "postgrad, nodes",
        "KeplerMapper, nodes",
        "postgrad, new points",
        "scikit-learn, new points",
    }
    assert all(len(each) == 1 and each[0] > 0 for each in figures["seconds"].values())
    seconds = figures["medians"]
    assert figures["ratios"] == {
        "KeplerMapper, nodes": seconds["KeplerMapper, nodes"] / seconds["postgrad, nodes"],
        "scikit-learn, new points": seconds["scikit-learn, new points"] / seconds["postgrad, new points"],
    }


@pytest.mark.parametrize(
    ("peer", "wrong", "message"),
    [
        ("kepler_nodes", lambda *_: {(0, frozenset({1, 2}))}, "KeplerMapper's nodes are others than ours"),
        ("neighbours_rows", lambda *_: 0.0, "scikit-learn's rows of new points are others than ours"),
    ],
)
def test_other_answers_are_refused(
    benchmark: Any, peer: str, wrong: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, peer, wrong)
    with pytest.raises(SystemExit, match=message):
        benchmark.main()


def test_an_interpreter_without_giotto_is_said(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--giotto", sys.executable])
    with pytest.raises(SystemExit, match="mapper: giotto-tda failed: ModuleNotFoundError: No module named 'gtda'"):
        benchmark.main()
