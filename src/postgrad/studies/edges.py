"""Fine-tuning only the important edges, against all edges, random and large ones: accuracy against steps and time.

>>> python -m postgrad.studies.edges --recipe recipes/edges-digits.yaml --out runs/edges-digits
>>> python -m postgrad.studies.edges --page docs/ledger/edges.md --runs runs/edges-digits

The first line runs a study, or goes on with it: each finished training is kept as a file, and the same line given
again takes it from there. The second makes the page of the ledger from finished studies.

Each seed trains a base network on the first half of the training data, stopped early, and every arm fine-tunes that
base on the second half for the same number of steps. Masks are made on the second half's training images. Learning
rates come from one grid, by accuracy on the second half's validation part; test images are only scored.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls.setting import Setting
from postgrad.controls.tuning import Diverged, accuracy_and_nll, batched, network_validator
from postgrad.data.datasets import Dataset, load_dataset
from postgrad.data.splits import halves
from postgrad.errors import UserError
from postgrad.evaluation.statistics import t_interval, verdicts
from postgrad.files import locked, write_atomic
from postgrad.methods.edges import Masks, edge_importance, top_edges
from postgrad.methods.edges import training_only as training_only_masked
from postgrad.models.checkpoints import load, save
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.reports.edge_chart import draw_curves
from postgrad.reports.edge_drawing import write_picture
from postgrad.studies.base_arm import base_recipe
from postgrad.studies.edges_page import write_page
from postgrad.studies.environment import environment
from postgrad.studies.run import write_arrays
from postgrad.training import Recipe, Stopwatch, train
from postgrad.validation import read_yaml, validated

Kind = Literal["all", "gradient", "magnitude", "random"]
KINDS: tuple[Kind, ...] = ("gradient", "magnitude", "random")


class EdgeStudy(BaseModel):
    """Every setting of the study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    model: str = "mlp"
    limit: PositiveInt | None = None
    seeds: PositiveInt = 5
    base_accuracy: float = Field(default=0.85, gt=0, le=1)
    """Validation accuracy on the first half at which the base stops."""
    base_epochs: float = Field(default=30, gt=0)
    shares: tuple[float, ...] = (0.05, 0.1, 0.2)
    rates: tuple[float, ...] = (0.0005, 0.002, 0.008, 0.032, 0.128, 0.512)
    """The grid of learning rates, the same for each arm."""
    tuning_seeds: PositiveInt = 1
    """The first seeds, whose validation accuracy chooses an arm's learning rate."""
    epochs: float = Field(default=5, gt=0)
    """Passes over the second half."""
    batch_size: PositiveInt = 128
    ranking_images: PositiveInt = 2000
    """Images over which gradients rank the edges; their time counts as the arm's."""
    evaluations: PositiveInt = 10
    """Points of the learning curve."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares: expected shares between 0 and 1, got {self.shares}")
        if not self.rates or not all(rate > 0 for rate in self.rates):
            raise ValueError(f"rates: expected learning rates above 0, got {self.rates}")
        if self.tuning_seeds > self.seeds:
            raise ValueError(f"tuning_seeds: {self.tuning_seeds} of {self.seeds} seeds cannot be")
        return self


@dataclass(frozen=True)
class Arm:
    """Which edges are fine-tuned: all weights and biases, or a share of the weights chosen in one way."""

    kind: Kind
    share: float = 1.0

    @property
    def name(self) -> str:
        return "all" if self.kind == "all" else f"{self.kind}-{100 * self.share:g}"


def arms(config: EdgeStudy) -> list[Arm]:
    """All arms of a study."""
    return [Arm("all"), *(Arm(kind, share) for share in config.shares for kind in KINDS)]


def run_study(config: EdgeStudy, directory: Path, *, data_dir: Path | None = None) -> dict[str, Any]:
    """Run what is missing of a study in `directory`, and write its results.json, chart and predictions.

    >>> results = run_study(EdgeStudy(data="digits", seeds=2), Path("runs/edges-digits"))
    >>> {arm["name"]: arm["accuracy"]["mean"] for arm in results["arms"]}

    Raises `UserError` where the directory holds a study with other settings.
    """
    dataset = load_dataset(config.data, data_dir=data_dir, limit=config.limit)
    if dataset.train is None or dataset.test is None:
        raise UserError(f"{config.data}: the study needs training and test images; name another data set")
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        _check_settings(config, directory)
        seeds = [Seed(config, dataset, directory / f"seed-{seed}", seed) for seed in range(config.seeds)]
        chosen = {arm: _tuned(arm, seeds, config) for arm in arms(config)}
        results = _collect(config, dataset, seeds, chosen)
        write_atomic(directory / "results.json", json.dumps(results, indent=1))
        predictions = {
            f"{arm.name}-seed{s.seed}": s.predictions(arm, rate) for arm, rate in chosen.items() for s in seeds
        }
        bases = {f"base-seed{s.seed}": s.base_predictions() for s in seeds}
        labels = dataset.test.labels.to(torch.uint8)
        write_arrays(directory / "predicted.npz", labels=labels, **bases, **predictions)
    write_picture(draw_curves(results), directory, "curves")
    return results


class Seed:
    """One seed of a study: its base network and the trainings on it, each kept as a file when it is over."""

    def __init__(self, config: EdgeStudy, dataset: Dataset, directory: Path, seed: int) -> None:
        self.config = config
        self.dataset = dataset
        self.directory = directory
        self.seed = seed

    @cached_property
    def base(self) -> nn.Module:
        """The base network, trained up to `base_accuracy` on the first half, or read from its file."""
        if not (self.directory / "base.json").exists():
            self._train_base()
        return load(self.directory / "base")

    @cached_property
    def base_record(self) -> dict[str, Any]:
        """What training the base was: its accuracies, steps and CPU time."""
        assert self.base is not None
        return _read(self.directory / "base.json")

    @cached_property
    def setting(self) -> Setting:
        return self._setting(self.base)

    @cached_property
    def ranked(self) -> tuple[dict[str, Tensor], float]:
        """The mean gradient in each weight over images of the second half, and the CPU time that it took."""
        images = self.setting.tuning_images
        few = images.subset(torch.arange(min(self.config.ranking_images, len(images))))
        with Stopwatch() as watch:
            importance = edge_importance(self.base, few.images, few.labels, preprocess=self.setting.preprocess)
        return importance, watch.cpu_seconds

    def masks(self, arm: Arm) -> tuple[Masks | None, float]:
        """The masks of an arm and the CPU time that they took."""
        if arm.kind == "all":
            return None, 0.0
        importance, seconds = self.ranked
        if arm.kind == "gradient":
            return top_edges(importance, top=arm.share), seconds
        generator = torch.Generator().manual_seed(self.seed)
        scores = {
            name: self.base.get_parameter(name).detach().abs()
            if arm.kind == "magnitude"
            else torch.rand(importance[name].shape, generator=generator)
            for name in importance
        }
        return top_edges(scores, top=arm.share), 0.0

    def fine_tuned(self, arm: Arm, rate: float) -> dict[str, Any]:
        """One training: run it and keep its record and predictions, or read them."""
        file = self._file(arm, rate)
        if file.exists():
            return _read(file)
        model = deepcopy(self.base)
        masks, ranking_seconds = self.masks(arm)
        trained = (
            sum(int(mask.sum()) for mask in masks.values()) if masks else sum(p.numel() for p in model.parameters())
        )
        record: dict[str, Any] = {
            "arm": arm.name,
            "seed": self.seed,
            "rate": rate,
            "trained": trained,
            "ranking_cpu_seconds": ranking_seconds,
        }
        try:
            record |= self._train(model, masks, rate, file.stem)
        except Diverged as diverged:
            record |= {"diverged": True, "cpu_seconds": diverged.cpu_seconds}
        else:
            record |= self._score(model, file.with_suffix(".npz"))
        write_atomic(file, json.dumps(record, indent=1))
        print(f"seed {self.seed}, {arm.name}, rate {rate:g}: {_in_words(record)}", file=sys.stderr, flush=True)
        return record

    def predictions(self, arm: Arm, rate: float) -> np.ndarray:
        """The predicted class of each test image after fine-tuning."""
        return _predicted(self._file(arm, rate).with_suffix(".npz"))

    def base_predictions(self) -> np.ndarray:
        """Those of the base."""
        return _predicted(self.directory / "base.npz")

    def _file(self, arm: Arm, rate: float) -> Path:
        return self.directory / arm.name / f"rate-{rate:g}.json"

    def _setting(self, base: nn.Module) -> Setting:
        preprocess, augmentation, _ = resolve_preprocessing({}, base, self.dataset)
        return Setting(
            dataset=self.dataset,
            halves=halves(self.dataset),
            base=base,
            preprocess=preprocess,
            augmentation=augmentation,
            seed=self.seed,
            directory=self.directory,
            steps={},
        )

    def _train_base(self) -> None:
        config, dataset = self.config, self.dataset
        channels, height, width = dataset.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = create_model(
                config.model, num_classes=dataset.num_classes, in_channels=channels, image_size=(height, width)
            )
        setting = self._setting(model)
        images = setting.train.subset(setting.halves.base_train)
        history = train(
            model,
            n=len(images),
            make_batch=lambda indices, generator: setting.training_batch(images, indices, generator),
            loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
            recipe=base_recipe(config.model, config.base_epochs, config.base_accuracy, small=width < 24),
            seed=self.seed,
            validate=network_validator(setting, setting.train.subset(setting.halves.base_validation)),
            label=f"base, seed {self.seed}",
        )
        save(model, self.directory / "base", preprocess=setting.preprocess, class_names=dataset.class_names)
        record = {
            "seed": self.seed,
            "steps": history.steps,
            "cpu_seconds": history.cpu_seconds,
            "reached": history.reached_target,
            "validation": network_validator(setting, setting.validation)(model),
            **self._score(model, self.directory / "base.npz"),
        }
        write_atomic(self.directory / "base.json", json.dumps(record, indent=1))

    def _train(self, model: nn.Module, masks: Masks | None, rate: float, label: str) -> dict[str, Any]:
        config, setting = self.config, self.setting
        images = setting.tuning_images
        steps = max(1, round(config.epochs * math.ceil(len(images) / config.batch_size)))
        recipe = Recipe(
            steps=steps,
            batch_size=config.batch_size,
            lr=rate,
            optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
            schedule="cosine",
            validate_every=math.ceil(steps / config.evaluations),
        )
        watch = Stopwatch()

        def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            value = F.cross_entropy(network(batch[0]), batch[1])
            if not value.isfinite():
                raise Diverged(watch.cpu_seconds)
            return value

        with watch, training_only(model, masks):
            history = train(
                model,
                n=len(images),
                make_batch=lambda indices, generator: setting.training_batch(images, indices, generator),
                loss=loss,
                recipe=recipe,
                seed=self.seed,
                validate=network_validator(setting, setting.validation),
                label=f"seed {self.seed}, {label}",
            )
        curve = [{name: row[name] for name in ("step", "seconds", "accuracy", "nll", "loss")} for row in history.rows]
        last = history.rows[-1]
        validation = {"accuracy": last["accuracy"], "nll": last["nll"]}
        return {"steps": steps, "cpu_seconds": history.cpu_seconds, "validation": validation, "curve": curve}

    def _score(self, model: nn.Module, file: Path) -> dict[str, Any]:
        test = self.dataset.test
        assert test is not None
        logits = batched(model.eval(), self._setting(model).preprocess, test.images)
        write_arrays(file, predicted=logits.argmax(1).to(torch.uint8))
        return {"test": accuracy_and_nll(logits, test.labels)}


@contextlib.contextmanager
def training_only(model: nn.Module, masks: Masks | None) -> Iterator[None]:
    """Masked training, or ordinary training without masks."""
    if masks is None:
        yield
    else:
        with training_only_masked(model, masks):
            yield


def _tuned(arm: Arm, seeds: Sequence[Seed], config: EdgeStudy) -> float:
    """Train the grid on the first seeds and the best rate on all; returns that rate.

    A rate at which the loss became infinite with any seed is left out, and the next best takes its place.
    """
    trials = {rate: [seed.fine_tuned(arm, rate) for seed in seeds[: config.tuning_seeds]] for rate in config.rates}
    for rate in sorted(trials, key=lambda rate: _quality(trials[rate]), reverse=True):
        if not any("diverged" in seed.fine_tuned(arm, rate) for seed in seeds):
            return rate
    raise UserError(f"{arm.name}: the loss became infinite at every learning rate; give lower ones")


def _quality(records: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Mean validation accuracy, then NLL; a rate that diverged comes last."""
    if any("diverged" in record for record in records):
        return -1.0, 0.0
    validation = [record["validation"] for record in records]
    return float(np.mean([v["accuracy"] for v in validation])), -float(np.mean([v["nll"] for v in validation]))


