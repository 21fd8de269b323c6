"""The coupled dimensions of whole networks: which are found, why others are fixed, and that nothing is touched."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import networks_to_grow as networks
import pytest
import torch
from networks_to_grow import CASES, images, numbers
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.growth._algebra import Axis, Dim
from postgrad.growth.axes import analyse, shares, units


def sizes(model: nn.Module, example: Any) -> dict[str, int]:
    """The hidden axes that can be widened, by name."""
    return {axis.name: axis.size for axis in analyse(model, example).hidden if not axis.fixed}


@pytest.mark.parametrize(
    ("make", "example", "expected"),
    [
        (networks.mlp, numbers(2, 6), {"0": 5, "2": 4}),
        (networks.conv_bn, images(), {"0": 6, "3": 5}),
        (networks.Residual, images(), {"stem": 6, "a1": 4, "b1": 4}),
        (networks.Dense, images(), {"a": 4, "b": 3, "c": 5}),
        (networks.Squeeze, images(), {"expand": 4, "up#1": 2, "down": 3, "project": 5}),
        (networks.Grouped, images(), {"stem#0": 3, "stem#1": 2, "grouped#1": 2, "after": 4}),
        (networks.GroupNormed, images(), {"conv#0": 3, "conv#1": 2, "after": 4}),
        (networks.Normed, numbers(2, 4, 5), {"embed": 6, "up#1": 4}),
        (networks.Gated, numbers(2, 5), {"gate": 4}),
        (networks.Attention, numbers(2, 4, 5), {"embed": 4, "qkv#1": 2, "qkv#2": 3}),
        (networks.Handmade, numbers(2, 4, 5), {"q#0": 2, "v#1": 3}),
        (networks.GroupedQueries, numbers(2, 4, 5), {"q#0": 2, "v#1": 3}),
        (networks.Twice, images(), {"stem": 4, "one": 5}),
        (networks.Decoder, images(), {"down": 5, "up": 4}),
        (networks.Sequence1d, numbers(2, 3, 8), {"a": 4}),
        (networks.Volume, numbers(2, 2, 4, 4, 4), {"a": 4, "b": 3}),
        (networks.OneChannel, images(1), {"a": 4, "b": 1, "c": 3}),
        (networks.normed_weights, images(3, 8), {"2": 5}),
        (networks.Auxiliary, images(), {"a": 4, "b": 5}),
        (networks.Several, (numbers(2, 4), numbers(2, 5)), {"a": 6}),
        (networks.Stages, images(3, 8), {"stem": 4, "merge": 6}),
    ],
)
def test_hidden_axes(make: Callable[[], nn.Module], example: Any, expected: dict[str, int]) -> None:
    assert sizes(make(), example) == expected


def test_places_of_one_axis() -> None:
    graph = analyse(networks.Residual(), images())
    (stem,) = graph.made_by("stem")
    assert stem.layers == ("stem", "a1", "a2", "n2", "b1", "b2", "m2", "head")
    assert [(place.weight, place.dim) for place in stem.places if place.summed] == [
        ("a1.weight", 1),
        ("b1.weight", 1),
        ("head.weight", 1),
    ]
    for layer in ("a2", "n2", "b2", "m2"):
        assert graph.made_by(layer) == [stem]
    assert graph.made_by("") == []


class Reasoned(nn.Module):
    """Three hidden axes, of which an operation holds the middle one."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 3)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.tanh(self.c(self.operation(self.b(torch.tanh(self.a(x)))))))


@torch.library.custom_op("postgrad_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


doubled.register_fake(torch.empty_like)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda x: torch.fft.fft(x).real, "fft_fft is not among the operations that growth can follow"),
        (lambda x: doubled(x), "doubled is not among the operations that growth can follow"),
        (lambda x: x.softmax(-1), "softmax goes along it"),
        (lambda x: x.cumsum(-1), "cumsum goes along it"),
        (lambda x: x * x.sum(-1, keepdim=True), "sum sums over it"),
        (lambda x: x * x[:, :1], "slice takes some of its units by their numbers"),
        (lambda x: x[:, torch.tensor([0, 0, 1, 2, 4, 3])], "index takes some of its units by their numbers"),
        (lambda x: x + torch.arange(6), "add holds it to what is fixed"),
        (lambda x: x @ torch.ones(6, 6), "matmul holds it to what is fixed"),
        (lambda x: x * torch.linalg.vector_norm(x, 1, -1, keepdim=True), "linalg_vector_norm sums over it"),
        (lambda x: x * x.var(-1, keepdim=True), "var is not among the operations that growth can follow"),
    ],
)
def test_an_operation_holds_what_it_touches_and_nothing_else(
    operation: Callable[[Tensor], Tensor], reason: str
) -> None:
    graph = analyse(Reasoned(operation), numbers(2, 5))
    assert [axis.fixed[:1] for layer in "abc" for axis in graph.made_by(layer)] == [(), (reason,), ()]


def test_reasons_name_the_layer_that_an_operation_is_in() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 3))
    graph = analyse(model, numbers(2, 4))
    assert [axis.fixed for axis in graph.hidden] == [("softmax in 1 goes along it",)]
    assert [axis.fixed for axis in graph.made_by("2")] == [("it is what the network returns",)]


