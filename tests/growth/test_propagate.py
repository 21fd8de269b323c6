"""The rules of single operations, each against the operation itself with more units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.growth import _propagate
from postgrad.growth._algebra import Axis, axes_of, size_of
from postgrad.growth._propagate import Notes, Step, Value, Values, fixed_like, follow, free_weight
from postgrad.growth.axes import _arguments, _constraints, shares, units

Function = Callable[..., Any]


class Program(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


class Followed:
    """A function's graph with every dimension of its inputs free; those after the first `activations` are weights."""

    def __init__(self, function: Function, inputs: list[Tensor], activations: int) -> None:
        self.function, self.tensors = function, inputs
        self.inputs = [free_weight(f"w{n}", each) for n, each in enumerate(inputs)]
        self.inputs[:activations] = [Value(each.dims) for each in self.inputs[:activations]]
        self.notes = Notes()
        program = torch.export.export(Program(function), tuple(inputs), strict=False)
        values: dict[Any, Values] = {}
        given = dict(zip(program.graph_signature.user_inputs, self.inputs, strict=True))
        for node in program.graph.nodes:
            if node.name in given:
                values[node] = given[node.name]
            elif node.op == "call_function":
                values[node] = follow(Step(node, _arguments(node, values), self.notes))
            elif node.op == "output":
                self.outputs: list[Value] = [values[each] for each in node.args[0]]  # type: ignore[misc]
            else:
                values[node] = fixed_like(node.meta.get("val"))

    @property
    def free(self) -> list[Axis]:
        axes = dict.fromkeys(axis for value in self.inputs for dim in value.dims for axis in axes_of(dim))
        return [axis for axis in axes if not axis.reasons]

    def wide(self, axis: Axis, index: Tensor) -> list[Tensor]:
        """The inputs with more units on an axis; what is summed over is shared, queries and keys by their roots."""
        return [
            self.spread(value, tensor, axis, index) for value, tensor in zip(self.inputs, self.tensors, strict=True)
        ]

    def spread(self, value: Value, tensor: Tensor, axis: Axis, index: Tensor) -> Tensor:
        count = torch.bincount(index)[index].double()
        gain = torch.ones_like(count)
        if axis in _constraints(self.notes.scaled):
            gain = ((len(index) / axis.size) ** 0.5 / count).sqrt()
        for number, dim in enumerate(value.dims):
            summed = (value.weight, number) in self.notes.columns
            share = shares(dim, axis, index, 1 / count if summed else gain)
            column = [-1 if n == number else 1 for n in range(tensor.ndim)]
            tensor = tensor.index_select(number, units(dim, axis, index)) * share.reshape(column).to(tensor.dtype)
        return tensor

    def check(self) -> None:
        """Oracle: the function of the wider inputs is its result with its own units repeated."""
        before = results(self.function(*self.tensors))
        assert [tuple(map(size_of, value.dims)) for value in self.outputs] == [tuple(each.shape) for each in before]
        for axis in self.free:
            even = axis in _constraints(self.notes.even)
            more = torch.arange(axis.size).flip(0) if even else torch.tensor([axis.size - 1, 0, 0])
            index = torch.cat([torch.arange(axis.size), more])
            after = results(self.function(*self.wide(axis, index)))
            for value, old, new in zip(self.outputs, before, after, strict=True):
                torch.testing.assert_close(new, self.spread(value, old, axis, index), rtol=1e-9, atol=1e-9)


def results(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [each for one in output for each in results(one)]


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1 for shape in shapes]


def followed(function: Function, *shapes: tuple[int, ...], activations: int = 9) -> Followed:
    return Followed(function, drawn(*shapes), activations)


