"""Training a control within a time: a small grid of learning rates on validation data, then the best of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls.setting import Setting
from postgrad.data.datasets import Images
from postgrad.errors import UserError
from postgrad.training import History, Recipe, Stopwatch, train

SHORTEST_SECONDS = 0.1
"""A trial of less would be a step or two."""

TUNING_SHARE = 0.3
"""Of a control's time, the part that its learning-rate trials get together; all of it counts as the control's time."""

VALIDATION_IMAGES = 1000

DIVERGED = 0
"""Kept in place of a trial's number of steps where its loss became infinite, so that a rerun leaves that rate out."""

Batch = tuple[Tensor, Tensor]


class Diverged(Exception):  # noqa: N818 (nothing is wrong: the grid was too wide, and the next rate is taken)
    """A learning rate was too high; it took `cpu_seconds` to find out."""

    def __init__(self, cpu_seconds: float) -> None:
        super().__init__()
        self.cpu_seconds = cpu_seconds


@dataclass(frozen=True)
class Task:
    """Something to train: a network, its images, and how a batch and a validation figure are made of them."""

    make_model: Callable[[], nn.Module]
    n: int
    make_batch: Callable[[Tensor, torch.Generator], Batch]
    validate: Callable[[nn.Module], Mapping[str, float]]
    batch_size: int = 128


@dataclass(frozen=True)
class Fitted:
    """A fitted control: the classifier or network, its own process time in seconds, and how it came to be."""

    model: Any
    cpu_seconds: float
    description: str
    trials: list[dict[str, Any]] = field(default_factory=list)


def tuned(
    task: Task, *, rates: Sequence[float], seconds: float, seed: int, directory: Path, steps: dict[str, int], key: str
) -> Fitted:
    """Train for `seconds` of process time in all: one short trial for each learning rate, then the best one's full run.

    Momentum .9, weight decay 5e-4, a cosine schedule to zero. What the times came to in steps is written into `steps`
    under `key`, so that a later run with the same `steps` does the same. A rate at which the loss becomes infinite, in
    its trial or afterwards, is left out; if that happens to all of them, it is a `UserError`.
    """
    spent = 0.0
    trials: list[dict[str, Any]] = []
    for number, rate in enumerate(rates):
        trial = f"trial-{number}"
        try:
            _, history = _run(
                task, rate, seconds * TUNING_SHARE / len(rates), seed, directory / trial, steps, f"{key}/{trial}"
            )
        except Diverged as diverged:
            spent += diverged.cpu_seconds
            steps[f"{key}/{trial}"] = DIVERGED
            trials.append({"lr": rate, "diverged": True})
        else:
            spent += history.cpu_seconds
            trials.append({"lr": rate, **_last_metrics(history.rows)})
    for attempt, number in enumerate(_best_first(trials), start=1):
        rate = rates[number]
        place = directory / ("final" if attempt == 1 else f"final-{attempt}")
        try:
            model, history = _run(task, rate, seconds * (1 - TUNING_SHARE), seed, place, steps, f"{key}/final")
        except Diverged as diverged:
            spent += diverged.cpu_seconds
            steps[f"{key}/trial-{number}"] = DIVERGED
            trials[number]["diverged"] = True
            shutil.rmtree(place)
            continue
        return Fitted(
            model=model,
            cpu_seconds=spent + history.cpu_seconds,
            description=f"learning rate {rate:g} of {', '.join(f'{rate:g}' for rate in rates)}, {history.steps} steps",
            trials=trials,
        )
    raise UserError(
        f"{key}: the loss became infinite at every learning rate ({', '.join(f'{rate:g}' for rate in rates)}); "
        "check the network's weights and the preprocessing"
    )


def _best_first(trials: Sequence[Mapping[str, Any]]) -> list[int]:
    """The numbers of the trials that came to an end, by accuracy, then by NLL."""
    ended = [number for number, trial in enumerate(trials) if "diverged" not in trial]
    return sorted(ended, key=lambda number: (-trials[number]["accuracy"], trials[number]["nll"]))


def _run(
    task: Task, rate: float, seconds: float, seed: int, directory: Path, steps: dict[str, int], key: str
) -> tuple[nn.Module, History]:
    if steps.get(key) == DIVERGED:
        raise Diverged(0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.make_model()
    watch = Stopwatch(next(model.parameters()).device)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        value = F.cross_entropy(network(batch[0]), batch[1])
        if not value.isfinite():
            raise Diverged(watch.cpu_seconds)
        return value

    length = {"steps": steps[key]} if key in steps else {"budget": f"{max(seconds, SHORTEST_SECONDS):.3f}s"}
    recipe = Recipe(
        **length,
        batch_size=min(task.batch_size, task.n),
        optimizer="sgd",
        optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
        lr=rate,
        schedule="cosine",
    )
    with watch:
        history = train(
            model,
            n=task.n,
            make_batch=task.make_batch,
            loss=loss,
            recipe=recipe,
            seed=seed,
            validate=task.validate,
            directory=directory,
            resume=True,
            label=key,
        )
    steps[key] = history.steps
    return model, history


def _last_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    last = [row for row in rows if row.get("accuracy") is not None][-1]
    return {name: float(last[name]) for name in ("accuracy", "nll")}


def network_validator(setting: Setting, images: Images) -> Callable[[nn.Module], dict[str, float]]:
    """Accuracy and NLL of a network on at most 1,000 of some images, spread evenly over them."""
    spread = torch.linspace(0, len(images) - 1, min(VALIDATION_IMAGES, len(images))).long()
    chosen = images.subset(spread)

    def validate(network: nn.Module) -> dict[str, float]:
        return accuracy_and_nll(batched(network, setting.preprocess, chosen.images), chosen.labels)

    return validate


def batched(network: nn.Module, preprocess: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits (N, C) of a network in evaluation mode, which is put back into the mode it was in."""
    was_training = network.training
    device = next(network.parameters()).device
    network.eval()
    with torch.no_grad():
        logits = [network(preprocess(part.to(device))).cpu() for part in images.split(250)]
    network.train(was_training)
    return torch.cat(logits)


def accuracy_and_nll(logits: Tensor, labels: Tensor) -> dict[str, float]:
    right = (logits.argmax(dim=1) == labels).double().mean()
    return {"accuracy": float(right), "nll": float(F.cross_entropy(logits, labels))}
