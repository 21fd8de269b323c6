"""Which trial runs next, and where: those whose needs are finished; a failure touches only those that need it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from postgrad.errors import DiskError, UserError
from postgrad.studies.executors import Executor
from postgrad.studies.trials import Trial
from postgrad.studies.worker import Entry, Outcome

ATTEMPTS = 3
"""How often a trial is begun whose worker dies."""

PATIENCE_SECONDS = 30.0
"""How long interrupted workers get to end their step and to keep their state."""

Event = Callable[..., None]


@dataclass
class Running:
    """A trial at work: since when, and since when both it and its slot had been free."""

    trial: Trial
    began: float
    available: float


@dataclass
class Board:
    """Which trials of a study wait, run, are finished (with their seconds) or failed (with the reason)."""

    trials: list[Trial]
    finished: dict[Trial, float] = field(default_factory=dict)
    failed: dict[Trial, str] = field(default_factory=dict)
    running: dict[int, Running] = field(default_factory=dict)
    _ready_since: dict[Trial, float] = field(default_factory=dict)
    _losses: dict[Trial, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chains = {trial: self._chain(trial) for trial in self.trials}
        self._find_ready()

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

    def finish(self, slot: int, seconds: float) -> Running:
        """The trial in a slot is done."""
        running = self.running.pop(slot)
        self.finished[running.trial] = seconds
        self._find_ready()
        return running

    def fail(self, slot: int, reason: str) -> Running:
        """The trial in a slot failed, and with it all that need it."""
        running = self.running.pop(slot)
        self.give_up(running.trial, reason)
        return running

    def lose(self, slot: int) -> tuple[Running, int]:
        """The worker in a slot died; the trial waits again. Returns it and how often this has happened to it."""
        running = self.running.pop(slot)
        self._losses[running.trial] = self._losses.get(running.trial, 0) + 1
        return running, self._losses[running.trial]

    def give_up(self, trial: Trial, reason: str) -> None:
        """A trial is not tried again, nor are those that need it; an arm's needs name all that it stands on."""
        self.failed[trial] = reason
        for other in self._dependents(trial):
            self.failed.setdefault(other, f"not begun: it needs {trial}, which failed")

    def _find_ready(self) -> None:
        finished = {(trial.seed, trial.arm) for trial in self.finished}
        for trial in self.trials:
            if trial not in self._ready_since and trial.stands_on <= finished:
                self._ready_since[trial] = time.monotonic()

    def _dependents(self, trial: Trial) -> list[Trial]:
        return [other for other in self.trials if (trial.seed, trial.arm) in other.stands_on]

    def _chain(self, trial: Trial) -> int:
        return 1 + max((self._chain(other) for other in self._dependents(trial)), default=0)


def run_trials(board: Board, executor: Executor, event: Event) -> None:
    """Make all trials of the board that can be made.

    A trial whose worker dies is begun again, twice at most. An interruption (`KeyboardInterrupt`) and a full disk
    (`DiskError`) end it all, after every busy worker has kept its state.
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

    board: Board
    executor: Executor
    event: Event
    futures: dict[Future[Any], int]
    free: dict[int, float] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        for slot in range(min(self.executor.slots, len(self.board.waiting()))):
            self._enter(slot)
        while self.board.running or self.board.waiting():
            self._hand_out()
            done, _ = wait(self.futures, return_when=FIRST_COMPLETED)
            self._take_in(done)

    def _enter(self, slot: int) -> None:
        self.futures[self.executor.enter(slot)] = slot

    def _hand_out(self) -> None:
        for slot in sorted(self.free):
            trial = self.board.next_ready()
            if trial is None:
                return
            self.board.begin(slot, trial, free_since=self.free.pop(slot))
            self.event("trial begins", arm=trial.arm, seed=trial.seed, slot=slot)
            self.futures[self.executor.submit(slot, trial)] = slot

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
        if outcome.ended == "done":
            running = self.board.finish(slot, outcome.seconds)
            said = {}
        else:
            running = self.board.fail(slot, outcome.reason)
            said = {"reason": outcome.reason}
        self.event(
            "trial fails" if said else "trial ends",
            arm=running.trial.arm,
            seed=running.trial.seed,
            slot=slot,
            seconds=round(outcome.seconds, 4),
            held=round(now - running.available, 4),
            **said,
        )

    def _replace(self, slot: int) -> None:
        """A worker died: of its trial's doing, or before it had one."""
        if slot in self.board.running:
            running, losses = self.board.lose(slot)
            trial = running.trial
            self.event("worker dies", arm=trial.arm, seed=trial.seed, slot=slot)
            if losses == ATTEMPTS:
                self.board.give_up(trial, f"its process died {losses} times (killed, or out of memory)")
        else:
            self.deaths[slot] = self.deaths.get(slot, 0) + 1
            if self.deaths[slot] == ATTEMPTS:
                raise UserError("worker processes die as soon as they begin (out of memory?); try fewer --workers")
        self._enter(slot)
