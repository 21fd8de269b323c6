"""Larger kernels: against torch's own convolution with the old one, for every kind of it; the new taps learn."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_nets import difference, images, net
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from postgrad.errors import UserError
from postgrad.growth import kernels
from postgrad.growth.journal import journal_of, regrow
from postgrad.growth.kernels import grow_kernel

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def images_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def layers(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    spatial = draw(st.integers(1, 3))
    sizes = tuple(draw(st.integers(1, 4)) for _ in range(spatial))
    groups = draw(st.integers(1, 2))
    stride = draw(st.integers(1, 2))
    padding: Any = draw(st.sampled_from([0, 1, tuple(range(spatial)), "valid", "same"]))
    layer = CONVOLUTIONS[spatial](
        2 * groups,
        3 * groups,
        sizes,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        dtype=torch.float64,
    )
    return layer, tuple(each + 2 * draw(st.integers(0, 2)) for each in sizes)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths:UserWarning")
@settings(max_examples=20)
@given(case=layers(), n=st.integers(1, 2))
def test_every_kind_of_convolution_gives_what_it_gave(case: tuple[Any, tuple[int, ...]], n: int) -> None:
    layer, size = case
    assume(size != layer.kernel_size)
    x = images_of((n, layer.in_channels, *[12] * len(size)), seed=n)
    expected = layer(x)
    # A second layer, so that the kernel that grows is not the last.
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(expected[0].numel(), 2, dtype=torch.float64))
    certificate = grow_kernel(model, "0", to=size, example=x)
    assert certificate.mode == "train"
    assert layer.kernel_size == size == tuple(layer.weight.shape[2:])
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert "valid" not in repr(layer)


@pytest.mark.parametrize(
    ("name", "layer", "to"),
    [
        ("plain", "c1", 5),
        ("plain", "c0", (3, 7)),
        ("tokens", "patches", 6),
        ("1-D", "conv", 7),
        ("3-D", "conv", (3, 5, 3)),
        pytest.param("mobilenet", "features.2.conv.1.0", 5, marks=pytest.mark.slow),  # depthwise
        pytest.param("densenet", "features.denseblock1.denselayer2.conv2", 5, marks=pytest.mark.slow),
        pytest.param("resnet", "conv1", 9, marks=pytest.mark.slow),
        pytest.param("bottlenecks", "layer2.0.conv2", 5, marks=pytest.mark.slow),  # grouped, strided
        pytest.param("vgg", "0.0", 5, marks=pytest.mark.slow),
        pytest.param("vit", "conv_proj", 8, marks=pytest.mark.slow),
    ],
)
def test_a_network_computes_what_it_did_in_either_mode(name: str, layer: str, to: Any) -> None:
    before, model = net(name), net(name)
    old = copy.deepcopy(model.get_submodule(layer).weight)
    certificate = grow_kernel(model, layer, to=to, example=images())
    assert (certificate.mode, certificate.exact) == ("train", True)
    assert max(difference(before, model), difference(before, model, train=True)) <= 1e-9
    module = model.get_submodule(layer)
    assert module.weight.count_nonzero() == old.count_nonzero()
    nn.init.normal_(module.weight)
    assert difference(before, model) > 1e-3


def test_a_kernel_out_of_its_centre_is_refused_and_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(layer: Any, size: tuple[int, ...]) -> Any:
        move = enlarge(layer, size)
        layer.weight = nn.Parameter(layer.weight.detach().roll(1, -1))
        return type(move)(move.old, layer.weight, move.along)

    enlarge = kernels._enlarge
    monkeypatch.setattr(kernels, "_enlarge", shifted)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before, said = dict(model.named_parameters()), repr(model)
    with pytest.raises(UserError, match="grow_kernel c1: the network would no longer compute the same"):
        grow_kernel(model, "c1", to=5, example=images(), optimizer=optimizer)
    assert list(model.named_parameters()) == list(before.items())
    assert repr(model) == said
    assert optimizer.param_groups[0]["params"] == list(before.values())
    assert journal_of(model) == ()


def test_the_optimizer_keeps_what_it_knows_and_trains_the_new_taps() -> None:
    model = net().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(images(4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    old = optimizer.state[model.c1.weight]["exp_avg"].clone()
    grow_kernel(model, "c1", to=5, example=images(), optimizer=optimizer)
    momentum = optimizer.state[model.c1.weight]["exp_avg"]
    torch.testing.assert_close(momentum[..., 1:-1, 1:-1], old, rtol=0, atol=0)
    assert momentum.count_nonzero() == old.count_nonzero()
    ring = torch.ones(5, 5, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    assert not model.c1.weight[..., ring].any()
    model(images(4)).square().mean().backward()
    optimizer.step()
    assert model.c1.weight[..., ring].all()


def test_what_else_it_is_survives() -> None:
    model = net().to(memory_format=torch.channels_last)
    model.c1.weight.requires_grad_(False)
    grow_kernel(model, "c1", to=5, example=images())
    assert not model.c1.weight.requires_grad
    assert model.c1.weight.is_contiguous(memory_format=torch.channels_last)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert difference(model, same) == 0


@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_it_is_grown_again_from_the_journal(padding: Any, mode: str) -> None:
    def make() -> nn.Module:
        conv = nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode)
        return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()

    model, other = make(), make()
    grow_kernel(model, "0", to=5, example=images())
    grow_kernel(model, "0", to=(5, 7), example=images())
    for entry in journal_of(model):
        regrow(other, **entry)
    other.load_state_dict(model.state_dict())
    nn.init.normal_(model[0].weight)
    other.load_state_dict(model.state_dict())
    assert difference(model, other) == 0
    assert repr(model) == repr(other)


@pytest.mark.parametrize(
    ("layer", "to", "message"),
    [
        ("c2", 5, "unknown module 'c2'"),
        ("fc", 5, "is a Linear: only convolutions have a kernel; name a convolution"),
        ("c1", 4, "each size grows by an even number"),
        ("c1", (5, 6), "each size grows by an even number"),
        ("c1", 3, "grows only"),
        ("c1", 1, "grows only"),
        ("c1", (5,), "expected one size or 2"),
        ("c1", (5, 5.0), "expected one size or 2"),
        ("c1", "55", "expected one size or 2"),
    ],
)
def test_sizes_and_layers_that_cannot_be_are_refused(layer: str, to: Any, message: str) -> None:
    model = net()
    with pytest.raises(UserError, match=message) as error:
        grow_kernel(model, layer, to=to, example=images())
    assert "\n" not in str(error.value)
    assert model.c1.kernel_size == (3, 3)


def test_transposed_shared_and_parametrized_layers_are_refused() -> None:
    shared = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    shared[1].weight = shared[0].weight
    cases = [
        (nn.Sequential(nn.ConvTranspose2d(3, 3, 3)), "more taps would make its output larger"),
        (shared, "is shared by 0, 1"),
        (nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 3, 3))), "is parametrized"),
    ]
    for model, message in cases:
        with pytest.raises(UserError, match=message):
            grow_kernel(model, "0", to=5, example=images())


def test_reflected_padding_larger_than_the_image_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))
    weight = model[0].weight
    with pytest.raises(UserError, match="would no longer run"):
        grow_kernel(model, "0", to=21, example=images(2, 8))
    assert model[0].weight is weight
    assert model[0].padding == (1, 1)
    assert model[0]._reversed_padding_repeated_twice == (1, 1, 1, 1)


def test_a_layer_that_runs_twice_grows_in_both_places() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    before = copy.deepcopy(model)
    grow_kernel(model, "0", to=5, example=images())
    assert difference(before, model) <= 1e-9
