"""From finished arms to results.json: scorecards over seeds, costs, and the verdict of each method on each control."""

from __future__ import annotations

import csv
import io
import statistics
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import torch

from postgrad.evaluation.scorecard import across_seeds, scorecard
from postgrad.evaluation.statistics import verdicts
from postgrad.files import write_atomic
from postgrad.methods.registry import get_method
from postgrad.reports.schema import Arm, Cost, Data, Metric, Results, Verdict
from postgrad.studies.run import ArmRecord, Run

TITLES = {
    "base": "Base network",
    "control-finetune": "Base, fine-tuned",
    "control-features": "MLP on the last features",
    "control-more-data": "Same network, all the data",
    "control-same-price": "Same price at inference",
}


def collect(run: Run, *, started: datetime, seconds: float) -> Results:
    """Read what every arm of every seed left, and make the results of the run."""
    records = _records(run)
    predictions = {
        arm: [np.load(run.arm_directory(record.seed, arm) / "test_predictions.npz") for record in of_arm]
        for arm, of_arm in records.items()
    }
    correct = {
        arm: [each["probabilities"].argmax(axis=1) == each["labels"] for each in of_arm]
        for arm, of_arm in predictions.items()
    }
    cards = {
        arm: across_seeds([scorecard(each["probabilities"], each["labels"]) for each in of_arm])
        for arm, of_arm in predictions.items()
    }
    _write_curves(run, list(records))
    recommended = max(records, key=lambda arm: statistics.fmean(r.validation_accuracy for r in records[arm]))
    return Results(
        version=1,
        command=run.config.command(),
        data=_data(run),
        seeds=list(run.config.seeds),
        arms=[_arm(arm, of_arm, cards[arm]) for arm, of_arm in records.items()],
        verdicts=[Verdict(**entry) for entry in verdicts(correct, _comparisons(records))],
        recommended=recommended,
        started=(started - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        notes=run.notes,
        warnings=run.warnings,
    )


def _records(run: Run) -> dict[str, list[ArmRecord]]:
    """The records of each arm, one for each seed, in the order in which the arms were fitted."""
    records: dict[str, list[ArmRecord]] = {}
    for name in _arm_names(run):
        found = [ArmRecord.read(run.arm_directory(seed, name)) for seed in run.config.seeds]
        records[name] = [record for record in found if record is not None]
    return records


def _arm_names(run: Run) -> list[str]:
    directory = run.directory
    times = {path.parent.name: path.stat().st_mtime_ns for path in directory.glob("*/arm.json")}
    return sorted(times, key=lambda name: times[name])


def _comparisons(records: dict[str, list[ArmRecord]]) -> dict[str, list[str]]:
    """What each method is compared with: the base, and its own controls."""
    methods = [arm for arm, of_arm in records.items() if of_arm[0].kind == "method"]
    return {
        method: ["base", *(arm for arm, of_arm in records.items() if method in of_arm[0].control_for)]
        for method in methods
    }


def _arm(name: str, records: list[ArmRecord], card: dict[str, dict[str, Any]]) -> Arm:
    first = records[0]
    title = get_method(first.method).title if first.method else TITLES.get(name, name)
    return Arm(
        name=name,
        kind=first.kind,
        method=first.method,
        control_for=first.control_for,
        title=title.partition(":")[0],
        description=first.description,
        notes=first.notes,
        metrics={key: Metric(**value) for key, value in card.items()},
        cost=_cost(records),
    )


def _cost(records: list[ArmRecord]) -> Cost:
    def mean(values: list[float]) -> float:
        return round(statistics.fmean(values), 4)

    return Cost(
        train_cpu_seconds=mean([record.cpu_seconds for record in records]),
        total_cpu_seconds=mean([record.total_cpu_seconds for record in records]),
        train_seconds=mean([record.seconds for record in records]),
        peak_memory_mb=mean([record.peak_memory_mb for record in records]),
        parameters=round(statistics.fmean(record.cost["parameters"] for record in records)),
        inference_ms_per_image=mean([record.cost["inference_ms_per_image"] for record in records]),
        inference_passes=mean([record.cost["inference_passes"] for record in records]),
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


def _write_curves(run: Run, arms: list[str]) -> None:
    """metrics.csv of the run: the learning curves of all arms and seeds in one table."""
    rows = []
    for seed in run.config.seeds:
        for arm in arms:
            file = run.arm_directory(seed, arm) / "metrics.csv"
            if file.exists():
                with open(file, newline="", encoding="utf-8") as lines:
                    rows += [{"seed": seed, "arm": arm, **row} for row in csv.DictReader(lines)]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["seed", "arm"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(run.directory / "metrics.csv", text.getvalue())
