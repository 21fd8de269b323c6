"""The fair controls of a second-stage method, made automatically: equal data, time, tuning and price at inference.

control-finetune    the base trained on, on the method's images for the method's time
control-features    an MLP of the method's size on the base's penultimate activations, for the same time
control-more-data   the base's architecture on all images, for the time that base and method took together
control-same-price  the best of test-time augmentation and an ensemble with as many passes as the method
"""

from postgrad.controls.features import FeaturesMLP, control_features
from postgrad.controls.finetune import control_finetune
from postgrad.controls.more_data import control_more_data
from postgrad.controls.same_price import Ensemble, control_same_price
from postgrad.controls.setting import Setting
from postgrad.controls.tuning import Fitted

__all__ = [
    "Ensemble",
    "FeaturesMLP",
    "Fitted",
    "Setting",
    "control_features",
    "control_finetune",
    "control_more_data",
    "control_same_price",
]
