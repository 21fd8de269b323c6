"""Carrying an optimizer, and averages of weights, over a growth of the network that they belong to.

Idea. An optimizer's momenta are sums of gradients, its second moments sums of squared ones. Where a unit becomes
several, each parameter of a replica gets a known share of the old one's gradient (`Along.gradient`), so that its state
is known too: the share times the momentum, the squared share times the second moment. An average of weights is a sum of
weights, which the growth maps as it maps the weights themselves (`Along.value`).

What is exact. With state="split" the state is the one that the grown network would have gathered, had it been grown
before the training and gone through the same weights; for SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad and
Muon alike. Not so where the gradients' shares are not those of the move (noise on the outgoing weights, units whose
incoming weights differ), for weight decay that is added to the gradient (AdamW's is not), and up to the optimizers'
epsilon. What the optimizer does with that state is another matter: units that were split learn at other effective
rates than before.

When it fails. Units that come from none start without history, yet `step` is one number for the whole tensor: Adam
does not correct their bias, and at its usual settings takes steps up to 6.6 times as long with them, for some hundred
steps. What an optimizer keeps besides sums of gradients (Adadelta, ASGD, Rprop, Adafactor, schedule-free ones) is not
carried over: a UserError, with state="reset" as the way out. Gradients that wait to be used are lost: grow after a
step, not before it.

Schedules need nothing: the optimizer and its groups stay the same objects, so each scheduler goes on by itself.

Paper. T. Chen, I. Goodfellow, J. Shlens, "Net2Net", arXiv 1511.05641, for the growth; the shares of its optimizer's
state are this project's derivation. Licence or patent note: Apache-2.0; none known.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adagrad, Optimizer
from torch.optim.swa_utils import AveragedModel

from postgrad.errors import UserError, unknown_name
from postgrad.growth.moves import Along, Move
from postgrad.methods._weight_average import WeightAverage

State = Literal["split", "copy", "reset"]
Averages = Sequence[AveragedModel | WeightAverage]
"""Averages of a network's weights: torch's, and those of postgrad."""

_SHARE_OF: dict[str, Callable[[Tensor], Tensor]] = {
    "momentum_buffer": torch.clone,
    "exp_avg": torch.clone,
    "grad_avg": torch.clone,
    "exp_inf": torch.abs,
    "exp_avg_sq": torch.square,
    "max_exp_avg_sq": torch.square,
    "square_avg": torch.square,
    "sum": torch.square,
}
"""What optimizers keep for a parameter -> the share of it that a replica has, from its share of the gradient."""


@torch.no_grad()
def transfer(optimizer: Optimizer, moves: Sequence[Move], *, state: State = "split") -> None:
    """Put grown parameters in the places of the old ones in an optimizer, with what it kept for them.

    >>> transfer(optimizer, moves)  # the moves of one growth
    >>> transfer(optimizer, moves, state="reset")  # any optimizer

    The optimizer stays the same object, with the same groups, in which each new parameter has the old one's position;
    moves of tensors that it does not train are passed over. Parameters that are wholly new are not its business: what
    inserts them does so in a `postgrad.methods._surgery.optimizer_follows` block, where they join.

    Parameters
    ----------
    optimizer : one that keeps its state for each parameter under that parameter, as those of `torch.optim` do.
    moves : in the order in which they were made; a tensor may have been moved more than once.
    state : "split" (default) gives each replica its share, the gradient's for running means of gradients and its square
        for those of squares; "copy" gives each the whole; "reset" forgets all, `step` too. With the first two, units
        that come from none have what the optimizer starts with (0), and `step` is kept.

    `UserError`, the optimizer left as it was: an optimizer that keeps something else of a parameter's size (unless it
    is reset), one that works on copies of its own in another optimizer, and LBFGS, whose history is of all parameters
    at once. Source: arXiv 1511.05641 and the top of this file.
    """
    if state not in get_args(State):
        raise unknown_name("state of a transfer", str(state), get_args(State))
    _check_optimizer(optimizer)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    place_of = {each: (parameters, at) for parameters in groups for at, each in enumerate(parameters)}
    states: dict[Tensor, dict[str, Any]] = {}
    left: list[Tensor] = []
    for move in moves:
        if move.old not in place_of:
            continue
        parameters, at = place_of[move.new] = place_of.pop(move.old)
        parameters[at] = move.new
        left.append(move.old)
        kept = states.pop(move.old) if move.old in states else optimizer.state.get(move.old, {})
        states[move.new] = {} if state == "reset" else _carried(optimizer, kept, move, split=state == "split")
    # Nothing can fail from here on.
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = parameters
    for parameter in left:
        optimizer.state.pop(parameter, None)
    optimizer.state.update({parameter: kept for parameter, kept in states.items() if kept})


@torch.no_grad()
def transfer_average(averaged: AveragedModel | WeightAverage, model: nn.Module, moves: Sequence[Move]) -> None:
    """Grow an average of a network's weights as the network itself was grown, which goes on from there.

    >>> average = ExponentialMovingAverage(model)  # or torch's AveragedModel(model)
    >>> transfer_average(average, model, moves)  # at once after the growth, before any further step

    Each copy becomes what the same growth makes of it, mean(grown weights) = grown(mean of the weights): the shares of
    the move, and on top what the growth added on its own. Noise that sums to zero over the replicas is thus in both,
    and changes neither function; units that come from none have the network's own new weights. So has everything that
    is wholly new: the average begins there now. The averaged network computes what it did where every new unit that
    counts has an old one. Buffers of an `AveragedModel` go the same way.

    Parameters
    ----------
    averaged : torch's `AveragedModel`, whose `module` is replaced (its count, function and mode stay), or one of
        postgrad's averages (SWA, EMA, LAWA, periodic sampling).
    model : the grown network that it averages.
    moves : of parameters and buffers, in the order in which they were made.

    `UserError`, the average left as it was: one of another network, or one that is just now put into the network.
    """
    made_by = {move.new: move for move in moves if move.new is not move.old}  # itself, with another gradient
    if isinstance(averaged, WeightAverage):
        if set(model.parameters()) != set(averaged.model.parameters()):
            raise _other_network()
        averaged.follow_growth(lambda kept, parameter: _grown(kept, parameter, made_by))
    elif isinstance(averaged, AveragedModel):
        averaged.module = _grown_module(averaged.module, model, made_by)
    else:
        raise UserError(
            f"average: expected torch's AveragedModel or an average of postgrad's, got {type(averaged).__name__}; "
            "make it anew from the grown network"
        )


def transfer_averages(averages: Averages, model: nn.Module, moves: Sequence[Move]) -> None:
    """Grow several averages of a network's weights by `transfer_average`: all of them, or none.

    >>> transfer_averages([average, torch_average], model, moves)
    """
    kept = [(each, dict(vars(each)), dict(getattr(each, "_modules", {}))) for each in averages]
    try:
        for each in averages:
            transfer_average(each, model, moves)
    except BaseException:
        for each, attributes, modules in kept:
            vars(each).update(attributes)
            if isinstance(each, nn.Module):
                each._modules.update(modules)
        raise


def _check_optimizer(optimizer: Optimizer) -> None:
    if isinstance(optimizer, LBFGS):
        raise UserError("LBFGS keeps one history of all parameters, which does not grow; make a new one after growing")
    for inner in vars(optimizer).values():
        # Lightning's wrapper shares the groups of what it wraps; ZeroRedundancyOptimizer has parts of its own.
        if isinstance(inner, Optimizer) and inner.param_groups is not optimizer.param_groups:
            name = type(optimizer).__name__
            raise UserError(f"{name} works through an optimizer with groups of its own; make a new one after growing")


def _carried(optimizer: Optimizer, kept: Mapping[str, Any], move: Move, *, split: bool) -> dict[str, Any]:
    carried = {}
    for key, value in kept.items():
        if not isinstance(value, Tensor):
            carried[key] = value
        elif key in _SHARE_OF and value.shape == move.old.shape:
            share_of = _SHARE_OF[key]
            if not split or (key == "momentum_buffer" and "square_avg" in kept):
                share_of = torch.ones_like  # RMSprop's momentum is of g/√v, in which the share cancels
            start = _start(optimizer, key, value)
            grown = _mapped(value - start, move.along, [share_of(along.gradient) for along in move.along]) + start
            # Fused optimizers need the strides of the parameter.
            carried[key] = torch.empty_like(move.new, dtype=value.dtype, requires_grad=False).copy_(grown)
        elif value.numel() == 1 and value.shape != move.old.shape:
            carried[key] = value.clone()  # `step` and the like
        else:
            raise UserError(
                f"{type(optimizer).__name__} keeps '{key}' {tuple(value.shape)} for a parameter "
                f"{tuple(move.old.shape)}, and it is not known how that grows; forget it with state='reset'"
            )
    return carried


def _start(optimizer: Optimizer, key: str, value: Tensor) -> complex:
    """What a sum starts with: 0 but for Adagrad's, on request; a sum of squares then grows without it."""
    if not (key == "sum" and isinstance(optimizer, Adagrad)):
        return 0.0
    start = float(optimizer.defaults["initial_accumulator_value"])
    return complex(start, start) if value.is_complex() else start


