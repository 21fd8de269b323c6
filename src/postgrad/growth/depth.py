"""Deeper networks that compute the same: residual blocks that start at zero, layers that start as the identity.

Idea. x + f(x) is x where the last layer of f is zero; it then learns. An identity layer with its ReLU is x where x ≥ 0,
as it is behind a ReLU, or where a ReLU follows anyway; elsewhere the layer stands behind a gate.

When it fails. A module that runs several times in one forward pass is refused, as a block behind it would. An identity
layer whose normalisation was set to the statistics of one example is exact in evaluation mode only.

Paper. T. Chen, I. Goodfellow, J. Shlens, "Net2Net", arXiv 1511.05641 (identity layers); T. Wei, C. Wang, Y. Rui, C.
Chen, "Network Morphism", arXiv 1603.01670 (gates); P. Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677,
section 5.1 (a last γ of zero). Licence or patent note: Apache-2.0; none known.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from postgrad.errors import UserError, unknown_name
from postgrad.growth._calls import certified, drawn, join_groups
from postgrad.growth._places import Example, Place, place, surroundings
from postgrad.growth.beside import fresh_copy
from postgrad.growth.blocks import Layer, gates, insert
from postgrad.growth.certificate import Certificate, Witness
from postgrad.growth.transaction import transaction
from postgrad.growth.transfer import Averages
from postgrad.methods._surgery import optimizer_follows

Init = Literal["identity", "noise", "random"]
_INITS = ("identity", "noise", "random")
_NOISE = 0.1
"""Standard deviation of the noise on an identity layer's zero weights, in units of He's."""
_CANDIDATES = 16384
_CHANNELS_AT_ONCE = 64


def deepen(
    model: nn.Module,
    after: str,
    *,
    example: Example,
    kind: Literal["residual", "identity"] = "residual",
    optimizer: Optimizer | None = None,
    averages: Averages = (),
    seed: int = 0,
) -> Certificate:
    """Put a new block behind a module, in place, without changing what the network computes.

    >>> model = create_model("resnet20", num_classes=10)
    >>> deepen(model, "layer3", example=images).mode  # a fourth residual block
    'train'

    Names of what is there stay: the block joins the end of an `nn.Sequential`, and is otherwise run by a hook as the
    child `grown` of the module.

    Parameters
    ----------
    model : the network; its hooks, parameters and training mode survive.
    after : the dotted name of a module that runs once in a forward pass and gives one tensor.
    example : what the network takes, (N, …), or a tuple of its arguments; its certificate is measured on it.
    kind : "residual" (default) is exact in training mode too. Behind an `nn.Sequential` of blocks of one class whose
        last keeps its shape, one more block of that class, drawn anew, whose last normalisation starts at zero (or the
        last layer of each of its parts). Elsewhere, and where that would not be exact, x + f(x): two 3×3 convolutions
        with ReLU on images (N, C, …), normalised where the network has batch normalisation;
        LayerNorm–Linear–GELU–Linear on tokens (N, T, C); Linear–ReLU–Linear on (N, C). The journal says which.
        "identity" is one layer that starts as the identity, 3×3 or linear, with a ReLU, and normalised where the
        network has batch normalisation, then set to the example's statistics: exact in evaluation mode only. It stands
        as it is behind or before a ReLU, as the exported graph shows; elsewhere behind a learned gate, (1 − a)·f(x) +
        a·x with a = 1, which is exact in training mode too; the normalisation then keeps γ = 1 and β = 0.
    optimizer : trains the new parameters as well, in the groups of those of the module.
    averages : of the network's weights; they grow with it (`postgrad.growth.transfer_average`).
    seed : of the draw of the new weights.

    `UserError`, network and optimizer left as they were: no such module; one that runs never or several times, or gives
    no single tensor; one in which a block cannot be; a network that would compute something else.
    Source: arXiv 1511.05641, 1603.01670 and 1706.02677, section 5.1.
    """
    if kind not in ("residual", "identity"):
        raise unknown_name("kind of deepening", str(kind), ("residual", "identity"))
    where = place(model, after, example)
    arguments = {"after": after, "kind": kind, "seed": seed}
    if kind == "identity":
        return put_layer(
            model, where, "deepen", arguments, example=example, optimizer=optimizer, averages=averages, seed=seed
        )
    block, options, zeroed = _residual(where, seed)
    witness = Witness.of(model, example)
    with transaction(model, optimizer), optimizer_follows(model, optimizer) as heir_of:
        with drawn(seed):
            name = insert(model, after, block, options)
        new = model.get_submodule(name)
        join_groups(heir_of, new, where.module)
        zeroed = zeroed or gates(new)
        for each in zeroed:
            nn.init.zeros_(new.get_parameter(each))
        insertion = {"into": after, "block": block, "options": options}
        entry = {"operator": "deepen", "arguments": arguments, "insertions": [insertion]}
        return certified(
            model, witness, entry, train=True, changed=[f"{name}.{each}" for each in zeroed], averages=averages
        )


def put_layer(
    model: nn.Module,
    where: Place,
    operator: str,
    arguments: dict[str, Any],
    *,
    example: Example,
    optimizer: Optimizer | None,
    averages: Averages,
    seed: int,
    groups: int = 1,
    init: Init = "identity",
) -> Certificate:
    """Put a layer that starts as the identity behind a module: the work of `deepen` and `insert_group`.

    >>> where = place(model, "relu", images)
    >>> put_layer(model, where, "deepen", arguments, example=images, optimizer=None, averages=(), seed=0)
    """
    if init not in _INITS:
        raise unknown_name("initialisation", str(init), _INITS)
    form = _form(model, where.name, example) if init == "identity" else {"noise": "gated", "random": "residual"}[init]
    size = {"features": where.features, "spatial": where.spatial, "groups": groups}
    options = {**size, "norm": where.norm, "form": form}
    train = not where.norm or form in ("gated", "residual")
    witness = Witness.of(model, example, train=train)
    with transaction(model, optimizer), optimizer_follows(model, optimizer) as heir_of:
        with drawn(seed):
            name = insert(model, where.name, "layer", options)
        layer = model.get_submodule(name)
        assert isinstance(layer, Layer)
        join_groups(heir_of, layer, where.module)
        with drawn(seed):
            _start(layer, init)
        if isinstance(layer.norm, _BatchNorm):
            seen = where.output if form != "before" else torch.relu(where.output)
            _calibrate(layer.norm, seen, identity=form in ("after", "before"))
        insertion = {"into": where.name, "block": "layer", "options": options}
        entry = {"operator": operator, "arguments": arguments, "insertions": [insertion]}
        return certified(
            model,
            witness,
            entry,
            train=train,
            changed=[f"{name}.{each}" for each in gates(layer)],
            expected=_cut_at(where.name) if form == "before" else None,
            averages=averages,
        )


def _form(model: nn.Module, name: str, example: Example) -> str:
    non_negative, cut = surroundings(model, name, example)
    return "after" if non_negative else "before" if cut else "gated"


def _cut_at(name: str) -> Callable[[str, Tensor], Tensor]:
    """What modules give once the ReLU that followed one has become part of it: those that pass its output on, too."""
    cut: list[Tensor] = []

    def expected(module: str, old: Tensor) -> Tensor:
        if module == name:
            cut.append(old)
        return old.relu() if any(torch.equal(old, each) for each in cut) else old

    return expected


def _residual(where: Place, seed: int) -> tuple[str, dict[str, Any], list[str]]:
    """The block, its options, and its parameters that are to be zero (none: those that its class says)."""
    copied = _one_more(where, seed)
    if copied is not None:
        last, zeroed = copied
        return "copy", {"of": f"{where.name}.{last}"}, zeroed
    if where.spatial:
        return "residual", {"features": where.features, "spatial": where.spatial, "norm": where.norm}, []
    return "residual_tokens" if where.output.dim() > 2 else "residual_features", {"features": where.features}, []


def _one_more(where: Place, seed: int) -> tuple[str, list[str]] | None:
    """The last block of a stage and what of its copy must be zero to be the identity; None where there is no such."""
    blocks = dict(where.module.named_children()) if isinstance(where.module, nn.Sequential) else {}
    if not blocks or len({type(each) for each in blocks.values()}) > 1:
        return None
    name, last = list(blocks.items())[-1]
    if not list(last.children()):
        return None
    x = where.output.cpu().double()
    try:
        with drawn(seed):
            drawn_anew = fresh_copy(last).cpu().double().eval()
    except UserError:
        return None
    for layers in _ends(drawn_anew, x):
        made = copy.deepcopy(drawn_anew)
        zeroed = [f"{path}.{key}" for path in layers for key, _ in made.get_submodule(path).named_parameters()]
        for each in zeroed:
            nn.init.zeros_(made.get_parameter(each))
        with torch.no_grad():
            y = _tried(made, x)
        if zeroed and y is not None and y.shape == x.shape and torch.allclose(y, x, rtol=0, atol=1e-12 * _scale(x)):
            return name, zeroed
    return None


def _ends(block: nn.Module, x: Tensor) -> list[list[str]]:
    """The layers that end a block, one guess after another: the last normalisation, or the last layer of each part."""
    ran: list[str] = []
    names = {module: name for name, module in block.named_modules()}
    handles = [each.register_forward_hook(lambda module, *_: ran.append(names[module])) for each in names]
    with torch.no_grad():
        _tried(block, x)
    for handle in handles:
        handle.remove()
    norms = [each for each in ran if isinstance(block.get_submodule(each), _BatchNorm)]
    parts = []
    for part, module in block.named_children():
        layers = [each for each in ran if each.startswith(f"{part}.") and _is_affine(block.get_submodule(each))]
        if isinstance(module, nn.MultiheadAttention):
            layers = [f"{part}.out_proj"]  # its weights are used without a call
        parts += layers[-1:]
    last = [each for each in ran if _is_affine(block.get_submodule(each))][-1:]
    return [each for each in (norms[-1:], list(dict.fromkeys(parts + last))) if each]


def _tried(block: nn.Module, x: Tensor) -> Tensor | None:
    try:
        y = block(x)
    except (RuntimeError, TypeError, ValueError):
        return None  # it takes more than one tensor, or none of this shape
    return y if isinstance(y, Tensor) else None


def _is_affine(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _scale(x: Tensor) -> float:
    return max(x.std(correction=0).item(), 1e-300)


def _start(layer: Layer, init: Init) -> None:
    """Draw what does not start as the identity: all of it, or noise where its weight is zero."""
    if init == "random":
        layer.layer.reset_parameters()
    elif init == "noise":
        weight = layer.layer.weight
        noise = torch.randn(weight.shape, dtype=torch.float64) * _NOISE * math.sqrt(2 / weight[0].numel())
        with torch.no_grad():
            weight += torch.where(weight == 0, noise.to(weight), torch.zeros_like(weight))


@torch.no_grad()
def _calibrate(norm: _BatchNorm, x: Tensor, *, identity: bool) -> None:
    """Set a normalisation to the statistics of its input (N, C, …), and where asked to the identity in evaluation mode.

    For that γ = √(σ² + ε) is to hold far beyond the precision of the numbers in which γ and σ² are kept. So of the
    numbers just above the wanted γ, the one is taken whose γ² − ε is nearest to a number σ² of that precision.
    """
    dims = [each for each in range(x.dim()) if each != 1]
    variance, mean = torch.var_mean(x.double(), dim=dims, correction=0)
    dtype = norm.weight.dtype
    steps = 1 + torch.arange(_CANDIDATES, device=x.device) * torch.finfo(dtype).eps
    pairs = []
    for wanted in (variance + norm.eps).sqrt().split(_CHANNELS_AT_ONCE):
        gamma = (wanted[:, None] * steps).to(dtype).double()
        exact = gamma.square() - norm.eps
        kept = exact.clamp(min=0).to(dtype).double()
        best = ((kept - exact).abs() / gamma.square()).argmin(dim=1, keepdim=True)
        pairs.append(torch.cat([gamma.gather(1, best), kept.gather(1, best)], dim=1))
    gamma, kept = torch.cat(pairs).unbind(1)
    values = {"running_mean": mean, "running_var": kept}
    if identity:
        values |= {"weight": gamma, "bias": mean}
    for name, value in values.items():
        getattr(norm, name).copy_(value)
