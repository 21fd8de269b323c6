"""The arms of one seed: the base network, each method on it, and the method's controls."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from postgrad._loading import load
from postgrad.controls import (
    Fitted,
    Setting,
    control_features,
    control_finetune,
    control_more_data,
    control_same_price,
)
from postgrad.controls.tuning import accuracy_and_nll, batched, network_validator
from postgrad.data.datasets import Images
from postgrad.data.preprocessing import augment
from postgrad.evaluation.cost import measure_cost
from postgrad.files import write_atomic
from postgrad.memory import peak_memory
from postgrad.methods.registry import check_options, get_method
from postgrad.models.network import NetworkClassifier
from postgrad.models.registry import create_model
from postgrad.models.source import source_of
from postgrad.studies.bases import SharedTraining, folder_of, shared_recipe
from postgrad.studies.config import MethodConfig
from postgrad.studies.run import ArmRecord, Run, write_arrays
from postgrad.training import History, Recipe, train
from postgrad.training.log import learning_curve
from postgrad.training.state import copy_of_weights

TIMED_IMAGES = 100
AUGMENTED_IMAGES = 3000
"""A thousand images would leave a stop at .5 uncertain by 3 points, and its row beside the wrong published figure."""

BASE_EPOCHS = 30


@dataclass
class SeedRun:
    """One seed of a run: `own` is the user's own network, None where the base is trained from new weights."""

    run: Run
    seed: int
    own: nn.Module | None

    def fresh(self) -> nn.Module:
        """The architecture with new weights, the same ones for every arm of a seed that starts from new weights."""
        channels, height, width = self.run.dataset.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return create_model(
                self.run.config.model,
                num_classes=self.run.dataset.num_classes,
                in_channels=channels,
                image_size=(height, width),
            ).to(self.run.device)

    def classifier(self, model: Any) -> Any:
        """A network as a classifier; what classifies already is left as it is."""
        if not isinstance(model, nn.Module):
            return model
        run = self.run
        return NetworkClassifier(
            model, preprocess=run.preprocess, class_names=run.dataset.class_names, device=str(run.device)
        )


def run_seed(seed_run: SeedRun) -> None:
    """Fit and score every arm of one seed; arms that are finished are only loaded."""
    base, base_record = _arm(seed_run, "base", "base", lambda directory: _fit_base(seed_run, directory))
    for method in seed_run.run.config.methods:
        _fit_method_and_controls(seed_run, method, base, base_record)


def rehearse(seed_run: SeedRun) -> None:
    """Make everything once in small, so that what does not fit together is said before hours of training.

    The network sees two images, and each method is fitted on three for one step.
    """
    run = seed_run.run
    base = seed_run.own or seed_run.fresh()
    seed_run.classifier(base).predict_proba(_test(run).images[:2])
    assert run.dataset.train is not None
    few = run.dataset.train.subset(run.halves.method_train[:3])
    for method in run.config.methods:
        options = check_options(method.name, method.options)
        for length in options.keys() & {"epochs", "steps", "budget"}:
            Recipe(**{length: options[length]})  # one step takes their place here
        options |= {"steps": 1, "directory": None}
        _estimator(seed_run, method, base, options).fit(few.images, few.labels)


def _fit_method_and_controls(seed_run: SeedRun, method: MethodConfig, base: nn.Module, base_record: ArmRecord) -> None:
    run = seed_run.run
    stage, record = _arm(
        seed_run,
        method.name,
        "method",
        lambda directory: _fit_method(seed_run, method, base, directory),
        stands_on=base_record.cpu_seconds,
        method=method.name,
    )
    if method.name == "gradnet":
        write_atomic(run.directory / "gradnet_blocks.json", json.dumps(stage.block_table()))
    alone = len(run.config.methods) == 1
    of_method = {
        "fresh": seed_run.fresh if seed_run.own is None else None,
        "base_seconds": base_record.cpu_seconds,
        "method_seconds": record.cpu_seconds,
        "method_parameters": stage.num_parameters - sum(p.numel() for p in base.parameters()),
        "passes": stage.inference_passes,
    }

    made: dict[str, tuple[Any, ArmRecord]] = {}

    def control(name: str, fit: Callable[[Setting], Fitted], stands_on: float) -> None:
        made[name] = _arm(
            seed_run,
            name if alone else f"{name}-{method.name}",
            "control",
            lambda directory: fit(_setting(seed_run, base, directory, **of_method)),
            stands_on=stands_on,
            control_for=[method.name],
        )

    wanted, on_base = run.config.controls, base_record.cpu_seconds
    if "control-finetune" in wanted:
        control("control-finetune", control_finetune, on_base)
    if "control-features" in wanted:
        control("control-features", control_features, on_base)
    if "control-more-data" in wanted:
        control("control-more-data", control_more_data, 0.0)
    if "control-same-price" in wanted:
        (finetuned, finetune_record), (more_data, more_record) = made["control-finetune"], made["control-more-data"]
        control(
            "control-same-price",
            lambda setting: control_same_price(setting, finetuned, more_data),
            max(finetune_record.total_cpu_seconds, more_record.total_cpu_seconds),
        )


