"""The scorecard's shape and its intervals' coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from postgrad.evaluation import metrics
from postgrad.evaluation.calibration import apply_temperature
from postgrad.evaluation.scorecard import across_seeds, class_scores, scorecard
from postgrad.evaluation.statistics import HIGHER_IS_BETTER


def case(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.ones(4), n)
    return p, (generator.random(n)[:, None] > p.cumsum(1)).sum(1).clip(max=3)


def test_every_metric_with_an_interval_around_it() -> None:
    p, y = case(0)
    card = scorecard(p, y)
    assert list(card) == ["accuracy", "balanced_accuracy", "nll", "ece", "ece_equal_mass", "brier", "aurc"]
    assert card["accuracy"]["mean"] == metrics.accuracy(p, y)
    assert card["aurc"]["values"] == [metrics.aurc(p, y)]
    for name in ("accuracy", "balanced_accuracy", "nll", "brier", "aurc"):
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


def test_scaled_metrics_are_those_of_the_scaled_probabilities() -> None:
    p, y = case(0)
    card = scorecard(p, y, temperature=1.7)
    scaled = apply_temperature(p, 1.7)
    for name in ("nll", "ece", "ece_equal_mass", "brier"):
        assert card[f"{name}_scaled"]["mean"] == getattr(metrics, name)(scaled, y)
        low, high = card[f"{name}_scaled"]["ci95"]
        assert low < high
    assert {name: card[name] for name in scorecard(p, y)} == scorecard(p, y)
    assert scorecard(p, y, temperature=1.0)["nll_scaled"]["ci95"] == pytest.approx(card["nll"]["ci95"])


def test_every_metric_has_a_direction_and_stays_in_range_over_seeds() -> None:
    cards = [scorecard(*case(seed, 30), temperature=0.3) for seed in range(2)]
    combined = across_seeds(cards)
    assert set(combined) <= set(HIGHER_IS_BETTER)
    assert combined["nll_scaled"]["ci95"][1] > 1
    assert all(entry["ci95"][1] <= 1 for name, entry in combined.items() if not name.startswith(("nll", "brier")))


def test_each_class_has_its_own_interval() -> None:
    p, y = case(0)
    scores = class_scores(p[y != 2], y[y != 2], list("abcd"))
    assert scores["c"] is None
    first = scores["a"]
    assert first is not None
    right = (p[y == 0].argmax(1) == 0).mean()
    assert first["mean"] == pytest.approx(right)
    half = 1.96 * np.sqrt(right * (1 - right) / (y == 0).sum())
    assert first["ci95"] == pytest.approx([right - half, right + half], abs=0.03)
