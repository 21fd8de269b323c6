"""What is kept of a run beside the page of a ledger: all that a figure rests on, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from postgrad.files import write_atomic
from postgrad.studies.run import write_arrays
from postgrad.validation import read_yaml

KEPT = ("environment.json", "metrics.csv", "events.jsonl", "results.json")
"""Copied in this order: where results.json lies, all of it does."""

OF_A_SEARCH = ("lineage.json",)
"""Kept of a mutation search as well."""

OF_ONE_MACHINE = ("data_dir", "weights", "out", "bases", "base_targets")
"""Settings that hold paths of one machine, or belong to what lies there; the copy of config.yaml leaves them out."""


def keep_raw(run: Path, raw: Path) -> None:
    """Copy what a figure rests on: results, settings without paths, curves, events, and every arm's predictions."""
    settings = {key: value for key, value in read_yaml(run / "config.yaml").items() if key not in OF_ONE_MACHINE}
    write_atomic(raw / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    predicted: dict[str, Any] = {}
    records = []
    for file in sorted(run.rglob("arm.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        records.append(record)
        with np.load(file.parent / "test_predictions.npz") as arrays:
            predicted[f"{record['name']}-seed{record['seed']}"] = arrays["probabilities"].argmax(1).astype(np.uint8)
            predicted["labels"] = arrays["labels"].astype(np.uint8)
    write_atomic(raw / "arms.json", json.dumps(records, indent=1))
    write_arrays(raw / "predicted.npz", **predicted)
    for name in (*OF_A_SEARCH, *KEPT):
        if name in KEPT or (run / name).exists():
            write_atomic(raw / name, (run / name).read_bytes())
