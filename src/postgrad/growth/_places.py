"""Where in a network something can be put: how often a module runs, what it gives, and what is done with that."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from postgrad.errors import UserError
from postgrad.growth.blocks import NORMS, put_behind, submodule

Example = Tensor | tuple[Any, ...]

_NON_NEGATIVE = {"sigmoid", "softmax", "_softmax", "exp", "abs", "square", "hardsigmoid"}
"""Operations whose result is ≥ 0 whatever they are given."""
_KEEPS_SIGN = {
    *("clone", "view", "_unsafe_view", "reshape", "flatten", "permute", "transpose", "unsqueeze", "squeeze", "alias"),
    *("contiguous", "expand", "slice", "select", "detach", "_to_copy", "dropout", "mean", "sum", "amax"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d"),
    *("_adaptive_avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "getitem", "add", "mul", "cat"),
}
"""Operations whose result is ≥ 0 where all that they are given is (a number among the arguments has to be, too)."""


@dataclass
class Run:
    """What was seen of a module in one forward pass in evaluation mode.

    `weighted` is the last layer with weights that ran before it was done; `at` counts the modules done before.
    """

    calls: int = 0
    args: tuple[Any, ...] = ()
    output: Any = None
    weighted: nn.Module | None = None
    at: int = 0


@dataclass(frozen=True)
class Place:
    """A module that runs once and gives one tensor (N, …) of floating-point numbers.

    `spatial` is the number of dimensions after the channels in images (N, C, …), 0 where features are the last
    dimension; `norm` says whether the network normalises such outputs over the batch.
    """

    name: str
    module: nn.Module
    output: Tensor = field(repr=False)
    inputs: tuple[Any, ...] = field(repr=False)
    spatial: int
    norm: bool
    at: int

    @property
    def features(self) -> int:
        """The number of channels or features."""
        return self.output.shape[1 if self.spatial else -1]


def place(model: nn.Module, name: str, example: Example) -> Place:
    """Look at the place of one module.

    >>> place(model, "layer1", torch.zeros(1, 3, 32, 32)).features
    64

    The network runs once, as a copy in evaluation mode. `UserError` where the module does not run exactly once, or
    gives anything but one tensor (N, …) of floating-point numbers.
    """
    return places(model, (name,), example)[0]


def places(model: nn.Module, names: tuple[str, ...], example: Example) -> list[Place]:
    """Look at the places of several modules, as `place` does.

    >>> begin, end = places(model, ("layer1", "layer3"), torch.zeros(1, 3, 32, 32))
    """
    for name in names:
        submodule(model, name)  # says which names there are
    runs = _watch(model, names, example)
    return [_place(model, name, runs[name]) for name in names]


def call(model: nn.Module, example: Example) -> Any:
    """What the network gives on the example.

    >>> call(model, torch.zeros(1, 3, 32, 32))
    """
    return model(*example) if isinstance(example, tuple) else model(example)


class _Marker(nn.Module):
    """Leaves a node of its own in the exported graph where a block would be."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def surroundings(model: nn.Module, name: str, example: Example) -> tuple[bool, bool]:
    """Whether what the module gives is never negative, and whether all that it goes into is a ReLU (or a ReLU6).

    >>> surroundings(model, "layer1.0.bn1", torch.zeros(1, 3, 32, 32))
    (False, True)

    Decided by torch.export's graph of the network, never by the numbers of the example; (False, False) where it cannot
    be exported.
    """
    marked = copy.deepcopy(model).eval()
    marker = f"{name}.{put_behind(submodule(marked, name), _Marker())}"
    args = example if isinstance(example, tuple) else (example,)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export about torch's own use of pytree, and caches of networks
            graph = torch.export.export(marked, args, strict=False).run_decompositions({}).graph
    except Exception:  # whatever a network can do wrong there
        return False, False
    inside = [node for node in graph.nodes if node.op == "call_function" and _is_in(node, marker)]
    if len(inside) != 1:
        return False, False
    users = list(inside[0].users)
    return _is_non_negative(inside[0].all_input_nodes[0]), bool(users) and all(_cuts_at_zero(each) for each in users)