def _collect(config: EdgeStudy, dataset: Dataset, seeds: Sequence[Seed], chosen: dict[Arm, float]) -> dict[str, Any]:
    assert dataset.train is not None
    assert dataset.test is not None
    labels = dataset.test.labels.numpy()
    correct = {arm.name: [s.predictions(arm, rate) == labels for s in seeds] for arm, rate in chosen.items()}
    correct["base"] = [s.base_predictions() == labels for s in seeds]
    comparisons = {
        f"gradient-{100 * share:g}": ["base", "all", f"magnitude-{100 * share:g}", f"random-{100 * share:g}"]
        for share in config.shares
    }
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "n_train": len(seeds[0].setting.tuning_images),
        "n_validation": len(seeds[0].setting.validation),
        "n_test": len(dataset.test),
    }
    return {
        "schema": 1,
        "study": "edges",
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "data": data,
        "base": {**_summary([s.base_record for s in seeds]), "seeds": [s.base_record for s in seeds]},
        "arms": [_arm(arm, rate, seeds, config) for arm, rate in chosen.items()],
        "verdicts": verdicts(correct, comparisons),
    }


def _arm(arm: Arm, rate: float, seeds: Sequence[Seed], config: EdgeStudy) -> dict[str, Any]:
    records = [seed.fine_tuned(arm, rate) for seed in seeds]
    trials = {tried: [seed.fine_tuned(arm, tried) for seed in seeds[: config.tuning_seeds]] for tried in config.rates}
    tuning = sum(record["cpu_seconds"] for tried in trials.values() for record in tried)
    return {
        "name": arm.name,
        "kind": arm.kind,
        "share": arm.share,
        "trained": records[0]["trained"],
        "rate": rate,
        "trials": {f"{tried:g}": _quality(found)[0] for tried, found in trials.items()},
        "tuning_cpu_seconds": tuning,
        **_summary(records),
        "cpu_seconds": float(np.mean([record["cpu_seconds"] for record in records])),
        "ranking_cpu_seconds": float(np.mean([record["ranking_cpu_seconds"] for record in records])),
        "seeds": records,
    }


