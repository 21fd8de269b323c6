"""What is remembered of one network of a search: where it comes from, what it costs, how well it does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from postgrad.files import write_atomic

FILE = "individual.json"


@dataclass(frozen=True)
class Genes:
    """Regularisation that a network is trained with; children inherit it, and it mutates with them.

    `weight_decay` is the optimizer's; `dropout` is that in front of the last layer while the network is trained;
    `output_penalty` is the factor of the mean square of each activation's output, which is added to the loss.
    """

    weight_decay: float = 5e-4
    dropout: float = 0.0
    output_penalty: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """What the chances of mutations hang on: convolutions and linear layers, poolings, shorter side of the images."""

    depth: int
    pools: int
    side: int


@dataclass(frozen=True)
class Individual:
    """One trained network. The base is number 0 and has no parent.

    `name` is a hash of its journal, genes and weights, and the name of its folder. `operations` are the words of what
    was done to its parent, as `postgrad grow` takes them. Accuracy and NLL are on validation images. `multiply_adds`
    are those of one prediction; `training_multiply_adds` all of its own training (three for each of a prediction and
    image seen), `lineage_multiply_adds` these and its ancestors', the base's training included where it was trained
    in the search. `max_error` is the largest of its certificates, None where nothing was grown; `exact` says whether
    all that was grown was.
    """

    name: str
    number: int
    parent: str | None
    mutation: str
    operations: tuple[str, ...]
    genes: Genes
    architecture: Architecture
    accuracy: float
    nll: float
    parameters: int
    multiply_adds: int
    latency_ms: float
    epochs: float
    training_multiply_adds: int
    lineage_multiply_adds: int
    cpu_seconds: float
    seconds: float
    max_error: float | None = None
    exact: bool = True
    trained: dict[str, Any] = field(default_factory=dict)
    """Figures of its training that are told, such as the last loss."""

    def write(self, directory: Path) -> None:
        """Write individual.json: from now on the network is finished."""
        write_atomic(directory / FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, directory: Path) -> Individual | None:
        """The individual of a folder, None where it is not finished."""
        file = directory / FILE
        return cls.of(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Individual:
        """What `asdict` made of one."""
        genes, architecture = Genes(**fields["genes"]), Architecture(**fields["architecture"])
        operations = tuple(fields["operations"])
        return cls(**{**fields, "operations": operations, "genes": genes, "architecture": architecture})
