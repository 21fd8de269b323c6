"""The order of trials, and what becomes of those that fail, whose worker dies, or that are interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.errors import DiskError, UserError
from postgrad.studies import scheduler
from postgrad.studies.scheduler import ATTEMPTS, Board, run_trials
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import Trial, trials
from postgrad.studies.worker import Entry, Outcome

DONE = Outcome("done", 1.0)


class DiedError(Exception):
    pass


class Workers:
    """Workers that end their trials when told, in a drawn order, as `end` says."""

    died: type[Exception] = DiedError

    def __init__(
        self,
        end: Callable[[Trial], Outcome | Exception] = lambda _: DONE,
        *,
        slots: int = 1,
        entry: Outcome | Exception | Entry = Entry(1),  # noqa: B008 (it cannot be changed)
    ) -> None:
        self.slots = slots
        self.end, self.entry = end, entry
        self.begun: list[Trial] = []
        self.at_once = 0
        self.open: list[tuple[Future[Any], Trial]] = []
        self.told_to_stop = self.closed = False

    def enter(self, slot: int) -> Future[Entry]:
        return ended(self.entry)

    def submit(self, slot: int, trial: Trial) -> Future[Outcome]:
        self.begun.append(trial)
        return ended(self.end(trial))

    def interrupt(self) -> None:
        self.told_to_stop = True

    def close(self) -> None:
        self.closed = True


def ended(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def board(*arms: str, **settings: object) -> Board:
    config = {"arms": dict.fromkeys(arms or ("gradnet",), "gradnet"), "seeds": 2, **settings}
    return Board(trials(StudyConfig.model_validate(config)))


def silent(*_: object, **__: object) -> None:
    pass


@given(slots=st.integers(1, 5), seeds=st.integers(1, 3), arms=st.integers(1, 3))
def test_every_trial_is_made_once_after_what_it_needs(slots: int, seeds: int, arms: int) -> None:
    ours = board(*(f"arm{number}" for number in range(arms)), seeds=seeds)
    workers = Workers(slots=slots)
    run_trials(ours, workers, silent)
    assert sorted(map(str, workers.begun)) == sorted(map(str, ours.trials))
    for number, trial in enumerate(workers.begun):
        assert {(trial.seed, arm) for arm in trial.needs} <= {(t.seed, t.arm) for t in workers.begun[:number]}
    assert set(ours.finished) == set(ours.trials)
    assert workers.closed
    assert not workers.told_to_stop


def test_what_most_others_wait_for_comes_first() -> None:
    workers = Workers()
    run_trials(board(), workers, silent)
    assert [trial.arm for trial in workers.begun[:4]] == ["base", "base", "gradnet", "gradnet"]


def test_finished_trials_are_not_made_again() -> None:
    whole = board()
    done = {trial: 2.0 for trial in whole.trials if trial.seed == 0 or trial.kind != "control"}
    ours, workers = Board(whole.trials, finished=done), Workers()
    run_trials(ours, workers, silent)
    assert {(trial.seed, trial.kind) for trial in workers.begun} == {(1, "control")}
    assert len(workers.begun) == 4


def test_a_failure_touches_only_what_needs_it() -> None:
    def end(trial: Trial) -> Outcome:
        return Outcome("failed", 1.0, "too bad") if (trial.arm, trial.seed) == ("b", 1) else DONE

    ours = board("a", "b")
    run_trials(ours, Workers(end), silent)
    failed = {str(trial): reason for trial, reason in ours.failed.items()}
    assert failed.pop("b, seed 1") == "too bad"
    assert set(failed) == {f"control-{name}-b, seed 1" for name in ("finetune", "features", "more-data", "same-price")}
    assert set(failed.values()) == {"not begun: it needs b, seed 1, which failed"}
    assert set(ours.finished) | set(ours.failed) == set(ours.trials)


def test_a_training_that_fails_on_the_first_seed_takes_all_that_stands_on_it() -> None:
    """Its other seeds, whose rate it was to find, and the controls of these too; or the study would wait for ever."""
    config = {"arms": {"ema": "ema:decay=0.5", "other": "ema:decay=0.9"}, "seeds": 3}
    there = Board(trials(StudyConfig.model_validate(config)))
    first = next(trial for trial in there.trials if trial.arm == "ema")
    workers = Workers(lambda trial: Outcome("failed", 1.0, "infinite") if trial == first else DONE)
    run_trials(there, workers, silent)
    assert {(trial.seed, trial.arm) for trial in there.failed} == {
        (seed, arm) for seed in range(3) for arm in ("ema", "control-same-time-ema")
    }
    assert len(there.finished) == 9


def test_a_base_that_fails_takes_its_seed_with_it_and_no_other() -> None:
    ours = board()
    run_trials(
        ours, Workers(lambda t: Outcome("failed", 1.0, "no") if (t.arm, t.seed) == ("base", 0) else DONE), silent
    )
    assert {trial.seed for trial in ours.failed} == {0}
    assert {trial.seed for trial in ours.finished} == {1}
    assert len(ours.failed) == len(ours.finished) == 6


@pytest.mark.parametrize("deaths", range(5))
def test_a_trial_whose_worker_dies_is_begun_again_twice(deaths: int) -> None:
    left = itertools.chain([DiedError()] * deaths, itertools.repeat(DONE))
    events: list[str] = []
    ours = board(seeds=1)
    workers = Workers(lambda trial: next(left) if trial.arm == "gradnet" else DONE)
    run_trials(ours, workers, lambda name, **_: events.append(name))
    assert [trial.arm for trial in workers.begun].count("gradnet") == min(deaths + 1, ATTEMPTS)
    assert events.count("worker dies") == min(deaths, ATTEMPTS)
    reasons = [reason for trial, reason in ours.failed.items() if trial.arm == "gradnet"]
    assert reasons == (["its process died 3 times (killed, or out of memory)"] if deaths >= ATTEMPTS else [])


def test_workers_that_cannot_live_end_the_study() -> None:
    with pytest.raises(UserError, match="die as soon as they begin"):
        run_trials(board(), Workers(entry=DiedError()), silent)


def test_a_worker_that_cannot_work_says_why() -> None:
    with pytest.raises(UserError, match="no such data"):
        run_trials(board(), Workers(entry=Entry(1, "no such data")), silent)


@pytest.mark.parametrize(("how", "error"), [("interrupted", KeyboardInterrupt), ("disk", DiskError)])
def test_interruption_and_full_disk_end_it_all(how: Any, error: type[BaseException]) -> None:
    workers = Workers(lambda trial: Outcome(how, 1.0, "the disk is full") if trial.kind == "method" else DONE)
    ours = board()
    with pytest.raises(error):
        run_trials(ours, workers, silent)
    assert workers.told_to_stop
    assert workers.closed
    assert not ours.failed
    assert {trial.kind for trial in ours.finished} == {"base"}


def test_times_held_and_own_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by one at each look; a trial takes a quarter of a second of its own."""
    clock = itertools.count()
    monkeypatch.setattr(scheduler.time, "monotonic", lambda: float(next(clock)))
    told: list[dict[str, Any]] = []
    ours = board(seeds=1, controls="control-features")
    run_trials(ours, Workers(lambda _: Outcome("done", 0.25)), lambda name, **content: told.append({**content}))
    ends = [content for content in told if "held" in content]
    assert [content["arm"] for content in ends] == ["base", "gradnet", "control-features"]
    assert all(content["seconds"] == 0.25 for content in ends)
    assert all(content["held"] >= 1 for content in ends)


def test_seconds_left_are_those_of_the_same_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    from postgrad.studies import display

    ours = board(seeds=3, controls="control-features")
    assert display.seconds_left(ours, 2) is None
    ours.finished |= {trial: {"base": 2.0, "method": 30.0, "control": 10.0}[trial.kind] for trial in ours.trials[:3]}
    assert display.seconds_left(ours, 1) == pytest.approx(2 * 42)
    assert display.seconds_left(ours, 2) == pytest.approx(42)
    ours.begin(0, ours.trials[3], free_since=0.0)
    now = ours.running[0].began
    monkeypatch.setattr(display.time, "monotonic", lambda: now + 1.5)
    assert display.seconds_left(ours, 1) == pytest.approx(2 * 42 - 1.5)
    monkeypatch.setattr(display.time, "monotonic", lambda: now + 100)
    assert display.seconds_left(ours, 1) == pytest.approx(2 * 42 - 2), "a trial that takes longer is about to end"
