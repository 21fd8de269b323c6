"""Learning curves of trainings that went on from one another, as one."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

ADDED_UP = ("step", "epoch", "seconds")


def joined(curves: Sequence[Path], parameters: Sequence[int]) -> str | None:
    """One metrics.csv of several, oldest first: steps, epochs and seconds add up; None where none of them is there.

    >>> joined([base / "metrics.csv", child / "metrics.csv"], [1200, 1800])
    'step,epoch,loss,…,parameters,growths'

    `parameters` is how many the network of each had; another number than before counts as growth.
    """
    rows: list[dict[str, float | str]] = []
    offsets = dict.fromkeys(ADDED_UP, 0.0)
    changes = [before != after for before, after in itertools.pairwise(parameters)]
    growths_of = itertools.accumulate(changes, initial=0)
    for growths, curve, size in zip(growths_of, curves, parameters, strict=True):
        if not curve.exists():
            continue
        with open(curve, newline="", encoding="utf-8") as lines:
            of_curve = list(csv.DictReader(lines))
        for row in of_curve:
            added = {name: offsets[name] + float(row[name]) for name in ADDED_UP if row.get(name)}
            rows.append({**row, **added, "parameters": size, "growths": growths})
        if of_curve:
            offsets = {name: float(rows[-1].get(name) or 0) for name in ADDED_UP}
    if not rows:
        return None
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
