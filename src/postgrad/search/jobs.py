"""What workers of a search make: the base, and children of individuals; each is one folder of the population."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from postgrad.errors import UserError
from postgrad.files import disk_errors, write_atomic
from postgrad.growth.journal import journal_of
from postgrad.growth.operations import Grown, grow
from postgrad.growth.words import Operation
from postgrad.models.checkpoints import save
from postgrad.search.context import POPULATION, Context, Trained
from postgrad.search.feasible import check_feasible
from postgrad.search.individual import Genes, Individual
from postgrad.search.mutations import mutation_named
from postgrad.search.parent import Infeasible, Limits, Parent, architecture_of
from postgrad.studies.worker import PROGRESS, Refused

TRAINING = "training"
"""The folder, inside one that is being made, of the checkpoint."""

CERTIFICATES = "certificates.json"

NAME_LENGTH = 12
"""Hexadecimal digits of an individual's name."""


class SearchJob(Protocol):
    """What can be made in any process of a search: it must survive pickling, and find all else in the context."""

    @property
    def label(self) -> dict[str, Any]:
        """What events say of it."""
        ...

    @property
    def folder(self) -> str:
        """Where it is made, below the run's directory."""
        ...

    def make(self, context: Context) -> str:
        """Make it, or go on with it; the name of what was made. Raises `Refused` where there is nothing to make."""
        ...


@dataclass(frozen=True)
class Base:
    """The ancestor of all: the user's network as it is, or one that is trained from new weights."""

    number: int = 0

    @property
    def label(self) -> dict[str, Any]:
        return {"job": "base", "number": self.number}

    @property
    def folder(self) -> str:
        return task_folder(self.number)

    def make(self, context: Context) -> str:
        if (there := finished(context.directory, self.number)) is not None:
            return there.name
        config, genes = context.config, context.first_genes()
        if context.own is not None:
            return _keep(context, self.number, context.own, genes)
        model = context.fresh(config.seed)
        trained = context.train(
            model,
            genes=genes,
            seed=config.seed,
            epochs=config.base_epochs,
            directory=context.directory / self.folder / TRAINING,
            label="base",
        )
        return _keep(context, self.number, model, genes, trained=trained)


@dataclass(frozen=True)
class Child:
    """A network mutated from its parent, which it inherits the weights of, and then trained.

    With `multiply_adds` its training takes about so many, in place of the length that the settings say.
    """

    number: int
    parent: str
    mutation: str
    genes: Genes
    seed: int
    multiply_adds: float | None = None

    @property
    def label(self) -> dict[str, Any]:
        return {"job": "child", **asdict(self)}

    @property
    def folder(self) -> str:
        return task_folder(self.number)

    def make(self, context: Context) -> str:
        if (there := finished(context.directory, self.number)) is not None:
            return there.name
        model, parent = context.network(self.parent), context.individual(self.parent)
        try:
            operations = self._operations(context, model, parent)
            grown = grow(model, operations, example=context.example, seed=self.seed)
            _check_price(context, model)
        except (Infeasible, UserError) as error:
            shutil.rmtree(context.directory / self.folder, ignore_errors=True)
            raise Refused(str(error)) from error
        trained = context.train(
            model,
            genes=self.genes,
            seed=self.seed,
            steps=None if self.multiply_adds is None else context.steps_for(model, self.multiply_adds, self.genes),
            directory=context.directory / self.folder / TRAINING,
            label=f"child {self.number} ({self.mutation})",
        )
        return _keep(
            context,
            self.number,
            model,
            self.genes,
            trained=trained,
            parent=parent,
            mutation=self.mutation,
            operations=operations,
            grown=grown,
        )

    def _operations(self, context: Context, model: nn.Module, parent: Individual) -> list[Operation]:
        """What the mutation draws, if it can be: decided before anything is grown or trained."""
        limits = Limits(parameters=context.config.max_parameters)
        seen = Parent(model, context.example, parent.architecture, limits)
        operations = mutation_named(self.mutation)(seen, np.random.default_rng(self.seed))
        check_feasible(seen, operations)
        return operations


