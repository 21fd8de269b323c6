"""Tests and intervals against scipy, closed forms and simulation; verdicts against both."""

from __future__ import annotations

import functools
import itertools
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
        assert statistics.paired_t([0.75] * 5, [0.5] * 5) == 2 / 2**5


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


def null_study(generator: np.random.Generator, arms: list[str], gain: float = 0.0) -> dict[str, list[np.ndarray]]:
    """Five seeds of arms that are right on the same images, but for what their own training makes of chance.

    The first arm is better by `gain`. Seeds share their images' difficulty and a common luck, arms have their own.
    """
    difficulty = generator.beta(2, 1, 500)
    studies: dict[str, list[np.ndarray]] = {arm: [] for arm in arms}
    for _ in range(5):
        common = generator.normal(0, 0.02)
        for arm in arms:
            share = difficulty + common + generator.normal(0, 0.01) + (gain if arm == arms[0] else 0)
            studies[arm].append(generator.random(500) < share)
    return studies


@functools.cache
def null_p_values() -> list[list[float]]:
    """Of 1,000 null studies what the comparison with the base, and those with three controls, come to."""
    generator, arms, found = np.random.default_rng(0), ["method", "base", "control-a", "control-b", "control-c"], []
    for _ in range(1000):
        shares = {arm: np.mean(seeds, axis=1) for arm, seeds in null_study(generator, arms).items()}
        found.append([statistics.paired_t(shares["method"], shares[arm]) for arm in arms[1:]])
    return found


def false_alarms(*, adjusted: bool) -> tuple[float, float]:
    """Of 1,000 null studies the share that finds a difference from the base, and from any of three controls."""
    against_base = against_controls = 0
    for base, *controls in null_p_values():
        against_base += base < 0.05
        against_controls += min(statistics.holm(controls) if adjusted else controls) < 0.05
    return against_base / 1000, against_controls / 1000


