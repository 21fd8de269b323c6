"""From finished arms to results.json: scorecards over seeds, costs, and the verdict of each method on each control."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from postgrad.evaluation.scorecard import across_seeds, metric, scorecard
from postgrad.evaluation.statistics import proportion_interval, verdicts
from postgrad.files import write_atomic
from postgrad.methods.registry import get_method
from postgrad.reports.html import render
from postgrad.reports.schema import (
    Arm,
    CorruptionScore,
    Cost,
    Data,
    Failure,
    Metric,
    OutsideScore,
    Results,
    Verdict,
    write_results,
)
from postgrad.studies.extras import entries_across_seeds
from postgrad.studies.run import ArmRecord, Run
from postgrad.studies.trials import trials

TITLES = {
    "base": "Base network",
    "control-finetune": "Base, fine-tuned",
    "control-features": "MLP on the last features",
    "control-more-data": "Same network, all the data",
    "control-same-price": "Same price at inference",
}

Records = Mapping[str, Mapping[int, ArmRecord]]
"""Arm -> seed -> what is remembered of it."""

Place = Callable[[int, str], Path]
"""Where the arm of a seed lies."""


def close(run: Run, *, seconds: float, further_metrics: Sequence[str] = (), failures: Sequence[Failure] = ()) -> None:
    """Compare all arms; write results.json, the settings with the step counts that times became, and the report."""
    results = collect(
        run, started=datetime.now(UTC), seconds=seconds, further_metrics=further_metrics, failures=failures
    )
    write_results(results, run.directory / "results.json")
    run.config.model_copy(update={"steps": run.steps, "out": Path("runs") / run.directory.name}).save(
        run.directory / "config.yaml"
    )
    render(run.directory)
    run.event("run ends")


def collect(
    run: Run,
    *,
    started: datetime,
    seconds: float,
    further_metrics: Sequence[str] = (),
    failures: Sequence[Failure] = (),
) -> Results:
    """Read what every arm of every seed left, and make the results of the run.

    An arm may lack seeds, which `failures` then explain: it is compared over those that it shares with the other arm.
    Verdicts are about accuracy, and about `further_metrics` of the scorecard.
    """
    records, seeds = _records(run), run.config.seeds
    arms, found = compared(records, seeds, run.arm_directory, further_metrics=further_metrics)
    write_curves(run.directory, list(records), seeds, run.arm_directory)
    return Results(
        version=1,
        command=run.config.command(),
        data=_data(run),
        seeds=list(seeds),
        arms=arms,
        verdicts=found,
        recommended=recommended(records, seeds),
        started=(started - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        notes=run.notes,
        warnings=run.warnings,
        failures=list(failures),
    )


def compared(
    records: Records, seeds: Sequence[int], place: Place, *, further_metrics: Sequence[str] = ()
) -> tuple[list[Arm], list[Verdict]]:
    """The arms as results.json has them, scored by the test predictions that lie in their folders, and the verdicts."""
    correct: dict[str, list[np.ndarray | None]] = {}
    cards: dict[str, list[dict[str, Any] | None]] = {}
    for arm in records:
        stored = [_predictions(place(seed, arm)) for seed in seeds]
        correct[arm] = [None if each is None else each[0].argmax(axis=1) == each[1] for each in stored]
        found = dict(zip(records[arm], _temperatures(records[arm].values()) or (), strict=False))
        cards[arm] = [
            None if each is None else scorecard(*each, temperature=found.get(seed)) | _on_training(records[arm][seed])
            for seed, each in zip(seeds, stored, strict=True)
        ]
    further = {
        metric: {arm: [None if card is None else card[metric]["mean"] for card in cards[arm]] for arm in cards}
        for metric in further_metrics
    }
    return (
        [_arm(list(of_arm.values()), [card for card in cards[arm] if card]) for arm, of_arm in records.items()],
        [Verdict(**entry) for entry in verdicts(correct, _comparisons(records), metrics=further)],
    )


def _temperatures(records: Iterable[ArmRecord]) -> list[float] | None:
    """Those of an arm by seed; None where one lacks it: other means than the plain ones' seeds."""
    found = [record.temperature for record in records]
    return None if None in found else [each for each in found if each is not None]


def recommended(records: Records, seeds: Sequence[int]) -> str | None:
    """The arm with the best mean validation accuracy, among those that no seed lacks."""
    complete = {arm: of_arm.values() for arm, of_arm in records.items() if len(of_arm) == len(seeds)}
    if not complete:
        return None
    return max(complete, key=lambda arm: statistics.fmean(r.validation_accuracy for r in complete[arm]))


