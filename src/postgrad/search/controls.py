"""The controls of a mutation search, each for as many multiply-adds of training as the winner's lineage took.

control-finetune      the ancestor trained on
control-from-scratch  the winner's architecture and genes with new weights
control-random        as many mutations as led to the winner, each drawn, none selected
control-stacking      the ancestor grown evenly, by stacking, to about the winner's size, then trained

They are trained by the search's recipe, with one schedule over all of it. What the base's training took in the search
is charged to all. A control is a job, as a child is: one folder of the run, in which individual.json is written last.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.models.checkpoints import save
from postgrad.search.context import POPULATION, Context, Trained
from postgrad.search.curves import joined
from postgrad.search.fresh import drawn_anew
from postgrad.search.individual import Genes, Individual
from postgrad.search.jobs import TRAINING, Child, SearchJob, described
from postgrad.search.population import genes_of_child
from postgrad.search.presets import PRESETS
from postgrad.search.stacking import grow_evenly
from postgrad.studies.worker import PROGRESS, Refused
from postgrad.training import DivergedError

DRAWS = 50
"""How often each mutation of the random lineage is drawn, on average, until one can be carried out and trained."""

CURVE = "metrics.csv"


@dataclass(frozen=True)
class Made:
    """A control: its network, what its own training took, and whether it began with the base, trained as that was."""

    model: nn.Module
    trained: Trained
    genes: Genes
    description: str
    begins_with_base: bool = True
    operations: Sequence[str] = ()
    curve: str | None = None


@dataclass(frozen=True)
class Setting:
    """What controls are made from: the winner and its ancestors, the base first, and the control's own folder."""

    context: Context
    path: Sequence[Individual]
    directory: Path

    @property
    def base(self) -> Individual:
        return self.path[0]

    @property
    def winner(self) -> Individual:
        return self.path[-1]

    @property
    def behind_the_base(self) -> int:
        """Multiply-adds that the winner's lineage was trained for behind the base."""
        return self.winner.lineage_multiply_adds - self.base.lineage_multiply_adds

    def train(self, model: nn.Module, genes: Genes, multiply_adds: float) -> Trained:
        """Train a network in place for so many multiply-adds; where its folder holds a checkpoint it goes on."""
        return self.context.train(
            model,
            genes=genes,
            seed=self.context.config.seed,
            steps=self.context.steps_for(model, multiply_adds, genes),
            directory=self.directory / TRAINING,
            label=self.directory.name,
        )

    def curve(self, model: nn.Module, *before: Individual) -> str | None:
        """The learning curve of the training in the control's folder, behind those of what it stands on."""
        curves = [self.context.folder(each.name) / CURVE for each in before]
        sizes = [each.parameters for each in before]
        return joined([*curves, self.directory / TRAINING / CURVE], [*sizes, _size(model)])


@dataclass(frozen=True)
class Control:
    """The job that makes one control.

    >>> Control("control-finetune", winner.name).make(context)
    'control-finetune'
    """

    name: str
    winner: str

    @property
    def label(self) -> dict[str, Any]:
        """What events say of it."""
        return {"job": "control", "arm": self.name}

    @property
    def folder(self) -> str:
        """Where it is made, below the run's directory."""
        return self.name

    def make(self, context: Context) -> str:
        """Make it, or go on with it; its name. `UserError` says why one cannot be made."""
        setting = Setting(context, ancestors(context, self.winner), context.directory / self.folder)
        there = Individual.read(setting.directory)
        if there is not None and there.trained["winner"] != self.winner:  # of a search that went on
            shutil.rmtree(setting.directory)
            there = None
        if there is None:
            _keep(setting, self.name, CONTROLS[self.name](setting))
        return self.name


def control_jobs(winner: Individual) -> list[SearchJob]:
    """The controls of a search that found something; none where the base itself is the best.

    >>> [job.folder for job in control_jobs(winner)]
    ['control-finetune', 'control-from-scratch', 'control-random', 'control-stacking']
    """
    return [] if winner.parent is None else [Control(name, winner.name) for name in CONTROLS]


def ancestors(context: Context, name: str) -> list[Individual]:
    """The individual of that name and all that it descends from, the base first."""
    path = [context.individual(name)]
    while (parent := path[-1].parent) is not None:
        path.append(context.individual(parent))
    return path[::-1]


def _finetuned(setting: Setting) -> Made:
    model, genes = setting.context.network(setting.base.name), setting.base.genes
    trained = setting.train(model, genes, setting.behind_the_base)
    said = f"the ancestor trained on for {trained.steps} steps"
    return Made(model, trained, genes, said, curve=setting.curve(model, setting.base))


