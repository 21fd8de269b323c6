"""One arm of a study of trainings: the network trained from the seed's first weights, at a rate chosen for it."""

from __future__ import annotations

import itertools
import warnings
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from postgrad.controls import Fitted
from postgrad.controls.tuning import VALIDATION_IMAGES, accuracy_and_nll, batched
from postgrad.data.datasets import Images
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.growth.at_work import GrowthAtWork
from postgrad.methods.at_work import InputBatches, MethodsAtWork, TrainingSet
from postgrad.methods.energy_samples import Chains
from postgrad.studies.arm_config import TrainingArm
from postgrad.studies.base_arm import recipe_with
from postgrad.studies.energy import check_range, in_words, keep_chains, watching
from postgrad.studies.growing import growth_at_work, with_size
from postgrad.studies.seed_run import SeedRun
from postgrad.studies.teaching import keep_answers, make_batches, with_transfer
from postgrad.studies.trials import Trial
from postgrad.training import DivergedError, History, Recipe, train


@dataclass(frozen=True)
class Trained(Fitted):
    """A trained network, the learning rate that was chosen, and how well it knows the images it was trained on."""

    lr: float = 0.0
    seconds: float = 0.0
    on_training: dict[str, Any] | None = None
    tuned: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Attempt:
    model: nn.Module
    history: History
    figures: dict[str, float]
    lr: float
    trained_on: int
    directory: Path | None
    options: dict[str, Any] = field(default_factory=dict)
    """Of its method, as far as they were in question."""
    asking: float = 0.0
    """CPU seconds in which the teacher answered beforehand."""


def fit_training(seed_run: SeedRun, trial: Trial, directory: Path) -> Trained:
    """Train at each learning rate in question, and keep the network that the validation images favour.

    On the first seed these are the study's `rates`, on others the one that was chosen there; so with the options that
    the arm is to `tune`. A control of the same time gets as many steps as fit into its method's time, at each rate.
    """
    assert trial.training is not None
    rates, tries = _in_question(seed_run, trial)
    attempts: list[_Attempt] = []
    trials: list[dict[str, Any]] = []
    for number, (options, lr) in enumerate(itertools.product(tries, rates)):
        key = f"seed{trial.seed}/{trial.arm}/training-{number}"
        recipe = _recipe(seed_run, trial, lr, key)
        place, tried = directory / f"training-{number}", {"lr": lr, **options}
        try:
            attempt = _train(seed_run, trial.training.at(options), recipe, place, key)
        except DivergedError as error:
            if len(rates) * len(tries) == 1:
                raise
            trials.append({**tried, "diverged": str(error)})
            continue
        attempts.append(replace(attempt, options=options))
        seed_run.run.steps[key] = attempt.history.steps
        trials.append({**tried, "cpu_seconds": attempt.history.cpu_seconds, **attempt.figures})
    if not attempts:
        raise UserError(f"{trial.arm}: the loss became infinite at every learning rate ({_listed(rates)})")
    best = max(attempts, key=lambda attempt: (attempt.figures["accuracy"], -attempt.figures["nll"]))
    assert best.directory is not None
    write_atomic(directory / "metrics.csv", (best.directory / "metrics.csv").read_bytes())
    chosen = "".join(f"{name} {value}, " for name, value in best.options.items())
    if (chains := Chains.load(best.directory)) is not None:
        chains.save(directory)
    of_rates = f" of {_listed(rates)}" if len(rates) > 1 else ""
    return Trained(
        best.model,
        best.history.cpu_seconds + best.asking,
        f"{trial.training}; {chosen}learning rate {best.lr:g}{of_rates}, {best.history.steps} steps",
        trials,
        lr=best.lr,
        tuned=best.options,
        seconds=best.history.wall_seconds,
        on_training={"train_accuracy": best.figures["train_accuracy"], "images": best.trained_on},
    )


def rehearse_training(seed_run: SeedRun, arm: TrainingArm) -> None:
    """Take one step with a few images, so that what does not fit together is said before hours of training."""
    recipe = recipe_with(seed_run.run.config.model, _settings(seed_run, arm))
    few = dict.fromkeys(("epochs", "budget", "stop_accuracy"))
    one_step = Recipe(**{**recipe.model_dump(), **few, "steps": 1, "batch_size": 4})
    if arm.growth:
        images = _fitted_on(seed_run)
        model, methods = _begun(seed_run, arm, recipe, images, images)
        _make_batches(seed_run, arm, methods, images)
        for growth in _growth(seed_run, arm, model, methods, recipe, images, str(arm)):
            growth.rehearse()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an epoch of one step; the training itself has the last word
        for options in arm.tries():
            once = arm.at(options).model_copy(update={"growth": {}})
            _train(seed_run, once, one_step, None, str(arm), n=4)


def _in_question(seed_run: SeedRun, trial: Trial) -> tuple[tuple[float, ...], list[dict[str, Any]]]:
    """Learning rates and options of the method: all of them on the first seed, and later what was chosen there."""
    config: Any = seed_run.run.config
    assert trial.training is not None
    if trial.tuned_on is None:
        rates = config.rates or (recipe_with(config.model, _settings(seed_run, trial.training)).lr,)
        return rates, trial.training.tries()
    chosen = SeedRun(seed_run.run, trial.tuned_on).record(trial.arm)
    assert chosen.lr is not None
    return (chosen.lr,), [chosen.tuned]


def _listed(rates: tuple[float, ...]) -> str:
    return ", ".join(f"{lr:g}" for lr in rates)


