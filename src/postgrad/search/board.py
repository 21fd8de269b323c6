"""Which individual of a search is made next: children of a population that changes with each that is finished."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic

import numpy as np

from postgrad.errors import UserError
from postgrad.search.config import SearchConfig
from postgrad.search.context import POPULATION
from postgrad.search.events import Log, Record
from postgrad.search.individual import Genes, Individual
from postgrad.search.jobs import TRAINING, Base, Child, SearchJob, individuals
from postgrad.search.population import Population, genes_of_child
from postgrad.search.presets import PRESETS, Tried
from postgrad.studies.scheduler import AnyJob, Running
from postgrad.studies.worker import Outcome
from postgrad.training.clock import parse_duration

PATIENCE = 100
"""Proposals in a row that come to nothing, after which a search is over: its networks cannot grow any further."""


@dataclass
class _Jobs(Generic[AnyJob]):
    """Jobs at work, those that wait, and how often each was lost."""

    running: dict[int, Running[AnyJob]] = field(default_factory=dict)
    _losses: dict[AnyJob, int] = field(default_factory=dict)
    _waiting: deque[AnyJob] = field(default_factory=deque)

    def begin(self, slot: int, job: AnyJob, *, free_since: float) -> None:
        self.running[slot] = Running(job, time.monotonic(), free_since)

    def lose(self, slot: int) -> tuple[Running[AnyJob], int]:
        running = self.running.pop(slot)
        self._waiting.append(running.trial)
        self._losses[running.trial] = self._losses.get(running.trial, 0) + 1
        return running, self._losses[running.trial]

    def refuse(self, slot: int, outcome: Outcome) -> Running[AnyJob]:
        return self.fail(slot, outcome.reason)

    def fail(self, slot: int, reason: str) -> Running[AnyJob]:
        running = self.running.pop(slot)
        self.give_up(running.trial, reason)
        return running

    def give_up(self, job: AnyJob, reason: str) -> None:
        self._waiting = deque(each for each in self._waiting if each != job)


class JobList(_Jobs[AnyJob]):
    """Jobs that need nothing of each other, in their order; `failed` says which came to nothing, and why."""

    def __init__(self, directory: Path, jobs: Iterable[AnyJob]) -> None:
        super().__init__(_waiting=deque(jobs))
        self.directory = directory
        self.failed: dict[AnyJob, str] = {}

    def at_once(self, slots: int) -> int:
        return min(slots, len(self._waiting))

    def next_ready(self) -> AnyJob | None:
        return self._waiting.popleft() if self._waiting else None

    def finish(self, slot: int, outcome: Outcome) -> Running[AnyJob]:
        return self.running.pop(slot)

    def give_up(self, job: AnyJob, reason: str) -> None:
        super().give_up(job, reason)
        self.failed[job] = reason


class SearchBoard(_Jobs[SearchJob]):
    """Proposes children while the budget lasts, each of a parent from the population as it is then.

    >>> board = SearchBoard(config, directory, log, record)
    >>> run_trials(board, executor, log)
    >>> board.population.best.accuracy

    What earlier calls finished is there from the start, in the order in which it was finished; what they began and did
    not end comes first. Proposals depend on the seed, their number, and what was finished and refused before. The same
    seed with one worker therefore gives the same lineage, interrupted or not, where a number of individuals or of
    multiply-adds ends it; with the objective "pareto" not, since that is about measured latency too.
    """

    def __init__(self, config: SearchConfig, directory: Path, log: Log, record: Record) -> None:
        super().__init__()
        self.config, self.directory, self.log = config, directory, log
        self.population = Population(config.population, config.tournament, config.objective)
        self.tried: list[Tried] = []
        self.failed: dict[int, str] = {}
        self.refusals = 0
        self.last_refusal = ""
        self.made_now = 0
        """Children that were finished in this call."""
        self._in_vain = 0
        self._number = 0
        self._record = record
        self._preset = PRESETS[config.preset]
        self._replay(log.before)

    @property
    def finished(self) -> Sequence[Individual]:
        """All finished individuals, in the order in which they were finished; the base is the first."""
        return self.population.finished

    def at_once(self, slots: int) -> int:
        if self._over():
            return min(slots, len(self._waiting))
        wanted = self.config.individuals
        return slots if wanted is None else min(slots, wanted - self._begun() + len(self._waiting))

    def next_ready(self) -> SearchJob | None:
        if self._waiting:
            return self._waiting.popleft()
        if not self.population.members:
            return None
        while not self._over():
            self._number += 1
            try:
                return self._proposal(self._number)
            except UserError as error:  # no mutation has a chance
                self._note_refusal({"number": self._number}, str(error))
                self.log("refused", job="child", number=self._number, reason=str(error))
        return None

    def finish(self, slot: int, outcome: Outcome) -> Running[SearchJob]:
        running = self.running.pop(slot)
        individual = Individual.read(self.directory / POPULATION / outcome.made)
        assert individual is not None, f"{outcome.made} was made and is not there"
        self._take(individual)
        self.made_now += isinstance(running.trial, Child)
        return running

    def refuse(self, slot: int, outcome: Outcome) -> Running[SearchJob]:
        """The child in a slot was found infeasible before any training."""
        running = self.running.pop(slot)
        self._note_refusal(running.trial.label, outcome.reason)
        return running

    def give_up(self, job: SearchJob, reason: str) -> None:
        """A child that failed is told and left; without a base there is no search."""
        super().give_up(job, reason)
        if isinstance(job, Base):
            raise UserError(f"the base could not be made: {reason}")
        self.log("failed", **job.label, reason=reason)
        shutil.rmtree(self.directory / job.folder / TRAINING, ignore_errors=True)
        self._note_failure(job.label, reason)

    def left(self) -> float:
        """The part of the budget that is left, from 1 to 0."""
        config = self.config
        if config.individuals is not None:
            used = (len(self.finished) - 1) / config.individuals
        elif config.multiply_adds is not None:
            used = sum(each.training_multiply_adds for each in self.finished) / config.multiply_adds
        else:
            assert config.budget is not None
            used = self.log.elapsed() / parse_duration(config.budget)
        return min(max(1 - used, 0.0), 1.0)

    def stuck(self) -> bool:
        """Whether nothing has come of so many proposals that nothing is proposed any more."""
        return self._in_vain >= PATIENCE

    def _over(self) -> bool:
        wanted = self.config.individuals
        return self.stuck() or (self.left() == 0 if wanted is None else self._begun() >= wanted)

    def _begun(self) -> int:
        """Children that are finished, at work, or waiting to be gone on with."""
        open_jobs = [*self._waiting, *(each.trial for each in self.running.values())]
        return max(len(self.finished) - 1, 0) + sum(isinstance(each, Child) for each in open_jobs)

    def _proposal(self, number: int) -> Child:
        draw = np.random.default_rng((self.config.seed, number, 0))
        parent = self.population.parent(draw)
        chances = self._preset.chances(parent, self.tried, self.config.mutations)
        mutation = str(draw.choice(list(chances), p=list(chances.values())))
        genes = genes_of_child(parent.genes, draw) if self.config.genes else parent.genes
        seed = int(np.random.SeedSequence((self.config.seed, number, 1)).generate_state(1)[0])
        return Child(number, parent.name, mutation, genes, seed)

    def _take(self, individual: Individual) -> None:
        """A network is finished: told, and from now on one that children may have as their parent."""
        self.log("individual", **asdict(individual))
        self._add(individual)
        self._record(self.finished)

    def _add(self, individual: Individual) -> None:
        parent = next((each for each in self.finished if each.name == individual.parent), None)
        if parent is not None:
            self.tried.append(Tried(individual.mutation, individual.accuracy - parent.accuracy))
        self.population.add(individual)
        self._in_vain = 0

    def _note_refusal(self, label: dict[str, Any], reason: str) -> None:
        if "mutation" in label:
            self.tried.append(Tried(label["mutation"], None))
        self.refusals += 1
        self._in_vain += 1
        self.last_refusal = reason

    def _note_failure(self, label: dict[str, Any], reason: str) -> None:
        self.failed[label["number"]] = reason
        self._in_vain += 1
        self.last_refusal = reason

    def _replay(self, events: Sequence[dict[str, Any]]) -> None:
        """Take over what earlier calls did."""
        there = {each.name: each for each in individuals(self.directory)}
        begun: dict[int, Child] = {}
        for event in events:
            if event["event"] == "individual":
                self._add(there.pop(event["name"]))
            elif event["event"] == "refused":
                self._note_refusal(event, event["reason"])
            elif event["event"] == "failed":
                self._note_failure(event, event["reason"])
            elif event["event"] == "trial begins" and event.get("job") == "child":
                begun[event["number"]] = _child(event)
            if event["event"] in ("individual", "refused", "failed"):
                begun.pop(event["number"], None)
            self._number = max(self._number, event.get("number", 0))
        for individual in there.values():  # finished, but the process that was to say so was killed
            self._take(individual)
            begun.pop(individual.number, None)
        self._waiting.extend(begun[number] for number in sorted(begun))
        if not self.finished:
            self._waiting.append(Base())


def _child(event: dict[str, Any]) -> Child:
    """The child that an event says was begun."""
    fields = {name: event[name] for name in ("number", "parent", "mutation", "seed")}
    return Child(**fields, genes=Genes(**event["genes"]))
