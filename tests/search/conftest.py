"""A search so small that each of its networks takes a fraction of a second: some digits, three layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postgrad.search.config import SearchConfig
from postgrad.search.context import Context
from postgrad.search.controls import control_jobs
from postgrad.search.individual import Architecture, Genes, Individual
from postgrad.search.jobs import Base, Child

SMALL3 = f"{Path(__file__).parents[2] / 'recipes' / 'networks.py'}:small3"


def _tiny(**changes: Any) -> SearchConfig:
    settings: dict[str, Any] = {
        "model": SMALL3,
        "data": "digits",
        "limit": 200,
        "base_epochs": 1,
        "individuals": 2,
        "threads": 1,
    }
    return SearchConfig.model_validate(settings | changes)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., SearchConfig]:
    """Settings of such a search: `tiny(**changes)`."""
    return _tiny


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """What its jobs share."""
    return Context.of(_tiny(), tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="session")
def individual() -> Callable[..., Individual]:
    """A made-up one: `individual(number, **changes)`."""

    def make(number: int, **changes: Any) -> Individual:
        made = Individual(
            name=f"{number:012x}",
            number=number,
            parent=None if number == 0 else f"{0:012x}",
            mutation="" if number == 0 else "wider",
            operations=(),
            genes=Genes(),
            architecture=Architecture(depth=3, pools=2, side=32),
            accuracy=0.5 + number / 1000,
            nll=1.0,
            parameters=1000 + number,
            multiply_adds=5000,
            latency_ms=0.5,
            epochs=1.0,
            training_multiply_adds=10,
            lineage_multiply_adds=10,
            cpu_seconds=1.0,
            seconds=1.0,
        )
        return dataclasses.replace(made, **changes)

    return make


@dataclasses.dataclass(frozen=True)
class Bred:
    """A base, its child and its grandchild, which counts as the winner, and the controls of that."""

    context: Context
    path: tuple[Individual, ...]
    batch: int = 32

    @property
    def winner(self) -> Individual:
        return self.path[-1]


@pytest.fixture(scope="session")
def bred(tmp_path_factory: pytest.TempPathFactory) -> Bred:
    """Made once; whoever changes its folder puts it back."""
    directory = tmp_path_factory.mktemp("bred")
    training = {"steps": 6, "batch_size": Bred.batch}
    config = _tiny(training=training, base_epochs=0.5, preset="uniform", mutations=("deeper", "kernel"))
    context = Context.of(config, directory)
    names = [Base().make(context)]
    for number, mutation in ((1, "deeper"), (2, "kernel")):
        parent = context.individual(names[-1])
        names.append(Child(number, parent.name, mutation, parent.genes, seed=number).make(context))
    made = Bred(context, tuple(map(context.individual, names)))
    for job in control_jobs(made.winner):
        job.make(context)
    return made
