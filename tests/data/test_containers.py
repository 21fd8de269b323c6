"""Images and their subsets, in memory and mapped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.data.cache import nameless_file
from postgrad.data.containers import Images
from postgrad.errors import UserError


def images(count: int, *, mapped: bool = False) -> Images:
    pixels = torch.arange(count * 4).to(torch.uint8).view(count, 1, 2, 2)
    if mapped:
        file = nameless_file((count, 1, 2, 2))
        file[:] = pixels.numpy()
        pixels = torch.from_numpy(file)
    return Images(pixels, torch.arange(count) % 3, mapped)


@settings(max_examples=50, deadline=None)
@given(indices=st.lists(st.integers(0, 9), max_size=20), mapped=st.booleans())
def test_subset_is_indexing(indices: list[int], mapped: bool) -> None:
    whole = images(10, mapped=mapped)
    part = whole.subset(torch.tensor(indices, dtype=torch.int64))
    assert torch.equal(part.images, whole.images[indices])
    assert torch.equal(part.labels, whole.labels[indices])
    assert part.mapped == mapped
    assert len(part) == len(indices)


def test_a_run_of_neighbours_shares_memory() -> None:
    whole = images(10)
    assert whole.subset(torch.arange(3, 8)).images.data_ptr() == whole.images[3].data_ptr()
    assert whole.subset(torch.tensor([3, 5])).images.data_ptr() != whole.images[3].data_ptr()


@pytest.mark.parametrize("indices", [[10], [8, 9, 10], [0, 99]])
def test_an_index_too_high_is_an_error(indices: list[int]) -> None:
    with pytest.raises(IndexError):
        images(10).subset(torch.tensor(indices))


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), "expected uint8"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "expected uint8"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2), "int64 class indices"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "expected 2 int64"),
    ],
)
def test_other_arrays_are_refused(pixels: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Images(pixels, labels)
