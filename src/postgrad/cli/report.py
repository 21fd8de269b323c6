"""`postgrad report`: make the report.html of a run again, or compare two runs on one page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from postgrad.cli.console import prepared, print_json, say
from postgrad.cli.options import MachineOptions
from postgrad.errors import UserError

COMPARISON = Path("comparison.html")


@dataclass(frozen=True)
class Options:
    """Make the report.html of a run again from what lies in its directory; of two runs, a page that compares them."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = ()
    """One run directory, such as runs/demo, or two to compare."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: comparison.html)")] = None
    """Where the comparison of two runs goes; a file of that name is left alone, and comparison-2.html made."""
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Render the page and print where it lies."""
    runs = [path.expanduser() for path in options.runs]
    _check(runs, options.out)
    with prepared(options.machine):
        from postgrad.reports.comparison import compare
        from postgrad.reports.html import render

        page = render(runs[0]) if len(runs) == 1 else compare(runs[0], runs[1], options.out or COMPARISON)
    if len(runs) == 2 and page.name != (options.out or COMPARISON).name:
        say(f"{options.out or COMPARISON} is there already; the comparison is in {page}")
    if options.machine.json:
        print_json({"reports": [page]})
    else:
        print(page)
    return 0


def _check(runs: list[Path], out: Path | None) -> None:
    if not runs:
        raise UserError("postgrad report: name at least one run directory, such as runs/demo")
    if len(runs) > 2:
        raise UserError(f"postgrad report: one run, or two to compare; got {len(runs)}")
    if len(runs) == 1 and out is not None:
        raise UserError("--out is for the comparison of two runs; the report of one is written into its directory")
    for path in runs:
        if not (path / "results.json").is_file():
            raise UserError(f"{path} holds no results.json; give a run that `postgrad improve` or `study` finished")
