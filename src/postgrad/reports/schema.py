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

    train_cpu_seconds: float | None = Field(
        None,
        description="process CPU time of its own fitting, tuning included; where trainings are compared, of the "
        "training at the rate that was chosen",
    )
    total_cpu_seconds: float | None = Field(None, description="the same, with all that it stands on")
    train_seconds: float | None = Field(None, description="wall time of its own fitting")
    peak_memory_mb: float | None = Field(None, description="megabytes above the process before it began")
    parameters: int | None = Field(None, description="stored numbers that a prediction uses")
    inference_ms_per_image: float | None = Field(None, description="wall time, in batches")
    inference_passes: float | None = Field(None, description="forward or backward passes per image")
    multiply_adds: float | None = Field(None, description="multiply-adds of a prediction, per image")
    lineage_multiply_adds: float | None = Field(
        None, description="multiply-adds of a search's trainings that it stands on, its own included"
    )
    latency_ms_1: float | None = Field(None, description="wall time of one call with one image, warm, median")
    latency_ms_256: float | None = Field(None, description="the same with 256 images")
    inference_memory_mb: float | None = Field(None, description="megabytes that a prediction of 256 images adds")
    file_bytes: int | None = Field(None, description="size of the saved classifier")


class OutsideScore(_Model):
    """How well one score of confidence tells the test images from those of another data set."""

    data: str = Field(description="the other data set")
    score: Literal["max_softmax", "max_logit", "energy", "gradient_norm"]
    matching: str = Field(description="how its images were made to match in size and channels, in words")
    n: int = Field(description="images of the other data set")
    metrics: dict[str, Metric] = Field(description="auroc, aupr_in, aupr_out, fpr95")


class CorruptionScore(_Model):
    """The scorecard on test images that were made worse in one way."""

    corruption: str
    severity: int = Field(ge=1, le=6, description="1 to 5; the Mapper paper's corruptions have 6")
    metrics: dict[str, Metric] = Field(description="accuracy, nll, ece; kept: accuracy over that on clean images")


class AttackScore(_Model):
    """Accuracy under one attack."""

    attack: str
    norm: Literal["linf", "l2"]
    epsilon: float = Field(description="the largest change that the attack may make, pixels from 0 to 1")
    n: int = Field(description="attacked images")
    metrics: dict[str, Metric] = Field(description="accuracy before and robust_accuracy after the attack")


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
    temperature: list[float] | None = Field(None, description="per seed, as fitted on validation images")
    outside: list[OutsideScore] = Field(default_factory=list)
    corruptions: list[CorruptionScore] = Field(default_factory=list)
    attacks: list[AttackScore] = Field(default_factory=list)


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
    n_seeds: int | None = Field(None, description="seeds that both have")
    detectable: float | None = Field(
        None, description="the smallest true difference that this many seeds would have found in 80 % of studies"
    )
    wilcoxon_p: float | None = Field(None, description="two-sided p of Wilcoxon's signed-rank test over seeds")
    mcnemar_p: list[float] | None = Field(None, description="McNemar's exact p on the test images, per seed")
    bootstrap_ci95: Interval | None = Field(
        None, description="95 % interval of the mean difference over the test images, the seeds as they are"
    )
    notes: list[str] = Field(default_factory=list, description="what the reader must know of these figures")


class Failure(_Model):
    """An arm of a seed that did not come to its end."""

    arm: str
    seed: int
    reason: str = Field(description="one line")


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


class LineageNode(_Model):
    """One trained network of a mutation search; accuracies are on validation images."""

    name: str = Field(description="a hash of its growth, genes and weights, and the name of its folder")
    number: int = Field(ge=0, description="in the order of proposals, refused ones counted; the base is 0")
    parent: str | None = Field(description="the name of the network that it was grown from; null for the base")
    mutation: str
    operations: list[str] = Field(description="what was done to its parent, as `postgrad grow` takes it")
    accuracy: float
    parameters: int
    multiply_adds: int = Field(description="multiply-adds of a prediction, per image")
    lineage_multiply_adds: int = Field(description="multiply-adds of its training and its ancestors'")
    latency_ms: float = Field(description="wall time of a prediction, as the search measures it")
    max_error: float | None = Field(description="the largest of its certificates; null where nothing was grown")
    exact: bool = Field(description="whether all that was grown keeps what the parent computes")
    seconds: float = Field(ge=0, description="when it was finished, in seconds of the search")
    population_accuracy: float = Field(description="mean over the population once it was taken in")
    refused: dict[str, int] = Field(
        default_factory=dict, description="mutations of it that were refused before any training, and how often"
    )
    winner: bool = Field(False, description="whether it is the network that the search gives")


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
    failures: list[Failure] = Field(default_factory=list)
    lineage: list[LineageNode] = Field(
        default_factory=list, description="all networks of a mutation search, parents before their children"
    )

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

    @model_validator(mode="after")
    def _parents_come_first(self) -> Results:
        seen: set[str | None] = {None}
        for node in self.lineage:
            if node.parent not in seen or node.name in seen:
                raise ValueError(f"lineage: {node.name} is there twice, or its parent {node.parent} not before it")
            seen.add(node.name)
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
