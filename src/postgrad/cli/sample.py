"""`postgrad sample`: images from a classifier that is an energy model too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from postgrad.cli.console import prepared, print_json, say
from postgrad.cli.options import (
    Count,
    DataOptions,
    Folder,
    MachineOptions,
    ModelOptions,
    Name,
    Seed,
    required,
)
from postgrad.errors import UserError, unknown_name
from postgrad.files import fresh_directory


@dataclass(frozen=True)
class SampleOptions:
    """What is drawn, and where it goes."""

    n: Count = None
    """How many images. Default: 64."""
    label: Annotated[Name, tyro.conf.arg(name="class", help_behavior_hint="")] = None
    """Draw from one class, by its name or number; default: from all of them together."""
    steps: Count = None
    """Steps of each chain. Default: five times those of the training."""
    features: Folder = None
    """A trained network, such as runs/train: how far samples and test images are apart in what goes into its last layer
    (Fréchet distance)."""
    seed: Seed = None
    """Default: 0."""
    out: Folder = None
    """Where it goes; one that holds something is left alone, and DIR-2, ... is used. Default: runs/samples."""


@dataclass(frozen=True)
class Options:
    """Draw images from a network that was trained with --method jem, and show the training images nearest to them.

    postgrad sample --model runs/train --n 64 --class 3 --out runs/samples
    """

    sample: SampleOptions = field(default_factory=SampleOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Draw, write, say where."""
    required(options.model.model, "--model")
    with prepared(options.machine):
        directory, drawn = _drawn(options)
    if options.machine.json:
        print_json({"directory": directory, "files": drawn.files, **drawn.figures})
    else:
        print(f"{directory}: {', '.join(drawn.files)}")
        if "frechet_distance" in drawn.figures:
            ours, theirs = (drawn.figures[f"frechet_distance{name}"] for name in ("", "_of_training"))
            print(f"Fréchet distance to test images: {ours:.2f}; of as many training images: {theirs:.2f}")
    return 0


def _drawn(options: Options) -> tuple[Path, Any]:
    from postgrad._loading import arm_directory
    from postgrad.cli.classifiers import is_saved, saved_classifier
    from postgrad.methods.energy_samples import Chains
    from postgrad.models.network import NetworkClassifier
    from postgrad.studies.sampling import write_samples

    chosen, model = options.sample, str(options.model.model)

    def network(flag: str, name: str, settings: ModelOptions) -> NetworkClassifier:
        if not is_saved(name) or not Path(name).expanduser().is_dir():
            raise UserError(f"{flag} {name}: that takes a trained network; name a run, or one of its arms")
        found = saved_classifier(name, settings, {}, options.machine.device or "auto")
        if not isinstance(found, NetworkClassifier):
            raise UserError(f"{flag} {name}: that takes a network, this is a {type(found).__name__}")
        return found

    classifier = network("--model", model, options.model)
    features = network("--features", str(chosen.features), ModelOptions()) if chosen.features else None
    place = arm_directory(model)
    chains = Chains.load(place)
    if chains is None:
        say(f"note: {model} was not trained with --method jem, so that chains begin at noise and lead to little")
    label = None if chosen.label is None else _class_number(chosen.label, classifier.class_names)
    training, test = _images(options, place)
    if features is not None and (training is None or test is None):
        raise UserError("--features compares samples with test images; name data that have some, --data")
    directory = fresh_directory(chosen.out or Path("runs/samples"))
    drawn = write_samples(
        classifier,
        directory,
        chosen.n or 64,
        label=label,
        chains=chains,
        steps=chosen.steps,
        seed=chosen.seed or 0,
        training=training,
        test=test,
        features=features,
    )
    return directory, drawn


def _class_number(word: str, names: Sequence[str]) -> int:
    if word in names:
        return names.index(word)
    if word.isdigit() and int(word) < len(names):
        return int(word)
    raise unknown_name("class", word, names)


def _images(options: Options, place: Path) -> tuple[Any, Any]:
    """Training and test images of --data, or of the run itself; None where neither says which."""
    from postgrad.data.datasets import load_dataset
    from postgrad.validation import read_yaml

    data = options.data
    settings: dict[str, Any] = {"data": data.data, "data_dir": data.data_dir, "limit": data.limit}
    folders = [place, *place.resolve().parents[:2]]
    configs = [folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()]
    if data.data is None and configs:
        settings |= {
            name: value for name in ("data", "data_dir", "limit") if (value := read_yaml(configs[0]).get(name))
        }
    if settings["data"] is None:
        say("note: no --data, so that the nearest training images are not shown")
        return None, None
    dataset = load_dataset(
        settings["data"], data_dir=settings["data_dir"], limit=settings["limit"], memory=data.memory or "8GB"
    )
    return dataset.train, dataset.test
