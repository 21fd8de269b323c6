"""How any job ends in its worker, and what the loop does with one that has too little memory or is refused."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from postgrad.errors import DiskError, UserError
from postgrad.studies.executors import InProcess
from postgrad.studies.scheduler import ATTEMPTS, Board, run_trials
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import Trial, trials
from postgrad.studies.worker import BENCHES, TRACEBACK, Outcome, Refused, is_out_of_memory, perform


@dataclass(frozen=True)
class Job:
    """Raises what it is told to."""

    error: BaseException | None = None

    @property
    def label(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Bench:
    """Makes jobs in one folder."""

    place: Path

    def directory(self, job: Job) -> Path:
        return self.place

    def make(self, job: Job) -> str:
        if job.error is not None:
            raise job.error
        return "what was made"


@pytest.mark.parametrize(
    ("error", "how", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", ""),
        (Refused("no layer\ncan grow"), "refused", "no layer can grow"),
        (DiskError("the disk is full"), "disk", "the disk is full"),
        (UserError("no such data"), "failed", "no such data"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (MemoryError("no more"), "memory", "MemoryError: no more"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory", "OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_how_a_job_ends(error: BaseException, how: str, reason: str, tmp_path: Path) -> None:
    outcome = perform(Bench(tmp_path), Job(error))
    assert (outcome.ended, outcome.reason, outcome.made) == (how, reason, "")
    assert (tmp_path / TRACEBACK).exists() == (how == "failed")
    done = perform(Bench(tmp_path), Job())
    assert (done.ended, done.made) == ("done", "what was made")
    assert not (tmp_path / TRACEBACK).exists()


def test_what_torch_says_where_the_processor_has_too_little_memory() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(other.value)


def board() -> Board:
    settings = {"arms": {"gradnet": "gradnet"}, "seeds": 1, "controls": "control-features"}
    return Board(trials(StudyConfig.model_validate(settings)))


@pytest.mark.parametrize("times", range(5))
def test_a_job_without_memory_is_begun_again_twice(times: int, tmp_path: Path) -> None:
    left = itertools.chain([MemoryError("no more")] * times, itertools.repeat(None))
    begun: list[str] = []

    class Trials:
        def directory(self, trial: Trial) -> Path:
            return tmp_path

        def make(self, trial: Trial) -> str:
            begun.append(trial.arm)
            if trial.arm == "gradnet" and (error := next(left)) is not None:
                raise error
            return trial.arm

    ours, events = board(), []
    run_trials(ours, InProcess(Trials()), lambda name, **_: events.append(name))
    assert begun.count("gradnet") == min(times + 1, ATTEMPTS)
    assert events.count("out of memory") == min(times, ATTEMPTS)
    reasons = [reason for trial, reason in ours.failed.items() if trial.arm == "gradnet"]
    assert reasons == (["MemoryError: no more, 3 times"] if times >= ATTEMPTS else [])


def test_a_study_takes_a_refusal_for_a_failure() -> None:
    class Workers(InProcess):
        def submit(self, slot: int, trial: Any) -> Future[Outcome]:
            future: Future[Outcome] = Future()
            future.set_result(Outcome("refused", 1.0, "there is nothing to make"))
            return future

    ours = board()
    run_trials(ours, Workers(Bench(Path())), lambda *_, **__: None)
    assert {str(trial): reason for trial, reason in ours.failed.items()}["base, seed 0"] == "there is nothing to make"


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_is_there(name: str) -> None:
    module, _, bench = BENCHES[name].partition(":")
    assert hasattr(getattr(__import__(module, fromlist=[bench]), bench), "at")
