"""Decide, by trying it on three images, which gradients have a closed form in a given network and which do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.gradients import capture, contract, fallback
from postgrad.gradients.fallback import GradientFallbackWarning, State
from postgrad.gradients.memory import answer_and_kept_bytes
from postgrad.gradients.scratch import Scratch

Layers = dict[str, tuple[nn.Module, capture.Slots]]

_PROBES = 3
_TRIAL_BYTES = 8
_TRIAL_COPIES = 4
"""Gradients that a trial holds for each image: the loop's rows, those stacked, the closed form, their difference."""

_MOSTLY_ZERO = 0.4
"""The share of numbers that are not zero up to which leaving out the others is faster than a dense product."""


@dataclass(frozen=True)
class Plan:
    """How each parameter's gradients are made: by closed form from `layers`, by a slower way, or they are all zero."""

    layers: Layers
    slow: tuple[str, ...] = ()
    vectorised: bool = True
    unused: tuple[str, ...] = ()
    num_classes: int = 0
    delta_numbers: int = 0
    """How many numbers reach the layers' outputs, for one image and label."""
    patch_numbers: int = 0
    """How many numbers the largest layer's patches have, for one image, where they are all made."""
    stateless: bool = False
    """Whether several threads may run the network at once: nothing of it changes when it runs."""
    channels_last: bool = False
    """Whether the network takes images whose channels lie together, which makes pooling faster on a CPU."""
    sparse: frozenset[str] = frozenset()
    """Layers whose output's gradient is mostly zero, which a contraction of its own makes use of."""
    forward_numbers: int = 0
    """How many numbers autograd keeps of the network's forward pass, for one image."""


