"""control-same-price: an ensemble is the mean of softmaxes, and the best candidate is found on validation data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import postgrad
from postgrad.controls import Ensemble, Fitted, control_same_price
from postgrad.data.preprocessing import Augmentation, Preprocessing, views
from postgrad.errors import UserError
from postgrad.models.registry import create_model

PREPROCESS = Preprocessing(crop=9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
AUGMENTATION = Augmentation(crop=True, flip=True)
IMAGES = torch.randint(0, 256, (7, 3, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def member(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = create_model("mlp", num_classes=4, in_channels=3, image_size=9, hidden=(16,))
    with torch.no_grad():
        network.l1.weight.mul_(5)  # so that the members disagree
    return network


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble(
        [member(0), member(1)], views=3, augmentation=AUGMENTATION, preprocess=PREPROCESS, class_names="abcd"
    )


def loop(ensemble: Ensemble) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the softmaxes and softmax of the mean logits, one image, one view and one member at a time."""
    logits = []
    for image in IMAGES:
        of_image = []
        for view in views(image[None], PREPROCESS, 3, augmentation=AUGMENTATION):
            for network in ensemble.members:
                with torch.no_grad():
                    of_image.append(network(view)[0].double().numpy())
        logits.append(np.stack(of_image))
    every = np.stack(logits)
    assert every.shape == (7, 6, 4)

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    return softmax(every).mean(axis=1), softmax(every.mean(axis=1))


def test_probabilities_are_the_mean_of_softmaxes_over_members_and_views(ensemble: Ensemble) -> None:
    mean_of_softmaxes, softmax_of_mean = loop(ensemble)
    np.testing.assert_allclose(ensemble.predict_proba(IMAGES), mean_of_softmaxes, atol=1e-5)
    assert not np.allclose(ensemble.predict_proba(IMAGES), softmax_of_mean, atol=1e-4)
    np.testing.assert_array_equal(ensemble.predict(IMAGES), mean_of_softmaxes.argmax(axis=1))
    assert ensemble.predict_proba(IMAGES[:0]).shape == (0, 4)


def test_price_is_members_times_views(ensemble: Ensemble) -> None:
    assert ensemble.inference_passes == 6
    assert ensemble.num_parameters == 2 * sum(p.numel() for p in member(0).parameters())


def test_saved_ensemble_gives_the_same_bits(ensemble: Ensemble, tmp_path: Path) -> None:
    ensemble.save(tmp_path / "saved")
    loaded = postgrad.load(tmp_path / "saved")
    assert isinstance(loaded, Ensemble)
    assert loaded.inference_passes == 6
    assert loaded.class_names == ("a", "b", "c", "d")
    np.testing.assert_array_equal(loaded.predict_proba(IMAGES), ensemble.predict_proba(IMAGES))
    # Negative control: the augmentation is part of what is stored.
    loaded.augmentation = Augmentation(crop=True)
    assert not np.array_equal(loaded.predict_proba(IMAGES), ensemble.predict_proba(IMAGES))


def test_an_ensemble_with_a_lost_member_is_refused(ensemble: Ensemble, tmp_path: Path) -> None:
    ensemble.save(tmp_path / "saved")
    (tmp_path / "saved" / "member-1" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="member-1"):
        Ensemble.load(tmp_path / "saved")


class Knowing(nn.Module):
    """Gives the class that is written in the first pixel with a confidence of its own; -1 for a wrong one."""

    def __init__(self, right: float) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.tensor(right))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.right * nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long() % 10, 10).float()


def test_the_best_candidate_on_validation_data_is_taken(make_setting, digits, monkeypatch) -> None:
    assert digits.train is not None
    pixels = digits.train.images.clone()
    pixels[:] = digits.train.labels.view(-1, 1, 1, 1).to(torch.uint8)
    readable = type(digits.train)(pixels, digits.train.labels)
    dataset = type(digits)(**{**vars(digits), "train": readable})
    asked = []

    def finetune(setting, seconds, name, seed):
        asked.append((seconds, name, seed))
        return Fitted(Knowing(-1.0), 0.25, "")

    monkeypatch.setattr("postgrad.controls.same_price.finetune", finetune)
    setting = make_setting(dataset=dataset, preprocess=Preprocessing(), method_seconds=6.0, passes=10)
    fitted = control_same_price(setting, Knowing(-1.0), Knowing(1.0))
    assert fitted.description.endswith("control-more-data under 10 views")
    assert {trial["candidate"]: trial["accuracy"] for trial in fitted.trials} == {
        "control-finetune under 10 views": 0.0,
        "control-more-data under 10 views": 1.0,
        "3 networks fine-tuned from the base, each under 3 views": 0.0,
        "3 networks fine-tuned from the base": 0.0,
    }
    assert fitted.cpu_seconds == 0.75
    assert [seconds for seconds, *_ in asked] == [2.0, 2.0, 2.0]
    assert len({name for _, name, _ in asked}) == len({seed for *_, seed in asked}) == 3
    # The other way round the choice is the other one.
    swapped = control_same_price(setting, Knowing(1.0), Knowing(-1.0))
    assert swapped.description.endswith("control-finetune under 10 views")


@pytest.mark.parametrize("passes", [1, 2, 3, 7, 100])
def test_no_candidate_takes_more_passes_than_the_method(make_setting, monkeypatch, passes: int) -> None:
    shares = []
    made: list[Ensemble] = []

    def finetune(setting, seconds, name, seed):
        shares.append(seconds)
        return Fitted(Knowing(1.0), 0.0, "")

    monkeypatch.setattr("postgrad.controls.same_price.finetune", finetune)
    monkeypatch.setattr("postgrad.controls.same_price._accuracy", lambda candidate, _: made.append(candidate) or 0.5)
    control_same_price(make_setting(method_seconds=6.0, passes=passes), Knowing(1.0), Knowing(1.0))
    assert max(candidate.inference_passes for candidate in made) == passes
    assert sum(shares) == pytest.approx(6.0)