def _setting(seed_run: SeedRun, base: nn.Module, directory: Path, **of_method: Any) -> Setting:
    run = seed_run.run
    return Setting(
        dataset=run.dataset,
        halves=run.halves,
        base=base,
        preprocess=run.preprocess,
        augmentation=run.augmentation,
        seed=seed_run.seed,
        directory=directory,
        steps=run.steps,
        **of_method,
    )


@dataclass(frozen=True)
class SharedBase(Fitted):
    """A base whose training other rows share: what it took up to this row's stop, whichever row did it."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0


def _fit_base(seed_run: SeedRun, directory: Path) -> Fitted:
    """Train the base on the first half, up to `base_accuracy` on its validation part; or take the user's own."""
    if seed_run.own is not None:
        return Fitted(seed_run.own, 0.0, "the network as given")
    if seed_run.run.config.bases is None:
        return _base_alone(seed_run, directory)
    shared = _shared_base(seed_run, seed_run.run.config.bases, directory)
    if shared is not None:
        return shared
    alone = _base_alone(seed_run, directory)
    return replace(alone, description=f"{alone.description}; trained alone, since the shared training was past it")


def _base_alone(seed_run: SeedRun, directory: Path) -> Fitted:
    model = seed_run.fresh()
    history = _train_base(seed_run, model, _recipe_of(seed_run), directory / "training")
    return Fitted(model, history.cpu_seconds, _how_it_ended(seed_run, history))


def _shared_base(seed_run: SeedRun, bases: Path, directory: Path) -> SharedBase | None:
    """The base of a training that other rows share; None where that went past its accuracy and kept no weights."""
    run, model, n = seed_run.run, seed_run.fresh(), len(seed_run.run.halves.base_train)
    recipe = shared_recipe(_recipe_of(seed_run), n)
    stop = SharedTraining(
        folder=folder_of(bases, _same_training(seed_run, model, recipe)),
        model=model,
        fit=lambda recipe, place, after_look: _train_base(seed_run, model, recipe, place, after_look),
        recipe=recipe,
        n=n,
        targets=run.config.base_targets,
    ).reach(run.config.base_accuracy)
    if stop is None:
        return None
    with learning_curve(directory / "training", []) as write_row:
        for row in stop.history.rows:
            write_row(row)
    return SharedBase(
        model,
        stop.history.cpu_seconds,
        f"{_how_it_ended(seed_run, stop.history)}; rows of one base share its training",
        seconds=stop.history.wall_seconds,
        peak_memory_mb=stop.peak_memory_mb,
    )


def _same_training(seed_run: SeedRun, model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """All that the bits of a base's training and its looks hang on; `model` is not trained yet."""
    run, source = seed_run.run, source_of(model)
    images = torch.cat([run.halves.base_train, run.halves.base_validation])
    return {
        "data": run.dataset.fingerprint,
        "images": _digest(images=images),
        "preprocess": run.preprocess.model_dump(mode="json"),
        "augmentation": run.augmentation.model_dump(mode="json"),
        "network": source and source.model_dump(mode="json"),
        "first_weights": _digest(**copy_of_weights(model)),
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed_run.seed,
        "looks_at": run.config.base_accuracy_on,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _digest(**tensors: Tensor) -> str:
    from safetensors.torch import save

    return hashlib.sha256(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})).hexdigest()


def _recipe_of(seed_run: SeedRun) -> Recipe:
    config = seed_run.run.config
    return base_recipe(
        config.model,
        config.epochs,
        config.base_accuracy,
        small=seed_run.run.dataset.shape[-1] < 24,
        validate_every=config.base_validate_every,
    )


