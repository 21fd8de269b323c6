"""The replication ledger: published figures beside ours, as one page made from the raw results of runs.

>>> python -m postgrad.studies.ledger docs/ledger/gradnet.yaml --runs runs/ledger --run

The YAML file names the claims, their published figures and their runs. `--run` makes the runs, in the order that the
file gives or for the rows named, each from `recipes/ledger/ROW.yaml`, goes on with those that were interrupted, and
refreshes the page after each; `--only-missing` passes over those whose raw results lie beside the page. With `--runs`
alone the raw results of finished runs are copied there; without, the page is made again from those that lie there.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from postgrad.errors import UserError, unknown_name
from postgrad.files import write_atomic
from postgrad.reports.schema import Arm, Results, Verdict, read_results
from postgrad.studies.claims import LedgerRow, judge, write_rows
from postgrad.studies.ledger_runs import is_finished, run_rows
from postgrad.studies.raw import keep_raw
from postgrad.studies.study_config import Claim
from postgrad.validation import read_yaml, validated

VERDICTS = {"better": "better than", "no difference": "no different from", "worse": "worse than"}

HEADS = (
    "row",
    "published base",
    "published GradNet",
    "published gain",
    "our base, augmented",
    "our base",
    "ours",
    "gain over the augmented base",
    "gain",
    "control-finetune",
    "best control",
    "seeds",
    "passes",
    "verdict",
)


class Row(BaseModel):
    """One claim: what was published, and the run that tests it; `command` where it is not that of every row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    run: str
    command: str | None = None
    published_base: float | None = None
    published: float | None = None
    remark: str = ""

    def command_line(self) -> str:
        """The words that make the run."""
        recipe, out = f"recipes/ledger/{self.run}.yaml", f"runs/ledger/{self.run}"
        return self.command or f"postgrad improve --recipe {recipe} --data-dir DIR --out {out}"


class Page(BaseModel):
    """One page of the ledger: the published table's rows, and other runs; `order` is that in which they are run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    source: str
    introduction: str
    method: str
    rows: tuple[Row, ...]
    others: tuple[Row, ...] = ()
    order: tuple[str, ...] = ()
    findings: str = ""

    @model_validator(mode="after")
    def _order_of_rows(self) -> Self:
        for name in self.order:
            self.check_run(name)
        return self

    def every_row(self) -> tuple[Row, ...]:
        return (*self.rows, *self.others)

    def check_run(self, name: str) -> None:
        """Raise `UserError` where no row has a run of that name."""
        runs = [row.run for row in self.every_row()]
        if name not in runs:
            raise unknown_name("row", name, runs)


def render_page(page: Page, raw: Path) -> str:
    """The page as Markdown; a row whose run is not there says so."""
    found = {row.run: raw / row.run for row in page.every_row() if (raw / row.run / "results.json").exists()}
    parts = [f"# {page.title}", f"Source: {page.source}", page.introduction.strip()]
    parts += ["## Published and ours", _overview(page.rows, page.method, found)]
    if page.others:
        parts += ["## Other runs", _overview(page.others, page.method, found)]
    if page.findings:
        parts += ["## What this says", page.findings.strip()]
    parts += [_section(row, found[row.run]) for row in page.every_row() if row.run in found]
    return "\n\n".join(parts) + "\n"


def _overview(rows: Sequence[Row], method: str, found: dict[str, Path]) -> str:
    lines = []
    for row in rows:
        published = [f"{value:g}" if value else "–" for value in (row.published_base, row.published)]
        first = [row.claim, *published, _relative(row.published_base, row.published)]
        ours = _ours(found[row.run], method) if row.run in found else ["not run"]
        lines.append([*first, *ours, *[""] * (len(HEADS) - len(first) - len(ours))])
    return _table(HEADS, lines)


def _ours(raw: Path, method: str) -> list[str]:
    """The cells of a row that has run, from the fifth on."""
    results = read_results(raw / "results.json")
    base, ours, augmented = results.arm("base"), results.arm(method), _augmented(raw)
    controls = [arm for arm in results.arms if arm.kind == "control"]
    best = max(controls, key=_accuracy)
    finetuned = [_figure(arm) for arm in controls if arm.name == "control-finetune"]
    return [
        f"{augmented:.4f}" if augmented else "–",
        _figure(base),
        _figure(ours),
        _relative(augmented, _accuracy(ours)),
        _relative(_accuracy(base), _accuracy(ours)),
        finetuned[0] if finetuned else "–",
        f"{best.name} {_figure(best)}",
        str(len(results.seeds)),
        _passes(raw, method),
        _summary(results, method),
    ]


def _augmented(raw: Path) -> float | None:
    """The mean accuracy of the bases on augmented test images, None where a run did not take it."""
    records = json.loads((raw / "arms.json").read_text(encoding="utf-8"))
    values = [record.get("augmented_accuracy") for record in records if record["kind"] == "base"]
    return None if None in values else statistics.fmean(values)


def _passes(raw: Path, method: str) -> str:
    """How often the method saw each image that it was fitted on, by the end of its learning curve."""
    with open(raw / "metrics.csv", newline="", encoding="utf-8") as lines:
        epochs = [row["epoch"] for row in csv.DictReader(lines) if row["arm"] == method]
    return f"{float(epochs[-1]):.0f}"


def _section(row: Row, raw: Path) -> str:
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
    parts = [f"## {row.claim}", f"`{row.command_line()}`", row.remark.strip(), _table(heads, rows), "\n".join(verdicts)]
    parts += ["\n".join(warnings), f"Raw results: [raw/{row.run}](raw/{row.run}); {_surroundings(raw)}."]
    return "\n\n".join(part for part in parts if part)


def _surroundings(raw: Path) -> str:
    surroundings = json.loads((raw / "environment.json").read_text(encoding="utf-8"))
    versions = surroundings["versions"]
    return f"{surroundings['processor']}, {surroundings['threads']} thread(s), torch {versions['torch']}"


def _summary(results: Results, method: str) -> str:
    """Which controls the method did better or worse than, and what that may be called."""
    entries = [v for v in results.verdicts if v.method == method and v.control != "base" and v.metric == "accuracy"]
    spoken = [v for v in entries if v.scope == "method" and v.p is not None]
    preliminary = "" if spoken else " (preliminary)"
    spoken = spoken or [v for v in entries if v.scope == "run"]
    parts = []
    for verdict, words in VERDICTS.items():
        controls = [v.control for v in spoken if v.verdict == verdict]
        if controls:
            parts.append(f"{words} {_counted(controls, of=len(spoken))}")
    return "; ".join(parts) + preliminary


def _counted(controls: Sequence[str], *, of: int) -> str:
    if len(controls) == 1:
        return controls[0]
    return f"{'all ' if len(controls) == of else ''}{len(controls)} controls"


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


def write_page(page: Page, file: Path) -> None:
    """Write the page and its rows beside its YAML file, from the raw results that lie there, and the ledger's index."""
    raw = file.parent / "raw"
    write_atomic(file.with_suffix(".md"), render_page(page, raw))
    run = [row for row in page.every_row() if (raw / row.run / "results.json").exists()]
    write_rows(file.with_suffix(""), page.title, [_judged(page, row, raw) for row in run])