@pytest.fixture
def _verdicts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what stands beside a verdict and takes far longer."""
    monkeypatch.setattr(statistics, "_over_images", lambda pairs: {})
    monkeypatch.setattr(statistics, "wilcoxon", lambda a, b: 1.0)


def test_a_thousand_null_studies_keep_their_level() -> None:
    against_base, against_controls = false_alarms(adjusted=True)
    assert 0.03 <= against_base <= 0.06
    assert against_controls <= 0.06


def test_without_holm_the_level_is_lost() -> None:
    """The negative control of the test above: three controls judged one by one find too much."""
    assert false_alarms(adjusted=False)[1] > 0.08


@pytest.mark.slow
@pytest.mark.usefixtures("_verdicts_alone")
def test_the_verdicts_of_a_thousand_null_studies_keep_their_level() -> None:
    generator, arms = np.random.default_rng(0), ["method", "base", "control-a", "control-b", "control-c"]
    against_base = against_controls = 0
    for _ in range(1000):
        entries = statistics.verdicts(null_study(generator, arms), {"method": arms[1:]})
        found = {entry["control"] for entry in entries if entry["verdict"] != "no difference"}
        against_base += "base" in found
        against_controls += bool(found - {"base"})
    assert (against_base / 1000, against_controls / 1000) == false_alarms(adjusted=True)


@pytest.mark.parametrize(("n", "significance"), [(5, 0.05), (5, 0.05 / 3), (10, 0.05), (30, 0.01)])
def test_the_detectable_difference_is_found_in_four_of_five_studies(n: int, significance: float) -> None:
    shift = statistics.detectable_difference(0.02, n, significance=significance)
    draws = np.random.default_rng(0).normal(shift, 0.02, (20_000, n))
    p = stats.ttest_1samp(draws, 0.0, axis=1).pvalue
    assert np.mean((p < significance) & (draws.mean(axis=1) > 0)) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("n", "controls", "spreads"), [(5, 1, 1.7), (5, 4, 2.5), (10, 1, 1.0), (10, 4, 1.3)])
def test_the_detectable_difference_is_what_the_page_on_studies_says(n: int, controls: int, spreads: float) -> None:
    assert statistics.detectable_difference(1.0, n, significance=0.05 / controls) == pytest.approx(spreads, abs=0.05)


@pytest.mark.usefixtures("_verdicts_alone")
def test_a_study_says_what_it_could_have_seen() -> None:
    """The median of what null studies say they could see is what a real gain must have to be found in most of them."""
    generator = np.random.default_rng(1)
    said = [statistics.verdicts(null_study(generator, ["a", "b"]), {"a": ["b"]})[0]["detectable"] for _ in range(200)]
    gain = float(np.median(said))
    studies = (null_study(generator, ["a", "b"], gain) for _ in range(100))
    found = np.mean([statistics.verdicts(study, {"a": ["b"]})[0]["verdict"] == "better" for study in studies])
    assert 0.65 <= found <= 0.92


def test_wilcoxon_is_the_enumeration_of_all_signs() -> None:
    differences = np.array([0.03, -0.01, 0.02, 0.02, 0.05, 0.04])
    ranks = stats.rankdata(np.abs(differences))
    sums = [np.dot(signs, ranks) for signs in itertools.product([0, 1], repeat=6)]
    observed = ranks[differences > 0].sum()
    more = np.mean([s >= observed - 1e-9 for s in sums])
    assert statistics.wilcoxon(differences, np.zeros(6)) == pytest.approx(2 * more)
    assert statistics.wilcoxon([0.5] * 5, [0.5] * 5) == 1.0
    assert statistics.wilcoxon([0.6, 0.7, 0.8, 0.9, 1.0], [0.5] * 5) == pytest.approx(2 / 2**5)


def test_a_verdict_tells_what_stands_beside_it() -> None:
    correct = {
        arm: [right(share, 10 * i + s) for s in range(5)] for i, (arm, share) in enumerate([("a", 0.8), ("b", 0.7)])
    }
    (verdict,) = statistics.verdicts(correct, {"a": ["b"]})
    assert verdict["n_seeds"] == 5
    assert verdict["mcnemar_p"] == [statistics.mcnemar(a, b) for a, b in zip(correct["a"], correct["b"], strict=True)]
    low, high = verdict["bootstrap_ci95"]
    assert low < verdict["difference"] < high
    spread = np.std(np.mean(correct["a"], 1) - np.mean(correct["b"], 1), ddof=1)
    assert verdict["detectable"] == pytest.approx(statistics.detectable_difference(spread, 5, significance=0.05))
    assert verdict["notes"] == ["Wilcoxon's p cannot fall below 0.062 with 5 seeds"]


def test_a_difference_without_spread_is_no_certainty() -> None:
    a, b = np.array([True] * 8 + [False] * 2), np.array([True] * 6 + [False] * 4)
    (verdict,) = statistics.verdicts({"a": [a] * 5, "b": [b] * 5}, {"a": ["b"]})
    assert verdict["verdict"] == "no difference"
    assert verdict["p"] == pytest.approx(2 / 2**5)
    assert any("sign test" in note for note in verdict["notes"])


def test_seeds_that_an_arm_failed_at_are_left_out_of_its_pairs() -> None:
    a, b = [[right(share, 10 * i + s) for s in range(6)] for i, share in enumerate((0.8, 0.7))]
    whole = statistics.verdicts({"a": a[1:], "b": b[1:]}, {"a": ["b"]})
    failed = statistics.verdicts({"a": a, "b": [None, *b[1:]]}, {"a": ["b"]})
    assert failed == whole
    assert statistics.verdicts({"a": [None, a[1]], "b": [b[0], None]}, {"a": ["b"]}) == []
    few = statistics.verdicts({"a": a, "b": [None, None, *b[2:]]}, {"a": ["b"]})
    assert [(v["scope"], v["verdict"], v["n_seeds"]) for v in few] == [
        ("run", "better", 1),
        ("method", "too few seeds", 4),
    ]


def test_lower_is_better_for_losses() -> None:
    correct = {arm: [right(0.7, seed) for seed in range(5)] for arm in ("base", "gradnet")}
    noise = np.linspace(-0.001, 0.001, 5)
    losses = {"base": list(0.9 + noise), "gradnet": list(0.8 - noise)}
    result = statistics.verdicts(correct, {"gradnet": ["base"]}, metrics={"nll": losses})
    assert [(v["metric"], v["verdict"]) for v in result] == [("accuracy", "no difference"), ("nll", "better")]


def test_different_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        statistics.mcnemar([True, False], [True])
