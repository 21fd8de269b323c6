"""What a module inside a network gives, kept while the network is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from postgrad.errors import UserError, unknown_name


class Feature:
    """What a module gave when it was last called; `value` is None before that."""

    value: Tensor | None = None


@contextlib.contextmanager
def feature(model: nn.Module, path: str | None) -> Iterator[Feature]:
    """Keep the output of the module of that dotted path within the block; nothing of it stays on the network.

    >>> with feature(network, "layer2.0.conv1") as seen:
    ...     network(images)
    >>> seen.value.shape

    Raises `UserError` for a path that the network does not have, and where its output is no tensor.
    """
    modules = dict(model.named_modules())
    if not path or path not in modules:
        raise unknown_name("layer", str(path), [name for name in modules if name])
    seen = Feature()

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise UserError(f"{path} gives a {type(output).__name__}, no tensor; name a layer that gives one")
        seen.value = output

    handle = modules[path].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
