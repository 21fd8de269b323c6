"""Filter response normalisation (FRN) with a thresholded linear unit (TLU): normalisation without a batch.

Idea. Each map of each image is divided by the root of its own mean square, scaled and shifted, and cut off at a learned
threshold. Nothing depends on the other images of a batch, nor differs between training and evaluation.

Use. ``apply_frn(model, optimizer=optimizer)`` puts it in place of batch normalisation, in place.

Cost. One number more for each channel (τ). The two layers together keep one tensor for the backward pass, their input.

When it fails. It wants a learning rate that is warmed up from 0 and falls smoothly. On a plain (post-activation)
ResNet-50 the authors saw no gain. Layers whose maps have one place, or that are linear, learn slowly with it. A network
that was trained with batch normalisation must be trained on afterwards.

Paper. S. Singh, S. Krishnan, "Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of Deep
Neural Networks", CVPR 2020, arXiv:1911.09737. Licence or patent note: none known.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from postgrad.changes import note_change
from postgrad.errors import UserError
from postgrad.methods import _frn_kernels as kernels
from postgrad.methods._apart import taken_apart
from postgrad.methods._relu_removal import relus_after
from postgrad.methods._surgery import optimizer_follows, replace_modules

_LEARNED_EPS = 1e-4
"""Where a learned ε starts (section 3.3 of the paper)."""

_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FilterResponseNorm(nn.Module):
    """Normalise each map of each image by its own mean square: y = γ·x/√(ν² + ε) + β, ν² = mean of x² over the map.

    >>> norm = FilterResponseNorm(64)
    >>> norm(torch.randn(8, 64, 32, 32)).shape
    torch.Size([8, 64, 32, 32])

    One class for any number of axes: (N, C), (N, C, L), (N, C, H, W) and (N, C, D, H, W), N ≥ 0, of any floating dtype;
    what comes out has the shape, dtype and layout of x. `weight` is γ (C,), at first 1, `bias` is β (C,), at first 0.
    With `learnable_eps`, ε = eps + |eps_l| with a learned number `eps_l` (1,), at first 1e-4: for maps of one place and
    for (N, C), where ν² = x² and y would be little but the sign of x. float16 and bfloat16 are computed in float32.
    Raises `UserError` for another number of channels. Gradients of gradients work.
    Source: CVPR 2020, arXiv:1911.09737, section 3.1, equations 1 to 3.
    """

    tau: nn.Parameter | None
    eps_l: nn.Parameter | None

    def __init__(self, channels: int, *, eps: float = 1e-6, learnable_eps: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_parameter("eps_l", nn.Parameter(torch.tensor([_LEARNED_EPS])) if learnable_eps else None)
        self.register_parameter("tau", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, …)."""
        return _normalise(x, self.weight, self.bias, self.tau, self.eps, self.eps_l)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"{self.channels}, eps={self.eps}, learnable_eps={self.eps_l is not None}"


class FilterResponseNormTLU(FilterResponseNorm):
    """`FilterResponseNorm` and `ThresholdedLinearUnit` in one layer, z = max(y, τ): faster, and keeps less.

    >>> layer = FilterResponseNormTLU(64)
    >>> layer(torch.randn(8, 64, 32, 32)).shape
    torch.Size([8, 64, 32, 32])

    Parameters, shapes and errors are those of `FilterResponseNorm`; `tau` is τ (C,), at first 0.
    """

    def __init__(self, channels: int, *, eps: float = 1e-6, learnable_eps: bool = False) -> None:
        super().__init__(channels, eps=eps, learnable_eps=learnable_eps)
        self.tau = nn.Parameter(torch.zeros(channels))