NCHW, NTC = (2, 4, 6, 6), (2, 3, 4)
PASSING: dict[str, tuple[Function, int, tuple[tuple[int, ...], ...]]] = {
    # name: the function, how many axes of its inputs remain free, the inputs' shapes
    "relu": (F.relu, 3, (NTC,)),
    "gelu, exp, clamp": (lambda x: F.gelu(x).exp().clamp(0.1, 2), 3, (NTC,)),
    "in place": (lambda x: F.relu_(x.clone()).mul_(2).add_(x), 3, (NTC,)),
    "scalars": (lambda x: 1 - 2 / (x * 3 + 1) ** 2, 3, (NTC,)),
    "two": (lambda x, y: torch.maximum(x, y) * (x > y), 3, (NTC, NTC)),
    "repeated": (lambda x, y: x * y + y, 3, (NTC, (4,))),
    "repeated unit": (lambda x, y: x - y, 3, (NTC, (2, 1, 4))),
    "where": (lambda x, y: torch.where(x > 0.5, y, 0.0), 3, (NTC, NTC)),
    "another type": (lambda x: x.float().double().to(torch.float64).type_as(x), 3, (NTC,)),
    "mean": (lambda x: x.mean(1), 3, (NTC,)),
    "mean of all": (lambda x: x.mean() + x, 3, (NTC,)),
    "kept mean": (lambda x: x - x.mean((1, -1), keepdim=True), 3, (NTC,)),
    "extremes": (lambda x: x.amax(-1) - x.amin(-1), 3, (NTC,)),
    "sum": (lambda x: x.sum(-1), 2, (NTC,)),
    "length": (lambda x: x / torch.linalg.vector_norm(x, 2, -1, keepdim=True), 2, (NTC,)),
    "norm": (lambda x: x.norm(dim=-1, keepdim=True), 2, (NTC,)),
    "normalize": (lambda x: F.normalize(x, dim=-1), 2, (NTC,)),
    "logsumexp": (lambda x: x.logsumexp(-1), 2, (NTC,)),
    "softmax": (lambda x: x.softmax(-1), 2, (NTC,)),
    "log_softmax": (lambda x: F.log_softmax(x, 1), 2, (NTC,)),
    "cumsum": (lambda x: x.cumsum(1), 2, (NTC,)),
    "flip": (lambda x: x.flip(-1), 2, (NTC,)),
    "roll": (lambda x: x.roll((1, 1), (0, 2)), 1, (NTC,)),
    "roll of all": (lambda x: x.roll(1), 0, (NTC,)),
    "sort": (lambda x: torch.sort(x), 2, (NTC,)),
    "stable sort": (lambda x: torch.sort(x, stable=True, dim=1), 2, (NTC,)),
    "argsort": (lambda x: x.argsort(1), 2, (NTC,)),
    "greatest": (lambda x: x.max(-1), 0, (NTC,)),
    "topk": (lambda x: x.topk(2, -1), 0, (NTC,)),
    "flatten": (lambda x: x.flatten(1), 3, (NTC,)),
    "flatten all": (lambda x: x.flatten(), 3, (NTC,)),
    "unflatten": (lambda x: x.unflatten(-1, (-1, 1)).unflatten(1, (1, -1)), 3, (NTC,)),
    "reshape": (lambda x: x.reshape(*x.shape[:2], -1).transpose(1, 2).reshape(len(x), -1), 3, (NTC,)),
    "ones at both ends": (lambda x: x.reshape(1, len(x), 1, -1, 1).squeeze(0).squeeze(-1), 3, (NTC,)),
    "another cut": (lambda x: x.reshape(4, 6), 0, (NTC,)),
    "permute": (lambda x: x.permute(2, 0, 1).mT.transpose(0, -1).movedim(0, 2), 3, (NTC,)),
    "numpy's T": (lambda x: x.flatten(1).t(), 3, (NTC,)),
    "unsqueeze, expand": (lambda x: x.unsqueeze(1).expand(-1, 5, -1, -1), 3, (NTC,)),
    "expand a unit": (lambda x: x.expand(2, -1, -1), 2, ((1, 3, 4),)),
    "squeeze": (lambda x: x.squeeze(), 2, ((1, 3, 4),)),
    "squeeze two": (lambda x: x.squeeze((0, 1)), 2, ((1, 3, 4),)),
    "select": (lambda x: x[:, 0], 2, (NTC,)),
    "slice": (lambda x: x[:, 1:], 2, (NTC,)),
    "second half": (lambda x: x[..., x.shape[-1] // 2 :], 3, (NTC,)),
    "last third": (lambda x: x[:, -(x.shape[1] // 3) :], 3, ((2, 6, 4),)),
    "zeros in the middle": (lambda x: zeroed(x), 3, ((2, 6, 4),)),
    "a half across thirds": (lambda x: torch.cat([x, x, x], 1)[:, 2:], 2, (NTC,)),
    "whole slice": (lambda x: x[:, :, :], 3, (NTC,)),
    "strided slice": (lambda x: x[..., ::2], 2, (NTC,)),
    "written slice": (lambda x: written(x), 2, (NTC,)),
    "unbind": (lambda x: x.unbind(1), 2, (NTC,)),
    "chunk": (lambda x: x.chunk(2, -1), 3, (NTC,)),
    "uneven chunk": (lambda x: x.chunk(2, 1), 2, (NTC,)),
    "split": (lambda x: x.split(x.shape[-1] // 2, -1), 3, (NTC,)),
    "split by sizes": (lambda x: x.split([1, 3], -1), 2, (NTC,)),
    "tensor_split": (lambda x: x.tensor_split(2, -1), 3, (NTC,)),
    "cat": (lambda x, y: torch.cat([x, y], -1), 4, (NTC, (2, 3, 5))),
    "cat of empty": (lambda x: torch.cat([x.new_zeros(0), x], -1), 3, (NTC,)),
    "cat and chunk": (lambda x, y: torch.cat([x, y], -1).chunk(3, -1), 4, (NTC, (2, 3, 5))),
    "stack": (lambda x, y: torch.stack([x, y], 1), 3, (NTC, NTC)),
    "index": (lambda x: x[torch.tensor([1, 0, 1])], 2, (NTC,)),
    "index by two": (lambda x: x[torch.tensor([1, 0]), torch.tensor([0, 2])], 1, (NTC,)),
    "inner index": (lambda x: x[:, torch.tensor([1, 0])], 0, (NTC,)),
    "constants": (lambda x: x + torch.ones_like(x) + x.new_zeros(4) + torch.arange(4), 2, (NTC,)),
    "max_pool": (lambda x: F.max_pool2d(x, 2), 2, (NCHW,)),
    "max_pool with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 2, (NCHW,)),
    "pool that keeps the size": (lambda x: F.avg_pool2d(x, 3, 1, 1), 2, (NCHW,)),
    "pool without a batch": (lambda x: F.max_pool2d(x, 3, 1, 1), 1, ((4, 6, 6),)),
    "pool of sequences without a batch": (lambda x: F.max_pool1d(x, 3, 1, 1), 1, ((4, 6),)),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1), 2, (NCHW,)),
    "adaptive to the same": (lambda x: F.adaptive_max_pool2d(x, 6), 2, (NCHW,)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 2, (NCHW,)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), 2, (NCHW,)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 1, (NCHW,)),
    "pad": (lambda x: F.pad(x, (1, 1, 0, 2)), 2, (NCHW,)),
    "pad channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), 3, (NCHW,)),
    "shift by padding": (lambda x: F.pad(x, (1, -1)), 2, (NTC,)),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 2, (NCHW,)),
    "replicate": (lambda x: F.pad(x, (1, 1), mode="replicate"), 2, (NTC,)),
    "matmul": (lambda x, y: x @ y, 3, (NTC, (2, 4, 5))),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        6,
        ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    ),
    "its own scale": (lambda q: F.scaled_dot_product_attention(q, q, q, scale=0.3), 3, ((2, 3, 5, 4),)),
    "a mask": (lambda q, m: F.scaled_dot_product_attention(q, q, q, m), 3, ((2, 3, 5, 4), (5, 5))),
    "causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), 3, ((2, 5, 4),) * 3),
    "grouped queries": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        6,
        ((2, 6, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    ),
    "einsum": (lambda x, y: torch.einsum("btc,bcd->btd", x, y), 3, (NTC, (2, 4, 5))),
    "einsum of one unit": (lambda x, y: torch.einsum("btc,bcd->btd", x, y), 3, (NTC, (1, 4, 5))),
    "implicit einsum": (lambda x, y: torch.einsum("btc,bcd", x, y), 0, (NTC, (2, 4, 5))),
    "layer_norm": (lambda x: F.layer_norm(x, x.shape[-1:]), 3, (NTC,)),
    "layer_norm of two": (lambda x: F.layer_norm(x, x.shape[-2:]), 3, (NTC,)),
    "rms_norm": (lambda x: F.rms_norm(x, x.shape[-1:]), 3, (NTC,)),
    "instance_norm": (lambda x: F.instance_norm(x), 4, (NCHW,)),
    "fft": (lambda x: torch.fft.rfft(x).abs(), 0, (NTC,)),
    "cdist": (lambda x: torch.cdist(x, x), 0, (NTC,)),
}


def zeroed(x: Tensor) -> Tensor:
    """As Swin V2 has no bias for its keys."""
    third = x.shape[1] // 3
    x = x.clone()
    x[:, third : 2 * third].zero_()
    return x


def written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 2.0
    return x


@pytest.mark.parametrize("name", PASSING)
def test_operations_without_weights(name: str) -> None:
    function, count, shapes = PASSING[name]
    found = followed(function, *shapes)
    assert len(found.free) == count, [dict(axis.reasons) for v in found.inputs for d in v.dims for axis in axes_of(d)]
    found.check()


WEIGHTS: dict[str, tuple[Function, int, tuple[tuple[int, ...], ...]]] = {
    "linear": (F.linear, 4, (NTC, (5, 4), (5,))),
    "linear without bias": (F.linear, 4, (NTC, (5, 4))),
    "linear of a vector": (F.linear, 2, ((4,), (5, 4))),
    "weight on the right": (lambda x, w: x @ w, 4, (NTC, (4, 5))),
    "weight on the left": (lambda x, w: w @ x, 4, (NTC, (5, 3))),
    "transposed weight": (lambda x, w: x @ w.t(), 4, (NTC, (5, 4))),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), 3, ((3, 4), (4, 5), (5,))),
    "mm": (lambda x, w: torch.mm(x, w.T), 3, ((3, 4), (5, 4))),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, 2, 1), 3, (NCHW, (5, 4, 3, 3), (5,))),
    "conv2d, same": (lambda x, w: F.conv2d(x, w, padding="same"), 3, (NCHW, (5, 4, 3, 3))),
    "conv2d without a batch": (F.conv2d, 2, ((4, 6, 6), (5, 4, 3, 3))),
    "conv1d": (F.conv1d, 3, ((2, 4, 6), (5, 4, 3))),
    "conv3d": (F.conv3d, 3, ((2, 2, 4, 4, 4), (3, 2, 2, 2, 2))),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=x.shape[1]), 2, (NCHW, (4, 1, 3, 3))),
    "depthwise, two each": (lambda x, w: F.conv2d(x, w, groups=x.shape[1]), 3, (NCHW, (8, 1, 3, 3))),
    "conv_transpose2d": (F.conv_transpose2d, 3, (NCHW, (4, 5, 3, 3), (5,))),
    "conv_transpose1d": (F.conv_transpose1d, 3, ((2, 4, 6), (4, 5, 3))),
    "transposed in groups": (lambda x, w: F.conv_transpose2d(x, w, groups=2), 0, (NCHW, (4, 3, 3, 3))),
    "prelu": (F.prelu, 4, (NCHW, (4,))),
    "one slope": (F.prelu, 4, (NCHW, (1,))),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), 3, (NTC, (4,), (4,))),
    "batch_norm": (lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), 4, (NCHW, *((4,),) * 4)),
    "batch_norm in training": (lambda x, w: F.batch_norm(x, None, None, w, training=True), 4, (NCHW, (4,))),
    "scale": (lambda x, s: x * s.view(1, -1, 1, 1), 4, (NCHW, (4,))),
    "unsqueezed scale": (lambda x, s: x * s[:, None, None], 4, (NCHW, (4, 1, 1)[:1])),
    "position": (lambda x, p: x + p, 3, (NTC, NTC)),
    "a word for each image": (lambda x, c: torch.cat([c.expand(x.shape[0], -1, -1), x], 1), 3, (NTC, (1, 2, 4))),
    "queries that are weights": (
        lambda x, q: F.scaled_dot_product_attention(q.expand(x.shape[0], -1, -1), x, x),
        3,
        (NTC, (1, 2, 4)),
    ),
    "computed weight": (lambda x, w: F.linear(x, w * 2), 3, (NTC, (5, 4))),
    "centred weight": (lambda x, w: F.linear(x, w - w.mean(1, keepdim=True)), 3, (NTC, (5, 4))),
    "normed weight": (lambda x, v, g: F.linear(x, torch._weight_norm(v, g)), 3, (NTC, (5, 4), (5, 1))),
    "wholly normed weight": (lambda x, v, g: F.linear(x, torch._weight_norm(v, g, -1)), 2, (NTC, (5, 4), ())),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_operations_with_weights(name: str) -> None:
    function, count, shapes = WEIGHTS[name]
    found = followed(function, *shapes, activations=1)
    assert len(found.free) == count, [dict(axis.reasons) for v in found.inputs for d in v.dims for axis in axes_of(d)]
    found.check()


