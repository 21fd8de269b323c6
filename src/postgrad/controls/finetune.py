"""control-finetune: the base network trained on, on the method's own images, for the time that the method took."""

from __future__ import annotations

from copy import deepcopy

from postgrad.controls.setting import Setting
from postgrad.controls.tuning import Fitted, Task, network_validator, tuned

RATES = (0.0005, 0.002, 0.008)
"""Fine-tuning a good base carelessly costs it a point or two; small rates gain, an early stopped base wants more."""


def control_finetune(setting: Setting) -> Fitted:
    """Fine-tune every weight of the base, with the learning rate chosen on validation data."""
    return finetune(setting, setting.method_seconds, "training", setting.seed)


def finetune(setting: Setting, seconds: float, name: str, seed: int) -> Fitted:
    """The base trained on for some seconds, tuning included; `name` is the folder of its checkpoints."""
    images = setting.tuning_images
    task = Task(
        make_model=lambda: deepcopy(setting.base),
        n=len(images),
        make_batch=lambda indices, generator: setting.training_batch(images, indices, generator),
        validate=network_validator(setting, setting.validation),
    )
    return tuned(
        task,
        rates=RATES,
        seconds=seconds,
        seed=seed,
        directory=setting.directory / name,
        steps=setting.steps,
        key=setting.key(name),
    )