def _summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Test accuracy and NLL over seeds, each with its mean, values and 95 % interval."""
    return {
        metric: {"mean": float(np.mean(values)), "ci95": t_interval(values), "values": values}
        for metric in ("accuracy", "nll")
        for values in [[record["test"][metric] for record in records]]
    }


def _check_settings(config: EdgeStudy, directory: Path) -> None:
    """Write the settings of a new study; refuse to go on with one that had others."""
    file = directory / "config.yaml"
    if not file.exists():
        write_atomic(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        return
    began = validated(EdgeStudy, read_yaml(file), source=str(file))
    changed = [name for name in EdgeStudy.model_fields if getattr(began, name) != getattr(config, name)]
    if changed:
        raise UserError(f"{directory} holds a study with other settings ({', '.join(changed)}); choose another --out")


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _predicted(file: Path) -> np.ndarray:
    with np.load(file) as arrays:
        return np.asarray(arrays["predicted"])


def _in_words(record: dict[str, Any]) -> str:
    if "diverged" in record:
        return "the loss became infinite"
    accuracy = record["validation"]["accuracy"]
    return f"validation {accuracy:.4f} after {record['steps']} steps, {record['cpu_seconds']:.1f} s"


def _config(options: argparse.Namespace) -> EdgeStudy:
    """The recipe's settings, and in their place those given on the command line."""
    settings = read_yaml(options.recipe) if options.recipe else {}
    names = ("data", "model", "limit", "seeds", "base_accuracy", "epochs", "tuning_seeds", "ranking_images")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return validated(EdgeStudy, settings | given, source=str(options.recipe or "options"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m postgrad.studies.edges",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, help="settings as YAML; options given here take their place")
    for name in ("data", "model"):
        parser.add_argument(f"--{name}")
    for name in ("limit", "seeds", "tuning-seeds", "ranking-images"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("base-accuracy", "epochs"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--data-dir", type=Path, help="where the data sets lie; default $POSTGRAD_DATA")
    parser.add_argument("--out", type=Path, help="the study's folder; one that is there is gone on with")
    parser.add_argument("--page", type=Path, help="make this page of the ledger from its raw results")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="finished studies, copied beside it first")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study, or make the page; 0 done, 2 the user's mistake, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        if options.page is not None:
            write_page(options.page, options.runs)
            return 0
        if options.out is None:
            raise UserError("--out is missing; name the study's folder, or --page to make the page of the ledger")
        run_study(_config(options), options.out.expanduser(), data_dir=options.data_dir)
    except UserError as error:
        print(f"postgrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("postgrad: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
