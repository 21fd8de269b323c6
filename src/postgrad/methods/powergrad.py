"""PowerGrad: cross-entropy whose backward pass sees flattened probabilities, and the control that has to be beaten.

Idea. The loss is cross-entropy and its value stays so. Only in the backward pass, the softmax p of the logits z is
replaced by p'_i = p_i^α / Σ_j p_j^α. The gradient no longer vanishes once an example is classified with confidence.

How it trains and predicts. It takes the place of `F.cross_entropy`; prediction stays as it is.

Cost. That of cross-entropy, and no parameter.

When it fails. Since p' = softmax(αz), its gradient is that of (1/α)·CE(softmax(αz)): cross-entropy at temperature 1/α.
`temperature_cross_entropy` is that control. Logits grow by about 1/α, so that probabilities at z are overconfident.

Paper. "PowerGrad Transform", arXiv 2111.12495. Licence or patent note: none known.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.methods import _powergrad_kernels as kernels


def powergrad_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy whose gradient is that of (1/α)·CE(softmax(αz), target); arXiv 2111.12495.

    >>> loss = powergrad_cross_entropy(logits, target, alpha=0.25)
    >>> loss.backward()

    Parameters
    ----------
    logits : (N, C), (N, C, d1, …) or (C,), of a floating dtype.
    target : class numbers (N,), (N, d1, …) or (), or probabilities of the logits' shape.
    alpha : 0 … 1; 1 is plain cross-entropy, 0 its limit, in which p' is uniform.
    weight (C,), ignore_index, reduction ("none", "mean", "sum"), label_smoothing : as for `F.cross_entropy`.

    The value is `F.cross_entropy`'s. float16 and bfloat16 logits are worked on, and the value given, in float32; their
    gradient has their own dtype. The backward pass is itself differentiable: a second derivative is one of the
    gradient defined here, not of the value. Probabilities as target get the gradient of the value.

    Raises `UserError` where alpha is outside 0 … 1, and whatever `F.cross_entropy` raises for the rest.
    """
    _check_alpha(alpha)
    settings = _Settings(max(alpha, _LEAST), ignore_index, reduction, label_smoothing)
    return _apply(logits, target, weight, settings)


