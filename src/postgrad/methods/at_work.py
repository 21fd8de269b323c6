"""Training-time methods in a training: surgeries on its network, the loss it takes, means of its weights."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.data.preprocessing import Augmentation, Preprocessing, augment
from postgrad.errors import UserError
from postgrad.methods._feature import feature
from postgrad.methods.jem import JEM
from postgrad.methods.registry import LEARN_FROM_TEACHER, check_options, get_method
from postgrad.models.network import evaluating
from postgrad.training.state import copy_of_weights, load_weights

Options = Mapping[str, Any]


class MethodsAtWork:
    """A training's companion that brings any combination of training-time methods into it.

    >>> at_work = MethodsAtWork(model, [("frn", {}), ("powergrad", {"alpha": 0.25})], steps_per_epoch=100)
    >>> train(model, loss=at_work.loss, companions=[at_work], …)

    The surgeries are done at once, in their order, and `changed` says how many layers each has changed. `loss` takes
    the place of the cross-entropy. Weights are averaged after each step, and at the end their mean stays. Batches are
    inputs and labels and, for a loss that learns from a teacher, the teacher's word on the same pictures (`Lessons`).

    Args:
        methods: name and options of each, as `check_options` has them; several surgeries, but one loss, and one mean
            of the weights that is kept at the end.
        steps_per_epoch: how many steps go through all images.
        label_smoothing: of the loss, whichever it is.
        batches: inputs (n, C, H, W) as the training sees them, to be gone through more than once, for which batch
            normalisation's statistics are taken anew where other weights stand in place of those that it saw.
        training_set: what a loss that draws images of its own draws them from (JEM).

    Raises `UserError` for two losses or two such means, and whatever the methods refuse.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[tuple[str, Options]],
        *,
        steps_per_epoch: int,
        label_smoothing: float = 0.0,
        batches: Iterable[Tensor] | None = None,
        training_set: TrainingSet | None = None,
    ) -> None:
        chosen = [(get_method(name), check_options(name, dict(options))) for name, options in methods]
        losses = [(method, options) for method, options in chosen if method.shape == "loss"]
        means = [(method, options) for method, options in chosen if method.shape == "weights"]
        kept = [method.name for method, _ in means if not method.load().replaces]
        if len(losses) > 1:
            raise UserError(f"one training has one loss; give one of {', '.join(method.name for method, _ in losses)}")
        if len(kept) > 1:
            raise UserError(f"one mean of the weights is kept at the end; give one of {', '.join(kept)}")
        self._model = model
        self._label_smoothing = label_smoothing
        self._loss = losses[0] if losses else None
        self._weights = sorted(means, key=lambda mean: mean[0].name in kept)  # what is kept has the last word
        self._batches = batches
        self._training_set = training_set
        self.told: Callable[..., None] = lambda **_: None
        """Is called with what happened where the training went back to an earlier state."""
        self.steps_per_epoch = steps_per_epoch
        self.changed = {
            method.name: method.load()(model, **options) for method, options in chosen if method.shape == "surgery"
        }
        self._cross_entropy: Any = self._make_loss(1)
        self.parameters: list[nn.Parameter] = []
        """Those of the loss itself, which the training is given beside the network's."""
        self._first_of_loss: dict[str, Tensor] = {}
        self._means: list[Any] = []
        with warnings.catch_warnings():  # made again with the training's own optimizer; what is wrong is said now
            warnings.simplefilter("ignore", UserWarning)
            self._make_means(torch.optim.SGD(model.parameters(), lr=1.0))

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The mean loss of a batch of inputs (n, C, H, W), labels (n,) and what a teacher says, where there is one."""
        inputs, labels = batch[:2]
        if isinstance(self._cross_entropy, JEM):
            return self._cross_entropy.loss(inputs, labels, network)
        teacher = batch[2] if len(batch) > 2 else None
        if (hint := self._hint) is None:
            return self.cross_entropy(network(inputs), labels, teacher)
        with feature(self._model, hint) as seen:
            logits = network(inputs)
        return self.cross_entropy(logits, labels, teacher, seen.value)

    def cross_entropy(
        self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None, student_feature: Tensor | None = None
    ) -> Tensor:
        """The same, of logits (n, C) and labels (n,)."""
        if isinstance(self._cross_entropy, JEM):
            raise UserError("jem: its loss needs the network and its inputs; take JEM(model, images, labels)")
        if not self.learns_from_teacher:
            return self._of(logits, labels)
        if teacher is None:
            raise UserError(
                "distillation: there is no teacher; name one with --teacher, or give its word in each batch"
            )
        more = (student_feature,) if self._hint else ()
        return self._of(logits, teacher, labels, *more)

    def get_ready(self, batch: tuple[Tensor, ...]) -> None:
        """Make what the loss makes when it is first called, with a batch that is like the training's.

        The network stays as it is. `parameters` are there from then on.
        """
        with evaluating(self._model):
            self.loss(self._model, batch)
        self._first_of_loss = {name: value.clone() for name, value in self._state_of_loss().items()}
        self.parameters = list(self._cross_entropy.parameters()) if isinstance(self._cross_entropy, nn.Module) else []

    def begin(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        if self.parameters:  # timing a step may have changed them
            self._cross_entropy.load_state_dict(self._first_of_loss)
        elif isinstance(self._cross_entropy, JEM):
            self._cross_entropy.begin(optimizer)
        else:
            self._cross_entropy = self._make_loss(steps)
        self._means = self._make_means(optimizer)

    def after_step(self) -> None:
        if isinstance(self._cross_entropy, JEM):
            self._cross_entropy.after_step()
        if self._changing_loss is not None:
            self._changing_loss.advance()
        for mean in self._means:
            mean.update(self._model)

    def finish(self) -> None:
        for mean in self._means:
            with mean.averaged:
                weights = copy_of_weights(self._model)
            load_weights(self._model, weights)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self._state_of_loss(), "means": [mean.state_dict() for mean in self._means]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self._cross_entropy, nn.Module | JEM):
            self._cross_entropy.load_state_dict(state["loss"])
        for mean, its_own in zip(self._means, state["means"], strict=True):
            mean.load_state_dict(its_own)

    def _make_means(self, optimizer: torch.optim.Optimizer) -> list[Any]:
        settled = {"steps_per_epoch": self.steps_per_epoch, "batches": self._batches, "optimizer": optimizer}
        return [_call(method.load(), (self._model,), settled, options) for method, options in self._weights]

    @property
    def energy_model(self) -> JEM | None:
        """The loss, if it makes an energy model of the network."""
        return self._cross_entropy if isinstance(self._cross_entropy, JEM) else None

    @property
    def averages(self) -> bool:
        """Whether means of the weights are kept."""
        return bool(self._weights)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the loss needs the word of a teacher."""
        return self._loss is not None and self._loss[0].name in LEARN_FROM_TEACHER

    @property
    def teacher_hint(self) -> str | None:
        """The teacher's layer whose output is its word; None where that is its logits."""
        found: str | None = getattr(self._cross_entropy, "teacher_hint", None)
        return found

    @property
    def _hint(self) -> str | None:
        """The same of the student's."""
        found: str | None = getattr(self._cross_entropy, "hint", None)
        return found

    def _of(self, *parts: Tensor | None) -> Tensor:
        value: Tensor = self._cross_entropy(*parts)
        return value

    def _state_of_loss(self) -> dict[str, Any]:
        kept = isinstance(self._cross_entropy, nn.Module | JEM)
        return self._cross_entropy.state_dict() if kept else {}

    @property
    def _changing_loss(self) -> Any:
        """The loss, if it is one that changes from step to step."""
        return self._cross_entropy if hasattr(self._cross_entropy, "advance") else None

    def _make_loss(self, steps: int) -> Any:
        if self._loss is None:
            return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
        method, options = self._loss
        if method.load() is JEM and self._training_set is None:
            raise UserError("jem: it draws training images by itself; take JEM(model, images, labels) in your own loop")
        settled: dict[str, Any] = {"label_smoothing": self._label_smoothing}
        if any(isinstance(value, tuple) for value in options.values()):  # from one value to another, over all steps
            settled["steps"] = steps
        if (given := self._training_set) is not None:
            settled |= {"images": given.images, "labels": given.labels, "augmented": given.augmented}
            settled |= {"prepare": given.preprocess, "model": self._model, "told": lambda **what: self.told(**what)}
        return _call(method.load(), (), settled, options)


