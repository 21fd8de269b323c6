"""control-more-data: the base's architecture trained on all the images, for the time of base and method together."""

from __future__ import annotations

from copy import deepcopy

import torch

from postgrad.controls.setting import Setting, without
from postgrad.controls.tuning import Fitted, Task, network_validator, tuned

RATES = (0.005, 0.02, 0.08)
RATES_ON_OWN_WEIGHTS = (0.0005, 0.002, 0.008)


def control_more_data(setting: Setting) -> Fitted:
    """Train on both halves (without their validation parts) from new weights.

    A user's own weights are trained on from where they are, for the method's time: how long they took is not known.
    """
    both = torch.cat([setting.halves.base_train, setting.halves.method_train])
    images = setting.train.subset(without(both, setting.halves.method_validation))
    seconds = setting.method_seconds + (setting.base_seconds if setting.fresh else 0.0)
    task = Task(
        make_model=setting.fresh or (lambda: deepcopy(setting.base)),
        n=len(images),
        make_batch=lambda indices, generator: setting.training_batch(images, indices, generator),
        validate=network_validator(setting, setting.validation),
    )
    return tuned(
        task,
        rates=RATES if setting.fresh else RATES_ON_OWN_WEIGHTS,
        seconds=seconds,
        seed=setting.seed,
        directory=setting.directory / "training",
        steps=setting.steps,
        key=setting.key("training"),
    )
