"""How likely each mutation is: the seed's formula, all alike, or by what has come of them so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from postgrad.errors import UserError
from postgrad.search.individual import Individual
from postgrad.search.parent import most_poolings

D_MAX = 20
"""The depth by which the seed's formula counts: the network that it grew was not to be deeper."""
SINGLE = ("deeper", "wider", "skip", "group", "pool", "branch", "kernel")


@dataclass(frozen=True)
class Tried:
    """What has come of one mutation: how much more accurate the child is than its parent; None where it was refused."""

    mutation: str
    gain: float | None


Weigh = Callable[[Sequence[str], Individual, Sequence[Tried]], dict[str, float]]


@dataclass(frozen=True)
class Preset:
    """A rule for the chances of mutations, and the mutations that it is made for."""

    mutations: tuple[str, ...]
    weigh: Weigh

    def chances(
        self, parent: Individual, history: Sequence[Tried] = (), mutations: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The chance of each mutation, summing to 1.

        >>> PRESETS["uniform"].chances(parent, mutations=["deeper", "wider"])
        {'deeper': 0.5, 'wider': 0.5}

        `history` is all that was tried in the search before. Raises `UserError` for a mutation that the rule does not
        know, and where none has a chance.
        """
        weights = self.weigh(mutations or self.mutations, parent, history)
        total = sum(weights.values())
        if not total > 0:
            raise UserError(f"none of the mutations {', '.join(weights)} has a chance any more; name others as well")
        return {name: weight / total for name, weight in weights.items()}


def seed(mutations: Sequence[str], parent: Individual, history: Sequence[Tried]) -> dict[str, float]:
    """The seed's formula, by depth D and poolings P of the parent, of which its images allow P_max = ⌊log₂ side⌋ − 2.

    >>> seed(["pool", "deeper", "skip"], parent, [])  # of depth 3, without pooling, on images of 32 pixels
    {'pool': 20.0, 'deeper': 10.0, 'skip': 3.0}

    pool: D_max − D_max·P / (2·P_max), and 0 from P_max on; deeper and wider: D_max/2; skip and group: D; D_max = 20.
    """
    depth, pools, most = parent.architecture.depth, parent.architecture.pools, most_poolings(parent.architecture)
    formula = {
        "deeper": D_MAX / 2,
        "wider": D_MAX / 2,
        "skip": float(depth),
        "group": float(depth),
        "pool": D_MAX - D_MAX * pools / (2 * most) if pools < most else 0.0,
    }
    unknown = [name for name in mutations if name not in formula]
    if unknown:
        raise UserError(f"preset seed has no formula for {', '.join(unknown)}; use preset uniform or adaptive with it")
    return {name: formula[name] for name in mutations}


def uniform(mutations: Sequence[str], parent: Individual, history: Sequence[Tried]) -> dict[str, float]:
    """All alike."""
    return dict.fromkeys(mutations, 1.0)


def adaptive(mutations: Sequence[str], parent: Individual, history: Sequence[Tried]) -> dict[str, float]:
    """In proportion to the rate of success, above a floor of half an even share (probability matching).

    >>> adaptive(["deeper", "wider"], parent, [Tried("deeper", 0.01), Tried("wider", None)])
    {'deeper': 0.583…, 'wider': 0.416…}

    A success is a child more accurate than its parent; a refusal is none. With s successes of n tries the rate is
    q = (s + 1) / (n + 2), and of K mutations each has p = f + (1 − K·f)·q / Σq with the floor f = 1 / (2·K). Source: D.
    Thierens, "An adaptive pursuit strategy for allocating operator probabilities", GECCO 2005.
    """
    rates = {}
    for name in mutations:
        gains = [each.gain for each in history if each.mutation == name]
        successes = sum(gain is not None and gain > 0 for gain in gains)
        rates[name] = (successes + 1) / (len(gains) + 2)
    floor, total = 1 / (2 * len(rates)), sum(rates.values())
    return {name: floor + (1 - len(rates) * floor) * rate / total for name, rate in rates.items()}


PRESETS: dict[str, Preset] = {
    "seed": Preset(("deeper", "wider", "skip", "group", "pool"), seed),
    "uniform": Preset(SINGLE, uniform),
    "adaptive": Preset(SINGLE, adaptive),
}
