"""Pictures in folders, one folder for each class: `folder:DIR`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from postgrad.data.containers import Found, Images
from postgrad.data.pictures import Form, common_form, decode, look_at, pictures_below
from postgrad.errors import UserError

_NAMED = 5
"""So many skipped files are named; the rest are counted."""


@dataclass(frozen=True)
class _Part:
    """Picture files with the class of each."""

    files: tuple[Path, ...]
    classes: tuple[str, ...]

    def without(self, unreadable: Collection[Path]) -> _Part:
        pairs = [pair for pair in zip(self.files, self.classes, strict=True) if pair[0] not in unreadable]
        return _Part(tuple(file for file, _ in pairs), tuple(name for _, name in pairs))


def read_folder(root: Path, *, size: int | None, budget: int) -> Found:
    """Read `root/train/CLASS/…` and `root/test/CLASS/…`, or `root/CLASS/…`.

    Classes are the folders' names in alphabetical order; a folder without pictures is none. Files that are no pictures,
    or broken, are skipped and named in the notes. Pictures are turned as their EXIF data says.
    """
    check_folder(root)
    folders = {part: root / part for part in ("train", "test") if _holds_folders(root / part)}
    skipped: dict[Path, str] = {}
    if folders:
        skipped = {path: "not in train or test" for path in sorted(root.iterdir()) if path not in folders.values()}
    parts = {part: _list(folder, skipped) for part, folder in (folders or {"train": root}).items()}
    looks, unreadable = look_at([file for part in parts.values() for file in part.files])
    skipped |= unreadable
    if not looks:
        raise _nothing(root, skipped)
    form = common_form(looks.values(), size=size, channels=None, where=str(root))
    parts = {name: part.without(unreadable) for name, part in parts.items()}
    class_names = _class_names(parts, root)
    images: dict[str, Images] = {}
    for name, part in parts.items():
        if part.files:
            images[name], failures = _decoded(part, class_names, form, budget)
            skipped |= failures
    if not any(len(part) for part in images.values()):
        raise _nothing(root, skipped)
    return Found(images.get("train"), images.get("test"), class_names, folder_notes(root, form, skipped))


def check_folder(root: Path) -> None:
    """Refuse what is not a folder."""
    if not root.exists():
        raise UserError(f"{root}: no such folder; check the path")
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; give the folder that holds the pictures")


def folder_notes(root: Path, form: Form, skipped: Mapping[Path, str]) -> tuple[str, ...]:
    """What was skipped, and what was cut off."""
    notes = []
    if skipped:
        notes.append(f"{root}: {skipped_list(skipped, root, 'skipped ')}.")
    if form.square:
        notes.append(
            f"{root}: each picture is brought to a shorter side of {form.height} pixels and cut to the square in its "
            f"centre."
        )
    return tuple(notes)


def skipped_list(skipped: Mapping[Path, str], root: Path, start: str) -> str:
    """The first few skipped files with reasons, and how many there are; nothing if there are none."""
    if not skipped:
        return ""
    named = [f"{path.relative_to(root)} ({reason})" for path, reason in list(skipped.items())[:_NAMED]]
    more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    return f"{start}{len(skipped)}: {', '.join(named)}{more}"


def _nothing(root: Path, skipped: Mapping[Path, str]) -> UserError:
    return UserError(
        f"{root}: no pictures in class folders{skipped_list(skipped, root, '; skipped ')}; "
        f"expected {root.name}/CLASS/PICTURE or {root.name}/train/CLASS/PICTURE"
    )


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in folder.iterdir())


def _list(folder: Path, skipped: dict[Path, str]) -> _Part:
    """The pictures in the class folders of one part, sorted; everything else is added to `skipped`."""
    files: list[Path] = []
    classes: list[str] = []
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            skipped[entry] = "not in a class folder"
        elif entry.name.startswith((".", "__")):
            skipped[entry] = "a hidden folder"
        else:
            pictures, others = pictures_below(entry)
            files += pictures
            classes += [entry.name] * len(pictures)
            skipped |= dict.fromkeys(others, "not a picture")
            if not pictures and not others:
                skipped[entry] = "an empty folder"
    return _Part(tuple(files), tuple(classes))


def _class_names(parts: Mapping[str, _Part], root: Path) -> tuple[str, ...]:
    """The classes of the training pictures, or of the test pictures where these are alone."""
    names = {part: sorted(set(pictures.classes)) for part, pictures in parts.items()}
    known = names.get("train") or names["test"]
    unknown = sorted(set(names.get("test", ())) - set(known))
    if unknown:
        raise UserError(
            f"{root / 'test'}: class {', '.join(unknown)} has no pictures in {root / 'train'}; "
            f"add some, or remove the folder"
        )
    return tuple(known)


def _decoded(part: _Part, class_names: tuple[str, ...], form: Form, budget: int) -> tuple[Images, dict[Path, str]]:
    pixels, failures = decode(part.files, form, budget=budget)
    index = {name: number for number, name in enumerate(class_names)}
    labels = torch.tensor([index[name] for name in part.without(failures).classes], dtype=torch.int64)
    return Images(torch.from_numpy(pixels), labels, isinstance(pixels, np.memmap)), failures
