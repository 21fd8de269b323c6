"""Which layer of a network gives its logits, found from the way that its output takes."""

from __future__ import annotations

import inspect
import operator

from torch import fx, nn

from postgrad.errors import UserError
from postgrad.models.network import evaluating


def last_layer(model: nn.Module) -> nn.Module:
    """The one module with weights that nothing with weights comes after.

    >>> last_layer(torchvision.models.resnet18())
    Linear(in_features=512, out_features=1000, bias=True)

    A network that names its classifier by `get_classifier()`, as timm's do, is taken at its word. Otherwise its forward
    is traced in evaluation mode, in which auxiliary heads have no part, with every child as one step, and its output is
    followed back through what has no weights; where that leads to a module made of others, the same is done in it. Only
    the end of a network is traced so. Raises `UserError` where two such layers meet, or the end cannot be traced.
    """
    named = getattr(model, "get_classifier", None)
    found = named() if callable(named) else model
    if not isinstance(found, nn.Module) or isinstance(found, nn.ModuleList | nn.ModuleDict):
        raise _refusal("it names several classifiers", model)
    with evaluating(model):
        while next(found.children(), None) is not None and not isinstance(found, nn.Linear | nn.Conv2d):
            found = _last_child(found, model)
    return found


def _last_child(module: nn.Module, model: nn.Module) -> nn.Module:
    try:
        graph = _Outline().trace(module, concrete_args=_defaults(module))
    except Exception as error:  # the network's own code runs on stand-ins for tensors, and may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise _refusal(f"the forward of {type(module).__name__} cannot be traced ({reason[0][:200]})", model) from error
    ends = _ends(module, next(node for node in reversed(graph.nodes) if node.op == "output"))
    if len(ends) != 1:
        names = ", ".join(sorted(ends)) or "none"
        raise _refusal(
            f"the output of {type(module).__name__} comes from {len(ends)} layers with weights: {names}", model
        )
    name, end = ends.popitem()
    if not isinstance(end, nn.Module):
        raise _refusal(f"{type(module).__name__} ends in its own weight '{name}'", model)
    return end


class _Outline(fx.Tracer):
    """A trace of one forward in which every child is one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _defaults(module: nn.Module) -> dict[str, object]:
    """The arguments that a forward need not be given; traced, they could not decide anything in it."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _ends(module: nn.Module, output: fx.Node) -> dict[str, object]:
    """What has weights and reaches the output through nothing that has, by name."""
    ends: dict[str, object] = {}
    waiting, seen = [output], {output}
    while waiting:
        node = waiting.pop()
        if node.op in ("call_module", "get_attr"):
            part = operator.attrgetter(str(node.target))(module)
            if isinstance(part, nn.Parameter) or (isinstance(part, nn.Module) and list(part.parameters())):
                ends[str(node.target)] = part
                continue
        new = [each for each in node.all_input_nodes if each not in seen]
        seen.update(new)
        waiting += new
    return ends


def _refusal(reason: str, model: nn.Module) -> UserError:
    return UserError(
        f"the last layer of {type(model).__name__} was not found: {reason}; "
        f"put FixedClassifier(in_features, num_classes) in its place by hand"
    )
