"""Important edges: the weights of a network ranked by the gradients of many images, and trained alone.

Idea. An edge is important where the loss of single images depends on it: its importance is the mean over images of
|∂CE(f(x), y)/∂w|, each image's own gradient, so that images which pull in opposite directions do not cancel out.

Use. ``masks = important_edges(model, images, labels, top=0.1)`` ranks; ``with training_only(model, masks): …`` trains
the chosen edges and leaves every other weight as it was, bit for bit.

Cost. One forward and one backward pass for each image read, and one number for each weight. A step of training costs as
much as without masks; what shrinks is the optimizer's state.

When it fails. Images that the network has fitted hardly have a gradient: rank on images that it has not seen. A steep
loss says where training will act first, not what the network would be without that edge.

Paper. The poster "Improving Neural Networks using Gradient Space" (figure 1); arXiv 1807.06630. Licence or patent note:
none known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from postgrad.artifacts import read_manifest, read_tensors, save_tensors, write_manifest
from postgrad.data.inputs import image_tensor, label_tensor
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError, unknown_name
from postgrad.gradients.engine import GradientEngine
from postgrad.gradients.names import weight_names
from postgrad.gradients.space import ROWS_AT_ONCE
from postgrad.models.network import evaluating, taking
from postgrad.models.preprocessing import own_preprocessing
from postgrad.progress import progress
from postgrad.units import parse_memory

Masks = dict[str, Tensor]
"""A bool tensor of the weight's own shape for each weight, by parameter name; True is an edge that was chosen."""

Scope = Literal["layer", "global"]
SCOPES = ("layer", "global")
LABELS = ("true", "predicted", "random")

KIND = "edge-masks"
MASKS_FILE = "masks.safetensors"


def edge_importance(
    model: nn.Module,
    images: Any,
    labels: Any,
    *,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    memory: str = "2GB",
) -> dict[str, Tensor]:
    """The mean size of the gradient of cross-entropy in each weight, over single images.

    >>> edge_importance(model, images, labels)["c1.weight"].shape
    torch.Size([64, 64, 5, 5])

    Args:
        model: a network giving logits (N, C), taken in eval mode and left as it was.
        images: (N, C, H, W), uint8 or floats in [0, 1].
        labels: (N,) class indices, or "predicted" (the network's own answers), or "random" (drawn with `seed`).
        preprocess: what makes of images what the network sees; default the network's own, else pixels in [0, 1].
        memory: the working memory of the gradients; images are taken in chunks that fit, none is kept.

    Returns:
        For each weight of `edge_names(model)` a float32 tensor of its shape, on the CPU.

    Raises:
        UserError: images or labels that do not fit the network, a network that mixes the images of a batch, gradients
            that are not finite.
    """
    stored = image_tensor(images)
    names = edge_names(model)
    if not names:
        raise UserError("the network has no layer whose weight has two axes or more, so there are no edges to rank")
    weight = model.get_parameter(names[0])
    to_input = preprocess or own_preprocessing(model) or Preprocessing()

    def prepared(part: Tensor) -> Tensor:
        return to_input(part.to(weight.device)).to(weight.dtype)

    example = prepared(stored[:3])
    with evaluating(model), taking(model, example, stored):
        model(example)
    engine = GradientEngine(model, example, parameters=names, memory=parse_memory(memory))
    drawn = torch.Generator().manual_seed(seed)
    given = None if isinstance(labels, str) else label_tensor(labels, len(stored), engine.num_classes)

    def labels_of(x: Tensor, start: int) -> Tensor:
        if given is not None:
            return given[start : start + len(x)]
        if labels == "random":
            return torch.randint(engine.num_classes, (len(x),), generator=drawn)
        if labels == "predicted":
            with evaluating(model):
                return model(x).argmax(1)
        raise unknown_name("labels", labels, LABELS[1:])

    totals = {
        block.name: torch.zeros(block.numel, dtype=_exact(weight.device), device=weight.device)
        for block in engine.blocks
    }
    chunk = max(1, min(engine.images_per_chunk(torch.zeros(1)), ROWS_AT_ONCE))
    with progress("ranking edges", len(stored), unit="images") as advance:
        for start in range(0, len(stored), chunk):
            x = prepared(stored[start : start + chunk])
            for name, rows in engine.gradients(x, labels_of(x, start).to(x.device)):
                totals[name] += rows.abs_().sum(dim=0)
            advance(len(x))
    means = {block.name: (totals[block.name] / len(stored)).float().view(block.shape).cpu() for block in engine.blocks}
    for name, mean in means.items():
        if not mean.isfinite().all():
            raise UserError(f"the gradients of {name} are not finite; check the weights and the preprocessing")
    return means


def edge_names(model: nn.Module) -> list[str]:
    """Names of the weights whose entries are edges, in order: those of layers, with two axes or more.

    >>> edge_names(create_model("mlp", num_classes=10, image_size=8))
    ['l0.weight', 'l1.weight', 'l2.weight']

    No biases, no normalisation layers, and no tensors such as a transformer's position embedding, which belong to a
    module that only holds layers and are not called weight.
    """
    places = {name: _place(model, name) for name in weight_names(model)}
    return [
        name
        for name, (module, attribute) in places.items()
        if "weight" in attribute or next(module.children(), None) is None
    ]


