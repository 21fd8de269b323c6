"""Two runs on one page: which settings differ, and what became of each arm that both have.

>>> compare("runs/a", "runs/b", "comparison.html")
PosixPath('comparison.html')

Accuracies are subtracted only where both runs were tested on the same images, which their fingerprints say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import postgrad.reports.words as words
from postgrad.errors import UserError
from postgrad.evaluation.statistics import MIN_SEEDS, SIGNIFICANCE, mcnemar, paired_interval, paired_t, t_interval
from postgrad.files import write_atomic
from postgrad.reports.diagrams import Pairs, paired_seeds
from postgrad.reports.html import environment
from postgrad.reports.paired import accuracy_by_seed
from postgrad.reports.rundir import Run, read_run
from postgrad.reports.schema import Arm
from postgrad.reports.sections.leaderboard import written

_ABSENT = "not set"


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write a page that holds two run directories side by side, and return where it lies.

    What lies at `path` already is left alone: the page then becomes `comparison-2.html`, and so on. Raises `UserError`
    when one of the two is no run, or when they are the same one.
    """
    folders = [Path(run).expanduser() for run in (a, b)]
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(f"{a} and {b} are the same run; name two to compare them")
    runs = [read_run(folder) for folder in folders]
    page = environment().get_template("comparison.html.j2").render(_context(runs[0], runs[1], _names(folders)))
    target = _free(Path(path).expanduser())
    write_atomic(target, page)
    return target


def _free(wanted: Path) -> Path:
    """A path where nothing lies: `wanted`, or `-2`, `-3`, … behind its name."""
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_stem(f"{wanted.stem}-{number}")
    return path


def _names(folders: list[Path]) -> tuple[str, str]:
    """The last parts of both paths, as many as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        first, second = ("/".join(of[-count:]) for of in parts)
        if first != second:
            break
    return first, second


def _context(a: Run, b: Run, names: tuple[str, str]) -> dict[str, Any]:
    same_data = a.results.data.fingerprint == b.results.data.fingerprint
    both = [arm.name for arm in a.results.arms if any(arm.name == other.name for other in b.results.arms)]
    rows = [_row(a, b, name, same_data) for name in both]
    return {
        "names": names,
        "runs": (a.results, b.results),
        "same_data": same_data,
        "rows": rows,
        "only": [_only(run, both) for run in (a, b)],
        "settings": list(_differences(_settings(a), _settings(b))),
        "configured": a.config is not None and b.config is not None,
        "environments": list(_differences(_flat(a.environment or {}), _flat(b.environment or {}))),
        "measured": a.environment is not None and b.environment is not None,
        "chart": _chart(a, b, rows, names) if same_data else None,
        "summary": _summary(rows, names) if same_data else None,
    }


def _row(a: Run, b: Run, name: str, same_data: bool) -> dict[str, Any]:
    """One arm of both runs: its metrics and costs, and where the data are the same the difference in accuracy."""
    arms = (a.results.arm(name), b.results.arm(name))
    metrics = [key for key in arms[0].metrics if key in arms[1].metrics]
    row = {
        "name": name,
        "anchor": words.anchor("arm", name),
        "label": words.arm_label(arms[1]),
        "kind": arms[1].kind,
        "accuracy": [written(arm.metrics["accuracy"], "accuracy") for arm in arms],
        "metrics": {words.metric_name(k): [written(arm.metrics[k], k)[0] for arm in arms] for k in metrics},
        "fitting": [words.seconds(arm.cost.train_cpu_seconds) for arm in arms],
        "price": [words.milliseconds(arm.cost.inference_ms_per_image) for arm in arms],
        "seeds": None,
    }
    return row | (_difference(a, b, arms) if same_data else {"value": None})


def _difference(a: Run, b: Run, arms: tuple[Arm, Arm]) -> dict[str, Any]:
    """B minus A over the seeds that both have, with an interval and p values as far as they can be had.

    Over two seeds or more the interval is Student's over the paired differences, and from five on their t test gives a
    p; of a single seed the interval is that of the difference on the same images, where both keep their predictions.
    """
    by_seed = [accuracy_by_seed(run.results, arm) for run, arm in zip((a, b), arms, strict=True)]
    seeds = [seed for seed in by_seed[0] if seed in by_seed[1]]
    images = {seed: pair for seed in seeds if (pair := _correct(a, b, arms[0].name, seed)) is not None}
    values = np.array([[of[seed] for seed in seeds] for of in by_seed])
    change = float(np.mean(values[1] - values[0])) if seeds else None
    interval = t_interval(values[1] - values[0]) if len(seeds) > 1 else None
    if len(seeds) == 1 and images:
        interval = paired_interval(images[seeds[0]][1], images[seeds[0]][0])
    p = paired_t(values[1], values[0]) if len(seeds) >= MIN_SEEDS else None
    return {
        "value": change,
        "difference": words.MISSING if change is None else words.difference("accuracy", change),
        "interval": None if interval is None else " to ".join(words.points(v, sign=True).split()[0] for v in interval),
        "p_value": p,
        "p": None if p is None else words.p_value(p),
        "mcnemar": [_mcnemar(seed, *pair) for seed, pair in images.items()],
        "seeds": seeds,
        "pairs": Pairs(words.arm_label(arms[1]), tuple(seeds), tuple(values[0]), tuple(values[1])) if seeds else None,
    }


def _mcnemar(seed: int, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[int, str, bool]:
    """The seed, its p in words, and whether that is small."""
    p = mcnemar(after, before)
    return seed, words.p_value(p), p < SIGNIFICANCE


def _correct(a: Run, b: Run, arm: str, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which test images both runs' arm of a seed got right; None without both predictions of the same labels."""
    before, after = (run.predictions_of(arm, seed) for run in (a, b))
    if before is None or after is None or not np.array_equal(before.labels, after.labels):
        return None
    return before.predicted == before.labels, after.predicted == after.labels


