"""torch's optimizers and learning-rate schedules by name, with their options checked by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from postgrad.errors import UserError, unknown_name

LRScheduler = lr_scheduler.LRScheduler

_NEEDS_MORE_THAN_A_STEP = {"Optimizer", "LBFGS", "SparseAdam"}  # a closure; sparse gradients
_NEEDS_CODE_OR_A_METRIC = {
    "LRScheduler",
    "ChainedScheduler",
    "SequentialLR",
    "LambdaLR",
    "MultiplicativeLR",
    "ReduceLROnPlateau",
}

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in _NEEDS_MORE_THAN_A_STEP
}

SCHEDULES: dict[str, type[LRScheduler]] = {
    name: value
    for name, value in vars(lr_scheduler).items()
    if inspect.isclass(value)
    and issubclass(value, LRScheduler)
    and name not in _NEEDS_CODE_OR_A_METRIC
    and not name.startswith("_")
}


class FactoredSGD(torch.optim.SGD):
    """Plain SGD that takes a gradient that its parameter holds as factors, and never makes it whole.

    >>> parameter.factors.add_to_(parameter, scale)      # what such a gradient can do: parameter += scale · gradient

    A layer of ten million weights that sees 25 short rows a step has a gradient of rank 25; to write it down, and to
    read it again, would take longer than all the rest of the step.
    """

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                factors = getattr(parameter, "factors", None)
                if factors is not None:
                    factors.add_to_(parameter, -float(group["lr"]))
                    del parameter.factors
        return loss


_SHORT_SCHEDULES = {"cosine": "CosineAnnealingLR", "step": "StepLR", "onecycle": "OneCycleLR"}

_GIVEN = {"self", "params", "optimizer", "lr", "last_epoch"}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class in `torch.optim`, upper and lower case alike: "sgd" is SGD."""
    return OPTIMIZERS[_find("optimizer", name, OPTIMIZERS)]


def schedule_class(name: str) -> type[LRScheduler] | None:
    """The class in `torch.optim.lr_scheduler`; "cosine" is CosineAnnealingLR, "constant" is None."""
    if name.lower() == "constant":
        return None
    name = _SHORT_SCHEDULES.get(name.lower(), name)
    return SCHEDULES[_find("schedule", name, ["constant", *_SHORT_SCHEDULES, *SCHEDULES])]


def check_options(kind: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse an option that `target` does not take, with the nearest that it does."""
    known = [name for name in inspect.signature(target).parameters if name not in _GIVEN]
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {kind}", name, known)


def takes_factors(name: str, options: Mapping[str, Any]) -> bool:
    """Whether `make_optimizer` gives a `FactoredSGD`: for SGD without momentum and other additions."""
    return optimizer_class(name) is torch.optim.SGD and not options


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, lr: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer over those parameters that take a gradient."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise UserError("training: the model has no parameter that requires a gradient; nothing would be trained")
    cls = FactoredSGD if takes_factors(name, options) else optimizer_class(name)
    try:
        return cls(trained, **{"lr": lr, **options})
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {name}: {error}; its options are {dict(options)}, its lr is {lr:g}") from error


def names_in_order(
    optimizer: torch.optim.Optimizer, model: nn.Module, beside: Sequence[nn.Parameter] = ()
) -> list[list[str]]:
    """The names of the parameters in each of an optimizer's groups, in the order in which its state is stored.

    Those of a network that was changed on the way stand in another order than that of the network. `beside` are
    parameters that are trained beside the network's.
    """
    names = {parameter: name for name, parameter in _named(model, beside).items()}
    return [[names.get(parameter, "") for parameter in group["params"]] for group in optimizer.param_groups]


def put_in_order(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    order: Sequence[Sequence[str]],
    beside: Sequence[nn.Parameter] = (),
) -> None:
    """Put the parameters of a new optimizer, which has no state yet, in the order that `names_in_order` gave."""
    parameters = _named(model, beside)
    there = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    stored = {parameters.get(name) for names in order for name in names}
    if len(order) != len(optimizer.param_groups) or there != stored:
        raise UserError("the checkpoint is of an optimizer with other parameters; make the same one")
    for group, names in zip(optimizer.param_groups, order, strict=True):
        group["params"] = [parameters[name] for name in names]


def _named(model: nn.Module, beside: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
    """All by name; no module is called as those beside the network are."""
    return {**dict(model.named_parameters()), **{f"beside.{number}": each for number, each in enumerate(beside)}}


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, *, length: int, options: Mapping[str, Any]
) -> LRScheduler | None:
    """The schedule of the learning rate over `length` changes; None where it stays constant.

    Where a schedule wants its length (T_max of cosine, total_steps of one-cycle) or its highest rate (max_lr of
    one-cycle), `length` and the optimizer's rate are given unless an option says otherwise.
    """
    cls = schedule_class(name)
    if cls is None:
        return None
    taken = inspect.signature(cls).parameters
    lengths: dict[str, Any] = {key: length for key in ("T_max", "total_steps") if key in taken}
    if "max_lr" in taken:
        lengths["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    if "epochs" in options and "steps_per_epoch" in options:
        lengths.pop("total_steps", None)
    try:
        return cls(optimizer, **{**lengths, **options})
    except (TypeError, ValueError) as error:
        raise UserError(f"schedule {name}: {error}; its options are {dict(options)}") from error


def optimizer_copies(name: str, options: Mapping[str, Any]) -> int:
    """How many tensors as large as its weights an optimizer keeps: 0 for plain SGD, 1 with momentum, 2 for Adam.

    Found by taking one step with a single matrix, so that it holds for every optimizer.
    """
    weight = nn.Parameter(torch.zeros(4, 4))
    optimizer = make_optimizer(name, [weight], lr=1e-3, options=options)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = optimizer.state[weight].values()
    return sum(1 for value in state if isinstance(value, Tensor) and value.shape == weight.shape)


def _find(kind: str, name: str, known: Iterable[str]) -> str:
    """The known name that equals `name` but for upper and lower case, or the error that names the nearest."""
    by_lower = {option.lower(): option for option in known}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    hint = f": did you mean '{by_lower[near[0]]}'? Known: " if near else ". Known: "
    raise UserError(f"unknown {kind} '{name}'{hint}{', '.join(sorted(by_lower.values()))}")
