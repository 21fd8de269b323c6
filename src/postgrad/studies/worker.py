"""What a process does for a study: imports, data and run are made once, then one trial after another."""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from postgrad import progress
from postgrad.errors import DiskError, UserError
from postgrad.files import write_atomic
from postgrad.studies.trials import Trial

if TYPE_CHECKING:
    from postgrad.studies.run import Run

TOKEN = ".workers-"
"""How the name of the file begins that workers obey, in the study's directory: they work as long as it is there."""

PROGRESS = "progress.json"
TRACEBACK = "failure.txt"
LOOK_EVERY_SECONDS = 0.25


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, after how many seconds of its own, and why."""

    ended: Literal["done", "failed", "interrupted", "disk"]
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Post:
    """Where a worker works: the study's directory as all machines see it, and what it must be told first.

    `token` is the file that it obeys, of another name at each call, so that workers of an earlier one stop.
    """

    directory: Path
    token: Path
    threads: int
    folder: Path
    variables: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """What a worker says when it is ready: its process, and what it could not do."""

    pid: int
    error: str | None = None


def perform(run: Run, trial: Trial) -> Outcome:
    """Make one arm; whatever goes wrong with it is told, and a traceback kept in the arm's directory."""
    from postgrad.studies.arms import run_trial

    directory, began = run.arm_directory(trial.seed, trial.arm), time.perf_counter()

    def ended(how: Literal["done", "failed", "interrupted", "disk"], reason: object = "") -> Outcome:
        return Outcome(how, time.perf_counter() - began, " ".join(str(reason).split()))

    try:
        with progress.reported_to(directory / PROGRESS):
            run_trial(run, trial)
        (directory / TRACEBACK).unlink(missing_ok=True)
    except KeyboardInterrupt:
        return ended("interrupted")
    except DiskError as error:
        return ended("disk", error)
    except Exception as error:
        write_atomic(directory / TRACEBACK, traceback.format_exc())
        return ended("failed", error if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
    return ended("done")


def enter(post: Post) -> Entry:
    """Make this process a worker: settle its threads, then import and load all that its trials share."""
    global _station
    # Read by libraries when they are first imported, which is why nothing above imports them.
    os.environ.update(post.variables)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(post.threads)
    progress.quiet = True
    # Ctrl-C at a terminal reaches all its processes at once; the study tells its workers itself, by the token.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if not post.token.exists():
        here = f"{platform.node()} does not see {post.directory} as it is where the study was started"
        return Entry(os.getpid(), f"{here}; all machines of a cluster must share that folder under the same path")
    if post.folder.is_dir():
        os.chdir(post.folder)
    try:
        _station = Station(post)
    except UserError as error:
        return Entry(os.getpid(), str(error))
    return Entry(os.getpid())


def work(trial: Trial) -> Outcome:
    """Make one arm in a process that has entered."""
    assert _station is not None, "this process has not entered a study"
    return _station.work(trial)


class Station:
    """The run of a worker process, and a thread that watches whether it is still wanted."""

    def __init__(self, post: Post) -> None:
        from postgrad.studies.study import prepare_study
        from postgrad.studies.study_config import StudyConfig

        self._post = post
        self._busy = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        self._run = prepare_study(StudyConfig.load(post.directory / "config.yaml"))
        self._run.directory = post.directory

    def work(self, trial: Trial) -> Outcome:
        with self._interruptible():
            return perform(self._run, trial)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _watch(self) -> None:
        """End with the process that started this one, and when no longer wanted; a trial is interrupted first, once."""
        parent = multiprocessing.parent_process()
        told = False
        while True:
            if parent is None:
                time.sleep(LOOK_EVERY_SECONDS)
            elif connection.wait([parent.sentinel], LOOK_EVERY_SECONDS):
                os._exit(1)
            if self._post.token.exists():
                continue
            if not self._busy.is_set():
                os._exit(1)
            if not told:
                told = True
                _thread.interrupt_main()


_station: Station | None = None
