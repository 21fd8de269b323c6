"""control-finetune goes on from the base; control-more-data sees all images but those that validate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from postgrad.controls import Setting, control_finetune, control_more_data
from postgrad.controls.finetune import RATES
from postgrad.data.datasets import Dataset, Images
from postgrad.data.splits import Halves, halves


@pytest.fixture
def numbered(digits: Dataset) -> Dataset:
    """The same images, each with its own number in its first pixel."""
    assert digits.train is not None
    pixels = digits.train.images.clone()
    pixels[:, 0, 0, 0] = torch.arange(len(pixels)).to(torch.uint8)
    return replace(digits, train=Images(pixels, digits.train.labels))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The numbers of the images that a training was given."""
    numbers: set[int] = set()
    real = Setting.training_batch

    def watched(self: Setting, images: Images, indices: Tensor, generator: torch.Generator) -> Any:
        numbers.update(images.images[indices, 0, 0, 0].tolist())
        return real(self, images, indices, generator)

    monkeypatch.setattr(Setting, "training_batch", watched)
    return numbers


def test_more_data_sees_both_halves_and_no_image_that_validates(make_setting, numbered, seen, make_network) -> None:
    parts = halves(numbered)
    control_more_data(make_setting(2, dataset=numbered, fresh=lambda: make_network(1)))
    assert seen == set(parts.base_train.tolist()) | set(parts.method_train.tolist())
    assert not seen & set(parts.method_validation.tolist())
    assert not seen & set(parts.base_validation.tolist())


@pytest.mark.parametrize("control", [control_finetune, control_more_data])
def test_whole_halves_hold_the_validation_images_back_too(make_setting, numbered, seen, control) -> None:
    parts = halves(numbered)
    first = torch.cat([parts.base_train, parts.base_validation])
    second = torch.cat([parts.method_train, parts.method_validation])
    control(make_setting(2, dataset=numbered, halves=Halves(first, second, second, parts.method_validation)))
    assert seen >= set(parts.method_train.tolist())
    assert not seen & set(parts.method_validation.tolist())


def test_finetune_sees_the_methods_images_alone(make_setting, numbered, seen) -> None:
    control_finetune(make_setting(2, dataset=numbered))
    assert seen == set(halves(numbered).method_train.tolist())


def test_finetune_starts_from_the_base_and_leaves_it_alone(make_setting, digits, make_network, same_bits) -> None:
    setting = make_setting(1)
    before = make_network()
    fitted = control_finetune(setting)
    assert same_bits(setting.base, before)
    rate = next(rate for rate in RATES if fitted.description.startswith(f"learning rate {rate:g} "))
    images = setting.tuning_images
    assert len(images) < 128, "the one step must see all images, so that their order does not matter"
    F.cross_entropy(before(digits.preprocess(images.images)), images.labels).backward()
    for (name, weight), start in zip(fitted.model.named_parameters(), before.parameters(), strict=True):
        assert start.grad is not None
        expected = start - rate * (start.grad + 5e-4 * start)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6, msg=name)
    assert not same_bits(fitted.model, before)


def test_more_data_starts_anew_where_the_base_did_and_goes_on_with_own_weights(
    make_setting, monkeypatch, make_network, same_bits
) -> None:
    begun = []

    def tuned(task, *, seconds, **_: Any) -> None:
        begun.append((task.make_model(), seconds))

    monkeypatch.setattr("postgrad.controls.more_data.tuned", tuned)
    setting = make_setting(base_seconds=5.0, method_seconds=2.0)
    control_more_data(setting)
    control_more_data(replace(setting, fresh=lambda: make_network(1)))
    (own, own_seconds), (fresh, fresh_seconds) = begun
    assert same_bits(own, setting.base)
    assert own is not setting.base
    assert same_bits(fresh, make_network(1))
    assert (own_seconds, fresh_seconds) == (2.0, 7.0)
