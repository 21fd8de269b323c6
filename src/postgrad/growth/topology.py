"""Other paths through a network that leave what it computes as it is: branches, skip connections, groups, dropout.

Idea. A module f is also Σ αᵢ·fᵢ with copies fᵢ and Σ αᵢ = 1, or its rows in several layers side by side; what is new at
a factor of zero adds nothing yet. All of these factors are learned.

Cost. As many times the work as there are ways. When it fails. Copies are drawn apart by their different factors alone,
which an optimizer that divides by the size of gradients (Adam) takes away again: the two halves of a branch then stay
alike but for dropout; "gated" branches do not. A part that torch.utils.checkpoint runs
a second time has to hold both ends of a skip connection, or only where it begins; otherwise that run is refused.

Paper. H. Cai, J. Yang, W. Zhang, S. Han, Y. Yu, "Path-Level Network Transformation", arXiv 1806.02639 (replicate and
add, split and concatenate); T. Wei, C. Wang, Y. Rui, C. Chen, "Network Morphism", arXiv 1603.01670. Licence or patent
note: Apache-2.0; none known.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from postgrad.errors import UserError, unknown_name
from postgrad.growth._calls import certified, check_own_weight, drawn, join_groups
from postgrad.growth._places import Example, Place, place, places
from postgrad.growth.beside import MOST_WAYS, Concatenation, Splittable, Sum, resize_rows
from postgrad.growth.blocks import insert
from postgrad.growth.certificate import Certificate, Witness
from postgrad.growth.depth import Init, put_layer
from postgrad.growth.moves import Along, Move
from postgrad.growth.transaction import transaction
from postgrad.growth.transfer import Averages, transfer
from postgrad.methods._surgery import optimizer_follows

_CONCENTRATION = 10.0
"""Of the Dirichlet distribution of the shares of a sum's ways."""
_PARTS = 256
"""Shares are whole multiples of 1/256: in every dtype, bfloat16 too, they then sum to 1 exactly."""


def branch(
    model: nn.Module,
    layer: str,
    *,
    example: Example,
    ways: int = 2,
    kind: Literal["add", "concat", "gated"] = "add",
    optimizer: Optimizer | None = None,
    averages: Averages = (),
    seed: int = 0,
) -> Certificate:
    """Make several ways of one module, in place, without changing what the network computes; in training mode too.

    >>> branch(model, "layer3.0", ways=3, example=images).mode
    'train'

    The module stays under its name; what is put beside it are children of its new child `branches`.

    Parameters
    ----------
    model : the network; its hooks, the names of its parameters and its training mode survive.
    layer : the dotted name of a module that runs once in a forward pass and gives one tensor; it gets all of its
        arguments, and so do its copies.
    example : what the network takes, (N, …), or a tuple of its arguments; its certificate is measured on it.
    ways : how many there are afterwards, the module's own among them.
    kind : "add" (default) is Σ αᵢ·fᵢ(x) of copies with learned α, drawn from Dirichlet(10). "concat" divides the rows
        of a convolution or linear layer among layers of their own, whose outputs are joined. "gated" adds copies that
        are drawn anew, at a learned factor of 0.
    optimizer : trains the new parameters as well, in the groups of those that they are copies of.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).
    seed : of the draw of α or of the new weights.

    `UserError`, network and optimizer left as they were: no such module; one that runs never or several times, or gives
    no single tensor; for "concat", one that is no dense convolution or linear layer or has fewer rows than ways.
    Source: arXiv 1806.02639.
    """
    if kind not in ("add", "concat", "gated"):
        raise unknown_name("kind of branch", str(kind), ("add", "concat", "gated"))
    if type(ways) is not int or not 2 <= ways <= MOST_WAYS:
        raise UserError(f"ways: a module is branched 2 to {MOST_WAYS} ways, not {ways}")
    where = place(model, layer, example)
    arguments = {"layer": layer, "ways": ways, "kind": kind, "seed": seed}
    if kind == "concat":
        return _split_rows(model, where, arguments, example, optimizer, averages)
    witness = Witness.of(model, example)
    with transaction(model, optimizer), optimizer_follows(model, optimizer) as heir_of:
        originals = dict(where.module.named_parameters())
        written = _write_in_place_no_more(where.module)
        options = {"kind": kind, "sizes": ways}
        with drawn(seed):
            name = insert(model, layer, "branches", options)
        total = model.get_submodule(name)
        assert isinstance(total, Sum)
        join_groups(heir_of, total, where.module)
        of = {new: originals[path] for copied in total.copies for path, new in copied.named_parameters()}
        heir_of |= of
        if kind == "add":
            with torch.no_grad():
                total.weights.copy_(_shares(ways, seed))
        share = total.weights[0].item()
        all_ways = [layer, *(f"{name}.copies.{number}" for number in range(ways - 1))]
        entry = {
            "operator": "branch",
            "arguments": arguments,
            "attributes": {f"{way}{path}": {"inplace": False} for way in all_ways for path in written},
            "insertions": [{"into": layer, "block": "branches", "options": options}],
        }
        return certified(
            model,
            witness,
            entry,
            train=True,
            # Not the shares alone: behind them, a normalisation may hide the size of the sum.
            changed=[f"{name}.{path}" for path, _ in total.named_parameters()],
            moves=[_of_share(each, share) for each in originals.values()],
            averages=averages,
            copies=[Move(old, new, ()) for new, old in of.items()] if kind == "add" else (),
        )


