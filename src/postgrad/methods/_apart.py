"""Takes timm's BatchNormAct2d, which drops and activates within, apart into the layers that it is made of."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

from torch import nn

from postgrad.changes import changes_of


@contextlib.contextmanager
def taken_apart(model: nn.Module) -> Iterator[None]:
    """Give a surgery plain batch normalisations in the place of timm's, which activate what they have normalised.

    >>> with taken_apart(model):
    ...     replace_modules(model, {model.bn1.norm: FilterResponseNorm(64)})
    ...     note_change(model, "frn")

    Each `timm.layers.BatchNormAct2d` becomes an `nn.Sequential` of `norm` (an `nn.BatchNorm2d` with the same
    parameters and buffers, the same objects), `drop` and `act`, its own, of which an `nn.Identity` is left out; the
    `nn.BatchNorm2d` alone where nothing else is left. What the network computes stays. Anything that is not just what
    timm's class is, as a subclass of it, stays whole, for the surgery to refuse.

    Where the block notes no change, since it raised or found nothing to do, the network gets back what it had.
    """
    before = changes_of(model)
    whole: list[tuple[nn.Module, str, nn.Module]] = []
    parts: dict[nn.Module, nn.Module] = {}
    try:
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if isinstance(child, nn.BatchNorm2d) and _is_norm_and_act(child):
                    if child not in parts:  # one that has several places stays one
                        parts[child] = _parts(child)
                    whole.append((parent, name, child))
                    parent._modules[name] = parts[child]
        yield
    finally:
        if changes_of(model) == before:
            for parent, name, child in whole:
                parent._modules[name] = child


def is_timms(module: nn.Module, *names: str) -> bool:
    """Whether a module is of one of these classes of timm, and of no subclass; timm need not be installed to ask.

    >>> is_timms(model.conv_stem, "Conv2dSame")
    True
    """
    kind = type(module)
    return kind.__name__ in names and kind.__module__.partition(".")[0] == "timm"


def _is_norm_and_act(norm: nn.BatchNorm2d) -> bool:
    """Whether it is timm's, and as timm makes it."""
    return (
        is_timms(norm, "BatchNormAct2d")
        and norm._parameters.keys() == {"weight", "bias"}
        and norm._buffers.keys() == {"running_mean", "running_var", "num_batches_tracked"}
        and norm._modules.keys() == {"drop", "act"}
        and "forward" not in vars(norm)
    )


def _parts(norm: nn.BatchNorm2d) -> nn.Module:
    plain = nn.BatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    plain._parameters.update(norm._parameters)
    plain._buffers.update(norm._buffers)
    plain.training = norm.training
    rest = {name: norm.get_submodule(name) for name in ("drop", "act")}
    kept = {name: part for name, part in rest.items() if type(part) is not nn.Identity}
    if not kept:
        return plain
    sequence = nn.Sequential(OrderedDict({"norm": plain, **kept}))
    sequence.training = norm.training
    return sequence
