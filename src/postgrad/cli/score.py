"""`postgrad score`: how good a classifier is on test data, and what a prediction costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from postgrad.cli.console import prepared, print_json, say
from postgrad.cli.options import (
    DataOptions,
    MachineOptions,
    ModelOptions,
    PreprocessOptions,
    preprocess_flags,
    required,
)
from postgrad.cli.results import score_table
from postgrad.errors import UserError

_TIMED_IMAGES = 256


@dataclass(frozen=True)
class Options:
    """Score a classifier on the test images of a data set: accuracy, calibration, cost, with 95 % intervals.

    postgrad score --model runs/demo/gradnet --data digits
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Load, score, print."""
    required(options.model.model, "--model")
    required(options.data.data, "--data")
    with prepared(options.machine):
        metrics, cost = _score(options)
    if options.machine.json:
        print_json({"metrics": metrics, "cost": cost})
    else:
        print(score_table(metrics, cost))
    return 0


def _score(options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    from postgrad.cli.classifiers import is_saved, named_classifier, saved_classifier
    from postgrad.cli.labelled import labels_as_counted
    from postgrad.evaluation.scorecard import measure_cost, scorecard

    model = str(options.model.model)
    flags = preprocess_flags(options.preprocess)
    device = options.machine.device or "auto"
    if is_saved(model):
        classifier = saved_classifier(model, options.model, flags, device)
        dataset = _dataset(options, size=classifier.preprocess.size)
    else:
        dataset = _dataset(options, size=flags.get("size"))
        classifier = named_classifier(model, options.model, flags, device, dataset)
    labels = labels_as_counted(dataset.test.labels, dataset, classifier.class_names)
    metrics = scorecard(classifier.predict_proba(dataset.test.images), labels)
    say(f"{len(dataset.test)} test images of {dataset.name}")
    return metrics, measure_cost(classifier, dataset.test.images[:_TIMED_IMAGES])


def _dataset(options: Options, *, size: int | None) -> Any:
    from postgrad.cli.labelled import loaded

    dataset = loaded(options.data, size=size)
    if dataset.test is None:
        raise UserError(f"{options.data.data} has no test images to score on; add some, or name another data set")
    return dataset
