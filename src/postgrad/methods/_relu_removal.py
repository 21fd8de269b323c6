"""Find the ReLUs that directly follow given layers, and take them out of a network in place."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from postgrad.errors import UserError

_FUNCTIONS = (F.relu, torch.relu, torch.relu_)
_METHODS = ("relu", "relu_")


@dataclass(frozen=True)
class _Cut:
    """Which ReLUs go, of the `count` that one run of a forward calls, by their order."""

    places: frozenset[int]
    count: int


@dataclass(frozen=True)
class Removal:
    """The `layers` that lose their ReLU, and the ReLU `modules` that are called behind them and nowhere else.

    The caller replaces those modules; `rewrite` takes out the others. `kept` names the layers whose ReLU has to stay
    although nothing else reads what they give.
    """

    layers: Set[nn.Module]
    modules: Set[nn.Module]
    kept: tuple[str, ...]
    _forwards: Mapping[nn.Module, tuple[_Cut, Callable[..., Any]]]

    def rewrite(self) -> None:
        """Take out the ReLUs that are no module, or are one that is needed elsewhere.

        The module whose forward calls them gets a subclass of its own class with another forward.
        """
        for module, (cut, forward) in self._forwards.items():
            _replace_forward(module, cut, forward)


def relus_after(model: nn.Module, layers: Mapping[nn.Module, str]) -> Removal:
    """Which ReLUs (modules, functions, methods) follow the layers, given with their names; changes nothing.

    >>> relus_after(model, {model.bn1: "bn1"}).layers
    {BatchNorm2d(64, …)}

    A layer counts where a ReLU is all that reads what it gives, at each of its calls, in training and in evaluation.
    Raises `UserError` where torch.fx cannot follow the network's forward.
    """
    runs = [_follow(model, layers, training=training) for training in (True, False)]
    calls = [call for run in runs for call in run.calls]
    taken = {call.layer for call in calls if call.layer is not None} - runs[0].read_otherwise - runs[1].read_otherwise
    stay: set[nn.Module] = set()
    while True:
        needed = {call.relu for call in calls if call.layer not in taken}
        to_cut = [call for call in calls if call.layer in taken and (call.relu is None or call.relu in needed)]
        forwards = {owner: _cut_forward(owner, to_cut, runs) for owner in dict.fromkeys(call.owner for call in to_cut)}
        lost = {call.layer for call in to_cut if call.layer is not None and forwards[call.owner] is None}
        if not lost:
            break
        stay |= lost
        taken -= lost
    return Removal(
        layers=taken,
        modules={call.relu for call in calls if call.layer in taken and call.relu is not None} - needed,
        kept=tuple(name for layer, name in layers.items() if layer in stay),
        _forwards={owner: cut for owner, cut in forwards.items() if cut is not None},
    )


@dataclass(frozen=True)
class _Call:
    """A call of a ReLU.

    `layer` is what it directly follows (None: nothing of interest), `relu` itself where it is a module, `owner` the
    module whose forward calls it; `place` counts the ReLUs that this owner calls.
    """

    layer: nn.Module | None
    relu: nn.Module | None
    owner: nn.Module
    place: int


@dataclass
class _Run:
    """One symbolic run of a network."""

    calls: list[_Call] = field(default_factory=list)
    read_otherwise: set[nn.Module] = field(default_factory=set)
    """Layers whose output something else than a single ReLU reads."""
    plain: dict[nn.Module, bool] = field(default_factory=dict)
    """Modules that were run: whether it was once, and on plain tensors."""


class _Tracer(fx.Tracer):
    """Keeps the calls of `leaves` whole, and notes whose forward each operation belongs to."""

    def __init__(self, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_leaf = is_leaf
        self.running: list[nn.Module] = []
        self.owners: dict[fx.Node, nn.Module] = {}
        self.plain: dict[nn.Module, bool] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        self.plain[m] = m not in self.plain and all(isinstance(each, fx.Proxy) for each in (*args, *kwargs.values()))
        self.running.append(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.running.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.owners[node] = self.running[-1] if self.running else self.root
        return node


def _follow(model: nn.Module, layers: Mapping[nn.Module, str], *, training: bool) -> _Run:
    tracer = _Tracer(lambda module: not any(isinstance(each, nn.ReLU) or each in layers for each in module.modules()))
    # Options of the forward are taken as they are when it is called with the images alone.
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    try:
        with _as_it_was(model, training=training):
            graph = tracer.trace(model, options or None)
    except Exception as error:  # whatever the network's own code raises on symbols
        raise UserError(
            f"torch.fx cannot follow the forward of {type(model).__name__} ({error}); give the parts of the network "
            "that it can follow, one by one"
        ) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    run = _Run(plain=tracer.plain | {model: True})
    for node in graph.nodes:
        module = _module_of(node, modules)
        if (
            module is not None
            and module in layers
            and (len(node.users) != 1 or not _is_relu(next(iter(node.users)), modules))
        ):
            run.read_otherwise.add(module)
        if _is_relu(node, modules):
            layer = _module_of(node.all_input_nodes[0], modules)
            owner = tracer.owners[node]
            place = sum(call.owner is owner for call in run.calls)
            run.calls.append(_Call(layer if layer in layers else None, module, owner, place))
    return run


def _module_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return (
        (node.op == "call_function" and node.target in _FUNCTIONS)
        or (node.op == "call_method" and node.target in _METHODS)
        or type(_module_of(node, modules)) is nn.ReLU
    )


def _cut_forward(owner: nn.Module, to_cut: list[_Call], runs: list[_Run]) -> tuple[_Cut, Callable[..., Any]] | None:
    """The owner's forward without these ReLUs; None where it cannot be written, or not safely."""
    cuts = set()
    for run in runs:
        if owner in run.plain:
            calls = [call for call in run.calls if call.owner is owner]
            cuts.add(_Cut(frozenset(call.place for call in calls if call in to_cut), len(calls)))
    if len(cuts) > 1 or not all(run.plain.get(owner, True) for run in runs):
        return None
    (cut,) = cuts
    forward = _forward_without(owner, cut)
    return None if forward is None else (cut, forward)


