"""Intervals and tests for comparing classifiers, and the verdicts they allow.

>>> from postgrad.evaluation.statistics import verdicts
>>> correct = {"base": [right_of_base], "gradnet": [right_of_gradnet]}      # per seed, one bool per test image
>>> verdicts(correct, {"gradnet": ["base"]})[0]["verdict"]
'better'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

SIGNIFICANCE = 0.05
"""Below this p a difference is called one."""

MIN_SEEDS = 5
"""Seeds that a statement about a method, rather than about one run, needs."""

HIGHER_IS_BETTER = {"accuracy": True, "nll": False, "ece": False, "brier": False, "aurc": False}

Interval = tuple[float, float]


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float | ArrayLike], n: int, *, resamples: int = 1000, seed: int = 0
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
    """The two-sided p of the paired t test over seeds; differences without any spread give 1 (all zero) or 0."""
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(differences) < 2:
        raise ValueError(f"a paired t test needs two or more seeds, got {len(differences)}")
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p values for testing several hypotheses at once (Holm, 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def verdicts(
    correct: Mapping[str, Sequence[ArrayLike]],
    comparisons: Mapping[str, Sequence[str]],
    *,
    metrics: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> list[dict[str, Any]]:
    """Compare each method with the arms it must beat, as the `verdicts` of results.json.

    >>> verdicts({"base": seeds, "gradnet": seeds, "control-finetune": seeds}, {"gradnet": ["base"]})

    Args:
        correct: per arm and seed, whether each test image (N,) is classified right; seeds in one order for all arms.
        comparisons: per method the arms that it is compared with: `"base"` and its controls.
        metrics: more metrics to compare over seeds: metric, then arm, then one value per seed.

    With five seeds or more, the verdict is about the method: a paired t test over seeds, its p adjusted by Holm over
    the method's controls (the comparison with the base is a question of its own, and not adjusted). With fewer,
    McNemar's exact test on the first seed's test images speaks for that run alone, and an entry of scope "method" says
    that there are too few seeds. `difference` is method minus control.
    """
    result: list[dict[str, Any]] = []
    for method, controls in comparisons.items():
        if len(correct[method]) < MIN_SEEDS:
            result += [_run_verdict(correct, method, control) for control in controls]
        values = {arm: [_share(seed) for seed in correct[arm]] for arm in (method, *controls)}
        for metric, by_arm in {"accuracy": values, **(metrics or {})}.items():
            result += _method_verdicts(metric, by_arm, method, controls)
    return result


def _run_verdict(correct: Mapping[str, Sequence[ArrayLike]], method: str, control: str) -> dict[str, Any]:
    a, b = correct[method][0], correct[control][0]
    p = mcnemar(a, b)
    difference = _share(a) - _share(b)
    return _entry(method, control, "accuracy", difference, paired_interval(a, b), p, "mcnemar", "run")


def _method_verdicts(
    metric: str, values: Mapping[str, Sequence[float]], method: str, controls: Sequence[str]
) -> list[dict[str, Any]]:
    differences = {c: np.subtract(values[method], values[c]) for c in controls}
    p_values: dict[str, float | None] = dict.fromkeys(controls)
    if len(values[method]) >= MIN_SEEDS:
        tested = {c: paired_t(values[method], values[c]) for c in controls}
        family = [c for c in controls if c != "base"]
        p_values |= tested | dict(zip(family, holm([tested[c] for c in family]), strict=True))
    return [
        _entry(method, c, metric, float(d.mean()), t_interval(d), p_values[c], "paired-t", "method")
        for c, d in differences.items()
    ]


def _entry(
    method: str,
    control: str,
    metric: str,
    difference: float,
    interval: Interval | None,
    p: float | None,
    test: Literal["paired-t", "mcnemar"],
    scope: Literal["method", "run"],
) -> dict[str, Any]:
    return {
        "method": method,
        "control": control,
        "metric": metric,
        "difference": difference,
        "ci95": list(interval) if interval else None,
        "p": p,
        "test": test,
        "scope": scope,
        "verdict": _word(metric, difference, p),
    }


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