def _train_base(
    seed_run: SeedRun,
    model: nn.Module,
    recipe: Recipe,
    directory: Path,
    after_look: Callable[[History], bool] | None = None,
) -> History:
    run, setting = seed_run.run, _setting(seed_run, model, directory)
    assert run.dataset.train is not None
    images = run.dataset.train.subset(run.halves.base_train)
    return train(
        model,
        n=len(images),
        make_batch=lambda indices, generator: setting.training_batch(images, indices, generator),
        loss=lambda network, batch: torch.nn.functional.cross_entropy(network(batch[0]), batch[1]),
        recipe=recipe,
        seed=seed_run.seed,
        validate=_base_validator(seed_run, setting, run.dataset.train.subset(run.halves.base_validation)),
        directory=directory,
        resume=True,
        label="base",
        after_look=after_look,
    )


def _how_it_ended(seed_run: SeedRun, history: History) -> str:
    """The history of a base in words; one that never reached its accuracy is also warned of."""
    run, config = seed_run.run, seed_run.run.config
    if config.base_accuracy is None:
        return f"{history.steps} steps"
    assert history.best_metrics is not None
    reached = f"{history.best_metrics['accuracy']:.4f}"
    kind = "augmented validation accuracy" if config.base_accuracy_on == "augmented" else "validation accuracy"
    if history.reached_target:
        return f"stopped at {kind} {reached} after {history.steps} steps"
    run.warn(
        f"seed {seed_run.seed}: the base never reached the {kind} {config.base_accuracy:g}; "
        f"its best, {reached}, is used"
    )
    return f"best {kind} {reached}, at step {history.best_step} of {history.steps}"


def _base_validator(seed_run: SeedRun, setting: Setting, images: Images) -> Callable[[nn.Module], dict[str, float]]:
    """What says when the base stops; augmented images are drawn alike each time, so that no look is luckier."""
    if seed_run.run.config.base_accuracy_on == "plain":
        return network_validator(setting, images)
    spread = torch.linspace(0, len(images) - 1, min(AUGMENTED_IMAGES, len(images))).long()
    chosen = images.subset(spread)
    return lambda network: _augmented_figures(seed_run, network, chosen)


def _augmented_figures(seed_run: SeedRun, network: nn.Module, images: Images) -> dict[str, float]:
    """Accuracy and NLL of a network on images augmented as in training, once and by the seed."""
    run, generator = seed_run.run, torch.Generator().manual_seed(seed_run.seed)

    def augmented(part: Tensor) -> Tensor:
        return augment(part, run.preprocess, run.augmentation, generator)

    return accuracy_and_nll(batched(network, augmented, images.images), images.labels)


def base_recipe(
    model: str,
    epochs: float | None,
    accuracy: float | None,
    *,
    small: bool = False,
    validate_every: int | None = None,
) -> Recipe:
    """How a base network is trained: seed-cnn as published (SGD .05 halved every 25 epochs), others by momentum.

    On `small` images, below the published 24 pixels, seed-cnn gets a lower rate: at .05 it is through with the embedded
    digits before its first validation.
    """
    common: dict[str, Any] = {
        "epochs": epochs or BASE_EPOCHS,
        "stop_accuracy": accuracy,
        "validate_every": validate_every,
    }
    if model == "seed-cnn":
        return Recipe(
            **common,
            batch_size=64,
            lr=0.02 if small else 0.05,
            optimizer_options={"weight_decay": 5e-4},
            schedule="StepLR",
            schedule_options={"step_size": 25, "gamma": 0.5},
            schedule_interval="epoch",
        )
    return Recipe(
        **common,
        batch_size=64,
        lr=0.02,
        optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
        schedule="constant" if accuracy else "cosine",
    )


def _fit_method(seed_run: SeedRun, method: MethodConfig, base: nn.Module, directory: Path) -> Fitted:
    """Fit a second-stage method on the second half; the steps that a time budget became are kept."""
    run = seed_run.run
    options: dict[str, Any] = {"directory": directory / "training", "budget": run.config.budget}
    options |= check_options(method.name, method.options)
    if (key := f"seed{seed_run.seed}/{method.name}/training") in run.steps:
        options["steps"] = run.steps[key]
    assert run.dataset.train is not None
    images = run.dataset.train.subset(run.halves.method_train)
    validation = run.dataset.train.subset(run.halves.method_validation)
    stage = _estimator(seed_run, method, base, options)
    stage.fit(images.images, images.labels, validation=(validation.images, validation.labels))
    if options["budget"] is not None:
        run.steps[key] = stage.history_.steps
    return Fitted(stage, stage.fit_cpu_seconds_, f"{stage.history_.steps} steps")


