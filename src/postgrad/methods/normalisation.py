"""Batch normalisation in any network: the layer it follows, the residual branch it ends, and how it is taken out."""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.optim import Optimizer

from postgrad.changes import note_change
from postgrad.errors import UserError
from postgrad.methods._apart import is_timms, taken_apart
from postgrad.methods._surgery import optimizer_follows, replace_modules
from postgrad.methods.fixed_classifier import FixedClassifier

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = Convolution | nn.Linear
_PLAIN = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}
_SUMS = {operator.add, operator.iadd, torch.add}
_RESHAPES = {"flatten", "view", "reshape", "squeeze"}
_Test = Callable[[fx.Node, nn.Module | None], bool]


class Scale(nn.Module):
    """Multiply by one learned number, whatever the shape of the input.

    >>> Scale(0.5)(torch.ones(2, 3))[0]
    tensor([0.5000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        # Without any dimension, so that a half-precision input stays one under autocast.
        self.scale = nn.Parameter(torch.tensor(float(start)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@dataclass(frozen=True)
class Traced:
    """The forward pass as torch.fx sees it: its graph, the module that each node calls, and the modules' names."""

    graph: fx.Graph
    modules: Mapping[fx.Node, nn.Module]
    names: Mapping[nn.Module, str]


@dataclass(frozen=True)
class Branch:
    """A residual branch: the normalisation that is its last step, and the layers that are normalised within it."""

    end: _BatchNorm
    layers: tuple[Layer, ...]


class _Tracer(fx.Tracer):
    """Looks into no batch normalisation, whoever wrote it (what it computes hangs on the batch), and no last layer.

    Nor into timm's own layers that are torch's but for padding the input first, or for what they do in TorchScript.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, (_BatchNorm, FixedClassifier))
            or is_timms(m, "Conv2dSame", "Linear")
            or super().is_leaf_module(m, module_qualified_name)
        )


def remove_normalisation(model: nn.Module, *, optimizer: Optimizer | None = None) -> int:
    """Take every batch normalisation out of a network, in place; returns how many.

    >>> remove_normalisation(create_model("resnet20", num_classes=10))
    19

    Statistics, scale and shift are folded into the layer before, which gains a bias where it had none: what the network
    computes in evaluation mode stays. An `nn.Identity` takes the place of the normalisation. `UserWarning` and 0 where
    there is none. `UserError`, the network left as it was: torch.fx cannot follow its forward pass, or a normalisation
    does not follow a convolution or linear layer of its own. What timm's BatchNormAct2d drops and activates stays.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        warnings.warn("the network has no batch normalisation: nothing was changed", UserWarning, stacklevel=2)
        return 0
    with taken_apart(model):
        layer_of = normalised_layers(trace(model))
        with optimizer_follows(model, optimizer) as heir_of:
            fold(layer_of, heir_of)
            replace_modules(model, {norm: nn.Identity() for norm in layer_of})
        note_change(model, "remove_normalisation")
        return len(layer_of)