def add_skip(
    model: nn.Module,
    source: str,
    target: str,
    *,
    example: Example,
    optimizer: Optimizer | None = None,
    averages: Averages = (),
    seed: int = 0,
) -> Certificate:
    """Add a skip connection, in place, without changing what the network computes; in training mode too.

    >>> add_skip(model, "layer1", "layer3", example=images).mode
    'train'

    What `target` gives becomes f(x) + s·P(what `source` gives), s learned and 0 at the start. (An activation that works
    in place on the source's output has then been applied to it.) P is the identity where both are of one shape.
    Otherwise it pools images of (N, C, …) to the sides of the target's (to one number a channel where that is (N, C)),
    and maps another number of channels by a 1×1 convolution or linear layer without bias.

    Parameters
    ----------
    model : the network; its hooks, the names of its parameters and its training mode survive.
    source, target : dotted names of modules that run once in a forward pass, the source first, and give one tensor
        each.
    example : what the network takes, (N, …), or a tuple of its arguments; its certificate is measured on it.
    optimizer : trains the new parameters as well, in the groups of the target's.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).
    seed : of the draw of P.

    `UserError`, network and optimizer left as they were: no such module; one that runs never or several times, or gives
    no single tensor; a target that is done before the source; shapes between which no P leads.
    Source: arXiv 1603.01670.
    """
    begin, end = places(model, (source, target), example)
    if begin.at >= end.at:
        raise UserError(f"'{target}' is done before '{source}', so nothing can lead there from it; exchange them")
    options = {"source": source, **_projection(begin, end)}
    witness = Witness.of(model, example)
    with transaction(model, optimizer), optimizer_follows(model, optimizer) as heir_of:
        with drawn(seed):
            name = insert(model, target, "skip", options)
        join_groups(heir_of, model.get_submodule(name), end.module)
        insertion = {"into": target, "block": "skip", "options": options}
        arguments = {"source": source, "target": target, "seed": seed}
        entry = {"operator": "add_skip", "arguments": arguments, "insertions": [insertion]}
        return certified(model, witness, entry, train=True, changed=[f"{name}.gate"], averages=averages)


def insert_group(
    model: nn.Module,
    after: str,
    *,
    groups: int,
    example: Example,
    init: Init = "identity",
    optimizer: Optimizer | None = None,
    averages: Averages = (),
    seed: int = 0,
) -> Certificate:
    """Put a grouped 3×3 convolution with ReLU behind a module, in place, without changing what the network computes.

    >>> insert_group(model, "layer2", groups=4, example=images)

    It is normalised where the network has batch normalisation.

    Parameters
    ----------
    model : the network; its hooks, the names of its parameters and its training mode survive.
    after : the dotted name of a module that runs once in a forward pass and gives images (N, C, …).
    groups : divides their channels.
    example : what the network takes, (N, …), or a tuple of its arguments; its certificate is measured on it.
    init : "identity" (default) starts as `deepen(…, kind="identity")` does, with the same rules on gates and modes;
        "noise" as the identity with small noise where its weights are zero, behind a gate, (1 − a)·f(x) + a·x with a =
        1; "random" is drawn by torch's default, x + a·f(x) with a = 0. The last two are exact in training mode too.
    optimizer : trains the new parameters as well, in the groups of those of the module.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).
    seed : of the draw of the new weights.

    `UserError`, network and optimizer left as they were: no such module; one that runs never or several times, or gives
    no images; groups that do not divide their channels.
    """
    where = place(model, after, example)
    if not where.spatial:
        raise UserError(f"'{after}' gives {tuple(where.output.shape)}; a convolution takes images (N, C, …)")
    if type(groups) is not int or groups < 1 or where.features % groups:
        raise UserError(f"groups: {groups} do not divide the {where.features} channels of '{after}'; give a divisor")
    arguments = {"after": after, "groups": groups, "init": init, "seed": seed}
    return put_layer(
        model,
        where,
        "insert_group",
        arguments,
        example=example,
        optimizer=optimizer,
        averages=averages,
        seed=seed,
        groups=groups,
        init=init,
    )


def insert_dropout(model: nn.Module, after: str, *, p: float, example: Example, averages: Averages = ()) -> Certificate:
    """Put dropout behind a module, in place; what the network computes in evaluation mode stays.

    >>> insert_dropout(model, "layer2", p=0.1, example=images).mode
    'eval'

    Parameters
    ----------
    model : the network; its hooks, parameters and training mode survive.
    after : the dotted name of a module that runs once in a forward pass and gives one tensor.
    p : the probability of each number to be zeroed, at least 0 and below 1.
    example : what the network takes, (N, …), or a tuple of its arguments; its certificate is measured on it.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).

    `UserError`, the network left as it was: no such module; one that runs never or several times, or gives no single
    tensor; another p.
    """
    if not 0 <= p < 1:
        raise UserError(f"p: expected a probability of at least 0 and below 1, got {p}")
    place(model, after, example)
    witness = Witness.of(model, example, train=False)
    with transaction(model):
        options = {"p": float(p)}
        insert(model, after, "dropout", options)
        insertion = {"into": after, "block": "dropout", "options": options}
        entry = {"operator": "insert_dropout", "arguments": {"after": after, "p": float(p)}, "insertions": [insertion]}
        return certified(model, witness, entry, train=False, changed=[], averages=averages)


