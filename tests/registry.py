"""The methods under test, each in the smallest setting that shows it at work; one battery runs on all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from postgrad.methods.registry import METHODS


@dataclass(frozen=True)
class SecondStage:
    """A method of shape "second stage": `make` gives an unfitted estimator over a trained network."""

    make: Callable[[nn.Module], Any]
    drawn: bool = True
    """Whether anything in it is drawn at random, so that another seed makes another classifier."""


def _gradnet(model: nn.Module) -> Any:
    from postgrad import GradNet

    return GradNet(model, epochs=1, batch_size=10, random_state=0)


def _mapper(model: nn.Module) -> Any:
    from postgrad.methods.mapper import MapperClassifier

    return MapperClassifier(model, n_components=3, n_intervals=4, epochs=2, hidden=(8,))


def _knn(model: nn.Module) -> Any:
    from postgrad.methods.mapper_controls import NearestNeighbours

    return NearestNeighbours(model)


def _pca_mlp(model: nn.Module) -> Any:
    from postgrad.methods.mapper_controls import CoordinatesMLP

    return CoordinatesMLP(model, n_components=3, epochs=2, hidden=(8,))


SECOND_STAGE: dict[str, SecondStage] = {
    "gradnet": SecondStage(_gradnet),
    "mapper": SecondStage(_mapper),
    "knn": SecondStage(_knn, drawn=False),
    "pca_mlp": SecondStage(_pca_mlp),
}

assert set(SECOND_STAGE) == {name for name, method in METHODS.items() if method.shape == "second stage"}, (
    "every second-stage method of the registry needs an entry here"
)
