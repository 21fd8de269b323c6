"""The mutations of a search by name, and how a user's own joins them.

A mutation looks at a network and says in words of growth what shall be done to it; it changes nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from numpy.random import Generator
from torch import nn

from postgrad.errors import UserError, unknown_name
from postgrad.growth.words import Operation
from postgrad.models.factories import module_of_file
from postgrad.search.commands import draw_commands
from postgrad.search.feasible import check_feasible
from postgrad.search.parent import Infeasible, Limits, Parent, Site, Width, architecture_of

__all__ = [
    "MUTATIONS",
    "Infeasible",
    "Limits",
    "Mutation",
    "Parent",
    "architecture_of",
    "load_mutations",
    "mutation",
    "mutation_named",
]

T = TypeVar("T")
Mutation = Callable[[Parent, Generator], list[Operation]]

MUTATIONS: dict[str, Mutation] = {}
"""Name -> the mutation."""

NARROWEST, WIDEST = 128, 1024
"""How wide the first and the last layer of a network may become; those between them in proportion to their depth."""
GROUPS = (2, 3, 4, 5)
LARGEST_KERNEL = 7


def mutation(name: str) -> Callable[[Mutation], Mutation]:
    """Register a mutation under a name.

    >>> @mutation("dropout")
    ... def dropout(parent, draw):
    ...     site = parent.sites[draw.integers(len(parent.sites))]
    ...     return [Operation("insert_dropout", {"after": site.name, "p": 0.1})]

    It is given a `Parent` and a `numpy.random.Generator`, the only chance that it may use, and returns operations; it
    raises `Infeasible` where nothing fits. `UserError` for a name that another one has.
    """

    def register(function: Mutation) -> Mutation:
        known = MUTATIONS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise UserError(f"there is a mutation '{name}' already, in {known.__module__}; give yours another name")
        MUTATIONS[name] = function
        return function

    return register


def mutation_named(name: str) -> Mutation:
    """The mutation of that name; `UserError` with the nearest where there is none.

    >>> mutation_named("deeper")(parent, np.random.default_rng(0))
    [Operation(name='deepen', options={'after': 'conv2', 'kind': 'identity'})]
    """
    if name not in MUTATIONS:
        raise unknown_name("mutation", name, MUTATIONS)
    return MUTATIONS[name]


def load_mutations(path: str | os.PathLike[str]) -> list[str]:
    """Run a file of the user's own, which registers mutations; returns their names.

    >>> load_mutations("my_mutations.py")
    ['dropout']

    It can be run again, as each worker of a search does. `UserError` where there is no such file, where it fails (with
    the place), or where it registers nothing.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: no such file of mutations; give the path of a Python file")
    module = module_of_file(file)
    names = [name for name, each in MUTATIONS.items() if each.__module__ == module.__name__]
    if not names:
        raise UserError(f'{path} registers no mutation; put @mutation("name") above a function')
    return names


@mutation("deeper")
def deeper(parent: Parent, draw: Generator) -> list[Operation]:
    """One layer more, which starts as the identity."""
    return [_layer(_one_of(parent.sites, draw, "no layer can be put in anywhere"))]


@mutation("wider")
def wider(parent: Parent, draw: Generator) -> list[Operation]:
    """A layer becomes wider by any part of what it may: 128 channels the first layer, 1024 the last."""
    room = [width for width in parent.widths if width.channels + width.step <= _widest(parent, width)]
    width = _one_of(room, draw, "no layer can become wider")
    more = draw.random() * (_widest(parent, width) - width.channels)
    steps = max(1, int(more // width.step))
    return [Operation("widen", {"layer": width.layer, "to": width.channels + steps * width.step})]


@mutation("skip")
def skip(parent: Parent, draw: Generator) -> list[Operation]:
    """What one layer gives is added to what a later one gives, of the same or a smaller resolution."""
    pairs = [
        (source, target)
        for source in parent.sites
        for target in parent.sites
        if source.at < target.at
        and source.layer < target.layer
        and len(source.shape) == len(target.shape)
        and source.side >= target.side
    ]
    source, target = _one_of(pairs, draw, "no two layers can be joined by a skip connection")
    return [Operation("add_skip", {"source": source.name, "target": target.name})]


@mutation("group")
def group(parent: Parent, draw: Generator) -> list[Operation]:
    """A grouped convolution of 2 to 5 groups more, which starts as the identity."""
    fitting = [
        (site, groups) for site in parent.sites if site.images for groups in GROUPS if site.features % groups == 0
    ]
    site, groups = _one_of(fitting, draw, "no layer gives images of channels that 2 to 5 groups divide")
    return [Operation("insert_group", {"after": site.name, "groups": groups})]


@mutation("pool")
def pool(parent: Parent, draw: Generator) -> list[Operation]:
    """One layer more, followed by pooling: approximate, since images become smaller from there on."""
    sites = [site for site in parent.sites if site.images and site.side > 1]
    refused = Infeasible("no layer gives images that could be pooled")
    for at in draw.permutation(len(sites)):
        operations = [_layer(sites[at]), Operation("insert_pool", {"after": sites[at].name, "kind": "max"})]
        try:
            check_feasible(parent, operations)
        except Infeasible as error:
            refused = error
        else:
            return operations
    raise refused


@mutation("branch")
def branch(parent: Parent, draw: Generator) -> list[Operation]:
    """A second way beside a layer: its copy with shares of the output, or one drawn anew that adds nothing yet."""
    layers = [site.name for site in parent.outputs if site.name in parent.layers]
    kind = "add" if draw.random() < 0.5 else "gated"
    return [Operation("branch", {"layer": _one_of(layers, draw, "no layer can be branched"), "kind": kind})]


@mutation("kernel")
def kernel(parent: Parent, draw: Generator) -> list[Operation]:
    """A convolution's square kernel grows by one ring, to 7×7 at most."""
    square = [
        (name, layer.kernel_size[0])
        for name, layer in parent.layers.items()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] == layer.kernel_size[1] <= LARGEST_KERNEL - 2
    ]
    name, size = _one_of(square, draw, f"no convolution has a square kernel below {LARGEST_KERNEL}×{LARGEST_KERNEL}")
    return [Operation("grow_kernel", {"layer": name, "to": size + 2})]


mutation("commands")(draw_commands)


def _layer(site: Site) -> Operation:
    return Operation("deepen", {"after": site.name, "kind": "identity"})


def _widest(parent: Parent, width: Width) -> int:
    at_its_depth = NARROWEST + (WIDEST - NARROWEST) * width.depth // max(len(parent.layers) - 1, 1)
    return min(at_its_depth, parent.limits.width)


def _one_of(choices: Sequence[T], draw: Generator, none: str) -> T:
    if not choices:
        raise Infeasible(none)
    return choices[int(draw.integers(len(choices)))]