class PowerGradCrossEntropy(nn.CrossEntropyLoss):
    """`powergrad_cross_entropy` as a module, in place of `nn.CrossEntropyLoss`; α may be a schedule.

    >>> criterion = PowerGradCrossEntropy(alpha=(1.0, 0.25), steps=1000)
    >>> criterion(logits, target).backward()
    >>> optimizer.step()
    >>> criterion.advance()

    Parameters
    ----------
    alpha : a number in 0 … 1, or (first, last): linear from one to the other over `steps` calls of `advance`, and the
        last from then on.
    steps : how many calls; for a schedule only.
    weight, ignore_index, reduction, label_smoothing : as for `nn.CrossEntropyLoss`.

    The calls are counted in a buffer, so that a schedule goes on where its `state_dict` was taken.
    Raises `UserError` where alpha is outside 0 … 1, or where steps and alpha do not belong together.
    """

    calls: Tensor

    def __init__(
        self,
        *,
        alpha: float | tuple[float, float] = 0.25,
        steps: int | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.first, self.last = (alpha, alpha) if isinstance(alpha, int | float) else alpha
        _check_alpha(self.first)
        _check_alpha(self.last)
        if steps is None and self.first != self.last:
            raise UserError(f"alpha: {alpha} is a schedule; say over how many steps, such as steps=1000")
        if steps is not None and isinstance(alpha, int | float):
            raise UserError(f"steps: alpha={alpha} is constant; leave steps out, or give alpha=(first, last)")
        if steps is not None and steps < 1:
            raise UserError(f"steps: expected 1 or more, got {steps}")
        self.steps = steps
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @property
    def alpha(self) -> float:
        """The α of the next loss."""
        return float(self._alpha(torch.float64))

    def advance(self) -> None:
        """Take one step of the schedule; a constant α stays."""
        if self.steps is not None:
            self.calls.add_(1).clamp_(max=self.steps)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, C), (N, C, d1, …) or (C,)."""
        alpha = self._alpha(_work_dtype(logits))
        least = max(alpha, _LEAST) if isinstance(alpha, int | float) else alpha.clamp(min=_LEAST)
        settings = _Settings(least, self.ignore_index, self.reduction, self.label_smoothing)
        return _apply(logits, target, self.weight, settings)

    def extra_repr(self) -> str:
        schedule = f"{self.first}" if self.steps is None else f"({self.first}, {self.last}), steps={self.steps}"
        return f"alpha={schedule}"

    def _alpha(self, dtype: torch.dtype) -> float | Tensor:
        if self.steps is None:
            return self.first
        # A tensor: reading its number would wait for the device in every step.
        left = (self.steps - self.calls.to(dtype)) / self.steps
        return self.last + (self.first - self.last) * left


def temperature_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 4.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """PowerGrad's control: T·CE(softmax(z/T), target), which has PowerGrad's gradient at α = 1/T.

    >>> loss = temperature_cross_entropy(logits, target, temperature=4.0)

    Its value, unlike PowerGrad's, is what its gradient is the gradient of. Everything else is `F.cross_entropy`'s,
    float32 for float16 and bfloat16 logits as in `powergrad_cross_entropy`.
    Raises `UserError` where the temperature is not a finite number above 0.
    """
    _check_temperature(temperature)
    dtype = _work_dtype(logits)
    loss = F.cross_entropy(
        logits.to(dtype) / temperature,
        _in_dtype(target, dtype),
        _in_dtype(weight, dtype),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return loss * temperature


class TemperatureCrossEntropy(nn.CrossEntropyLoss):
    """`temperature_cross_entropy` as a module.

    >>> criterion = TemperatureCrossEntropy(temperature=4.0)
    >>> criterion(logits, target).backward()
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, C), (N, C, d1, …) or (C,)."""
        return temperature_cross_entropy(
            logits,
            target,
            temperature=self.temperature,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def dead_filters(model: nn.Module, *, below: float = 1e-8) -> dict[str, int]:
    """How many filters of each convolution are dead: their weight norm is at most `below` × the largest of the layer.

    >>> dead_filters(model)
    {'conv1': 0, 'layer1.0.conv1': 3}
    """
    counts = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            # In float64 no small weight's square becomes zero.
            norms = layer.weight.detach().double().flatten(1).norm(dim=1)
            counts[name] = int((norms <= below * norms.max()).sum())
    return counts


_LEAST = torch.finfo(torch.float32).tiny
"""In place of an α of zero: it gives the same uniform p', but leaves a logit of -inf what it is."""

_FEW_CLASSES = 16
"""Below a vector register's width, a processor's softmax is several times faster across examples than along them."""


class _Settings(NamedTuple):
    alpha: float | Tensor
    ignore_index: int
    reduction: str
    smoothing: float


