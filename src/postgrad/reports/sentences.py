"""The verdicts of a run as plain sentences, which say what was lost as clearly as what was gained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from postgrad.evaluation.statistics import MIN_SEEDS
from postgrad.reports.schema import Arm, Results, Verdict
from postgrad.reports.words import arm_name, p_value, points

_WORST_FIRST = {"worse": 0, "too few seeds": 1, "no difference": 1, "better": 2}


def decisive(results: Results, method: Arm) -> list[Verdict]:
    """The accuracy verdicts that speak for a method: those over seeds where there are enough, else this run's."""
    mine = [v for v in results.verdicts if v.method == method.name and v.metric == "accuracy"]
    decided = [v for v in mine if v.scope == "method" and v.p is not None]
    return decided or [v for v in mine if v.scope == "run"]


def headline(results: Results, method: Arm) -> str:
    """One sentence: the method against the base, and against the control that it does worst against.

    >>> headline(results, results.arm("gradnet"))
    'GradNet beats the base by 4.1 points (p < 0.001), but loses to fine-tuning by 1.2 points (p = 0.003).'
    """
    verdicts = decisive(results, method)
    base = [v for v in verdicts if results.arm(v.control).kind == "base"]
    controls = sorted((v for v in verdicts if v not in base), key=lambda v: (_WORST_FIRST[v.verdict], v.difference))
    clauses = [_clause(results, v) for v in base[:1]]
    if controls and controls[0].verdict == "better" and len(controls) > 1:
        nearest = controls[0]
        clauses.append(
            f"beats each of its {len(controls)} controls, the nearest of them, {_control(results, nearest)}, "
            f"by {points(nearest.difference)} ({_p(nearest)})"
        )
    elif controls:
        clauses.append(_clause(results, controls[0]))
    if not clauses:
        return f"{arm_name(method)} was not compared with another arm."
    outcomes = [v.verdict for v in (*base[:1], *controls[:1])]
    joint = ", and " if len(set(outcomes)) == 1 else ", but "
    one_of_several = verdicts[0].scope == "run" and len(results.seeds) > 1
    return f"{f'With seed {results.seeds[0]}, ' if one_of_several else ''}{arm_name(method)} {joint.join(clauses)}."


def reach(results: Results) -> str:
    """How far these verdicts reach: the number of seeds, and what it allows to say."""
    n = len(results.seeds)
    if n >= MIN_SEEDS:
        return (
            f"{n} seeds: these verdicts are about the method on this data. Each is a paired t test over the seeds, and "
            f"the p values are adjusted for the number of controls (Holm)."
        )
    which = (
        "One seed: the p values speak for this run" if n == 1 else f"{n} seeds: the p values speak for the first run"
    )
    return (
        f"{which} alone, by McNemar's exact test on its {results.data.n_test:,} test images. A statement about the "
        f"method needs five seeds or more."
    )


def recommendation(results: Results) -> str | None:
    """Which arm the validation data recommends, when the run says so."""
    if results.recommended is None:
        return None
    return f"The arm that the validation images recommend is {_arm(results, results.recommended)}."


def against(results: Results, arm: Arm) -> list[tuple[str, str, list[str]]]:
    """What each method did against this arm: the method's name, the verdict's word, and its numbers line by line."""
    return [
        (arm_name(method), verdict.verdict, [_numbers(verdict), *_mean_over_seeds(results, verdict)])
        for method in methods(results)
        for verdict in decisive(results, method)
        if verdict.control == arm.name
    ]


def methods(results: Results) -> list[Arm]:
    """The arms that are methods."""
    return [arm for arm in results.arms if arm.kind == "method"]


def best_control(results: Results, names: Sequence[str]) -> Arm | None:
    """The most accurate control among the arms of these names."""
    controls = [arm for arm in results.arms if arm.kind == "control" and arm.name in names]
    return max(controls, key=lambda arm: arm.metrics["accuracy"].mean, default=None)


def _clause(results: Results, verdict: Verdict) -> str:
    control = _control(results, verdict)
    if verdict.verdict == "better":
        return f"beats {control} by {points(verdict.difference)} ({_p(verdict)})"
    if verdict.verdict == "worse":
        return f"loses to {control} by {points(verdict.difference)} ({_p(verdict)})"
    return f"does not measurably differ from {control} ({_numbers(verdict)})"


def _numbers(verdict: Verdict) -> str:
    return f"{points(verdict.difference, sign=True)}, {_p(verdict)}"


def _mean_over_seeds(results: Results, verdict: Verdict) -> Iterator[str]:
    """The mean difference over the seeds, where the verdict itself is about the first of several."""
    for other in results.verdicts:
        same = (other.method, other.control, other.metric) == (verdict.method, verdict.control, verdict.metric)
        if same and verdict.scope == "run" and other.scope == "method" and len(results.seeds) > 1:
            yield f"mean of {len(results.seeds)} seeds {points(other.difference, sign=True)}"


def _control(results: Results, verdict: Verdict) -> str:
    return _arm(results, verdict.control)


def _arm(results: Results, name: str) -> str:
    return arm_name(results.arm(name))


def _p(verdict: Verdict) -> str:
    return "p not known" if verdict.p is None else p_value(verdict.p)
