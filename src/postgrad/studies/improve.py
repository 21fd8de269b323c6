"""The main job: a base network, second-stage methods on it, their controls, and one honest comparison of them all."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from postgrad.files import locked
from postgrad.studies.arms import run_trial
from postgrad.studies.config import ImproveConfig
from postgrad.studies.prepare import begin, claim_directory, prepare
from postgrad.studies.results import close
from postgrad.studies.run import ArmRecord, Run, resumable
from postgrad.studies.trials import Trial, trials


def improve(config: ImproveConfig) -> Path:
    """Train or load a base, fit the methods and their controls, score all on the test data; returns the run directory.

    >>> improve(ImproveConfig(data="digits", out="runs/demo"))
    PosixPath('runs/demo')

    With `config.resume` an interrupted run goes on: finished arms are loaded, and the one that was being fitted
    continues from its checkpoint. Raises `UserError` for settings, data or weights that cannot be used.
    """
    began = perf_counter()
    run = prepare(config)
    claim_directory(run)
    with locked(run.directory), resumable(run.directory, "improve"):
        begin(run)
        for trial in trials(run.config):
            _make(run, trial)
        close(run, seconds=perf_counter() - began)
    return run.directory


def _make(run: Run, trial: Trial) -> None:
    """Make one arm, unless an earlier run has done so."""
    record = ArmRecord.read(run.arm_directory(trial.seed, trial.arm))
    if record is None:
        run.event("arm begins", arm=trial.arm, seed=trial.seed)
        record = run_trial(run, trial)
        run.event("arm ends", arm=trial.arm, seed=trial.seed, cpu_seconds=record.cpu_seconds)
    run.absorb(record)
