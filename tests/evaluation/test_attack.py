"""Attacks: within their bounds, stronger than chance, as strong as projected gradients written here, and honest."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from postgrad.data.datasets import Dataset
from postgrad.data.pixels import to_unit
from postgrad.errors import UserError
from postgrad.evaluation import attack as attacks
from postgrad.evaluation.attack import ATTACKS, measure_attack
from postgrad.models.network import NetworkClassifier

pytest.importorskip("art", reason="needs postgrad[attack]")
EPSILON = 0.1


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps than in earnest."""
    lengths = {"_GRADIENT_STEPS": 8, "_RESTARTS": 1, "_SQUARE_STEPS": 50, "_SQUARE_STEPS_ALONE": 150, "_HOP_STEPS": 4}
    for name, steps in lengths.items():
        monkeypatch.setattr(attacks, name, steps)


@pytest.fixture
def images(digits: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    assert digits.test is not None
    return digits.test.images[:30], digits.test.labels[:30]


def projected_gradient(classifier: NetworkClassifier, pixels: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    """The accuracy under plain projected gradient descent on pixels."""
    x = pixels.clone()
    for _ in range(steps):
        x.requires_grad_()
        loss = nn.functional.cross_entropy(classifier.model(classifier.preprocess(x)), y)
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x.detach() + 0.25 * EPSILON * gradient.sign()).clamp(pixels - EPSILON, pixels + EPSILON).clamp(0, 1)
    return float((classifier.predict(x) == y.numpy()).mean())


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_stay_in_bounds_and_beat_chance(
    attack: str, classifier: NetworkClassifier, images: tuple[torch.Tensor, torch.Tensor], short: None
) -> None:
    x, y = images
    seen: list[np.ndarray] = []
    changed = ATTACKS[attack]

    def watched(*arguments: Any) -> np.ndarray:
        seen.append(arguments[1].copy())
        seen.append(changed(*arguments))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, attack, watched)
        entry = measure_attack(classifier, x, y, attack=attack, epsilon=EPSILON, n=30)
    before, after = seen
    assert np.abs(after - before).max() <= EPSILON + 1e-6
    assert after.min() >= 0
    assert after.max() <= 1
    accuracy, robust = (entry["metrics"][name]["mean"] for name in ("accuracy", "robust_accuracy"))
    assert accuracy == pytest.approx(classifier.score(x, y))
    noise = EPSILON * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    by_chance = classifier.score((to_unit(x) + noise).clamp(0, 1), y)
    assert robust < by_chance - 0.1
    assert (entry["norm"], entry["epsilon"], entry["n"]) == ("linf", EPSILON, 30)
    assert entry["metrics"]["robust_accuracy"]["ci95"][0] <= robust


def test_autoattack_is_no_weaker_than_projected_gradients(
    classifier: NetworkClassifier, images: tuple[torch.Tensor, torch.Tensor], short: None
) -> None:
    x, y = images
    entry = measure_attack(classifier, x, y, attack="autoattack", epsilon=EPSILON, n=30)
    plain = projected_gradient(classifier, to_unit(x), y, steps=20)
    assert entry["metrics"]["robust_accuracy"]["mean"] <= plain < entry["metrics"]["accuracy"]["mean"] - 0.2


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_room_leaves_the_accuracy(
    attack: str, classifier: NetworkClassifier, images: tuple[torch.Tensor, torch.Tensor], short: None
) -> None:
    metrics = measure_attack(classifier, *images, attack=attack, epsilon=1e-7, n=15)["metrics"]
    assert metrics["robust_accuracy"]["mean"] == metrics["accuracy"]["mean"] > 0.8


def test_an_attack_repeats_and_leaves_everything_as_it_was(
    classifier: NetworkClassifier, images: tuple[torch.Tensor, torch.Tensor], short: None
) -> None:
    classifier.model.train()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    try:
        found = [measure_attack(classifier, *images, attack="autoattack", epsilon=0.05, n=10) for _ in range(2)]
        assert classifier.model.training
    finally:
        classifier.model.eval()
    assert found[0] == found[1]
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])
    assert all(p.grad is None and p.requires_grad for p in classifier.model.parameters())


class Fixed:
    """Calls everything class 0, whatever the pixels."""

    classes_ = np.arange(3)

    def predict_proba(self, images: torch.Tensor) -> np.ndarray:
        return np.tile([0.6, 0.3, 0.1], (len(images), 1))


@pytest.mark.parametrize("attack", ["square", "hopskipjump"])
def test_what_nothing_can_fool_stays_right(attack: str, short: None) -> None:
    x = torch.zeros(6, 1, 5, 9, dtype=torch.uint8)
    metrics = measure_attack(Fixed(), x, torch.tensor([0, 0, 0, 1, 2, 0]), attack=attack, epsilon=0.5)["metrics"]
    assert metrics["accuracy"]["mean"] == metrics["robust_accuracy"]["mean"] == pytest.approx(4 / 6)


def test_nothing_right_is_nothing_to_attack() -> None:
    x, y = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.ones(4, dtype=torch.int64)
    metrics = measure_attack(Fixed(), x, y, attack="square", epsilon=0.1)["metrics"]
    assert metrics["robust_accuracy"]["mean"] == 0


@pytest.mark.parametrize(
    ("attack", "epsilon", "says"),
    [
        ("fgsm", 0.1, "overstates robustness"),
        ("PGD", 0.1, "use autoattack"),
        ("squar", 0.1, "did you mean 'square'"),
        ("square", 0.0, "above 0"),
        ("square", 1.5, "at most 1"),
        ("square", float("nan"), "above 0"),
        ("autoattack", 0.1, "use square"),
    ],
)
def test_bad_input_is_named(attack: str, epsilon: float, says: str) -> None:
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=says):
        measure_attack(Fixed(), x, torch.zeros(4, dtype=torch.int64), attack=attack, epsilon=epsilon)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without_art(name: str, *rest: Any, **more: Any) -> Any:
        if name == "art" or name.startswith("art."):
            raise ModuleNotFoundError("No module named 'art'", name="art")
        return plain_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_art)
    with pytest.raises(UserError, match=r"pip install 'postgrad\[attack\]'"):
        attacks.check_attack("square", 0.1)
