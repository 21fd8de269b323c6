"""The algebra of dimensions, against the operations of real tensors of numbered units."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from postgrad.growth import _algebra
from postgrad.growth._algebra import (
    Axis,
    Dim,
    axes_of,
    cut,
    equal_pieces,
    fix,
    fixed,
    free,
    product,
    resolve,
    size_of,
    split,
    unify,
)
from postgrad.growth.axes import units

REASON = "a test holds it"


def wider(dims: list[Dim], axis: Axis, index: Tensor, numbers: Tensor) -> Tensor:
    """A tensor with the dimensions `dims` once units of an axis are repeated by `index`."""
    for number, dim in enumerate(dims):
        numbers = numbers.index_select(number, units(dim, axis, index))
    return numbers


def an_index(axis: Axis, data: st.DataObject) -> Tensor:
    more = data.draw(st.lists(st.integers(0, axis.size - 1), min_size=1, max_size=2 * axis.size))
    return torch.cat([torch.arange(axis.size), torch.tensor(more)])


def numbered(dims: list[Dim]) -> Tensor:
    sizes = [size_of(dim) for dim in dims]
    return torch.arange(math.prod(sizes)).reshape(sizes)


class Program:
    """A random program of views, permutations, concatenations and cuts, made on dimensions and run on tensors."""

    def __init__(self, data: st.DataObject) -> None:
        self.axes = [Axis(data.draw(st.sampled_from([1, 2, 3, 4, 6]))) for _ in range(data.draw(st.integers(1, 3)))]
        self.dims: list[Dim] = [((axis,),) for axis in self.axes]
        self.steps: list[tuple[str, int, int, list[Dim]]] = []
        for _ in range(data.draw(st.integers(1, 6))):
            name = data.draw(st.sampled_from(["merge", "swap", "part", "double", "append", "piece"]))
            at, number = data.draw(st.integers(0, len(self.dims) - 1)), data.draw(st.sampled_from([2, 3]))
            made = self.step(name, at, number)
            if made is not None:
                self.steps.append((name, at, number, made))

    def step(self, name: str, at: int, number: int) -> list[Dim] | None:
        """Make the dimensions what a step makes of them; None where it cannot be."""
        dims = self.dims
        if name == "merge" and at + 1 < len(dims) and (whole := product(dims[at : at + 2])) is not None:
            dims[at : at + 2] = [whole]
        elif name == "swap":
            dims[0], dims[at] = dims[at], dims[0]
        elif name == "double":
            dims[at] = (*dims[at], *dims[at])
        elif name == "append":
            dims[at] = (*dims[at], *fixed(number))
        elif name in ("part", "piece") and size_of(dims[at]) % number == 0:
            size = size_of(dims[at]) // number
            made = split(dims[at], [number, size]) if name == "part" else equal_pieces(dims[at], number, REASON)
            if made is None:
                return None
            dims[at : at + 1] = made if name == "part" else made[-1:]
            return list(made)
        else:
            return None
        return []

    def run(self, tensor: Tensor, axis: Axis, index: Tensor) -> Tensor:
        """The same steps by torch, on a tensor in which one axis has become wider."""
        for name, at, number, made in self.steps:
            if name == "merge":
                tensor = tensor.flatten(at, at + 1)
            elif name == "swap":
                tensor = tensor.transpose(0, at)
            elif name == "double":
                tensor = torch.cat([tensor, tensor], at)
            elif name == "append":
                shape = [number if dim == at else size for dim, size in enumerate(tensor.shape)]
                tensor = torch.cat([tensor, torch.full(shape, -7)], at)
            elif name == "part":
                tensor = tensor.unflatten(at, [len(units(part, axis, index)) for part in made])
            else:
                tensor = tensor.chunk(number, at)[-1]
        return tensor


@settings(max_examples=300)
@given(st.data())
def test_programs_of_views_give_what_they_give_on_tensors(data: st.DataObject) -> None:
    """Oracle: the program run by torch on numbered units, these repeated before it, or after it."""
    program = Program(data)
    inputs: list[Dim] = [((axis,),) for axis in program.axes]
    nothing = Axis(1)
    before = program.run(numbered(inputs), nothing, torch.zeros(1, dtype=torch.int64))
    assert list(before.shape) == [size_of(dim) for dim in program.dims]
    for axis in dict.fromkeys(axis for dim in inputs for axis in axes_of(dim)):
        if not axis.reasons:
            index = an_index(axis, data)
            after = program.run(wider(inputs, axis, index, numbered(inputs)), axis, index)
            assert torch.equal(after, wider(program.dims, axis, index, before))


@settings(max_examples=200)
@given(st.data())
def test_joined_dimensions_are_the_same_units(data: st.DataObject) -> None:
    """Two dimensions made the same: whatever is widened, both have the same units in the same order."""
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))

    def any_dim(total: int) -> Dim:
        if data.draw(st.booleans()) and total > 1:
            at = data.draw(st.integers(1, total - 1))
            return (*any_dim(at), *any_dim(total - at))
        outer = data.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
        parts = [size if data.draw(st.booleans()) else Axis(size) for size in (outer, total // outer)]
        return (tuple(parts),)

    total = math.prod(sizes)
    first, second = any_dim(total), any_dim(total)
    unify(first, second, REASON)
    assert size_of(resolve(first)) == size_of(resolve(second)) == total
    for axis in dict.fromkeys((*axes_of(first), *axes_of(second))):
        if axis.reasons:
            continue
        index = an_index(axis, data)
        assert torch.equal(units(first, axis, index), units(second, axis, index))


@settings(max_examples=150)
@given(st.data())
def test_every_product_of_sizes_is_that_of_a_reshaped_tensor(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
    dims = [free(size) if data.draw(st.booleans()) else fixed(size) for size in sizes]
    whole = product(dims)
    assert whole is not None
    for dim in dims:
        for axis in axes_of(dim):
            index = an_index(axis, data)
            numbers = wider(dims, axis, index, numbered(dims))
            assert torch.equal(units(whole, axis, index), numbers.flatten())
    parts = split(whole, sizes)
    assert parts is not None
    assert [size_of(part) for part in parts] == sizes


def test_a_cut_is_a_slice() -> None:
    axis = Axis(6)
    found = cut(((axis, 2),), 4)
    assert found is not None
    head, tail = found
    assert (size_of(head), size_of(tail)) == (4, 8)
    (first,), (second,) = axes_of(head), axes_of(tail)
    assert (first.size, second.size) == (2, 4)
    whole: Dim = ((axis, 2),)
    assert units(whole, first, torch.tensor([0, 1, 1])).tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert cut(((Axis(3), 2),), 3) is None
    other = Axis(3)
    assert cut(((4,), (other,)), 4) == (((4,),), ((other,),))
    assert cut(((other,),), 3) == (((other,),), ())


def test_the_usual_form() -> None:
    axis = Axis(3)
    assert resolve(((1, axis, 1),)) == ((axis,),)
    assert resolve(((2, 3), (4,))) == ((10,),)
    assert resolve(((2, 3, axis),)) == ((6, axis),)
    assert resolve(((axis,), (2,), (3,), (axis,))) == ((axis,), (5,), (axis,))
    assert resolve(((1, 1),)) == ((1,),)


def test_what_cannot_be_is_fixed_with_the_reason() -> None:
    first, second = Axis(3), Axis(4)
    dims: list[Dim] = [((first, second),), ((Axis(4), Axis(3)),)]
    unify(dims[0], dims[1], REASON)
    assert all(REASON in axis.reasons for dim in dims for axis in axes_of(dim))
    number = Axis(5)
    unify(((number,),), fixed(5), REASON)
    assert list(number.reasons) == [REASON]
    whole = Axis(6)
    part = Axis(3)
    unify(((whole,),), ((part,), (part,)), "another")
    assert not part.reasons
    assert units(((whole,),), part, torch.tensor([0, 1, 2, 0])).tolist() == [0, 1, 2, 0, 3, 4, 5, 3]


def test_reasons_go_on_to_what_an_axis_becomes() -> None:
    axis = Axis(6)
    fix([((axis,),)], "first")
    parts = split(((axis,),), [2, 3])
    assert parts is not None
    assert all(list(each.reasons) == ["first"] for part in parts for each in axes_of(part))
    other = Axis(6)
    unify(((other,),), ((2, Axis(3)),), REASON)
    free_one = Axis(6)
    fix([((free_one,),)], "second")
    target: Dim = ((Axis(2), Axis(3)),)
    unify(((free_one,),), target, REASON)
    assert all("second" in each.reasons for each in axes_of(target))


def test_concatenations_inside_of_a_product_are_not_followed() -> None:
    outer = Axis(2)
    inner = Axis(5)
    dim: Dim = ((outer, inner),)
    unify(((inner,),), ((Axis(2),), (Axis(3),)), REASON)
    assert size_of(resolve(dim)) == 10
    assert outer.reasons
    assert product([free(2), ((Axis(2),), (Axis(3),))]) is None


def test_a_dimension_in_too_many_pieces_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_algebra, "MOST_SEGMENTS", 8)
    assert product([fixed(4), ((Axis(2),), (Axis(3),))]) is not None
    assert product([fixed(5), ((Axis(2),), (Axis(3),))]) is None


def test_negative_control_units_of_the_wrong_order_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With factors split the wrong way round, the programs above no longer agree with tensors."""

    def wrong(factor: Axis | int, outer: int) -> tuple[Axis | int, Axis | int]:
        if isinstance(factor, int):
            return outer, factor // outer
        parts = Axis(outer), Axis(factor.size // outer)
        factor._is = (parts[::-1],)
        return parts

    monkeypatch.setattr(_algebra, "_split_factor", wrong)
    axis = Axis(6)
    parts = split(((axis,),), [2, 3])
    assert parts is not None
    (inner,) = axes_of(parts[1])
    index = torch.tensor([0, 1, 2, 0])
    numbers = torch.arange(6).reshape(2, 3)[:, index].flatten()
    assert not torch.equal(units(((axis,),), inner, index), numbers)
