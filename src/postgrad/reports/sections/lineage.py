"""Lineage: the tree of a mutation search, its accuracy over time, what each mutation did, and every network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import postgrad.reports.words as words
from postgrad.reports import lineage_drawing as drawing
from postgrad.reports.charts import as_percent
from postgrad.reports.rundir import Run
from postgrad.reports.schema import LineageNode


def lineage(run: Run) -> dict[str, Any] | None:
    """What the section shows; None for a run that is no search."""
    nodes = run.results.lineage
    if not nodes:
        return None
    ends = drawing.bounds(nodes)
    return {
        "summary": _summary(nodes),
        "tree": drawing.tree(nodes),
        "left_out": len(nodes) - len(drawing.drawn(nodes)),
        "levels": _levels(ends),
        "progress": drawing.progress(nodes),
        "mutations": _mutations(nodes),
        "rows": _rows(nodes),
    }


def _summary(nodes: Sequence[LineageNode]) -> str:
    refused = sum(sum(node.refused.values()) for node in nodes)
    said = f"{words.plural(len(nodes) - 1, 'network')} grown from the base and trained"
    said += f", {words.plural(refused, 'mutation')} refused before any training." if refused else "."
    path = drawing.winning(nodes)
    if not path:
        return said
    base, winner = path[0], path[-1]
    if winner is base:
        return f"{said} None is better than the base on the validation images."
    return (
        f"{said} The winner is of generation {len(path) - 1}: {words.percent(winner.accuracy)} of the validation images"
        f" and {words.count(winner.parameters)} parameters, where the base has {words.percent(base.accuracy)} and "
        f"{words.count(base.parameters)}."
    )


def _levels(ends: Sequence[float]) -> list[tuple[int, str]]:
    """Each colour and what it stands for, the palest first; none where all networks are alike."""
    if not ends:
        return []
    lowest = (0, f"below {as_percent(ends[0])}")
    return [lowest, *((drawing.level(end, ends), f"from {as_percent(end)}") for end in ends)]


def _mutations(nodes: Sequence[LineageNode]) -> list[dict[str, Any]]:
    """For each mutation how often it was tried, refused, and better than the parent, and its best gain."""
    of_name = {node.name: node for node in nodes}
    gains: dict[str, list[float]] = {}
    refused: Counter[str] = Counter()
    for node in nodes:
        refused.update(node.refused)
        if node.parent is not None:
            gains.setdefault(node.mutation, []).append(node.accuracy - of_name[node.parent].accuracy)
    return [
        {
            "name": name,
            "trained": len(of_it := gains.get(name, [])),
            "refused": refused[name],
            "better": sum(gain > 0 for gain in of_it),
            "mean": _points(sum(of_it) / len(of_it)) if of_it else words.MISSING,
            "best": _points(max(of_it)) if of_it else words.MISSING,
        }
        for name in sorted({*gains, *refused})
    ]


def _points(gain: float) -> str:
    """Under a heading that says what it is."""
    return words.points(gain, sign=True).split()[0]


def _rows(nodes: Sequence[LineageNode]) -> list[dict[str, Any]]:
    numbers = {node.name: node.number for node in nodes}
    path = {node.name for node in drawing.winning(nodes)}
    return [
        {
            "node": node,
            "anchor": words.anchor("network", node.name),
            "parent": words.MISSING if node.parent is None else str(numbers[node.parent]),
            "on_path": node.name in path,
            "accuracy": words.percent(node.accuracy),
            "parameters": words.count(node.parameters),
            "multiply_adds": words.large(node.multiply_adds),
            "training": words.large(node.lineage_multiply_adds),
            "latency": words.milliseconds(node.latency_ms),
            "certificate": drawing.certificate(node) or words.MISSING,
            "refused": sum(node.refused.values()),
        }
        for node in nodes
    ]
