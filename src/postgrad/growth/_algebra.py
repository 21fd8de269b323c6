"""The algebra of a tensor's dimensions: concatenations of products of axes, and making two of them the same.

A dimension is a concatenation of segments; a segment is a product of factors, the outer ones first; a factor is an axis
that could be widened, or a number that is what it is. The input of a linear layer behind a flattened (C, 7, 7) image is
one segment (C, 49); that behind a concatenation of A and B is two, (A) and (B); the rows of a joint projection to
queries, keys and values are one, (3, heads, size). What two dimensions have to share is found by making them equal,
which splits axes where it must and fixes those that cannot be split so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence


class Axis:
    """A number of units that all tensors through which they flow share. Fixed once it has a reason to be."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reasons: dict[str, None] = {}
        self._is: Dim | None = None

    def __repr__(self) -> str:
        return f"Axis({self.size}{', fixed' if self.reasons else ''})"


Factor = Axis | int
Segment = tuple[Factor, ...]
Dim = tuple[Segment, ...]

MOST_SEGMENTS = 4096
"""A dimension in more pieces is not followed any further."""


def fixed(size: int) -> Dim:
    """A dimension of which no part can be widened."""
    return ((size,),)


def free(size: int) -> Dim:
    """A dimension of one new axis."""
    return ((Axis(size),),)


def size_of(what: Dim | Segment | Factor) -> int:
    """How many units there are in a dimension, a segment or a factor."""
    if isinstance(what, int):
        return what
    if isinstance(what, Axis):
        return what.size
    if what and isinstance(what[0], tuple):
        return sum(size_of(segment) for segment in what)
    return math.prod(size_of(factor) for factor in what)


def resolve(dim: Dim) -> Dim:
    """The dimension in terms of the axes as they are now, after all that was made equal and split since."""
    if _is_resolved(dim):
        return dim
    segments: list[Segment] = []
    for segment in dim:
        segments.extend(_resolve_segment(segment))
    return _joined(segments)


def axes_of(dim: Dim) -> list[Axis]:
    """The axes in a dimension, each once, in their order."""
    return list(dict.fromkeys(factor for segment in resolve(dim) for factor in segment if isinstance(factor, Axis)))


def fix(dims: Iterable[Dim], reason: str) -> None:
    """Say why the axes in some dimensions cannot be widened."""
    for dim in dims:
        for axis in axes_of(dim):
            axis.reasons[reason] = None


def unify(first: Dim, second: Dim, reason: str) -> None:
    """Make two dimensions the same; `reason` is why the parts for which that cannot be are fixed."""
    first, second = resolve(first), resolve(second)
    if first == second:
        return
    if (alone := _only_axis(first)) is not None:
        _set(alone, second, reason)
    elif (alone := _only_axis(second)) is not None:
        _set(alone, first, reason)
    elif (parts := _parted(first, second)) is not None:
        for one, other in parts:
            unify(one, other, reason)
    else:
        fix((first, second), reason)