def trace(model: nn.Module) -> Traced:
    """Follow the forward pass; a network that torch.fx cannot follow is a `UserError`."""
    attributes = set(vars(model))
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the network's own code raises on a value that stands for any tensor
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{type(model).__name__}: torch.fx cannot follow its forward pass ({reason}), so its normalisation stays; "
            f"take what hangs on the values of tensors out of forward()"
        ) from error
    finally:
        for name in set(vars(model)) - attributes:  # torch.fx leaves the constants of the forward pass on the network
            delattr(model, name)
    called = dict(model.named_modules(remove_duplicate=False))
    modules = {node: called[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    return Traced(graph, modules, {module: name for name, module in model.named_modules()})


def normalised_layers(traced: Traced) -> dict[_BatchNorm, Layer]:
    """Each batch normalisation with the layer whose output it takes, in the order of the forward pass."""
    calls = Counter(traced.modules.values())
    layer_of: dict[_BatchNorm, Layer] = {}
    for node, norm in traced.modules.items():
        if not isinstance(norm, _BatchNorm):
            continue
        if type(norm) not in _PLAIN:
            _refuse(traced, norm, "is of a class of its own, which may do more than normalise")
        source = node.all_input_nodes[0]
        layer = traced.modules.get(source)
        if not isinstance(layer, Layer) or len(source.users) > 1 or len(layer.weight) != norm.num_features:
            _refuse(traced, norm, "does not follow a convolution or linear layer of its own, which could take its bias")
        if calls[norm] > 1 or calls[layer] > 1:
            _refuse(traced, norm, "or the layer before it is called more than once")
        layer_of[norm] = layer
    for module in traced.names:
        if isinstance(module, _BatchNorm) and module not in layer_of:
            _refuse(traced, module, "is never called")
    check_own_weights(traced, layer_of.values())
    return layer_of


def check_own_weights(traced: Traced, layers: Iterable[Layer]) -> None:
    """Refuse a layer whose weight another layer shares, or that computes it from something else."""
    owners = Counter(parameter for module in traced.names for parameter in module._parameters.values())
    for layer in layers:
        weight = layer._parameters.get("weight")
        if weight is None or owners[weight] > 1:
            raise UserError(
                f"{traced.names[layer]}: its weight is shared with another layer, or computed by a parametrization; "
                f"give it one of its own first. The network was not changed"
            )


def residual_branches(traced: Traced, layer_of: Mapping[_BatchNorm, Layer]) -> list[Branch]:
    """The residual branches, in the order of the forward pass: of two summands, the one with more layers of its own."""
    branches = []
    for node in traced.graph.nodes:
        sides = node.all_input_nodes
        if not _is_sum(node) or len(sides) != 2:
            continue
        left, right = (_ancestors(side) for side in sides)
        own = (left - right, right - left)
        counts = [sum(isinstance(traced.modules.get(each), Layer) for each in part) for part in own]
        if counts == [0, 0]:
            continue
        if counts[0] == counts[1]:
            raise UserError(f"the sum '{node.name}': both sides have {counts[0]} layers, so neither is the shortcut")
        side = counts.index(max(counts))
        end = traced.modules.get(_before(sides[side], traced, _is_dropout))
        if not isinstance(end, _BatchNorm):
            raise UserError(
                f"the sum '{node.name}': its residual branch does not end in a batch normalisation, whose place the "
                f"branch's scalar would take; pre-activation networks are not supported"
            )
        inside = [module for each, module in traced.modules.items() if each in own[side]]
        branches.append(Branch(end, tuple(layer_of[each] for each in inside if isinstance(each, _BatchNorm))))
    return branches


def head(traced: Traced) -> tuple[nn.Module, int]:
    """What gives the logits, and how many: a linear layer, or a global pooling after a convolution or before one."""
    result = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    made_by = _before(result, traced, _is_reshape) if isinstance(result, fx.Node) else None
    last = traced.modules.get(made_by) if made_by is not None else None
    if made_by is not None and last is not None and list(traced.modules.values()).count(last) == 1:
        as_made = _before(result, traced, _is_identity) is made_by
        if isinstance(last, nn.Linear) and as_made:
            return last, last.out_features
        if isinstance(last, FixedClassifier) and as_made:
            return last, last.num_classes
        if isinstance(last, (nn.AdaptiveAvgPool2d, nn.Conv2d)):
            before = traced.modules.get(_before(made_by.all_input_nodes[0], traced, _keeps_channels))
            if isinstance(before, nn.Conv2d) and _is_global_pooling(last):
                return last, before.out_channels
            if isinstance(last, nn.Conv2d) and _is_global_pooling(before):
                return last, last.out_channels
    raise UserError("the logits come neither from a linear layer nor from a global pooling, so they are not normalised")


def fold(layer_of: Mapping[_BatchNorm, Layer], heir_of: dict[nn.Parameter, nn.Parameter]) -> None:
    """Put what each normalisation computes in evaluation mode into the layer before it, which gains a bias."""
    for norm, layer in layer_of.items():
        mean = layer.weight.new_zeros(norm.num_features) if norm.running_mean is None else norm.running_mean
        variance = layer.weight.new_ones(norm.num_features) if norm.running_var is None else norm.running_var
        weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, mean, variance, norm.eps, norm.weight, norm.bias)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.empty_like(bias))
                if norm.bias is not None:
                    layer.bias.requires_grad_(norm.bias.requires_grad)
                    heir_of[layer.bias] = norm.bias
            layer.bias.copy_(bias)


def draw_he(convolutions: Iterable[Convolution], generator: torch.Generator | None) -> None:
    """Draw each convolution anew, from N(0, 2/fan-in), on the CPU so that a seed means the same everywhere.

    Its bias becomes zero. A depthwise filter counts as one over four channels, as in the authors' ShuffleNet: with no
    ReLU after it, its output would grow otherwise.
    """
    for layer in convolutions:
        fan_in = layer.weight[0].numel() * (4 if is_depthwise(layer) else 1)
        drawn = torch.empty(layer.weight.shape).normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        with torch.no_grad():
            layer.weight.copy_(drawn)
            if layer.bias is not None:
                layer.bias.zero_()


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each filter reads one of several channels."""
    return isinstance(layer, Convolution) and layer.groups == layer.in_channels > 1


def _refuse(traced: Traced, norm: nn.Module, reason: str) -> NoReturn:
    raise UserError(
        f"{traced.names[norm]} ({type(norm).__name__}) {reason}; it cannot be removed, and the network was not changed"
    )


def _is_sum(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in _SUMS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is computed from."""
    found, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def _before(node: fx.Node, traced: Traced, passed_over: _Test) -> fx.Node:
    """The nearest node, going backwards from this one, that is not passed over."""
    while passed_over(node, traced.modules.get(node)) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _is_dropout(node: fx.Node, module: nn.Module | None) -> bool:
    name = getattr(node.target, "__name__", "")
    return isinstance(module, (_DropoutNd, nn.Identity)) or name in ("dropout", "stochastic_depth")


def _is_identity(node: fx.Node, module: nn.Module | None) -> bool:
    return isinstance(module, nn.Identity)


def _is_global_pooling(module: nn.Module | None) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))


def _is_reshape(node: fx.Node, module: nn.Module | None) -> bool:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return isinstance(module, (nn.Flatten, nn.Identity)) or (node.op != "call_module" and name in _RESHAPES)


def _keeps_channels(node: fx.Node, module: nn.Module | None) -> bool:
    return isinstance(module, (nn.ReLU, _BatchNorm, _DropoutNd, nn.Identity))
