"""What all trials of a study share in one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from postgrad.studies import arms
from postgrad.studies.extras import check_names, load_extras
from postgrad.studies.prepare import prepare
from postgrad.studies.run import Run
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import Trial


@dataclass(frozen=True)
class StudyBench:
    """A study's run, in whose arms' directories its trials are made.

    >>> StudyBench.at(Path("runs/study")).make(trials(config)[0])
    """

    run: Run

    @classmethod
    def at(cls, directory: Path) -> StudyBench:
        """That of a study whose settings lie there."""
        run = prepare_study(StudyConfig.load(directory / "config.yaml"))
        run.directory = directory
        return cls(run)

    def directory(self, trial: Trial) -> Path:
        return self.run.arm_directory(trial.seed, trial.arm)

    def make(self, trial: Trial) -> str:
        arms.run_trial(self.run, trial)
        return str(trial)


def prepare_study(config: StudyConfig) -> Run:
    """What all trials of a study share in one process: the run, and what its arms are scored on beside the data."""
    check_names(config)
    run = prepare(config)
    run.extras = load_extras(config, run.dataset)
    return run
