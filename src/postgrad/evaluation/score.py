"""Everything that the scorecard says of one classifier on one set of test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from postgrad.data.inputs import image_tensor, label_tensor
from postgrad.data.outside import Outside, matched
from postgrad.errors import UserError
from postgrad.evaluation import metrics
from postgrad.evaluation.attack import ATTACKED_IMAGES, check_attack, measure_attack
from postgrad.evaluation.calibration import found_temperature
from postgrad.evaluation.corruptions import corruption_means, corruption_names, measure_corruptions
from postgrad.evaluation.cost import inference_cost
from postgrad.evaluation.estimators import EstimatorClassifier, takes_rows
from postgrad.evaluation.ood import compare_confidences, missing_scores, outside_confidences
from postgrad.evaluation.scorecard import class_scores, scorecard


@dataclass(frozen=True)
class Extras:
    """What is measured beside the plain metrics; nothing by default."""

    outside: Sequence[Outside] = ()
    corruptions: Sequence[str] = ()
    attack: str | None = None
    epsilon: float | None = None
    attack_images: int = ATTACKED_IMAGES
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be measured, before anything is computed."""
        if (self.attack is None) != (self.epsilon is None):
            raise UserError("attack and epsilon belong together: how, and how far, such as autoattack and 8/255")
        if self.attack is not None and self.epsilon is not None:
            check_attack(self.attack, self.epsilon)


@dataclass(frozen=True)
class Scored:
    """The scorecard as a document, and what it was made from."""

    document: dict[str, Any]
    probabilities: NDArray[np.floating]
    labels: NDArray[np.int64]
    confidences: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def score(
    classifier: Any,
    images: Any,
    labels: Any,
    *,
    validation: tuple[Any, Any] | None = None,
    class_names: Sequence[str] | None = None,
    ood: Mapping[str, Any] | None = None,
    corruptions: str | None = None,
    attack: str | None = None,
    epsilon: float | None = None,
    attack_images: int = ATTACKED_IMAGES,
    seed: int = 0,
) -> dict[str, Any]:
    """The scorecard of any classifier with `predict_proba`, on test images: what `postgrad score --json` prints.

    >>> card = score(classifier, images, labels, ood={"noise": noise}, corruptions="all")
    >>> card["metrics"]["accuracy"]["mean"], card["outside"][0]["metrics"]["auroc"]["mean"]
    (0.94, 0.98)

    Args:
        classifier: anything that postgrad loads; a network in a `NetworkClassifier`; a fitted scikit-learn estimator,
            which gets each image as a row of C·H·W pixels in [0, 1]; or your own, with `predict_proba(images)`.
        images, labels: (N, C, H, W), uint8 or floats in [0, 1], and (N,) integers. Test images: nothing is fitted here.
        validation: images and labels that the classifier was not fitted on; they fit the temperature of the scaled
            metrics, which are left out without them.
        class_names: names for `per_class_accuracy`; default: the classifier's own, or numbers.
        ood: by name, images (M, C, H, W) from outside; `postgrad.data.outside.outside_images` makes and finds some.
        corruptions: "all", "mapper-paper", or names with commas between them.
        attack, epsilon, attack_images: as `postgrad.evaluation.attack.measure_attack` takes them.
        seed: of corruptions and attacks.

    Returns a dictionary of plain values, with `metrics`, `cost`, `per_class_accuracy` and `confusion` (rows are true
    classes); `temperature`, `outside`, `corruptions`, `corruption_means` and `attacks` where asked for; and `notes`,
    which say in one line each what could not be given. Raises `UserError` for what cannot be used.
    """
    wrapped = as_classifier(classifier, class_names)
    stored = image_tensor(images)
    extras = Extras(
        outside=[matched(name, image_tensor(each), stored) for name, each in (ood or {}).items()],
        corruptions=corruption_names(corruptions) if corruptions else (),
        attack=attack,
        epsilon=epsilon,
        attack_images=attack_images,
        seed=seed,
    )
    return score_all(wrapped, stored, labels, validation=validation, class_names=class_names, extras=extras).document


def score_all(
    classifier: Any,
    images: Tensor,
    labels: Any,
    *,
    validation: tuple[Any, Any] | None,
    class_names: Sequence[str] | None,
    extras: Extras,
    unfitted: str = "there are no validation images to fit it on",
) -> Scored:
    """`score`, with the predictions and scores of confidence that it was made from.

    `unfitted` says why there is no temperature where there are no validation images.
    """
    extras.check()
    probabilities = np.asarray(classifier.predict_proba(images))
    truth = label_tensor(labels, len(images), probabilities.shape[1]).numpy()
    names = _names(classifier, class_names, probabilities.shape[1])
    temperature, notes = _temperature(classifier, validation, unfitted)
    document: dict[str, Any] = {
        "metrics": scorecard(probabilities, truth, temperature=temperature),
        "cost": inference_cost(classifier, images),
        "per_class_accuracy": class_scores(probabilities, truth, names),
        "confusion": metrics.confusion(probabilities, truth).tolist(),
    }
    if temperature is not None:
        document["temperature"] = [temperature]
    confidences = outside_confidences(classifier, images, extras.outside) if extras.outside else {}
    document |= _extras(classifier, images, truth, extras, confidences)
    if extras.outside:
        given = [key.removeprefix("inside/") for key in confidences if key.startswith("inside/")]
        notes += [line for line in [missing_scores(given, type(classifier).__name__)] if line]
    return Scored(document | ({"notes": notes} if notes else {}), probabilities, truth, confidences)


def _temperature(classifier: Any, validation: tuple[Any, Any] | None, unfitted: str) -> tuple[float | None, list[str]]:
    """The temperature that the validation images give, or why there is none."""
    if validation is None:
        return None, [f"no temperature and no scaled metrics: {unfitted}"]
    found = found_temperature(classifier.predict_proba(validation[0]), validation[1])
    if found is not None:
        return found, []
    reason = f"all {len(validation[0])} validation images are right, so that none fits best"
    return None, [f"no temperature and no scaled metrics: {reason}"]


def as_classifier(classifier: Any, class_names: Sequence[str] | None = None) -> Any:
    """The classifier itself, or a scikit-learn estimator that was fitted on rows as a classifier of images."""
    if not hasattr(classifier, "predict_proba"):
        raise UserError(
            f"{type(classifier).__name__} has no predict_proba; give a network as NetworkClassifier(network, …)"
        )
    return EstimatorClassifier(classifier, class_names=class_names) if takes_rows(classifier) else classifier


def _extras(
    classifier: Any, images: Tensor, labels: NDArray[np.int64], extras: Extras, confidences: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if extras.outside:
        found["outside"] = compare_confidences(confidences, extras.outside)
    if extras.corruptions:
        found["corruptions"] = measure_corruptions(classifier, images, labels, extras.corruptions, seed=extras.seed)
        found["corruption_means"] = corruption_means(found["corruptions"])
    if extras.attack is not None and extras.epsilon is not None:
        how: dict[str, Any] = {"attack": extras.attack, "epsilon": extras.epsilon, "n": extras.attack_images}
        found["attacks"] = [measure_attack(classifier, images, torch.from_numpy(labels), **how, seed=extras.seed)]
    return found


def _names(classifier: Any, given: Sequence[str] | None, classes: int) -> list[str]:
    names = [str(name) for name in given or getattr(classifier, "class_names", None) or range(classes)]
    if len(names) != classes or len(set(names)) < classes:
        raise UserError(f"class_names: expected {classes} different names, got {len(names)}: {', '.join(names[:5])} …")
    return names
