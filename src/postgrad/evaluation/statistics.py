"""Intervals and tests for comparing classifiers, and the verdicts they allow.

>>> from postgrad.evaluation.statistics import verdicts
>>> correct = {"base": [right_of_base], "gradnet": [right_of_gradnet]}      # per seed, one bool per test image
>>> verdicts(correct, {"gradnet": ["base"]})[0]["verdict"]
'better'
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

SIGNIFICANCE = 0.05
"""Below this p a difference is called one."""

MIN_SEEDS = 5
"""Seeds that a statement about a method, rather than about one run, needs."""

POWER = 0.8
"""The share of studies in which a detectable difference is found."""

RESAMPLES = 1000

HIGHER_IS_BETTER = {
    "accuracy": True,
    "train_accuracy": True,
    "top5_accuracy": True,
    "balanced_accuracy": True,
    "nll": False,
    "nll_scaled": False,
    "ece": False,
    "ece_scaled": False,
    "ece_equal_mass": False,
    "ece_equal_mass_scaled": False,
    "brier": False,
    "brier_scaled": False,
    "aurc": False,
    "auroc": True,
    "aupr_in": True,
    "aupr_out": True,
    "fpr95": False,
    "kept": True,
    "robust_accuracy": True,
}

Interval = tuple[float, float]


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float | ArrayLike], n: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """The 95 % percentile bootstrap interval of a statistic over n images, shape (2, …).

    >>> low, high = bootstrap_interval(lambda images: correct[images].mean(), len(correct))

    `statistic` gets the indices of one resample, drawn with replacement.
    """
    generator = np.random.default_rng(seed)
    drawn = [np.asarray(statistic(generator.integers(0, n, n)), np.float64) for _ in range(resamples)]
    return np.percentile(np.stack(drawn), [2.5, 97.5], axis=0)


def t_interval(values: ArrayLike) -> Interval | None:
    """Student's 95 % interval of a mean over seeds; None for a single value, which has no spread."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(x) - 1) * stats.sem(x))
    return float(x.mean()) - half, float(x.mean()) + half


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """The exact two-sided p of McNemar's test: are a and b right equally often, on the same images?

    Only the images that one has right and the other wrong count (McNemar, 1947); none of them gives p = 1.
    """
    only_a, only_b, _ = _disagreements(correct_a, correct_b)
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def paired_interval(correct_a: ArrayLike, correct_b: ArrayLike) -> Interval:
    """The 95 % interval of accuracy(a) - accuracy(b) on the same images.

    The adjusted Wald interval of Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", 2012.
    """
    only_a, only_b, n = _disagreements(correct_a, correct_b)
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = float(stats.norm.ppf(0.975) * np.sqrt((a + b - (a - b) ** 2) / (n + 2)))
    return max(-1.0, a - b - half), min(1.0, a - b + half)


def paired_t(a: ArrayLike, b: ArrayLike) -> float:
    """The two-sided p of the paired t test over seeds.

    Differences that are all the same leave the test without a measure of chance: no difference at all gives 1, another
    constant the p of the sign test, 2 / 2^n, the least that n seeds which agree in sign can be worth.
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(differences) < 2:
        raise ValueError(f"a paired t test needs two or more seeds, got {len(differences)}")
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 2.0 ** (1 - len(differences))
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def wilcoxon(a: ArrayLike, b: ArrayLike) -> float:
    """The exact two-sided p of Wilcoxon's signed-rank test over seeds; 1 where nothing differs.

    It assumes no normal distribution, and cannot fall below 2 / 2^n: with five seeds not below .0625.
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, method=stats.PermutationMethod(n_resamples=10_000, rng=0)).pvalue)


