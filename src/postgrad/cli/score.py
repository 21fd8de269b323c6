"""`postgrad score`: how good a classifier is on test data, what it does beyond it, and what a prediction costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from postgrad.cli.console import prepared, print_json, say
from postgrad.cli.options import (
    Count,
    DataOptions,
    Folder,
    MachineOptions,
    ModelOptions,
    PreprocessOptions,
    Seed,
    Text,
    converted,
    preprocess_flags,
    required,
)
from postgrad.cli.results import score_table
from postgrad.errors import UserError

if TYPE_CHECKING:
    from postgrad.evaluation.score import Extras, Scored


def _epsilon(word: str) -> float:
    try:
        value = float(Fraction(word.strip()))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a number such as 8/255, got '{word}'") from None
    if not 0 < value <= 1:
        raise ValueError(f"expected a number above 0 and at most 1 (pixels are 0 to 1), got '{word}'")
    return value


Epsilon = Annotated[float | None, *converted(_epsilon, "EPS")]


_MACHINE = "environment.json"


@dataclass(frozen=True)
class BeyondOptions:
    """What is measured beside the plain metrics."""

    ood: Text = None
    """Other data sets, with commas, that the classifier should be unsure of: kmnist, notmnist, ..., folder:DIR,
    npz:FILE, or made ones: noise, gaussian-noise, interpolation."""
    corruptions: Text = None
    """all | mapper-paper | names with commas: gaussian-noise, gaussian-blur, salt-and-pepper, contrast, brightness,
    translation, jpeg."""
    attack: Text = None
    """autoattack (needs gradients) | square | hopskipjump. Needs postgrad[attack], and --epsilon."""
    epsilon: Epsilon = None
    """How far the attack may change each pixel, of pixels from 0 to 1, such as 8/255."""
    attack_images: Count = None
    """How many test images are attacked. Default: 100."""
    purify: Count = None
    """Refine each image by so many steps towards higher density before it is classified (for --method jem)."""
    seed: Seed = None
    """Of noises, corruptions and attacks. Default: 0."""


@dataclass(frozen=True)
class OutputOptions:
    """What is kept."""

    out: Folder = None
    """Leave results.json, the test predictions and the settings there, for `postgrad report`."""


@dataclass(frozen=True)
class Options:
    """Score a classifier on the test images of a data set: accuracy, calibration, cost, with 95 % intervals.

    postgrad score --model runs/demo/gradnet --data digits --ood noise --corruptions all
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    beyond: BeyondOptions = field(default_factory=BeyondOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Load, score, print."""
    required(options.model.model, "--model")
    required(options.data.data, "--data")
    with prepared(options.machine):
        document = _score(options)
    if options.machine.json:
        print_json(document)
    else:
        print(score_table(document))
    return 0


def _score(options: Options) -> dict[str, Any]:
    from postgrad.cli.labelled import class_numbers
    from postgrad.evaluation.score import score_all

    names = _checked_names(options)
    classifier, dataset = _loaded(options)
    if options.beyond.purify is not None:
        classifier = _purifying(classifier, options)
    extras = _extras(options, names, dataset)
    held_out, unfitted = _held_out(options, dataset)
    number_of = class_numbers(dataset, classifier.class_names)
    scored = score_all(
        classifier,
        dataset.test.images,
        number_of[dataset.test.labels],
        validation=None if held_out is None else (held_out.images, number_of[held_out.labels]),
        class_names=classifier.class_names,
        extras=extras,
        unfitted=unfitted,
    )
    say(f"{len(dataset.test)} test images of {dataset.name}")
    if Path(str(options.model.model)).is_file():
        scored.document["cost"]["file_bytes"] = Path(str(options.model.model)).stat().st_size
    for note in scored.document.get("notes", []):
        say(f"note: {note}")
    if options.output.out is not None:
        _keep(options, classifier, dataset, scored, 0 if held_out is None else len(held_out))
    return scored.document


def _checked_names(options: Options) -> tuple[list[str], list[str]]:
    """The outside data sets and the corruptions that were asked for; what is misspelt is said before anything loads."""
    from postgrad.data.outside import check_outside
    from postgrad.evaluation.attack import check_attack
    from postgrad.evaluation.corruptions import corruption_names

    beyond, data = options.beyond, options.data.data
    others = [name.strip() for name in (beyond.ood or "").split(",") if name.strip()]
    if data in others:
        raise UserError(f"--ood {data} is the data that is scored; name other data sets")
    if beyond.attack is None and (beyond.epsilon is not None or beyond.attack_images is not None):
        raise UserError("--epsilon and --attack-images need --attack, such as --attack autoattack")
    if beyond.attack is not None and beyond.epsilon is None:
        raise UserError("--attack needs --epsilon, how far each pixel may be changed, such as --epsilon 8/255")
    if beyond.attack is not None and beyond.epsilon is not None:
        check_attack(beyond.attack, beyond.epsilon)
    for name in others:
        check_outside(name)
    return others, corruption_names(beyond.corruptions) if beyond.corruptions else []


def _extras(options: Options, names: tuple[list[str], list[str]], dataset: Any) -> Extras:
    from postgrad.data.outside import outside_images
    from postgrad.evaluation.score import Extras

    beyond, data = options.beyond, options.data
    others, corruptions = names
    seed = beyond.seed or 0
    where: dict[str, Any] = {"data_dir": data.data_dir, "memory": data.memory or "8GB", "seed": seed}
    outside = [outside_images(name, like=dataset.test, **where) for name in dict.fromkeys(others)]
    for each in outside:
        say(f"note: {each.name}: {len(each.images)} images, matching: {each.matching}")
    return Extras(
        outside=outside,
        corruptions=corruptions,
        attack=beyond.attack,
        epsilon=beyond.epsilon,
        attack_images=beyond.attack_images or Extras.attack_images,
        seed=seed,
    )


def _loaded(options: Options) -> tuple[Any, Any]:
    """The classifier and its data set."""
    from postgrad.cli.classifiers import is_saved, named_classifier, saved_classifier

    model = str(options.model.model)
    flags = preprocess_flags(options.preprocess)
    device = options.machine.device or "auto"
    if is_saved(model):
        classifier = saved_classifier(model, options.model, flags, device)
        return classifier, _dataset(options, size=classifier.preprocess.size)
    dataset = _dataset(options, size=flags.get("size"))
    return named_classifier(model, options.model, flags, device, dataset), dataset


def _purifying(classifier: Any, options: Options) -> Any:
    """The same network behind a refinement of each image."""
    from postgrad.methods.energy_samples import PurifyingClassifier
    from postgrad.models.network import NetworkClassifier

    steps = options.beyond.purify
    if options.beyond.attack is not None:
        raise UserError("--attack does not go through --purify, so that it would say nothing; leave one of them out")
    if not isinstance(classifier, NetworkClassifier) or steps is None:
        raise UserError(f"--purify refines images for networks, {options.model.model} is something else; leave it out")
    return PurifyingClassifier(
        classifier.model,
        preprocess=classifier.preprocess,
        class_names=classifier.class_names,
        device=str(classifier.device),
        steps=steps,
    )


def _dataset(options: Options, *, size: int | None) -> Any:
    from postgrad.cli.labelled import loaded

    dataset = loaded(options.data, size=size)
    if dataset.test is None:
        raise UserError(f"{options.data.data} has no test images to score on; add some, or name another data set")
    return dataset


def _held_out(options: Options, dataset: Any) -> tuple[Any, str]:
    """The training images that validate methods, which fit the temperature; or None, and why they must not."""
    from postgrad.data.splits import halves

    reason = _not_held_out(options)
    if dataset.train is None:
        reason = f"{dataset.name} has no training images here"
    elif len(dataset.train) < 4:
        reason = f"{dataset.name} has {len(dataset.train)} training images, too few to hold some back"
    if reason:
        return None, reason
    if not Path(str(options.model.model)).expanduser().is_dir():
        say("note: the temperature is right only if the network was not trained on the images held back for it")
    held_out = dataset.train.subset(halves(dataset).method_validation)
    say(f"note: the temperature is fitted on {len(held_out)} training images that are held back")
    return held_out, ""


def _not_held_out(options: Options) -> str:
    """Why the images that these data hold back may be among those that a run trained on; empty if they are not."""
    from postgrad.validation import read_yaml

    path = Path(str(options.model.model)).expanduser()
    folders = [path, *path.resolve().parents[:2]] if path.is_dir() else []
    # What a run leaves: its settings beside what it ran on. A config.yaml alone may be anybody's.
    runs = [folder for folder in folders if all((folder / name).is_file() for name in ("config.yaml", _MACHINE))]
    if not runs:
        return ""
    config = read_yaml(runs[0] / "config.yaml")
    if config.get("whole_halves"):
        return "this run trained on whole halves and held nothing back"
    if (config.get("data"), config.get("limit")) != (options.data.data, options.data.limit):
        limit = f" --limit {config['limit']}" if config.get("limit") else ", all of it"
        return f"this run was trained on other images (--data {config.get('data')}{limit})"
    return ""


def _keep(options: Options, classifier: Any, dataset: Any, scored: Scored, n_validation: int) -> None:
    """A run directory with one arm."""
    from postgrad.files import fresh_directory
    from postgrad.studies.scored import write_scored

    assert options.output.out is not None
    directory = fresh_directory(options.output.out)
    write_scored(
        directory,
        scored,
        name=str(options.model.model),
        dataset=dataset,
        n_validation=n_validation,
        preprocessing=classifier.preprocess.describe() if getattr(classifier, "preprocess", None) else None,
        settings=_given(options),
    )
    say(f"{directory}: the results; postgrad report {directory} makes a page of them")


def _given(options: Options) -> dict[str, Any]:
    from postgrad.cli.options import given

    groups = given(options.model, options.data, options.beyond, options.preprocess)
    return {name: str(value) if isinstance(value, Path) else value for name, value in groups.items()}
