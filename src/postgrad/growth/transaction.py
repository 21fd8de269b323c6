"""All of a change to a network, or none of it: what fails halfway leaves it and its optimizer as they were."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Container = dict[Any, Any] | list[Any] | set[Any]


@contextlib.contextmanager
def transaction(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Change a network inside the block; where the block raises, the network is put back.

    >>> with transaction(model, optimizer):
    ...     model.conv.weight = nn.Parameter(wider)
    ...     raise KeyboardInterrupt  # the old parameter is in its place again, the same object

    Put back are each module's class, attributes (shallow: the dicts, lists and sets that it holds, and what these
    hold), children, parameters, buffers, hooks and mode; each tensor's data, gradient and `requires_grad`; and the
    optimizer's groups and state. No tensor is copied, so the block must not write into one: where it did and then
    raised, that cannot be undone, and the error becomes a `RuntimeError` that names the tensor.
    """
    containers = [pair for module in model.modules() for pair in _copies(vars(module), depth=2)]
    if optimizer is not None:
        containers += _copies(vars(optimizer), depth=3)  # down to the list of a group's parameters
    classes = [(module, type(module)) for module in model.modules()]
    tensors = [_Tensor.of(name, tensor) for name, tensor in _named_tensors(model, containers)]
    try:
        yield
    except BaseException as error:
        for module, its_class in classes:
            module.__class__ = its_class
        for container, content in containers:
            _refill(container, content)
        for each in reversed(tensors):  # gradients before the parameters that they must fit
            each.put_back()
        written = [each.name for each in tensors if each.was_written()]
        if written:
            raise RuntimeError(f"{', '.join(written[:8])}: written in place, so it cannot be put back") from error
        raise


@dataclass(frozen=True)
class _Tensor:
    """What belongs to a tensor: its storage (not a copy of it), its gradient, whether it wants one."""

    name: str
    tensor: Tensor
    data: Tensor
    gradient: Tensor | None
    requires_grad: bool
    version: int | None

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> _Tensor:
        gradient = tensor.grad if tensor.is_leaf else None
        return cls(name, tensor, tensor.data, gradient, tensor.requires_grad, _version(tensor))

    def put_back(self) -> None:
        if self.tensor.dtype != self.data.dtype or not self.tensor.is_set_to(self.data):
            self.tensor.data = self.data
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)
            self.tensor.grad = self.gradient

    def was_written(self) -> bool:
        return _version(self.tensor) != self.version


def _version(tensor: Tensor) -> int | None:
    """How often it was written; tensors made in inference mode do not count."""
    return None if tensor.is_inference() else tensor._version


def _named_tensors(model: nn.Module, containers: list[tuple[Container, Container]]) -> Iterator[tuple[str, Tensor]]:
    named = {id(tensor): (name, tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    for name, tensor in list(named.values()):
        if tensor.is_leaf and tensor.grad is not None:
            named.setdefault(id(tensor.grad), (f"{name}.grad", tensor.grad))
    for container, _ in containers:
        for value in _values(container):
            if isinstance(value, Tensor):
                named.setdefault(id(value), ("a tensor that the network or its optimizer holds", value))
    yield from named.values()


def _copies(container: Container, depth: int) -> Iterator[tuple[Container, Container]]:
    yield container, copy.copy(container)
    for value in _values(container) if depth else ():
        if isinstance(value, (dict, list, set)):
            yield from _copies(value, depth - 1)


def _values(container: Container) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


def _refill(container: Container, content: Any) -> None:
    """Give a container its old content; it stays the same object, since a hook's handle or a schedule refers to it."""
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
