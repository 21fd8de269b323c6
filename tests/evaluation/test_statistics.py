"""Tests and intervals against scipy, closed forms and simulation; verdicts against both."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from postgrad.evaluation import statistics


def right(share: float, seed: int, n: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def test_mcnemar_is_the_binomial_tail() -> None:
    a = np.array([True] * 8 + [False] * 2 + [True] * 50)
    b = np.array([False] * 8 + [True] * 2 + [True] * 50)
    tail = sum(math.comb(10, k) for k in (0, 1, 2)) / 2**10
    assert statistics.mcnemar(a, b) == pytest.approx(2 * tail)
    assert statistics.mcnemar(b, a) == pytest.approx(2 * tail)
    assert statistics.mcnemar(a, a) == 1.0


def test_mcnemar_keeps_its_level_when_nothing_differs() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.random(400)
    p = [statistics.mcnemar(*(generator.random((2, 400)) < difficulty)) for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) < 0.07


def test_mcnemar_finds_a_real_difference() -> None:
    difficulty = np.random.default_rng(0).random(2000)
    draws = np.random.default_rng(1).random((2, 2000))
    assert statistics.mcnemar(draws[0] < difficulty, draws[1] < difficulty - 0.08) < 0.001


def test_paired_interval_covers_the_true_difference() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        kind = generator.choice(4, 300, p=[0.6, 0.12, 0.06, 0.22])
        low, high = statistics.paired_interval((kind == 0) | (kind == 1), (kind == 0) | (kind == 2))
        hits += low <= 0.06 <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    x = right(0.7, 3, 2000)
    low, high = statistics.bootstrap_interval(lambda i: x[i].mean(), len(x))
    half = 1.96 * math.sqrt(x.mean() * (1 - x.mean()) / len(x))
    assert low == pytest.approx(x.mean() - half, abs=0.003)
    assert high == pytest.approx(x.mean() + half, abs=0.003)


def test_bootstrap_repeats_exactly() -> None:
    x = right(0.7, 3)
    first, second = (statistics.bootstrap_interval(lambda i: [x[i].mean(), x[i].std()], len(x)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (2, 2)


def test_t_interval_is_scipys() -> None:
    x = [0.71, 0.74, 0.7, 0.73, 0.72]
    assert statistics.t_interval(x) == pytest.approx(stats.t.interval(0.95, 4, np.mean(x), stats.sem(x)))
    assert statistics.t_interval([0.7]) is None


def test_paired_t_is_scipys_and_stands_equal_differences() -> None:
    a, b = [0.71, 0.74, 0.7, 0.73, 0.72], [0.7, 0.71, 0.71, 0.7, 0.71]
    assert statistics.paired_t(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statistics.paired_t([0.5] * 5, [0.5] * 5) == 1.0
        assert statistics.paired_t([0.75] * 5, [0.5] * 5) == 0.0


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


def test_one_seed_speaks_for_the_run_alone() -> None:
    correct = {"base": [right(0.6, 0)], "gradnet": [right(0.8, 1)], "control-finetune": [right(0.9, 2)]}
    result = statistics.verdicts(correct, {"gradnet": ["base", "control-finetune"]})
    assert [(v["control"], v["scope"], v["verdict"]) for v in result] == [
        ("base", "run", "better"),
        ("control-finetune", "run", "worse"),
        ("base", "method", "too few seeds"),
        ("control-finetune", "method", "too few seeds"),
    ]
    first = result[0]
    assert first["p"] == statistics.mcnemar(correct["gradnet"][0], correct["base"][0])
    assert first["difference"] == pytest.approx(correct["gradnet"][0].mean() - correct["base"][0].mean())
    assert first["ci95"][0] < first["difference"] < first["ci95"][1]
    assert result[2]["p"] is None
    assert result[2]["ci95"] is None


def test_five_seeds_speak_for_the_method_with_holm_over_the_controls() -> None:
    shares = {"base": 0.60, "gradnet": 0.70, "control-finetune": 0.69, "control-features": 0.64}
    correct = {arm: [right(share, 10 * i + seed) for seed in range(5)] for i, (arm, share) in enumerate(shares.items())}
    controls = ["base", "control-finetune", "control-features"]
    result = {v["control"]: v for v in statistics.verdicts(correct, {"gradnet": controls})}
    assert {v["scope"] for v in result.values()} == {"method"}
    means = {arm: [c.mean() for c in seeds] for arm, seeds in correct.items()}
    raw = {c: stats.ttest_rel(means["gradnet"], means[c]).pvalue for c in controls}
    adjusted = statistics.holm([raw["control-finetune"], raw["control-features"]])
    assert [result[c]["p"] for c in controls] == pytest.approx([raw["base"], *adjusted])
    assert result["base"]["verdict"] == "better"


def test_no_verdict_where_there_is_no_difference() -> None:
    false_alarms = 0
    for trial in range(200):
        correct = {arm: [right(0.7, 1000 * trial + 10 * i + s, 200) for s in range(5)] for i, arm in enumerate("ab")}
        (verdict,) = statistics.verdicts(correct, {"a": ["b"]})
        false_alarms += verdict["verdict"] != "no difference"
    assert false_alarms / 200 < 0.09


def test_lower_is_better_for_losses() -> None:
    correct = {arm: [right(0.7, seed) for seed in range(5)] for arm in ("base", "gradnet")}
    noise = np.linspace(-0.001, 0.001, 5)
    losses = {"base": list(0.9 + noise), "gradnet": list(0.8 - noise)}
    result = statistics.verdicts(correct, {"gradnet": ["base"]}, metrics={"nll": losses})
    assert [(v["metric"], v["verdict"]) for v in result] == [("accuracy", "no difference"), ("nll", "better")]


def test_different_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        statistics.mcnemar([True, False], [True])
