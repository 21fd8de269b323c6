"""The ways to grow a network: ours, erogol/Net2Net's and gromo's, each as it comes and at its most exact."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from growth_benchmark.networks import Case
from postgrad.errors import UserError
from postgrad.growth.depth import deepen
from postgrad.growth.width import widen

Grow = Callable[[Case, nn.Module, Tensor, int], nn.Module]


class NotApplicableError(Exception):
    """It has nothing for this case; the message says why."""


class NotThisCaseError(Exception):
    """The setting says nothing about this case."""


@dataclass(frozen=True)
class Way:
    """`grow` takes a case, its network (which it may change), a batch and a seed, and gives the grown network."""

    implementation: str
    setting: str
    grow: Grow


def ways(net2net: Path | None, gromo: bool) -> list[Way]:
    """All of them, ours first; those of Net2Net only where its file is given, gromo's where it is installed."""
    found = [Way("postgrad", "as it comes", _ours), Way("postgrad", "an identity layer", _our_identity)]
    if net2net is not None:
        module = _module_of(net2net)
        quiet = {"noise": False, "random_init": False, "weight_norm": False}
        found.append(Way("Net2Net", "as it comes", _net2net(module, {})))
        found.append(Way("Net2Net", "without noise, random units, norms", _net2net(module, quiet)))
    if gromo:
        for setting, options in GROMO_SETTINGS.items():
            found.append(Way("gromo", setting, _gromo(options)))
    return found


def _ours(case: Case, network: nn.Module, x: Tensor, seed: int) -> nn.Module:
    if case.kind == "widen":
        widen(network, case.layer, to=case.to, example=x, seed=seed)
    else:
        deepen(network, "relu1", example=x, seed=seed)
    return network


def _our_identity(case: Case, network: nn.Module, x: Tensor, seed: int) -> nn.Module:
    if case.kind != "deepen":
        raise NotThisCaseError
    deepen(network, "relu1", kind="identity", example=x, seed=seed)
    return network


def _module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("net2net_peer", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise UserError(f"--net2net: {file} is no Python file; give the path of erogol/Net2Net's net2net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("wider", "deeper"):
        if not hasattr(module, name):
            raise UserError(f"--net2net: {file} has no function '{name}'; give erogol/Net2Net's net2net.py")
    return module


def _net2net(module: ModuleType, options: Mapping[str, Any]) -> Grow:
    def grow(case: Case, network: nn.Module, x: Tensor, seed: int) -> nn.Module:
        layer = network.get_submodule(case.layer)
        norm = network.get_submodule(case.norm) if case.norm else None
        if case.kind == "residual":
            raise NotApplicableError("has no residual blocks")
        if case.kind == "widen":
            module.wider(layer, network.get_submodule(case.reader), case.to, bnorm=norm, **options)
            return network
        # As in its examples; a ReLU before the network's own normalisation would cut what that expects.
        known = {name: value for name, value in options.items() if name != "random_init"}
        nonlinear = None if norm else nn.ReLU
        network.set_submodule(case.layer, module.deeper(layer, nonlinear, bnorm_flag=bool(norm), **known))
        return network

    return grow


GROMO_SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "units in pairs": {"neuron_pairing": "vv_z_negz"},
    "units in pairs, without noise": {"neuron_pairing": "vv_z_negz", "noise_ratio": 0.0},
    "new columns zero": {"input_extension_init": "zeros"},
}


def _gromo(options: Mapping[str, Any]) -> Grow:
    def grow(case: Case, network: nn.Module, x: Tensor, seed: int) -> nn.Module:
        if case.kind == "deepen":
            raise NotApplicableError("puts in no layers that are the identity")
        if "resnet18" in case.what:
            raise NotApplicableError("grows networks made of its own modules only")
        if case.layer == "stem":
            raise NotApplicableError("cannot widen what its blocks add to")
        before = network(x)
        reader, more = _in_its_modules(case, network)
        if not torch.allclose(network(x), before, rtol=0, atol=1e-4 if x.dtype == torch.float32 else 1e-10):
            raise RuntimeError(f"{case.what}: the network made of gromo's modules is not the same")
        sizes = {"output_extension_size": more, "input_extension_size": more * case.pixels}
        reader.create_layer_extensions(extension_size=more, **sizes, **options)
        reader.apply_change(extension_size=more, scaling_factor=1.0)
        reader.delete_update(include_previous=True)
        return network.to(x.dtype)

    return grow


def _in_its_modules(case: Case, network: nn.Module) -> tuple[Any, int]:
    """Put gromo's modules in the place of those that grow; the reader, and by how many units they shall."""
    if case.kind == "residual":
        block = _its_block(nn.BatchNorm2d(8), hidden=0, channels=8).eval()
        network.set_submodule(case.layer, nn.Sequential(network.get_submodule(case.layer), block))
        return block.second_layer, 8
    layer = network.get_submodule(case.layer)
    if case.block is not None:
        own: Any = network.get_submodule(case.block)
        block = _its_block(own.bn2, hidden=layer.out_channels, channels=layer.in_channels)
        block.first_layer.layer.load_state_dict(own.conv1.state_dict())
        block.first_layer.post_layer_function[0].load_state_dict(own.bn1.state_dict())
        block.second_layer.layer.load_state_dict(own.conv2.state_dict())
        network.set_submodule(case.block, block.eval())
        return block.second_layer, case.to - layer.out_channels
    norm = network.get_submodule(case.norm) if case.norm else None
    first = _its_layer(layer, post_layer_function=_its_activation(norm))
    second = _its_layer(network.get_submodule(case.reader), previous_module=first)
    nothing = [case.norm, "relu1"] if case.norm else ["relu1"]
    placed = {case.layer: first, case.reader: second} | {name: nn.Identity() for name in nothing}
    for name, module in placed.items():
        network.set_submodule(name, module.eval())
    return second, case.to - layer.weight.shape[0]


def _its_activation(norm: nn.Module | None) -> nn.Module:
    from gromo.modules.growing_normalisation import GrowingBatchNorm2d

    if norm is None:
        return nn.ReLU()
    assert isinstance(norm, nn.BatchNorm2d)
    made = GrowingBatchNorm2d(norm.num_features)
    made.load_state_dict(norm.state_dict())
    return nn.Sequential(made, nn.ReLU())


def _its_layer(layer: nn.Module, **options: Any) -> nn.Module:
    from gromo.modules.conv2d_growing_module import RestrictedConv2dGrowingModule
    from gromo.modules.linear_growing_module import LinearGrowingModule

    made: Any
    if isinstance(layer, nn.Linear):
        made = LinearGrowingModule(layer.in_features, layer.out_features, use_bias=layer.bias is not None, **options)
    else:
        assert isinstance(layer, nn.Conv2d)
        size = {"kernel_size": layer.kernel_size, "padding": layer.padding, "use_bias": layer.bias is not None}
        made = RestrictedConv2dGrowingModule(layer.in_channels, layer.out_channels, **size, **options)
    made.layer.load_state_dict(layer.state_dict())
    return made


def _its_block(last_norm: nn.Module, *, hidden: int, channels: int) -> Any:
    from gromo.containers.growing_block import Conv2dGrowingBlock
    from gromo.modules.growing_normalisation import GrowingBatchNorm2d

    return Conv2dGrowingBlock(
        channels,
        channels,
        kernel_size=3,
        hidden_channels=hidden,
        pre_activation=nn.Identity(),
        mid_activation=nn.Sequential(GrowingBatchNorm2d(hidden), nn.ReLU()),
        pre_addition_function=last_norm,
        kwargs_layer={"padding": 1, "use_bias": True},
    )
