"""A network as a classifier: images in, classes and probabilities out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from postgrad.data.inputs import image_tensor, label_tensor
from postgrad.data.preprocessing import Preprocessing
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.models.checkpoints import save
from postgrad.models.source import source_of
from postgrad.models.weights import check_finite


class NetworkClassifier:
    """A network with the surface of a scikit-learn classifier.

    >>> classifier = NetworkClassifier(network, preprocess=network.preprocess)
    >>> classifier.predict_proba(images).shape
    (1000, 10)

    `images` are uint8 (N, C, H, W), or floats in [0, 1]; `preprocess` turns them into what the network sees. The
    network is moved to `device` ("auto" is a GPU where there is one) and evaluated in eval mode, `batch_size` images at
    a time. Images that the network cannot take raise `UserError` with what was expected and what was given.
    """

    inference_passes = 1

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocess: Preprocessing,
        class_names: Sequence[str] | None = None,
        device: str = "auto",
        batch_size: int = 256,
    ) -> None:
        check_finite(model.state_dict(), "the network")
        self.device = pick_device(device)
        self.model = model.to(self.device)
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.class_names = _class_names(model, class_names)

    @property
    def classes_(self) -> np.ndarray:
        """The class indices, 0 … C−1."""
        return np.arange(len(self.class_names))

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases."""
        counted = getattr(self.model, "num_parameters", None)  # a graph that torch does not look into
        return counted if isinstance(counted, int) else sum(p.numel() for p in self.model.parameters())

    def logits(self, images: Tensor | np.ndarray) -> Tensor:
        """The network's outputs (N, C), float32 on the CPU."""
        stored = image_tensor(images)
        with evaluating(self.model):
            return torch.cat([self._forward(batch) for batch in stored.split(self.batch_size)])

    def inputs(self, images: Tensor) -> Tensor:
        """What the network sees of a batch of images: preprocessed, on its device, in its floating point type."""
        return self.preprocess(images.to(self.device)).to(_dtype(self.model))

    def predict_proba(self, images: Tensor | np.ndarray) -> np.ndarray:
        """The probabilities of the classes (N, C), float32."""
        return self.logits(images).softmax(1).numpy()

    def predict(self, images: Tensor | np.ndarray) -> np.ndarray:
        """The most probable class of each image (N,), as an index."""
        return self.logits(images).argmax(1).numpy()

    def score(self, images: Tensor | np.ndarray, labels: Any) -> float:
        """The share of images that are classified as labelled."""
        expected = label_tensor(labels, len(images), len(self.class_names)).numpy()
        return float(np.mean(self.predict(images) == expected))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the network into a directory that `postgrad.load` reads."""
        save(self.model, path, preprocess=self.preprocess, class_names=self.class_names)

    def _forward(self, images: Tensor) -> Tensor:
        x = self.inputs(images)
        with taking(self.model, x, images):
            logits = self.model(x)
        return self._checked(logits, len(x)).float().cpu()

    def _checked(self, logits: Any, count: int) -> Tensor:
        classes = len(self.class_names)
        if not isinstance(logits, Tensor) or logits.shape != (count, classes):
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise UserError(f"the network must return logits of shape ({count}, {classes}), it returned {got}")
        if not logits.isfinite().all():
            raise UserError("the network returned NaN or infinite logits; check its weights and the preprocessing")
        return logits


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluate a network: eval mode and no autograd inside the block, every module's own mode again after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def taking(model: nn.Module, x: Tensor, stored: Tensor) -> Iterator[None]:
    """Give a network preprocessed images inside the block; those that it cannot take are told from a bug."""
    check_shape(model, x, stored)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _misfit(stored, x, str(error).splitlines()[0]) from error


def check_shape(model: nn.Module, x: Tensor, stored: Tensor) -> None:
    """Refuse preprocessed images that do not fit the network's attribute `input_shape` (C, H, W; None is any)."""
    expected = getattr(model, "input_shape", None)
    if expected is None:
        return
    if any(want not in (None, got) for want, got in zip(expected, x.shape[1:], strict=True)):
        wanted = "×".join("any" if side is None else str(side) for side in expected)
        raise _misfit(stored, x, f"it takes {wanted}")


def _misfit(stored: Tensor, x: Tensor, reason: str) -> UserError:
    before, after = ("×".join(map(str, images.shape[1:])) for images in (stored, x))
    return UserError(
        f"the network cannot take these images: {reason}; got {before} (channels×height×width), {after} after "
        f"preprocessing; check the data, --size and --crop"
    )


def _class_names(model: nn.Module, given: Sequence[str] | None) -> tuple[str, ...]:
    names = given if given is not None else getattr(model, "class_names", None)
    if names is not None:
        return tuple(str(name) for name in names)
    source = source_of(model)
    if source is None:
        raise UserError("the number of classes is not known: give class_names=")
    return tuple(str(number) for number in range(source.num_classes))


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
