"""Recipes read from YAML or written in Python, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from postgrad.errors import UserError
from postgrad.training import Recipe, optimizer_copies
from postgrad.training.optimizers import OPTIMIZERS, SCHEDULES

MISTAKES = [
    ({}, "give exactly one of epochs, steps and budget, got none"),
    ({"epochs": 1, "budget": "1m"}, "give exactly one of epochs, steps and budget, got epochs and budget"),
    ({"epochs": 0}, "epochs: should be greater than 0, got 0"),
    ({"epochs": float("nan")}, "epochs: should be a finite number, got nan"),
    ({"steps": 2.5}, "steps: should be a valid integer"),
    ({"steps": 0}, "steps: should be greater than 0, got 0"),
    ({"epoch": 3}, "unknown setting 'epoch': did you mean 'epochs'?"),
    ({"budget": "ten"}, "budget: cannot read the time 'ten'; write one such as 90s, 10m or 1.5h"),
    ({"epochs": 1, "batch_size": 0}, "batch_size: should be greater than 0, got 0"),
    ({"epochs": 1, "lr": -0.1}, "lr: should be greater than 0, got -0.1"),
    ({"epochs": 1, "lr": "fast"}, "lr: should be a valid number"),
    ({"epochs": 1, "optimizer": "sdg"}, "optimizer: unknown optimizer 'sdg': did you mean 'SGD'? Known: ASGD, "),
    ({"epochs": 1, "optimizer": "lbfgs"}, "optimizer: unknown optimizer 'lbfgs'"),
    (
        {"epochs": 1, "optimizer_options": {"momentun": 0.9}},
        "unknown option of optimizer sgd 'momentun': did you mean 'momentum'?",
    ),
    ({"epochs": 1, "optimizer_options": {"lr": 0.9}}, "unknown option of optimizer sgd 'lr'"),
    ({"epochs": 1, "schedule": "cosin"}, "schedule: unknown schedule 'cosin': did you mean 'cosine'?"),
    ({"epochs": 1, "schedule": "LambdaLR"}, "schedule: unknown schedule 'LambdaLR'"),
    (
        {"epochs": 1, "schedule": "StepLR", "schedule_options": {"stepsize": 3}},
        "unknown option of schedule StepLR 'stepsize': did you mean 'step_size'?",
    ),
    ({"epochs": 1, "schedule_options": {"gamma": 3}}, "schedule_options: a constant schedule takes none"),
    ({"epochs": 1, "schedule_interval": "hour"}, "schedule_interval: should be 'step' or 'epoch', got 'hour'"),
    ({"epochs": 1, "stop_accuracy": 72}, "stop_accuracy: expected a fraction between 0 and 1 (72 % is 0.72), got 72"),
    ({"epochs": 1, "label_smoothing": 1}, "label_smoothing: should be less than 1, got 1"),
    ({"epochs": 1, "keep": "all"}, "keep: should be 'last' or 'best', got 'all'"),
    ({"epochs": 1, "precision": "bf16"}, "precision: should be '32-true'"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES)
def test_each_mistake_is_one_clear_line(settings, message):
    with pytest.raises(UserError) as error:
        Recipe(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


def test_all_mistakes_of_a_file_at_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 2\noptimizer: sdg\nlr: -1\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: optimizer: unknown .*; lr: should be greater than 0"):
        Recipe.from_yaml(path)


def test_from_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("budget: 10m\noptimizer: AdamW\noptimizer_options: {weight_decay: 0.1}\n")
    assert Recipe.from_yaml(path) == Recipe(budget="10m", optimizer="AdamW", optimizer_options={"weight_decay": 0.1})
    with pytest.raises(UserError, match="cannot read"):
        Recipe.from_yaml(tmp_path / "absent.yaml")


def test_numpy_numbers_become_pythons():
    recipe = Recipe(steps=np.int64(3), lr=np.float64(0.1), optimizer_options={"momentum": np.float32(0.5)})
    assert type(recipe.lr) is float
    assert type(recipe.steps) is int
    assert type(recipe.optimizer_options["momentum"]) is float


def test_lengths():
    assert Recipe(epochs=2, batch_size=32).fixed_steps(n=100) == 8
    assert Recipe(steps=7, batch_size=32).fixed_steps(n=100) == 7
    assert Recipe(epochs=1, batch_size=32).validation_interval(n=100) == 4
    assert Recipe(epochs=1, batch_size=32, stop_accuracy=0.5).validation_interval(n=100) == 50
    assert Recipe(epochs=1, stop_accuracy=0.5, validate_every=7).validation_interval(n=100) == 7


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_takes_a_step(name):
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = Recipe(epochs=1, optimizer=name.upper(), lr=0.1).make_optimizer([weight])
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert isinstance(optimizer, getattr(torch.optim, name))
    assert not torch.equal(weight, torch.ones(3, 3))


NEEDED = {
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 4]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False},
    "OneCycleLR": {"max_lr": 0.2},
}


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_lasts_the_whole_training(name):
    recipe = Recipe(steps=10, lr=0.1, schedule=name, schedule_options=NEEDED.get(name, {}))
    optimizer = recipe.make_optimizer([nn.Parameter(torch.ones(1))])
    schedule = recipe.make_schedule(optimizer, steps=10, n=100)
    assert type(schedule) is getattr(lr_scheduler, name)
    for _ in range(10):
        optimizer.step()
        schedule.step()


def test_cosine_ends_at_zero_by_step_and_by_epoch():
    for interval, changes in (("step", 12), ("epoch", 3)):
        recipe = Recipe(epochs=3, batch_size=25, lr=0.1, schedule="cosine", schedule_interval=interval)
        optimizer = recipe.make_optimizer([nn.Parameter(torch.ones(1))])
        schedule = recipe.make_schedule(optimizer, steps=12, n=100)
        for _ in range(changes):
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_values_that_torch_refuses_are_the_users_error():
    with pytest.raises(UserError, match=r"optimizer adam: .*beta.*its options are \{'betas': \[2, 3\]\}"):
        Recipe(steps=1, optimizer="adam", optimizer_options={"betas": [2, 3]}).make_optimizer(
            [nn.Parameter(torch.ones(1))]
        )
    recipe = Recipe(steps=1, schedule="StepLR")
    with pytest.raises(UserError, match=r"schedule StepLR: .*step_size"):
        recipe.make_schedule(recipe.make_optimizer([nn.Parameter(torch.ones(1))]), steps=1, n=1)


@pytest.mark.parametrize(
    ("name", "options", "copies"),
    [("sgd", {}, 0), ("sgd", {"momentum": 0.9}, 1), ("adam", {}, 2), ("AdamW", {"amsgrad": True}, 3), ("rprop", {}, 2)],
)
def test_copies_that_an_optimizer_keeps(name, options, copies):
    assert optimizer_copies(name, options) == copies


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("seed-cnn*.yaml")), ids=str)
def test_the_published_base_recipes(path):
    recipe = Recipe.from_yaml(path)
    assert (recipe.lr, recipe.batch_size) == (0.05, 64)
    optimizer = recipe.make_optimizer([nn.Parameter(torch.ones(1))])
    schedule = recipe.make_schedule(optimizer, steps=1000, n=25_000)
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4
    assert optimizer.param_groups[0]["momentum"] == 0
    assert recipe.schedule_interval == "epoch"
    for _ in range(25):
        assert optimizer.param_groups[0]["lr"] == 0.05
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_one_cycle_rises_to_the_recipe_s_own_rate() -> None:
    weight = nn.Parameter(torch.zeros(2))
    recipe = Recipe(steps=10, lr=0.3, schedule="onecycle", schedule_options={"cycle_momentum": False})
    optimizer = recipe.make_optimizer([weight])
    schedule = recipe.make_schedule(optimizer, steps=10, n=100)
    assert schedule is not None
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < 10 else None
    assert max(rates) == pytest.approx(0.3, rel=0.02)
    assert rates[0] < 0.05
    assert rates[-1] < 0.01
