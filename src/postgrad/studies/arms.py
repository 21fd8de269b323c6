"""One arm of one seed, from finished arms to a finished arm: fitted, scored on the test data, saved, and its price."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from postgrad.controls import (
    Fitted,
    Setting,
    control_features,
    control_finetune,
    control_more_data,
    control_same_price,
)
from postgrad.errors import UserError
from postgrad.evaluation.calibration import found_temperature
from postgrad.evaluation.cost import measure_cost
from postgrad.files import write_atomic
from postgrad.memory import peak_memory
from postgrad.methods.registry import check_options, get_method
from postgrad.studies.arm_config import MethodConfig
from postgrad.studies.base_arm import SharedBase, augmented_accuracy, fit_base
from postgrad.studies.extras import corruption_scores, outside_scores
from postgrad.studies.run import ArmRecord, Run, write_arrays
from postgrad.studies.seed_run import SeedRun
from postgrad.studies.training_arm import Trained, fit_training, rehearse_training
from postgrad.studies.trials import Trial
from postgrad.training import Recipe

TIMED_IMAGES = 100

CONTROLS: dict[str, Callable[[Setting], Fitted]] = {
    "control-finetune": control_finetune,
    "control-features": control_features,
    "control-more-data": control_more_data,
}
"""The controls that stand on the base alone."""


@dataclass(frozen=True)
class Drawing:
    """What the report draws of a method: the file of the run directory, and what of the fitted classifier is in it."""

    file: str
    table: Callable[[Any], dict[str, Any]]


DRAWINGS = {
    "gradnet": Drawing("gradnet_blocks.json", lambda gradnet: gradnet.block_table()),
    "mapper": Drawing("mapper_graph.json", lambda mapper: mapper.graph_table()),
}


def run_trial(run: Run, trial: Trial) -> ArmRecord:
    """Fit one arm, score it, save it and remember what it cost; `run` is read and not changed.

    What it stands on is loaded from the directories of finished arms; a training that was interrupted goes on from its
    checkpoint. What the arm has to say to the run (step counts, warnings) is in its record.
    """
    seed_run = SeedRun(replace(run, steps=dict(run.steps), warnings=[]), trial.seed)
    directory = seed_run.directory(trial.arm)
    directory.mkdir(parents=True, exist_ok=True)
    fit, stands_on = _plan(seed_run, trial, directory)
    began = perf_counter()
    with peak_memory() as peak:
        fitted = fit()
    seconds, megabytes = perf_counter() - began, peak.megabytes
    if isinstance(fitted, SharedBase):  # its training may have been another row's work
        seconds, megabytes = fitted.seconds, fitted.peak_memory_mb
    trained = fitted if isinstance(fitted, Trained) else None
    if trained is not None:
        seconds = trained.seconds
    classifier = seed_run.classifier(fitted.model)
    classifier.save(directory)
    if trial.seed == run.config.seeds[0] and (drawing := _drawing(run, trial)) is not None:
        keep_drawing(seed_run.run, drawing, fitted.model)
    of_arm, method = seed_run.run, trial.method
    accuracy, temperature = _score(run, classifier, directory)
    record = ArmRecord(
        name=trial.arm,
        kind=trial.kind,
        seed=trial.seed,
        description=fitted.description,
        cpu_seconds=fitted.cpu_seconds,
        total_cpu_seconds=fitted.cpu_seconds + stands_on,
        seconds=seconds,
        peak_memory_mb=megabytes,
        validation_accuracy=accuracy,
        temperature=temperature,
        cost=measure_cost(classifier, run.test.images[:TIMED_IMAGES]),
        steps={k: count for k, count in of_arm.steps.items() if k.startswith(f"seed{trial.seed}/{trial.arm}/")},
        trials=fitted.trials,
        method=_registered_name(trial),
        control_for=[method.label] if method and trial.control else list(trial.control_for),
        against=list(trial.against),
        lr=trained.lr if trained else None,
        tuned=trained.tuned if trained else {},
        on_training=trained.on_training if trained else None,
        warnings=of_arm.warnings,
        augmented_accuracy=augmented_accuracy(seed_run, fitted.model) if trial.kind == "base" and not trained else None,
        outside=outside_scores(run, classifier, directory),
        corruptions=corruption_scores(run, classifier),
    )
    _keep_curve(directory)
    record.write(directory)
    _drop_checkpoints(directory)
    return record


def rehearse(run: Run) -> None:
    """Make everything once in small, so that what does not fit together is said before hours of training.

    The network sees two images, and each method is fitted on three for one step.
    """
    seed_run = SeedRun(run, run.config.seeds[0])
    base = run.own or seed_run.fresh()
    seed_run.classifier(base).predict_proba(run.test.images[:2])
    for arm in run.config.training_arms().values():
        rehearse_training(seed_run, arm)
    few = run.train.subset(run.halves.method_train[:3])
    for method in run.config.method_arms():
        options = check_options(method.name, method.options)
        for length in options.keys() & {"epochs", "steps", "budget"}:
            Recipe(**{length: options[length]})  # one step takes their place here
        options |= {"steps": 1, "directory": None}
        _estimator(seed_run, method, base, options).fit(few.images, few.labels)


def _plan(seed_run: SeedRun, trial: Trial, directory: Path) -> tuple[Callable[[], Fitted], float]:
    """What fits the arm, with all that it stands on already loaded, and the CPU seconds that those took."""
    if trial.training is not None:
        return lambda: fit_training(seed_run, trial, directory), 0.0
    if trial.kind == "base":
        return lambda: fit_base(seed_run, directory), 0.0
    base, method = seed_run.network("base"), trial.method
    assert method is not None
    on_base = seed_run.record("base").cpu_seconds
    if trial.control is None:
        return lambda: _fit_method(seed_run, method, base, directory), on_base
    setting = _control_setting(seed_run, method, base, directory)
    if trial.control == "control-same-price":
        finetuned, more_data = trial.needs[-2:]
        networks = seed_run.network(finetuned), seed_run.network(more_data)
        stands_on = max(seed_run.record(arm).total_cpu_seconds for arm in (finetuned, more_data))
        return lambda: control_same_price(setting, *networks), stands_on
    control = CONTROLS[trial.control]
    return lambda: control(setting), 0.0 if trial.control == "control-more-data" else on_base


def _registered_name(trial: Trial) -> str | None:
    """The method of an arm, where there is one only."""
    if trial.kind != "method":
        return None
    if trial.training is not None:
        return trial.training.methods[0].name if len(trial.training.methods) == 1 else None
    assert trial.method is not None
    return trial.method.name


def _control_setting(seed_run: SeedRun, method: MethodConfig, base: nn.Module, directory: Path) -> Setting:
    """What a control is given: the time, the size and the price of its method, as that arm's record says."""
    record = seed_run.record(method.label)
    return seed_run.setting(
        base,
        directory,
        fresh=seed_run.fresh if seed_run.run.own is None else None,
        base_seconds=seed_run.record("base").cpu_seconds,
        method_seconds=record.cpu_seconds,
        method_parameters=record.cost["parameters"] - sum(p.numel() for p in base.parameters()),
        passes=record.cost["inference_passes"],
    )


