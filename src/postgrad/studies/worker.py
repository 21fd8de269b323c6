"""What a process does for a run: imports, data and settings are loaded once, then one job after another is made."""

from __future__ import annotations

import _thread
import contextlib
import importlib
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
from typing import Any, Literal, Protocol

from postgrad import progress
from postgrad.errors import DiskError, UserError
from postgrad.files import write_atomic

BENCHES = {
    "study": "postgrad.studies.bench:StudyBench",
    "search": "postgrad.search.bench:SearchBench",
}
"""What a run is -> what its workers make of its directory. A fixed table: a post cannot name code."""

TOKEN = ".workers-"
"""How the name of the file begins that workers obey, in the run's directory: they work as long as it is there."""

PROGRESS = "progress.json"
TRACEBACK = "failure.txt"
LOOK_EVERY_SECONDS = 0.25


End = Literal["done", "failed", "refused", "memory", "interrupted", "disk"]


class Job(Protocol):
    """What one worker makes at a time: a trial of a study, an individual of a search. It must survive pickling."""

    @property
    def label(self) -> dict[str, Any]:
        """What events say of it."""
        ...


class Bench(Protocol):
    """What all jobs of a run share in one process."""

    def directory(self, job: Any) -> Path:
        """The folder of a job, for its progress and for the traceback of one that fails."""
        ...

    def make(self, job: Any) -> str:
        """Make it; the name of what was made, where it has one. Raises `Refused` where there is nothing to make."""
        ...


class Refused(Exception):  # noqa: N818 (nothing is wrong: the job was found to be none)
    """Why a job is not to be made, in one line; nothing was trained for it."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended, after how many seconds of its own, why, and the name of what was made."""

    ended: End
    seconds: float
    reason: str = ""
    made: str = ""


@dataclass(frozen=True)
class Post:
    """Where a worker works: what the run is, its directory as all machines see it, and what it must be told first.

    `token` is the file that it obeys, of another name at each call, so that workers of an earlier one stop.
    """

    bench: str
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


def perform(bench: Bench, job: Job) -> Outcome:
    """Make one job; whatever goes wrong with it is told, and a traceback kept in its directory."""
    directory, began = bench.directory(job), time.perf_counter()

    def ended(how: End, reason: object = "", made: str = "") -> Outcome:
        return Outcome(how, time.perf_counter() - began, " ".join(str(reason).split()), made)

    try:
        with progress.reported_to(directory / PROGRESS):
            made = bench.make(job)
        (directory / TRACEBACK).unlink(missing_ok=True)
    except KeyboardInterrupt:
        return ended("interrupted")
    except Refused as reason:
        return ended("refused", reason)
    except DiskError as error:
        return ended("disk", error)
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            return ended("memory", said)
        write_atomic(directory / TRACEBACK, traceback.format_exc())
        return ended("failed", said)
    return ended("done", made=made)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, the processor's memory (torch has no class of its own for that) or a GPU's was used up."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def enter(post: Post) -> Entry:
    """Make this process a worker: settle its threads, then import and load all that its jobs share."""
    global _station
    # Read by libraries when they are first imported, which is why nothing above imports them.
    os.environ.update(post.variables)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(post.threads)
    progress.quiet = True
    # Ctrl-C at a terminal reaches all its processes at once; a run tells its workers itself, by the token.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if not post.token.exists():
        here = f"{platform.node()} does not see {post.directory} as it is where the {post.bench} was started"
        return Entry(os.getpid(), f"{here}; all machines of a cluster must share that folder under the same path")
    if post.folder.is_dir():
        os.chdir(post.folder)
    try:
        _station = Station(post)
    except UserError as error:
        return Entry(os.getpid(), str(error))
    return Entry(os.getpid())


def work(job: Job) -> Outcome:
    """Make one job in a process that has entered."""
    assert _station is not None, "this process has not entered a run"
    return _station.work(job)


class Station:
    """The bench of a worker process, and a thread that watches whether it is still wanted."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._busy = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        module, _, name = BENCHES[post.bench].partition(":")
        self._bench: Bench = getattr(importlib.import_module(module), name).at(post.directory)

    def work(self, job: Job) -> Outcome:
        with self._interruptible():
            return perform(self._bench, job)

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
        """End with the process that started this one, and when no longer wanted; a job is interrupted first, once."""
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
