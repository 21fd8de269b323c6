"""Distillation: a network learns from the labels and from what a teacher says of the same images.

Idea. A teacher's probabilities say more of an image than its label does: which other classes it resembles. A smaller
network that learns from both may come closer to the teacher than labels alone would bring it. Images without a label
can be learnt from too, since the teacher answers to them as well (a transfer set).

How it trains and predicts. The loss is hard · CE(label) + soft · D(teacher, student), where D is by `kind`
- kd: T² · KL(softmax(t/T) ‖ softmax(z/T)) (Hinton et al.);
- dkd: T² · (α · TCKD + β · NCKD): the same KL in two parts, that of the target class against all others together, and
  that among the others, whose weight no longer shrinks where the teacher is sure (Zhao et al., eq. 7);
- logit-mse: the mean square of the logits' difference (Kim et al.), the limit of kd for large T up to a shift;
- fitnet: the mean square of the difference between a feature map of the teacher and a learned linear map of one of the
  student's (Romero et al., eq. 3);
- attention: the mean square of the difference between their attention maps (Zagoruyko and Komodakis, eq. 2).
Prediction is the network's own: one pass.

Cost. A forward pass of the teacher on each batch, unless its answers are kept (`--teacher-views`).

When it fails. A teacher hardly better than the student, or one that saw other classes. A student too small for it. A
teacher that is sure of all its training images says little more than their labels: raise T, or add other images.

Paper. G. Hinton, O. Vinyals, J. Dean, arXiv 1503.02531; DKD 2203.08679; logit MSE 2105.08919; FitNet 1412.6550;
attention transfer 1612.03928. Licence or patent note: Apache-2.0; patents were not searched.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError, unknown_name
from postgrad.methods._feature import feature as feature

Kind = Literal["kd", "dkd", "logit-mse", "fitnet", "attention"]

NO_LABEL = -1
"""Stands for the label of an image that has none."""

PUBLISHED_WEIGHTS: dict[str, tuple[float, float]] = {
    "kd": (0.1, 0.9),
    "dkd": (1.0, 1.0),
    "logit-mse": (0.0, 1.0),
    "fitnet": (1.0, 1.0),
    "attention": (1.0, 1000.0),
}
"""Of each kind the weights of labels and teacher: those of kd and dkd stand in the programs of arXiv 1910.10699 and
2203.08679, that of attention in its authors' own; logit-mse learns from the teacher alone. fitnet's 1 is ours: the 100
of 1910.10699 is for a regressor with batch normalisation, and the published one without diverges under it."""

_OF_FEATURES = ("fitnet", "attention")


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    kind: Literal["kd", "dkd", "logit-mse"] = "kd",
    temperature: float = 4.0,
    hard: float | None = None,
    soft: float | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """hard · cross-entropy with the labels + soft · distance to a teacher's logits, a mean over the batch.

    >>> with torch.no_grad():
    ...     teacher_logits = teacher(images)
    >>> loss = distillation_loss(student(images), teacher_logits, labels, kind="kd", temperature=4.0)
    >>> loss.backward()

    Parameters
    ----------
    logits, teacher_logits : (N, C), of a floating dtype. The teacher's get no gradient. What gives probabilities p
        gives logits too: log p.
    labels : (N,) int64; −1 where there is none: the cross-entropy is then the mean over those that there are (0 where
        there are none), the distance that over all images.
    kind : "kd", T²·KL of probabilities at temperature T (arXiv 1503.02531); "dkd", its two parts weighed by `alpha` and
        `beta` (2203.08679, eq. 7), where an image without a label has the teacher's first choice as its target; or
        "logit-mse", the mean over images and classes of (z − t)² (2105.08919).
    temperature : of kd and dkd.
    hard, soft : the weights; by default `PUBLISHED_WEIGHTS` of that kind.
    label_smoothing : of the cross-entropy.

    All is computed in float32 at least, in float64 for float64 logits, also under autocast. The distance of equal
    logits is exactly 0, and it stays finite where a probability is 0 or 1 to working precision. Raises `UserError` for
    shapes that do not fit, unknown kinds and numbers out of range.
    """
    hard, soft = _checked(kind, temperature, hard, soft, alpha, beta)
    if kind in _OF_FEATURES:
        raise UserError(f"kind={kind!r} compares features, not logits; take DistillationLoss(kind={kind!r})")
    _check_logits(logits, teacher_logits, labels)
    terms = []
    if hard:
        terms.append(hard * _of_labels(logits, labels, label_smoothing))
    if soft:
        z, t = _precise(logits), _precise(teacher_logits.detach())
        terms.append(soft * _distance(kind, z, t, labels, temperature, alpha, beta))
    return sum(terms[1:], terms[0])


def attention_transfer_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean square of the difference between two networks' attention maps; arXiv 1612.03928, eq. 2.

    >>> attention_transfer_loss(torch.randn(8, 16, 4, 4), torch.randn(8, 64, 4, 4))

    Feature maps (N, C, H, W) may differ in channels, not in N, H and W. Of each the mean over channels of its squares,
    (N, H·W), is divided by its norm. The mean is over images and places, as in the authors' program; their published
    weight of it is 1000 (β/2 with β = 10³ in the paper is of the sum). The teacher's map gets no gradient. In float32
    at least. Raises `UserError` for other shapes.
    """
    same = student_map.shape[:1] == teacher_map.shape[:1] and student_map.shape[2:] == teacher_map.shape[2:]
    if student_map.ndim != 4 or teacher_map.ndim != 4 or not same:
        raise UserError(
            f"attention maps: expected (N, C, H, W) of the same N, H and W, got {tuple(student_map.shape)} of the "
            f"student and {tuple(teacher_map.shape)} of the teacher; choose layers of the same resolution"
        )
    ours, theirs = _attention(student_map), _attention(teacher_map.detach())
    return (ours - theirs).square().sum() / max(ours.numel(), 1)


