"""The chances of mutations, against the formulas written out by hand."""

from __future__ import annotations

import math

import pytest
from bred import individual
from hypothesis import given
from hypothesis import strategies as st

from postgrad.errors import UserError
from postgrad.search.individual import Architecture, Individual
from postgrad.search.mutations import MUTATIONS
from postgrad.search.presets import PRESETS, Tried

SEED = ("deeper", "wider", "skip", "group", "pool")


def network(depth: int = 3, pools: int = 0, side: int = 32) -> Individual:
    return individual(architecture=Architecture(depth, pools, side))


@pytest.mark.parametrize("name", PRESETS)
def test_every_mutation_of_a_preset_is_there(name: str) -> None:
    chances = PRESETS[name].chances(network())
    assert chances.keys() <= MUTATIONS.keys()
    assert math.isclose(sum(chances.values()), 1)
    assert min(chances.values()) > 0


@pytest.mark.parametrize(
    ("depth", "pools", "side", "weights"),
    [
        # deeper, wider, skip, group, pool
        (3, 0, 32, (10, 10, 3, 3, 20)),
        (7, 1, 32, (10, 10, 7, 7, 20 - 20 / 6)),
        (9, 2, 32, (10, 10, 9, 9, 20 - 40 / 6)),
        (9, 3, 32, (10, 10, 9, 9, 0)),  # the limit
        (9, 5, 32, (10, 10, 9, 9, 0)),  # beyond
        (30, 0, 28, (10, 10, 30, 30, 20)),
        (4, 1, 28, (10, 10, 4, 4, 15)),
        (3, 0, 8, (10, 10, 3, 3, 20)),
        (3, 1, 8, (10, 10, 3, 3, 0)),
        (3, 0, 4, (10, 10, 3, 3, 0)),  # no image of 4 pixels is halved
    ],
)
def test_the_formula_of_the_seed(depth: int, pools: int, side: int, weights: tuple[float, ...]) -> None:
    chances = PRESETS["seed"].chances(network(depth, pools, side))
    assert chances == pytest.approx({name: each / sum(weights) for name, each in zip(SEED, weights, strict=True)})


def test_the_seed_is_taken_for_its_own_mutations_alone() -> None:
    assert PRESETS["seed"].chances(network(), mutations=["deeper", "skip"]) == pytest.approx(
        {"deeper": 10 / 13, "skip": 3 / 13}
    )
    with pytest.raises(UserError, match=r"preset seed has no formula for mine; use preset uniform or adaptive"):
        PRESETS["seed"].chances(network(), mutations=["deeper", "mine"])
    with pytest.raises(UserError, match="none of the mutations pool has a chance"):
        PRESETS["seed"].chances(network(pools=3), mutations=["pool"])


def test_uniform_is_all_alike() -> None:
    history = [Tried("deeper", 0.1)] * 9
    assert PRESETS["uniform"].chances(network(), history, ["deeper", "mine"]) == {"deeper": 0.5, "mine": 0.5}


def test_adaptive_begins_even_and_follows_success() -> None:
    """Two mutations of q = 3/4 and 1/4: half an even share is 1/4, so 1/4 + 1/2 · 3/4 and 1/4 + 1/2 · 1/4."""
    adaptive, names = PRESETS["adaptive"], ["deeper", "wider"]
    assert adaptive.chances(network(), (), names) == {"deeper": 0.5, "wider": 0.5}
    history = [Tried("deeper", 0.1), Tried("deeper", 0.2), Tried("wider", -0.1), Tried("wider", None)]
    assert adaptive.chances(network(), history, names) == pytest.approx({"deeper": 5 / 8, "wider": 3 / 8})
    still = [Tried("deeper", 0.0), *history[1:]]  # no better than its parent is no success: q = 1/2 and 1/4
    assert adaptive.chances(network(), still, names) == pytest.approx({"deeper": 7 / 12, "wider": 5 / 12})
    others = [*history, Tried("kernel", 0.3)]
    assert adaptive.chances(network(), others, names) == adaptive.chances(network(), history, names)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.floats(-1, 1))), max_size=60),
    st.integers(1, 5),
)
def test_no_mutation_falls_below_the_floor(tried: list[tuple[int, float | None]], count: int) -> None:
    names = [f"m{number}" for number in range(count)]
    history = [Tried(f"m{number}", gain) for number, gain in tried]
    chances = PRESETS["adaptive"].chances(network(), history, names)
    assert list(chances) == names
    assert math.isclose(sum(chances.values()), 1)
    assert min(chances.values()) > 1 / (2 * count) - 1e-12
