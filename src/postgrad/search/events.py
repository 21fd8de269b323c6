"""What a search tells while it runs: events.jsonl, which is the truth, individuals.csv, and TensorBoard's file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from postgrad.files import write_atomic
from postgrad.search.individual import Individual
from postgrad.studies.run import EVENTS, write_event
from postgrad.training.log import event_file

TABLE = "individuals.csv"

Record = Callable[[Sequence[Individual]], None]


class Log:
    """The events of a search: lines that are added, each with the seconds that the search has run by then.

    >>> log = Log(Path("runs/search"))
    >>> log("individual", name="3f1c77a0be52", number=4)
    >>> log.elapsed()
    12.4

    The seconds are summed over its calls: one that goes on counts from the last event there is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        _cut_off_half_a_line(directory / EVENTS)
        self.before = read_events(directory)
        self._used = max((event.get("elapsed", 0.0) for event in self.before), default=0.0)
        self._began = time.monotonic()

    def __call__(self, name: str, /, **content: Any) -> None:
        write_event(self.directory, name, **content, elapsed=round(self.elapsed(), 3))

    def elapsed(self) -> float:
        """Seconds of wall-clock time."""
        return self._used + self.of_this_call()

    def of_this_call(self) -> float:
        """The same, of this call alone."""
        return time.monotonic() - self._began


def read_events(directory: Path) -> list[dict[str, Any]]:
    """The events of a run so far."""
    file = directory / EVENTS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _cut_off_half_a_line(file: Path) -> None:
    """Drop what a full disk or a killed process left unfinished, so that the next event gets a line of its own."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if not text.endswith("\n") and text:
        write_atomic(file, text[: text.rfind("\n") + 1])


@contextlib.contextmanager
def recorded(directory: Path, finished: int) -> Iterator[Record]:
    """Give a function that brings the table and TensorBoard's file up to date, from `finished` individuals on."""
    with event_file(directory, finished) as write_figures:

        def record(individuals: Sequence[Individual]) -> None:
            last = individuals[-1]
            write_atomic(directory / TABLE, _table(individuals))
            write_figures(
                {
                    "step": len(individuals) - 1,
                    "accuracy": last.accuracy,
                    "best_accuracy": max(each.accuracy for each in individuals),
                    "parameters": last.parameters,
                }
            )

        yield record


def _table(individuals: Sequence[Individual]) -> str:
    rows = [_row(each) for each in individuals]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(individual: Individual) -> dict[str, Any]:
    """One individual as plain columns, in which dictionaries are taken apart."""
    fields = asdict(individual)
    del fields["trained"]
    parts = {name: fields.pop(name) for name in ("genes", "architecture")}
    operations = " ".join(fields.pop("operations"))
    return {**fields, "operations": operations, **{k: v for part in parts.values() for k, v in part.items()}}
