"""Take a trained image classifier further than its training did, and prove each gain against a fair control."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postgrad._loading import load as load
    from postgrad.errors import UserError as UserError
    from postgrad.evaluation.score import score as score
    from postgrad.gradients import per_sample_gradients as per_sample_gradients
    from postgrad.growth.approximate import group_layer as group_layer
    from postgrad.growth.approximate import insert_pool as insert_pool
    from postgrad.growth.axes import analyse as analyse
    from postgrad.growth.certificate import Certificate as Certificate
    from postgrad.growth.depth import deepen as deepen
    from postgrad.growth.journal import replay as replay
    from postgrad.growth.kernels import grow_kernel as grow_kernel
    from postgrad.growth.topology import add_skip as add_skip
    from postgrad.growth.topology import branch as branch
    from postgrad.growth.topology import insert_dropout as insert_dropout
    from postgrad.growth.topology import insert_group as insert_group
    from postgrad.growth.transfer import transfer as transfer
    from postgrad.growth.transfer import transfer_average as transfer_average
    from postgrad.growth.width import widen as widen
    from postgrad.methods.distillation import DistillationLoss as DistillationLoss
    from postgrad.methods.distillation import attention_transfer_loss as attention_transfer_loss
    from postgrad.methods.distillation import distillation_loss as distillation_loss
    from postgrad.methods.edges import edge_importance as edge_importance
    from postgrad.methods.edges import important_edges as important_edges
    from postgrad.methods.edges import training_only as training_only
    from postgrad.methods.energy_samples import PurifyingClassifier as PurifyingClassifier
    from postgrad.methods.fixed_classifier import FixedClassifier as FixedClassifier
    from postgrad.methods.fixed_classifier import apply_fixed_classifier as apply_fixed_classifier
    from postgrad.methods.fixup import apply_fixup as apply_fixup
    from postgrad.methods.frn import FilterResponseNorm as FilterResponseNorm
    from postgrad.methods.frn import FilterResponseNormTLU as FilterResponseNormTLU
    from postgrad.methods.frn import ThresholdedLinearUnit as ThresholdedLinearUnit
    from postgrad.methods.frn import apply_frn as apply_frn
    from postgrad.methods.gradient_features import GradientFeatures as GradientFeatures
    from postgrad.methods.gradnet import GradNet as GradNet
    from postgrad.methods.jem import JEM as JEM
    from postgrad.methods.jem import energy as energy
    from postgrad.methods.jem import jem_loss as jem_loss
    from postgrad.methods.mapper import MapperClassifier as MapperClassifier
    from postgrad.methods.mapper import MapperTransformer as MapperTransformer
    from postgrad.methods.mimicnorm import apply_mimicnorm as apply_mimicnorm
    from postgrad.methods.mimicnorm import bake_mimicnorm as bake_mimicnorm
    from postgrad.methods.norm import apply_norm as apply_norm
    from postgrad.methods.powergrad import PowerGradCrossEntropy as PowerGradCrossEntropy
    from postgrad.methods.powergrad import TemperatureCrossEntropy as TemperatureCrossEntropy
    from postgrad.methods.powergrad import powergrad_cross_entropy as powergrad_cross_entropy
    from postgrad.methods.powergrad import temperature_cross_entropy as temperature_cross_entropy
    from postgrad.methods.weight_averages import ExponentialMovingAverage as ExponentialMovingAverage
    from postgrad.methods.weight_averages import LatestWeightAveraging as LatestWeightAveraging
    from postgrad.methods.weight_averages import StochasticWeightAveraging as StochasticWeightAveraging
    from postgrad.methods.weight_sampling import PeriodicWeightSampling as PeriodicWeightSampling
    from postgrad.models.checkpoints import save as save
    from postgrad.models.registry import create_model as create_model
    from postgrad.search.config import SearchConfig as SearchConfig

_PUBLIC = {
    "Certificate": "postgrad.growth.certificate",
    "DistillationLoss": "postgrad.methods.distillation",
    "ExponentialMovingAverage": "postgrad.methods.weight_averages",
    "FilterResponseNorm": "postgrad.methods.frn",
    "FilterResponseNormTLU": "postgrad.methods.frn",
    "FixedClassifier": "postgrad.methods.fixed_classifier",
    "GradNet": "postgrad.methods.gradnet",
    "GradientFeatures": "postgrad.methods.gradient_features",
    "JEM": "postgrad.methods.jem",
    "LatestWeightAveraging": "postgrad.methods.weight_averages",
    "MapperClassifier": "postgrad.methods.mapper",
    "MapperTransformer": "postgrad.methods.mapper",
    "PeriodicWeightSampling": "postgrad.methods.weight_sampling",
    "PowerGradCrossEntropy": "postgrad.methods.powergrad",
    "PurifyingClassifier": "postgrad.methods.energy_samples",
    "SearchConfig": "postgrad.search.config",
    "StochasticWeightAveraging": "postgrad.methods.weight_averages",
    "TemperatureCrossEntropy": "postgrad.methods.powergrad",
    "ThresholdedLinearUnit": "postgrad.methods.frn",
    "UserError": "postgrad.errors",
    "add_skip": "postgrad.growth.topology",
    "analyse": "postgrad.growth.axes",
    "apply_fixed_classifier": "postgrad.methods.fixed_classifier",
    "apply_fixup": "postgrad.methods.fixup",
    "apply_frn": "postgrad.methods.frn",
    "apply_mimicnorm": "postgrad.methods.mimicnorm",
    "apply_norm": "postgrad.methods.norm",
    "attention_transfer_loss": "postgrad.methods.distillation",
    "bake_mimicnorm": "postgrad.methods.mimicnorm",
    "branch": "postgrad.growth.topology",
    "create_model": "postgrad.models.registry",
    "deepen": "postgrad.growth.depth",
    "distillation_loss": "postgrad.methods.distillation",
    "edge_importance": "postgrad.methods.edges",
    "energy": "postgrad.methods.jem",
    "group_layer": "postgrad.growth.approximate",
    "grow_kernel": "postgrad.growth.kernels",
    "important_edges": "postgrad.methods.edges",
    "insert_dropout": "postgrad.growth.topology",
    "insert_group": "postgrad.growth.topology",
    "insert_pool": "postgrad.growth.approximate",
    "jem_loss": "postgrad.methods.jem",
    "load": "postgrad._loading",
    "per_sample_gradients": "postgrad.gradients",
    "powergrad_cross_entropy": "postgrad.methods.powergrad",
    "replay": "postgrad.growth.journal",
    "save": "postgrad.models.checkpoints",
    "score": "postgrad.evaluation.score",
    "temperature_cross_entropy": "postgrad.methods.powergrad",
    "training_only": "postgrad.methods.edges",
    "transfer": "postgrad.growth.transfer",
    "transfer_average": "postgrad.growth.transfer",
    "widen": "postgrad.growth.width",
}
"""Public name -> the module it lives in; imported on first use, so that `import postgrad` takes no time."""

__all__ = [
    "JEM",
    "Certificate",
    "DistillationLoss",
    "ExponentialMovingAverage",
    "FilterResponseNorm",
    "FilterResponseNormTLU",
    "FixedClassifier",
    "GradNet",
    "GradientFeatures",
    "LatestWeightAveraging",
    "MapperClassifier",
    "MapperTransformer",
    "PeriodicWeightSampling",
    "PowerGradCrossEntropy",
    "PurifyingClassifier",
    "SearchConfig",
    "StochasticWeightAveraging",
    "TemperatureCrossEntropy",
    "ThresholdedLinearUnit",
    "UserError",
    "add_skip",
    "analyse",
    "apply_fixed_classifier",
    "apply_fixup",
    "apply_frn",
    "apply_mimicnorm",
    "apply_norm",
    "attention_transfer_loss",
    "bake_mimicnorm",
    "branch",
    "create_model",
    "deepen",
    "distillation_loss",
    "edge_importance",
    "energy",
    "group_layer",
    "grow_kernel",
    "important_edges",
    "insert_dropout",
    "insert_group",
    "insert_pool",
    "jem_loss",
    "load",
    "per_sample_gradients",
    "powergrad_cross_entropy",
    "replay",
    "save",
    "score",
    "temperature_cross_entropy",
    "training_only",
    "transfer",
    "transfer_average",
    "widen",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'postgrad' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
