"""The networks that a search breeds from: tournaments between them, the oldest leaving, one elite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from numpy.random import Generator

from postgrad.errors import UserError, unknown_name
from postgrad.search.individual import Genes, Individual

Objective = Literal["accuracy", "pareto"]


class Population:
    """Finished networks, of which the oldest leaves for each new one above `size`, but never the most accurate.

    >>> population = Population(8, objective="pareto")
    >>> population.add(base)
    >>> population.parent(np.random.default_rng(0)) is base
    True

    Given finished networks in the order in which they finished, it is the same again.

    Source: regularised evolution (E. Real et al., arXiv 1802.01548: tournaments, ageing), here with one elite.
    """

    def __init__(self, size: int, tournament: int = 2, objective: Objective = "accuracy") -> None:
        if size < 1 or tournament < 1:
            raise UserError(f"population: it takes a size and a tournament of 1 or more, not {size} and {tournament}")
        if objective not in get_args(Objective):
            raise unknown_name("objective", str(objective), get_args(Objective))
        self.size, self.tournament, self.objective = size, tournament, objective
        self.finished: list[Individual] = []
        """All that were ever added, in that order."""
        self.members: list[Individual] = []
        """Those that are there now, the oldest first."""

    def add(self, individual: Individual) -> None:
        """Take in a finished network; above the size, the oldest but the most accurate one leaves."""
        self.finished.append(individual)
        self.members.append(individual)
        if len(self.members) > self.size:
            elite = self.best
            leaves = next((each for each in self.members if each is not elite), elite)
            self.members.remove(leaves)

    @property
    def best(self) -> Individual:
        """The most accurate, of equal ones the one that was there first; it is among the members."""
        if not self.members:
            raise UserError("population: it is empty; nothing is finished yet")
        return max(self.members, key=lambda each: each.accuracy)

    def parent(self, draw: Generator) -> Individual:
        """The winner of a tournament between some members that are drawn, each at most once.

        It is the most accurate of them; for the objective "pareto" one of those that none of them dominates, drawn.
        """
        if not self.members:
            raise UserError("population: it is empty; nothing is finished yet")
        count = min(self.tournament, len(self.members))
        drawn = [self.members[at] for at in sorted(draw.permutation(len(self.members))[:count])]
        if self.objective == "accuracy":
            return max(drawn, key=lambda each: each.accuracy)
        winners = front(drawn)
        return winners[draw.integers(len(winners))]

    def front(self) -> list[Individual]:
        """Of all that were ever added, those that none of the others dominates."""
        return front(self.finished)


def front(individuals: Iterable[Individual]) -> list[Individual]:
    """The individuals that no other dominates, in their order.

    >>> [each.name for each in front([small, large_but_better, large_and_worse])]
    ['small', 'large_but_better']

    One dominates another where it is at least as accurate, with no more parameters and no more latency, and better in
    one of these.
    """
    everyone = list(individuals)
    return [each for each in everyone if not any(_dominates(other, each) for other in everyone)]


def _dominates(one: Individual, other: Individual) -> bool:
    pairs = list(zip(_costs(one), _costs(other), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _costs(individual: Individual) -> Sequence[float]:
    return (-individual.accuracy, individual.parameters, individual.latency_ms)


WEIGHT_DECAY = (1e-5, 1e-2)
DROPOUT = (0.0, 0.6)
OUTPUT_PENALTY = (1e-6, 1e-2)
"""The least and the most that mutation makes of each gene; an output penalty below its least is none."""
TIMES = 4.0
"""By which a gene becomes greater or smaller at most."""
GENES_CHANCE = 0.5
"""That the regularisation of a child is another than its parent's."""


def genes_of_child(genes: Genes, draw: Generator) -> Genes:
    """Those of the parent, or with chance `GENES_CHANCE` a mutation of them.

    >>> genes_of_child(Genes(), np.random.default_rng(0))
    Genes(weight_decay=0.0005, dropout=0.0, output_penalty=0.0)
    """
    return mutate_genes(genes, draw) if draw.random() < GENES_CHANCE else genes


def mutate_genes(genes: Genes, draw: Generator) -> Genes:
    """The same with one of them another, drawn.

    >>> mutate_genes(Genes(), np.random.default_rng(0))
    Genes(weight_decay=0.00046…, dropout=0.0, output_penalty=0.0)

    Weight decay and output penalty are multiplied by 4ᵘ with u uniform in (−1, 1), dropout is moved by up to 0.2. A
    penalty that is 0 becomes any within its range, one that falls below it 0.
    """
    gene = ("weight_decay", "dropout", "output_penalty")[draw.integers(3)]
    times = TIMES ** draw.uniform(-1, 1)
    if gene == "weight_decay":
        return replace(genes, weight_decay=_within(genes.weight_decay * times, WEIGHT_DECAY))
    if gene == "dropout":
        return replace(genes, dropout=_within(genes.dropout + draw.uniform(-0.2, 0.2), DROPOUT))
    least, most = OUTPUT_PENALTY
    if genes.output_penalty == 0:
        return replace(genes, output_penalty=math.exp(draw.uniform(math.log(least), math.log(most))))
    penalty = genes.output_penalty * times
    return replace(genes, output_penalty=min(penalty, most) if penalty >= least else 0.0)


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])
