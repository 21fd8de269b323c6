"""`npz:FILE`: Keras's arrays, against numpy's own reader, and everything that can be wrong with them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.data.npz import read_array, read_npz
from postgrad.errors import UserError

BUDGET = 10**9


def arrays(rng: np.random.Generator, **changes: object) -> dict[str, np.ndarray]:
    """Forty training images and ten test images of four classes; `changes` replace arrays, None removes them."""
    whole = {
        "x_train": rng.integers(0, 256, (40, 6, 7, 3), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": rng.integers(0, 256, (10, 6, 7, 3), dtype=np.uint8),
        "y_test": np.arange(10) % 4,
    } | changes
    return {key: value for key, value in whole.items() if value is not None}  # type: ignore[misc]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_colour_images_as_keras_has_them(tmp_path: Path, rng: np.random.Generator, save) -> None:
    stored = arrays(rng, y_train=(np.arange(40) % 4)[:, None].astype(np.uint8))
    save(tmp_path / "data.npz", **stored)
    found = read_npz(tmp_path / "data.npz", budget=BUDGET)
    np.testing.assert_array_equal(found.train.images.permute(0, 2, 3, 1), stored["x_train"])
    np.testing.assert_array_equal(found.test.images.permute(0, 2, 3, 1), stored["x_test"])
    assert found.train.labels.tolist() == (np.arange(40) % 4).tolist()
    assert found.train.images.is_contiguous()
    assert found.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("shape", [(40, 6, 7), (40, 6, 7, 1)])
def test_grey_images(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "data.npz", **arrays(rng, x_train=pixels, x_test=None, y_test=None))
    found = read_npz(tmp_path / "data.npz", budget=BUDGET)
    assert found.test is None
    np.testing.assert_array_equal(found.train.images[:, 0], pixels.reshape(40, 6, 7))


def test_only_a_test_part(tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "data.npz", **arrays(rng, x_train=None, y_train=None))
    found = read_npz(tmp_path / "data.npz", budget=BUDGET)
    assert found.train is None
    assert len(found.test) == 10


def test_larger_than_memory_is_mapped_and_equal(tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez_compressed(tmp_path / "data.npz", **arrays(rng))
    resident, mapped = (read_npz(tmp_path / "data.npz", budget=budget) for budget in (BUDGET, 100))
    assert (resident.train.mapped, mapped.train.mapped) == (False, True)
    assert torch.equal(resident.train.images, mapped.train.images)
    mapped.train.images[0] = 0
    again = read_npz(tmp_path / "data.npz", budget=100)
    assert torch.equal(resident.train.images, again.train.images), "changes stay with the one who makes them"
    chosen = torch.tensor([7, 3, 3, 39])
    assert torch.equal(again.train.subset(chosen).images, resident.train.images[chosen])


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["u1", ">i2", "<f8", "?", "i8"]),
    fortran=st.booleans(),
)
def test_arrays_are_what_numpy_reads(tmp_path_factory, shape: list[int], dtype: str, fortran: bool) -> None:
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    values = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    np.savez(path, a=np.asfortranarray(values) if fortran else values)
    ours = read_array(path, "a")
    np.testing.assert_array_equal(ours, np.load(path)["a"])
    assert ours.dtype == np.load(path)["a"].dtype


NAN = np.full((40, 6, 7, 3), np.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": None, "y_train": None, "x_test": None, "y_test": None, "a": np.zeros(3)},
            "needs the arrays x_train",
        ),
        ({"y_train": None}, "has x_train without its other half"),
        ({"x_test": None}, "has y_test without its other half"),
        ({"x_train": NAN}, "got float64 with NaN"),
        ({"x_train": np.zeros((40, 6, 7, 3), np.float32)}, "expected uint8 from 0 to 255, got float32"),
        ({"x_train": np.zeros((40, 3, 6, 7), np.uint8)}, "channels come last"),
        ({"x_train": np.zeros((40, 42), np.uint8)}, "expected \\(N, height, width\\)"),
        ({"x_train": np.zeros((40, 6, 7, 2), np.uint8)}, "expected \\(N, height, width\\)"),
        ({"x_train": np.zeros((40, 0, 7), np.uint8)}, "expected \\(N, height, width\\)"),
        ({"x_train": np.zeros((39, 6, 7, 3), np.uint8)}, "39 images, y_train 40 labels"),
        ({"x_train": np.array([None] * 40)}, "Python objects"),
        ({"y_train": np.array([{}] * 40)}, "Python objects"),
        ({"y_train": np.array(["cat"] * 40)}, "<U3"),
        ({"y_train": np.arange(40) % 4 + 0.5}, "whole numbers"),
        ({"y_train": np.eye(4)[np.arange(40) % 4]}, "argmax"),
        ({"y_train": np.arange(40) * 1000}, "without gaps"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path: Path, rng: np.random.Generator, changes, message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays(rng, **changes))
    with pytest.raises(UserError, match=message) as error:
        read_npz(tmp_path / "data.npz", budget=BUDGET)
    assert "data.npz" in str(error.value)


def test_objects_are_never_unpickled(tmp_path: Path, rng: np.random.Generator) -> None:
    victim = tmp_path / "was-here"

    class Attack:
        def __reduce__(self):
            return Path.touch, (victim,)

    np.savez(tmp_path / "data.npz", **arrays(rng, x_train=np.array([Attack()], dtype=object)))
    with pytest.raises(UserError, match="Python objects"):
        read_npz(tmp_path / "data.npz", budget=BUDGET)
    assert not victim.exists()


def test_damaged_files_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **arrays(rng))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for content in (b"", b"not a zip", whole[: len(whole) // 2], whole[:-30], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or no"):
            read_npz(path, budget=BUDGET)
    with pytest.raises(UserError, match="no such file"):
        read_npz(tmp_path / "other.npz", budget=BUDGET)
    with pytest.raises(UserError, match="no such file"):
        read_npz(tmp_path, budget=BUDGET)


@pytest.mark.parametrize(
    "member",
    [
        b"not an array",
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999,), }".ljust(118),
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }".ljust(118),
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }".ljust(118) + b"12",
        b"\x93NUMPY\x09\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }".ljust(118) + b"123",
    ],
)
def test_members_that_lie_are_refused(tmp_path: Path, member: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(UserError, match=r"data\.npz: x "):
        read_array(tmp_path / "data.npz", "x")
    with pytest.raises(UserError, match="has no array y; it has x"):
        read_array(tmp_path / "data.npz", "y")


def test_an_encrypted_archive_is_named_as_such(tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "secret.npz", **arrays(rng))
    content = bytearray((tmp_path / "secret.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the first entry's flags in the archive's directory
    (tmp_path / "secret.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"secret\.npz is encrypted"):
        read_npz(tmp_path / "secret.npz", budget=1 << 30)


def test_a_mistake_in_the_reader_is_not_called_a_damaged_file(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    np.savez(tmp_path / "good.npz", **arrays(rng))
    monkeypatch.setattr("postgrad.data.npz._header", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        read_npz(tmp_path / "good.npz", budget=1 << 30)
