"""Per-sample gradients of any classifier, their selection and their normalisation."""

from postgrad.gradients.api import per_sample_gradients
from postgrad.gradients.engine import Block, GradientEngine
from postgrad.gradients.fallback import GradientFallbackWarning
from postgrad.gradients.names import weight_names
from postgrad.gradients.normalise import KINDS, Normaliser, select_and_normalise_
from postgrad.gradients.select import percentile_threshold, select_, select_global_

__all__ = [
    "KINDS",
    "Block",
    "GradientEngine",
    "GradientFallbackWarning",
    "Normaliser",
    "per_sample_gradients",
    "percentile_threshold",
    "select_",
    "select_and_normalise_",
    "select_global_",
    "weight_names",
]
