"""The progress of a study on standard error: one line for each trial at work, and the time left for all."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postgrad import progress
from postgrad.studies.run import Run
from postgrad.studies.scheduler import Board, Running
from postgrad.studies.trials import Trial
from postgrad.studies.worker import PROGRESS

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_SECONDS = 30.0


@contextlib.contextmanager
def shown(board: Board, run: Run, slots: int) -> Iterator[None]:
    """Show the progress of a board within the block: live on a terminal, else every half minute; not with `--quiet`."""
    with shown_lines(lambda: lines(board, run, slots)):
        yield


@contextlib.contextmanager
def shown_lines(now: Callable[[], list[str]], drawn: Callable[[], RenderableType] | None = None) -> Iterator[None]:
    """Show what `now` says within the block, on a terminal what `drawn` draws; not with `--quiet`."""
    if progress.quiet:
        yield
        return
    with _live(drawn or (lambda: "\n".join(now()))) if sys.stderr.isatty() else _in_lines(now):
        yield


def lines(board: Board, run: Run, slots: int) -> list[str]:
    """What is to be said now."""
    at_work = sorted(board.running.items())  # a copy, since another thread goes on with the board meanwhile
    return [_overall(board, slots), *(_of_trial(running, run) for _, running in at_work)]


def seconds_left(board: Board, slots: int) -> float | None:
    """The time until all trials are over, by what finished trials of the same arms took; None before there is any."""
    if not board.finished:
        return None
    of_arm: dict[str, list[float]] = {}
    for trial, seconds in list(board.finished.items()):
        of_arm.setdefault(trial.arm, []).append(seconds)
    of_any = statistics.fmean(board.finished.values())

    def expected(trial: Trial) -> float:
        return statistics.fmean(of_arm[trial.arm]) if trial.arm in of_arm else of_any

    now = time.monotonic()
    at_work = [max(0.0, expected(each.trial) - (now - each.began)) for each in list(board.running.values())]
    return max([(sum(map(expected, board.waiting())) + sum(at_work)) / slots, *at_work])


def _overall(board: Board, slots: int) -> str:
    left = seconds_left(board, slots)
    failed = f", {len(board.failed)} failed" if board.failed else ""
    time_left = "" if left is None else f", about {duration(left)} left"
    return f"{len(board.finished)} of {len(board.trials)} trials{failed}{time_left}"


def _of_trial(running: Running[Trial], run: Run) -> str:
    trial = running.trial
    report = report_of(run.arm_directory(trial.seed, trial.arm))
    if report is None:
        return f"  {trial}: {duration(time.monotonic() - running.began)}"
    what = report["what"].removeprefix(f"seed{trial.seed}/{trial.arm}/").removeprefix(trial.arm) or "training"
    return f"  {trial}: {what} {how_far(report)}"


def how_far(report: dict[str, Any]) -> str:
    """The progress of one job, in words."""
    rate, missing = report["rate"], report["total"] - report["done"]
    left = f", {duration(missing / rate)} left" if rate > 0 else ""
    return f"{report['done']}/{report['total']} {report['unit']}, {rate:.1f}/s{left}"


def report_of(directory: Path) -> dict[str, Any] | None:
    """What a job has told of its progress, None where it has not yet, or has ended."""
    try:
        text = (directory / PROGRESS).read_text(encoding="utf-8")
    except OSError:
        return None
    report: dict[str, Any] = json.loads(text)
    return report


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def _live(drawn: Callable[[], RenderableType]) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def renderable() -> RenderableType:
        now = drawn()
        return Text(now) if isinstance(now, str) else now  # brackets in it are no markup

    with Live(get_renderable=renderable, console=Console(stderr=True), refresh_per_second=2, transient=True):
        yield


@contextlib.contextmanager
def _in_lines(now: Callable[[], list[str]]) -> Iterator[None]:
    over = threading.Event()

    def say() -> None:
        while not over.wait(LINE_EVERY_SECONDS):
            print("\n".join(now()), file=sys.stderr, flush=True)

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