@dataclass(frozen=True)
class TrainingSet:
    """All training images (N, C, H, W), their labels (N,), −1 where there is none, and what the network sees of them.

    >>> TrainingSet(images, labels, preprocess, augmentation)
    """

    images: Tensor
    labels: Tensor
    preprocess: Preprocessing
    augmentation: Augmentation

    def augmented(self, images: Tensor) -> Tensor:
        """What an energy model sees of some in training, from −1 to 1; random numbers are torch's own."""
        return augment(images, self.preprocess, self.augmentation, torch.default_generator)


@dataclass(frozen=True)
class InputBatches:
    """All images (N, C, H, W) once, as a training sees them, in batches and in an order of the seed.

    >>> for inputs in InputBatches(images, preprocess, augmentation, batch_size=128, seed=0, device=device):
    ...     model(inputs)
    """

    images: Tensor
    preprocess: Preprocessing
    augmentation: Augmentation
    batch_size: int
    seed: int
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for indices in torch.randperm(len(self.images), generator=generator).split(self.batch_size):
            yield augment(self.images[indices], self.preprocess, self.augmentation, generator).to(self.device)


def _call(target: Callable[..., Any], first: tuple[Any, ...], settled: Options, options: Options) -> Any:
    """Call it with what it takes of `settled`, and with all the options, which stand above."""
    taken = inspect.signature(target).parameters
    return target(*first, **{**{name: value for name, value in settled.items() if name in taken}, **options})
