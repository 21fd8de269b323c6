"""What a network is tried with for its certificate, and how copies of it are run without leaving a trace."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from postgrad.errors import UserError
from postgrad.growth._convolution import ManyGroups

Arguments = tuple[Any, ...]

BATCH = "float64 eval, batch 2"
"""The probe whose intermediate tensors and gradients are looked at."""
SINGLE = "float32 eval, batch 2"
TRAIN = "float64 train"

_SEED = 20160000
_JITTER = 0.1
"""Noise on an image that is there more than once, in standard deviations of the example."""
_DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.feature_dropout,
}


def probes(example: Tensor | Arguments) -> dict[str, Arguments]:
    """The arguments of each check, by its name, made from an example.

    >>> list(probes(torch.rand(1, 3, 32, 32)))[2:]
    ['float64 eval, batch 3', 'float64 eval, 24×24', 'float64 eval, 40×40', 'float64 train', 'float32 eval, batch 2']

    Batches of 1, 2 and 3; images also at ¾ and 5⁄4 of their size. Images that are there more than once, or show
    nothing, get noise; whole numbers (tokens) are rolled. Raises `UserError` where the example holds no image.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    first = next((each for each in arguments if isinstance(each, Tensor) and each.dim()), torch.empty(0))
    if not first.numel():
        raise UserError("example: expected a batch of at least one image, as the network takes it (N, …)")
    generator = torch.Generator().manual_seed(_SEED)
    one, two, three = (tuple(_rows(each, len(first), n, generator) for each in arguments) for n in (1, 2, 3))
    return {
        "float64 eval, batch 1": one,
        BATCH: two,
        "float64 eval, batch 3": three,
        **{f"float64 eval, {name}": resized for name, resized in _resolutions(one, first)},
        TRAIN: three,
        SINGLE: two,
    }


def answer(name: str, model: nn.Module, arguments: Arguments) -> list[Tensor]:
    """The outputs of a network's copy in one check."""
    with torch.no_grad():
        if name == TRAIN:
            return _train(model, arguments)
        dtype = torch.float32 if name == SINGLE else torch.float64
        return leaves(model(*_given(arguments, dtype)))


def observe(
    model: nn.Module, arguments: Arguments, see: Callable[[str, list[Tensor]], None]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs of a copy in float64, and the gradients of a fixed random projection of them, by name.

    `see` is given each module's name and outputs as they come; they may be written over after that.
    """
    parameters = {name: each for name, each in model.named_parameters() if each.is_floating_point()}
    for parameter in parameters.values():
        parameter.requires_grad_()
    with torch.enable_grad():
        outputs = watch(model, arguments, see)
    generator = torch.Generator().manual_seed(_SEED)
    trained = [each for each in outputs if each.requires_grad]
    if not trained or not parameters:
        return outputs, {}
    weights = [torch.randn(each.shape, generator=generator, dtype=torch.float64, device="cpu") for each in trained]
    gradients = torch.autograd.grad(
        trained, list(parameters.values()), weights, allow_unused=True, materialize_grads=True
    )
    return [each.detach() for each in outputs], dict(zip(parameters, gradients, strict=True))


def watch(model: nn.Module, arguments: Arguments, see: Callable[[str, list[Tensor]], None]) -> list[Tensor]:
    """The outputs of a copy in float64; `see` is as in `observe`."""
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: see(name, leaves(output)))
        for name, module in model.named_modules()
    ]
    outputs = leaves(model(*_given(arguments, torch.float64)))
    for handle in handles:
        handle.remove()
    return outputs


def leaves(output: Any) -> list[Tensor]:
    """The tensors of an output: a tensor, or tuples, lists, mappings and dataclasses of them."""
    if isinstance(output, Tensor):
        return [torch.view_as_real(output) if output.is_complex() else output]
    if isinstance(output, Mapping):
        return [leaf for value in output.values() for leaf in leaves(value)]
    if isinstance(output, (tuple, list)):
        return [leaf for value in output for leaf in leaves(value)]
    if dataclasses.is_dataclass(output):
        return [leaf for field in dataclasses.fields(output) for leaf in leaves(getattr(output, field.name))]
    return []


def copy_of(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in evaluation mode, on the CPU: a certificate says what is computed, not where, and needs float64.

    Raises `UserError` where it cannot be copied.
    """
    try:
        made = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"the network cannot be copied, as its certificate needs: {error}") from error
    made.cpu().eval()
    return made.float() if dtype == torch.float32 else made.double()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave the random state as it is, and the user's autocast and inference mode outside."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        ManyGroups(),
    ):
        yield


def perturb(tensors: Iterable[Tensor]) -> None:
    """Change tensors in place by noise of 1 % of their standard deviation (of 1 where they are constant)."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for tensor in (each for each in tensors if each.numel()):
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            if tensor.numel() == 1:
                noise.fill_(1)  # a single draw may be next to nothing
            tensor += 0.01 * (tensor.std(correction=0).item() or 1.0) * noise


def _train(model: nn.Module, arguments: Arguments) -> list[Tensor]:
    """The outputs in training mode, its dropout off; the copy has its mode and statistics back after it."""
    model.train()
    for module in model.modules():
        if type(module).__name__ in ("StochasticDepth", "DropPath"):  # torchvision's and timm's
            module.eval()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    chance = torch.get_rng_state()
    try:
        with _NoDropout():
            outputs = leaves(torch.func.functional_call(model, statistics, _given(arguments, torch.float64)))
    finally:
        model.eval()
    if not torch.equal(torch.get_rng_state(), chance):
        raise UserError("its outputs hang on chance in training mode, beside dropout")
    return outputs


class _NoDropout(TorchFunctionMode):
    """Makes nothing of dropout, in layers and functions alike."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.multi_head_attention_forward:
            kwargs["training"] = False  # which says no more than this there
        elif func is F.scaled_dot_product_attention:
            kwargs |= dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
            args, kwargs["dropout_p"] = (), 0.0
        return func(*args, **kwargs)


def _resolutions(arguments: Arguments, first: Tensor) -> Iterator[tuple[str, Arguments]]:
    if first.dim() != 4 or not first.is_floating_point():
        return
    height, width = first.shape[2:]
    for quarters in (3, 5):
        size = (max(1, height * quarters // 4), max(1, width * quarters // 4))
        if size != (height, width):
            resized = (
                F.interpolate(each, size, mode="bilinear") if _is_like(each, first) else each for each in arguments
            )
            yield f"{size[0]}×{size[1]}", tuple(resized)


def _is_like(value: Any, image: Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape[2:] == image.shape[2:]


def _rows(value: Any, size: int, n: int, generator: torch.Generator) -> Any:
    """A batch of n from one argument; what has no batch dimension is left as it is."""
    if not isinstance(value, Tensor) or value.dim() == 0 or value.size(0) != size or not value.numel():
        return value
    value = value.detach().cpu()
    rows = value[torch.arange(n) % size]
    if value.is_floating_point():
        value, rows = value.double(), rows.double()
        deviation = value.std(correction=0).item()
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64, device="cpu")
        noise[: size if deviation else 0] = 0
        return rows + noise * (_JITTER * deviation or 1.0)
    for number in range(size, n) if rows.dim() > 1 else ():
        rows[number] = rows[number].roll(number, dims=-1)
    return rows


def _given(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Copies of the arguments, since a network may write into what it is given."""
    return tuple(
        each.detach().to("cpu", dtype if each.is_floating_point() else None, copy=True)
        if isinstance(each, Tensor)
        else each
        for each in arguments
    )
