"""Lists of random commands, each of which can be carried out: several changes in one child."""

from __future__ import annotations

from numpy.random import Generator
from torch import nn

from postgrad.growth.words import Operation
from postgrad.search.feasible import check_feasible
from postgrad.search.parent import Infeasible, Parent, Width

FEWEST, MOST = 3, 7
DEEPER = 0.6
"""The chance of each command to be one layer more; the others widen."""
TIMES = (1.2, 2.4)
"""How many times as wide a layer becomes, drawn uniformly."""
_TRIES = 10


def draw_commands(parent: Parent, draw: Generator) -> list[Operation]:
    """A list of 3 to 7 commands, drawn one after the other, each such that the list so far can be carried out.

    >>> [str(command) for command in draw_commands(parent, np.random.default_rng(0))]
    ['deepen:after=conv2,kind=identity', 'widen:layer=conv1,to=1.74x', 'deepen:after=conv1,kind=identity']

    60 % are one layer more and 40 % widen a layer 1.2 to 2.4 times, but not the last convolution or the last linear
    layer. `Infeasible` where fewer than 3 can be found.
    """
    wanted = int(draw.integers(FEWEST, MOST + 1))
    commands: list[Operation] = []
    for _ in range(_TRIES * wanted):
        if len(commands) == wanted:
            break
        command = _deeper(parent, draw) if draw.random() < DEEPER else _wider(parent, draw)
        if command is None:
            continue
        try:
            check_feasible(parent, [*commands, command])
        except Infeasible:
            continue
        commands.append(command)
    if len(commands) < FEWEST:
        raise Infeasible(f"no {FEWEST} commands can follow one another; the network takes {len(commands)}")
    return commands


def _deeper(parent: Parent, draw: Generator) -> Operation | None:
    if not parent.sites:
        return None
    site = parent.sites[draw.integers(len(parent.sites))]
    return Operation("deepen", {"after": site.name, "kind": "identity"})


def _wider(parent: Parent, draw: Generator) -> Operation | None:
    times = f"{draw.uniform(*TIMES):.2f}x"
    widths = _not_last(parent)
    if not widths:
        return None
    return Operation("widen", {"layer": widths[draw.integers(len(widths))].layer, "to": times})


def _not_last(parent: Parent) -> list[Width]:
    """The widths but those that the last convolution or the last linear layer makes."""
    linear = [name for name, layer in parent.layers.items() if isinstance(layer, nn.Linear)]
    convolutions = [name for name, layer in parent.layers.items() if not isinstance(layer, nn.Linear)]
    last = {axis.axis for name in (*linear[-1:], *convolutions[-1:]) for axis in parent.graph.made_by(name)}
    return [width for width in parent.widths if width.axis.axis not in last]