def _watch(model: nn.Module, names: tuple[str, ...], example: Example) -> dict[str, Run]:
    watched = copy.deepcopy(model).eval()
    runs = {name: Run() for name in names}
    done = 0
    weighted: nn.Module | None = None

    def note_layer(module: nn.Module, _args: Any, _output: Any) -> None:
        nonlocal done, weighted
        done += 1
        if isinstance(getattr(module, "weight", None), Tensor):
            weighted = module

    for each in watched.modules():
        each.register_forward_hook(note_layer)
    for name, run in runs.items():

        def note_run(_module: nn.Module, args: Any, output: Any, run: Run = run) -> None:
            run.calls += 1
            run.args, run.output, run.weighted, run.at = args, _kept(output), weighted, done

        submodule(watched, name).register_forward_hook(note_run)
    with torch.no_grad():
        call(watched, example)
    return runs


def _kept(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output  # the next layer may work in place


def _place(model: nn.Module, name: str, run: Run) -> Place:
    if run.calls == 0:
        raise UserError(
            f"'{name}' does not run in the network's forward pass (another module may use its weights, as "
            "nn.MultiheadAttention does those of out_proj); name the module that holds it"
        )
    if run.calls > 1:
        raise UserError(f"'{name}' is called {run.calls} times in one forward pass; name a module that is called once")
    output = run.output
    if not isinstance(output, Tensor) or not output.is_floating_point() or not 2 <= output.dim() <= 5:
        kind = f"{output.dtype} of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"'{name}' gives {kind}, not one tensor (N, …) of 2 to 5 dimensions of numbers; name another module"
        )
    spatial = _spatial(output, run.weighted)
    norm = any(_normalises(each, spatial if output.dim() > 2 else 0) for each in model.modules())
    norm = norm and (spatial > 0 or output.dim() == 2)
    return Place(name, submodule(model, name), output, run.args, spatial, norm, run.at)


def _spatial(output: Tensor, weighted: nn.Module | None) -> int:
    """The layer before decides whether channels come second or features last; they can only be last in (N, C)."""
    if output.dim() == 2:
        return 0
    if isinstance(weighted, nn.Linear | nn.LayerNorm | nn.Embedding):
        size = weighted.weight.shape[0 if isinstance(weighted, nn.Linear) else -1]
        if output.shape[-1] == size and (output.dim() == 3 or output.shape[1] != size):
            return 0
    elif output.dim() == 3 and not isinstance(weighted, nn.Conv1d | nn.ConvTranspose1d | _BatchNorm | nn.GroupNorm):
        return 0
    return output.dim() - 2


def _normalises(module: nn.Module, spatial: int) -> bool:
    return isinstance(module, NORMS[spatial]) or (isinstance(module, nn.SyncBatchNorm) and spatial > 0)


def _is_in(node: fx.Node, name: str) -> bool:
    return any(path == name for path, _ in (node.meta.get("nn_module_stack") or {}).values())


def _operation(node: Any) -> str:
    """The operation's name without its namespace and overload; nothing where the node is none."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return ""
    target: Any = node.target
    return str(getattr(target, "_opname", getattr(target, "__name__", "")))


def _lower_bound(node: fx.Node) -> float | None:
    """Where an operation such as relu6 or clamp cuts off; None where it does not, or where only the numbers tell."""
    if _operation(node) == "relu":
        return 0.0
    low = None
    if _operation(node) in ("hardtanh", "relu6", "clamp", "clamp_min"):
        defaults = {"hardtanh": -1.0, "relu6": 0.0}
        low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", defaults.get(_operation(node)))
    return float(low) if isinstance(low, int | float) else None


def _cuts_at_zero(node: fx.Node) -> bool:
    """Whether g(relu(x)) = g(x)."""
    return _lower_bound(node) == 0


def _is_non_negative(node: fx.Node) -> bool:
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if each in seen or _operation(each) in _NON_NEGATIVE:
            continue
        if (low := _lower_bound(each)) is not None and low >= 0:
            continue
        seen.add(each)
        if _operation(each) not in _KEEPS_SIGN or not _numbers_are_non_negative(each):
            return False
        waiting.extend(each.all_input_nodes)
    return True


def _numbers_are_non_negative(node: fx.Node) -> bool:
    if _operation(node) not in ("add", "mul"):
        return True
    numbers = [each for each in (*node.args, *node.kwargs.values()) if isinstance(each, int | float)]
    return all(each >= 0 for each in numbers)
