"""The list of methods: what each is, needs and costs; how `--method NAME[:key=value,…]` is read. Imports no torch."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from postgrad.errors import UserError, unknown_name

Shape = Literal["surgery", "loss", "weights", "second stage", "growth"]

CONTROLS_OF_SHAPE: dict[Shape, tuple[str, ...]] = {
    "second stage": ("control-finetune", "control-features", "control-more-data", "control-same-price"),
    "surgery": ("control-same-time",),
    "loss": ("control-same-time",),
    "weights": ("control-same-time",),
}
"""The fair controls that a method of each shape asks for, in the order in which they are made."""

TRAINING_SHAPES: tuple[Shape, ...] = ("surgery", "loss", "weights")
"""Shapes of methods that are part of a network's training, and can be combined in one."""

SETTLED = frozenset(
    {"model", "optimizer", "steps_per_epoch", "batches", "images", "labels", "prepare", "augmented", "told"}
)
"""Parameters that the training settles which a method is part of, so that they are no options of it."""

LEARN_FROM_TEACHER = frozenset({"distillation"})
"""Methods that need a teacher, which `--teacher` names."""

LEARN_UNLABELLED = frozenset({"jem"})
"""Methods that learn from images without a label, and without a teacher."""

_SHORT = {"distillation": {"T": "temperature"}}
"""Options of methods under the names that papers give them."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Method:
    """What is to be known about one method before it is imported; `target` is `module:class`."""

    name: str
    title: str
    idea: str
    paper: str
    shape: Shape
    needs: str
    costs: str
    failures: str
    licence: str
    target: str

    def load(self) -> Any:
        """Import the class (or function) that does the work."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


