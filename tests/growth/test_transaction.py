"""Transactions: whatever fails, and wherever, the network and its optimizer are bit for bit what they were."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from growing import ConvNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from postgrad.changes import note_change
from postgrad.errors import UserError
from postgrad.growth.transaction import transaction

IMAGES = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6).sin()


def trained(optimizer: type[Optimizer] = Adam) -> tuple[ConvNet, Optimizer]:
    """A network after one step, one of its layers frozen, with gradients, a hook and an attribute of its own."""
    torch.manual_seed(0)
    model = ConvNet()
    model.bn2.requires_grad_(False)
    model.bn2.eval()
    model.notes = {"seen": [1, 2]}
    model.mask = torch.ones(3)
    model.conv2.register_forward_hook(_double)
    groups = [{"params": list(model.conv1.parameters())}, {"params": [*model.conv2.parameters(), model.head.weight]}]
    made = optimizer(groups, lr=0.1, momentum=0.9) if optimizer is SGD else optimizer(groups, lr=0.1)
    model(IMAGES).square().sum().backward()
    made.step()
    return model, made


def _double(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


class _Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def identities(model: nn.Module, optimizer: Optimizer) -> list[Any]:
    """Every object that must be the same one again, in its place."""
    modules = [
        (name, id(module), type(module), {key: id(value) for key, value in vars(module).items()})
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    named = (*model.named_parameters(), *model.named_buffers())
    tensors = [(name, id(tensor), id(tensor.grad)) for name, tensor in named]
    hooks = [[(key, id(hook)) for key, hook in module._forward_hooks.items()] for module in model.modules()]
    groups = [
        (id(group), list(group), id(group["params"]), [id(each) for each in group["params"]])
        for group in optimizer.param_groups
    ]
    state = [
        (id(key), id(value), {name: id(each) for name, each in value.items()}) for key, value in optimizer.state.items()
    ]
    return [modules, tensors, hooks, id(optimizer.param_groups), groups, id(optimizer.state), state]


def contents(value: Any) -> Any:
    """Every number in nested containers, bit for bit."""
    if isinstance(value, Tensor):
        return (
            str(value.dtype),
            value.shape,
            value.requires_grad,
            value.detach().numpy().tobytes(),
            contents(value.grad),
        )
    if isinstance(value, dict):
        return [(key, contents(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return [contents(each) for each in value]
    return value


def seen(model: ConvNet, optimizer: Optimizer) -> Any:
    modes = [(name, module.training, repr(module)) for name, module in model.named_modules()]
    tensors = model.state_dict(keep_vars=True)
    return identities(model, optimizer), modes, contents([tensors, model.notes, model.mask, optimizer.state_dict()])


def fail(model: nn.Module, optimizer: Optimizer | None, change: Callable[[], Any], error: Any = KeyError) -> None:
    with transaction(model, optimizer):
        change()
        raise error


Step = Callable[[ConvNet, Optimizer], Any]


def _in_optimizer(model: ConvNet, optimizer: Optimizer) -> None:
    old, new = model.conv1.weight, nn.Parameter(torch.zeros(9, 3, 3, 3))
    model.conv1.weight = new
    optimizer.param_groups[0]["params"] = [new, *optimizer.param_groups[0]["params"][1:]]
    optimizer.state[new] = {key: torch.zeros_like(value) for key, value in optimizer.state.pop(old, {}).items()}


STEPS: dict[str, Step] = {
    "parameter": lambda model, _: setattr(model.conv1, "weight", nn.Parameter(torch.zeros(9, 3, 3, 3))),
    "buffer": lambda model, _: setattr(model.bn1, "running_mean", torch.zeros(9)),
    "new buffer": lambda model, _: model.register_buffer("extra", torch.zeros(9), persistent=False),
    "no parameter": lambda model, _: setattr(model.conv1, "bias", None),
    "attribute": lambda model, _: setattr(model.conv1, "out_channels", 9),
    "own attribute": lambda model, _: model.notes["seen"].append(3),
    "tensor attribute": lambda model, _: setattr(model, "mask", torch.zeros(9)),
    "no attribute": lambda model, _: delattr(model, "notes"),
    "child": lambda model, _: setattr(model, "bn1", nn.Sequential(model.bn1, nn.Linear(2, 2))),
    "new child": lambda model, _: model.add_module("grown", nn.Linear(2, 2)),
    "no child": lambda model, _: delattr(model, "dropout"),
    "hook": lambda model, _: model.bn1.register_forward_hook(_double),
    "no hook": lambda model, _: model.conv2._forward_hooks.clear(),
    "mode": lambda model, _: model.eval(),
    "frozen": lambda model, _: model.requires_grad_(False),
    "thawed": lambda model, _: model.requires_grad_(True),
    "no gradient": lambda model, _: model.zero_grad(),
    "precision": lambda model, _: model.double(),
    "data": lambda model, _: setattr(model.head.weight, "data", torch.zeros(4, 9)),
    "class": lambda model, _: setattr(model.head, "__class__", _Halved),
    "noted": lambda model, _: note_change(model, "growth", operator="widen"),
    "optimizer": _in_optimizer,
    "new group": lambda _, optimizer: optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]}),
    "setting": lambda _, optimizer: optimizer.param_groups[0].update(lr=9.0, extra=1),
    "no state": lambda _, optimizer: optimizer.state.clear(),
    "other state": lambda _, optimizer: setattr(optimizer, "state", {}),
}


@settings(max_examples=40)
@given(st.lists(st.sampled_from(list(STEPS)), max_size=6), st.sampled_from([SGD, Adam]))
def test_what_fails_anywhere_leaves_no_trace(steps: list[str], kind: type[Optimizer]) -> None:
    def change() -> None:
        with contextlib.suppress(AttributeError, RuntimeError, KeyError):  # of two steps that do not go together
            for step in steps:
                STEPS[step](model, optimizer)

    model, optimizer = trained(kind)
    before = seen(model, optimizer)
    with pytest.raises(KeyError):
        fail(model, optimizer, change)
    assert seen(model, optimizer) == before
    model(IMAGES).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("step", STEPS)
def test_every_kind_of_change_would_be_seen(step: str) -> None:
    """Negative control: without the failure, the same comparison tells the difference."""
    model, optimizer = trained()
    before = seen(model, optimizer)
    with transaction(model, optimizer):
        STEPS[step](model, optimizer)
    with contextlib.suppress(AttributeError, KeyError):  # what is compared is no longer there
        assert seen(model, optimizer) != before


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("no"), SystemExit, GeneratorExit])
def test_the_error_itself_goes_on(error: Any) -> None:
    model, optimizer = trained()
    before = seen(model, optimizer)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        fail(model, optimizer, lambda: STEPS["optimizer"](model, optimizer), error)
    assert seen(model, optimizer) == before


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda model, _: model.conv1.weight.detach().mul_(2), r"conv1\.weight"),
        (lambda model, _: model.train()(IMAGES), r"bn1\.num_batches_tracked"),
        (lambda model, _: model.zero_grad(set_to_none=False), r"conv1\.weight\.grad"),
        (lambda model, _: model.mask.zero_(), "a tensor that the network or its optimizer holds"),
        (lambda _, optimizer: next(iter(optimizer.state.values()))["exp_avg"].zero_(), "its optimizer holds"),
        (lambda _, optimizer: optimizer.step(), r"conv1\.weight"),
    ],
)
def test_a_tensor_written_in_place_is_named(write: Step, name: str) -> None:
    model, optimizer = trained()
    before = seen(model, optimizer)
    with pytest.raises(RuntimeError, match=f"{name}.*: written in place") as caught:
        fail(model, optimizer, lambda: write(model, optimizer))
    assert isinstance(caught.value.__cause__, KeyError)
    assert seen(model, optimizer) != before


def test_what_succeeds_stays() -> None:
    model, optimizer = trained()
    with transaction(model, optimizer):
        for step in ("parameter", "attribute", "new child", "hook", "mode", "setting"):
            STEPS[step](model, optimizer)
    assert tuple(model.conv1.weight.shape) == (9, 3, 3, 3)
    assert (model.conv1.out_channels, model.training, optimizer.param_groups[0]["lr"]) == (9, False, 9.0)
    assert isinstance(model.grown, nn.Linear)
    assert len(model.bn1._forward_hooks) == 1


def test_an_inner_failure_undoes_the_inner_part_alone() -> None:
    model, optimizer = trained()
    with transaction(model, optimizer):
        model.conv1.weight = outer = nn.Parameter(torch.zeros(9, 3, 3, 3))
        with pytest.raises(KeyError):
            fail(model, optimizer, lambda: STEPS["parameter"](model, optimizer))
        assert model.conv1.weight is outer
    assert model.conv1.weight is outer


def test_handles_and_schedules_made_before_still_work() -> None:
    model, optimizer = trained()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    handle = model.bn1.register_forward_hook(_double)

    def change() -> None:
        model.bn1._forward_hooks = type(model.bn1._forward_hooks)()
        optimizer.param_groups = copy.copy(optimizer.param_groups)

    with pytest.raises(KeyError):
        fail(model, optimizer, change)
    handle.remove()
    assert not model.bn1._forward_hooks
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_tied_weights_and_shared_modules_stay_so() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Linear(2, 2), layer)
    model[1].weight = layer.weight

    def change() -> None:
        model[2] = nn.Linear(2, 2)
        layer.weight = nn.Parameter(torch.zeros(3, 2))

    with pytest.raises(KeyError):
        fail(model, None, change)
    assert model[0] is model[2] is layer
    assert model[1].weight is layer.weight


def test_tensors_made_in_inference_mode_do_no_harm() -> None:
    with torch.inference_mode():
        model = nn.BatchNorm1d(2)
        with pytest.raises(KeyError):
            fail(model, None, lambda: setattr(model, "weight", nn.Parameter(torch.zeros(3))))
    assert tuple(model.weight.shape) == (2,)


class _Counts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_no_tensor_is_copied() -> None:
    model, optimizer = trained()
    counts = _Counts()
    with counts, pytest.raises(KeyError):
        fail(model, optimizer, lambda: STEPS["no parameter"](model, optimizer))
    assert counts.seen <= {"aten::detach", "aten::alias", "aten::is_set_to"}