def make_plan(model: nn.Module, names: Sequence[str], example: Tensor, *, memory: int = 2 << 30) -> Plan:
    """Try the closed forms on three images against one backward pass at a time, and keep those that agree.

    It catches whatever a list of layer types cannot: weights used outside their layer, sequence-first layouts,
    overridden `forward` methods. The trial runs in float64, so that a difference is a mistake and not rounding, with
    weights that are shaken a little, so that a last layer that starts at zero does not hide the others' mistakes.
    Where all gradients of the three images together would take much of `memory` (bytes), it goes a few at a time.
    """
    _refuse_batch_statistics(model)
    x = _probe_images(example)
    tensors = dict(model.named_parameters())
    with capture.evaluation_mode(model, [tensors[name] for name in names]):
        try:
            logits, forward_bytes = answer_and_kept_bytes(model, x)
            check_logits(logits, len(x))
        except (RuntimeError, TypeError, IndexError) as error:
            raise UserError(f"the model does not take images {tuple(x.shape)}: {_first_line(error)}") from error
        state = _trial_state(model, names, x)
        if state is not None and x.is_floating_point():
            x = x.to(next(iter(state.values())).dtype)
        sizes = {name: tensors[name].numel() for name in names}
        del logits
        plan = _verify(model, _groups(sizes, memory), _candidates(model, names), x, state)
    return replace(plan, forward_numbers=forward_bytes // (len(x) * tensors[names[0]].element_size()))


def _verify(model: nn.Module, groups: Sequence[Sequence[str]], layers: Layers, x: Tensor, state: State | None) -> Plan:
    def forward(images: Tensor) -> Tensor:
        return fallback.answer(model, images, state)

    with torch.no_grad():
        together = forward(x)
        before = _state_of(model)
        _refuse_mixing(forward, x, together)
        unchanged = _state_of(model) == before
        channels_last = x.device.type == "cpu" and _takes_channels_last(forward, x, together)
    trials = [_try(model, group, forward, layers, x, state) for group in groups]
    slow = tuple(name for trial in trials for name in trial.slow)
    vectorised = all(trial.vectorised for trial in trials)
    _say(slow, vectorised)
    agree = {name for trial in trials for name in trial.agree}
    kept = {
        name: (layer, {slot: block for slot, block in slots.items() if block in agree})
        for name, (layer, slots) in layers.items()
    }
    return Plan(
        layers={name: (layer, slots) for name, (layer, slots) in kept.items() if slots},
        slow=slow,
        vectorised=vectorised,
        unused=tuple(name for trial in trials for name in trial.unused),
        num_classes=trials[0].num_classes,
        delta_numbers=trials[0].delta_numbers,
        patch_numbers=trials[0].patch_numbers,
        stateless=unchanged and not slow and x.device.type == "cpu" and not _is_compiled(model),
        channels_last=channels_last,
        sparse=trials[0].sparse,
    )


@dataclass(frozen=True)
class _Trial:
    """What a trial of some parameters' gradients found."""

    agree: set[str]
    unused: tuple[str, ...]
    slow: tuple[str, ...]
    vectorised: bool
    num_classes: int
    delta_numbers: int
    patch_numbers: int
    sparse: frozenset[str]


def _try(
    model: nn.Module,
    names: Sequence[str],
    forward: Callable[[Tensor], Tensor],
    layers: Layers,
    x: Tensor,
    state: State | None,
) -> _Trial:
    logits, calls = capture.run(forward, x, layers)
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.randn(len(x), 1, logits.shape[1], generator=generator).to(logits)
    reference = _reference(model, names, x, cotangents, state)
    reached = next(capture.deltas(logits, calls, [cotangents[:, 0]]))
    agree = _agreeing(_closed_forms(reference, calls, reached), reference)
    unused = tuple(name for name in names if reference[name] is None)
    slow = tuple(name for name in names if name not in agree and name not in unused)
    sparse = frozenset(_mostly_zero(calls, reached))
    return _Trial(
        agree=agree,
        unused=unused,
        slow=slow,
        vectorised=not slow or _vmap_agrees(model, slow, x, cotangents, state, reference),
        num_classes=logits.shape[1],
        delta_numbers=sum(call.output_shape.numel() for call in calls) // len(x),
        patch_numbers=max((_patch_numbers(call, len(x)) for call in calls if call.name not in sparse), default=0),
        sparse=sparse,
    )


class _Same:
    """Equal only to the same object, which it keeps alive, or to a container of as many things."""

    def __init__(self, value: object) -> None:
        self.value, self.length = value, len(value) if isinstance(value, list | dict | set) else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value and self.length == other.length


def _takes_channels_last(forward: Callable[[Tensor], Tensor], x: Tensor, together: Tensor) -> bool:
    """Whether the answers stay as they are; a network that uses `view` refuses."""
    if x.dim() != 4:
        return False
    try:
        answers = forward(x.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return torch.allclose(answers, together, rtol=1e-4, atol=1e-4 * float(together.abs().max()))


def _is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` runs a part of the model, which then is compiled for one thread."""
    return any(hasattr(module, "_orig_mod") for module in model.modules())


def _state_of(model: nn.Module) -> list[object]:
    """What the modules hold, to see whether a run changes it."""
    held: list[object] = [(name, _Same(value)) for module in model.modules() for name, value in vars(module).items()]
    return [*held, *((_Same(buffer), buffer._version) for buffer in model.buffers())]


def _mostly_zero(calls: Sequence[capture.Call], reached: Sequence[Tensor | None]) -> Iterator[str]:
    for call, delta in zip(calls, reached, strict=True):
        if delta is None or not contract.takes_sparse(call.layer):
            continue
        if int(delta.count_nonzero()) < _MOSTLY_ZERO * delta.numel():
            yield call.name


def trial_bytes(model: nn.Module, names: Sequence[str]) -> int:
    """The least memory that the trial of these parameters takes: the network in float64, and the largest of them."""
    tensors = dict(model.named_parameters())
    largest = max(tensors[name].numel() for name in names)
    return (
        _TRIAL_BYTES * sum(tensor.numel() for tensor in tensors.values())
        + _PROBES * _TRIAL_COPIES * _TRIAL_BYTES * largest
    )


def _groups(sizes: Mapping[str, int], memory: int) -> list[list[str]]:
    """Parameters (of so many numbers) that are tried together, so that a trial takes a quarter of `memory` or less.

    A parameter that alone takes more has a trial of its own.
    """
    room = memory // 4 // (_PROBES * _TRIAL_COPIES * _TRIAL_BYTES)
    groups: list[list[str]] = []
    filled = room
    for name, numbers in sizes.items():
        if filled + numbers > room:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += numbers
    return groups


def _reference(
    model: nn.Module, names: Sequence[str], x: Tensor, cotangents: Tensor, state: State | None
) -> dict[str, Tensor | None]:
    try:
        return fallback.looped(model, names, x, cotangents, state)
    except RuntimeError as error:
        raise UserError(f"the model cannot be differentiated: {_first_line(error)}") from error


def _closed_forms(
    reference: Mapping[str, Tensor | None], calls: Sequence[capture.Call], reached: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """The closed form of every parameter that has calls, all of which look as if they had one."""
    images = _PROBES
    misfits = {
        block
        for call in calls
        for block in call.slots.values()
        if not contract.fits(call.layer, call.input, call.output_shape, images)
    }
    found = {
        name: gradient.new_zeros(gradient.shape)
        for name, gradient in reference.items()
        if gradient is not None and name not in misfits
    }
    scratch, written = Scratch(), set[str]()
    for call, delta in zip(calls, reached, strict=True):
        blocks = {slot: block for slot, block in call.slots.items() if block in found}
        form = contract.closed_form(call.layer)
        if delta is not None and blocks and form is not None:
            arranged = contract.arrange(form, delta, images).unsqueeze(1)
            contract.contract(call.layer, call.input, arranged, blocks, found, written, scratch)
    return {name: found[name] for name in written}


def cross_entropy_cotangents(logits: Tensor, labels: Tensor) -> Tensor:
    """What cross-entropy sends back to logits (N, C) under labels (N, L): p − e_k, as (N, L, C).

    The softmax is taken in float64: in float32, p − 1 loses all its digits where the network is sure.
    """
    probabilities = logits.detach().double().softmax(1)
    chosen = torch.nn.functional.one_hot(labels, logits.shape[1])
    return (probabilities[:, None, :] - chosen).to(logits.dtype)


def check_logits(logits: object, images: int) -> None:
    """Refuse answers that cross-entropy over classes has no use for."""
    if not isinstance(logits, Tensor):
        raise UserError(f"the model returned a {type(logits).__name__}, expected logits (N, classes); wrap it")
    if logits.dim() != 2 or logits.shape[0] != images:
        raise UserError(f"the model returned {tuple(logits.shape)} for {images} images, expected (N, classes)")
    if logits.shape[1] < 2:
        raise UserError("the model has one output; cross-entropy over classes needs at least two")
    if not torch.isfinite(logits).all():
        raise UserError("the model's logits are not finite; look for NaN in the images or the weights")


def _agreeing(found: Mapping[str, Tensor], reference: Mapping[str, Tensor | None]) -> set[str]:
    """The parameters whose gradients are the reference's, but for rounding.

    A gradient that is zero but for rounding (a key's bias before a softmax) is measured against the others.
    """
    lengths = {name: gradient.norm(dim=-1) for name, gradient in reference.items() if gradient is not None}
    if not lengths:
        return set()
    longest = torch.stack(list(lengths.values())).amax(0)
    epsilon = torch.finfo(longest.dtype).eps
    agreeing = set()
    for name, length in lengths.items():
        gradient = reference[name]
        assert gradient is not None
        if name in found:
            error = (found[name] - gradient).norm(dim=-1)
            if bool((error <= 10 * epsilon**0.5 * length + 1e3 * epsilon * longest).all()):
                agreeing.add(name)
    return agreeing


def _patch_numbers(call: capture.Call, images: int) -> int:
    form = contract.closed_form(call.layer)
    assert form is not None
    places = call.output_shape.numel() // (form.features * images)
    return contract.patch_numbers(call.layer, call.input.numel() // images, places)


def _vmap_agrees(
    model: nn.Module,
    slow: Sequence[str],
    x: Tensor,
    cotangents: Tensor,
    state: State | None,
    reference: Mapping[str, Tensor | None],
) -> bool:
    try:
        found = fallback.vectorised(model, slow, x, cotangents, state)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return False
    return _agreeing(found, reference) >= set(slow)


def _say(slow: Sequence[str], vectorised: bool) -> None:
    if not slow:
        return
    names = ", ".join(slow[:8]) + (f" and {len(slow) - 8} more" if len(slow) > 8 else "")
    way = "torch.func" if vectorised else "one backward pass at a time, since torch.func cannot run this model"
    warnings.warn(f"no closed form here for the gradients of {names}: through {way}", GradientFallbackWarning, 5)


def _candidates(model: nn.Module, names: Sequence[str]) -> Layers:
    """Layers with a closed form whose own parameters are wanted; a tied weight goes to its first name."""
    wanted = set(names)
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    layers: Layers = {}
    for name, layer in model.named_modules():
        own = {slot: first[id(tensor)] for slot, tensor in layer.named_parameters(recurse=False)}
        slots = {slot: block for slot, block in own.items() if slot in ("weight", "bias") and block in wanted}
        if slots and contract.closed_form(layer) is not None:
            layers[name] = (layer, slots)
    return layers


def _trial_state(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, Tensor] | None:
    """Shaken tensors in float64, or in the network's own precision where it cannot run in another, or none at all."""
    for dtype in (torch.float64, next(model.parameters()).dtype):
        state = _shaken(model, names, dtype)
        try:
            fallback.answer(model, x.to(dtype) if x.is_floating_point() else x, state)
        except (RuntimeError, TypeError):
            continue
        return state
    return None


def _shaken(model: nn.Module, names: Sequence[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The network's tensors, autograd on for the named parameters; the parameters moved by about a hundredth."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        exact = parameter.detach().to(dtype)
        noise = torch.randn(exact.shape, generator=generator).to(exact)
        state[name] = (exact + noise * (0.01 * exact.square().mean().sqrt() + 0.001)).requires_grad_(name in names)
    for name, buffer in model.named_buffers():
        state[name] = buffer.to(dtype) if buffer.is_floating_point() else buffer
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _probe_images(example: Tensor) -> Tensor:
    """Three images that differ: those of the example, and more made from its first by rolling (and dimming) it."""
    made = []
    for shift in range(1, _PROBES):
        image = example[:1].roll(shift, -1)
        made.append(image * (1 - 0.2 * shift) if image.is_floating_point() else image)
    return torch.cat([example[:_PROBES], *made])[:_PROBES].detach()


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise UserError(
                f"layer '{name}' ({type(layer).__name__}) has no running statistics, so that images of a batch mix and "
                "no gradient belongs to one image; use track_running_stats=True"
            )


def _refuse_mixing(forward: object, x: Tensor, together: Tensor) -> None:
    assert callable(forward)
    with torch.no_grad():
        again = forward(x)
        alone = torch.cat([forward(x[i : i + 1]) for i in range(len(x))])
    tolerance = 10 * torch.finfo(together.dtype).eps ** 0.5 * together.abs().max().clamp(min=1e-6)
    if (again - together).abs().max() > tolerance:
        raise UserError("the model answers the same images differently each time in eval mode; remove its randomness")
    if (alone - together).abs().max() > tolerance:
        raise UserError("the model's answer for an image depends on the other images of its batch; it must not")