def cut(dim: Dim, at: int) -> tuple[Dim, Dim] | None:
    """The first `at` units of a dimension, and the others; None where no axis can be cut so."""
    dim = resolve(dim)
    head: list[Segment] = []
    for position, segment in enumerate(dim):
        if at == 0:
            return tuple(head), dim[position:]
        if size_of(segment) <= at:
            head.append(segment)
            at -= size_of(segment)
            continue
        inner = size_of(segment) // size_of(segment[0])
        if at % inner:
            return None
        outer, others = segment[0], segment[1:]
        first, second = _cut_factor(outer, at // inner)
        return (*head, (first, *others)), ((second, *others), *dim[position + 1 :])
    return tuple(head), ()


def split(dim: Dim, sizes: Sequence[int]) -> list[Dim] | None:
    """A dimension as a product of dimensions of these sizes, the outer ones first; None where it is none.

    A concatenation is a product if it is of equal pieces: these are then made the same.
    """
    dim = resolve(dim)
    wanted = [size for size in sizes if size != 1]
    if not wanted:
        fix([dim], "its one unit is left out")
    if len(dim) > 1 and len(wanted) > 1:
        pieces = equal_pieces(dim, wanted[0], "its pieces are viewed as one array")
        if pieces is None:
            return None
        inner = split(pieces[0], wanted[1:])
        found = None if inner is None else [fixed(wanted[0]), *inner]
    elif len(wanted) <= 1:
        found = [dim][: len(wanted)]
    else:
        found = _split_segment(dim[0], wanted)
    if found is None:
        return None
    rest = iter(found)
    return [fixed(1) if size == 1 else next(rest) for size in sizes]


def product(dims: Sequence[Dim]) -> Dim | None:
    """The product of some dimensions, the outer ones first; None where concatenations are nested too deep for that."""
    return _distributed([resolve(dim) for dim in dims])


def equal_pieces(dim: Dim, count: int, reason: str) -> list[Dim] | None:
    """A dimension cut into so many equal pieces, which are made the same; None where it cannot be cut so."""
    dim = resolve(dim)
    size = size_of(dim) // count
    if len(dim) == 1 and (parts := _split_segment(dim[0], [count, size])) is not None:
        fix(parts[:1], reason)
        return [parts[1]] * count
    pieces: list[Dim] = []
    rest = dim
    for _ in range(count):
        found = cut(rest, size)
        if found is None:
            return None
        pieces.append(found[0])
        rest = found[1]
    for piece in pieces[1:]:
        unify(pieces[0], piece, reason)
    return pieces


def _is_resolved(dim: Dim) -> bool:
    """Whether a dimension is in its usual form and no axis in it has become something else: most are, most times."""
    after_number = False
    for segment in dim:
        numbers = [isinstance(factor, int) for factor in segment]
        if not numbers or any(factor._is is not None for factor in segment if isinstance(factor, Axis)):
            return False
        if len(numbers) == 1:
            if after_number and numbers[0]:
                return False
        elif any(first and second for first, second in itertools.pairwise(numbers)) or 1 in segment:
            return False
        after_number = numbers == [True]
    return True


def _resolve_segment(segment: Segment) -> Iterator[Segment]:
    parts: list[Dim] = []
    for factor in segment:
        if isinstance(factor, Axis) and factor._is is not None:
            factor._is = resolve(factor._is)
            parts.append(factor._is)
        else:
            parts.append(((factor,),))
    found = _distributed(parts)
    if found is None:
        fix(parts, "it is a concatenation inside of a product")
        found = fixed(math.prod(size_of(part) for part in parts))
    yield from found


def _distributed(parts: Sequence[Dim]) -> Dim | None:
    """Multiply concatenations out: (A + B) × C is A×C + B×C; 2 × (A + B) is A + B + A + B; C × (A + B) is none."""
    result: Dim = ((),)
    for part in parts:
        if len(part) > 1:
            if not all(isinstance(factor, int) for segment in result for factor in segment):
                return None
            copies = sum(math.prod(size_of(factor) for factor in segment) for segment in result)
            if copies * len(part) > MOST_SEGMENTS:
                return None
            result = part * copies
        else:
            result = tuple((*segment, *part[0]) for segment in result)
    return _joined(result)


def _joined(segments: Iterable[Segment]) -> Dim:
    """The usual form: no factors of 1, numbers side by side multiplied, segments of numbers added up."""
    tidy: list[Segment] = []
    for segment in segments:
        factors: list[Factor] = []
        for numbers, group in itertools.groupby(segment, key=lambda factor: isinstance(factor, int)):
            members = list(group)
            if not numbers:
                factors.extend(members)
            elif (count := math.prod(size_of(member) for member in members)) != 1:
                factors.append(count)
        if len(factors) <= 1 and tidy and not any(isinstance(each, Axis) for each in (*factors, *tidy[-1])):
            tidy[-1] = (size_of(tidy[-1]) + (size_of(factors[0]) if factors else 1),)
        else:
            tidy.append(tuple(factors) or (1,))
    return tuple(tidy)


def _only_axis(dim: Dim) -> Axis | None:
    if len(dim) == 1 and len(dim[0]) == 1 and isinstance(dim[0][0], Axis):
        return dim[0][0]
    return None


def _set(axis: Axis, dim: Dim, reason: str) -> None:
    """Let an axis be what a dimension is."""
    axes = axes_of(dim)
    if axis in axes or not axes:
        fix((((axis,),), dim), reason)
        return
    for other in axes:
        other.reasons.update(axis.reasons)
    axis._is = dim


def _parted(first: Dim, second: Dim) -> list[tuple[Dim, Dim]] | None:
    """Two dimensions taken apart alike, into smaller ones that must be the same; None where that cannot be."""
    if len(first) == len(second) == 1:
        outer = math.gcd(size_of(first[0][0]), size_of(second[0][0]))
        sizes = [outer, size_of(first) // outer]
        one, other = _split_segment(first[0], sizes), _split_segment(second[0], sizes)
        return None if outer == 1 or one is None or other is None else list(zip(one, other, strict=True))
    outer = min(size_of(first[0]), size_of(second[0]))
    heads = cut(first, outer), cut(second, outer)
    return None if heads[0] is None or heads[1] is None else list(zip(heads[0], heads[1], strict=True))


def _cut_factor(factor: Factor, at: int) -> tuple[Factor, Factor]:
    if isinstance(factor, int):
        return at, factor - at
    first, second = Axis(at), Axis(factor.size - at)
    for part in (first, second):
        part.reasons.update(factor.reasons)
    factor._is = ((first,), (second,))
    return first, second


def _split_segment(segment: Segment, sizes: Sequence[int]) -> list[Dim] | None:
    """One segment as a product of dimensions of these sizes."""
    found: list[Dim] = []
    rest = list(segment)
    for size in sizes:
        taken: list[Factor] = []
        while size > 1:
            if not rest:
                return None
            factor = rest.pop(0)
            if size % size_of(factor) == 0:
                taken.append(factor)
                size //= size_of(factor)
            elif size_of(factor) % size == 0:
                outer, inner = _split_factor(factor, size)
                taken.append(outer)
                rest.insert(0, inner)
                size = 1
            else:
                return None
        found.append(_joined([tuple(taken)]))
    found[-1] = _joined([(*found[-1][0], *rest)])  # axes of one unit
    return found


def _split_factor(factor: Factor, outer: int) -> tuple[Factor, Factor]:
    if isinstance(factor, int):
        return outer, factor // outer
    parts = Axis(outer), Axis(factor.size // outer)
    for part in parts:
        part.reasons.update(factor.reasons)
    factor._is = (parts,)
    return parts