class DistillationLoss(nn.Module):
    """`distillation_loss` as a module, and the losses that compare features.

    >>> criterion = DistillationLoss(kind="dkd", temperature=4.0)
    >>> criterion(student(images), teacher_logits, labels).backward()

    For kinds "fitnet" and "attention" the teacher's word is a feature map, and the student's is given beside it:

    >>> criterion = DistillationLoss(kind="fitnet", hint="layer2", teacher_hint="layer3")
    >>> with feature(student, criterion.hint) as ours, feature(teacher, criterion.teacher_hint) as theirs:
    ...     logits = student(images)
    ...     with torch.no_grad():
    ...         teacher(images)
    >>> criterion(logits, theirs.value, labels, ours.value)

    The regressor of "fitnet", which maps the student's features (N, C, H, W) or (N, F) to the teacher's, is made when
    the loss is first called, since its shape hangs on both networks: a convolution without padding whose kernel brings
    the student's H and W to the teacher's (as published), or a linear layer. It is a submodule: call the loss once
    before `criterion.parameters()` go to the optimizer, beside those of the student.

    Parameters
    ----------
    hint, teacher_hint : the dotted paths of the modules whose outputs are compared; for kinds of features only.
        `teacher_hint` is `hint` where it is not given.
    others : those of `distillation_loss`.

    Raises `UserError` for settings that do not go together, and for shapes that do not fit.
    """

    def __init__(
        self,
        *,
        kind: Kind = "kd",
        temperature: float = 4.0,
        hard: float | None = None,
        soft: float | None = None,
        alpha: float = 1.0,
        beta: float = 8.0,
        hint: str | None = None,
        teacher_hint: str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.hard, self.soft = _checked(kind, temperature, hard, soft, alpha, beta)
        if kind in _OF_FEATURES and not hint:
            raise UserError(f"kind={kind}: name the layer whose output is compared, as in hint=layer2")
        if kind not in _OF_FEATURES and (hint or teacher_hint):
            raise UserError(f"hint: kind={kind} compares logits; leave hints out, or take {' or '.join(_OF_FEATURES)}")
        self.kind = kind
        self.temperature = temperature
        self.alpha, self.beta = alpha, beta
        self.hint, self.teacher_hint = hint, teacher_hint or hint
        self.label_smoothing = label_smoothing
        self.regressor: nn.Module | None = None

    def forward(self, logits: Tensor, teacher: Tensor, labels: Tensor, student_feature: Tensor | None = None) -> Tensor:
        """The loss of logits (N, C) and labels (N,); `teacher` is its logits (N, C), or its feature by kind."""
        if self.kind in ("kd", "dkd", "logit-mse"):
            return distillation_loss(
                logits,
                teacher,
                labels,
                kind=self.kind,
                temperature=self.temperature,
                hard=self.hard,
                soft=self.soft,
                alpha=self.alpha,
                beta=self.beta,
                label_smoothing=self.label_smoothing,
            )
        if student_feature is None:
            raise UserError(
                f"kind={self.kind}: give the student's feature too: criterion(logits, theirs, labels, ours)"
            )
        far = attention_transfer_loss if self.kind == "attention" else self._hint_loss
        loss = self.soft * far(student_feature, teacher.detach())
        return loss + self.hard * _of_labels(logits, labels, self.label_smoothing) if self.hard else loss

    def extra_repr(self) -> str:
        hints = f", hint={self.hint}, teacher_hint={self.teacher_hint}" if self.hint else ""
        return f"kind={self.kind}, temperature={self.temperature}, hard={self.hard}, soft={self.soft}{hints}"

    def _hint_loss(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if self.regressor is None:
            self.regressor = _make_regressor(ours, theirs)
        weight = next(self.regressor.parameters())
        mapped = _precise(self.regressor(ours.to(weight.dtype)))
        if mapped.shape != theirs.shape:
            raise UserError(
                f"fitnet: the regressor gives {tuple(mapped.shape[1:])}, the teacher's feature is "
                f"{tuple(theirs.shape[1:])}; its shape must stay what it was at the first call"
            )
        return (mapped - _precise(theirs)).square().sum() / max(mapped.numel(), 1)


def _distance(kind: str, z: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """What lies between student and teacher, a mean over the batch; 0 for an empty one."""
    count = max(len(z), 1)
    if kind == "logit-mse":
        return (z - t).square().sum() / max(z.numel(), 1)
    z, t = z / temperature, t / temperature
    if kind == "kd":
        each = _kl(t.log_softmax(1), z.log_softmax(1))
    else:
        each = _decoupled(z, t, labels, alpha, beta)
    return each.sum() * (temperature**2 / count)


def _decoupled(z: Tensor, t: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """DKD of each image: α·KL of (target, all others together) + β·KL among the others.

    log p_target and log(1 − p_target) are the log-sigmoids of ±(z_target − logsumexp of the others), so that both stay
    finite and precise where p_target is 0 or 1 to working precision.
    """
    if z.shape[1] < 2:
        raise UserError("dkd: there is one class only, and so no other to compare it with; take kind=kd")
    target = torch.where(labels == NO_LABEL, t.argmax(1), labels).unsqueeze(1)
    others = torch.arange(z.shape[1] - 1, device=z.device).expand(len(z), -1)
    others = others + (others >= target)

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        rest = logits.gather(1, others)
        odds = logits.gather(1, target) - rest.logsumexp(1, keepdim=True)
        return torch.cat([F.logsigmoid(odds), F.logsigmoid(-odds)], dim=1), rest.log_softmax(1)

    (of_target, among_others), (ours_of_target, ours_among_others) = parts(t), parts(z)
    return alpha * _kl(of_target, ours_of_target) + beta * _kl(among_others, ours_among_others)


def _kl(theirs: Tensor, ours: Tensor) -> Tensor:
    """KL(theirs ‖ ours) of log-probabilities (N, C): (N,); exactly 0 where they are equal."""
    p = theirs.exp()
    return torch.where(p > 0, p * (theirs - ours), 0).sum(1)  # a class that the teacher rules out has no part in it


def _of_labels(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """The mean cross-entropy of the images that have a label; 0 where none has."""
    known = (labels != NO_LABEL).sum().clamp(min=1)
    total = F.cross_entropy(
        _precise(logits), labels, ignore_index=NO_LABEL, reduction="sum", label_smoothing=label_smoothing
    )
    return total / known


def _attention(features: Tensor) -> Tensor:
    return F.normalize(_precise(features).square().mean(1).flatten(1), dim=1)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _make_regressor(ours: Tensor, theirs: Tensor) -> nn.Module:
    made: nn.Module
    if ours.ndim == theirs.ndim == 2:
        made = nn.Linear(ours.shape[1], theirs.shape[1])
    elif ours.ndim == theirs.ndim == 4 and ours.shape[2] >= theirs.shape[2] and ours.shape[3] >= theirs.shape[3]:
        kernel = (1 + ours.shape[2] - theirs.shape[2], 1 + ours.shape[3] - theirs.shape[3])
        made = nn.Conv2d(ours.shape[1], theirs.shape[1], kernel)
    else:
        raise UserError(
            f"fitnet: a feature of the student's of shape {tuple(ours.shape[1:])} cannot be mapped to the teacher's "
            f"{tuple(theirs.shape[1:])}; choose an earlier hint, whose height and width are at least the teacher's"
        )
    return made.to(ours.device, ours.dtype if ours.dtype == torch.float64 else torch.float32)


def _checked(
    kind: str, temperature: float, hard: float | None, soft: float | None, alpha: float, beta: float
) -> tuple[float, float]:
    """The weights of labels and teacher, once all settings were found to make sense."""
    if kind not in PUBLISHED_WEIGHTS:
        raise unknown_name("kind of distillation", kind, PUBLISHED_WEIGHTS)
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"temperature: expected a number above 0, got {temperature}")
    of_labels, of_teacher = PUBLISHED_WEIGHTS[kind]
    weights = {
        "hard": of_labels if hard is None else hard,
        "soft": of_teacher if soft is None else soft,
        "alpha": alpha,
        "beta": beta,
    }
    for name, value in weights.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name}: expected a number of 0 or more, got {value}")
    if not weights["hard"] and not weights["soft"]:
        raise UserError("hard and soft are both 0, so that nothing would be learnt; give one of them a weight")
    return weights["hard"], weights["soft"]


def _check_logits(logits: Tensor, teacher: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or teacher.shape != logits.shape or labels.shape != logits.shape[:1]:
        raise UserError(
            f"distillation: expected logits (N, C) of student and teacher and labels (N,), got {tuple(logits.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(labels.shape)}; both networks must know the same classes"
        )
