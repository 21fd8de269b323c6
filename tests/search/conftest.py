"""A search so small that each of its networks takes a fraction of a second: some digits, three layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postgrad.search.config import SearchConfig
from postgrad.search.context import Context
from postgrad.search.individual import Architecture, Genes, Individual

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
