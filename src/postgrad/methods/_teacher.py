"""A teacher of any kind, one or several: what it says of pictures as they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods._feature import feature
from postgrad.models.network import evaluating, taking
from postgrad.models.preprocessing import own_preprocessing
from postgrad.progress import hidden

_ASKED = 32
"""Pictures by whose answers a teacher is known again."""


class Teacher:
    """What a student learns from: a network, a fitted classifier, or several of them.

    >>> teacher = Teacher([load("runs/teacher")], num_classes=10)
    >>> teacher.logits(images).shape
    torch.Size([128, 10])

    A network says its logits. A second-stage classifier says log-probabilities, of its `decision_function` where it has
    one. Several are an ensemble, whose word is the mean of their log-probabilities: at every temperature it gives the
    same probabilities as the mean of logits, and members that know no logits count alike.

    Parameters
    ----------
    members : networks, and classifiers with `predict_proba` of stored images.
    preprocess : how pictures reach a network that has no word of its own on that.
    class_names : the student's, in their order; a teacher that has the same in another order is refused.
    device : where networks are put; None leaves them where they are.

    Pictures (N, C, H, W) are uint8, or floating point in [0, 1]; each member prepares them as its own preprocessing
    says. Networks are asked in evaluation mode without gradients. Raises `UserError` for a teacher of other classes,
    for pictures that it cannot take, and for answers that are not finite.
    """

    def __init__(
        self,
        members: Sequence[Any],
        *,
        num_classes: int,
        preprocess: Preprocessing | None = None,
        class_names: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> None:
        if not members:
            raise UserError("distillation: there is no teacher; name at least one")
        self.members = [member.to(device) if device and isinstance(member, nn.Module) else member for member in members]
        self.num_classes = num_classes
        self._preprocess = preprocess or Preprocessing()
        for member in self.members:
            self._check(member, class_names)

    def logits(self, pictures: Tensor) -> Tensor:
        """Logits, or log-probabilities, (N, C): float32, or the network's float64."""
        if len(self.members) == 1:
            return self._answer(self.members[0], pictures)
        each = [self._answer(member, pictures).log_softmax(1) for member in self.members]
        return torch.stack([answer.to(each[0].device) for answer in each]).mean(0)

    def feature(self, pictures: Tensor, path: str) -> Tensor:
        """What the module of that dotted path gives, in a teacher that is one network."""
        (network,) = self.members if len(self.members) == 1 else (None,)
        if not isinstance(network, nn.Module):
            raise UserError(
                "distillation: features are compared with those of one network; give one network as teacher"
            )
        with feature(network, path) as seen:
            self._answer(network, pictures)
        if seen.value is None:
            raise UserError(f"distillation: the teacher's layer {path} has no part in its answer; name another")
        return seen.value

    def fingerprint(self, pictures: Tensor) -> str:
        """Hexadecimal digits by which a teacher is known again: a digest of what it says of the first pictures."""
        answers = self.logits(pictures[:_ASKED]).cpu().numpy()
        return hashlib.sha256(np.ascontiguousarray(answers).tobytes()).hexdigest()[:16]

    def check_pictures(self, preprocess: Preprocessing) -> None:
        """Refuse a teacher that cannot see the student's pictures, which have been resized already.

        A network that resizes pictures itself takes any; another knows them in the size in which they are stored.
        """
        for member in self.members:
            if preprocess.size is not None and not self._preprocessing(member).size:
                raise UserError(
                    f"the student sees images resized to {preprocess.size} pixels, and the teacher as they are stored; "
                    f"give a teacher that resizes too, or a student without --size"
                )

    def _check(self, member: Any, class_names: Sequence[str]) -> None:
        if not isinstance(member, nn.Module) and not hasattr(member, "predict_proba"):
            raise UserError(f"a teacher is a network or a classifier, got a {type(member).__name__}")
        names = tuple(getattr(member, "class_names", None) or ())
        if names and len(names) != self.num_classes:
            raise _other_classes(len(names), self.num_classes)
        if names != tuple(class_names) and sorted(names) == sorted(class_names):
            raise UserError(
                "the teacher knows the same classes in another order; give one that was fitted on these data"
            )

    def _answer(self, member: Any, pictures: Tensor) -> Tensor:
        answer = (
            self._of_network(member, pictures) if isinstance(member, nn.Module) else _of_classifier(member, pictures)
        )
        if answer.shape != (len(pictures), self.num_classes):
            raise _other_classes(answer.shape[-1] if answer.ndim == 2 else tuple(answer.shape[1:]), self.num_classes)
        if not bool(answer.isfinite().all()):
            raise UserError("the teacher's answers are NaN or infinite; check its weights and its preprocessing")
        return answer

    def _of_network(self, network: nn.Module, pictures: Tensor) -> Tensor:
        weights = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
        preprocess = self._preprocessing(network)
        pictures = pictures.to(weights.device)
        if pictures.is_floating_point() and not preprocess.per_image_standardise:
            pictures = pictures.clamp(0, 1)  # contrast leads out of what a fixed mean and deviation are for
        inputs = preprocess(pictures).to(weights.dtype)
        with evaluating(network), taking(network, inputs, pictures):
            answer: Tensor = network(inputs)
        return answer if answer.dtype == torch.float64 else answer.float()

    def _preprocessing(self, member: Any) -> Preprocessing:
        named = own_preprocessing(member) or getattr(member, "preprocess_", None)  # a fitted estimator's
        return named or self._preprocess


def _of_classifier(classifier: Any, pictures: Tensor) -> Tensor:
    with hidden():
        if hasattr(classifier, "decision_function"):
            return torch.as_tensor(classifier.decision_function(pictures)).float().log_softmax(1)
        probabilities = torch.as_tensor(classifier.predict_proba(pictures)).float()
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def _other_classes(theirs: object, ours: int) -> UserError:
    return UserError(
        f"the teacher knows {theirs} classes, the student's data have {ours}; give a teacher that was trained on the "
        "same classes"
    )
