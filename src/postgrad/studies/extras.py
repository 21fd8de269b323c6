"""What a study scores beyond the test images: other data sets, from which they are to be told, and corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from postgrad.data.datasets import Dataset
from postgrad.data.outside import check_outside, outside_images
from postgrad.errors import UserError
from postgrad.evaluation.corruptions import corruption_names, measure_corruptions
from postgrad.evaluation.ood import compare_confidences, outside_confidences
from postgrad.evaluation.score import Extras
from postgrad.evaluation.scorecard import across_seeds
from postgrad.studies.run import write_arrays
from postgrad.studies.study_config import StudyConfig

if TYPE_CHECKING:
    from postgrad.studies.run import Run

SCORES = "outside_scores.npz"
"""The scores of confidence of all images, in an arm's directory, for the report."""


def check_names(config: StudyConfig) -> None:
    """Refuse data sets and corruptions that there are not, before anything is loaded."""
    for name in config.ood:
        check_outside(name)
        if name == config.data:
            raise UserError(f"ood: {name} is the data of the study itself; name other data sets")
    _corruptions(config)


def load_extras(config: StudyConfig, dataset: Dataset) -> Extras:
    """The other data sets, brought to the form of the test images, and the names of the corruptions."""
    assert dataset.test is not None
    where: dict[str, Any] = {"data_dir": config.data_dir, "memory": config.memory}
    return Extras(
        outside=[outside_images(name, like=dataset.test, **where) for name in config.ood],
        corruptions=_corruptions(config),
    )


def _corruptions(config: StudyConfig) -> list[str]:
    return corruption_names(",".join(config.corruptions)) if config.corruptions else []


def outside_scores(run: Run, classifier: Any, directory: Path) -> list[dict[str, Any]]:
    """The `outside` entries of one arm of one seed; the scores of all images are kept in its directory."""
    if not run.extras.outside:
        return []
    confidences = outside_confidences(classifier, run.test.images, run.extras.outside)
    write_arrays(directory / SCORES, **{name: values.astype(np.float32) for name, values in confidences.items()})
    return compare_confidences(confidences, run.extras.outside)


def corruption_scores(run: Run, classifier: Any) -> list[dict[str, Any]]:
    """The `corruptions` entries of one arm of one seed."""
    if not run.extras.corruptions:
        return []
    return measure_corruptions(
        classifier, run.test.images, run.test.labels, run.extras.corruptions, seed=run.extras.seed
    )


def entries_across_seeds(of_seeds: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The entries of one arm, one list for each seed, with their metrics over the seeds.

    A metric that an entry of some seed lacks is left out.
    """
    combined = []
    for same in zip(*of_seeds, strict=True):
        shared = [name for name in same[0]["metrics"] if all(name in entry["metrics"] for entry in same)]
        cards = [{name: entry["metrics"][name] for name in shared} for entry in same]
        combined.append(same[0] | {"metrics": across_seeds(cards)})
    return combined