def _chart(a: Run, b: Run, rows: list[dict[str, Any]], names: tuple[str, str]) -> Any:
    columns = [row["pairs"] for row in rows if row["pairs"]]
    return [paired_seeds(columns[i : i + 6], method=names[1]) for i in range(0, len(columns), 6)]


def _summary(rows: list[dict[str, Any]], names: tuple[str, str]) -> str | None:
    """How many arms measurably gained and lost; None where no arm has the five seeds that this needs."""
    judged = [row for row in rows if row["p_value"] is not None]
    if not judged:
        return None
    changed = [row["value"] for row in judged if row["p_value"] < SIGNIFICANCE]
    gained, lost = sum(v > 0 for v in changed), sum(v < 0 for v in changed)
    return (
        f"Of {words.plural(len(judged), 'arm')} with five seeds or more in both, {gained} measurably gained from "
        f"{names[0]} to {names[1]}, and {lost} lost."
    )


def _only(run: Run, both: list[str]) -> list[str]:
    return [words.arm_label(arm) for arm in run.results.arms if arm.name not in both]


def _settings(run: Run) -> dict[str, str]:
    """Every setting of config.yaml by its path, such as `methods.0.options.epochs`."""
    if run.config is None:
        return {}
    try:
        return _flat(yaml.safe_load(run.config))
    except yaml.YAMLError as error:
        raise UserError(
            f"{run.directory / 'config.yaml'} is damaged ({error}); delete it to compare without"
        ) from error


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        items = [(str(i), inner) for i, inner in enumerate(value)]
    else:
        return {path: ", ".join(map(str, value)) if isinstance(value, list) else str(value)}
    return {
        key: written
        for name, inner in items
        for key, written in _flat(inner, f"{path}.{name}" if path else name).items()
    }


def _differences(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Each name with both values, where these differ."""
    for name in dict.fromkeys([*a, *b]):
        first, second = (of.get(name, _ABSENT) for of in (a, b))
        if first != second:
            yield name, first, second
