"""results.json: round trip, the published JSON schema, and errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from postgrad.errors import UserError
from postgrad.reports import schema

METRIC = {"mean": 0.7, "ci95": [0.69, 0.71], "ci_over": "images", "n_seeds": 1, "values": [0.7]}
COST = {"train_cpu_seconds": 1.5, "total_cpu_seconds": 3.0, "train_seconds": 1.0, "peak_memory_mb": 50.0}
COST |= {"parameters": 1000, "inference_ms_per_image": 0.1, "inference_passes": 1}
DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "command": "postgrad improve",
    "data": {"name": "digits", "n_train": 100, "n_validation": 10, "n_test": 20, "fingerprint": "0123456789abcdef"},
    "seeds": [0],
    "arms": [
        {
            "name": "base",
            "kind": "base",
            "method": None,
            "control_for": [],
            "metrics": {"accuracy": METRIC},
            "cost": COST,
        },
        {
            "name": "gradnet",
            "kind": "method",
            "method": "gradnet",
            "control_for": [],
            "metrics": {"accuracy": METRIC},
            "cost": COST,
        },
    ],
    "verdicts": [
        {
            "method": "gradnet",
            "control": "base",
            "metric": "accuracy",
            "difference": 0.0,
            "ci95": [-0.01, 0.01],
            "p": 1.0,
            "test": "mcnemar",
            "scope": "run",
            "verdict": "no difference",
        }
    ],
}


def write(document: Any, folder: Path) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(document))
    return path


def test_reads_the_documented_form_and_writes_it_again(tmp_path: Path) -> None:
    results = schema.read_results(write(DOCUMENT, tmp_path))
    assert results.arm("gradnet").kind == "method"
    schema.write_results(results, tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["schema"] == 1
    assert again["arms"][0]["metrics"] == DOCUMENT["arms"][0]["metrics"]
    assert schema.read_results(tmp_path / "again.json") == results


def test_the_published_schema_is_current_and_accepts_what_is_written(tmp_path: Path) -> None:
    published = (Path(__file__).parents[2] / "docs/results.schema.json").read_text()
    assert published == schema.json_schema(), "run: python -m postgrad.reports.schema docs/results.schema.json"
    schema.write_results(schema.read_results(write(DOCUMENT, tmp_path)), tmp_path / "again.json")
    for document in (DOCUMENT, json.loads((tmp_path / "again.json").read_text())):
        jsonschema.validate(document, json.loads(published))


def test_the_published_schema_refuses_an_unknown_verdict() -> None:
    wrong = json.loads(json.dumps(DOCUMENT))
    wrong["verdicts"][0]["verdict"] = "great"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(schema.json_schema()))


def test_errors_name_the_place(tmp_path: Path) -> None:
    wrong = json.loads(json.dumps(DOCUMENT))
    del wrong["arms"][1]["metrics"]["accuracy"]["mean"]
    with pytest.raises(UserError, match=r"arms\.1\.metrics\.accuracy\.mean"):
        schema.read_results(write(wrong, tmp_path))


def test_a_verdict_on_an_unknown_arm_is_refused(tmp_path: Path) -> None:
    wrong = json.loads(json.dumps(DOCUMENT))
    wrong["verdicts"][0]["control"] = "control-finetune"
    with pytest.raises(UserError, match="no arm is called control-finetune"):
        schema.read_results(write(wrong, tmp_path))


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="postgrad improve"):
        schema.read_results(tmp_path / "results.json")


def test_not_json_is_said(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("{")
    with pytest.raises(UserError, match="of this version"):
        schema.read_results(path)


def test_no_number_is_infinite(tmp_path: Path) -> None:
    wrong = json.loads(json.dumps(DOCUMENT))
    wrong["arms"][0]["metrics"]["accuracy"]["mean"] = float("inf")
    with pytest.raises(UserError, match="finite"):
        schema.read_results(write(wrong, tmp_path))
