"""Which children are proposed, until when, and that an interrupted search proposes what it would have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.errors import UserError
from postgrad.search.board import PATIENCE, JobList, SearchBoard
from postgrad.search.config import SearchConfig
from postgrad.search.events import Log, read_events
from postgrad.search.individual import Individual
from postgrad.search.jobs import Base, Child
from postgrad.studies.scheduler import ATTEMPTS, run_trials
from postgrad.studies.worker import Entry, Outcome

Make = Callable[..., Individual]


class DiedError(Exception):
    pass


class Workers:
    """Workers that end their jobs at once, as `end` says; what it calls done has an individual in the folder."""

    died: type[Exception] = DiedError

    def __init__(
        self, directory: Path, individual: Make, end: Callable[[Any], Any] | None = None, slots: int = 1
    ) -> None:
        self.slots, self.directory, self.individual = slots, directory, individual
        self.end = end or (lambda job: "done")
        self.begun: list[Any] = []

    def enter(self, slot: int) -> Future[Entry]:
        return ended(Entry(1))

    def submit(self, slot: int, job: Any) -> Future[Outcome]:
        self.begun.append(job)
        how = self.end(job)
        if how == "done":
            return ended(Outcome("done", 1.0, made=self.made(job)))
        return ended(how if isinstance(how, BaseException) else Outcome(how, 1.0, f"it was {how}"))

    def made(self, job: Any) -> str:
        changes = {"parent": job.parent, "mutation": job.mutation, "genes": job.genes} if isinstance(job, Child) else {}
        made = self.individual(job.number, **changes, accuracy=0.5 + (job.number * 37 % 11) / 100)
        folder = self.directory / "population" / made.name
        folder.mkdir(parents=True, exist_ok=True)
        made.write(folder)
        return made.name

    def interrupt(self) -> None: ...
    def close(self) -> None: ...


def ended(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def board(directory: Path, **settings: Any) -> SearchBoard:
    directory.mkdir(exist_ok=True)
    config = SearchConfig.model_validate({"individuals": 6, **settings})
    return SearchBoard(config, directory, Log(directory), lambda _: None)


def told(directory: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(directory) if event["event"] == name]


def run(ours: SearchBoard, individual: Make, end: Any = None, slots: int = 1) -> Workers:
    workers = Workers(ours.directory, individual, end, slots)
    run_trials(ours, workers, ours.log)
    return workers


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """A new folder at each step."""
    return (tmp_path / str(number) for number in range(10**6))


@given(slots=st.integers(1, 4), wanted=st.integers(1, 9))
@settings(max_examples=15)
def test_as_many_children_as_are_wanted(
    tmp_path_factory: pytest.TempPathFactory, individual: Make, slots: int, wanted: int
) -> None:
    ours = board(tmp_path_factory.mktemp("run"), individuals=wanted)
    workers = run(ours, individual, slots=slots)
    assert isinstance(workers.begun[0], Base)
    assert [job.number for job in workers.begun[1:]] == list(range(1, wanted + 1))
    assert sorted(each.number for each in ours.finished) == [job.number for job in workers.begun]
    assert ours.left() == 0
    assert ours.at_once(slots) == 0


def test_a_budget_of_multiply_adds_ends_after_it_is_used_up(tmp_path: Path, individual: Make) -> None:
    ours = board(tmp_path, individuals=None, multiply_adds=45)
    run(ours, individual)  # ten each
    assert len(ours.finished) == 5


def test_a_budget_of_time_is_that_of_all_calls(
    tmp_path: Path, individual: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(Log, "of_this_call", lambda _: float(next(clock)))
    first = board(tmp_path, individuals=None, budget="60s")
    with pytest.raises(KeyboardInterrupt):
        run(first, individual, lambda job: "interrupted" if job.number == 3 else "done")
    used = read_events(tmp_path)[-1]["elapsed"]
    assert used > 0
    clock = iter(range(10**6))
    again = board(tmp_path, individuals=None, budget="60s")
    assert used <= again.log.elapsed() <= used + 3
    run(again, individual)
    last = told(tmp_path, "trial begins")[-1]["elapsed"]
    assert 50 < last <= 61


def test_the_same_seed_gives_the_same_lineage_and_another_one_another(
    folders: Iterator[Path], individual: Make
) -> None:
    one, same, other = (run(board(next(folders), individuals=20, seed=seed), individual).begun for seed in (3, 3, 4))
    assert one == same
    assert one != other
    assert len({job.seed for job in one[1:]}) == 20
    assert len({job.genes for job in one[1:]}) > 3
    assert {job.mutation for job in one[1:]} <= {"deeper", "wider", "skip", "group", "pool"}
    without = run(board(next(folders), individuals=20, genes=False), individual).begun
    assert len({job.genes for job in without[1:]}) == 1


@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_an_interrupted_search_proposes_what_it_would_have(folders: Iterator[Path], individual: Make, at: int) -> None:
    """Interrupted at a job that is then begun again; some children are refused, and one fails."""

    def end(job: Any) -> str:
        return {3: "refused", 6: "failed"}.get(job.number, "done")

    settings: dict[str, Any] = {"individuals": 12, "preset": "adaptive", "population": 3}
    whole = run(board(next(folders), **settings), individual, end)
    place = next(folders)
    with pytest.raises(KeyboardInterrupt):
        run(board(place, **settings), individual, lambda job: "interrupted" if job.number == at else end(job))
    ours = board(place, **settings)
    rest = run(ours, individual, end)
    assert rest.begun == whole.begun[at:]
    assert [each.number for each in ours.population.members] == sorted(each.number for each in ours.population.members)
    assert sorted(ours.failed) == [6]
    assert ours.refusals == 1
    assert len(ours.finished) == 13


def test_parents_are_members_of_the_population_as_it_was(tmp_path: Path, individual: Make) -> None:
    ours = board(tmp_path, individuals=30, population=3)
    begun = run(ours, individual).begun
    names = {each.name: each.number for each in ours.finished}
    parents = Counter(names[job.parent] for job in begun[1:])
    assert all(names[job.parent] < job.number for job in begun[1:])
    elite = ours.population.best.number
    assert all(
        job.number - names[job.parent] <= 3 or _was_best(names[job.parent], job.number, ours) for job in begun[1:]
    )
    assert parents[elite] > 1


def _was_best(parent: int, number: int, ours: SearchBoard) -> bool:
    before = [each for each in ours.finished if each.number < number]
    return max(before, key=lambda each: each.accuracy).number == parent


def test_a_finished_individual_that_nobody_told_of_is_found(tmp_path: Path, individual: Make) -> None:
    """Its process was killed between the two."""
    with pytest.raises(KeyboardInterrupt):
        run(board(tmp_path), individual, lambda job: "interrupted" if job.number == 2 else "done")
    (begun,) = [event for event in told(tmp_path, "trial begins") if event["number"] == 2]
    job = Child(2, begun["parent"], begun["mutation"], individual(2).genes, begun["seed"])
    Workers(tmp_path, individual).made(job)
    ours = board(tmp_path)
    assert [each.number for each in ours.finished] == [0, 1, 2]
    assert [event["number"] for event in told(tmp_path, "individual")] == [0, 1, 2]
    assert [job.number for job in run(ours, individual).begun] == [3, 4, 5, 6]


def test_half_an_event_is_cut_off(tmp_path: Path, individual: Make) -> None:
    run(board(tmp_path, individuals=2), individual)
    file = tmp_path / "events.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"time": "2026-01-01T0')
    ours = board(tmp_path, individuals=3)
    assert file.read_text() == whole
    run(ours, individual)
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()][-1] == "trial ends"


def test_a_search_that_cannot_grow_any_further_ends(tmp_path: Path, individual: Make) -> None:
    ours = board(tmp_path, individuals=500)
    workers = run(ours, individual, lambda job: "refused" if job.number > 2 else "done", slots=2)
    assert ours.stuck()
    assert PATIENCE <= ours.refusals <= PATIENCE + 2
    assert ours.last_refusal == "it was refused"
    assert len(workers.begun) == 3 + ours.refusals


def test_mutations_without_a_chance_are_refusals(tmp_path: Path, individual: Make) -> None:
    """Images of 8 pixels allow one pooling, and the seed's formula then gives it no chance."""
    made = individual(0).architecture.__class__(depth=3, pools=1, side=8)
    ours = board(tmp_path, mutations=("pool",))
    workers = run(ours, lambda number, **changes: individual(number, architecture=made, **changes))
    assert [job.number for job in workers.begun] == [0]
    assert ours.stuck()
    assert "none of the mutations pool has a chance" in ours.last_refusal
    assert len(told(tmp_path, "refused")) == PATIENCE


