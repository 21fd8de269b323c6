"""The verdicts of a run as plain sentences, which say what was lost as clearly as what was gained."""

from __future__ import annotations

from collections.abc import Iterator

from postgrad.evaluation.statistics import MIN_SEEDS
from postgrad.reports.paired import seed_of
from postgrad.reports.schema import Arm, Results, Verdict
from postgrad.reports.words import arm_name, p_value, points

_WORST_FIRST = {"worse": 0, "too few seeds": 1, "no difference": 1, "better": 2}


def decisive(results: Results, method: Arm) -> list[Verdict]:
    """The accuracy verdicts that speak for a method: those over seeds where there are enough, else this run's.

    Where some comparisons have enough seeds, those that have too few are among them, and say so.
    """
    mine = [v for v in results.verdicts if v.method == method.name and v.metric == "accuracy"]
    over_seeds = [v for v in mine if v.scope == "method"]
    if any(v.p is not None for v in over_seeds):
        return over_seeds
    return [v for v in mine if v.scope == "run"] or over_seeds


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
    start = f"With seed {seed_of(results, verdicts[0])}, " if one_of_several else ""
    return f"{start}{arm_name(method)} {joint.join(clauses)}."


def summary(results: Results) -> str:
    """One sentence about several methods: how many beat the base, and how many of these all of their controls too.

    >>> summary(results)
    'Of 10 methods, 7 beat the base, and of these 2 each of their controls as well.'
    """
    found = [decisive(results, method) for method in methods(results)]
    over_base = [v for v in found if any(results.arm(x.control).kind == "base" and x.verdict == "better" for x in v)]
    over_all = [v for v in over_base if len(v) > 1 and all(x.verdict == "better" for x in v)]
    of_run = any(v and v[0].scope == "run" for v in found) and len(results.seeds) > 1
    start = "With the first seed alone, of" if of_run else "Of"
    if not over_base:
        return f"{start} {len(found)} methods, none measurably beats the base."
    if len(over_all) == len(found):
        return f"{start} {len(found)} methods, all beat the base and each of their controls."
    beats = f"{len(over_base)} {'beats' if len(over_base) == 1 else 'beat'} the base"
    if not over_all:
        return f"{start} {len(found)} methods, {beats}, but none beats each of its controls as well."
    return f"{start} {len(found)} methods, {beats}, and of these {len(over_all)} each of their controls as well."


def failed(results: Results) -> list[str]:
    """One line for each arm and reason for which seeds of it did not come to their end."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for failure in results.failures:
        seeds.setdefault((failure.arm, failure.reason), []).append(failure.seed)
    return [
        f"{arm}, {'seed' if len(of_arm) == 1 else 'seeds'} {', '.join(map(str, sorted(of_arm)))}: {reason}"
        for (arm, reason), of_arm in seeds.items()
    ]


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
        (arm_name(method), verdict.verdict, [_of_run(results, verdict), *_mean_over_seeds(results, verdict)])
        for method in methods(results)
        for verdict in decisive(results, method)
        if verdict.control == arm.name
    ]


def methods(results: Results) -> list[Arm]:
    """The arms that are methods."""
    return [arm for arm in results.arms if arm.kind == "method"]


def _clause(results: Results, verdict: Verdict) -> str:
    control = _control(results, verdict)
    if verdict.verdict == "better":
        return f"beats {control} by {points(verdict.difference)} ({_p(verdict)})"
    if verdict.verdict == "worse":
        return f"loses to {control} by {points(verdict.difference)} ({_p(verdict)})"
    if verdict.verdict == "too few seeds":
        return f"cannot be told from {control} with so few seeds ({_numbers(verdict)})"
    return f"does not measurably differ from {control} ({_numbers(verdict)})"


def _numbers(verdict: Verdict) -> str:
    return f"{points(verdict.difference, sign=True)}, {_p(verdict)}"


def _of_run(results: Results, verdict: Verdict) -> str:
    """The numbers, with the seed where they speak for one of several alone."""
    alone = verdict.scope == "run" and len(results.seeds) > 1
    return f"seed {seed_of(results, verdict)}: {_numbers(verdict)}" if alone else _numbers(verdict)


def _mean_over_seeds(results: Results, verdict: Verdict) -> Iterator[str]:
    """The mean difference over the seeds, where the verdict itself is about the first of several."""
    for other in results.verdicts:
        same = (other.method, other.control, other.metric) == (verdict.method, verdict.control, verdict.metric)
        if same and verdict.scope == "run" and other.scope == "method" and len(results.seeds) > 1:
            yield f"{other.n_seeds or len(results.seeds)} seeds: {points(other.difference, sign=True)}"


def _control(results: Results, verdict: Verdict) -> str:
    return _arm(results, verdict.control)


def _arm(results: Results, name: str) -> str:
    return arm_name(results.arm(name))


def _p(verdict: Verdict) -> str:
    return "p not known" if verdict.p is None else p_value(verdict.p)
