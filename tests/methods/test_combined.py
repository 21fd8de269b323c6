"""Training-time methods in every pair: they train together, and what comes of it is saved and loaded as it is."""

from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import postgrad
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError
from postgrad.methods.at_work import MethodsAtWork, TrainingSet
from postgrad.methods.registry import METHODS, TRAINING_SHAPES
from postgrad.models.registry import create_model
from postgrad.training import Recipe, train

OPTIONS: dict[str, dict[str, Any]] = {
    "norm": {"kind": "group"},
    "weight_sampling": {"fraction": 0.5},
    "ema": {"decay": 0.5},
    "swa": {"start_epoch": 0},
    "lawa": {"k": 2},
    "jem": {"variant": "jem++", "steps": 1, "buffer_size": 12, "data_noise": 0.0},
}

NAMES = [name for name, method in METHODS.items() if method.shape in TRAINING_SHAPES]

NORMS = ("frn", "mimicnorm", "fixup", "norm")
"""Each takes batch normalisation out, so that the second of two finds none."""

MEANS = ("swa", "ema", "lawa")

GENERATOR = torch.Generator().manual_seed(3)
X, Y = torch.randn(24, 3, 8, 8, generator=GENERATOR), torch.randint(0, 5, (24,), generator=GENERATOR)
TEACHER = torch.randn(24, 5, generator=GENERATOR)
IMAGES = torch.randint(0, 256, (24, 3, 8, 8), generator=GENERATOR).to(torch.uint8)
TRAINING_SET = TrainingSet(IMAGES, Y, Preprocessing(mean=(0.5,), std=(0.5,)), Augmentation())


def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model("resnet20", num_classes=5)


def trained(model: nn.Module, names: tuple[str, ...], directory: Path | None = None, steps: int = 8) -> nn.Module:
    methods = [(name, OPTIONS.get(name, {})) for name in names]
    torch.manual_seed(1)
    at_work = MethodsAtWork(model, methods, steps_per_epoch=4, batches=[X], training_set=TRAINING_SET)
    parts = (X, Y, TEACHER) if at_work.learns_from_teacher else (X, Y)
    train(
        model,
        n=len(X),
        make_batch=lambda indices, generator: tuple(part[indices] for part in parts),
        loss=at_work.loss,
        recipe=Recipe(steps=steps, batch_size=6, lr=0.01),
        seed=0,
        directory=directory,
        resume=directory is not None,
        companions=[at_work],
    )
    return model


@functools.cache
def alone(name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What a training with this method alone ends with: its weights, and its answers."""
    model = trained(network(), (name,))
    return copy.deepcopy(model.state_dict()), model(X)


PAIRS = [
    *itertools.combinations(NAMES, 2),
    *((name, "fixed_classifier") for name in NAMES if METHODS[name].shape == "surgery" and name != "fixed_classifier"),
]


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_every_pair_trains_and_is_built_again(names: tuple[str, str], tmp_path: Path) -> None:
    if all(METHODS[name].shape == "loss" for name in names):
        with pytest.raises(UserError, match="one training has one loss"):
            trained(network(), names)
        return
    if all(name in MEANS for name in names):
        with pytest.raises(UserError, match="one mean of the weights"):
            trained(network(), names)
        return
    if all(name in NORMS for name in names):
        with pytest.raises((UserError, UserWarning), match=r"normalis|BatchNorm|convolution|network was not changed"):
            trained(network(), names)
        return
    model = trained(network(), names)
    logits = model(X)
    assert logits.isfinite().all()
    for name in names:
        (other,) = (each for each in names if each != name)
        assert not torch.equal(alone(other)[1], logits), f"{name} changed nothing"
    postgrad.save(model, tmp_path / "net", preprocess=Preprocessing(), class_names=list("abcde"))
    assert torch.equal(postgrad.load(tmp_path / "net")(X), logits)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_was_interrupted_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = network(), 0

    def crash(self: MethodsAtWork) -> None:
        nonlocal steps
        steps += 1
        after_step(self)
        if steps == 3:
            raise ZeroDivisionError

    after_step = MethodsAtWork.after_step
    with monkeypatch.context() as patch:
        patch.setattr("postgrad.training.loop.SAVE_EVERY_SECONDS", 0.0)
        patch.setattr(MethodsAtWork, "after_step", crash)
        with pytest.raises(ZeroDivisionError):
            trained(model, (name,), tmp_path / "training")
    resumed = trained(network(), (name,), tmp_path / "training")
    for key, value in alone(name)[0].items():
        assert torch.equal(value, resumed.state_dict()[key]), key
