"""The run directory of one scored classifier: what `postgrad score --out` leaves for `postgrad report`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from postgrad.data.datasets import Dataset
from postgrad.evaluation.score import Scored
from postgrad.files import write_atomic
from postgrad.reports.schema import Arm, Cost, Data, Results, write_results
from postgrad.studies.environment import environment
from postgrad.studies.extras import SCORES
from postgrad.studies.prepare import EXAMPLES
from postgrad.studies.run import write_arrays

_IN_ARM = ("metrics", "temperature", "outside", "corruptions", "attacks")


def write_scored(
    directory: Path,
    scored: Scored,
    *,
    name: str,
    dataset: Dataset,
    n_validation: int,
    preprocessing: str | None,
    settings: Mapping[str, Any],
) -> None:
    """Write results.json with one arm, its test predictions and scores of confidence, the settings and the machine."""
    assert dataset.test is not None
    arm = _arm_name(name)
    write_arrays(directory / "examples.npz", images=dataset.test.images[:EXAMPLES])
    write_arrays(directory / arm / "test_predictions.npz", probabilities=scored.probabilities, labels=scored.labels)
    if scored.confidences:
        write_arrays(
            directory / arm / SCORES,
            **{key: values.astype(np.float32) for key, values in scored.confidences.items()},
        )
    write_atomic(directory / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False))
    write_atomic(directory / "environment.json", json.dumps(environment(), indent=1))
    document = scored.document
    results = Results(
        command=f"postgrad score --model {Path(name).name} --data {dataset.name}",
        data=Data(
            name=dataset.name,
            n_train=0 if dataset.train is None else len(dataset.train),
            n_validation=n_validation,
            n_test=len(dataset.test),
            fingerprint=dataset.fingerprint,
            class_names=list(dataset.class_names),
            shape=list(dataset.shape),
            preprocessing=preprocessing,
            notes=list(dataset.notes),
        ),
        seeds=[0],
        arms=[
            Arm(
                name=arm,
                kind="base",
                cost=Cost(**document["cost"]),
                **{key: document[key] for key in _IN_ARM if key in document},
            )
        ],
        verdicts=[],
        notes=document.get("notes", []),
    )
    write_results(results, directory / "results.json")


def _arm_name(model: str) -> str:
    """A folder's name for `runs/demo/gradnet` (gradnet), `network.onnx` (network) or `torchvision:resnet18`."""
    last = Path(model).expanduser().resolve()
    return re.sub(r"[^\w.-]+", "-", last.name.removesuffix(".pt2").removesuffix(".onnx")) or "classifier"
