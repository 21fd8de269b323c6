"""`postgrad list`: the methods, models and data sets there are."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from postgrad.cli.console import print_json
from postgrad.cli.options import Flag
from postgrad.data.names import DATASETS
from postgrad.methods.registry import METHODS
from postgrad.models.names import BUILT_IN, FORMS

Kind = Literal["all", "methods", "models", "data"]


@dataclass(frozen=True)
class Options:
    """Show the methods, models and data sets there are."""

    kind: Annotated[Kind, tyro.conf.Positional] = "all"
    """Which of them."""
    json: Flag = False
    """Print one JSON document on standard output."""


def run(options: Options) -> int:
    """Print the lists."""
    lists: dict[str, Mapping[str, str | dict[str, str]]] = {
        "methods": {name: _facts(method) for name, method in METHODS.items()},
        "models": {**BUILT_IN, **FORMS},
        "data": DATASETS,
    }
    chosen = {kind: entries for kind, entries in lists.items() if options.kind in ("all", kind)}
    if options.json:
        print_json(chosen)
        return 0
    for kind, entries in chosen.items():
        print(f"{kind}:")
        for name, entry in entries.items():
            print(_entry(name, entry))
        print()
    return 0


def _facts(method: Any) -> dict[str, str]:
    return {key: value for key, value in dataclasses.asdict(method).items() if key not in ("name", "target")}


def _entry(name: str, entry: str | dict[str, str]) -> str:
    if isinstance(entry, str):
        return _wrapped(f"  {name:18}", entry)
    lines = [f"  {name}: {entry['title']}"]
    lines += [_wrapped(f"    {key + ':':10}", text) for key, text in entry.items() if key != "title"]
    return "\n".join(lines)


def _wrapped(start: str, text: str) -> str:
    return textwrap.fill(text, width=110, initial_indent=start + " ", subsequent_indent=" " * (len(start) + 1))
