"""The progress of a search on standard error: its population, the best so far, the rate, the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from postgrad.search.board import JobList, SearchBoard
from postgrad.search.individual import Individual
from postgrad.studies.display import duration, how_far, report_of, shown_lines
from postgrad.studies.scheduler import Running

if TYPE_CHECKING:
    from rich.console import RenderableType

HEADINGS = ("", "child", "mutation", "accuracy", "parameters", "ms", "of")


@dataclass(frozen=True)
class View:
    """What is said of a search, from its board, which another thread goes on with meanwhile."""

    board: SearchBoard

    def lines(self) -> list[str]:
        """The search as it is now: one line, and one for each job at work."""
        return [self.overall(), *_at_work(self.board)]

    def drawn(self) -> RenderableType:
        """The same with a table of the population, the best first."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(*HEADINGS, box=None, pad_edge=False)
        for row in self.rows():
            table.add_row(*row)
        return Group(Text(self.overall()), table, Text("\n".join(_at_work(self.board))))

    def overall(self) -> str:
        """How far it is, in one line."""
        board, finished = self.board, list(self.board.finished)
        if not finished:
            return "the base is being made"
        best, made = board.population.best, len(finished) - 1
        said = [f"best {best.accuracy:.4f} ({_called(best)}, {best.parameters:,} parameters)", f"{made} children"]
        said += [f"{board.refusals} refused"] if board.refusals else []
        said += [f"{len(board.failed)} failed"] if board.failed else []
        if (rate := self.rate()) > 0:
            said.append(f"{60 * rate:.1f} a minute")
        if (seconds := self.seconds_left()) is not None:
            said.append(f"about {duration(seconds)} left")
        return ", ".join(said)

    def rows(self) -> list[tuple[str, ...]]:
        """The population, the best first."""
        best = self.board.population.best if self.board.finished else None
        members = sorted(self.board.population.members, key=lambda each: -each.accuracy)
        return [_row(each, best=each is best, of=_number_of(each.parent, self.board.finished)) for each in members]

    def rate(self) -> float:
        """Children a second, in this call."""
        return self.board.made_now / max(self.board.log.of_this_call(), 1e-9)

    def seconds_left(self) -> float | None:
        """Until the budget is used up, as far as can be said: by time exactly, otherwise at the rate so far."""
        left, elapsed = self.board.left(), self.board.log.elapsed()
        if left == 1.0:
            return None
        return elapsed * left / (1 - left)


@contextlib.contextmanager
def shown(board: SearchBoard | JobList[Any]) -> Iterator[None]:
    """Show the progress of a board within the block: live on a terminal, else every half minute; not with `--quiet`."""
    if isinstance(board, SearchBoard):
        view = View(board)
        with shown_lines(view.lines, view.drawn):
            yield
    else:
        with shown_lines(lambda: _at_work(board)):
            yield


def _row(individual: Individual, *, best: bool, of: str) -> tuple[str, ...]:
    return (
        "*" if best else "",
        str(individual.number),
        individual.mutation or "base",
        f"{individual.accuracy:.4f}",
        f"{individual.parameters:,}",
        f"{individual.latency_ms:.2f}",
        of,
    )


def _number_of(name: str | None, finished: Sequence[Individual]) -> str:
    return next((str(each.number) for each in finished if each.name == name), "")


def _called(individual: Individual) -> str:
    return f"child {individual.number}" if individual.parent else "the base"


def _at_work(board: SearchBoard | JobList[Any]) -> list[str]:
    return [_of_job(running, board) for _, running in sorted(board.running.items())]


def _of_job(running: Running[Any], board: SearchBoard | JobList[Any]) -> str:
    report = report_of(board.directory / running.trial.folder)
    if report is None:
        return f"  {_words(running.trial)}: {duration(time.monotonic() - running.began)}"
    return f"  {report['what']}: {how_far(report)}"


def _words(job: Any) -> str:
    return " ".join(str(part) for part in list(job.label.values())[:2])
