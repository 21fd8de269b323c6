"""Training a control within a time: a small grid of learning rates on validation data, then the best of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls.setting import Setting
from postgrad.data.datasets import Images
from postgrad.training import Recipe, train

TUNING_SHARE = 0.3
"""Of a control's time, the part that its learning-rate trials get together; all of it counts as the control's time."""

VALIDATION_IMAGES = 1000

Batch = tuple[Tensor, Tensor]


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
    under `key`, so that a later run with the same `steps` does the same.
    """
    trial_seconds = seconds * TUNING_SHARE / len(rates)
    trials: list[dict[str, Any]] = []
    spent = 0.0
    for number, rate in enumerate(rates):
        _, history = _run(
            task, rate, trial_seconds, seed, directory / f"trial-{number}", steps, f"{key}/trial-{number}"
        )
        trials.append({"lr": rate, **_last_metrics(history.rows)})
        spent += history.cpu_seconds
    best = max(trials, key=lambda trial: (trial["accuracy"], -trial["nll"]))["lr"]
    model, history = _run(task, best, seconds * (1 - TUNING_SHARE), seed, directory / "final", steps, f"{key}/final")
    return Fitted(
        model=model,
        cpu_seconds=spent + history.cpu_seconds,
        description=f"learning rate {best:g} of {', '.join(f'{rate:g}' for rate in rates)}, {history.steps} steps",
        trials=trials,
    )


def _run(
    task: Task, rate: float, seconds: float, seed: int, directory: Path, steps: dict[str, int], key: str
) -> tuple[nn.Module, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.make_model()
    length = {"steps": steps[key]} if key in steps else {"budget": f"{max(seconds, 0.1):.3f}s"}
    recipe = Recipe(
        **length,
        batch_size=min(task.batch_size, task.n),
        optimizer="sgd",
        optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
        lr=rate,
        schedule="cosine",
    )
    history = train(
        model,
        n=task.n,
        make_batch=task.make_batch,
        loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
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
