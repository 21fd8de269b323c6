"""Convolution gradients that leave out zeros, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from postgrad.gradients import _sparse, contract
from postgrad.gradients.engine import GradientEngine
from postgrad.gradients.names import weight_names

convolutions = st.fixed_dictionaries(
    {
        "images": st.integers(1, 3),
        "labels": st.integers(1, 3),
        "inputs": st.integers(1, 18),
        "outputs": st.integers(1, 5),
        "size": st.tuples(st.integers(9, 12), st.integers(9, 12)),
        "kernel": st.tuples(st.integers(1, 4), st.integers(1, 9)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 1)),
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "share": st.sampled_from([0.0, 0.2, 1.0]),
        "seed": st.integers(0, 1000),
    }
)


def deltas_with_zeros(shape: tuple[int, ...], share: float) -> Tensor:
    return torch.randn(shape) * (torch.rand(shape) < share)


def example(case: dict) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """A convolution, images, and what reaches its output under each label (L, N, O, H, W)."""
    torch.manual_seed(case["seed"])
    layer = nn.Conv2d(
        case["inputs"],
        case["outputs"],
        case["kernel"],
        stride=case["stride"],
        dilation=case["dilation"],
        padding=case["padding"],
    )
    x = torch.randn(case["images"], case["inputs"], *case["size"])
    return layer, x, deltas_with_zeros((case["labels"], *layer(x).shape), case["share"])


@settings(max_examples=60, deadline=None)
@given(convolutions, st.booleans())
def test_weight_gradients_are_autograds(case: dict, channels_last: bool) -> None:
    layer, x, deltas = example(case)
    out = torch.full((case["images"], case["labels"], layer.weight.numel()), torch.nan)
    delta = deltas.flatten(3).transpose(0, 1)
    padded = F.pad(x, (case["padding"][1],) * 2 + (case["padding"][0],) * 2)
    if channels_last:
        padded = padded.contiguous(memory_format=torch.channels_last)
        delta = delta.transpose(2, 3).contiguous().transpose(2, 3)
    _sparse.weight_gradients(padded, delta, contract.geometry(layer, x), out, add=False)
    exact = layer.double()
    for n in range(case["images"]):
        for label in range(case["labels"]):
            reached = deltas[label, n : n + 1].double()
            (expected,) = torch.autograd.grad(exact(x[n : n + 1].double()), exact.weight, reached)
            assert torch.allclose(out[n, label].double(), expected.flatten(), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(convolutions, st.booleans())
def test_input_gradients_are_autograds(case: dict, channels_last: bool) -> None:
    layer, x, deltas = example(case)
    if channels_last:
        x, deltas = x.contiguous(memory_format=torch.channels_last), deltas.movedim(2, -1).contiguous().movedim(-1, 2)
    x.requires_grad_()
    output = contract.SparseBackward.apply(x, layer(x), layer)
    (found,) = torch.autograd.grad(output, x, deltas[0])
    exact, leaf = layer.double(), x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(exact(leaf), leaf, deltas[0].double())
    assert found.shape == x.shape
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_added_to_what_is_there() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 2, 3), torch.randn(2, 3, 5, 5)
    delta = deltas_with_zeros((2, 1, 2, 9), 0.3)
    once, twice = torch.zeros(2, 1, 54), torch.zeros(2, 1, 54)
    _sparse.weight_gradients(x, delta, contract.geometry(layer, x), once, add=False)
    for _ in range(2):
        _sparse.weight_gradients(x, delta, contract.geometry(layer, x), twice, add=True)
    assert torch.allclose(twice, 2 * once)


def test_rows_may_lie_apart() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 2, 3), torch.randn(2, 3, 5, 5)
    delta = deltas_with_zeros((2, 2, 2, 9), 0.3)
    apart = torch.full((2, 5, 54), 7.0)
    together = torch.empty(2, 2, 54)
    _sparse.weight_gradients(x, delta, contract.geometry(layer, x), apart[:, 1:3], add=False)
    _sparse.weight_gradients(x, delta, contract.geometry(layer, x), together, add=False)
    assert torch.equal(apart[:, 1:3], together)
    assert bool((apart[:, [0, 3, 4]] == 7).all())


class PooledNet(nn.Module):
    """Convolutions before ReLU and pooling, whose gradients are mostly zero; `inplace` overwrites their outputs."""

    def __init__(self, inplace: bool, dimensions: int = 2) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d)[dimensions - 1]
        pool = (nn.MaxPool1d, nn.MaxPool2d)[dimensions - 1]
        self.features = nn.Sequential(
            convolution(2, 4, 3, padding=1),
            nn.ReLU(inplace=inplace),
            pool(3),
            convolution(4, 6, 3, padding="same"),
            nn.ReLU(inplace=inplace),
            pool(2),
        )
        self.last = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x).flatten(1))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_engine_uses_it_and_is_exact(inplace: bool, dimensions: int) -> None:
    torch.manual_seed(0)
    model, x = PooledNet(inplace, dimensions), torch.randn(5, 2, *(12,) * dimensions)
    model(x)
    engine = GradientEngine(model, x, parameters=weight_names(model))
    assert engine._plan.sparse == {"features.0", "features.3"}
    found = {name: rows.clone() for name, rows in engine.gradients(x, "all")}
    exact, weights = model.double(), {name: p for name, p in model.named_parameters() if p.dim() > 1}
    for row in range(25):
        loss = F.cross_entropy(exact(x[row // 5 : row // 5 + 1].double()), torch.tensor([row % 5]))
        for name, expected in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            assert torch.allclose(found[name][row].double(), expected.flatten(), rtol=1e-4, atol=1e-6)


def test_pieces_are_the_rows() -> None:
    torch.manual_seed(0)
    model, x = PooledNet(False), torch.randn(9, 2, 12, 12)
    model(x)
    engine = GradientEngine(model, x, parameters=weight_names(model))
    for labels in ("all", torch.arange(9) % 5):
        whole = {name: rows.clone() for name, rows in engine.gradients(x, labels)}
        logits = engine.logits
        found = {name: torch.full_like(rows, torch.nan) for name, rows in whole.items()}

        def use(rows: slice, blocks: dict[str, Tensor], found: dict[str, Tensor] = found) -> None:
            for name, part in blocks.items():
                found[name][rows] = part

        engine.pieces(x, labels, use)
        for name, rows in whole.items():
            assert torch.equal(found[name], rows)
        assert torch.equal(engine.logits, logits)


def test_no_images_no_pieces() -> None:
    model, x = PooledNet(False), torch.randn(3, 2, 12, 12)
    model(x)
    engine = GradientEngine(model, x, parameters=weight_names(model))
    engine.pieces(x[:0], "all", lambda rows, blocks: pytest.fail("there is no piece"))


def test_a_dense_network_is_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))
    assert GradientEngine(model, torch.randn(3, 1, 6, 6))._plan.sparse == frozenset()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_bits(threads: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(5, 3, 7, 7, requires_grad=True)
    delta = deltas_with_zeros((5, 4, 7, 7), 0.3)
    expected = torch.autograd.grad(contract.SparseBackward.apply(x, layer(x), layer), x, delta)[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = torch.autograd.grad(contract.SparseBackward.apply(x, layer(x), layer), x, delta)[0]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


class Viewing(nn.Module):
    """A network that cannot take images whose channels lie together."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.last = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.convolution(x).view(len(x), -1))


