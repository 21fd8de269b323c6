"""The end of a search: controls, one look at the test images, verdicts, lineage, results.json and the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from postgrad.data.datasets import Dataset, Images, load_dataset
from postgrad.evaluation.calibration import found_temperature
from postgrad.evaluation.cost import measure_cost
from postgrad.files import write_atomic
from postgrad.reports.html import render
from postgrad.reports.schema import Data, Failure, Results, write_results
from postgrad.reports.words import large
from postgrad.search.context import Context
from postgrad.search.controls import CURVE, ancestors, control_jobs
from postgrad.search.curves import joined
from postgrad.search.events import read_events
from postgrad.search.individual import Individual
from postgrad.search.jobs import SearchJob
from postgrad.search.lineage import lineage, winner_of, write_lineage
from postgrad.studies.prepare import EXAMPLES
from postgrad.studies.results import compared, recommended, write_curves
from postgrad.studies.run import ArmRecord, write_arrays

TIMED_IMAGES = 100

TITLES = {
    "base": "Ancestor",
    "best": "Mutation search",
    "control-finetune": "Ancestor, trained on",
    "control-from-scratch": "Winner's architecture, new weights",
    "control-random": "Random mutations",
    "control-stacking": "Stacking",
}
"""The arms of a search, in their order."""

Make = Callable[[Sequence[SearchJob]], Mapping[Any, str]]
"""Makes jobs on the workers of the search; gives those that failed, and why."""


@dataclass(frozen=True)
class Price:
    """What an arm took: CPU seconds of its own fitting and of all that it stands on, and seconds of its own."""

    cpu_seconds: float
    total_cpu_seconds: float
    seconds: float


def close_search(context: Context, finished: Sequence[Individual], make: Make) -> Results:
    """Make the controls, score all arms on the test images, and write all that a search leaves.

    >>> close_search(context, board.finished, make).recommended
    'best'

    The winner is the most accurate on validation images; nothing is chosen after the test images are looked at.
    """
    winner = winner_of(finished)
    failed = make(control_jobs(winner))
    _copy_out(context, winner)
    config, events = context.config, read_events(context.directory)
    nodes = lineage(finished, events, config)
    write_lineage(context.directory, nodes, finished, events)
    dataset = load_dataset(
        config.data, data_dir=config.data_dir, limit=config.limit, size=config.size, memory=config.memory
    )
    assert dataset.test is not None  # a search is not begun without
    write_arrays(context.directory / "examples.npz", images=dataset.test.images[:EXAMPLES])
    prices = _prices(finished, winner, nodes[-1].seconds - nodes[0].seconds)
    records = {
        arm: {config.seed: _scored(context, dataset.test, arm, prices)}
        for arm in TITLES
        if Individual.read(context.directory / arm) is not None
    }
    seconds = max(event["elapsed"] for event in events)
    arms, verdicts = compared(records, [config.seed], lambda _, arm: context.directory / arm)
    write_curves(context.directory, list(records), [config.seed], lambda _, arm: context.directory / arm)
    results = Results(
        command=config.command(),
        data=_data(context, dataset),
        seeds=[config.seed],
        arms=arms,
        verdicts=verdicts,
        recommended=recommended(records, [config.seed]),
        started=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        notes=[*context.notes, *_notes(context, finished, winner)],
        warnings=_warnings(events),
        failures=[Failure(arm=job.name, seed=config.seed, reason=reason) for job, reason in failed.items()],
        lineage=nodes,
    )
    write_results(results, context.directory / "results.json")
    render(context.directory)
    return results


def _copy_out(context: Context, winner: Individual) -> None:
    """Put the base and the winner beside the controls, the winner with the curve of all its lineage."""
    path = ancestors(context, winner.name)
    for arm, individual in (("base", path[0]), ("best", winner)):
        shutil.copytree(context.folder(individual.name), context.directory / arm, dirs_exist_ok=True)
    curve = joined([context.folder(each.name) / CURVE for each in path], [each.parameters for each in path])
    if curve is not None:
        write_atomic(context.directory / "best" / CURVE, curve)


def _prices(finished: Sequence[Individual], winner: Individual, seconds: float) -> dict[str, Price]:
    """That of the base, and that of the search, which is all of its children's, not the winner's alone."""
    base = finished[0]
    children = sum(each.cpu_seconds for each in finished[1:])
    return {
        "base": Price(base.cpu_seconds, base.cpu_seconds, base.seconds),
        "best": Price(children, children + base.cpu_seconds, seconds),
    }


def _scored(context: Context, test: Images, arm: str, prices: Mapping[str, Price]) -> ArmRecord:
    """Write what an arm says of the test images; remember that, its temperature and its price."""
    directory = context.directory / arm
    individual = Individual.read(directory)
    assert individual is not None
    classifier = context.classifier(context.loaded(directory))
    write_arrays(
        directory / "test_predictions.npz", probabilities=classifier.predict_proba(test.images), labels=test.labels
    )
    said, labels = classifier.predict_proba(context.held_back.images), context.held_back.labels.numpy()
    stands_on = prices["base"].cpu_seconds if individual.parent is not None else 0.0
    own = Price(individual.cpu_seconds, individual.cpu_seconds + stands_on, individual.seconds)
    price = prices.get(arm, own)
    kind = {"base": "base", "best": "method"}.get(arm, "control")
    record = ArmRecord(
        name=arm,
        kind=kind,
        seed=context.config.seed,
        description=_description(arm, individual),
        cpu_seconds=price.cpu_seconds,
        total_cpu_seconds=price.total_cpu_seconds,
        seconds=price.seconds,
        peak_memory_mb=None,
        validation_accuracy=float(np.mean(said.argmax(axis=1) == labels)),
        temperature=found_temperature(said, labels),
        cost={
            **measure_cost(classifier, test.images[:TIMED_IMAGES]),
            "multiply_adds": individual.multiply_adds,
        },
        control_for=["best"] if kind == "control" else [],
        title=TITLES[arm],
        lineage_multiply_adds=individual.lineage_multiply_adds,
    )
    record.write(directory)
    return record


def _description(arm: str, individual: Individual) -> str:
    if "description" in individual.trained:
        return str(individual.trained["description"])
    if arm == "base":
        return f"trained for {individual.epochs:g} epochs" if individual.epochs else "the network as given"
    return f"number {individual.number}, the most accurate on validation images"


def _data(context: Context, dataset: Dataset) -> Data:
    assert dataset.test is not None
    return Data(
        name=dataset.name,
        n_train=len(context.images),
        n_validation=len(context.held_back),
        n_test=len(dataset.test),
        fingerprint=dataset.fingerprint,
        class_names=list(dataset.class_names),
        shape=list(dataset.shape),
        preprocessing=context.preprocess.describe(),
        notes=list(dataset.notes),
    )


def _notes(context: Context, finished: Sequence[Individual], winner: Individual) -> list[str]:
    together = sum(each.training_multiply_adds for each in finished)
    notes = [
        f"{len(context.held_back)} validation images chose parents and winner; the test images were looked at once, "
        "when all arms were finished",
    ]
    if winner.parent is None:
        return [*notes, "no network was more accurate than the base, so there are no controls"]
    own = large(winner.lineage_multiply_adds)
    return [
        *notes,
        f"each control was trained for as many multiply-adds as the winner's lineage, {own}; all {len(finished)} "
        f"networks of the search took {large(together)}, and the time of its fitting is that of all of them",
    ]


def _warnings(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What failed for other reasons than being infeasible, each reason once."""
    failed: dict[str, list[str]] = {}
    for event in events:
        if event["event"] == "failed":
            failed.setdefault(event["reason"], []).append(str(event["number"]))
    return [f"{'networks' if len(of) > 1 else 'network'} {', '.join(of)} failed: {why}" for why, of in failed.items()]
