"""What a mutation sees of a network: the places where something can be put, the widths that can grow, its depth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from postgrad.growth._algebra import size_of
from postgrad.growth._places import Place, place
from postgrad.growth._steps import step_of
from postgrad.growth.axes import AxisGraph, WidthAxis, analyse
from postgrad.search.individual import Architecture

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_SHRINKING = (
    torch.ops.aten.convolution,
    torch.ops.aten.max_pool2d_with_indices,
    torch.ops.aten.avg_pool2d,
)
_POOLING = _SHRINKING[1:]


class Infeasible(Exception):  # noqa: N818
    """A mutation that cannot be, known before anything is grown or trained: one line that says why.

    >>> raise Infeasible("fc: cannot be widened: it is what the network returns")
    """


@dataclass(frozen=True)
class Limits:
    """What no network of a search may exceed: parameters (None: any number), layers, channels of one layer."""

    parameters: int | None = None
    depth: int = 100
    width: int = 1024


@dataclass(frozen=True)
class Site:
    """The output of a module that runs once, behind which something can be put: `shape` is (N, C, …) or (N, …, C).

    `layer` is how many convolutions and linear layers have begun by then, `at` how many modules are done before.
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    at: int

    @property
    def images(self) -> bool:
        """Whether it gives images (N, C, H, W)."""
        return len(self.shape) == 4

    @property
    def features(self) -> int:
        """How many channels or features it gives."""
        return self.shape[1] if self.images else self.shape[-1]

    @property
    def side(self) -> int:
        """The shorter side of the images that it gives; 1 where it gives none."""
        return min(self.shape[2:]) if self.images else 1


@dataclass(frozen=True)
class Width:
    """A width that can grow: the first layer that makes it, its channels, in which steps they grow.

    `depth` is how many layers stand before it; `axis` what is coupled with it.
    """

    layer: str
    channels: int
    step: int
    depth: int
    axis: WidthAxis = field(repr=False)


