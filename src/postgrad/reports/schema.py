"""The form of results.json, as pydantic models.

>>> results = read_results("runs/demo/results.json")
>>> results.arm("gradnet").metrics["accuracy"].mean
0.94

`python -m postgrad.reports.schema docs/results.schema.json` writes the JSON schema that the documentation holds.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from postgrad.errors import UserError, unknown_name
from postgrad.files import write_atomic

Interval = Annotated[tuple[float, float], Field(description="lower and upper end")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Metric(_Model):
    """One metric of one arm."""

    mean: float = Field(description="mean over the seeds")
    ci95: Interval | None = Field(description="95 % interval of the mean")
    ci_over: Literal["seeds", "images"] = Field(
        description="what the interval is over: seeds (Student's t), or the test images of one run (bootstrap)"
    )
    n_seeds: int = Field(ge=1)
    values: list[float] = Field(description="one value per seed")


class Cost(_Model):
    """What an arm costs; means over the seeds. Null where it was not measured."""

    train_cpu_seconds: float | None = Field(None, description="process CPU time of its own fitting, tuning included")
    total_cpu_seconds: float | None = Field(None, description="the same, with all that it stands on")
    train_seconds: float | None = Field(None, description="wall time of its own fitting")
    peak_memory_mb: float | None = Field(None, description="megabytes above the process before it began")
    parameters: int | None = Field(None, description="stored numbers that a prediction uses")
    inference_ms_per_image: float | None = Field(None, description="wall time, in batches")
    inference_passes: float | None = Field(None, description="forward or backward passes per image")


class Arm(_Model):
    """One classifier of the comparison."""

    name: str = Field(description="the name of its folder in the run directory")
    kind: Literal["base", "method", "control"]
    method: str | None = Field(None, description="the registered name of the method, for arms of kind method")
    control_for: list[str] = Field(default_factory=list, description="the methods that this arm is a control for")
    title: str | None = Field(None, description="a plain name for people, such as GradNet")
    description: str | None = Field(None, description="one sentence: what this arm is")
    notes: list[str] = Field(default_factory=list)
    metrics: dict[str, Metric]
    cost: Cost


class Verdict(_Model):
    """A method against one other arm."""

    method: str
    control: str
    metric: str
    difference: float = Field(description="method minus control")
    ci95: Interval | None = Field(description="95 % interval of the difference")
    p: float | None = Field(description="two-sided p; adjusted by Holm over the method's controls for paired-t")
    test: Literal["paired-t", "mcnemar"]
    scope: Literal["method", "run"] = Field(description="what the verdict is about: the method, or this run alone")
    verdict: Literal["better", "worse", "no difference", "too few seeds"]


class Data(_Model):
    """The data of the run."""

    name: str
    n_train: int
    n_validation: int
    n_test: int
    fingerprint: str = Field(description="the first 16 hexadecimal digits of a SHA-256 over images and labels")
    class_names: list[str] = Field(default_factory=list)
    shape: list[int] | None = Field(None, description="channels, height, width")
    preprocessing: str | None = Field(None, description="how pixels become what the network sees, in words")
    notes: list[str] = Field(default_factory=list)


class Results(_Model):
    """Everything that one run found: the content of results.json."""

    version: Literal[1] = Field(1, alias="schema")
    command: str
    data: Data
    seeds: list[int] = Field(min_length=1)
    arms: list[Arm] = Field(min_length=1)
    verdicts: list[Verdict]
    recommended: str | None = Field(None, description="the arm that the validation data recommends")
    started: str | None = Field(None, description="when the run began, ISO 8601")
    seconds: float | None = Field(None, description="wall time of the whole run")
    notes: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="after")
    def _names_exist(self) -> Results:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arm names must be unique, got {', '.join(names)}")
        used = {v.method for v in self.verdicts} | {v.control for v in self.verdicts}
        used |= {self.recommended} if self.recommended else set()
        if unknown := used - set(names):
            raise ValueError(f"no arm is called {', '.join(sorted(unknown))}")
        return self

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise unknown_name("arm", name, [arm.name for arm in self.arms])


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read and check a results.json."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; give a run that `postgrad improve` finished") from error
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise UserError(f"{path} is not a results.json of this version: {where}: {first['msg']}") from error


def write_results(results: Results, path: str | os.PathLike[str]) -> None:
    """Write results.json, whole or not at all."""
    write_atomic(path, results.model_dump_json(by_alias=True, indent=2) + "\n")


def json_schema() -> str:
    """The JSON schema of results.json, as text."""
    return json.dumps(Results.model_json_schema(by_alias=True), indent=2) + "\n"


if __name__ == "__main__":
    write_atomic(sys.argv[1], json_schema())
