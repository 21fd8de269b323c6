"""Adaptive gradient clipping: each unit's gradient at most a fraction of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from postgrad._compat import prepare_torchvision
from postgrad.errors import UserError


def clip_adaptively(model: nn.Module, factor: float) -> None:
    """Clip all gradients but the last layer's to `factor` times the norm of the unit's weights.

    Brock et al. 2021, "High-performance large-scale image recognition without normalization", equation 3, by timm.
    """
    adaptive_clip_grad()(list(model.parameters())[:-2], factor)


def adaptive_clip_grad() -> Callable[..., Any]:
    """timm's function; a `UserError` where timm is not installed."""
    prepare_torchvision()
    try:
        from timm.utils.agc import adaptive_clip_grad
    except ImportError:
        raise UserError("adaptive_clip needs timm; install it with: pip install 'postgrad[timm]'") from None
    found: Callable[..., Any] = adaptive_clip_grad
    return found