def _judged(page: Page, row: Row, raw: Path) -> LedgerRow:
    claim = Claim(
        claim=row.claim,
        source=page.source,
        arm=page.method,
        published_base=row.published_base,
        published=row.published,
    )
    results = read_results(raw / row.run / "results.json")
    return judge(claim, results, raw=f"raw/{row.run}", command=row.command_line())


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one page of the ledger, and its runs if asked; 1 where some row is not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="the YAML file with claims and published figures")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="the folder of runs")
    parser.add_argument("--run", nargs="*", metavar="ROW", help="make these runs first; without a name all, in order")
    parser.add_argument("--only-missing", action="store_true", help="pass over rows whose raw results are kept")
    parser.add_argument(
        "--recipes", type=Path, metavar="DIR", default=Path("recipes/ledger"), help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of runs that begin; default: the recipe's")
    options = parser.parse_args(arguments)
    try:
        return _make(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


def _make(options: argparse.Namespace) -> int:
    page, raw = validated(Page, read_yaml(options.page), source=str(options.page)), options.page.parent / "raw"
    if options.run is not None:
        return _run(page, raw, options)
    for row in page.every_row():
        if options.runs is not None and is_finished(options.runs / row.run):
            keep_raw(options.runs / row.run, raw / row.run)
    write_page(page, options.page)
    return 0


def _run(page: Page, raw: Path, options: argparse.Namespace) -> int:
    if options.runs is None:
        raise UserError("--run makes runs and needs a folder for them; give --runs DIR")
    for name in options.run:
        page.check_run(name)

    def keep(name: str) -> None:
        keep_raw(options.runs / name, raw / name)
        write_page(page, options.page)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the run in progress ends with this process
    unfinished = run_rows(
        options.run or page.order,
        recipes=options.recipes,
        runs=options.runs,
        after_row=keep,
        kept=raw if options.only_missing else None,
        threads=options.threads,
    )
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}; the same command tries again", file=sys.stderr)
    return 1 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
