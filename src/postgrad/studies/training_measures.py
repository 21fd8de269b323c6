"""What the trainings of a study were like: logit norms, dead filters, calibration at their own α, how steady they were.

    python -m postgrad.studies.training_measures runs/powergrad --out docs/ledger/raw/powergrad/measures.json

Prints a table of means over the seeds. PowerGrad trains softmax(αz), so that its probabilities are looked at both at
the logits z and at αz; of other arms α is 1. Volatility is the mean change of the validation accuracy from one epoch to
the next, up or down, in the second half of the training.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from postgrad._loading import load
from postgrad.controls.tuning import batched
from postgrad.data.containers import Images
from postgrad.errors import UserError
from postgrad.evaluation import metrics
from postgrad.evaluation.calibration import apply_temperature
from postgrad.files import write_atomic
from postgrad.methods.powergrad import dead_filters
from postgrad.progress import progress
from postgrad.studies.arm_config import TrainingArm
from postgrad.studies.bench import prepare_study
from postgrad.studies.run import ArmRecord
from postgrad.studies.study_config import StudyConfig

COLUMNS = (
    "train_accuracy", "accuracy", "logit_norm", "dead_filters", "nll", "ece", "nll_alpha", "ece_alpha", "volatility",
)  # fmt: skip


def measures(directory: Path) -> dict[str, dict[str, float]]:
    """For each finished arm of a study in `directory`, the means over its seeds.

    >>> measures(Path("runs/powergrad"))["base"]["logit_norm"]
    7.3
    """
    run = prepare_study(StudyConfig.load(directory / "config.yaml").model_copy(update={"resume": directory}))
    run.directory = directory
    arms = {"base": TrainingArm(), **run.config.training_arms()}
    if len(arms) == 1:
        raise UserError(f"{directory}: this study has no trainings; its arms are second-stage methods")
    places = [(arm, run.arm_directory(seed, arm)) for arm in arms for seed in run.config.seeds]
    found: dict[str, list[dict[str, float]]] = {}
    with progress("measuring", len(places), unit="networks") as advance:
        for arm, place in places:
            record = ArmRecord.read(place)
            if record is not None:
                values = _of_network(place, run.test, _alpha(arms[arm]))
                assert record.on_training is not None
                values |= {"train_accuracy": record.on_training["train_accuracy"], "volatility": _volatility(place)}
                found.setdefault(arm, []).append(values)
            advance()
    return {arm: _means(of_seeds) for arm, of_seeds in found.items()}


def _of_network(place: Path, test: Images, alpha: float) -> dict[str, float]:
    network: Any = load(place)
    logits = batched(network, network.preprocess, test.images).double()
    scores, labels = logits.numpy(), test.labels.numpy()
    at_z, at_alpha = (apply_temperature(scores, 1 / each, logits=True) for each in (1.0, alpha))
    centred = logits - logits.mean(dim=1, keepdim=True)
    return {
        "accuracy": float((logits.argmax(1) == test.labels).double().mean()),
        "logit_norm": float(torch.linalg.vector_norm(centred, dim=1).mean()),
        "dead_filters": float(sum(dead_filters(network).values())),
        **{
            f"{name}{suffix}": value
            for suffix, probabilities in (("", at_z), ("_alpha", at_alpha))
            for name, value in metrics.summarise(metrics.outcomes(probabilities, labels)).items()
            if name in ("nll", "ece")
        },
    }


def _volatility(place: Path) -> float:
    """The mean absolute change of the validation accuracy from epoch to epoch, in the second half of a training."""
    with open(place / "metrics.csv", newline="", encoding="utf-8") as lines:
        accuracies = [float(row["accuracy"]) for row in csv.DictReader(lines)]
    later = accuracies[len(accuracies) // 2 :]
    return statistics.fmean(abs(b - a) for a, b in itertools.pairwise(later)) if len(later) > 1 else 0.0


def _alpha(arm: TrainingArm) -> float:
    """The α that an arm's training ends with; a temperature T is α = 1/T."""
    for method in arm.methods:
        if method.name == "powergrad":
            alpha = method.options.get("alpha", 0.25)
            return float(alpha[-1] if isinstance(alpha, tuple) else alpha) or 1.0
        if method.name == "temperature":
            return 1 / float(method.options.get("temperature", 4.0))
    return 1.0


def _means(of_seeds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(each[name] for each in of_seeds) for name in of_seeds[0]}


def as_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The means as a Markdown table."""
    lines = [f"| arm | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for arm, values in found.items():
        cells = [f"{values[name]:.4g}" if name in values else "–" for name in COLUMNS]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and keep the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="a study of trainings")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    try:
        found = measures(options.directory)
        if options.out is not None:
            write_atomic(options.out, json.dumps(found, indent=1) + "\n")
    except UserError as error:
        print(f"training_measures: {error}", file=sys.stderr)
        return 2
    print(as_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
