"""What is said of a search while it runs, and what it writes of its individuals."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from postgrad.files import write_atomic
from postgrad.search.board import SearchBoard
from postgrad.search.config import SearchConfig
from postgrad.search.display import View
from postgrad.search.events import Log, recorded
from postgrad.search.individual import Individual
from postgrad.search.jobs import Base, Child
from postgrad.studies.worker import Outcome

Make = Callable[..., Individual]


def write(directory: Path, made: Individual) -> str:
    folder = directory / "population" / made.name
    folder.mkdir(parents=True)
    made.write(folder)
    return made.name


@pytest.fixture
def board(tmp_path: Path, individual: Make, monkeypatch: pytest.MonkeyPatch) -> SearchBoard:
    """The base and two children are finished after a minute, one is refused, and one is at work."""
    monkeypatch.setattr(Log, "of_this_call", lambda _: 60.0)
    ours = SearchBoard(SearchConfig(budget="150s"), tmp_path, Log(tmp_path), lambda _: None)
    jobs = [Base(), *(Child(number, "0" * 12, "wider", individual(0).genes, 0) for number in range(1, 5))]
    for number in range(3):
        ours.begin(0, jobs[number], free_since=0.0)
        ours.finish(
            0, Outcome("done", 1.0, made=write(tmp_path, individual(number, accuracy=0.6 - 0.1 * (number != 1))))
        )
    ours.begin(0, jobs[3], free_since=0.0)
    ours.refuse(0, Outcome("refused", 0.1, "no"))
    ours.begin(1, jobs[4], free_since=0.0)
    return ours


def test_before_the_base_is_finished(tmp_path: Path) -> None:
    ours = SearchBoard(SearchConfig(), tmp_path, Log(tmp_path), lambda _: None)
    assert View(ours).lines() == ["the base is being made"]
    assert View(ours).rows() == []


def test_the_line_says_best_rate_and_time_left(board: SearchBoard) -> None:
    line, at_work = View(board).lines()
    assert line == "best 0.6000 (child 1, 1,001 parameters), 2 children, 1 refused, 2.0 a minute, about 90 s left"
    assert at_work.startswith("  child 4: ")
    write_atomic(
        board.directory / "population" / ".task-4" / "progress.json",
        '{"what": "child 4 (wider)", "done": 30, "total": 90, "unit": "steps", "rate": 2.0, "note": ""}',
    )
    assert View(board).lines()[1] == "  child 4 (wider): 30/90 steps, 2.0/s, 30 s left"


@pytest.mark.parametrize(
    ("settings", "left"), [({"individuals": 8}, "about 180 s left"), ({"multiply_adds": 60}, "about 60 s left")]
)
def test_time_left_of_other_budgets_is_by_the_rate_so_far(
    board: SearchBoard, settings: dict[str, Any], left: str
) -> None:
    board.config = SearchConfig(**settings)
    minutes = left.replace("180 s", "3 min")
    assert View(board).overall().endswith(minutes)


def test_the_table_has_the_population_with_the_best_first(board: SearchBoard) -> None:
    rows = View(board).rows()
    assert [row[:4] for row in rows] == [
        ("*", "1", "wider", "0.6000"), ("", "0", "base", "0.5000"), ("", "2", "wider", "0.5000")
    ]  # fmt: skip
    assert [row[-1] for row in rows] == ["0", "", "0"]
    text = io.StringIO()
    Console(file=text, width=100).print(View(board).drawn())
    assert "mutation" in text.getvalue()
    assert "1,001" in text.getvalue()
    assert "child 4" in text.getvalue()


def test_the_table_on_disk_has_a_row_for_each(tmp_path: Path, individual: Make) -> None:
    made = [individual(0), individual(1, operations=("widen:layer=a,to=3", "deepen:after=b"), accuracy=0.9)]
    with recorded(tmp_path, 0) as record:
        record(made[:1])
        record(made)
    with open(tmp_path / "individuals.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["0", "1"]
    assert rows[1]["operations"] == "widen:layer=a,to=3 deepen:after=b"
    assert (rows[1]["weight_decay"], rows[1]["depth"], rows[1]["accuracy"]) == ("0.0005", "3", "0.9")


def test_tensorboard_is_told_accuracy_and_size(tmp_path: Path, individual: Make) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = [individual(0, accuracy=0.7), individual(1, accuracy=0.6)]
    with recorded(tmp_path, 0) as record:
        record(made[:1])
        record(made)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [round(each.value, 4) for each in events.Scalars("accuracy")] == [0.7, 0.6]
    assert [round(each.value, 4) for each in events.Scalars("best_accuracy")] == [0.7, 0.7]
    assert [each.value for each in events.Scalars("parameters")] == [1000, 1001]