def _write_in_place_no_more(module: nn.Module) -> list[str]:
    """Let no activation write into what a module is given, since its copies are given the same; returns which did."""
    written = [name for name, each in module.named_modules() if getattr(each, "inplace", False) is True]
    for name in written:
        module.get_submodule(name).inplace = False  # type: ignore[assignment]
    return [f".{name}" if name else "" for name in written]


def _split_rows(
    model: nn.Module,
    where: Place,
    arguments: dict[str, Any],
    example: Example,
    optimizer: Optimizer | None,
    averages: Averages,
) -> Certificate:
    layer, name, ways = where.module, where.name, arguments["ways"]
    if not isinstance(layer, Splittable) or getattr(layer, "groups", 1) != 1:
        raise UserError(f"'{name}' is {layer}; only a dense convolution or a linear layer can be split by rows")
    if next(layer.children(), None) is not None:
        raise UserError(f"'{name}' has been grown by blocks of its own already; split a layer by rows before that")
    check_own_weight(model, name, layer)
    rows = len(layer.weight)
    if rows < ways:
        raise UserError(f"ways: the {rows} rows of '{name}' cannot be split into {ways}; give at most {rows}")
    parts = torch.arange(rows).tensor_split(ways)
    witness = Witness.of(model, example)
    with transaction(model, optimizer), optimizer_follows(model, optimizer) as heir_of:
        options = {"kind": "concat", "sizes": [len(each) for each in parts]}
        joined = model.get_submodule(path := insert(model, name, "branches", options))
        assert isinstance(joined, Concatenation)
        weight, bias = layer.weight, layer.bias
        moves = [
            move
            for each, part in zip((layer, *joined.copies), parts, strict=True)
            for move in _take(each, part, weight, bias)
        ]
        join_groups(heir_of, joined, layer)
        attribute = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
        insertion = {"into": name, "block": "branches", "options": options}
        entry = {
            "operator": "branch",
            "arguments": arguments,
            "shapes": {f"{name}.{key}": list(each.shape) for key, each in layer.named_parameters(recurse=False)},
            "attributes": {name: {attribute: len(parts[0])}},
            "insertions": [insertion],
        }
        changed = [f"{name}.weight", *(f"{path}.copies.{number}.weight" for number in range(ways - 1))]
        if optimizer is not None:
            transfer(optimizer, moves)
        return certified(model, witness, entry, train=True, changed=changed, moves=moves, averages=averages)


def _take(layer: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> list[Move]:
    """Give a layer some rows of a weight and bias."""
    rows = rows.to(weight.device)
    resize_rows(layer, weight.detach()[rows], weight.new_zeros(0) if bias is None else bias.detach()[rows])
    ones = torch.ones(len(rows), dtype=torch.float64)
    along = (Along(0, rows.cpu(), value=ones, gradient=ones),)
    moves = [Move(weight, layer.weight, along)]
    return moves if bias is None else [*moves, Move(bias, layer.bias, along)]


def _projection(begin: Place, end: Place) -> dict[str, int]:
    """What the skip connection has to do: the features on both sides, and the dimensions of the images."""
    given, wanted = begin.output.shape, end.output.shape
    images = begin.spatial and (begin.spatial == end.spatial or len(wanted) == 2)
    alike = not begin.spatial and not end.spatial and given[1:-1] == wanted[1:-1]
    if not images and not alike:
        raise UserError(
            f"no skip connection leads from {tuple(given)} of '{begin.name}' to {tuple(wanted)} of '{end.name}'; "
            "give two modules that give images (N, C, …), or features of the same other dimensions"
        )
    return {"inputs": begin.features, "outputs": end.features, "spatial": end.spatial}


def _shares(ways: int, seed: int) -> Tensor:
    """Shares (ways,) drawn from Dirichlet(10), none of them 0, that sum to 1 exactly in any dtype."""
    drawn_shares = np.random.default_rng(seed).dirichlet(np.full(ways, _CONCENTRATION))
    parts = np.maximum(1, np.round(drawn_shares * _PARTS)).astype(int)
    parts[parts.argmax()] += _PARTS - parts.sum()
    return torch.from_numpy(parts / _PARTS)


def _of_share(parameter: nn.Parameter, share: float) -> Move:
    """The parameter itself, which now gets a share of the gradient."""
    size = parameter.shape[0] if parameter.dim() else 1
    shares = torch.full((size,), share, dtype=torch.float64)
    along = Along(0, torch.arange(size), value=torch.ones(size, dtype=torch.float64), gradient=shares)
    return Move(parameter, parameter, (along,))
