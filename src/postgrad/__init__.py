"""Take a trained image classifier further than its training did, and prove each gain against a fair control."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postgrad._loading import load as load
    from postgrad.errors import UserError as UserError
    from postgrad.evaluation.score import score as score
    from postgrad.gradients import per_sample_gradients as per_sample_gradients
    from postgrad.methods.edges import edge_importance as edge_importance
    from postgrad.methods.edges import important_edges as important_edges
    from postgrad.methods.edges import training_only as training_only
    from postgrad.methods.gradient_features import GradientFeatures as GradientFeatures
    from postgrad.methods.gradnet import GradNet as GradNet
    from postgrad.models.checkpoints import save as save
    from postgrad.models.registry import create_model as create_model

_PUBLIC = {
    "GradNet": "postgrad.methods.gradnet",
    "GradientFeatures": "postgrad.methods.gradient_features",
    "UserError": "postgrad.errors",
    "create_model": "postgrad.models.registry",
    "edge_importance": "postgrad.methods.edges",
    "important_edges": "postgrad.methods.edges",
    "load": "postgrad._loading",
    "per_sample_gradients": "postgrad.gradients",
    "save": "postgrad.models.checkpoints",
    "score": "postgrad.evaluation.score",
    "training_only": "postgrad.methods.edges",
}
"""Public name -> the module it lives in; imported on first use, so that `import postgrad` takes no time."""

__all__ = [
    "GradNet",
    "GradientFeatures",
    "UserError",
    "create_model",
    "edge_importance",
    "important_edges",
    "load",
    "per_sample_gradients",
    "save",
    "score",
    "training_only",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'postgrad' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