class ThresholdedLinearUnit(nn.Module):
    """Cut off at a learned threshold for each channel: z = max(y, τ).

    >>> ThresholdedLinearUnit(64)(torch.randn(8, 64, 32, 32)).shape
    torch.Size([8, 64, 32, 32])

    Takes (N, C, …) of two axes or more. `tau` is τ (C,), at first 0, where it is ReLU. Where y = τ the gradient is y's,
    as in the authors' TensorFlow. Raises `UserError` for another number of channels.
    Source: CVPR 2020, arXiv:1911.09737, section 3.2, equation 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        """Cut y (N, C, …) off."""
        return _cut_off(y, self.tau)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"{len(self.tau)}"


def apply_frn(
    model: nn.Module, *, optimizer: Optimizer | None = None, learnable_eps: bool | Literal["auto"] = "auto"
) -> int:
    """Put filter response normalisation in place of every batch normalisation; returns how many there were.

    >>> apply_frn(model, optimizer=optimizer)
    20

    In place. γ and β are carried over, the running statistics have no counterpart: what the network computes changes,
    so it is to be trained on. Where a ReLU follows, and nothing else reads what is normalised, both become one
    `FilterResponseNormTLU`, any other batch normalisation becomes a `FilterResponseNorm`. ReLUs elsewhere, as after
    the sum of a residual block, and other activations stay. A ReLU that is called from `forward`, or that is one module
    for several places, is taken out of that `forward` alone: the module gets a subclass of its own class. timm's
    BatchNormAct2d is a batch normalisation and the activation that follows it.
    `learnable_eps="auto"` learns ε in the place of BatchNorm1d; True learns it everywhere, as maps of one place need.
    `optimizer` then trains γ, β and τ in the groups of the weight and the bias that they replace.

    Raises `UserError`, and leaves the network as it was, where torch.fx cannot follow its forward, or for a batch
    normalisation of a class that does more than torch's. Warns where there is none, and names each ReLU that had to
    stay behind a `FilterResponseNorm`.
    """
    if learnable_eps not in (True, False, "auto"):
        raise UserError(f"learnable_eps: expected True, False or 'auto', got {learnable_eps!r}")
    with taken_apart(model):
        norms = _batch_norms(model)
        if not norms:
            warnings.warn(
                "apply_frn changed nothing: the network has no batch normalisation", UserWarning, stacklevel=2
            )
            return 0
        if model in norms:
            raise UserError("the network is itself the layer to be replaced; put it into an nn.Sequential first")
        removal = relus_after(model, norms)
        if removal.kept:
            warnings.warn(
                f"{', '.join(removal.kept)}: the ReLU behind it cannot be taken out of the code that calls it, so it "
                "stays behind a FilterResponseNorm; give each place an nn.ReLU of its own",
                UserWarning,
                stacklevel=2,
            )
        swaps: dict[nn.Module, nn.Module] = {
            norm: _in_place_of(norm, norm in removal.layers, learnable_eps) for norm in norms
        }
        with optimizer_follows(model, optimizer) as heir_of:
            replace_modules(model, swaps | {relu: nn.Identity() for relu in removal.modules})
            for norm in norms:
                heir_of |= _heirs(norm, swaps[norm])
        removal.rewrite()
        note_change(model, "frn", learnable_eps=learnable_eps)
        return len(norms)


def _batch_norms(model: nn.Module) -> dict[nn.Module, str]:
    """Every batch normalisation and its name; refuses those that are more, or less, than torch's own."""
    norms: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise UserError(f"{name} does not know its channels yet; run one batch through the network first")
        if type(module) not in _REPLACED:
            raise UserError(
                f"{name} is a {type(module).__name__}, which does more than torch's batch normalisation does"
            )
        norms[module] = name
    return norms


def _in_place_of(norm: Any, threshold: bool, learnable_eps: bool | Literal["auto"]) -> FilterResponseNorm:
    learns = isinstance(norm, nn.BatchNorm1d) if learnable_eps == "auto" else learnable_eps
    new = (FilterResponseNormTLU if threshold else FilterResponseNorm)(norm.num_features, learnable_eps=learns)
    with torch.no_grad():
        for parameter, old in _heirs(norm, new).items():
            parameter.requires_grad_(old.requires_grad)
            if parameter is new.weight or parameter is new.bias:
                parameter.copy_(old)
    return new


def _heirs(norm: Any, new: Any) -> dict[nn.Parameter, nn.Parameter]:
    """Which old parameter each new one comes after, where there is one: τ and ε_l come after the shift."""
    pairs = ((new.weight, norm.weight), (new.bias, norm.bias), (new.tau, norm.bias), (new.eps_l, norm.bias))
    return {each: old for each, old in pairs if each is not None and old is not None}


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, eps: float, eps_l: Tensor | None) -> Tensor:
    """FRN, and TLU where there is a τ; one node in a graph of torch.fx."""
    if not 2 <= x.ndim <= 5 or x.shape[1] != len(weight) or 0 in x.shape[2:] or not x.is_floating_point():
        raise UserError(
            f"FilterResponseNorm of {len(weight)} channels: expected floating-point (N, {len(weight)}, …) with 2 to 5 "
            f"axes and no empty maps, got {x.dtype} {tuple(x.shape)}"
        )
    if x.ndim == 2:
        return _normalise(x.unsqueeze(2), weight, bias, tau, eps, eps_l).squeeze(2)
    if _only_torch() or x.numel() == 0:
        return _formula(x, weight, bias, tau, eps_l, eps)[0]
    x = x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()
    if torch.compiler.is_compiling():
        in_kernels = _kernels_take(x, weight, bias, tau)
        return (kernels.forward_op if in_kernels else _formula)(x, weight, bias, tau, eps_l, eps)[0]
    out: Tensor = _Fused.apply(x, weight, bias, tau, eps_l, eps)
    return out


def _cut_off(y: Tensor, tau: Tensor) -> Tensor:
    """TLU; one node in a graph of torch.fx."""
    if y.ndim < 2 or y.shape[1] != len(tau):
        raise UserError(
            f"ThresholdedLinearUnit of {len(tau)} channels: expected (N, {len(tau)}, …), got {tuple(y.shape)}"
        )
    threshold = _along_channels(tau, y)
    return torch.where(y < threshold, threshold, y)  # gives ties to y, which torch.maximum divides; NaN stays