def _estimator(seed_run: SeedRun, method: MethodConfig, base: nn.Module, options: dict[str, Any]) -> Any:
    """The method's estimator over the base, with what the run settles and these options."""
    run = seed_run.run
    cls = get_method(method.name).load()
    settled = {
        "preprocess": run.preprocess,
        "augment": run.augmentation,
        "class_names": run.dataset.class_names,
        "random_state": seed_run.seed,
        "device": run.config.device,
        "memory": run.config.memory,
    }
    taken = inspect.signature(cls).parameters
    return cls(base, **{name: value for name, value in (settled | options).items() if name in taken})


def _arm(
    seed_run: SeedRun,
    name: str,
    kind: str,
    fit: Callable[[Path], Fitted],
    *,
    stands_on: float = 0.0,
    method: str | None = None,
    control_for: list[str] | None = None,
) -> tuple[Any, ArmRecord]:
    """Fit one arm, score it, save it, remember what it cost; or load it, where an earlier run has done so."""
    run = seed_run.run
    directory = run.arm_directory(seed_run.seed, name)
    done = ArmRecord.read(directory)
    if done is not None:
        run.steps.update(done.steps)
        for warning in done.warnings:
            run.warn(warning)
        return _reload(seed_run, directory, done), done
    run.event("arm begins", arm=name, seed=seed_run.seed)
    directory.mkdir(parents=True, exist_ok=True)
    began, warned = perf_counter(), len(run.warnings)
    with peak_memory() as peak:
        fitted = fit(directory)
    seconds, megabytes = perf_counter() - began, peak.megabytes
    if isinstance(fitted, SharedBase):  # its training may have been another row's work
        seconds, megabytes = fitted.seconds, fitted.peak_memory_mb
    classifier = seed_run.classifier(fitted.model)
    classifier.save(directory)
    record = ArmRecord(
        name=name,
        kind=kind,
        seed=seed_run.seed,
        description=fitted.description,
        cpu_seconds=fitted.cpu_seconds,
        total_cpu_seconds=fitted.cpu_seconds + stands_on,
        seconds=seconds,
        peak_memory_mb=megabytes,
        validation_accuracy=_score(seed_run, classifier, directory),
        cost=measure_cost(classifier, _test(run).images[:TIMED_IMAGES]),
        steps={key: count for key, count in run.steps.items() if key.startswith(f"seed{seed_run.seed}/{name}/")},
        trials=fitted.trials,
        method=method,
        control_for=control_for or [],
        warnings=run.warnings[warned:],
        augmented_accuracy=_augmented_accuracy(seed_run, fitted.model) if kind == "base" else None,
    )
    _keep_curve(directory)
    record.write(directory)
    _drop_checkpoints(directory)
    run.event("arm ends", arm=name, seed=seed_run.seed, cpu_seconds=record.cpu_seconds)
    return fitted.model, record


def _reload(seed_run: SeedRun, directory: Path, record: ArmRecord) -> Any:
    if record.kind == "base" and seed_run.own is not None:
        return seed_run.own
    model = load(directory)
    return model.to(seed_run.run.device) if isinstance(model, nn.Module) else model


def _score(seed_run: SeedRun, classifier: Any, directory: Path) -> float:
    """Write the test predictions; give the accuracy on the validation data, the only one that may choose anything."""
    run = seed_run.run
    test = _test(run)
    write_arrays(
        directory / "test_predictions.npz", probabilities=classifier.predict_proba(test.images), labels=test.labels
    )
    assert run.dataset.train is not None
    validation = run.dataset.train.subset(run.halves.method_validation)
    return float((classifier.predict(validation.images) == validation.labels.numpy()).mean())


def _augmented_accuracy(seed_run: SeedRun, network: nn.Module) -> float | None:
    if seed_run.run.config.base_accuracy_on == "plain":
        return None
    return _augmented_figures(seed_run, network, _test(seed_run.run))["accuracy"]


def _test(run: Run) -> Any:
    assert run.dataset.test is not None
    return run.dataset.test


def _keep_curve(directory: Path) -> None:
    """Put the learning curve of the arm's last training beside its weights."""
    for training in ("training", "training/final*", "training-0/final*"):
        for curve in directory.glob(f"{training}/metrics.csv"):
            write_atomic(directory / "metrics.csv", curve.read_bytes())


def _drop_checkpoints(directory: Path) -> None:
    """A finished arm needs its checkpoints no more."""
    for checkpoint in [*directory.rglob("checkpoint.pt"), *directory.rglob("statistics.*")]:
        checkpoint.unlink()