def test_embeddings_grow_along_their_features() -> None:
    words = torch.tensor([[0, 2, 1], [3, 3, 0]])
    found = followed(lambda table: F.embedding(words, table), (4, 5), activations=0)
    assert [axis.size for axis in found.free] == [5]
    found.check()


def test_groups_grow_whole_or_within() -> None:
    """As its axes grow, a grouped convolution has other groups, which the function below asks of its weight."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, groups=x.shape[1] // w.shape[1])

    found = followed(function, NCHW, (6, 2, 3, 3), activations=1)
    assert sorted(axis.size for axis in found.free) == [2, 2, 2, 3]  # images, groups, channels in, channels out
    found.check()
    assert [name for name, _ in found.notes.grouped] == [""]


def test_groups_are_normalised_whole_or_within() -> None:
    """As above: the number of groups, and what is in one, are told apart by their sizes."""

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1] // 3 if x.shape[1] % 4 else 2, w, b)

    found = followed(function, (2, 6, 5), (6,), (6,), activations=1)
    assert sorted(axis.size for axis in found.free) == [2, 2, 3, 5]
    by_size = {axis.size: axis for axis in found.free[1:]}
    assert [axis in _constraints(found.notes.even) for axis in map(by_size.get, (2, 3, 5))] == [False, True, True]
    found.check()
    (groups,) = (dim for _, dim in found.notes.grouped)
    assert axes_of(groups) == [by_size[2]]


def test_what_is_not_known_is_fixed_with_its_name() -> None:
    found = followed(lambda x: torch.fft.fft(x).real, NTC)
    (reason,) = {reason for dim in found.inputs[0].dims for axis in axes_of(dim) for reason in axis.reasons}
    assert reason == "fft_fft is not among the operations that growth can follow"


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        ("softmax", lambda x: x.softmax(-1)),
        ("sum", lambda x: x.sum(-1)),
        ("roll", lambda x: x.roll(1, -1)),
        ("slice", lambda x: x[..., 1:]),
    ],
)
def test_negative_control_a_rule_too_generous_is_seen(
    operation: str, function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generous(step: Step) -> Values:
        return Value(step.read[0].dims[: len(step.shape)])

    followed(function, NTC).check()
    monkeypatch.setitem(_propagate.RULES, operation, generous)
    with pytest.raises((AssertionError, RuntimeError)):
        followed(function, NTC).check()