def important_edges(
    model: nn.Module, images: Any, labels: Any, *, top: float = 0.1, scope: Scope = "layer", **ranking: Any
) -> Masks:
    """The edges with the largest mean gradient over some images, as masks.

    >>> masks = important_edges(model, images, labels, top=0.1)
    >>> masks["c1.weight"].shape, float(masks["c1.weight"].float().mean())
    (torch.Size([64, 64, 5, 5]), 0.1)

    `top` is the share that is chosen, above 0 and at most 1, of each layer or of all weights together (`scope` "layer"
    or "global"). The other arguments are those of `edge_importance`.
    """
    check_choice(top, scope)
    return top_edges(edge_importance(model, images, labels, **ranking), top=top, scope=scope)


def top_edges(scores: Mapping[str, Tensor], *, top: float, scope: Scope = "layer") -> Masks:
    """The share `top` of the entries with the highest scores, of each tensor or of all together; at least one.

    >>> top_edges({"l0.weight": torch.tensor([[1.0, 4.0], [3.0, 2.0]])}, top=0.5)
    {'l0.weight': tensor([[False,  True], [ True, False]])}

    Exactly round(top · size) entries are chosen; among equal scores the first come first. Scores can be anything: the
    mean gradient, the weights' absolute values, random numbers.
    """
    check_choice(top, scope)
    if scope == "layer":
        return {name: _highest(score.flatten(), top).view(score.shape) for name, score in scores.items()}
    chosen = _highest(torch.cat([score.flatten() for score in scores.values()]), top)
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def check_choice(top: float, scope: str) -> None:
    """Refuse a share or a scope that means nothing."""
    if not 0 < top <= 1:
        raise UserError(f"top: expected a share above 0 and at most 1 (10 % is 0.1), got {top:g}")
    if scope not in SCOPES:
        raise unknown_name("scope", scope, SCOPES)


@contextlib.contextmanager
def training_only(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Inside the block only the masked entries of the masked weights are parameters; all else is constant.

    >>> with training_only(model, masks):
    ...     optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.01, momentum=0.9)
    ...     train_as_always(model, optimizer)

    The chosen entries are one short vector for each weight, which the weight takes up again in each forward pass. So
    neither momentum nor weight decay reaches the others, and the optimizer keeps state for the chosen ones alone. Make
    the optimizer inside the block. Afterwards the weights are ordinary parameters again. Biases and everything else
    that is not masked do not take part; running statistics of normalisation layers follow the training as always.

    Raises `UserError` for unknown names, masks of another shape, masks that choose nothing, and a weight that several
    layers share.
    """
    _check_masks(model, masks)
    chosen = {name: mask for name, mask in masks.items() if mask.any()}
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    places = [_place(model, name) for name in chosen]
    orders = [list(module._parameters) for module, _ in places]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
        parameter.grad = None
    masked: list[tuple[nn.Module, str]] = []
    try:
        for (module, attribute), (name, mask) in zip(places, chosen.items(), strict=True):
            weight = model.get_parameter(name)
            parametrize.register_parametrization(module, attribute, _Entries(weight.detach(), mask))
            masked.append((module, attribute))
            weight.requires_grad_(True)
        yield model
    finally:
        for parameter, _ in flags:
            parameter.grad = None
        for module, attribute in masked:
            parametrize.remove_parametrizations(module, attribute)
        for (module, _), order in zip(places, orders, strict=True):
            for name in order:  # torch puts the weight behind the bias; the network's own order is part of what it was
                module._parameters[name] = module._parameters.pop(name)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def save_masks(masks: Mapping[str, Tensor], directory: Path, facts: Mapping[str, Any]) -> None:
    """Write masks.safetensors and, last, manifest.json with what `facts` says of them."""
    save_tensors(masks, directory / MASKS_FILE)
    write_manifest(directory, KIND, facts)


def load_masks(directory: str | Path) -> Masks:
    """The masks that `postgrad edges` wrote into a directory.

    >>> with training_only(model, load_masks("runs/edges")): ...
    """
    path = Path(directory).expanduser()
    read_manifest(path, KIND)
    return read_tensors(path / MASKS_FILE)


class _Entries(nn.Module):
    """A weight as a function of some of its entries, the others constant."""

    rest: Tensor
    where: Tensor

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("rest", weight.flatten().clone())
        self.register_buffer("where", mask.flatten().nonzero().squeeze(1).to(weight.device))
        self.shape = weight.shape

    def forward(self, entries: Tensor) -> Tensor:
        return self.rest.scatter(0, self.where, entries).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten()[self.where]


def _highest(scores: Tensor, share: float) -> Tensor:
    count = max(1, round(share * len(scores)))
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    mask[scores.sort(descending=True, stable=True).indices[:count]] = True
    return mask


def _exact(device: torch.device) -> torch.dtype:
    """float64, which sums over many images need, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise unknown_name("weight", name, parameters)
        weight = parameters[name]
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise UserError(
                f"mask of {name}: expected bool {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}; "
                "make masks for this network"
            )
        sharing = [other for other, parameter in parameters.items() if parameter is weight and other != name]
        if sharing:
            raise UserError(
                f"{name} is also {', '.join(sharing)}; the edges of a shared weight cannot be trained alone"
            )
    if not any(bool(mask.any()) for mask in masks.values()):
        raise UserError("the masks choose no edge, so there is nothing to train; choose a larger share")


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, attribute = name.rpartition(".")
    return model.get_submodule(module), attribute
