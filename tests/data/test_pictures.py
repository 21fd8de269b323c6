"""Decoding picture files: colour modes, orientation, sizes, against PIL itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from postgrad.data.pictures import Form, Look, common_form, decode, look_at, pictures_below
from postgrad.errors import UserError

BUDGET = 10**9


def decoded(*files: Path, size: int | None = None, channels: int | None = None) -> np.ndarray:
    looks, failures = look_at(files)
    assert not failures
    pixels, failures = decode(
        files, common_form(looks.values(), size=size, channels=channels, where="x"), budget=BUDGET
    )
    assert not failures
    return pixels


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *[(mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")],
        *[(mode, "jpg") for mode in ("L", "RGB", "CMYK")],
        *[(mode, "tiff") for mode in ("L", "RGB", "CMYK", "LAB", "YCbCr")],
        ("RGB", "bmp"),
        ("RGB", "gif"),
        ("RGBA", "webp"),
    ],
)
def test_every_colour_mode_becomes_grey_or_colour(tmp_path: Path, rng: np.random.Generator, mode, ending) -> None:
    source = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    if mode == "LAB":
        source = Image.merge("LAB", source.split())
    else:
        source = source.convert(mode)
    file = tmp_path / f"a.{ending}"
    source.save(file)
    with Image.open(file) as stored:
        grey = stored.mode in ("1", "L", "LA")
        expected = np.array(stored.convert("L" if grey else "RGB"))
    np.testing.assert_array_equal(decoded(file)[0], expected[None] if grey else expected.transpose(2, 0, 1))


def test_transparent_palettes_do_not_warn(tmp_path: Path, rng: np.random.Generator) -> None:
    image = Image.fromarray(rng.integers(0, 256, (9, 11), dtype=np.uint8)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert decoded(tmp_path / "a.png").shape == (1, 3, 9, 11)


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png").tolist() == [[[[0, 1, 128, 255]]]]


def test_floating_point_pictures_are_not_guessed(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "a.tiff")
    _, failures = decode([tmp_path / "a.tiff"], Form(None, False, 1, 4, 4), budget=BUDGET)
    assert failures == {tmp_path / "a.tiff": "its pixels are floating point numbers"}


def test_grey_among_colour_becomes_colour(tmp_path: Path, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    pixels = decoded(tmp_path / "a.png", tmp_path / "b.png")
    assert pixels.shape == (2, 3, 6, 6)
    assert all(np.array_equal(channel, grey) for channel in pixels[0])
    assert decoded(tmp_path / "a.png", tmp_path / "b.png", channels=1).shape == (2, 1, 6, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(tmp_path: Path, rng: np.random.Generator, orientation: int) -> None:
    pixels = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]
    np.testing.assert_array_equal(decoded(tmp_path / "a.png")[0].transpose(1, 2, 0), turned)


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (24, 24)])
def test_resizing_is_pils(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    height, width = (10, 10 * shape[1] // shape[0]) if shape[0] <= shape[1] else (10 * shape[0] // shape[1], 10)
    expected = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    ours = decoded(tmp_path / "a.png", size=10)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(ours, expected)


def test_mixed_shapes_are_cut_to_the_centre_square(tmp_path: Path, rng: np.random.Generator) -> None:
    wide = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    tall = Image.fromarray(rng.integers(0, 256, (36, 18, 3), dtype=np.uint8))
    wide.save(tmp_path / "a.png")
    tall.save(tmp_path / "b.png")
    pixels = decoded(tmp_path / "a.png", tmp_path / "b.png", size=10)
    bilinear = Image.Resampling.BILINEAR
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 0), np.array(wide.resize((15, 10), bilinear))[:, 2:12])
    np.testing.assert_array_equal(pixels[1].transpose(1, 2, 0), np.array(tall.resize((10, 20), bilinear))[5:15])


def test_pictures_are_never_enlarged_when_they_agree() -> None:
    looks = [Look(20, 30, False)] * 3
    assert common_form(looks, size=40, channels=None, where="x") == Form(None, False, 3, 20, 30)
    assert common_form(looks, size=10, channels=None, where="x") == Form(10, False, 3, 10, 15)
    with pytest.raises(UserError, match="x: pictures differ in size"):
        common_form([*looks, Look(8, 8, True)], size=None, channels=None, where="x")


def test_squares_are_cut_where_they_are_asked_for() -> None:
    def form(*looks: Look, square: bool = True) -> Form:
        return common_form(looks, size=10, channels=None, where="x", square=square)

    assert form(Look(20, 30, False)) == Form(10, True, 3, 10, 10)
    assert form(Look(20, 30, False), square=False) == Form(10, False, 3, 10, 15)
    assert form(Look(20, 20, False)) == Form(10, False, 3, 10, 10)
    assert form(Look(8, 8, False)) == Form(None, False, 3, 8, 8)


def test_enormous_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr("postgrad.data.pictures._MOST_PIXELS", 399)
    assert look_at([tmp_path / "a.png"]) == ({}, {tmp_path / "a.png": "20×20 pixels are too many"})


def test_pictures_are_told_from_other_files_by_their_names(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "deep/er/c.webp", "._a.jpeg", ".DS_Store", "x.txt", "noending"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pictures, others = pictures_below(tmp_path)
    assert [path.name for path in pictures] == ["a.jpeg", "b.PNG", "c.webp"]
    assert {path.name for path in others} == {"._a.jpeg", ".DS_Store", "x.txt", "noending"}