def _from_scratch(setting: Setting) -> Made:
    context, genes = setting.context, setting.winner.genes
    model = drawn_anew(context.network(setting.winner.name), context.config.seed)
    trained = setting.train(model, genes, setting.winner.lineage_multiply_adds)
    said = f"the winner's architecture and regularisation with new weights, trained for {trained.steps} steps"
    return Made(model, trained, genes, said, begins_with_base=False, curve=setting.curve(model))


def _stacked(setting: Setting) -> Made:
    context, genes = setting.context, setting.base.genes
    model = context.network(setting.base.name)
    grown = grow_evenly(
        model,
        context.example,
        depth=setting.winner.architecture.depth,
        parameters=setting.winner.parameters,
        seed=context.config.seed,
    )
    trained = setting.train(model, genes, setting.behind_the_base)
    words = [str(each.operation) for each in grown]
    said = f"the ancestor grown evenly to {_size(model):,} parameters, then trained for {trained.steps} steps"
    return Made(model, trained, genes, said, operations=words, curve=setting.curve(model, setting.base))


def _random(setting: Setting) -> Made:
    """Children of one another, each of a drawn mutation, whatever they are worth.

    They are made in a population of their own; what cannot be carried out or trained is drawn again.
    """
    context, base = replace(setting.context, directory=setting.directory), setting.base
    if Individual.read(context.folder(base.name)) is None:
        shutil.copytree(setting.context.folder(base.name), context.folder(base.name), dirs_exist_ok=True)
    wanted, drawn = len(setting.path) - 1, 0
    path = [base]
    while len(path) <= wanted:
        drawn += 1
        if drawn > DRAWS * wanted:
            raise UserError(f"control-random: none of {drawn - 1} mutations could be carried out and trained")
        child = _draw(context, path[-1], drawn, setting.behind_the_base / wanted)
        try:
            path.append(context.individual(child.make(context)))
        except (Refused, DivergedError):
            continue
    said = f"{', then '.join(each.mutation for each in path[1:])}: drawn, not selected"
    return Made(
        context.network(path[-1].name),
        _together(path[1:]),
        path[-1].genes,
        said,
        operations=[word for each in path for word in each.operations],
        curve=joined([context.folder(each.name) / CURVE for each in path], [each.parameters for each in path]),
    )


def _draw(context: Context, parent: Individual, number: int, multiply_adds: float) -> Child:
    config = context.config
    chances = PRESETS[config.preset].chances(parent, mutations=config.mutations)
    draw = np.random.default_rng([config.seed, number])
    mutation = str(draw.choice(list(chances), p=list(chances.values())))
    genes = genes_of_child(parent.genes, draw) if config.genes else parent.genes
    return Child(number, parent.name, mutation, genes, int(draw.integers(2**31)), multiply_adds=multiply_adds)


def _together(path: Sequence[Individual]) -> Trained:
    """What a chain of trainings came to and took."""
    last = path[-1]
    return Trained(
        accuracy=last.accuracy,
        nll=last.nll,
        loss=last.trained["loss"],
        steps=sum(each.trained["steps"] for each in path),
        epochs=sum(each.epochs for each in path),
        multiply_adds=sum(each.training_multiply_adds for each in path),
        cpu_seconds=sum(each.cpu_seconds for each in path),
        seconds=sum(each.seconds for each in path),
    )


CONTROLS: dict[str, Callable[[Setting], Made]] = {
    "control-finetune": _finetuned,
    "control-from-scratch": _from_scratch,
    "control-random": _random,
    "control-stacking": _stacked,
}
"""The name of a control, and of its folder -> what makes it."""


def _keep(setting: Setting, name: str, made: Made) -> None:
    """Write all that is kept of a control; individual.json comes last."""
    context, directory, trained = setting.context, setting.directory, made.trained
    save(made.model, directory, preprocess=context.preprocess, class_names=context.class_names)
    if made.curve is not None:
        write_atomic(directory / CURVE, made.curve)
    figures = {"accuracy": trained.accuracy, "nll": trained.nll}
    parent = setting.base if made.begins_with_base else None
    individual = described(
        context, 0, made.model, made.genes, figures=figures, trained=trained, parent=parent, mutation=name
    )
    replace(
        individual,
        name=name,
        operations=tuple(made.operations),
        trained={**individual.trained, "description": made.description, "winner": setting.winner.name},
    ).write(directory)
    (directory / PROGRESS).unlink(missing_ok=True)
    for left in (directory / TRAINING, directory / POPULATION):
        shutil.rmtree(left, ignore_errors=True)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