def _records(run: Run) -> dict[str, dict[int, ArmRecord]]:
    """The records of each arm by seed, in the order in which a run makes the arms; arms without any are left out."""
    records: dict[str, dict[int, ArmRecord]] = {}
    for name in dict.fromkeys(trial.arm for trial in trials(run.config)):
        found = {seed: ArmRecord.read(run.arm_directory(seed, name)) for seed in run.config.seeds}
        if of_arm := {seed: record for seed, record in found.items() if record is not None}:
            records[name] = of_arm
    return records


def _predictions(directory: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The stored probabilities and labels of the test images, None for a seed that the arm failed at."""
    if ArmRecord.read(directory) is None:  # predictions are written before an arm is finished
        return None
    with np.load(directory / "test_predictions.npz") as stored:
        return stored["probabilities"], stored["labels"]


def _on_training(record: ArmRecord) -> dict[str, Any]:
    """What a training's record says of the images that it was trained on, as the scorecard has its metrics."""
    if record.on_training is None:
        return {}
    share, n = record.on_training["train_accuracy"], record.on_training["images"]
    return {"train_accuracy": metric([share], proportion_interval(round(share * n), n), "images")}


def _comparisons(records: Records) -> dict[str, list[str]]:
    """What each method is compared with: the base and its own controls, or what a training's settings say."""
    kinds = {arm: next(iter(of_arm.values())) for arm, of_arm in records.items()}
    return {
        method: [arm for arm in record.against if arm in records]
        or ["base", *(arm for arm, record in kinds.items() if method in record.control_for)]
        for method, record in kinds.items()
        if record.kind == "method"
    }


def _arm(records: list[ArmRecord], cards: list[dict[str, Any]]) -> Arm:
    first = records[0]
    return Arm(
        name=first.name,
        kind=first.kind,
        method=first.method,
        control_for=first.control_for,
        title=_title(first),
        description=first.description,
        notes=first.notes,
        metrics={key: Metric(**value) for key, value in across_seeds(cards).items()},
        cost=_cost(records),
        temperature=_temperatures(records),
        outside=[OutsideScore(**entry) for entry in entries_across_seeds([each.outside for each in records])],
        corruptions=[
            CorruptionScore(**entry) for entry in entries_across_seeds([each.corruptions for each in records])
        ],
    )


def _title(record: ArmRecord) -> str:
    """A plain name: its own, its method's or its control's; an arm that has none keeps the name of its folder."""
    if record.method == record.name:
        return get_method(record.method).title.partition(":")[0]
    return record.title or TITLES.get(record.name, record.name)


def _cost(records: list[ArmRecord]) -> Cost:
    def mean(values: Sequence[float | None]) -> float | None:
        """None where one was not measured."""
        measured = [value for value in values if value is not None]
        return round(statistics.fmean(measured), 4) if len(measured) == len(values) else None

    def of_prediction(name: str) -> float | None:
        return mean([record.cost.get(name) for record in records])

    return Cost(
        train_cpu_seconds=mean([record.cpu_seconds for record in records]),
        total_cpu_seconds=mean([record.total_cpu_seconds for record in records]),
        train_seconds=mean([record.seconds for record in records]),
        peak_memory_mb=mean([record.peak_memory_mb for record in records]),
        parameters=round(statistics.fmean(record.cost["parameters"] for record in records)),
        inference_ms_per_image=of_prediction("inference_ms_per_image"),
        inference_passes=of_prediction("inference_passes"),
        multiply_adds=of_prediction("multiply_adds"),
        lineage_multiply_adds=mean([record.lineage_multiply_adds for record in records]),
    )


def _data(run: Run) -> Data:
    dataset, parts = run.dataset, run.halves
    assert dataset.train is not None
    assert dataset.test is not None
    training = len(torch.cat([parts.base_train, parts.method_train]).unique())
    validation = len(torch.cat([parts.base_validation, parts.method_validation]).unique())
    return Data(
        name=dataset.name,
        n_train=training,
        n_validation=validation,
        n_test=len(dataset.test),
        fingerprint=dataset.fingerprint,
        class_names=list(dataset.class_names),
        shape=list(dataset.shape),
        preprocessing=run.preprocess.describe(),
        notes=list(dataset.notes),
    )


def write_curves(directory: Path, arms: Sequence[str], seeds: Sequence[int], place: Place) -> None:
    """metrics.csv of a run: the learning curves of all arms and seeds in one table."""
    rows = []
    for seed in seeds:
        for arm in arms:
            file = place(seed, arm) / "metrics.csv"
            if file.exists():
                with open(file, newline="", encoding="utf-8") as lines:
                    rows += [{"seed": seed, "arm": arm, **row} for row in csv.DictReader(lines)]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["seed", "arm"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(directory / "metrics.csv", text.getvalue())