def test_channels_last_only_where_the_network_takes_it() -> None:
    x = torch.randn(3, 2, 6, 6)
    assert not GradientEngine(Viewing(), x)._plan.channels_last
    model = PooledNet(False)
    model(torch.randn(3, 2, 12, 12))
    assert GradientEngine(model, torch.randn(3, 2, 12, 12))._plan.channels_last


def test_channels_last_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    model, x = PooledNet(False), torch.randn(7, 2, 12, 12)
    model(x)
    engine = GradientEngine(model, x, parameters=weight_names(model))
    labels = torch.arange(7) % 5
    together = {name: rows.clone() for name, rows in engine.gradients(x, labels)}
    object.__setattr__(engine._plan, "channels_last", False)
    for name, rows in engine.gradients(x, labels):
        assert torch.allclose(rows, together[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 3, 2), (0, 2, 3, 1), (0, 3, 2, 1)])
def test_an_input_that_lies_in_another_order(order: tuple[int, ...]) -> None:
    """What reaches a convolution's input is written in place, so it must not be written to a copy."""
    torch.manual_seed(0)
    stored = torch.randn(2, 4, 4, 4)
    x = stored.permute(order).requires_grad_()
    layer = nn.Conv2d(4, 3, 3, padding=1)
    delta = deltas_with_zeros(tuple(layer(x).shape), 0.3)
    (found,) = torch.autograd.grad(contract.SparseBackward.apply(x, layer(x), layer), x, delta)
    (expected,) = torch.autograd.grad(layer(x), x, delta)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