def _settings(seed_run: SeedRun, arm: TrainingArm) -> dict[str, Any]:
    """The study's settings of a training, with the arm's own in their place."""
    config: Any = seed_run.run.config
    # Another optimizer or schedule has other options.
    foreign = {f"{name}_options" for name in ("optimizer", "schedule") if name in arm.training}
    return {name: value for name, value in config.training.items() if name not in foreign} | arm.training


def _recipe(seed_run: SeedRun, trial: Trial, lr: float, key: str) -> Recipe:
    assert trial.training is not None
    settings = _settings(seed_run, trial.training) | {"lr": lr}
    lengths = ("epochs", "steps", "budget")
    if key in seed_run.run.steps:
        settings = {name: value for name, value in settings.items() if name not in lengths}
        settings["steps"] = seed_run.run.steps[key]
    elif trial.control is not None or trial.training.time_of is not None:
        settings = {name: value for name, value in settings.items() if name not in lengths}
        settings["budget"] = f"{seed_run.record(trial.needs[0]).cpu_seconds:.3f}s"
    return recipe_with(seed_run.run.config.model, settings)


def _train(
    seed_run: SeedRun, arm: TrainingArm, recipe: Recipe, directory: Path | None, label: str, *, n: int | None = None
) -> _Attempt:
    run = seed_run.run
    images = _fitted_on(seed_run, n)
    seen = _with_transfer(seed_run, arm, images, n)
    held_back = run.train.subset(torch.cat([run.halves.base_validation, run.halves.method_validation])[:n])
    # A few images do not show all classes, of each of which an energy model draws some.
    model, at_work = _begun(seed_run, arm, recipe, seen, seen if n is None else _fitted_on(seed_run))
    make_batch = _make_batches(seed_run, arm, at_work, seen)
    asking = 0.0
    if directory is not None:
        asking = keep_answers(make_batch, arm.teacher_views, directory.parent / "teacher", seed=seed_run.seed)

    def validate(network: nn.Module) -> dict[str, float]:
        on_training = _figures(seed_run, network, images)
        return _figures(seed_run, network, held_back) | {f"train_{name}": on_training[name] for name in on_training}

    def went_back(**what: Any) -> None:
        run.event("diverged", training=label, **what)
        run.warn(f"{label}: {in_words(what)}")

    at_work.told = went_back
    growth = _growth(seed_run, arm, model, at_work, recipe, images, label)
    history = train(
        model,
        n=len(seen),
        make_batch=make_batch,
        loss=at_work.loss,
        recipe=recipe,
        seed=seed_run.seed,
        validate=watching(with_size(validate, model, grows=bool(growth)), at_work),
        directory=directory,
        resume=directory is not None,
        label=label,
        companions=[at_work, *growth],
        beside=at_work.parameters,
    )
    if directory is not None:
        keep_chains(at_work, directory)
    trained_on = min(VALIDATION_IMAGES, len(images))
    return _Attempt(model, history, validate(model), recipe.lr, trained_on, directory, asking=asking)


def _with_transfer(seed_run: SeedRun, arm: TrainingArm, images: Images, n: int | None) -> Images:
    """The images with the arm's transfer images, or the first `n` of these, behind them."""
    config = seed_run.run.config
    seen = with_transfer(images, arm, seed_run.run.dataset, size=config.size, memory=config.memory)
    return seen if n is None else seen.subset(torch.arange(min(len(seen), len(images) + n)))


def _make_batches(seed_run: SeedRun, arm: TrainingArm, at_work: MethodsAtWork, images: Images) -> Any:
    run = seed_run.run
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_run.seed)
        return make_batches(images, at_work, arm, run.dataset, run.preprocess, run.augmentation, run.device)


def _fitted_on(seed_run: SeedRun, n: int | None = None) -> Images:
    """The images that trainings see, or the first `n` of them."""
    run = seed_run.run
    return run.train.subset(torch.cat([run.halves.base_train, run.halves.method_train])[:n])


def _begun(
    seed_run: SeedRun, arm: TrainingArm, recipe: Recipe, images: Images, drawn_from: Images
) -> tuple[nn.Module, MethodsAtWork]:
    """The network before its first step, and the arm's methods at work on it; a loss may draw images for itself."""
    run = seed_run.run
    check_range(arm.methods, run.preprocess)
    model = deepcopy(run.own) if run.own is not None and arm.model is None else seed_run.fresh(arm.model)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_run.seed)
        at_work = MethodsAtWork(
            model,
            [(method.name, method.options) for method in arm.methods],
            steps_per_epoch=recipe.steps_per_epoch(len(images)),
            label_smoothing=recipe.label_smoothing,
            batches=InputBatches(
                images.images, run.preprocess, run.augmentation, recipe.batch_size, seed_run.seed, run.device
            ),
            training_set=TrainingSet(drawn_from.images, drawn_from.labels, run.preprocess, run.augmentation),
        )
    return model, at_work


def _growth(
    seed_run: SeedRun,
    arm: TrainingArm,
    model: nn.Module,
    methods: MethodsAtWork,
    recipe: Recipe,
    images: Images,
    label: str,
) -> list[GrowthAtWork]:
    run = seed_run.run
    return growth_at_work(
        model,
        arm.growth,
        methods,
        recipe=recipe,
        images=images.images,
        inputs=lambda few: run.preprocess(few.to(run.device)),
        seed=seed_run.seed,
        event=lambda name, **content: run.event(name, training=label, **content),
    )


def _figures(seed_run: SeedRun, network: nn.Module, images: Images) -> dict[str, float]:
    """Accuracy and NLL on at most 1,000 of some images, spread evenly over them."""
    spread = torch.linspace(0, len(images) - 1, min(VALIDATION_IMAGES, len(images))).long()
    chosen = images.subset(spread)
    return accuracy_and_nll(batched(network, seed_run.run.preprocess, chosen.images), chosen.labels)
