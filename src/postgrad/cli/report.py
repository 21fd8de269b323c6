"""`postgrad report`: make the report.html of a run again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from postgrad.cli.console import prepared, print_json
from postgrad.cli.options import MachineOptions
from postgrad.errors import UserError


@dataclass(frozen=True)
class Options:
    """Make the report.html of runs again from their results.json."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = ()
    """Run directories, such as runs/demo."""
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Render each run and print where its report lies."""
    if not options.runs:
        raise UserError("postgrad report: name at least one run directory, such as runs/demo")
    runs = [path.expanduser() for path in options.runs]
    for path in runs:
        if not (path / "results.json").is_file():
            raise UserError(f"{path} holds no results.json; give a run that `postgrad improve` finished")
    with prepared(options.machine):
        from postgrad.reports.html import render

        reports = [render(path) for path in runs]
    if options.machine.json:
        print_json({"reports": reports})
    else:
        print(*reports, sep="\n")
    return 0
