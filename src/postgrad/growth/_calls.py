"""What the operators that put something in have in common: the draw, the optimizer's groups, the certificate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from postgrad.changes import note_change
from postgrad.errors import UserError
from postgrad.growth.certificate import Certificate, Witness
from postgrad.growth.moves import Move
from postgrad.growth.transfer import Averages, transfer_averages


@contextlib.contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Draw from torch's global generator as if it had just been seeded, and leave it as it was.

    >>> with drawn(0):
    ...     layer = nn.Linear(8, 8)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def join_groups(
    heir_of: MutableMapping[nn.Parameter, nn.Parameter], new: nn.Module, near: nn.Module | nn.Parameter
) -> None:
    """Let new parameters join the optimizer's groups of those near by, with as many dimensions where there are such.

    >>> join_groups(heir_of, block, model.layer3)
    """
    old = [near] if isinstance(near, nn.Parameter) else list(near.parameters())
    added = set(new.parameters())
    old = [each for each in old if each not in added]
    for parameter in added:
        alike = [each for each in old if each.dim() == parameter.dim()] or old
        if alike:
            heir_of[parameter] = alike[-1]


def certified(
    model: nn.Module,
    witness: Witness,
    entry: dict[str, Any],
    *,
    train: bool,
    changed: Collection[str],
    exact: bool = True,
    moves: Sequence[Move] = (),
    expected: Callable[[str, Tensor], Tensor | None] | None = None,
    averages: Averages = (),
    copies: Sequence[Move] = (),
) -> Certificate:
    """Certify the changed network, let averages of it follow, note the change on it, forget what was compiled of it.

    `copies` are new parameters that were copied from others, as the averages of these are to be as well.
    `UserError` where it computes something else, or an average is none of it.
    """
    certificate = witness.certify(
        model, entry=entry, train=train, exact=exact, expected=expected, moves=moves, changed=changed
    )
    transfer_averages(averages, model, [*moves, *copies])
    note_change(model, "growth", **certificate.journal[-1])
    # What torch.compile has made of the network takes no notice of new hooks: it would run on without the new blocks.
    torch.compiler.reset()
    return certificate


def check_own_weight(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Refuse a layer whose weight is computed from another, or belongs to several layers; `UserError` says which."""
    if parametrize.is_parametrized(layer, "weight"):
        raise UserError(f"the weight of '{name}' is parametrized; remove the parametrization first")
    owners = [
        path
        for path, module in model.named_modules()
        if any(each is layer.weight for each in module._parameters.values())
    ]
    if len(owners) != 1:
        raise UserError(f"the weight of '{name}' is shared by {', '.join(owners)}; each has to have its own")
