"""The exceptions that mean the user's mistake, or the disk's, and the hint for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what, where and what to do.

    >>> raise UserError("images: expected uint8 (N, C, H, W), got float64 (8, 8); add the two missing axes")

    The command line prints the message alone and leaves with exit code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DiskError(UserError):
    """The disk is full, or the place may not be written: nothing else that is tried there will do any better."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones, with the nearest of them.

    >>> str(unknown_name("method", "gradnut", ["gradnet", "mapper"]))
    "unknown method 'gradnut': did you mean 'gradnet'? Known: gradnet, mapper"
    """
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'? Known: " if near else ". Known: "
    return UserError(f"unknown {kind} '{name}'{hint}{', '.join(options)}")
