"""The progress of a study on standard error: one line for each trial at work, and the time left for all."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from postgrad import progress
from postgrad.studies.run import Run
from postgrad.studies.scheduler import Board, Running
from postgrad.studies.trials import Trial
from postgrad.studies.worker import PROGRESS

LINE_EVERY_SECONDS = 30.0


@contextlib.contextmanager
def shown(board: Board, run: Run, slots: int) -> Iterator[None]:
    """Show the progress of a board within the block: live on a terminal, else every half minute; not with `--quiet`."""
    if progress.quiet:
        yield
        return
    with _live(board, run, slots) if sys.stderr.isatty() else _in_lines(board, run, slots):
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
    time_left = "" if left is None else f", about {_duration(left)} left"
    return f"{len(board.finished)} of {len(board.trials)} trials{failed}{time_left}"


def _of_trial(running: Running[Trial], run: Run) -> str:
    trial = running.trial
    report = _report(run, trial)
    if report is None:
        return f"  {trial}: {_duration(time.monotonic() - running.began)}"
    rate, missing = report["rate"], report["total"] - report["done"]
    left = f", {_duration(missing / rate)} left" if rate > 0 else ""
    what = report["what"].removeprefix(f"seed{trial.seed}/{trial.arm}/").removeprefix(trial.arm) or "training"
    return f"  {trial}: {what} {report['done']}/{report['total']} {report['unit']}, {rate:.1f}/s{left}"


def _report(run: Run, trial: Trial) -> dict[str, Any] | None:
    try:
        text = (run.arm_directory(trial.seed, trial.arm) / PROGRESS).read_text(encoding="utf-8")
    except OSError:  # it has said nothing yet, or has just ended
        return None
    report: dict[str, Any] = json.loads(text)
    return report


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def _live(board: Board, run: Run, slots: int) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def text() -> Text:
        return Text("\n".join(lines(board, run, slots)))

    with Live(get_renderable=text, console=Console(stderr=True), refresh_per_second=2, transient=True):
        yield


@contextlib.contextmanager
def _in_lines(board: Board, run: Run, slots: int) -> Iterator[None]:
    over = threading.Event()

    def say() -> None:
        while not over.wait(LINE_EVERY_SECONDS):
            print("\n".join(lines(board, run, slots)), file=sys.stderr, flush=True)

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
