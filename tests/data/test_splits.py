"""Halves, stratified parts and limits: disjoint, complete, proportional, always the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.data.containers import Dataset, Images
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.data.splits import Halves, halves, limited, stratified_split
from postgrad.errors import UserError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)


def dataset(labels: list[int] | np.ndarray, *, prescribed: bool) -> Dataset:
    return Dataset(
        name="made-up",
        train=images(labels),
        test=None,
        class_names=tuple("abcde"),
        preprocess=Preprocessing(),
        augmentation=Augmentation(),
        prescribed_order=prescribed,
        fingerprint="0" * 16,
    )


def images(labels: list[int] | np.ndarray) -> Images:
    """Images whose first pixel is their number."""
    pixels = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1)
    return Images(pixels, torch.as_tensor(np.asarray(labels), dtype=torch.int64))


def parts(halves_: Halves) -> list[torch.Tensor]:
    return [getattr(halves_, field.name) for field in dataclasses.fields(halves_)]


def test_prescribed_halves_follow_the_file_order() -> None:
    divided = parts(halves(dataset(np.arange(100) % 5, prescribed=True)))
    expected = [range(45), range(45, 50), range(50, 95), range(95, 100)]
    assert [part.tolist() for part in divided] == [list(part) for part in expected]


def test_whole_halves_for_the_exact_preset() -> None:
    divided = parts(halves(dataset(np.arange(101) % 5, prescribed=True), validation=0))
    assert [len(part) for part in divided] == [50, 0, 51, 0]


@settings(max_examples=80, deadline=None)
@given(labels=LABELS.filter(lambda labels: len(labels) >= 4), prescribed=st.booleans())
def test_halves_are_disjoint_complete_and_repeatable(labels: list[int], prescribed: bool) -> None:
    data = dataset(labels, prescribed=prescribed)
    divided = parts(halves(data))
    assert sorted(torch.cat(divided).tolist()) == list(range(len(labels)))
    assert all(len(part) for part in divided)
    assert all(part.dtype == torch.int64 for part in divided)
    assert all(torch.equal(a, b) for a, b in zip(divided, parts(halves(data)), strict=True))


def test_stratified_halves_have_the_same_mixture() -> None:
    labels = np.repeat(np.arange(5), [200, 100, 60, 40, 20])
    for part, share in zip(parts(halves(dataset(labels, prescribed=False))), (0.45, 0.05, 0.45, 0.05), strict=True):
        counts = np.bincount(labels[part.numpy()], minlength=5)
        assert np.abs(counts - share * np.array([200, 100, 60, 40, 20])).max() <= 1


def test_file_order_would_not_mix_sorted_classes() -> None:
    labels = np.repeat(np.arange(5), 20)
    first = halves(dataset(labels, prescribed=True)).base_train
    assert len(np.unique(labels[first.numpy()])) < 5


def test_too_few_images_and_odd_fractions_are_refused() -> None:
    with pytest.raises(UserError, match="at least 4"):
        halves(dataset([0, 1, 0], prescribed=True))
    with pytest.raises(UserError, match="fraction"):
        halves(dataset([0, 1] * 10, prescribed=True), validation=1.0)
    with pytest.raises(UserError, match="no training images"):
        halves(dataclasses.replace(dataset([0, 1], prescribed=True), train=None))


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, fraction=st.floats(0, 1), seed=st.integers(0, 5))
def test_stratified_split_keeps_proportions(labels: list[int], fraction: float, seed: int) -> None:
    values = torch.tensor(labels)
    first, second = stratified_split(values, fraction, seed)
    assert sorted(first.tolist() + second.tolist()) == list(range(len(labels)))
    assert len(first) == round(fraction * len(labels))
    counts, taken = np.bincount(labels, minlength=5), np.bincount(values[first].numpy(), minlength=5)
    # Largest remainders leave each class within one of its share; keeping one on each side can cost another few.
    assert np.abs(taken - counts * len(first) / len(labels)).max() <= 1 + 4
    twice = (counts > 1).sum()
    if twice <= len(first) and len(second) >= twice + (counts == 1).sum():
        assert ((taken > 0) & (taken < counts))[counts > 1].all()


def test_stratified_split_is_random_but_repeatable() -> None:
    labels = torch.arange(100) % 5
    first, again, other = (stratified_split(labels, 0.5, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    assert not torch.equal(first, first.sort().values)


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, count=st.integers(1, 90))
def test_limit_takes_the_first_of_each_class_in_proportion(labels: list[int], count: int) -> None:
    chosen = limited(images(labels), count)
    numbers = chosen.images.flatten().tolist()
    assert len(chosen) == min(count, len(labels))
    assert numbers == sorted(numbers)
    assert [labels[number] for number in numbers] == chosen.labels.tolist()
    for label in set(labels):
        mine = [number for number in numbers if labels[number] == label]
        assert mine == [number for number, other in enumerate(labels) if other == label][: len(mine)]
    if count >= len(set(labels)):
        assert set(chosen.labels.tolist()) == set(labels)


def test_limit_of_a_balanced_set_is_balanced() -> None:
    assert torch.equal(limited(images(np.arange(100) % 5), 50).labels.bincount(), torch.full((5,), 10))
