"""The whole scorecard of any classifier, in the form of results.json."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

import postgrad
from postgrad.data.datasets import Dataset
from postgrad.errors import UserError
from postgrad.evaluation import metrics
from postgrad.evaluation.calibration import fit_temperature
from postgrad.evaluation.score import score
from postgrad.models.network import NetworkClassifier
from postgrad.reports.schema import Arm


def checked(card: dict) -> Arm:
    """The card as the arm of a results.json, after a way through JSON."""
    keys = ("metrics", "cost", "temperature", "outside", "corruptions", "attacks")
    again = json.loads(json.dumps(card, allow_nan=False))
    return Arm(name="x", kind="base", **{key: again[key] for key in keys if key in again})


def test_a_network_with_everything(classifier: NetworkClassifier, digits: Dataset) -> None:
    assert digits.test is not None
    assert digits.train is not None
    images, labels = digits.test.images, digits.test.labels
    other = torch.zeros(30, 3, 12, 12, dtype=torch.uint8)
    card = score(
        classifier,
        images,
        labels,
        validation=(images[:100], labels[:100]),
        ood={"black": other},
        corruptions="contrast",
    )
    arm = checked(card)
    p = classifier.predict_proba(images)
    assert arm.metrics["accuracy"].mean == metrics.accuracy(p, labels)
    assert arm.temperature == [fit_temperature(p[:100], labels[:100])]
    assert arm.metrics["nll_scaled"].mean != arm.metrics["nll"].mean
    assert {(e.data, e.n) for e in arm.outside} == {("black", 30)}
    assert "grey by ITU-R 601" in arm.outside[0].matching
    assert [e.severity for e in arm.corruptions] == [1, 2, 3, 4, 5]
    assert card["corruption_means"]["all"] == card["corruption_means"]["contrast"]
    np.testing.assert_array_equal(card["confusion"], confusion_matrix(labels, p.argmax(1)))
    assert list(card["per_class_accuracy"]) == list(digits.class_names)
    assert "notes" not in card


def test_an_estimator_of_scikit_learn(digits: Dataset) -> None:
    assert digits.train is not None
    assert digits.test is not None
    rows = digits.train.images.flatten(1).numpy() / 255
    estimator = LogisticRegression(max_iter=500).fit(rows, digits.train.labels)
    card = postgrad.score(estimator, digits.test.images, digits.test.labels, ood={"self": digits.test.images})
    right = estimator.score(digits.test.images.flatten(1).numpy() / 255, digits.test.labels)
    assert card["metrics"]["accuracy"]["mean"] == pytest.approx(right)
    assert [entry["score"] for entry in card["outside"]] == ["max_softmax"]
    assert card["outside"][0]["metrics"]["auroc"]["mean"] == pytest.approx(0.5)
    assert card["cost"]["multiply_adds"] is None
    assert "temperature" not in card
    assert len(card["notes"]) == 2
    assert checked(card).cost.parameters is None


class Plain:
    """The least that can be scored."""

    def predict_proba(self, images: torch.Tensor) -> np.ndarray:
        return np.tile([0.7, 0.3], (len(images), 1))


def test_the_least_that_can_be_scored() -> None:
    images = np.zeros((6, 1, 3, 3), np.uint8)
    card = score(Plain(), images, np.zeros(6, int), corruptions="jpeg")
    arm = checked(card)
    assert arm.metrics["accuracy"].mean == 1
    assert card["per_class_accuracy"]["1"] is None
    assert (arm.cost.parameters, arm.cost.inference_passes, arm.cost.file_bytes) == (None, None, None)


def test_validation_that_is_all_right_gives_no_temperature() -> None:
    images = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    card = score(Plain(), images, [0, 0, 1, 0], validation=(images, np.zeros(4, int)))
    assert "temperature" not in card
    assert "nll_scaled" not in card["metrics"]
    assert "all 4 validation images are right" in card["notes"][0]
    assert "temperature" in score(Plain(), images, [0, 0, 1, 0], validation=(images, np.array([0, 0, 0, 1])))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"corruptions": "fog"}, "unknown corruption 'fog'"),
        ({"attack": "square"}, "belong together"),
        ({"epsilon": 0.1}, "belong together"),
        ({"attack": "pgd", "epsilon": 0.1}, "overstates"),
        ({"class_names": ["a"]}, "2 different names"),
        ({"labels": [0, 5]}, "out of range"),
        ({"labels": [0]}, "2 class indices"),
    ],
)
def test_bad_input_is_named(arguments: dict, says: str) -> None:
    given = {"labels": [0, 1]} | arguments
    with pytest.raises(UserError, match=says):
        score(Plain(), torch.zeros(2, 1, 3, 3, dtype=torch.uint8), **given)


def test_a_bare_network_is_told_how_to_be_given() -> None:
    with pytest.raises(UserError, match="NetworkClassifier"):
        score(torch.nn.Linear(2, 2), torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0, 1])