@pytest.mark.parametrize("how", ["memory", DiedError()])
def test_a_child_that_loses_its_worker_or_its_memory_is_tried_three_times(
    tmp_path: Path, individual: Make, how: Any
) -> None:
    ours = board(tmp_path, individuals=3)
    workers = run(ours, individual, lambda job: how if job.number == 2 else "done")
    assert Counter(job.number for job in workers.begun)[2] == ATTEMPTS
    assert sorted(ours.failed) == [2]
    assert [each.number for each in ours.finished] == [0, 1, 3, 4]
    (failed,) = told(tmp_path, "failed")
    assert failed["number"] == 2
    assert "3 times" in failed["reason"]
    again = board(tmp_path, individuals=3)
    assert sorted(again.failed) == [2]
    assert run(again, individual).begun == []


def test_one_loss_is_no_failure(tmp_path: Path, individual: Make) -> None:
    left = ["memory", DiedError()]
    ours = board(tmp_path, individuals=3)
    run(ours, individual, lambda job: left.pop() if job.number == 2 and left else "done")
    assert [each.number for each in ours.finished] == [0, 1, 2, 3]
    assert not ours.failed


def test_without_a_base_there_is_no_search(tmp_path: Path, individual: Make) -> None:
    with pytest.raises(UserError, match="the base could not be made: it was failed"):
        run(board(tmp_path), individual, lambda job: "failed")


def test_a_failure_leaves_no_checkpoint(tmp_path: Path, individual: Make) -> None:
    checkpoint = tmp_path / "population" / ".task-1" / "training"
    checkpoint.mkdir(parents=True)
    run(board(tmp_path, individuals=1), individual, lambda job: "failed" if job.number == 1 else "done")
    assert not checkpoint.exists()


def test_a_list_of_jobs_is_made_once_and_tells_what_failed(tmp_path: Path, individual: Make) -> None:
    jobs = [Child(number, "p", "wider", individual(0).genes, number) for number in range(5)]
    ours = JobList(tmp_path, jobs)
    workers = Workers(tmp_path, individual, lambda job: "failed" if job.number in (1, 3) else "done", slots=2)
    run_trials(ours, workers, Log(tmp_path))
    assert workers.begun == jobs
    assert ours.failed == {jobs[1]: "it was failed", jobs[3]: "it was failed"}
    assert ours.at_once(2) == 0
