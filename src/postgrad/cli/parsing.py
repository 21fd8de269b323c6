"""From the words of a command line to a verb's options; a mistake becomes one line with the nearest name."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from postgrad.errors import UserError

Options = TypeVar("Options")

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def parse(options: type[Options], words: Sequence[str], *, verb: str) -> Options:
    """Read `words` into the dataclass `options`; `--help` prints and leaves.

    A field `words` gets them all, for verbs where the order of different options counts.
    """
    program = f"postgrad {verb}"
    complaint = io.StringIO()
    try:
        # tyro frames its complaints over many lines; they are caught here and said in one.
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(options, prog=program, args=words, config=_STYLE, return_unknown_args=True)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UserError(f"{_first_sentence(complaint.getvalue())}; see {program} --help") from None
    if unknown:
        raise _unknown_word(unknown[0], program, list(_option_names(options)))
    given: Any = parsed
    takes_words = any(field.name == "words" for field in dataclasses.fields(given))
    return dataclasses.replace(given, words=tuple(words)) if takes_words else parsed


def _first_sentence(frame: str) -> str:
    """The words of tyro's framed message up to its first rule, which may be of dashes."""
    lines: list[str] = []
    for line in frame.splitlines()[1:]:
        text = line.strip("│╰╯ ")
        if not text or set(text) <= {"─", "-"}:
            if lines:
                break
            continue
        lines.append(text)
    sentence = " ".join(lines).strip() or " ".join(frame.split())
    return sentence.removeprefix("Error parsing ").rstrip(".")


def _unknown_word(word: str, program: str, known: list[str]) -> UserError:
    name = word.partition("=")[0]
    if not name.startswith("-"):
        return UserError(f"unexpected word '{word}'; see {program} --help")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]}?" if near else f"; see {program} --help"
    return UserError(f"unknown option {name}{hint}")


def _option_names(options: Any) -> Iterator[str]:
    """Every `--name` of a dataclass and of the groups inside it."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _option_names(hints[field.name])
        elif field.name != "words":
            yield "--" + field.name.replace("_", "-")
