"""The ablations of GradNet: many settings of it on one stopped base, each kept as a JSON file when it is finished.

>>> python -m postgrad.studies.ablations recipes/ablations/gradnet.yaml --data-dir DIR --out runs/ablations
>>> python -m postgrad.studies.ablations recipes/ablations/gradnet.yaml --out runs/ablations --draw docs

A call with the same `--out` goes on where an earlier one was interrupted. Settings that several groups share run once.
`--only` takes names of groups, `--quick` does everything on the embedded digits in small, and `--draw` makes the page
and its figures from what is finished.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls.tuning import accuracy_and_nll, batched
from postgrad.data.datasets import Dataset, Images, load_dataset
from postgrad.data.preprocessing import Augmentation, Preprocessing, augment
from postgrad.data.splits import halves
from postgrad.errors import UserError, unknown_name
from postgrad.files import locked, write_atomic
from postgrad.methods.gradient_features import GradientFeatures
from postgrad.methods.gradnet import GradNet
from postgrad.methods.registry import check_options
from postgrad.methods.separators import GradientProjection, score_separator
from postgrad.models import checkpoints
from postgrad.models.preprocessing import resolve_preprocessing
from postgrad.models.registry import create_model
from postgrad.studies.ablation_page import draw
from postgrad.studies.ablation_recipe import SEPARATOR_GROUP, Ablations, rates, separator_file, setting_file
from postgrad.studies.base_arm import base_recipe
from postgrad.studies.environment import environment
from postgrad.studies.run import write_arrays
from postgrad.training import Stopwatch, train
from postgrad.validation import read_yaml, validated

BASE_EPOCHS = 100


@dataclass(frozen=True)
class Study:
    """What all settings share while they run."""

    recipe: Ablations
    directory: Path
    dataset: Dataset
    preprocess: Preprocessing
    augmentation: Augmentation
    base: nn.Module
    fitted_on: Images
    validation: Images
    test: Images


class WatchedGradNet(GradNet):
    """GradNet whose learning curve has accuracy and NLL on several sets of images, and what that took."""

    sets: Mapping[str, Images]

    def _validator(self, x: Any, y: Any) -> Callable[[nn.Module], dict[str, float]]:
        def validate(_: nn.Module) -> dict[str, float]:
            watch = Stopwatch(self.device_)
            figures: dict[str, float] = {}
            with watch:
                for name, images in self.sets.items():
                    logits = torch.from_numpy(self.decision_function(images.images))
                    found = accuracy_and_nll(logits, images.labels)
                    figures |= {f"{name}_{figure}": value for figure, value in found.items()}
            return figures | {"evaluation_seconds": watch.cpu_seconds}

        return validate


def run(recipe: Ablations, *, data_dir: Path | None, out: Path, only: Sequence[str] = ()) -> None:
    """Do what is not finished yet, group by group in the recipe's order; `only` names the groups that are wanted.

    Raises `UserError` for an unknown group, data that cannot be found, and an `out` that holds a study with other
    settings. New groups, and new settings in them, may be added to a study.
    """
    known = [*recipe.groups, SEPARATOR_GROUP]
    for name in only:
        if name not in known:
            raise unknown_name("group", name, known)
    torch.set_num_threads(recipe.threads)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _claim(recipe, out)
        study = _prepared(recipe, data_dir, out)
        for name, group in recipe.groups.items():
            if not only or name in only:
                for label, options in group.settings.items():
                    _say(f"{name}: {label}")
                    run_setting(study, options)
        if not only or SEPARATOR_GROUP in only:
            run_separators(study)


def run_setting(study: Study, options: Mapping[str, Any]) -> dict[str, Any]:
    """The results of one setting of GradNet: its learning rate tuned where several are given, then the whole training.

    The best of several rates is the one with the highest validation accuracy after `tuning_passes`, then lowest NLL.
    """
    settled = {**study.recipe.gradnet, **options}
    file = setting_file(study.directory / "settings", settled, study.recipe.gradnet)
    if file.exists():
        return _read(file)
    trials = []
    if len(rates(settled)) > 1:
        trials = [_trial(study, settled | rate) for rate in rates(settled)]
        ended = [trial for trial in trials if "diverged" not in trial]
        if not ended:
            _write(file, {"options": settled, "trials": trials, "diverged": "at every learning rate"})
            return _read(file)
        best = min(ended, key=lambda trial: (-trial["validation_accuracy"], trial["validation_nll"]))
        settled |= {"lr": best["lr"]}
    checkpoints_in = file.with_suffix(".fit")
    result = _fit(study, settled, checkpoints_in, {"validation": study.validation, "test": study.test})
    _write(file, {"options": settled, "trials": trials, **result})
    shutil.rmtree(checkpoints_in)
    return _read(file)


def _trial(study: Study, settled: Mapping[str, Any]) -> dict[str, Any]:
    """One learning rate for a short time, on validation images alone."""
    file = setting_file(study.directory / "trials", settled, study.recipe.gradnet)
    if file.exists():
        return _read(file)
    short = {**settled, "epochs": study.recipe.tuning_passes}
    result = _fit(study, short, file.with_suffix(".fit"), {"validation": study.validation})
    shown = ("validation_accuracy", "validation_nll", "cpu_seconds")
    found = result if "diverged" in result else {key: result["curve"][-1][key] for key in shown}
    _write(file, {"lr": settled["lr"], **found})
    shutil.rmtree(file.with_suffix(".fit"))
    return _read(file)


def _fit(study: Study, settled: Mapping[str, Any], directory: Path, sets: Mapping[str, Images]) -> dict[str, Any]:
    """One training, gone on with where it was interrupted: its learning curve, and its price without evaluations."""
    gradnet = WatchedGradNet(
        study.base,
        **check_options("gradnet", dict(settled)),
        augment=study.augmentation,
        preprocess=study.preprocess,
        random_state=study.recipe.seed,
        memory=study.recipe.memory,
        directory=directory,
    )
    gradnet.sets = sets
    try:
        gradnet.fit(
            study.fitted_on.images,
            study.fitted_on.labels,
            validation=(study.validation.images, study.validation.labels),
        )
    except UserError as error:
        if "the loss became" not in str(error):
            raise
        return {"diverged": str(error)}
    return {
        "steps": gradnet.history_.steps,
        "parameters": sum(p.numel() for p in gradnet.head_.parameters()),
        "statistics_cpu_seconds": gradnet.statistics_seconds_,
        "curve": list(_curve(gradnet.history_.rows)),
    }


def _curve(rows: Sequence[Mapping[str, float]]) -> Iterator[dict[str, float]]:
    """The rows of a training with its own CPU seconds, those of evaluations taken off."""
    spent = accumulate(row["evaluation_seconds"] for row in rows)
    for row, evaluations in zip(rows, spent, strict=True):
        kept = {key: value for key, value in row.items() if key not in ("seconds", "evaluation_seconds", "lr")}
        yield kept | {"cpu_seconds": row["seconds"] - evaluations}


def run_separators(study: Study) -> None:
    """Every separator on the same projected gradients of the images that GradNet is fitted on, without augmentation."""
    for name in study.recipe.separators.names:
        file = separator_file(study.directory / "settings", name)
        if file.exists():
            continue
        _say(f"{SEPARATOR_GROUP}: {name}")
        z, cost = _projected(study)
        labels = {part: images.labels.numpy() for part, images in _parts(study).items()}
        held_out = {part: (z[part], labels[part]) for part in ("validation", "test")}
        found = score_separator(name, z["train"], labels["train"], held_out, seed=study.recipe.seed)
        _write(file, {"separator": name, "size": study.recipe.separators.size, "projection_cpu_seconds": cost, **found})


def _projected(study: Study) -> tuple[dict[str, np.ndarray], float]:
    """Projected gradients of all parts, and the CPU seconds that they took; made once."""
    file = study.directory / "projected.npz"
    if not file.exists():
        features = GradientFeatures(
            study.base,
            labels="all",
            select=study.recipe.gradnet.get("select", 0.15),
            normalise=study.recipe.gradnet.get("normalise", "scale+power"),
            preprocess=study.preprocess,
            random_state=study.recipe.seed,
        )
        watch = Stopwatch()
        with watch:
            projection = GradientProjection(features, size=study.recipe.separators.size, random_state=study.recipe.seed)
            projection.fit(study.fitted_on.images)
            made = {part: projection.transform(images.images) for part, images in _parts(study).items()}
        write_arrays(file, cpu_seconds=np.array(watch.cpu_seconds), **made)
    with np.load(file) as arrays:
        return {part: arrays[part] for part in ("train", "validation", "test")}, float(arrays["cpu_seconds"])


def _parts(study: Study) -> dict[str, Images]:
    return {"train": study.fitted_on, "validation": study.validation, "test": study.test}


def _prepared(recipe: Ablations, data_dir: Path | None, out: Path) -> Study:
    dataset = load_dataset(recipe.data, data_dir=data_dir)
    if dataset.train is None or dataset.test is None:
        raise UserError(f"{recipe.data}: ablations need training and test images; name another data set")
    parts = halves(dataset)
    model = _fresh(recipe, dataset)
    preprocess, augmentation, _ = resolve_preprocessing({}, model, dataset)
    validation = dataset.train.subset(parts.method_validation)
    study = Study(
        recipe=recipe,
        directory=out,
        dataset=dataset,
        preprocess=preprocess,
        augmentation=augmentation,
        base=model,
        fitted_on=dataset.train.subset(parts.method_train[: recipe.images]),
        validation=_spread(validation, recipe.validation_images),
        test=_spread(dataset.test, recipe.test_images),
    )
    base_images = dataset.train.subset(parts.base_train)
    base_validation = _spread(dataset.train.subset(parts.base_validation), 1000)
    if not (out / "settings" / "base.json").exists():
        _train_base(study, base_images, base_validation)
    model.load_state_dict(checkpoints.load(out / "base").state_dict())
    return study


def _fresh(recipe: Ablations, dataset: Dataset) -> nn.Module:
    channels, height, width = dataset.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return create_model(
            recipe.model, num_classes=dataset.num_classes, in_channels=channels, image_size=(height, width)
        )


def _train_base(study: Study, images: Images, validation: Images) -> None:
    """Train the base up to its validation accuracy, and keep it with its accuracy on the sets of all settings."""
    recipe, preprocess = study.recipe, study.preprocess
    _say(f"base: {recipe.model} up to a validation accuracy of {recipe.base_accuracy:g}")

    def make_batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = augment(images.images[indices], preprocess, study.augmentation, generator)
        return inputs, images.labels[indices]

    history = train(
        study.base,
        n=len(images),
        make_batch=make_batch,
        loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
        recipe=base_recipe(recipe.model, BASE_EPOCHS, recipe.base_accuracy, small=study.dataset.shape[-1] < 24),
        seed=recipe.seed,
        validate=lambda network: accuracy_and_nll(batched(network, preprocess, validation.images), validation.labels),
        directory=study.directory / "base-training",
        resume=True,
        label="base",
    )
    checkpoints.save(study.base, study.directory / "base", preprocess=preprocess, class_names=study.dataset.class_names)
    assert study.dataset.test is not None
    sets = {"validation": study.validation, "test": study.test, "whole_test": study.dataset.test}
    figures = {
        f"{name}_accuracy": accuracy_and_nll(batched(study.base, preprocess, part.images), part.labels)["accuracy"]
        for name, part in sets.items()
    }
    reached = {"steps": history.steps, "reached_target": history.reached_target, "cpu_seconds": history.cpu_seconds}
    data = {"images": len(study.fitted_on), **{name: len(part) for name, part in sets.items()}}
    _write(study.directory / "settings" / "base.json", {**reached, **figures, "numbers": data})
    shutil.rmtree(study.directory / "base-training")


def _spread(images: Images, count: int) -> Images:
    """At most `count` images, evenly spread over those given."""
    return images.subset(torch.linspace(0, len(images) - 1, min(count, len(images))).long())


def _claim(recipe: Ablations, out: Path) -> None:
    """Refuse to mix two studies in one directory; write down what this one is and what it runs on."""
    file = out / "recipe.yaml"
    written = recipe.model_dump(mode="json")
    shared = [key for key in written if key not in ("groups", "separators")]
    if file.exists():
        before = read_yaml(file)
        changed = [key for key in shared if before.get(key) != written[key]]
        if changed:
            raise UserError(f"{out} holds ablations with another {', '.join(changed)}; choose another --out")
    write_atomic(file, yaml.safe_dump(written, sort_keys=False, allow_unicode=True))
    write_atomic(out / "environment.json", json.dumps(environment(), indent=1))


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, content: Mapping[str, Any]) -> None:
    write_atomic(file, json.dumps(content, indent=1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study, or draw what is finished of it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="the YAML file with the settings")
    parser.add_argument("--data-dir", type=Path, help="where published data sets lie")
    parser.add_argument("--out", type=Path, help="where the study is kept (default: runs/ablations)")
    parser.add_argument("--only", nargs="+", default=(), metavar="GROUP", help="run these groups only")
    parser.add_argument("--quick", action="store_true", help="everything in small, on the embedded digits")
    parser.add_argument(
        "--draw",
        type=Path,
        metavar="DOCS",
        help="make the page and figures in this folder from its raw results, after copying those of --out there",
    )
    given = parser.parse_args(arguments)
    out = given.out or Path("runs/ablations")
    try:
        recipe = validated(Ablations, read_yaml(given.recipe), source=str(given.recipe))
        recipe = recipe.quick() if given.quick else recipe
        if given.draw is not None:
            draw(recipe, given.draw, given.out)
        else:
            run(recipe, data_dir=given.data_dir, out=out, only=given.only)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{out} keeps everything so far; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