def _fit_method(seed_run: SeedRun, method: MethodConfig, base: nn.Module, directory: Path) -> Fitted:
    """Fit a second-stage method on the second half; the steps that a time budget became are kept."""
    run = seed_run.run
    options: dict[str, Any] = {"directory": directory / "training", "budget": run.config.budget}
    options |= check_options(method.name, method.options)
    if (key := f"seed{seed_run.seed}/{method.label}/training") in run.steps:
        options["steps"] = run.steps[key]
    images = run.train.subset(run.halves.method_train)
    validation = run.train.subset(run.halves.method_validation)
    stage = _estimator(seed_run, method, base, options)
    stage.fit(images.images, images.labels, validation=(validation.images, validation.labels))
    if stage.history_ is None:  # nothing in it is trained by steps
        return Fitted(stage, stage.fit_cpu_seconds_, "no steps")
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


def keep_drawing(run: Run, drawing: Drawing, fitted: Any) -> None:
    """Write what the report draws of a fitted method; where it cannot be drawn, the run says so and goes on."""
    try:
        table = drawing.table(fitted)
    except UserError as error:
        run.warn(f"not drawn: {error}")
        return
    write_atomic(run.directory / drawing.file, json.dumps(table, separators=(",", ":")))


def _drawing(run: Run, trial: Trial) -> Drawing | None:
    """What the report draws of an arm: of each method that can be drawn the first arm."""
    if trial.kind != "method" or trial.method is None or trial.method.name not in DRAWINGS:
        return None
    first = next(method.label for method in run.config.method_arms() if method.name == trial.method.name)
    return DRAWINGS[trial.method.name] if trial.arm == first else None


def _score(run: Run, classifier: Any, directory: Path) -> tuple[float, float | None]:
    """Write the test predictions; give the accuracy and the temperature that the validation images find.

    They are the only ones that may choose anything. Of whole halves the arm was fitted on them, and none is found.
    """
    test = run.test
    write_arrays(
        directory / "test_predictions.npz", probabilities=classifier.predict_proba(test.images), labels=test.labels
    )
    validation = run.train.subset(run.halves.method_validation)
    probabilities, labels = classifier.predict_proba(validation.images), validation.labels.numpy()
    temperature = None if run.config.whole_halves else found_temperature(probabilities, labels)
    return float((probabilities.argmax(axis=1) == labels).mean()), temperature


def _keep_curve(directory: Path) -> None:
    """Put the learning curve of the arm's last training beside its weights."""
    for training in ("training", "training/final*", "training-0/final*"):
        for curve in directory.glob(f"{training}/metrics.csv"):
            write_atomic(directory / "metrics.csv", curve.read_bytes())


def _drop_checkpoints(directory: Path) -> None:
    """A finished arm needs its checkpoints no more."""
    for checkpoint in [*directory.rglob("checkpoint.pt"), *directory.rglob("statistics.*")]:
        checkpoint.unlink()
