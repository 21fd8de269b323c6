"""What the estimators over a trained network's gradients share: their copy of it, its space, its images."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from postgrad.data.preprocessing import Preprocessing
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.gradients.low_rank import FactorSpace
from postgrad.gradients.names import weights_of
from postgrad.gradients.plan import trial_bytes
from postgrad.gradients.space import GradientSpace
from postgrad.units import format_memory, parse_memory

STATISTICS_BATCH = 100
"""Images that are preprocessed at a time for the statistics."""

_SPACE = ("select", "scope", "normalise", "exponent", "weight_decay", "project", "coordinates")


class OverNetwork:
    """Opens the gradient space that an estimator's own settings describe.

    `model_`, `device_`, `preprocess_`, `dtype_`, `image_shape_` and `space_` are set by `_open_space`.
    """

    model: nn.Module
    device_: torch.device
    dtype_: torch.dtype
    image_shape_: tuple[int, ...]
    preprocess_: Preprocessing

    def _open_space(self, example: Tensor, *, factors: bool = False) -> GradientSpace | FactorSpace:
        """Copy the model and open its gradient space, whose work may take what the copy leaves of `memory`.

        `factors` leaves the gradients unmultiplied, for functionals of low rank.
        """
        settings: dict[str, Any] = self.get_params(deep=False)  # type: ignore[attr-defined]
        self.device_ = pick_device(settings["device"])
        self.model_ = deepcopy(self.model).to(self.device_).eval().requires_grad_(True)
        self.preprocess_ = settings["preprocess"] or getattr(self.model, "preprocess", None) or Preprocessing()
        self.dtype_ = next(self.model_.parameters()).dtype
        self.image_shape_ = tuple(example.shape[1:])
        inputs, layers = self._inputs(example), settings["layers"]
        memory = parse_memory(settings["memory"]) - bytes_of(self.model_)
        needed = trial_bytes(self.model_, weights_of(self.model_, layers))
        if needed > memory:
            both = format_memory(needed + bytes_of(self.model_))
            raise UserError(
                f"a copy of the network and the trial of its gradients need {both}, more than "
                f"memory={settings['memory']!r}: raise memory, or choose fewer layers with layers=[...]"
            )
        if factors:
            return FactorSpace(self.model_, inputs, layers=layers, memory=memory)
        chosen = {name: settings[name] for name in _SPACE}
        return GradientSpace(self.model_, inputs, layers=layers, seed=settings["random_state"], memory=memory, **chosen)

    def _inputs(self, images: Tensor) -> Tensor:
        return self.preprocess_(images.to(self.device_)).to(self.dtype_)

    def _check_shape(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.image_shape_:
            raise UserError(
                f"images: expected (N, {', '.join(map(str, self.image_shape_))}) as in fit, got {tuple(images.shape)}"
            )


def bytes_of(model: nn.Module) -> int:
    """What a network's parameters and buffers take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
