"""Progress with rate and time left, on standard error, for anything that takes over two seconds."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from postgrad.files import write_atomic

quiet = False
"""Set by `--quiet`: no progress is shown at all."""

_report: Callable[[dict[str, object]], None] | None = None
"""Set by `reported_to`: progress is written to a file and not shown."""

_SHOW_AFTER_SECONDS = 2.0
_LINE_EVERY_SECONDS = 30.0
_REPORT_EVERY_SECONDS = 1.0


@contextlib.contextmanager
def progress(what: str, total: int, *, unit: str = "steps", start: int = 0) -> Iterator[Callable[..., None]]:
    """Show how far a long job is; the block gets a function to call as the work advances.

    >>> with progress("gradients", total=25_000, unit="images") as advance:
    ...     for batch in batches:
    ...         advance(len(batch), note="loss 0.31")

    `start` is what an earlier, interrupted run had done. On a terminal a bar appears after two seconds; elsewhere a
    line is written every half minute.
    """
    if _report is not None:
        show = _to_file
    else:
        show = _nothing if quiet else (_bar if sys.stderr.isatty() else _lines)
    with show(what, total, unit, start) as advance:
        yield advance


@contextlib.contextmanager
def reported_to(path: Path) -> Iterator[None]:
    """Within the block, write progress to a JSON file at most once a second, for another process to show.

    >>> with reported_to(directory / "progress.json"):
    ...     train(model, …)

    It holds `what`, `done`, `total`, `unit`, `rate` (a second) and `note`, and is removed at the end of the block.
    """
    global _report
    written = float("-inf")

    def write(content: dict[str, object]) -> None:
        nonlocal written
        if time.monotonic() - written >= _REPORT_EVERY_SECONDS:
            written = time.monotonic()
            write_atomic(path, json.dumps(content))

    before, _report = _report, write
    try:
        yield
    finally:
        _report = before
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Within the block no progress is shown: what is done there is a part of a job that shows its own."""
    global quiet, _report
    before = quiet, _report
    quiet, _report = True, None
    try:
        yield
    finally:
        quiet, _report = before


@contextlib.contextmanager
def _to_file(what: str, total: int, unit: str, start: int) -> Iterator[Callable[..., None]]:
    began, done = time.monotonic(), start

    def advance(count: int = 1, *, note: str = "") -> None:
        nonlocal done
        done += count
        if _report is not None and total:
            rate = (done - start) / max(time.monotonic() - began, 1e-9)
            _report({"what": what, "done": done, "total": total, "unit": unit, "rate": rate, "note": note})

    yield advance


@contextlib.contextmanager
def _nothing(what: str, total: int, unit: str, start: int) -> Iterator[Callable[..., None]]:
    def advance(count: int = 1, *, note: str = "") -> None:
        pass

    yield advance


@contextlib.contextmanager
def _lines(what: str, total: int, unit: str, start: int) -> Iterator[Callable[..., None]]:
    began = shown = time.monotonic()
    done = start

    def advance(count: int = 1, *, note: str = "") -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown >= _LINE_EVERY_SECONDS:
            shown = now
            rate = (done - start) / (now - began)
            left = (total - done) / rate if rate > 0 else float("inf")
            message = f"{what}: {done}/{total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left"
            print(f"{message}, {note}" if note else message, file=sys.stderr, flush=True)

    yield advance


@contextlib.contextmanager
def _bar(what: str, total: int, unit: str, start: int) -> Iterator[Callable[..., None]]:
    from rich import progress as rich_progress
    from rich.console import Console

    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        rich_progress.TextColumn("{task.fields[rate]:.1f}/s"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(what, total=total, completed=start, unit=unit, note="", rate=0.0)
    began = time.monotonic()
    done, visible = start, False

    def advance(count: int = 1, *, note: str = "") -> None:
        nonlocal done, visible
        done += count
        elapsed = time.monotonic() - began
        if not visible and elapsed >= _SHOW_AFTER_SECONDS:
            bar.start()
            visible = True
        bar.update(task, completed=done, rate=(done - start) / max(elapsed, 1e-9), note=note)

    try:
        yield advance
    finally:
        if visible:
            bar.stop()
