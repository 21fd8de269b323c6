"""What growth puts beside a module: copies whose outputs are added or joined to its own, and skip connections.

They are children of the module's child `branches`, and one hook gives each in turn the module's arguments and what came
out so far. `branches` itself is the identity, so that an `nn.Sequential` that runs it in line is not disturbed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError, unknown_name

Splittable = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
MOST_WAYS = 64
_MOST_ELEMENTS = 2**31


class Branches(nn.ModuleList):
    """All that was put beside a module, in the order in which it joins in."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Sum(nn.Module):
    """The weighted sum of a module's output and its copies': w₀·f₀(x) + w₁·f₁(x) + …

    >>> Sum([copy.deepcopy(layer)], torch.tensor([0.25, 0.75]))

    `weights` (ways,), the module's own first, are learned.
    """

    def __init__(self, copies: Sequence[nn.Module], weights: Tensor) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.weights = nn.Parameter(weights)

    def join(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        """The sum, given the module's arguments and its output."""
        total = self.weights[0] * output
        for weight, branch in zip(self.weights[1:], self.copies, strict=True):
            total = total + weight * branch(*args, **kwargs)
        return total


class Concatenation(nn.Module):
    """The output of a layer and those of the layers that have taken over its other rows, side by side.

    >>> Concatenation([nn.Linear(8, 3)], dim=-1)
    """

    def __init__(self, copies: Sequence[nn.Module], dim: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.dim = dim

    def join(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        """All outputs side by side, given the module's arguments and its output."""
        return torch.cat([output, *(each(*args, **kwargs) for each in self.copies)], dim=self.dim)


class Stash:
    """Where the begin of a skip connection leaves its value for the end, which takes it at once.

    >>> stash.value = x
    >>> stash.take()

    It is copied and pickled empty.
    """

    value: Tensor | None = None

    def __getstate__(self) -> None:
        return None

    def take(self) -> Tensor:
        """The value, which is then no longer held."""
        value, self.value = self.value, None
        if value is None:
            raise UserError("a skip connection ends in a module that ran without the one where it begins")
        return value


class Keep:
    """The hook of the module where a skip connection begins."""

    def __init__(self, stash: Stash) -> None:
        self.stash = stash

    def __call__(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.stash.value = output


class Skip(nn.Module):
    """The end of a skip connection: output + gate·P(value from where it begins), gate = 0 at the start.

    >>> Skip(Stash(), inputs=64, outputs=128, spatial=2)

    P pools adaptively to the output's size where that differs (to one pixel where the output has none), and then maps
    `inputs` to `outputs` features by a 1×1 convolution (`spatial` 1, 2, 3) or a linear layer over the last dimension
    (`spatial` 0); where the two are the same number it leaves them alone.
    """

    def __init__(self, stash: Stash, inputs: int, outputs: int, spatial: int) -> None:
        super().__init__()
        self.stash = stash
        self.spatial = spatial
        self.gate = nn.Parameter(torch.zeros(1))
        self.project: nn.Module = nn.Identity()
        if inputs != outputs:
            layers: Sequence[Callable[..., nn.Module]] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
            self.project = layers[spatial](inputs, outputs, *([1] if spatial else []), bias=False)

    def join(self, _args: tuple[Any, ...], _kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        """The output with the skip connection added to it."""
        return output + self.gate[0] * self.project(_fitted(self.stash.take(), output, self.spatial))


def put_beside(
    module: nn.Module, *, kind: Literal["add", "concat", "gated"], sizes: Sequence[int] | int, like: Tensor
) -> str:
    """Put copies beside a module; returns their name within it.

    >>> put_beside(model.conv1, kind="gated", sizes=2, like=model.conv1.weight)
    'branches.0'

    `sizes` is the number of ways, the module's own among them; for "concat" the number of rows of each way. The copies
    of "gated" are drawn anew, those of "concat" are zero. Sums start at 1 for the module's own way and 0 for the
    others, with the device and dtype of `like`.
    """
    if kind == "concat":
        if isinstance(sizes, int) or not isinstance(module, Splittable):
            raise UserError("only a convolution or linear layer can be split by rows, into a list of sizes")
        if len(sizes) < 2 or min(sizes) < 1 or sum(sizes) * module.weight.shape[1:].numel() > _MOST_ELEMENTS:
            raise UserError(f"a layer cannot be split into {list(sizes)} rows")
        parts = [of_rows(module, size) for size in sizes[1:]]
        return _add(module, Concatenation(parts, dim=-1 if isinstance(module, nn.Linear) else 1))
    if kind not in ("add", "gated"):
        raise unknown_name("kind of branch", str(kind), ("add", "concat", "gated"))
    if type(sizes) is not int or not 2 <= sizes <= MOST_WAYS:
        raise UserError(f"a module is branched 2 to {MOST_WAYS} ways, not {sizes}")
    make = copied if kind == "add" else fresh_copy
    weights = like.new_zeros(sizes)
    weights[0] = 1
    return _add(module, Sum([make(module) for _ in range(sizes - 1)], weights))


def put_skip(end: nn.Module, begin: nn.Module, *, inputs: int, outputs: int, spatial: int, like: Tensor) -> str:
    """Put a skip connection from what `begin` gives to what `end` gives; returns its name within `end`.

    >>> put_skip(model.layer2, model.layer1, inputs=64, outputs=128, spatial=2, like=model.conv1.weight)
    'branches.0'
    """
    if spatial not in range(4) or not 0 < inputs * outputs <= _MOST_ELEMENTS:
        raise UserError(f"no skip connection leads from {inputs} to {outputs} features in {spatial} dimensions")
    stash = Stash()
    name = _add(end, Skip(stash, inputs, outputs, spatial).to(like.device, like.dtype))
    begin.register_forward_hook(Keep(stash))
    return name


def run_branches(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    """The hook of a module that has something beside it."""
    branches: Any = module.branches
    for each in branches:
        output = each.join(args, kwargs, output)
    return output


def copied(module: nn.Module) -> nn.Module:
    """A copy of a module as it is, without the hooks that are not growth's.

    >>> copied(model.layer1)

    `UserError` where a skip connection ends in it that begins elsewhere.
    """
    made = copy.deepcopy(module)
    keepers = [hook for each in made.modules() for hook in each._forward_hooks.values() if isinstance(hook, Keep)]
    ends = [each.stash for each in made.modules() if isinstance(each, Skip)]
    if any(all(end is not hook.stash for hook in keepers) for end in ends):
        raise UserError(
            f"a skip connection that begins elsewhere ends in this {type(module).__name__}, which cannot be copied; "
            "name a module without one"
        )
    for layer in made.modules():
        for key, hook in list(layer._forward_hooks.items()):
            if not _is_own(hook) or (isinstance(hook, Keep) and all(hook.stash is not end for end in ends)):
                del layer._forward_hooks[key]
    return made


def fresh_copy(module: nn.Module) -> nn.Module:
    """A copy of a module with weights drawn anew, by its layers' own `reset_parameters`.

    >>> fresh_copy(model.layer3[1])

    The weights of a layer without that method stay as they are. Hooks that are not growth's are left behind.
    """
    devices = [each.device for each in module.parameters()]
    made = copied(module).cpu()  # so that the draw is the same on every device
    for layer in made.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
    return made.to(devices[0]) if devices else made


def of_rows(layer: Splittable, rows: int) -> Splittable:
    """A copy of a layer with so many rows, all zero.

    >>> of_rows(nn.Linear(8, 4), 2)
    Linear(in_features=8, out_features=2, bias=True)
    """
    made = copied(layer)
    assert isinstance(made, Splittable)
    resize_rows(made, layer.weight.new_zeros(rows, *layer.weight.shape[1:]), layer.weight.new_zeros(rows))
    return made


def resize_rows(layer: Splittable, weight: Tensor, bias: Tensor) -> None:
    """Give a layer another weight, and another bias where it has one."""
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(weight)
    else:
        layer.out_channels = len(weight)


def _add(module: nn.Module, stage: nn.Module) -> str:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise UserError(f"a {type(module).__name__} runs its own children; name one of them, or the module around it")
    if not hasattr(module, "branches"):
        module.add_module("branches", Branches())
        module.register_forward_hook(run_branches, with_kwargs=True)
    branches = module.branches
    if not isinstance(branches, Branches):
        raise UserError(
            f"{type(module).__name__} has an attribute 'branches' of its own, which growth needs; rename it"
        )
    stage.training = module.training  # alone: copies keep what was set for each of their layers
    branches.append(stage)
    return f"branches.{len(branches) - 1}"


def _fitted(value: Tensor, output: Tensor, spatial: int) -> Tensor:
    """The value at the resolution of the output: pooled to the same sides, or to none of them."""
    if output.dim() == 2:
        return value.flatten(2).mean(2) if value.dim() > 2 else value
    if not spatial or value.shape[2:] == output.shape[2:]:
        return value
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[spatial - 1]
    return pool(value, output.shape[2:])  # type: ignore[arg-type]


def _is_own(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("postgrad.growth.")