torch.fx.wrap("_normalise")
torch.fx.wrap("_cut_off")


def _only_torch() -> bool:
    """Whether every operation is to be one of torch's: in exporting, tracing and the transforms of torch.func."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def _formula(
    x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, eps_l: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The output, and 1/√(ν² + ε) (N, C, 1, …), as the paper writes them; in float32 or more."""
    exact = x if x.dtype in kernels.DTYPES else x.float()
    epsilon = eps if eps_l is None else eps + eps_l.abs()
    scale = torch.rsqrt(exact.square().mean(_places(x), keepdim=True) + epsilon)
    y = exact * (_along_channels(weight, exact) * scale) + _along_channels(bias, exact)
    return (y if tau is None else _cut_off(y, tau)).to(x.dtype), scale


def _places(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _along_channels(parameter: Tensor, x: Tensor) -> Tensor:
    """(C,) -> (C, 1, …), to be broadcast over x, in its dtype."""
    return parameter.to(x.dtype).view(-1, *(1,) * (x.ndim - 2))


class _Fused(torch.autograd.Function):
    """FRN and TLU with a backward pass of their own, which keeps x and one number for each plane.

    With r = 1/√(ν² + ε), S places in a map, g the gradient of the output, m = g where y ≥ τ and 0 elsewhere, Σ over a
    plane and Σₙ over the images:
    ∂x = γr·(m − x·r²·Σ(m·x)/S), ∂γ = Σₙ r·Σ(m·x), ∂β = Σₙ Σm, ∂τ = Σₙ Σ(g − m), ∂ε = −½ ΣₙΣ_c γr³·Σ(m·x).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, eps_l: Tensor | None, eps: float
    ) -> Tensor:
        run = kernels.forward if _kernels_take(x, weight, bias, tau) else _formula
        out, scale = run(x, weight, bias, tau, eps_l, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, bias, tau, eps_l, scale.flatten(1))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, scale = ctx.saved_tensors
        x, weight, bias, tau, eps_l = inputs
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # this gradient is to be derived in its turn
            wanted = [each for each, needs in zip(inputs, needed, strict=False) if needs]
            found = iter(
                torch.autograd.grad(_formula(x, weight, bias, tau, eps_l, ctx.eps)[0], wanted, grad, create_graph=True)
            )
            return tuple(next(found) if needs else None for needs in needed)
        # Gradients in a batch of their own (is_grads_batched, torch.func.vmap) are no numbers in memory.
        in_memory = torch._C._dispatch_keys(grad).has(torch._C.DispatchKey.CPU) and not _only_torch()
        in_kernels = in_memory and _kernels_take(x, weight, bias, tau, grad)
        of_x, sums = (kernels.backward if in_kernels else _backward)(grad, x, weight, bias, tau, scale)
        return of_x if needed[0] else None, *_of_parameters(sums, weight, eps_l, scale, needed)


def _of_parameters(
    sums: Tensor, weight: Tensor, eps_l: Tensor | None, scale: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of weight, bias, τ, ε_l and ε from what is summed over each plane; of ε there is none."""
    of_bias, of_weight, of_tau = sums.sum(1).to(weight.dtype)
    of_eps_l = None
    if eps_l is not None and needed[4]:
        of_eps_l = (sums[1] * scale.square() * weight).sum().mul(-0.5).to(eps_l.dtype) * eps_l.sign()
    return (
        of_weight if needed[1] else None,
        of_bias if needed[2] else None,
        of_tau if needed[3] else None,
        of_eps_l,
        None,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])


def _compiled_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, tau, eps_l, scale = ctx.saved_tensors
    of_x, sums = kernels.backward_op(grad, x, weight, bias, tau, scale)
    return of_x, *_of_parameters(sums, weight, eps_l, scale, ctx.needs_input_grad)


kernels.forward_op.register_autograd(_compiled_backward, setup_context=_keep)


def _kernels_take(x: Tensor, *others: Tensor | None) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)  # no subclass, which may hold no numbers
        and x.device.type == "cpu"
        and x.dtype in kernels.DTYPES
        and all(each is None or each.dtype == x.dtype for each in others)
    )


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """What `kernels.backward` returns, by torch's own operations, for any device and dtype."""
    exact, grad = x.to(scale.dtype), grad.to(scale.dtype)
    scales = scale.view(*scale.shape, *(1,) * (x.ndim - 2))
    gain = _along_channels(weight, exact) * scales
    m = grad
    if tau is not None:
        below = exact * gain + _along_channels(bias, exact) < _along_channels(tau, exact)
        m = torch.where(below, torch.zeros_like(grad), grad)
    passed, moment, stopped = (each.sum(_places(x)) for each in (m, m * exact, grad - m))
    moment = moment * scale
    pull = gain * scales * moment.view(scales.shape) / x.shape[2:].numel()
    return (gain * m - exact * pull).to(x.dtype), torch.stack((passed, moment, stopped))