class _PowerGrad(torch.autograd.Function):
    """Cross-entropy of logits (N, C, …) with its own backward pass.

    The logits are all that is saved of size N × C, and they are there anyway: less than cross-entropy, which keeps its
    log-probabilities.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, settings: _Settings) -> Tensor:
        ctx.save_for_backward(logits, target, weight)
        ctx.settings = settings
        _, ignore_index, reduction, smoothing = settings
        return F.cross_entropy(
            logits.to(_work_dtype(logits)),
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=smoothing,
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight = ctx.saved_tensors
        if target.is_floating_point():
            needs_target = ctx.needs_input_grad[1]
            grad, of_target = _for_probabilities(logits, target, weight, ctx.settings, grad_output, needs_target)
            return grad.to(logits.dtype), of_target, None, None
        return _for_classes(logits, target, weight, ctx.settings, grad_output).to(logits.dtype), None, None, None


def _for_classes(
    logits: Tensor, target: Tensor, weight: Tensor | None, settings: _Settings, grad_output: Tensor
) -> Tensor:
    """The gradient of the logits for class numbers (N, …): factor · (mass · p' − wanted) at every position."""
    alpha, ignore_index, reduction, smoothing = settings
    if not torch.compiler.is_compiling() and weight is None and kernels.applies(logits, target, grad_output):
        return kernels.class_gradient(logits, target, float(alpha), *settings[1:], grad_output)
    counted = target != ignore_index
    index = (target * counted).long()  # what is ignored passes for class 0, with a factor of zero
    share = counted if weight is None else weight[index] * counted
    if reduction == "mean":
        grad_output = grad_output / share.sum()
    # `where`, since an ignored position has no gradient even where all are ignored and the mean is 0/0.
    factor = torch.where(counted, grad_output, 0.0).unsqueeze(1)
    index = index.unsqueeze(1)
    at_target = factor if weight is None else factor * share.unsqueeze(1)
    if not smoothing:
        return _powered(logits, alpha, at_target).scatter_add_(1, index, -at_target)
    at_target = at_target * (1 - smoothing)
    at_all = factor * (smoothing / logits.shape[1])
    if weight is None:
        grad = _powered(logits, alpha, factor).sub_(at_all)
    else:
        grad = _powered(logits, alpha, at_target + at_all * weight.sum())
        grad.addcmul_(at_all, _along_classes(weight, logits), value=-1)
    return grad.scatter_add_(1, index, -at_target)


def _for_probabilities(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    settings: _Settings,
    grad_output: Tensor,
    needs_target: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the logits and of target probabilities (N, C, …); the latter is that of the value."""
    alpha, _, reduction, smoothing = settings
    if reduction == "mean":
        grad_output = grad_output / (logits.numel() // logits.shape[1])
    elif reduction == "none":
        grad_output = grad_output.unsqueeze(1)
    factor = grad_output if weight is None else grad_output * _along_classes(weight, logits)
    smoothed = target * (1 - smoothing) + smoothing / target.shape[1] if smoothing else target
    wanted = smoothed * factor
    grad = _powered(logits, alpha, wanted.sum(dim=1, keepdim=True)).sub_(wanted)
    if not needs_target:
        return grad, None
    return grad, torch.log_softmax(logits, dim=1, dtype=_work_dtype(logits)) * factor * (smoothing - 1)


def _powered(logits: Tensor, alpha: float | Tensor, factor: Tensor) -> Tensor:
    """factor (N, 1, …) × p' = factor × softmax(αz), as a new tensor (N, C, …)."""
    scaled = logits.to(_work_dtype(logits)) * alpha
    if torch.is_grad_enabled():  # for a second derivative, which needs p' as it was
        return torch.softmax(scaled, dim=1) * factor
    if scaled.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.softmax(scaled, dim=1).mul_(factor)
    if scaled.ndim == 2 and scaled.shape[1] < _FEW_CLASSES:
        scaled = scaled.t().contiguous()
        return torch.softmax(scaled, dim=0, out=scaled).mul_(factor.t()).t().contiguous()
    # In place: a processor pays more for fresh memory than for the arithmetic.
    return torch.softmax(scaled, dim=1, out=scaled).mul_(factor)


def _apply(logits: Tensor, target: Tensor, weight: Tensor | None, settings: _Settings) -> Tensor:
    dtype = _work_dtype(logits)
    weight, target = _in_dtype(weight, dtype), _in_dtype(target, dtype)
    if logits.ndim > 1:
        return _PowerGrad.apply(logits, target, weight, settings)
    loss = _PowerGrad.apply(logits.unsqueeze(0), target.unsqueeze(0), weight, settings)
    return loss.squeeze(0) if settings.reduction == "none" else loss


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha: expected a number from 0 to 1, got {alpha}")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature: expected a finite number above 0, got {temperature}")


def _work_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _in_dtype(values: Any, dtype: torch.dtype) -> Any:
    """Floating-point values in that dtype; class numbers, and None, as they are."""
    return values.to(dtype) if values is not None and values.is_floating_point() else values


def _along_classes(weight: Tensor, like: Tensor) -> Tensor:
    return weight.view(-1, *[1] * (like.ndim - 2))