def _mapped(tensor: Tensor, alongs: Sequence[Along], shares: Sequence[Tensor]) -> Tensor:
    """The tensor's units at the places of the new ones, times their shares; 0 for those that come from none."""
    precision = torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32
    for along, share in zip(alongs, shares, strict=True):
        shape = [1] * tensor.dim()
        shape[along.dim] = -1
        factor = share.masked_fill(along.index < 0, 0.0).to(tensor.device, precision).reshape(shape)
        tensor = tensor.index_select(along.dim, along.index.clamp(min=0).to(tensor.device)) * factor
    return tensor


def _grown(kept: Tensor | None, live: Tensor, made_by: Mapping[Tensor, Move]) -> Tensor:
    """What becomes of an average's copy of a tensor that is `live` in the network now."""
    chain: list[Move] = []
    origin = live
    while origin in made_by:
        chain.insert(0, made_by[origin])
        origin = chain[0].old
    if kept is None or (not chain and kept.shape != live.shape):
        return live.detach().clone()  # new, or put in place of one of another shape
    if kept.shape != origin.shape:
        raise _other_network()
    grown = kept
    for move in chain:
        shares = [along.value for along in move.along]
        added = move.new - _mapped(move.old, move.along, shares)
        grown = _mapped(grown, move.along, shares) + added.to(grown.device)
    return torch.empty_like(live, dtype=kept.dtype, device=kept.device, requires_grad=False).copy_(grown)


def _grown_module(old: nn.Module, model: nn.Module, made_by: Mapping[Tensor, Move]) -> nn.Module:
    """A copy of the grown network with the average's tensors, grown; modes, devices and dtypes are the average's."""
    kept, live = dict(_tensors(old)), dict(_tensors(model))
    if not kept.keys() <= live.keys():
        raise _other_network()
    form_of = {_form(live[name]): _form(tensor) for name, tensor in kept.items()}
    grown = copy.deepcopy(model).train(old.training)
    for name, tensor in _tensors(grown):
        device, dtype = form_of.get(_form(live[name]), _form(live[name]))
        tensor.data = _grown(kept.get(name), live[name], made_by).to(device, dtype)
        if name in kept:
            tensor.requires_grad_(kept[name].requires_grad)
    for name, module in old.named_modules():
        grown.get_submodule(name).training = module.training
    return grown


def _form(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    return tensor.device, tensor.dtype


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _other_network() -> UserError:
    return UserError(
        "average: it is of another network, or the network has grown before without it; give the moves of every growth"
    )