def proportion_interval(right: int, n: int) -> Interval:
    """The 95 % interval of a share of n images: Wilson's.

    >>> proportion_interval(900, 1000)
    (0.8798..., 0.9170...)
    """
    found = stats.binomtest(right, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def detectable_difference(spread: float, n: int, *, significance: float = SIGNIFICANCE) -> float:
    """The smallest true mean difference that a paired t test over n seeds finds in 80 % of studies.

    >>> detectable_difference(0.01, 5)
    0.01683...

    Args:
        spread: the standard deviation of the difference from seed to seed.
        significance: below which p a difference is called one.

    The power comes from the noncentral t distribution (Cohen, "Statistical Power Analysis", 1988).
    """
    return spread * _noncentrality(n, significance) / math.sqrt(n)


@functools.cache
def _noncentrality(n: int, significance: float) -> float:
    critical = stats.t.ppf(1 - significance / 2, n - 1)

    def missing(shift: float) -> float:
        return float(stats.nct.sf(critical, n - 1, shift)) - POWER

    return float(optimize.brentq(missing, 0.0, 2 * critical + 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p values for testing several hypotheses at once (Holm, 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def verdicts(
    correct: Mapping[str, Sequence[ArrayLike | None]],
    comparisons: Mapping[str, Sequence[str]],
    *,
    metrics: Mapping[str, Mapping[str, Sequence[float | None]]] | None = None,
) -> list[dict[str, Any]]:
    """Compare each method with the arms it must beat, as the `verdicts` of results.json.

    >>> verdicts({"base": seeds, "gradnet": seeds, "control-finetune": seeds}, {"gradnet": ["base"]})

    Args:
        correct: per arm and seed, whether each test image (N,) is classified right; seeds in one order for all arms,
            None for a seed that an arm failed at.
        comparisons: per method the arms that it is compared with: `"base"` and its controls.
        metrics: more metrics to compare over seeds: metric, then arm, then one value (or None) per seed.

    A comparison is over the seeds that both arms have. With five of them or more, the verdict is about the method: a
    paired t test over seeds, its p adjusted by Holm over the method's controls (the comparison with the base is a
    question of its own, and not adjusted). With fewer, McNemar's exact test on the first seed's test images speaks for
    that run alone, and an entry of scope "method" says that there are too few seeds. `difference` is method minus
    control. Where two arms have no seed in common there is no entry.
    """
    result: list[dict[str, Any]] = []
    for method, controls in comparisons.items():
        pairs = {control: _common(correct[method], correct[control]) for control in controls}
        pairs = {control: pair for control, pair in pairs.items() if pair}
        result += [_run_verdict(*pair[0], method, c) for c, pair in pairs.items() if len(pair) < MIN_SEEDS]
        shares = {control: [(_share(a), _share(b)) for a, b in pair] for control, pair in pairs.items()}
        judged = _method_verdicts("accuracy", shares, method)
        result += [entry | _over_images(pairs[entry["control"]]) for entry in judged]
        for metric, values in (metrics or {}).items():
            result += _method_verdicts(metric, {c: _common(values[method], values[c]) for c in pairs}, method)
    return result


Pair = tuple[Any, Any]


def _common(a: Sequence[Any], b: Sequence[Any]) -> list[Pair]:
    """What both have, seed by seed."""
    return [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]


def _run_verdict(a: ArrayLike, b: ArrayLike, method: str, control: str) -> dict[str, Any]:
    """What the test images of one seed say of its two classifiers."""
    difference, p = _share(a) - _share(b), mcnemar(a, b)
    return {
        "method": method,
        "control": control,
        "metric": "accuracy",
        "difference": difference,
        "ci95": list(paired_interval(a, b)),
        "p": p,
        "test": "mcnemar",
        "scope": "run",
        "verdict": _word("accuracy", difference, p),
        "n_seeds": 1,
    }


def _method_verdicts(metric: str, values: Mapping[str, Sequence[Pair]], method: str) -> list[dict[str, Any]]:
    """Paired t tests of one method against several arms; `values` has per arm the two values of each common seed."""
    tested = {c: paired_t(*zip(*pairs, strict=True)) for c, pairs in values.items() if len(pairs) >= MIN_SEEDS}
    family = [control for control in tested if control != "base"]
    adjusted = tested | dict(zip(family, holm([tested[c] for c in family]), strict=True))
    return [
        _method_verdict(metric, np.asarray(pairs, np.float64), method, c, adjusted.get(c), len(family))
        for c, pairs in values.items()
    ]


def _method_verdict(
    metric: str, pairs: NDArray[np.float64], method: str, control: str, p: float | None, family: int
) -> dict[str, Any]:
    differences = pairs[:, 0] - pairs[:, 1]
    n, interval = len(differences), t_interval(differences)
    strictest = SIGNIFICANCE if control == "base" else SIGNIFICANCE / max(family, 1)
    several: dict[str, Any] = {}
    if n > 1:
        spread = float(differences.std(ddof=1))
        several["detectable"] = detectable_difference(spread, n, significance=strictest)
        several["wilcoxon_p"] = wilcoxon(*pairs.T)
    return {
        "method": method,
        "control": control,
        "metric": metric,
        "difference": float(differences.mean()),
        "ci95": list(interval) if interval else None,
        "p": p,
        "test": "paired-t",
        "scope": "method",
        "verdict": _word(metric, float(differences.mean()), p),
        "n_seeds": n,
        **several,
        "notes": _notes(differences),
    }


def _over_images(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What the test images say beside the seeds: McNemar seed by seed, and a bootstrap over the images.

    The gain of an image takes few values, so that a resample is a draw of how often each of them comes.
    """
    gains = np.sum([np.subtract(a, b, dtype=np.int64) for a, b in pairs], axis=0)
    values, counts = np.unique(gains, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(gains), counts / len(gains), RESAMPLES)
    low, high = np.percentile(drawn @ values / len(gains) / len(pairs), [2.5, 97.5])
    return {"mcnemar_p": [mcnemar(a, b) for a, b in pairs], "bootstrap_ci95": [float(low), float(high)]}


def _notes(differences: NDArray[np.float64]) -> list[str]:
    """What a reader must know of the tests over these seeds."""
    n, notes = len(differences), []
    if n > 1 and 2.0 ** (1 - n) >= SIGNIFICANCE:
        notes.append(f"Wilcoxon's p cannot fall below {2.0 ** (1 - n):.2g} with {n} seeds")
    if n > 1 and np.ptp(differences) == 0 and differences[0] != 0:
        notes.append(
            "the difference is the same at every seed, so the t test has no measure of chance; p is the sign test's"
        )
    return notes


def _word(metric: str, difference: float, p: float | None) -> str:
    if p is None:
        return "too few seeds"
    if p >= SIGNIFICANCE:
        return "no difference"
    return "better" if (difference > 0) == HIGHER_IS_BETTER[metric] else "worse"


def _share(correct: ArrayLike) -> float:
    return float(np.asarray(correct, bool).mean())


def _disagreements(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, int]:
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"both must say right or wrong for the same images, got shapes {a.shape} and {b.shape}")
    return int((a & ~b).sum()), int((b & ~a).sum()), len(a)