@dataclass(frozen=True, eq=False)
class Parent:
    """The network that a mutation begins with.

    >>> parent = Parent(model, images, architecture_of(model, images))
    >>> [site.name for site in parent.sites], [width.layer for width in parent.widths]
    (['conv1', 'conv2'], ['conv1', 'conv2'])

    `model` is in evaluation mode, and nobody changes it; `example` (N, C, H, W) are images as it takes them;
    `limits` what its children may be.
    """

    model: nn.Module
    example: Tensor
    architecture: Architecture
    limits: Limits = field(default_factory=Limits)
    _places: dict[str, Place] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def graph(self) -> AxisGraph:
        """Which of its widths belong together; analysed when first asked for."""
        return analyse(self.model, self.example)

    def place(self, name: str) -> Place:
        """Where a module is, as the operators see it; looked at once. `UserError` where it is none that they take."""
        if name not in self._places:
            self._places[name] = place(self.model, name, self.example[:2])
        return self._places[name]

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """Its convolutions and linear layers by name."""
        return {name: each for name, each in self.model.named_modules() if isinstance(each, LAYERS)}

    @cached_property
    def outputs(self) -> tuple[Site, ...]:
        """The outputs of all modules between its first and its last layer that run once and give one tensor."""
        runs = _runs(self.model, self.example)
        last = max((site.layer for site in runs), default=0)
        return tuple(site for site in runs if 0 < site.layer < last)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Where a layer can be put in, in the order of the network: at most one place a resolution between two layers.

        That is the last there, behind the activation where this is a module. Nothing is put behind the last layer.
        """
        inner = self.outputs
        chosen = {(site.layer, site.shape): site for site in inner}
        largest = {site.layer: max(each.side for each in inner if each.layer == site.layer) for site in inner}
        return tuple(site for site in chosen.values() if site.side > 1 or largest[site.layer] == 1)

    @cached_property
    def widths(self) -> tuple[Width, ...]:
        """The widths that can grow, in the order of the network, each once."""
        found: dict[Any, Width] = {}
        for depth, name in enumerate(self.layers):
            axis = next((each for each in self.graph.made_by(name) if not each.fixed), None)
            if axis is not None and axis.axis not in found:
                channels = size_of(self.graph.rows(name))
                unit = channels // axis.size
                step = unit * step_of(self.model, self.graph, axis)[0]
                found[axis.axis] = Width(name, channels, step, depth, axis)
        return tuple(found.values())


def architecture_of(model: nn.Module, example: Tensor) -> Architecture:
    """Convolutions and linear layers, halvings of the resolution, shorter side of the images.

    >>> architecture_of(create_model("seed-cnn", num_classes=10), torch.zeros(1, 3, 24, 24))
    Architecture(depth=3, pools=2, side=24)

    Poolings and strided convolutions both halve, whether they are modules or not; adaptive pooling and what pools all
    of an image do not count.
    """
    depth = sum(isinstance(each, LAYERS) for each in model.modules())
    side = min(example.shape[-2:])
    return Architecture(depth, halvings(model, example), side)


def most_poolings(architecture: Architecture) -> int:
    """How many halvings images allow: ⌊log₂ side⌋ − 2, which leaves 4 pixels or more; never below 0.

    >>> most_poolings(Architecture(depth=3, pools=0, side=32))
    3
    """
    return max(math.floor(math.log2(architecture.side)) - 2, 0)


def halvings(model: nn.Module, example: Tensor, pooled: Sequence[str] = ()) -> int:
    """How often the resolution of one image is halved, also where pooling followed the modules named in `pooled`.

    >>> halvings(model, images, pooled=["layer1"])
    3

    Raises what the network raises where a layer does not take the smaller image.
    """
    with contextlib.ExitStack() as hooks, _Sides() as sides:
        for name in pooled:
            hook = model.get_submodule(name).register_forward_hook(_pool)
            hooks.callback(hook.remove)
        _look(model, example)
    return math.floor(math.log2(min(example.shape[-2:]) / sides.least)) if sides.least else 0


@torch.no_grad()
def _look(model: nn.Module, example: Tensor) -> None:
    """Run the network on one image in evaluation mode; its statistics and modes stay as they are."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(example[:1])
    finally:
        for module, training in modes:
            module.training = training


def _pool(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return nn.functional.max_pool2d(output, 2)


class _Sides(TorchDispatchMode):
    """Notes the least side of an image in a forward pass; 0 where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.least = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _SHRINKING:
            image = result[0] if isinstance(result, tuple) else result
            before, after = (min(each.shape[-2:]) for each in (args[0], image))
            of_all = func.overloadpacket in _POOLING and after == 1
            if after < before and not of_all:
                self.least = min(self.least or after, after)
        return result


def _runs(model: nn.Module, example: Tensor) -> list[Site]:
    """The outputs of all modules that run once in one forward pass and give one tensor, in the order in which they are
    done."""
    seen: dict[str, list[Site | None]] = {}
    begun = done = 0

    def begin(_module: nn.Module, _args: Any) -> None:
        nonlocal begun
        begun += 1

    def finish(_module: nn.Module, _args: Any, output: Any, *, name: str) -> None:
        nonlocal done
        done += 1
        fits = isinstance(output, Tensor) and output.is_floating_point() and 2 <= output.dim() <= 4
        seen.setdefault(name, []).append(Site(name, tuple(output.shape), begun, done) if fits else None)

    with _hooked(model, begin, finish):
        _look(model, example)
    once = [sites[0] for sites in seen.values() if len(sites) == 1]
    return [site for site in once if site is not None]


@contextlib.contextmanager
def _hooked(model: nn.Module, begin: Callable[..., None], finish: Callable[..., None]) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, LAYERS):
                hooks.callback(module.register_forward_pre_hook(begin).remove)
            if name:
                hooks.callback(module.register_forward_hook(partial(finish, name=name)).remove)
        yield
