"""Which job runs next, and where. Of a study's trials: one whose needs are finished; failures touch what needs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from postgrad.errors import DiskError, UserError
from postgrad.studies.executors import Executor
from postgrad.studies.trials import Trial
from postgrad.studies.worker import Entry, Job, Outcome

ATTEMPTS = 3
"""How often a job is begun whose worker dies, or has too little memory."""

PATIENCE_SECONDS = 30.0
"""How long interrupted workers get to end their step and to keep their state."""

Event = Callable[..., None]
AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass
class Running(Generic[AnyJob]):
    """A job at work: since when, and since when both it and its slot had been free."""

    trial: AnyJob
    began: float
    available: float


class JobBoard(Protocol[AnyJob]):
    """Which jobs there are: the loop asks for the next one whenever a slot is free, and tells how each ends."""

    running: dict[int, Running[AnyJob]]

    def at_once(self, slots: int) -> int:
        """How many of so many workers may have something to do; 0 where all is over."""
        ...

    def next_ready(self) -> AnyJob | None:
        """The job to begin now; None while there is none, which is asked again when one of those at work has ended."""
        ...

    def begin(self, slot: int, job: AnyJob, /, *, free_since: float) -> None: ...

    def finish(self, slot: int, outcome: Outcome, /) -> Running[AnyJob]:
        """The job in a slot is done."""
        ...

    def refuse(self, slot: int, outcome: Outcome, /) -> Running[AnyJob]:
        """There was nothing to make of the job in a slot."""
        ...

    def fail(self, slot: int, reason: str, /) -> Running[AnyJob]:
        """The job in a slot failed."""
        ...

    def lose(self, slot: int, /) -> tuple[Running[AnyJob], int]:
        """The worker in a slot died, or had too little memory; the job waits again. How often that was so."""
        ...

    def give_up(self, job: AnyJob, reason: str, /) -> None:
        """A job that was lost is not tried again."""
        ...


@dataclass
class Board:
    """Which trials of a study wait, run, are finished (with their seconds) or failed (with the reason)."""

    trials: list[Trial]
    finished: dict[Trial, float] = field(default_factory=dict)
    failed: dict[Trial, str] = field(default_factory=dict)
    running: dict[int, Running[Trial]] = field(default_factory=dict)
    _ready_since: dict[Trial, float] = field(default_factory=dict)
    _losses: dict[Trial, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chains = {trial: self._chain(trial) for trial in self.trials}
        self._find_ready()

    def at_once(self, slots: int) -> int:
        return min(slots, len(self.waiting()))

    def waiting(self) -> list[Trial]:
        """Trials that are neither over nor at work."""
        at_work = {running.trial for running in list(self.running.values())}
        return [t for t in self.trials if t not in self.finished and t not in self.failed and t not in at_work]

    def next_ready(self) -> Trial | None:
        """The trial to begin now: of those that can, one on which the longest chain of others waits."""
        ready = [trial for trial in self.waiting() if trial in self._ready_since]
        return max(ready, key=lambda trial: self._chains[trial], default=None)

    def begin(self, slot: int, trial: Trial, *, free_since: float) -> None:
        available = max(free_since, self._ready_since[trial])
        self.running[slot] = Running(trial, time.monotonic(), available)

    def finish(self, slot: int, outcome: Outcome) -> Running[Trial]:
        running = self.running.pop(slot)
        self.finished[running.trial] = outcome.seconds
        self._find_ready()
        return running

    def refuse(self, slot: int, outcome: Outcome) -> Running[Trial]:
        return self.fail(slot, outcome.reason)

    def fail(self, slot: int, reason: str) -> Running[Trial]:
        """The trial in a slot failed, and with it all that need it."""
        running = self.running.pop(slot)
        self.give_up(running.trial, reason)
        return running

    def lose(self, slot: int) -> tuple[Running[Trial], int]:
        running = self.running.pop(slot)
        self._losses[running.trial] = self._losses.get(running.trial, 0) + 1
        return running, self._losses[running.trial]

    def give_up(self, trial: Trial, reason: str) -> None:
        """A trial is not tried again, nor are those that need it, nor those that need these."""
        self.failed[trial] = reason
        others = [other for other in self._dependents(trial) if other not in self.failed]
        for other in others:
            self.failed[other] = f"not begun: it needs {trial}, which failed"
        for other in others:
            self.give_up(other, self.failed[other])

    def _find_ready(self) -> None:
        finished = {(trial.seed, trial.arm) for trial in self.finished}
        for trial in self.trials:
            if trial not in self._ready_since and trial.stands_on <= finished:
                self._ready_since[trial] = time.monotonic()

    def _dependents(self, trial: Trial) -> list[Trial]:
        return [other for other in self.trials if (trial.seed, trial.arm) in other.stands_on]

    def _chain(self, trial: Trial) -> int:
        return 1 + max((self._chain(other) for other in self._dependents(trial)), default=0)


def run_trials(board: JobBoard[Any], executor: Executor, event: Event) -> None:
    """Make all jobs of the board that can be made.

    A job whose worker dies, or has too little memory, is begun again, twice at most. An interruption
    (`KeyboardInterrupt`) and a full disk (`DiskError`) end it all, after every busy worker has kept its state.
    """
    futures: dict[Future[Any], int] = {}
    try:
        _Shift(board, executor, event, futures).run()
    except BaseException:
        executor.interrupt()
        wait(futures, timeout=PATIENCE_SECONDS)
        raise
    finally:
        executor.close()


@dataclass
class _Shift:
    """The loop over what workers report."""

    board: JobBoard[Any]
    executor: Executor
    event: Event
    futures: dict[Future[Any], int]
    free: dict[int, float] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        for slot in range(self.board.at_once(self.executor.slots)):
            self._enter(slot)
        while self.board.running or self.board.at_once(1):
            self._hand_out()
            done, _ = wait(self.futures, return_when=FIRST_COMPLETED)
            self._take_in(done)

    def _enter(self, slot: int) -> None:
        self.futures[self.executor.enter(slot)] = slot

    def _hand_out(self) -> None:
        for slot in sorted(self.free):
            job = self.board.next_ready()
            if job is None:
                return
            self.board.begin(slot, job, free_since=self.free.pop(slot))
            self.event("trial begins", **job.label, slot=slot)
            self.futures[self.executor.submit(slot, job)] = slot

    def _take_in(self, done: Iterable[Future[Any]]) -> None:
        for future in done:
            slot = self.futures.pop(future)
            error = future.exception()
            if isinstance(error, self.executor.died):
                self._replace(slot)
            elif error is not None:
                raise error
            elif isinstance(result := future.result(), Entry):
                self._welcome(slot, result)
            else:
                self._note(slot, result)

    def _welcome(self, slot: int, entry: Entry) -> None:
        if entry.error is not None:
            raise UserError(entry.error)
        self.deaths[slot] = 0
        self.free[slot] = time.monotonic()

    def _note(self, slot: int, outcome: Outcome) -> None:
        if outcome.ended == "interrupted":
            raise KeyboardInterrupt
        if outcome.ended == "disk":
            raise DiskError(outcome.reason)
        now = self.free[slot] = time.monotonic()
        if outcome.ended == "memory":
            self._lose(slot, "out of memory", f"{outcome.reason}, {ATTEMPTS} times", reason=outcome.reason)
            return
        if outcome.ended == "failed":
            running = self.board.fail(slot, outcome.reason)
        else:
            running = (self.board.finish if outcome.ended == "done" else self.board.refuse)(slot, outcome)
        said = {} if outcome.ended == "done" else {"reason": outcome.reason}
        self.event(
            {"done": "trial ends", "failed": "trial fails", "refused": "refused"}[outcome.ended],
            **running.trial.label,
            slot=slot,
            seconds=round(outcome.seconds, 4),
            held=round(now - running.available, 4),
            **said,
        )

    def _lose(self, slot: int, event: str, why: str, **said: str) -> None:
        """What the job in a slot took away with it: the worker, or the memory."""
        running, losses = self.board.lose(slot)
        self.event(event, **running.trial.label, slot=slot, **said)
        if losses == ATTEMPTS:
            self.board.give_up(running.trial, why)

    def _replace(self, slot: int) -> None:
        """A worker died: of its job's doing, or before it had one."""
        if slot in self.board.running:
            self._lose(slot, "worker dies", f"its process died {ATTEMPTS} times (killed, or out of memory)")
        else:
            self.deaths[slot] = self.deaths.get(slot, 0) + 1
            if self.deaths[slot] == ATTEMPTS:
                raise UserError("worker processes die as soon as they begin (out of memory?); try fewer --workers")
        self._enter(slot)
