"""Picture files of any kind and size, decoded into one array of images of one shape."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from postgrad.data.cache import key_of, resident_or_mapped
from postgrad.data.pixels import centre
from postgrad.errors import UserError
from postgrad.progress import progress

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2"}
)
_GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I"})
_ORIENTATION = 0x0112
_BATCH = 256
_MOST_PIXELS = 100_000_000

Pixels = NDArray[np.uint8]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Look:
    """What the head of a picture file says."""

    height: int
    width: int
    grey: bool


@dataclass(frozen=True)
class Form:
    """The one shape that all pictures get: shorter side, whether a square is cut, channels; and (height, width)."""

    shorter: int | None
    square: bool
    channels: int
    height: int
    width: int


def pictures_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """All picture files below a folder, sorted by path, and the other files there, by their names alone."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    chosen = set(pictures)
    return pictures, [path for path in files if path not in chosen]


def look_at(files: Sequence[Path]) -> tuple[dict[Path, Look], dict[Path, str]]:
    """Read the head of each file; the second answer says which could not be read, and why."""
    looks: dict[Path, Look] = {}
    failures: dict[Path, str] = {}

    def receive(index: int, result: Look | str) -> None:
        if isinstance(result, str):
            failures[files[index]] = result
        else:
            looks[files[index]] = result

    _each(_look, files, "looking at pictures", receive)
    return looks, failures


def common_form(
    looks: Iterable[Look], *, size: int | None, channels: int | None, where: str, square: bool = False
) -> Form:
    """The shape for all pictures: their own if they share it (reduced to `size` if larger), else squares of `size`.

    `square` asks for squares of `size` in any case.

    Grey pictures alone give one channel, otherwise there are three, unless `channels` says which.
    """
    looks = list(looks)
    shapes = {(look.height, look.width) for look in looks}
    channels = channels or (1 if all(look.grey for look in looks) else 3)
    if size is not None and square and any(height != width for height, width in shapes):
        return Form(size, True, channels, size, size)
    if len(shapes) == 1:
        ((height, width),) = shapes
        if size is None or size >= min(height, width):
            return Form(None, False, channels, height, width)
        return Form(size, False, channels, *_resized(height, width, size))
    if size is None:
        small, large = min(shapes, key=np.prod), max(shapes, key=np.prod)
        raise UserError(
            f"{where}: pictures differ in size, from {small[0]}×{small[1]} to {large[0]}×{large[1]} pixels; "
            f"give --size N to bring them all to N×N"
        )
    return Form(size, True, channels, size, size)


def decode(files: Sequence[Path], form: Form, *, budget: int) -> tuple[Pixels, dict[Path, str]]:
    """All files in one shape, (N, C, H, W) uint8, without those that could not be decoded, which are named."""

    def fill(target: Pixels) -> dict[int, str]:
        failures: dict[int, str] = {}

        def receive(index: int, result: Pixels | str) -> None:
            if isinstance(result, str):
                failures[index] = result
            else:
                target[index - len(failures)] = result

        _each(lambda file: _decode(file, form), files, "decoding pictures", receive)
        return failures

    shape = (len(files), form.channels, form.height, form.width)
    array, failures = resident_or_mapped(shape, fill, budget=budget, key=lambda: key_of([form], files))
    return array, {files[index]: reason for index, reason in failures.items()}


def _each(
    work: Callable[[Path], _Result], files: Sequence[Path], what: str, receive: Callable[[int, _Result], None]
) -> None:
    """Hand the result of `work` for each file, in order, to `receive`; threads help, since decoding frees the lock."""
    with (
        ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
        progress(what, len(files), unit="pictures") as advance,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # odd metadata; the picture itself is what counts
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            for index, result in enumerate(pool.map(work, batch), start):
                receive(index, result)
            advance(len(batch))


def _look(file: Path) -> Look | str:
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                return f"{width}×{height} pixels are too many"
            # Without the second condition Pillow would decode the whole of a PNG to look for EXIF data behind it.
            known = image.format != "PNG" or "exif" in image.info
            if known and image.getexif().get(_ORIENTATION, 1) >= 5:  # turned by a quarter
                width, height = height, width
            return Look(height, width, image.mode in _GREY_MODES)
    except Exception as error:  # a damaged picture can raise anything
        return _reason(error)


def _decode(file: Path, form: Form) -> Pixels | str:
    try:
        with Image.open(file) as opened:
            image = _converted(ImageOps.exif_transpose(opened), form.channels)
    except Exception as error:  # as above
        return _reason(error)
    if form.shorter:
        width, height = image.size
        tall, wide = _resized(height, width, form.shorter)
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    if form.square:
        left, top = centre(image.width, form.width), centre(image.height, form.height)
        image = image.crop((left, top, left + form.width, top + form.height))
    if (image.height, image.width) != (form.height, form.width):
        return f"{image.height}×{image.width} pixels, where its head says otherwise"
    pixels = np.asarray(image)
    return pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """Eight bits a channel; transparency is dropped, sixteen-bit grey is scaled."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError("its grey values are beyond 16 bits")
        image = Image.fromarray((values // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating point numbers")
    elif image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    long = int(shorter * max(height, width) / min(height, width))
    return (shorter, long) if height <= width else (long, shorter)


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, (OSError, ValueError)) else ""
    return "not a picture" if "cannot identify" in text else text or type(error).__name__
