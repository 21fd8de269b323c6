"""`postgrad doctor`: what is installed, whether it fits together, what this machine can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from postgrad.cli.console import print_json, table
from postgrad.cli.options import Flag

_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Options:
    """Tell what is installed, whether it fits together, and what this machine can do."""

    json: Flag = False
    """Print one JSON document on standard output."""


def run(options: Options) -> int:
    """Examine and print."""
    from postgrad.doctor import examine

    report = examine()
    if options.json:
        print_json(report)
        return 0
    print(table(["package", "version", "for"], list(_version_rows(report["versions"]))))
    print()
    for name, value in report["machine"].items():
        print(f"{name.replace('_', ' ')}: {_plain(value)}")
    print()
    for check in report["checks"]:
        print(f"{_MARKS[check['state']]}: {check['name']}: {check['found']}")
        if check["advice"]:
            print(f"    {check['advice']}")
    return 0


def _version_rows(versions: Mapping[str, Mapping[str, str | None]]) -> list[list[str]]:
    return [
        [package, found or "not installed", "" if extra == "core" else f"[{extra}]"]
        for extra, packages in versions.items()
        for package, found in packages.items()
    ]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(", ".join(f"{k} {_plain(v)}" for k, v in item.items()) for item in value) or "none"
    return "none" if value is None else str(value)