_ENTRIES = (
    Method(
        name="gradnet",
        title="GradNet: classify in gradient space",
        idea="A small network reads the gradients of the trained network under every assumed label.",
        paper="arXiv:1807.06630",
        shape="second stage",
        needs="a trained classifier, and training images that it has not seen",
        costs="one forward and one backward pass for each class at prediction; gradient entries × hidden units weights",
        failures=(
            "gains little when the base has already fitted the images that GradNet learns from; fine-tuning the base "
            "on the same images for the same time is the control to beat"
        ),
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.gradnet:GradNet",
    ),
    Method(
        name="mapper",
        title="Mapper classifier: topology that predicts on new points",
        idea="An image is described by the clusters that it falls into, within intervals of 20 latent coordinates.",
        paper="arXiv:1910.08103",
        shape="second stage",
        needs="training images; of the network only its classes, or its features or gradients as latent coordinates",
        costs=(
            "n²/2 distances between n training images, and n for each new one; the training images are kept, and are "
            "part of what is saved"
        ),
        failures=(
            "compares pixels, so it falls behind a convolutional network on plain test images, the more the more "
            "images of a class differ; plain nearest neighbours (knn) and an MLP on the coordinates (pca_mlp) are the "
            "controls to beat; having no gradient, it only seems immune to attacks that need one"
        ),
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.mapper:MapperClassifier",
    ),
    Method(
        name="knn",
        title="Nearest neighbours in pixel space",
        idea="Mapper's neighbours and weights without its nodes: a control of mapper.",
        paper="arXiv:1910.08103",
        shape="second stage",
        needs="training images",
        costs="n distances for each new image; the training images are kept, and are part of what is saved",
        failures="compares pixels; it is here as Mapper's control",
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.mapper_controls:NearestNeighbours",
    ),
    Method(
        name="pca_mlp",
        title="An MLP on latent coordinates",
        idea="Mapper's coordinates and network without its nodes: a control of mapper.",
        paper="arXiv:1910.08103",
        shape="second stage",
        needs="training images",
        costs="a product with 20 axes for each image, and a small network",
        failures="sees only 20 numbers of an image; it is here as Mapper's control",
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.mapper_controls:CoordinatesMLP",
    ),
    Method(
        name="powergrad",
        title="PowerGrad: flattened probabilities in the backward pass",
        idea="Cross-entropy whose backward pass sees softmax(αz) instead of softmax(z).",
        paper="arXiv:2111.12495",
        shape="loss",
        needs="a network trained with cross-entropy on labels or probabilities",
        costs="one more softmax than cross-entropy in each step, and less memory; nothing at prediction",
        failures=(
            "its gradient is that of cross-entropy at temperature 1/α, which with a tuned learning rate is the control "
            "to beat; logits grow by about 1/α, so probabilities at z are overconfident; no gain where training "
            "accuracy is saturated"
        ),
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.powergrad:PowerGradCrossEntropy",
    ),
    Method(
        name="temperature",
        title="Cross-entropy at a temperature",
        idea="Cross-entropy of softmax(z/T) times T: PowerGrad's gradient at α = 1/T, with its own value.",
        paper="arXiv:2111.12495",
        shape="loss",
        needs="a network trained with cross-entropy",
        costs="nothing",
        failures="it is a rescaling of the logits, which a network can undo; it is here as PowerGrad's control",
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.powergrad:TemperatureCrossEntropy",
    ),
    Method(
        name="distillation",
        title="Distillation: learn from a teacher's answers too",
        idea="The loss is the cross-entropy with the labels plus a distance to what a teacher says of the image.",
        paper="arXiv:1503.02531",
        shape="loss",
        needs="a teacher of the same classes: a trained network, a second-stage classifier, or several of them",
        costs="a forward pass of the teacher on each batch, unless its answers are kept; nothing at prediction",
        failures=(
            "gains nothing from a teacher that is no better than the student, or that is sure of all its training "
            "images; the same network trained on labels for the same time is the control to beat"
        ),
        licence="Apache-2.0; patents were not searched",
        target="postgrad.methods.distillation:DistillationLoss",
    ),
    Method(
        name="jem",
        title="JEM: a classifier that is also an energy model",
        idea="Logits define log p(x) too; images are made likelier than samples that chains draw from the network.",
        paper="arXiv:1912.03263",
        shape="loss",
        needs="images from −1 to 1, with labels or without; JEM itself a network without batch normalisation",
        costs="5 (sada-jem) to 20 (jem) forward and backward passes more in each step; nothing at prediction",
        failures=(
            "diverges often, which is watched: training goes back to a good state, at most three times; a point or "
            "more of accuracy; the same network with its temperature fitted is the control to beat"
        ),
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.jem:JEM",
    ),
    Method(
        name="fixed_classifier",
        title="Fixed classifier: a last layer that is not trained",
        idea="The last layer's weights are fixed rows, far from each other; one scale and the biases are learned.",
        paper="arXiv:1801.04540",
        shape="surgery",
        needs="a network that ends in a linear layer or a 1×1 convolution, and training with the new layer in place",
        costs="nothing; features × classes fewer parameters, and less time from thousands of classes on",
        failures=(
            "does nothing good without training; with far more classes than features the rows are only nearly "
            "orthogonal; poor in language models"
        ),
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.fixed_classifier:apply_fixed_classifier",
    ),
    Method(
        name="frn",
        title="FRN + TLU: normalisation without a batch",
        idea="Each map of each image is divided by the root of its own mean square and cut off at a learned threshold.",
        paper="arXiv:1911.09737",
        shape="surgery",
        needs="batch normalisation in a network that torch.fx can follow; a learning rate warmed up from 0 and smooth",
        costs="one parameter more a channel; no running statistics; keeps one tensor for the backward pass, not two",
        failures=(
            "diverges without warm-up; no gain on plain ResNet-50; learns slowly where maps have one place; ReLU6 and "
            "SiLU stay behind FRN as they are"
        ),
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.frn:apply_frn",
    ),
    Method(
        name="mimicnorm",
        title="MimicNorm: centred filters in place of batch normalisation",
        idea="Each filter loses its mean, and only the logits are normalised; no other batch normalisation is left.",
        paper="arXiv:2010.09278",
        shape="surgery",
        needs="a network that is yet to be trained, with convolutions of more than 50 weights a filter",
        costs="a copy of the centred weights a step; memory for activations is saved, a third or more at batch 256",
        failures=(
            "refuses pre-activation networks and DenseNet; a batch of one image cannot be trained on; at small batches "
            "the copy of the weights outweighs what is saved"
        ),
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.mimicnorm:apply_mimicnorm",
    ),
    Method(
        name="fixup",
        title="Fixup: residual networks without normalisation, by their start",
        idea="Branches start small and end in zero, so that a deep residual network trains without normalisation.",
        paper="arXiv:1901.09321",
        shape="surgery",
        needs="a residual network that is yet to be trained",
        costs="none; normalisation's time and memory are saved",
        failures="without a regulariser such as mixup it overfits more than a network with normalisation",
        licence="Apache-2.0; no patent known",
        target="postgrad.methods.fixup:apply_fixup",
    ),
    Method(
        name="norm",
        title="Another normalisation: group, layer, batch renormalisation, or none",
        idea="The normalisation that a published one is compared with, in the place of batch normalisation.",
        paper="arXiv:1803.08494",
        shape="surgery",
        needs="a network with BatchNorm2d",
        costs="as batch normalisation",
        failures="group and layer normalisation lose accuracy at large batches; without any, deep networks may diverge",
        licence="Apache-2.0; patents were not searched",
        target="postgrad.methods.norm:apply_norm",
    ),
    Method(
        name="weight_sampling",
        title="Periodic weight sampling: train on from the mean of the last weights",
        idea="The mean of the weights over an epoch's last steps replaces them, and training goes on from it.",
        paper="arXiv:1905.05774",
        shape="weights",
        needs="a training with weights in float32, and the number of steps in an epoch",
        costs="a read and write of the weights at each sampled step; one copy of the weights in memory, two for PSWM",
        failures=(
            "nothing to average at a small learning rate; the mean lags while weights still travel far; SWA, EMA or "
            "LAWA, which only evaluate a mean, are the controls to beat"
        ),
        licence="Apache-2.0; claimed by US patent 11,922,316; SWA, EMA and LAWA are alternatives without it",
        target="postgrad.methods.weight_sampling:PeriodicWeightSampling",
    ),
    Method(
        name="swa",
        title="SWA: the mean of the weights at the ends of the last epochs",
        idea="Weights from the ends of epochs late in a training, averaged, lie nearer to the middle of a flat region.",
        paper="arXiv:1803.05407",
        shape="weights",
        needs="a training with a learning rate that keeps the weights moving, and the number of steps in an epoch",
        costs="a read and write of the weights once an epoch, one copy of them in memory, and new BatchNorm statistics",
        failures="a learning rate that has already fallen to nothing leaves nothing to average",
        licence="Apache-2.0; torch.optim.swa_utils does the averaging",
        target="postgrad.methods.weight_averages:StochasticWeightAveraging",
    ),
    Method(
        name="ema",
        title="EMA: an exponential mean of the weights",
        idea="A mean over all steps that forgets old ones, evaluated in place of the last weights.",
        paper="Polyak and Juditsky, 1992",
        shape="weights",
        needs="a training of many more steps than 1/(1 − decay)",
        costs="a read and write of the weights at each step, and one copy of them in memory",
        failures="in a short training the mean still remembers the first weights",
        licence="Apache-2.0; torch.optim.swa_utils does the averaging",
        target="postgrad.methods.weight_averages:ExponentialMovingAverage",
    ),
    Method(
        name="lawa",
        title="LAWA: the mean of the last k epochs' weights",
        idea="The mean of the weights at the ends of the last k epochs, evaluated all through a training.",
        paper="arXiv:2209.14981",
        shape="weights",
        needs="a training, and the number of steps in an epoch",
        costs="k copies of the weights in memory, and new BatchNorm statistics",
        failures="in the first epochs weights travel far, and their mean lags behind",
        licence="Apache-2.0; torch.optim.swa_utils does the averaging",
        target="postgrad.methods.weight_averages:LatestWeightAveraging",
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ENTRIES}


def get_method(name: str) -> Method:
    """The entry of that name; an unknown one is a `UserError` with the nearest name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Read a method and its options from one command-line word.

    >>> parse_method("gradnet:epochs=10,hidden=5+100+25,normalise=scale+power")
    ('gradnet', {'epochs': 10, 'hidden': (5, 100, 25), 'normalise': 'scale+power'})
    """
    name, _, settings = text.partition(":")
    method = get_method(name.strip())
    source = f"method '{text}'"
    options = parse_settings(settings, source=source)
    for short, long in _SHORT.get(method.name, {}).items():
        if short in options and long in options:
            raise UserError(f"{source}: '{short}' is '{long}', which is given too; leave one out")
        if short in options:
            options[long] = options.pop(short)
    return method.name, options


def parse_settings(text: str, *, source: str, as_written: Collection[str] = ()) -> dict[str, Any]:
    """Read `key=value,…`; values are YAML, and numbers joined by `+` are a tuple. `source` names the text in errors.

    Values of keys in `as_written` are words, whatever they look like.
    """
    settings: dict[str, Any] = {}
    for part in _split_at_commas(text):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier() or not value.strip():
            raise UserError(f"{source}: expected key=value pairs with commas between them, got '{part.strip()}'")
        if key in settings:
            raise UserError(f"{source}: '{key}' is given twice")
        word = value.strip()
        settings[key] = word if key in as_written else _parse_value(word, source=source)
    return settings


def check_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options as the method's class takes them (this imports it); a wrong name or type is a `UserError`."""
    entry = get_method(name)
    settled = SETTLED if entry.shape in TRAINING_SHAPES else frozenset({"model"})
    return checked_options(name, entry.load(), options, settled=settled)


def checked_options(
    name: str, target: Any, options: Mapping[str, Any], *, settled: Collection[str] = ()
) -> dict[str, Any]:
    """The options as a class or function takes them, but for its `settled` ones; `name` stands in error messages."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    known = [key for key in inspect.signature(target).parameters if key not in settled]
    for key in options:
        if key not in known:
            raise unknown_name(f"option of {name}", key, known)
    return {key: _checked(f"{name}:{key}", hints.get(key, Any), value) for key, value in options.items()}


def _checked(option: str, kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        wanted = [each["msg"].removeprefix("Input should be ").partition(",")[0] for each in error.errors()]
        wanted = ["a list" if "Sequence" in each else each for each in wanted]
        raise UserError(f"{option}: should be {' or '.join(dict.fromkeys(wanted))}, got {value!r}") from error


def _split_at_commas(text: str) -> list[str]:
    """Split at the commas that stand outside brackets; nothing gives no parts."""
    parts = re.split(r",(?![^\[{(]*[\]})])", text)
    return [] if parts == [""] else parts


def _parse_value(text: str, *, source: str) -> Any:
    if _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    if "+" in text.strip("+") and all(_NUMBER.fullmatch(part) for part in text.split("+")):
        return tuple(_parse_value(part, source=source) for part in text.split("+"))
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: '{text}' is not a value that YAML can read") from error
