"""The layers that growth puts into a network, by name, and the two ways in which they are put there.

Behind a module: at the end of an `nn.Sequential`, and otherwise as its child `grown`, which a hook runs on its output.
Beside a module: as its child `branches`, to which a hook gives its arguments and its output (`postgrad.growth.beside`).
So nothing that is already there gets another name. Every block is made from JSON options alone and no other code can be
named, so that a saved network can be built again from a file that nobody needs to trust.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from postgrad.errors import UserError, unknown_name
from postgrad.growth.beside import fresh_copy, put_beside, put_skip

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[_BatchNorm]] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
Form = Literal["after", "before", "gated", "residual"]
_MOST_FEATURES = 2**16
_MOST_ELEMENTS = 2**31


class Grown(nn.Sequential):
    """The blocks that growth has put behind a module, in the order in which they run."""


class ConvResidual(nn.Module):
    """x + f(x) with f = 3×3 convolution, batch normalisation, ReLU, and the first two again; images (N, C, …).

    >>> ConvResidual(8)(torch.ones(2, 8, 4, 4)).unique()
    tensor([1.], grad_fn=<Unique2Backward0>)

    γ and β of the last normalisation start at zero; without `norm`, the last convolution does. `spatial` is 1, 2 or 3.
    """

    def __init__(self, features: int, spatial: int = 2, norm: bool = True) -> None:
        super().__init__()
        first, last = (_convolution(features, spatial, bias=not norm) for _ in range(2))
        norms = [NORMS[spatial](features) if norm else nn.Identity() for _ in range(2)]
        self.body = nn.Sequential(first, norms[0], nn.ReLU(), last, norms[1])
        _zero(norms[1] if norm else last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class TokenResidual(nn.Module):
    """x + f(x) with f = layer normalisation, linear, GELU, linear; tokens (N, T, C), or any (…, C).

    >>> TokenResidual(8)(torch.ones(2, 5, 8)).unique()
    tensor([1.], grad_fn=<Unique2Backward0>)

    It is four times as wide inside. The last layer starts at zero.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        last = nn.Linear(4 * features, features)
        self.body = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, 4 * features), nn.GELU(), last)
        _zero(last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class FeatureResidual(nn.Module):
    """x + f(x) with f = linear, ReLU, linear; features (N, C).

    >>> FeatureResidual(8)(torch.ones(2, 8)).unique()
    tensor([1.], grad_fn=<Unique2Backward0>)

    The last layer starts at zero.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        last = nn.Linear(features, features)
        self.body = nn.Sequential(nn.Linear(features, features), nn.ReLU(), last)
        _zero(last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Layer(nn.Module):
    """One layer f that starts as the identity, where need be behind a gate: 3×3 convolution or linear, then ReLU.

    >>> Layer(8, form="after")(torch.ones(2, 8, 4, 4)).unique()
    tensor([1.], grad_fn=<Unique2Backward0>)

    `spatial` is 1, 2 or 3 for images (N, C, …), 0 for a linear layer over (…, C). What it computes, by `form`:

    - "after": relu(norm(layer(x))), the identity where x ≥ 0;
    - "before": norm(layer(relu(x))), the identity where a ReLU follows;
    - "gated": (1 − gate)·relu(norm(layer(x))) + gate·x, gate = 1 at the start;
    - "residual": x + gate·relu(norm(layer(x))), gate = 0 at the start.

    A batch normalisation (`norm`) starts as torch makes it; the operator sets it to the statistics of its input.
    """

    def __init__(
        self, features: int, spatial: int = 2, groups: int = 1, norm: bool = False, form: Form = "after"
    ) -> None:
        super().__init__()
        if form not in ("after", "before", "gated", "residual"):
            raise unknown_name("form of a layer", str(form), ("after", "before", "gated", "residual"))
        self.form = form
        self.layer = _convolution(features, spatial, bias=not norm, groups=groups) if spatial else _linear(features)
        self.norm = NORMS[spatial](features) if norm else nn.Identity()
        if form in ("gated", "residual"):
            self.gate = nn.Parameter(torch.ones(1) if form == "gated" else torch.zeros(1))
        self.start_as_identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "before":
            return self.norm(self.layer(F.relu(x)))
        f = F.relu(self.norm(self.layer(x)))
        if self.form == "after":
            return f
        gate = self.gate[0]  # without any dimension, so that a half-precision input stays one under autocast
        return x + gate * f if self.form == "residual" else (1 - gate) * f + gate * x

    def start_as_identity(self) -> None:
        """Set the weight to the identity and the bias to zero."""
        if isinstance(self.layer, nn.Linear):
            nn.init.eye_(self.layer.weight)
        else:
            nn.init.dirac_(self.layer.weight, groups=self.layer.groups)
        if self.layer.bias is not None:
            nn.init.zeros_(self.layer.bias)


class Pool(nn.Module):
    """Halve the resolution of (N, C, …), "max" or "average"; an odd side is rounded down.

    >>> Pool("max", spatial=2)(torch.ones(2, 8, 4, 4)).shape
    torch.Size([2, 8, 2, 2])
    """

    def __init__(self, kind: Literal["max", "average"], spatial: int = 2) -> None:
        super().__init__()
        if kind not in ("max", "average"):
            raise unknown_name("kind of pooling", str(kind), ("max", "average"))
        layers: dict[str, dict[int, Callable[[int], nn.Module]]] = {
            "max": {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d},
            "average": {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d},
        }
        self.pool = layers[kind][spatial](2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


BLOCKS: dict[str, type[nn.Module]] = {
    "residual": ConvResidual,
    "residual_tokens": TokenResidual,
    "residual_features": FeatureResidual,
    "layer": Layer,
    "dropout": nn.Dropout,
    "pool": Pool,
}
"""Name in a journal -> the block that is put behind a module. A fixed table: a journal cannot name code."""

_ELSEWHERE = ("copy", "branches", "skip")
"""What else `insert` knows: made from a module that the network has already, or put beside one."""


def insert(model: nn.Module, into: str, block: str, options: Mapping[str, Any]) -> str:
    """Put a block behind or beside the module named `into`; returns the dotted name of what was put in.

    >>> insert(model, "layer3.1", "residual", {"features": 256})
    'layer3.1.grown.0'

    `block` is a name in `BLOCKS`; or "copy", a fresh copy of the module that the option `of` names; "branches" or
    "skip", for which see `postgrad.growth.beside`. The block takes over mode, device and dtype of where it is put; its
    weights are drawn from torch's global generator. `UserError` for an unknown module, block or option.
    """
    module = submodule(model, into)
    like = sample(module, model)
    try:
        if block == "branches":
            return f"{into}.{put_beside(module, **options, like=like)}"
        if block == "skip":
            begin = submodule(model, options["source"])
            rest = {key: value for key, value in options.items() if key != "source"}
            return f"{into}.{put_skip(module, begin, **rest, like=like)}"
        if block == "copy":
            return f"{into}.{put_behind(module, fresh_copy(submodule(model, options['of'])))}"
        return f"{into}.{put_behind(module, _make(block, options).to(like.device, like.dtype).train(module.training))}"
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"block '{block}' for '{into}' cannot be made from {dict(options)}: {error}") from error


def put_behind(module: nn.Module, block: nn.Module) -> str:
    """Make `block` run on what `module` gives; returns the block's name within the module.

    >>> put_behind(model.layer3[1], block)
    'grown.0'
    """
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise UserError(f"a {type(module).__name__} runs its own children; name one of them, or the module around it")
    if isinstance(module, nn.Sequential):
        name = next(str(number) for number in itertools.count(len(module)) if str(number) not in module._modules)
        module.add_module(name, block)
        return name
    if not hasattr(module, "grown"):
        module.add_module("grown", Grown())
        module.register_forward_hook(run_grown)
    grown = module.grown
    if not isinstance(grown, Grown):
        raise UserError(f"{type(module).__name__} has an attribute 'grown' of its own, which growth needs; rename it")
    grown.append(block)
    return f"grown.{len(grown) - 1}"


def run_grown(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    """The hook of a module that has blocks behind it."""
    blocks: Any = module.grown
    result: Tensor = blocks(output)
    return result


def sample(*places: nn.Module) -> Tensor:
    """A floating-point tensor of the first of these modules that has one: its device and dtype are the block's.

    >>> sample(model.layer3[1], model).dtype
    torch.float32
    """
    tensors = itertools.chain.from_iterable(itertools.chain(each.parameters(), each.buffers()) for each in places)
    return next((each.detach() for each in tensors if each.is_floating_point()), torch.empty(0))


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of that dotted name; `UserError` with the nearest one where there is none.

    >>> submodule(model, "layer3.1")
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if not name or name not in modules:
        near = [each for each in modules if each and each.count(".") == name.count(".")]
        raise unknown_name("module", name, near or [each for each in modules if each])
    return modules[name]


def gates(block: nn.Module) -> list[str]:
    """The parameters of a residual or gated block on which its being the identity hangs.

    >>> gates(ConvResidual(8))
    ['body.4.weight', 'body.4.bias']
    """
    if isinstance(block, Layer):
        return ["gate"] if hasattr(block, "gate") else ["layer.weight"]
    body = block.get_submodule("body")
    last = [name for name, layer in body.named_children() if not isinstance(layer, nn.Identity)][-1]
    return [f"body.{last}.weight", f"body.{last}.bias"]


def _make(block: str, options: Mapping[str, Any]) -> nn.Module:
    if block not in BLOCKS:
        raise unknown_name("block", block, [*BLOCKS, *_ELSEWHERE])
    features = options.get("features", 1)
    if type(features) is not int or not 1 <= features <= _MOST_FEATURES:
        raise UserError(f"block '{block}' takes 1 to {_MOST_FEATURES} features, got {features}")
    with torch.device("meta"):
        size = sum(each.numel() for each in BLOCKS[block](**options).parameters())
    if size > _MOST_ELEMENTS:
        raise UserError(f"block '{block}' would have {size} weights, at most {_MOST_ELEMENTS} are taken")
    return BLOCKS[block](**options)


def _convolution(features: int, spatial: int, *, bias: bool, groups: int = 1) -> Any:
    return CONVOLUTIONS[spatial](features, features, 3, padding=1, bias=bias, groups=groups)


def _linear(features: int) -> Any:
    return nn.Linear(features, features)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
