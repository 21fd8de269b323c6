"""Tournaments, ageing, one elite, the front, and how genes change."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from bred import individual
from hypothesis import given
from hypothesis import strategies as st

from postgrad.errors import UserError
from postgrad.search.individual import Genes, Individual
from postgrad.search.population import (
    DROPOUT,
    OUTPUT_PENALTY,
    WEIGHT_DECAY,
    Population,
    front,
    genes_of_child,
    mutate_genes,
)

NETWORKS = st.lists(
    st.builds(
        lambda accuracy, parameters, latency: individual(
            accuracy=accuracy / 4, parameters=parameters, latency_ms=float(latency)
        ),
        st.integers(0, 4),
        st.integers(1, 4),
        st.integers(1, 4),
    ),
    max_size=12,
).map(lambda found: [dataclasses.replace(each, name=f"n{n}", number=n) for n, each in enumerate(found)])


def filled(accuracies: list[float], size: int = 3, **options: object) -> Population:
    population = Population(size, **options)  # type: ignore[arg-type]
    for number, accuracy in enumerate(accuracies):
        population.add(individual(number, accuracy))
    return population


def numbers(individuals: list[Individual]) -> list[int]:
    return [each.number for each in individuals]


def test_the_oldest_leaves_but_the_elite_stays() -> None:
    assert numbers(filled([0.9, 0.1, 0.2]).members) == [0, 1, 2]
    assert numbers(filled([0.9, 0.1, 0.2, 0.3]).members) == [0, 2, 3]  # 0 is older and the most accurate
    assert numbers(filled([0.9, 0.1, 0.2, 0.3, 0.95]).members) == [2, 3, 4]  # it is beaten, and the oldest
    assert numbers(filled([0.5, 0.4, 0.6], size=1).members) == [2]
    assert numbers(filled([0.5, 0.4], size=1).members) == [0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 6))
def test_the_best_of_all_is_always_a_member(accuracies: list[int], size: int) -> None:
    population = filled([each / 10 for each in accuracies], size=size)
    assert len(population.members) == min(size, len(accuracies))
    assert population.best.accuracy == max(accuracies) / 10
    assert population.best.number == accuracies.index(max(accuracies))  # of equal ones the first
    assert numbers(population.finished) == list(range(len(accuracies)))
    rest = [number for number in numbers(population.members) if number != population.best.number]
    newest = [number for number in range(len(accuracies)) if number != population.best.number]
    assert rest == sorted(rest)
    if size > 1:
        # Nobody that is younger than a member ever left, but for a former elite.
        assert rest[-1:] == newest[-1:]


def test_replayed_it_is_the_same_again() -> None:
    population = filled([0.3, 0.8, 0.1, 0.5, 0.7, 0.2], size=3)
    again = Population(3)
    for each in population.finished:
        again.add(each)
    assert again.members == population.members
    draws = [[each.parent(np.random.default_rng(seed)).number for seed in range(9)] for each in (again, population)]
    assert draws[0] == draws[1]


def test_a_tournament_is_won_as_often_as_it_should_be() -> None:
    """Of 4 members ranked 1 … 4, two of whom are drawn, the k-th best wins (4 − k) of 6 tournaments."""
    population = filled([0.1, 0.4, 0.3, 0.2], size=4, tournament=2)
    draw = np.random.default_rng(0)
    wins = Counter(population.parent(draw).number for _ in range(6000))
    expected = {1: 3000, 2: 2000, 3: 1000}
    assert set(wins) == set(expected)  # the worst never wins
    assert all(abs(wins[number] - count) < 5 * count**0.5 for number, count in expected.items())


def test_a_tournament_of_all_is_won_by_the_best_and_of_one_by_anybody() -> None:
    draw = np.random.default_rng(0)
    assert {filled([0.1, 0.4, 0.3], tournament=9).parent(draw).number for _ in range(20)} == {1}
    assert {filled([0.1, 0.4, 0.3], tournament=1).parent(draw).number for _ in range(60)} == {0, 1, 2}


def test_a_pareto_tournament_lets_small_networks_win_too() -> None:
    population = Population(3, tournament=3, objective="pareto")
    population.add(individual(0, 0.9, parameters=100))
    population.add(individual(1, 0.5, parameters=10))
    population.add(individual(2, 0.4, parameters=50))  # dominated
    draw = np.random.default_rng(0)
    assert {population.parent(draw).number for _ in range(60)} == {0, 1}
    population.objective = "accuracy"
    assert {population.parent(draw).number for _ in range(60)} == {0}


def dominated(networks: list[Individual]) -> set[str]:
    """By brute force over pairs and numbers, with signs written out."""
    found = set()
    for one in networks:
        for other in networks:
            worse_nowhere = (
                one.accuracy >= other.accuracy
                and one.parameters <= other.parameters
                and one.latency_ms <= other.latency_ms
            )
            better_somewhere = (
                one.accuracy > other.accuracy or one.parameters < other.parameters or one.latency_ms < other.latency_ms
            )
            if worse_nowhere and better_somewhere:
                found.add(other.name)
    return found


@given(NETWORKS)
def test_the_front_is_what_nothing_dominates(networks: list[Individual]) -> None:
    expected = [each.name for each in networks if each.name not in dominated(networks)]
    assert [each.name for each in front(networks)] == expected
    assert bool(networks) == bool(expected)
    population = Population(1)
    for each in networks:
        population.add(each)
    assert [each.name for each in population.front()] == expected  # of all that ever were, not the members alone


def test_negative_control_latency_counts() -> None:
    fast, slow = individual(0, latency_ms=1.0), individual(1, latency_ms=2.0)
    assert front([fast, slow]) == [fast]
    assert front([fast, dataclasses.replace(slow, accuracy=0.6)]) != [fast]


def test_bad_settings_are_refused() -> None:
    for size, tournament in ((0, 2), (3, 0)):
        with pytest.raises(UserError, match="1 or more"):
            Population(size, tournament)
    with pytest.raises(UserError, match="did you mean 'pareto'"):
        Population(3, objective="paretto")  # type: ignore[arg-type]
    for empty in (lambda: Population(3).best, lambda: Population(3).parent(np.random.default_rng(0))):
        with pytest.raises(UserError, match="nothing is finished"):
            empty()


@given(
    st.floats(*WEIGHT_DECAY),
    st.floats(*DROPOUT),
    st.one_of(st.just(0.0), st.floats(*OUTPUT_PENALTY)),
    st.integers(0, 10**6),
)
def test_one_gene_at_most_changes_and_stays_within_its_range(
    weight_decay: float, dropout: float, penalty: float, seed: int
) -> None:
    genes = Genes(weight_decay, dropout, penalty)
    child = mutate_genes(genes, np.random.default_rng(seed))
    assert child == mutate_genes(genes, np.random.default_rng(seed))
    changed = [name for name, value in vars(genes).items() if vars(child)[name] != value]
    assert len(changed) <= 1  # none where it was at the end of its range
    assert WEIGHT_DECAY[0] <= child.weight_decay <= WEIGHT_DECAY[1]
    assert DROPOUT[0] <= child.dropout <= DROPOUT[1]
    assert child.output_penalty == 0 or OUTPUT_PENALTY[0] <= child.output_penalty <= OUTPUT_PENALTY[1]


def test_half_of_the_children_have_the_genes_of_their_parent() -> None:
    draw = np.random.default_rng(0)
    same = sum(genes_of_child(Genes(dropout=0.3), draw) == Genes(dropout=0.3) for _ in range(400))
    assert 160 < same < 240


def test_every_gene_changes_and_a_penalty_comes_and_goes() -> None:
    draw = np.random.default_rng(0)
    genes = [Genes()]
    for _ in range(600):
        genes.append(mutate_genes(genes[-1], draw))
    for name in ("weight_decay", "dropout", "output_penalty"):
        values = [getattr(each, name) for each in genes]
        moved = sum(a != b for a, b in itertools.pairwise(values))
        assert 100 < moved < 300  # a third of the time, less what the ends of the ranges hold
    penalties = [each.output_penalty for each in genes]
    assert any(a == 0 < b for a, b in itertools.pairwise(penalties))
    assert any(b == 0 < a for a, b in itertools.pairwise(penalties))
