"""Arms × seeds with their controls, on as many workers as there are, and one honest comparison of them all."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import FrameType

from postgrad.errors import UserError
from postgrad.files import locked
from postgrad.reports.schema import Failure
from postgrad.studies.bench import StudyBench, prepare_study
from postgrad.studies.display import shown
from postgrad.studies.executors import Executor, InProcess, LocalProcesses, RayActors, check_ray, default_slots, posted
from postgrad.studies.overhead import scheduling_overhead
from postgrad.studies.prepare import begin, claim_directory
from postgrad.studies.results import close
from postgrad.studies.run import ArmRecord, Run, resumable
from postgrad.studies.scheduler import Board, run_trials
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import trials


@dataclass(frozen=True)
class Study:
    """A study that came to its end: where it lies, and what of it failed."""

    directory: Path
    failures: list[Failure]


def study(config: StudyConfig, *, workers: int | None = None, ray: str | None = None) -> Study:
    """Make every arm of every seed, each in a worker, and compare them.

    >>> study(StudyConfig(arms={"gradnet": "gradnet"}, seeds=5, out="runs/study"), workers=2).directory
    PosixPath('runs/study')

    `workers` are processes of this machine (default: as many as there are cores for), 0 for none but this one; with
    `ray` they are actors of that Ray cluster, "local" for one of this machine alone. A script that calls this with
    workers needs `if __name__ == "__main__":`, since they import it.

    An arm that fails is told and kept out, with those that need it; everything else goes on. With `config.resume` an
    interrupted study goes on: finished arms are left as they are, and trainings continue from their checkpoints. Raises
    `UserError` for settings, data or weights that cannot be used and for a full disk.
    """
    began = perf_counter()
    if ray is not None and workers == 0:
        raise UserError("--workers 0 works in this process and --ray in others; give one of the two")
    if ray is not None:
        check_ray(ray)
    if workers != 0 and config.threads is None:
        config = config.model_copy(update={"threads": 1})
    run = prepare_study(config)
    if left_out := config.left_out():
        run.warn(f"left out: {', '.join(left_out)}")
    claim_directory(run)
    with locked(run.directory), resumable(run.directory, "study"), terminated_like_ctrl_c():
        begin(run)
        board = _board(run)
        _make(run, board, workers, ray)
        failures = [Failure(arm=t.arm, seed=t.seed, reason=reason) for t, reason in board.failed.items()]
        _close(run, board, failures, perf_counter() - began)
    return Study(run.directory, failures)


def _board(run: Run) -> Board:
    """All trials, those that an earlier call finished among them."""
    todo = trials(run.config)
    records = {trial: ArmRecord.read(run.arm_directory(trial.seed, trial.arm)) for trial in todo}
    return Board(todo, finished={trial: record.seconds for trial, record in records.items() if record is not None})


def _make(run: Run, board: Board, workers: int | None, ray: str | None) -> None:
    if not board.waiting():
        return
    threads = run.config.threads
    assert threads is not None
    with posted("study", run.directory, threads) as post:
        executor: Executor
        if workers == 0:
            executor = InProcess(StudyBench(run))
        elif ray is not None:
            executor = RayActors(post, ray, workers, gpu=run.device.type == "cuda")
        else:
            executor = LocalProcesses(post, workers or default_slots(threads))
        with shown(board, run, executor.slots):
            run_trials(board, executor, run.event)


def _close(run: Run, board: Board, failures: list[Failure], seconds: float) -> None:
    """Compare what is finished; where nothing is, there is nothing to write."""
    for trial in board.trials:
        if trial in board.finished:
            record = ArmRecord.read(run.arm_directory(trial.seed, trial.arm))
            assert record is not None
            run.absorb(record)
    if (overhead := scheduling_overhead(run.directory)) is not None:
        run.note(f"scheduling took {100 * max(overhead, 0):.1f} % of the workers' time")
    if board.finished:
        close(run, seconds=seconds, further_metrics=run.config.further_metrics(), failures=failures)


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Within the block SIGTERM does what Ctrl-C does: the state is kept, and it is said how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background, which Ctrl-C is not to reach
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
