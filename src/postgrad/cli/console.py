"""What verbs print: one JSON document, or tables and lines for people; and the set-up that verbs have in common."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from postgrad import progress
from postgrad.cli.options import MachineOptions


@contextlib.contextmanager
def prepared(machine: MachineOptions) -> Iterator[None]:
    """Set threads and quietness; with `--json`, what anything prints meanwhile goes to standard error."""
    progress.quiet = machine.quiet
    warnings.showwarning = _warn
    if machine.threads is not None:
        _set_threads(machine.threads)
    with contextlib.redirect_stdout(sys.stderr) if machine.json else contextlib.nullcontext():
        yield


def _warn(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning as one line, without the place in the program that a user of the command line cannot change."""
    say(f"warning: {message}")


def _set_threads(count: int) -> None:
    # Libraries that are not loaded yet read the environment; torch may be loaded already and is told as well.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(count)
    import torch

    torch.set_num_threads(count)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, allow_nan=False, default=str))


def say(message: str) -> None:
    """A line for people, on standard error, so that standard output holds results only."""
    print(message, file=sys.stderr)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under headings, in columns as wide as they need; columns that hold numbers stand to the right.

    >>> print(table(["arm", "accuracy"], [["base", "0.71"], ["gradnet", "0.74"]]))
    arm      accuracy
    base         0.71
    gradnet      0.74
    """
    cells = [list(headings), *map(list, rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    right = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(headings))]
    lines = (
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("-", "+", "—", "")
