"""The learning curve on disk: metrics.csv, and TensorBoard's event file where that is installed."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from postgrad.files import disk_errors

Row = dict[str, float]


@contextlib.contextmanager
def learning_curve(directory: Path | None, rows: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
    """Give a function that writes one more row; without a directory it does nothing.

    `rows` are those of an interrupted training up to its checkpoint: what was written after it is dropped.
    """
    if directory is None:
        yield lambda row: None
        return
    path = directory / "metrics.csv"
    with disk_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        file = open(path, "w", newline="", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed by the `with` below)
    with file, event_file(directory, purge_from=int(rows[-1]["step"]) + 1 if rows else 0) as write_events:

        def write_csv(row: Row) -> None:
            with disk_errors(path):
                if file.tell() == 0:
                    csv.writer(file).writerow(row)
                csv.writer(file).writerow(row.values())

        def write(row: Row) -> None:
            write_csv(row)
            write_events(row)

        for row in rows:
            write_csv(row)
        yield write


@contextlib.contextmanager
def event_file(directory: Path, purge_from: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Give a function that writes the figures of a step into TensorBoard's event file, or nothing without it.

    Of an earlier file in the directory, what it holds from the step `purge_from` on counts no more.
    """
    if importlib.util.find_spec("tensorboard") is None:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    def write(row: Mapping[str, float]) -> None:
        for name in row.keys() - {"step"}:
            writer.add_scalar(name, row[name], int(row["step"]))

    with SummaryWriter(directory, purge_step=purge_from) as writer:
        yield write
