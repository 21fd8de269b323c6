"""Seed by seed: the accuracies of every arm, and each method beside its controls with a line for each seed."""

from __future__ import annotations

from typing import Any

import postgrad.reports.words as words
from postgrad.reports.diagrams import Pairs, paired_seeds
from postgrad.reports.paired import accuracy_by_seed
from postgrad.reports.rundir import Run
from postgrad.reports.schema import Arm, Results
from postgrad.reports.sentences import methods

_COLUMNS = 6


def seed_by_seed(run: Run) -> dict[str, Any]:
    """The table's rows, one diagram for each method, and the arms whose values cannot be told apart by seed."""
    results = run.results
    found = {arm.name: accuracy_by_seed(results, arm) for arm in results.arms}
    rows = [
        (words.arm_label(arm), [words.percent(of[s]) if s in of else words.MISSING for s in results.seeds])
        for arm in results.arms
        if (of := found[arm.name])
    ]
    diagrams = [chart for method in methods(results) for chart in _diagrams(results, method, found)]
    unknown = [words.arm_label(results.arm(name)) for name, by_seed in found.items() if not by_seed]
    return {"rows": rows, "diagrams": diagrams, "unknown": unknown}


def _diagrams(results: Results, method: Arm, found: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    own = found[method.name]
    compared = list(dict.fromkeys(v.control for v in results.verdicts if v.method == method.name))
    columns = []
    for name in compared:
        common = tuple(seed for seed in own if seed in found[name])
        if len(common) > 1:
            other, mine = (tuple(of[seed] for seed in common) for of in (found[name], own))
            columns.append(Pairs(words.arm_label(results.arm(name)), common, other, mine))
    label = words.arm_label(method)
    parts = [columns[i : i + _COLUMNS] for i in range(0, len(columns), _COLUMNS)]
    return [
        {
            "anchor": words.anchor("seeds", method.name) + (f"-{i}" if i else ""),
            "label": label,
            "chart": paired_seeds(part, method=label),
        }
        for i, part in enumerate(parts)
    ]
