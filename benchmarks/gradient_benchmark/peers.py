"""The peers' per-sample gradients: an autograd loop, `torch.func`, BackPACK and Opacus.

Each gives the gradients of the weights alone (biases take no part), as [(N, numel), …] under one label, and under all
labels as parts of the batch, in pieces that suit it.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from postgrad.errors import UserError

Part = tuple[slice, list[Tensor]]
"""Some images of a batch, and their gradients [(n, L, numel), …] under L labels."""

_IMAGES_AT_ONCE = 5
"""The loop's rows are handed on for so few images that malloc keeps the memory of what follows, as it does not above
32 MiB."""


class Peer(Protocol):
    def one_label(self, inputs: Tensor, labels: Tensor) -> list[Tensor]: ...

    def all_labels(self, inputs: Tensor) -> Iterator[Part]: ...


class Loop:
    """One image at a time through `torch.autograd.grad`; the ten labels of an image share its forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.weights, self.classes = _weights_only(model)

    def one_label(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        rows = [weight.new_empty(len(inputs), weight.numel()) for weight in self.weights]
        for image in range(len(inputs)):
            loss = F.cross_entropy(self.model(inputs[image : image + 1]), labels[image : image + 1])
            for out, gradient in zip(rows, torch.autograd.grad(loss, self.weights), strict=True):
                out[image] = gradient.flatten()
        return rows

    def all_labels(self, inputs: Tensor) -> Iterator[Part]:
        for start in range(0, len(inputs), _IMAGES_AT_ONCE):
            part = slice(start, min(start + _IMAGES_AT_ONCE, len(inputs)))
            yield part, self._all_labels_of(inputs[part])

    def _all_labels_of(self, inputs: Tensor) -> list[Tensor]:
        rows = [weight.new_empty(len(inputs), self.classes, weight.numel()) for weight in self.weights]
        for image in range(len(inputs)):
            logits = self.model(inputs[image : image + 1])
            for label in range(self.classes):
                loss = F.cross_entropy(logits, torch.tensor([label], device=logits.device))
                gradients = torch.autograd.grad(loss, self.weights, retain_graph=label + 1 < self.classes)
                for out, gradient in zip(rows, gradients, strict=True):
                    out[image, label] = gradient.flatten()
        return rows


class Vmap:
    """`torch.func`: vmap(grad) under one label; under all labels either that ten times, or one forward and a vmapped
    vector-Jacobian product."""

    def __init__(self, model: nn.Module, *, share_forward: bool = False) -> None:
        self.model, _, self.classes = _weights_only(model)
        self.share_forward = share_forward
        tensors = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        self.weights = {name: tensor for name, tensor in tensors.items() if tensor.dim() >= 2}
        self.others = {name: tensor for name, tensor in tensors.items() if tensor.dim() < 2}

    def one_label(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        gradients = vmap(grad(self._loss), in_dims=(None, 0, 0))(self.weights, inputs, labels)
        return [gradient.flatten(1) for gradient in gradients.values()]

    def all_labels(self, inputs: Tensor) -> Iterator[Part]:
        if self.share_forward:
            gradients = vmap(self._under_all_labels)(inputs)
            yield slice(None), [gradient.flatten(2) for gradient in gradients.values()]
        else:
            yield from _label_by_label(self.one_label, inputs, self.classes)

    def _logits(self, weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(self.model, {**weights, **self.others}, (image[None],))[0]

    def _loss(self, weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(weights, image), label)

    def _under_all_labels(self, image: Tensor) -> dict[str, Tensor]:
        logits, pull_back = vjp(lambda weights: self._logits(weights, image), self.weights)  # type: ignore[misc]
        cotangents = logits.softmax(0) - torch.eye(self.classes, device=logits.device)
        return vmap(lambda cotangent: pull_back(cotangent)[0])(cotangents)


class BackPack:
    """BackPACK's `BatchGrad`; under all labels one forward and ten backward passes."""

    def __init__(self, model: nn.Module) -> None:
        from backpack import backpack, extend
        from backpack.extensions import BatchGrad

        copied, self.weights, self.classes = _weights_only(model)
        # BackPACK asks for modules in place of functions.
        self.model = extend(in_modules(copied))
        self._recording = lambda **options: backpack(BatchGrad(), **options)

    def one_label(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        with self._recording():
            return self._backward(self.model(inputs), labels, retain_graph=False)

    def all_labels(self, inputs: Tensor) -> Iterator[Part]:
        with self._recording(retain_graph=True):
            logits = self.model(inputs)
            for label in range(self.classes):
                labels = torch.full((len(inputs),), label, device=inputs.device)
                rows = self._backward(logits, labels, retain_graph=True)
                yield slice(None), [gradient.unsqueeze(1) for gradient in rows]

    def _backward(self, logits: Tensor, labels: Tensor, *, retain_graph: bool) -> list[Tensor]:
        F.cross_entropy(logits, labels, reduction="sum").backward(retain_graph=retain_graph)
        return _taken(self.weights, "grad_batch")


class Opacus:
    """Opacus's `GradSampleModule`; its backward pass lets go of the forward pass, so ten labels take ten of each."""

    def __init__(self, model: nn.Module) -> None:
        from opacus.grad_sample import GradSampleModule

        copied, self.weights, self.classes = _weights_only(model)
        # It records in training mode only, which for this network is the same function.
        self.model = GradSampleModule(copied.train(), loss_reduction="sum")

    def one_label(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        F.cross_entropy(self.model(inputs), labels, reduction="sum").backward()
        return _taken(self.weights, "grad_sample")

    def all_labels(self, inputs: Tensor) -> Iterator[Part]:
        yield from _label_by_label(self.one_label, inputs, self.classes)


PEERS: dict[str, Callable[[nn.Module], Peer]] = {"vmap": Vmap, "loop": Loop, "backpack": BackPack, "opacus": Opacus}


def make_peer(name: str, model: nn.Module, *, share_forward: bool) -> Peer:
    """A peer by name, on a copy of the model."""
    return Vmap(model, share_forward=share_forward) if name == "vmap" else PEERS[name](model)


def require_peers() -> None:
    """Refuse to start without the two libraries."""
    missing = [name for name in ("backpack", "opacus") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing, to compare with; install with: pip install 'postgrad[bench]'"
        )


def quieten() -> None:
    """Silence torch's word that the first layer's input needs no gradient, which two of the peers' hooks cause."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing")


def in_modules(model: nn.Module) -> nn.Sequential:
    """A seed-cnn as a chain of modules, with the same tensors."""
    return nn.Sequential(
        model.get_submodule("c0"),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        model.get_submodule("c1"),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        model.get_submodule("l1"),
    )


def _weights_only(model: nn.Module) -> tuple[nn.Module, list[nn.Parameter], int]:
    """A copy whose biases take no gradient, its weights, and the number of classes (of the last layer)."""
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() >= 2)
        parameter.grad = None
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, weights, len(weights[-1])


def _label_by_label(
    one_label: Callable[[Tensor, Tensor], list[Tensor]], inputs: Tensor, classes: int
) -> Iterator[Part]:
    for label in range(classes):
        rows = one_label(inputs, torch.full((len(inputs),), label, device=inputs.device))
        yield slice(None), [gradient.unsqueeze(1) for gradient in rows]


def _taken(weights: list[nn.Parameter], attribute: str) -> list[Tensor]:
    """The gradients that a library left at the weights, taken away from there together with the summed ones."""
    rows = []
    for weight in weights:
        rows.append(getattr(weight, attribute).flatten(1))
        setattr(weight, attribute, None)
        weight.grad = None
    return rows
