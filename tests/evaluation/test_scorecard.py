"""The scorecard's shape, its intervals' coverage, and the cost of a prediction."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from scipy import stats

from postgrad.evaluation import metrics
from postgrad.evaluation.scorecard import across_seeds, measure_cost, scorecard


def case(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.ones(4), n)
    return p, (generator.random(n)[:, None] > p.cumsum(1)).sum(1).clip(max=3)


def test_every_metric_with_an_interval_around_it() -> None:
    p, y = case(0)
    card = scorecard(p, y)
    assert list(card) == ["accuracy", "nll", "ece", "brier", "aurc"]
    assert card["accuracy"]["mean"] == metrics.accuracy(p, y)
    assert card["aurc"]["values"] == [metrics.aurc(p, y)]
    for name in ("accuracy", "nll", "brier", "aurc"):
        low, high = card[name]["ci95"]
        assert low < card[name]["mean"] < high
        assert (card[name]["ci_over"], card[name]["n_seeds"]) == ("images", 1)


@pytest.mark.slow
def test_the_interval_covers_the_true_accuracy() -> None:
    truth = metrics.accuracy(*case(999, 300_000))
    intervals = [scorecard(*case(seed))["accuracy"]["ci95"] for seed in range(100)]
    assert 0.88 <= np.mean([low <= truth <= high for low, high in intervals]) <= 1


def test_several_seeds_give_students_interval() -> None:
    cards = [scorecard(*case(seed)) for seed in range(3)]
    values = [card["nll"]["mean"] for card in cards]
    combined = across_seeds(cards)["nll"]
    assert combined["values"] == values
    assert (combined["ci_over"], combined["n_seeds"]) == ("seeds", 3)
    assert combined["ci95"] == pytest.approx(list(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))))


def test_intervals_over_seeds_stay_in_the_possible_range() -> None:
    cards = [{"accuracy": {"mean": 1.0}}, {"accuracy": {"mean": 0.9}}]
    assert across_seeds(cards)["accuracy"]["ci95"] == [pytest.approx(0.3147, abs=1e-3), 1.0]


def test_a_single_seed_keeps_its_interval_over_images() -> None:
    card = scorecard(*case(0))
    assert across_seeds([card]) == card


class Sleeper:
    inference_passes = 11
    num_parameters = 1234

    def __init__(self) -> None:
        self.calls = 0

    def predict_proba(self, images: Any) -> None:
        self.calls += 1
        time.sleep(0.2 if self.calls in (1, 3) else 0.02)


def test_cost_is_the_median_of_warm_calls() -> None:
    cost = measure_cost(Sleeper(), range(10))
    assert 2.0 <= cost["inference_ms_per_image"] < 10.0
    assert (cost["inference_passes"], cost["parameters"]) == (11, 1234)
