"""Growth as part of one training: what it refuses, what is logged of it, and how large the network is at each look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from postgrad.changes import changes_of
from postgrad.errors import UserError
from postgrad.growth.at_work import GrowthAtWork
from postgrad.growth.operations import Grown
from postgrad.methods.at_work import MethodsAtWork
from postgrad.training import Recipe

EXAMPLES = 64
"""Images on which operators look at a network; normalisations that are put in take their statistics."""

Figures = Callable[[nn.Module], dict[str, float]]


def growth_at_work(
    model: nn.Module,
    stages: Mapping[int, Sequence[str]],
    methods: MethodsAtWork,
    *,
    recipe: Recipe,
    images: Tensor,
    inputs: Callable[[Tensor], Tensor],
    seed: int,
    event: Callable[..., None],
) -> list[GrowthAtWork]:
    """The companion of a training whose network grows; none where it does not.

    `images` (N, C, H, W) are those that it is trained on, `inputs` what the network sees of some, without augmentation;
    `event` writes one line of a log. Raises `UserError` for growth together with averages of weights, which would be of
    the network before it has grown.
    """
    if not stages:
        return []
    if methods.averages:
        raise UserError("growth: a mean of the weights is not carried over the growth of its network; leave one out")
    if methods.energy_model is not None:
        raise UserError("growth: an energy model goes back to states of the network before it has grown; leave one out")
    if methods.parameters:
        raise UserError(
            "growth: what the loss learns of a layer does not fit it once that has grown; take another kind"
        )

    def told(step: int, grown: Grown) -> None:
        event("grown", step=step, **as_event(grown))

    return [
        GrowthAtWork(
            model, stages, recipe=recipe, n=len(images), example=inputs(images[:EXAMPLES]), seed=seed, told=told
        )
    ]


def with_size(figures: Figures, model: nn.Module, *, grows: bool) -> Figures:
    """Figures of a network and, where it grows, how large it is and how often it has grown, for the learning curve.

    `model` is the network before its training, also where that goes on.
    """
    before = len(changes_of(model))

    def sized(network: nn.Module) -> dict[str, float]:
        parameters = sum(parameter.numel() for parameter in network.parameters())
        growths = len(changes_of(network)) - before
        return {**figures(network), "parameters": float(parameters), "growths": float(growths)}

    return sized if grows else figures


def as_event(grown: Grown) -> dict[str, Any]:
    """What a log says of one operator that was carried out."""
    return {
        "operation": str(grown.operation),
        "change": grown.change,
        "parameters": grown.parameters,
        "max_error": grown.certificate.max_error,
        "seconds": round(grown.seconds, 3),
    }
