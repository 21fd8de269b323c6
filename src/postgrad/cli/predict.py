"""`postgrad predict`: classes and probabilities of images, as a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postgrad.cli.console import prepared, print_json, say
from postgrad.cli.options import (
    DataOptions,
    File,
    MachineOptions,
    ModelOptions,
    PreprocessOptions,
    Text,
    preprocess_flags,
    required,
)
from postgrad.errors import UserError
from postgrad.files import write_atomic


@dataclass(frozen=True)
class OutputOptions:
    """What comes out."""

    out: File = None
    """The CSV: file, class, and one probability for each class. Default: - (standard output)."""
    classes: Text = None
    """Class names with commas between them, for a network named with --weights, which does not know them."""


@dataclass(frozen=True)
class Options:
    """Predict the classes of images: every picture below a folder, the test images of a data set, or of an npz file.

    postgrad predict --model runs/demo/gradnet --data folder:new_pictures --out predictions.csv
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Load, predict, write."""
    required(options.model.model, "--model")
    required(options.data.data, "--data")
    out = options.output.out
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it, such as {out / 'predictions.csv'}")
    to_file = out is not None and out != Path("-")
    with prepared(options.machine):
        names, class_names, probabilities = _predictions(options)
    if to_file:
        assert out is not None
        write_atomic(out, as_csv(names, class_names, probabilities))
        say(f"{out}: {len(names)} predictions")
    if options.machine.json:
        print_json({"file": out if to_file else None, "predictions": list(_records(names, class_names, probabilities))})
    elif not to_file:
        print(as_csv(names, class_names, probabilities), end="")
    return 0


def as_csv(names: Sequence[str], class_names: Sequence[str], probabilities: Any) -> str:
    """The columns file, class, p_CLASS, …; one line for each image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", *(f"p_{name}" for name in class_names)])
    for name, row in zip(names, probabilities, strict=True):
        writer.writerow([name, class_names[int(row.argmax())], *(f"{value:.6g}" for value in row)])
    return text.getvalue()


def _records(names: Sequence[str], class_names: Sequence[str], probabilities: Any) -> Iterator[dict[str, Any]]:
    for name, row in zip(names, probabilities, strict=True):
        values = dict(zip(class_names, map(float, row), strict=True))
        yield {"file": name, "class": class_names[int(row.argmax())], "probabilities": values}


def _predictions(options: Options) -> tuple[Sequence[str], Sequence[str], Any]:
    from postgrad.cli.classifiers import Pictures, is_saved, made_for, named_classifier, saved_classifier

    model = str(options.model.model)
    flags = preprocess_flags(options.preprocess)
    device = options.machine.device or "auto"
    if is_saved(model):
        classifier = saved_classifier(model, options.model, flags, device)
        channels, side, square = made_for(classifier)
        size = classifier.preprocess.size or side
        images = _images(options, size, channels, square)
        if size and str(options.data.data).startswith("folder:"):
            say(f"note: larger pictures are reduced to a shorter side of {size} pixels, for which {model} was made")
    else:
        class_names = _class_names(model, options.output.classes)
        images = _images(options, flags.get("size"), None)
        _, *shape = images.images.shape
        pictures = Pictures(str(options.data.data), (shape[0], shape[1], shape[2]), class_names)
        classifier = named_classifier(model, options.model, flags, device, pictures)
    for note in images.notes:
        say(f"note: {note}")
    return images.names, classifier.class_names, classifier.predict_proba(images.images)


def _images(options: Options, size: int | None, channels: int | None, square: bool = False) -> Any:
    from postgrad.data.unlabelled import load_images

    data = options.data
    return load_images(
        str(data.data),
        data_dir=data.data_dir,
        limit=data.limit,
        size=size,
        square=square,
        channels=channels,
        memory=data.memory or "8GB",
    )


def _class_names(model: str, given: str | None) -> list[str]:
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"{model} does not know its classes; add --classes NAME,NAME,... (two or more, each once)")
    return names
