"""A mutation search from its settings to its results, on as many workers as there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from postgrad.errors import UserError, unknown_name
from postgrad.files import fresh_directory, locked, write_atomic
from postgrad.search.bench import SearchBench
from postgrad.search.board import PATIENCE, JobList, SearchBoard
from postgrad.search.config import SearchConfig
from postgrad.search.context import Context
from postgrad.search.display import shown
from postgrad.search.events import Log, recorded
from postgrad.search.individual import Individual
from postgrad.search.jobs import described
from postgrad.search.mutations import load_mutations, mutation_named
from postgrad.search.parent import Parent
from postgrad.search.presets import PRESETS
from postgrad.search.results import close_search
from postgrad.studies.environment import environment
from postgrad.studies.executors import Executor, InProcess, LocalProcesses, RayActors, check_ray, default_slots, posted
from postgrad.studies.run import resumable
from postgrad.studies.scheduler import AnyJob, run_trials
from postgrad.studies.study import terminated_like_ctrl_c


@dataclass(frozen=True)
class Search:
    """A search that came to its end: where it lies, all its individuals (the base first), the most accurate of them."""

    directory: Path
    individuals: tuple[Individual, ...]
    best: Individual


@dataclass(frozen=True)
class Crew:
    """Who makes the jobs of a search: `workers` processes of this machine, this one (0), or actors of a Ray cluster."""

    context: Context
    workers: int | None
    ray: str | None

    def work(self, board: SearchBoard | JobList[Any], log: Log) -> None:
        """Make all jobs of a board that can be made."""
        config = self.context.config
        if not board.at_once(1):
            return
        with posted("search", self.context.directory, config.threads or 1) as post:
            executor: Executor
            if self.workers == 0:
                executor = InProcess(SearchBench(self.context))
            elif self.ray is not None:
                executor = RayActors(post, self.ray, self.workers, gpu=self.context.device.type == "cuda")
            else:
                executor = LocalProcesses(post, self.workers or default_slots(post.threads))
            with shown(board):
                run_trials(board, executor, log)


def search(config: SearchConfig, *, workers: int | None = None, ray: str | None = None) -> Search:
    """Breed larger networks from a small one: mutated, trained on with inherited weights, the better ones again.

    >>> search(SearchConfig(data="cifar10", model="recipes/networks.py:small3", budget="15m"), workers=2).best
    Individual(name='3f1c77a0be52', number=41, …)

    `workers` are processes of this machine (default: as many as there are cores for), 0 for none but this one; with
    `ray` they are actors of that Ray cluster, "local" for one of this machine alone. A script that calls this with
    workers needs `if __name__ == "__main__":`, since they import it.

    A child that fails is told and left; one whose process dies, or that has too little memory, is tried again twice.
    With `config.resume` an interrupted search goes on with what is left of its budget: all that was finished is there,
    and trainings continue from their checkpoints. Raises `UserError` for settings, data or networks that cannot be
    used, where nothing can be grown, and for a full disk.
    """
    if ray is not None and workers == 0:
        raise UserError("--workers 0 works in this process and --ray in others; give one of the two")
    if ray is not None:
        check_ray(ray)
    if workers != 0 and config.threads is None:
        config = config.model_copy(update={"threads": 1})
    check_names(config)
    context = _claimed(Context.of(config, config.resume or config.out))
    crew, directory = Crew(context, workers, ray), context.directory
    with locked(directory), resumable(directory, "search"), terminated_like_ctrl_c():
        log = Log(directory)
        _begin(context, log)
        finished = sum(event["event"] == "individual" for event in log.before)
        with recorded(directory, finished) as record:
            board = SearchBoard(config, directory, log, record)
            crew.work(board, log)
        if board.stuck():
            context.notes.append(
                f"over early: {PATIENCE} proposals in a row were refused; the last: {board.last_refusal}"
            )
        close_search(context, board.finished, lambda jobs: _failures(crew, jobs, log))
        log("search ends")
    return Search(directory, tuple(board.finished), board.population.best)


def check_names(config: SearchConfig) -> None:
    """Refuse an unknown preset or mutation; the user's own mutations are loaded."""
    for file in config.mutation_files:
        load_mutations(file)
    if config.preset not in PRESETS:
        raise unknown_name("preset", config.preset, PRESETS)
    for name in config.mutations or ():
        mutation_named(name)


def rehearse(context: Context) -> None:
    """Look at the base with new weights as the search will, so that what does not fit is said before any training."""
    model = deepcopy(context.own) if context.own is not None else context.fresh(context.config.seed)
    genes = context.first_genes()
    context.classifier(model).predict_proba(context.images.images[:2])
    context.recipe(genes).make_optimizer(model.parameters())
    base = described(context, 0, model, genes, figures={"accuracy": 0.0, "nll": 0.0})
    PRESETS[context.config.preset].chances(base, mutations=context.config.mutations)
    if not Parent(model.eval(), context.example, base.architecture).sites:
        raise UserError(f"{context.config.model}: it has no place at which a layer could be put in; take one of layers")


def _claimed(context: Context) -> Context:
    """A new search gets a directory of its own, once a rehearsal has shown that all fits together."""
    if context.config.resume is not None:
        return context
    rehearse(context)
    return replace(context, directory=fresh_directory(context.config.out))


def _begin(context: Context, log: Log) -> None:
    """Write down settings and surroundings; a search that goes on must find the data that it began with."""
    config, directory = context.config, context.directory
    began_with = log.before[0].get("data") if log.before else None
    if began_with not in (None, context.fingerprint):
        raise UserError(
            f"{config.data} has changed since {directory} began (fingerprint {began_with} then, {context.fingerprint} "
            "now); start a new search"
        )
    config.save(directory / "config.yaml")
    write_atomic(directory / "environment.json", json.dumps(environment(), indent=1))
    log("search resumes" if config.resume else "search begins", data=context.fingerprint, seed=config.seed)


def _failures(crew: Crew, jobs: Sequence[AnyJob], log: Log) -> dict[AnyJob, str]:
    """Make jobs that need nothing of each other; those that came to nothing, and why."""
    board = JobList(crew.context.directory, jobs)
    crew.work(board, log)
    return board.failed