def _check_price(context: Context, model: nn.Module) -> None:
    """Refuse a network, before any training, that takes more for an image than it may."""
    most, takes = context.config.max_multiply_adds, context.multiply_adds(model)
    if most is not None and takes > most:
        raise Infeasible(f"it would take {takes} multiply-adds for an image; the limit is {most:.0f}")


def task_folder(number: int) -> str:
    """Where the individual of a number is while it is being made."""
    return f"{POPULATION}/.task-{number}"


def finished(directory: Path, number: int) -> Individual | None:
    """The individual of that number, if a process finished it and died before it could say so."""
    return next((each for each in individuals(directory) if each.number == number), None)


def individuals(directory: Path) -> list[Individual]:
    """All finished individuals of a run, by number."""
    found = [Individual.read(folder) for folder in (directory / POPULATION).glob("[0-9a-f]*")]
    return sorted((each for each in found if each is not None), key=lambda each: each.number)


def name_of(model: nn.Module, genes: Genes) -> str:
    """A hash of the network's journal and weights, and of its genes."""
    digest = hashlib.sha256(json.dumps([journal_of(model), asdict(genes)], sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()[:NAME_LENGTH]


def described(
    context: Context,
    number: int,
    model: nn.Module,
    genes: Genes,
    *,
    figures: Mapping[str, float],
    trained: Trained | None = None,
    parent: Individual | None = None,
    mutation: str = "",
    operations: Sequence[Operation] = (),
    grown: Sequence[Grown] = (),
) -> Individual:
    """All that is remembered of a network; `figures` are its validation accuracy and NLL."""
    measured = context.measure(model)
    own = trained.multiply_adds if trained else 0
    errors = [each.certificate.max_error for each in grown if each.certificate.exact]
    return Individual(
        name=name_of(model, genes),
        number=number,
        parent=parent.name if parent else None,
        mutation=mutation,
        operations=tuple(map(str, operations)),
        genes=genes,
        architecture=architecture_of(model, context.example),
        accuracy=figures["accuracy"],
        nll=figures["nll"],
        parameters=measured.parameters,
        multiply_adds=measured.multiply_adds,
        latency_ms=measured.latency_ms,
        epochs=trained.epochs if trained else 0.0,
        training_multiply_adds=own,
        lineage_multiply_adds=own + (parent.lineage_multiply_adds if parent else 0),
        cpu_seconds=trained.cpu_seconds if trained else 0.0,
        seconds=trained.seconds if trained else 0.0,
        max_error=max(errors, default=None),
        exact=all(each.certificate.exact for each in grown),
        trained={"loss": trained.loss, "steps": trained.steps} if trained else {},
    )


def _keep(
    context: Context,
    number: int,
    model: nn.Module,
    genes: Genes,
    *,
    trained: Trained | None = None,
    grown: Sequence[Grown] = (),
    **origin: Any,
) -> str:
    """Write all that is kept of a network, and give its folder its name: it is finished."""
    figures = context.validate(model) if trained is None else {"accuracy": trained.accuracy, "nll": trained.nll}
    individual = described(context, number, model, genes, figures=figures, trained=trained, grown=grown, **origin)
    task, place = context.directory / task_folder(number), context.folder(individual.name)
    save(model, task, preprocess=context.preprocess, class_names=context.class_names)
    write_atomic(task / CERTIFICATES, json.dumps([asdict(each.certificate) for each in grown]))
    if trained is not None:
        write_atomic(task / "metrics.csv", (task / TRAINING / "metrics.csv").read_bytes())
    individual.write(task)
    (task / PROGRESS).unlink(missing_ok=True)
    with disk_errors(place):
        os.replace(task, place)
    shutil.rmtree(place / TRAINING, ignore_errors=True)  # only now: until it is finished, it can go on from there
    return individual.name
