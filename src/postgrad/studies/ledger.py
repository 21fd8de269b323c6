"""The replication ledger: published figures beside ours, as one page made from the raw results of runs.

>>> python -m postgrad.studies.ledger docs/ledger/gradnet.yaml --runs runs/ledger

The YAML file names the claims, their published figures and their runs. With `--runs` the raw results of finished runs
are copied beside it first; without, the page is made again from those that lie there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from postgrad.files import write_atomic
from postgrad.reports.schema import Arm, Results, Verdict, read_results
from postgrad.studies.run import write_arrays
from postgrad.validation import read_yaml, validated

KEPT = ("results.json", "environment.json", "metrics.csv", "events.jsonl")
PATHS = ("data_dir", "weights", "out")
"""Settings that hold paths of one machine; they are left out of the copy of config.yaml."""


class Row(BaseModel):
    """One claim: what was published, and the run that tests it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    run: str
    command: str
    published_base: float | None = None
    published: float | None = None
    remark: str = ""


class Page(BaseModel):
    """One page of the ledger."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    source: str
    introduction: str
    method: str
    rows: tuple[Row, ...]
    findings: str = ""


def keep_raw(run: Path, raw: Path) -> None:
    """Copy what a figure rests on: results, settings without paths, curves, events, and every arm's predictions."""
    raw.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run / name, raw / name)
    settings = {key: value for key, value in read_yaml(run / "config.yaml").items() if key not in PATHS}
    write_atomic(raw / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    predicted: dict[str, Any] = {}
    records = []
    for file in sorted(run.rglob("arm.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        records.append(record)
        with np.load(file.parent / "test_predictions.npz") as arrays:
            predicted[f"{record['name']}-seed{record['seed']}"] = arrays["probabilities"].argmax(1).astype(np.uint8)
            predicted["labels"] = arrays["labels"].astype(np.uint8)
    write_atomic(raw / "arms.json", json.dumps(records, indent=1))
    write_arrays(raw / "predicted.npz", **predicted)


def render_page(page: Page, raw: Path) -> str:
    """The page as Markdown; a row whose run is not there says so."""
    found = {row.run: raw / row.run for row in page.rows if (raw / row.run / "results.json").exists()}
    parts = [f"# {page.title}", f"Source: {page.source}", page.introduction.strip(), "## Published and ours"]
    parts.append(_overview(page, {run: read_results(path / "results.json") for run, path in found.items()}))
    if page.findings:
        parts += ["## What this says", page.findings.strip()]
    parts += [_section(page, row, found[row.run]) for row in page.rows if row.run in found]
    return "\n\n".join(parts) + "\n"


def _overview(page: Page, results: dict[str, Results]) -> str:
    heads = ["claim", "published", "gain", "our base", "ours", "gain", "best control", "seeds", "verdict"]
    rows = []
    for row in page.rows:
        published = f"{row.published_base:g} → {row.published:g}" if row.published and row.published_base else "–"
        gain = _relative(row.published_base, row.published)
        if row.run not in results:
            rows.append([row.claim, published, gain, "not run", "", "", "", "", ""])
            continue
        found = results[row.run]
        base, ours = found.arm("base"), found.arm(page.method)
        control = max((arm for arm in found.arms if arm.kind == "control"), key=_accuracy)
        rows.append(
            [
                row.claim,
                published,
                gain,
                _figure(base),
                _figure(ours),
                _relative(_accuracy(base), _accuracy(ours)),
                f"{control.name} {_figure(control)}",
                str(len(found.seeds)),
                _summary(found, page.method),
            ]
        )
    return _table(heads, rows)


def _section(page: Page, row: Row, raw: Path) -> str:
    results = read_results(raw / "results.json")
    heads = [
        "arm",
        "accuracy",
        "95 % interval",
        "NLL",
        "ECE",
        "own CPU s",
        "total CPU s",
        "parameters",
        "ms/image",
        "how",
    ]
    rows = [
        [
            arm.name,
            _figure(arm),
            _interval(arm),
            f"{arm.metrics['nll'].mean:.4f}",
            f"{arm.metrics['ece'].mean:.4f}",
            f"{arm.cost.train_cpu_seconds or 0:.0f}",
            f"{arm.cost.total_cpu_seconds or 0:.0f}",
            f"{arm.cost.parameters or 0:,}",
            f"{arm.cost.inference_ms_per_image or 0:.2f}",
            arm.description or "",
        ]
        for arm in results.arms
    ]
    verdicts = [_line(verdict) for verdict in results.verdicts if verdict.p is not None]
    warnings = [f"- Warning: {text}" for text in results.warnings]
    parts = [f"## {row.claim}", f"`{row.command}`", row.remark.strip(), _table(heads, rows), "\n".join(verdicts)]
    parts += ["\n".join(warnings), f"Raw results: [raw/{row.run}](raw/{row.run}); {_surroundings(raw)}."]
    return "\n\n".join(part for part in parts if part)


def _surroundings(raw: Path) -> str:
    surroundings = json.loads((raw / "environment.json").read_text(encoding="utf-8"))
    versions = surroundings["versions"]
    return f"{surroundings['processor']}, {surroundings['threads']} thread(s), torch {versions['torch']}"


def _summary(results: Results, method: str) -> str:
    """Against how many controls the method did better, worse or neither, and what that may be called."""
    entries = [v for v in results.verdicts if v.method == method and v.control != "base" and v.metric == "accuracy"]
    scope = "method" if any(v.scope == "method" and v.p is not None for v in entries) else "run"
    words = [v.verdict for v in entries if v.scope == scope]
    counts = ", ".join(f"{word} {words.count(word)}" for word in ("better", "no difference", "worse") if word in words)
    return f"against the controls: {counts}{'' if scope == 'method' else ' (preliminary)'}"


def _line(verdict: Verdict) -> str:
    interval = f" [{100 * verdict.ci95[0]:+.2f}, {100 * verdict.ci95[1]:+.2f}]" if verdict.ci95 else ""
    scope = "" if verdict.scope == "method" else ", first seed alone"
    return (
        f"- {verdict.method} against {verdict.control}: **{verdict.verdict}**, {100 * verdict.difference:+.2f} points"
        f"{interval}, p = {verdict.p:.2g} ({verdict.test}{scope})"
    )


def _accuracy(arm: Arm) -> float:
    return arm.metrics["accuracy"].mean


def _figure(arm: Arm) -> str:
    return f"{_accuracy(arm):.4f}"


def _interval(arm: Arm) -> str:
    metric = arm.metrics["accuracy"]
    return f"{metric.ci95[0]:.4f} to {metric.ci95[1]:.4f} over {metric.ci_over}" if metric.ci95 else "–"


def _relative(before: float | None, after: float | None) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before and after else "–"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make one page of the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="the YAML file with claims and published figures")
    parser.add_argument("--runs", type=Path, help="copy raw results from the runs in this folder first")
    options = parser.parse_args(arguments)
    page = validated(Page, read_yaml(options.page), source=str(options.page))
    raw = options.page.parent / "raw"
    for row in page.rows:
        if options.runs is not None and (options.runs / row.run / "results.json").exists():
            keep_raw(options.runs / row.run, raw / row.run)
    write_atomic(options.page.with_suffix(".md"), render_page(page, raw))


if __name__ == "__main__":
    main()
