"""The page on energy models: its figures are those of the records and of the study's own results."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest


def records() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for arm, kept, distance in (("base", 0.1, 90.0), ("jem", 0.3, 20.0), ("jem-plus-plus", 0.5, 10.0)):
        for seed in (0, 1):
            share = kept + 0.1 * seed
            metrics = {"accuracy": {"mean": 0.9}, "robust_accuracy": {"mean": share}}
            made.append({"arm": arm, "seed": seed, "what": "attack 0.1", "epsilon": 0.1, "metrics": metrics})
            figures = {"frechet_distance": distance + seed, "frechet_distance_of_training": 2.0}
            made.append({"arm": arm, "seed": seed, "what": "samples", **figures, "distance_to_nearest": 3.0})
    return made


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A finished study of two seeds, as far as the page reads it."""
    run = tmp_path / "runs" / "jem-mnist"
    arms = []
    for arm, ece, pace in (("base", 0.2, 1), ("jem", 0.1, 20), ("jem-plus-plus", 0.1, 10)):
        values = {"accuracy": [0.9, 0.8], "nll": [1, 1], "nll_scaled": [1, 1], "ece": [ece, ece], "ece_scaled": [0, 0]}
        metrics = {name: {"values": each} for name, each in values.items()}
        outside = {"data": "noise", "score": "energy", "metrics": {"auroc": {"values": [0.75, 0.85]}}}
        arms.append({"name": arm, "metrics": metrics, "outside": [outside]})
        for place in (run / arm, run / "seed-1" / arm):
            place.mkdir(parents=True)
            (place / "arm.json").write_text("{}")
            (place / "metrics.csv").write_text(f"seconds,accuracy\n{pace},.5\n{2 * pace},.9\n")
    (run / "config.yaml").write_text("data: mnist\nlimit: 5000\nseeds: [0, 1]\n")
    (run / "results.json").write_text(json.dumps({"arms": arms}))
    return run


def test_the_page_says_what_was_found(script: Any, study: Path) -> None:
    measures = script("energy_measures")
    options = Namespace(features=Path("runs/f"), json=Path("a/raw/m.json"), page=Path("a/m.md"), pictures=None)
    text = measures.page(study, records(), options)
    assert "| plain | 0.850 (0.800 to 0.900) |" in text
    assert "| JEM | 0.90 (0.90 to 0.90) | 0.35 (0.30 to 0.40) |" in text
    assert "| noise, energy | 0.800 (0.750 to 0.850) |" in text
    assert "| noise, max logit | – | – | – |" in text
    assert "| JEM++ | 10.50 (10.00 to 11.00) | 3.00 (3.00 to 3.00) |" in text
    assert "| as many training images | 2.00 | – |" in text
    assert "| 1 | 0.900 | 40 | 20 | 2.00 |" in text
    assert "Raw: [m.json](raw/m.json)." in text


def test_the_time_to_an_accuracy_lies_between_looks(script: Any) -> None:
    measures = script("energy_measures")
    points = [(10.0, 0.5), (20.0, 0.4), (30.0, 0.8)]
    assert measures.reached(points, 0.25) == 5
    assert measures.reached(points, 0.5) == 10
    assert measures.reached(points, 0.6) == pytest.approx(25)
    with pytest.raises(ValueError, match="ends at"):
        measures.reached(points, 0.9)