def test_rotated_queries_hold_the_size_of_heads_but_not_their_number() -> None:
    graph = analyse(networks.Attention(rope=True), numbers(2, 4, 5))
    _, heads, size = graph.made_by("qkv")[0:3]
    assert heads.fixed == ()
    assert any("flip" in reason for reason in size.fixed)


def test_a_gram_matrix_is_of_one_axis_twice() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b((x.mT @ x).flatten(1))

    (axis,) = analyse(Gram(), numbers(2, 3, 5)).made_by("a")
    assert axis.fixed == ("it is multiplied with itself",)


def test_a_mean_across_a_concatenation_is_fixed() -> None:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm, self.c = nn.Linear(5, 4), nn.Linear(5, 4), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.norm(torch.cat([self.a(x), self.b(x)], -1)))

    assert {axis.fixed for axis in analyse(Across(), numbers(2, 5)).hidden} == {
        ("layer_norm in norm takes a mean across a concatenation",)
    }


def test_auxiliary_heads_are_read_in_training_mode() -> None:
    graph = analyse(networks.Auxiliary().eval(), images())
    (axis,) = graph.made_by("a")
    assert "auxiliary" in axis.layers
    (out,) = graph.made_by("auxiliary")
    assert out.fixed == ("it is what the network returns",)


def test_layers_that_are_never_used_make_nothing() -> None:
    model = networks.mlp()
    model.add_module("unused", nn.Linear(3, 3))
    model.forward = nn.Sequential(*list(model)[:-1]).forward  # type: ignore[method-assign]
    graph = analyse(model, numbers(2, 6))
    assert graph.made_by("unused") == []
    assert [axis.name for axis in graph.hidden] == ["0", "2"]


@pytest.mark.parametrize("name", ["batch norm", "auxiliary head", "torch's stream", "rows of normed weights"])
def test_the_network_and_the_random_state_stay_as_they_are(name: str) -> None:
    case = CASES[name]
    model = case.make().train()
    next(iter(model.children())).eval()
    modes = {module: module.training for module in model.modules()}
    before = copy.deepcopy(model.state_dict())
    objects = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    chance = torch.get_rng_state()
    analyse(model, case.example)
    assert {module: module.training for module in model.modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {key: id(value) for key, value in model.state_dict(keep_vars=True).items()} == objects
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), chance)


def test_attention_is_read_without_its_fast_path_which_stays_on() -> None:
    model = networks.TorchAttention().eval()
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        assert sizes(model, numbers(2, 4, 5))["block.linear1"] == 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_cannot_be_exported_is_said_in_one_line() -> None:
    class Hopeless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    with pytest.raises(UserError, match=r"^Hopeless: torch.export cannot trace it with an input of \(2, 3\): .+$"):
        analyse(Hopeless(), numbers(2, 3))


def test_units_of_a_dimension() -> None:
    a, b = Axis(2), Axis(3)
    index, share = torch.tensor([0, 1, 0]), torch.tensor([0.25, 1.0, 0.75])
    dim: Dim = ((a, 2),)
    assert units(dim, a, index).tolist() == [0, 1, 2, 3, 0, 1]
    assert shares(dim, a, index, share).tolist() == [0.25, 0.25, 1, 1, 0.75, 0.75]
    assert units(((b,), (a,), (2,)), a, index).tolist() == [0, 1, 2, 3, 4, 3, 5, 6]
    assert shares(((b,), (a,)), a, index, share).tolist() == [1, 1, 1, 0.25, 1, 0.75]
    assert units(((a,),), a, torch.tensor([0, 1, -1])).tolist() == [0, 1, -1]
    assert units(((2, a),), b, index).tolist() == [0, 1, 2, 3]


def test_units_of_every_small_product_are_those_of_an_array() -> None:
    """Oracle: indexing an array of numbers along the axis; all products of up to three factors, in pairs."""
    axis = Axis(2)
    index = torch.tensor([0, 1, 1])
    products = [
        (*outer, axis, *inner)
        for n in range(3)
        for outer in itertools.product((2, 3, Axis(2)), repeat=n)
        for inner in itertools.product((2, Axis(3)), repeat=2 - n)
    ]
    others = [(4,), (Axis(3), 2), (axis,)]

    def expected(segment: tuple[Any, ...], start: int) -> Tensor:
        shape = [each if isinstance(each, int) else each.size for each in segment]
        array = torch.arange(torch.Size(shape).numel()).reshape(shape) + start
        return (array.index_select(segment.index(axis), index) if axis in segment else array).flatten()

    for segment, other in itertools.product(products, others):
        size = len(expected(segment, 0)) // 3 * 2
        dim: Dim = (segment, other)
        assert torch.equal(units(dim, axis, index), torch.cat([expected(segment, 0), expected(other, size)]))


def test_negative_control_a_coupling_more_is_seen() -> None:
    class Crossed(networks.Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return super().forward(x[:, 1:4]) + (self.a1(x) * self.b1(x)).mean()

    assert sizes(networks.Residual(), images()) == {"stem": 6, "a1": 4, "b1": 4}
    crossed = analyse(Crossed(), images())
    assert crossed.made_by("a1") == crossed.made_by("b1")
    assert "slice takes some of its units by their numbers" in crossed.made_by("stem")[0].fixed