def _forward_without(owner: nn.Module, cut: _Cut) -> Callable[..., Any] | None:
    """The forward of the owner's class without some of its ReLUs, as a function; None where torch.fx cannot write it.

    Every child is kept whole, so that only the owner's own lines become fixed. What they do must not hang on the mode,
    on the types of the inputs, on whether an option is given (`is None`), or on constants made on the way.
    """
    kind = type(owner)
    written = inspect.getattr_static(kind, "forward")
    if any(each.default in (None, True, False) for each in inspect.signature(kind.forward).parameters.values()):
        return None
    if not inspect.isfunction(written) or {"isinstance", "is_tensor", "type"} & set(written.__code__.co_names):
        return None
    if isinstance(owner, nn.Sequential) or "forward" in vars(owner) or kind.__reduce__ is not object.__reduce__:
        return None
    found = []
    for training in (True, False):
        before = set(vars(owner))
        try:
            with _as_it_was(owner, training=training):
                graph = _Tracer(lambda module: True).trace(owner)
                constants = set(vars(owner)) - before
        except Exception:  # whatever its code raises on symbols
            return None
        modules = dict(owner.named_modules(remove_duplicate=False))
        relus = [node for node in graph.nodes if _is_relu(node, modules)]
        if constants or len(relus) != cut.count:
            return None
        for place in cut.places:
            relus[place].replace_all_uses_with(relus[place].all_input_nodes[0])
            graph.erase_node(relus[place])
        found.append(fx.GraphModule(owner, graph))
    return type(found[0]).forward if found[0].code == found[1].code else None


@contextlib.contextmanager
def _as_it_was(module: nn.Module, *, training: bool) -> Iterator[None]:
    """In that mode within the block; after it each part in its own, and without the constants that tracing leaves."""
    modes = {each: each.training for each in module.modules()}
    before = set(vars(module))
    for each in modes:
        each.training = training
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.training = mode
        for name in set(vars(module)) - before:
            delattr(module, name)


def _replace_forward(module: nn.Module, cut: _Cut, forward: Callable[..., Any]) -> None:
    """Give a module a subclass of its class, as torch's parametrizations do; its copies and pickles get one too."""
    old = type(module)

    def reduce(self: nn.Module) -> tuple[Any, ...]:
        return _without_state, (old, cut), self.__getstate__()

    names = {"__module__": old.__module__, "__qualname__": old.__qualname__, "__doc__": old.__doc__}
    module.__class__ = type(old.__name__, (old,), {"forward": forward, "__reduce__": reduce, **names})


def _without_state(old: type[nn.Module], cut: _Cut) -> nn.Module:
    """A module that gets its state, and with it its forward, from whoever copies or unpickles it."""

    def set_state(self: nn.Module, state: dict[str, Any]) -> None:
        self.__class__ = old
        self.__setstate__(state)
        forward = _forward_without(self, cut)
        if forward is None:
            raise UserError(
                f"the forward of {old.__name__} is not what it was when its ReLUs were taken out; do so again"
            )
        _replace_forward(self, cut, forward)

    return object.__new__(type(old.__name__, (old,), {"__setstate__": set_state}))
