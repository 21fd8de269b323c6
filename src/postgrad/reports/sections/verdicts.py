"""The verdicts: every comparison of a method with another arm, with all that was tested."""

from __future__ import annotations

from typing import Any

import postgrad.reports.words as words
from postgrad.evaluation.statistics import SIGNIFICANCE
from postgrad.reports.paired import seed_of
from postgrad.reports.rundir import Run
from postgrad.reports.schema import Results, Verdict
from postgrad.reports.sections.leaderboard import WORDS

_LISTED = 5
"""Of more seeds than these, the p values of single seeds are counted."""


_FIELDS = {
    "wilcoxon": "wilcoxon_p",
    "mcnemar": "mcnemar_p",
    "bootstrap": "bootstrap_ci95",
    "seeds": "n_seeds",
    "detectable": "detectable",
}
"""Columns that only runs with these fields have."""


def verdict_table(run: Run) -> dict[str, Any]:
    """Rows on accuracy and on the other metrics, which columns they fill, and their notes, each said once."""
    results = run.results
    rows = [_row(results, verdict) for verdict in results.verdicts]
    notes: dict[str, list[str]] = {}
    for row in rows:
        for note in row["verdict"].notes:
            notes.setdefault(note, []).append(f"{row['method']} against {row['control']}")
    accuracy = [row for row in rows if row["verdict"].metric == "accuracy"]
    others = [row for row in rows if row["verdict"].metric != "accuracy"]
    return {
        "accuracy": accuracy,
        "others": others,
        "has": _columns(accuracy),
        "others_have": _columns(others),
        "notes": {note: list(dict.fromkeys(pairs)) for note, pairs in notes.items()},
    }


def _columns(rows: list[dict[str, Any]]) -> set[str]:
    """The columns that any of these rows fills."""
    return {name for name, field in _FIELDS.items() if any(getattr(row["verdict"], field) is not None for row in rows)}


def _row(results: Results, verdict: Verdict) -> dict[str, Any]:
    metric = verdict.metric
    about = "the method" if verdict.scope == "method" else f"seed {seed_of(results, verdict)} alone"
    return {
        "verdict": verdict,
        "method": words.arm_label(results.arm(verdict.method)),
        "control": words.arm_label(results.arm(verdict.control)),
        "metric": words.metric_name(metric),
        "difference": words.difference(metric, verdict.difference),
        "interval": _ends(metric, verdict.ci95),
        "p": _p(verdict.p),
        "test": _test(results, verdict),
        "wilcoxon": _p(verdict.wilcoxon_p),
        "mcnemar": _mcnemar(verdict.mcnemar_p),
        "bootstrap": _ends(metric, verdict.bootstrap_ci95),
        "seeds": None if verdict.n_seeds is None else words.plural(verdict.n_seeds, "seed"),
        "detectable": _detectable(metric, verdict.detectable),
        "word": WORDS[verdict.verdict],
        "class": verdict.verdict.split()[0],
        "about": about,
    }


def _test(results: Results, verdict: Verdict) -> str:
    if verdict.test == "mcnemar":
        return "McNemar"
    adjusted = results.arm(verdict.control).kind != "base" and verdict.p is not None
    return "paired t, Holm" if adjusted else "paired t"


def _ends(metric: str, ends: tuple[float, float] | None) -> str:
    if ends is None:
        return words.MISSING
    if not words.is_share(metric):
        return words.interval(ends, decimals=4)
    return " to ".join(words.points(end, sign=True).split()[0] for end in ends)


def _detectable(metric: str, value: float | None) -> str:
    if value is None:
        return words.MISSING
    return words.points(value) if words.is_share(metric) else words.decimal(value, 4)


def _p(value: float | None) -> str:
    """A p value under a heading that says what it is: 0.003, < 0.001, which no line break divides."""
    if value is None:
        return words.MISSING
    return words.p_value(value).removeprefix("p ").removeprefix("= ").replace(" ", "\u00a0")


def _mcnemar(p_values: list[float] | None) -> str:
    """The p of each seed, or a count of the small ones where there are many."""
    if not p_values:
        return words.MISSING
    if len(p_values) <= _LISTED:
        return ", ".join(map(_p, p_values))
    small = sum(p < SIGNIFICANCE for p in p_values)
    return f"below {SIGNIFICANCE} in {small} of {len(p_values)}"
