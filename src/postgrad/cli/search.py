"""`postgrad search`: larger networks bred from a small one by mutation, on several workers, with fair controls."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from postgrad.cli.console import prepared, say
from postgrad.cli.options import (
    Count,
    DataOptions,
    File,
    Folder,
    MachineOptions,
    ModelOptions,
    Name,
    Number,
    PreprocessOptions,
    Repeated,
    Seed,
    Time,
    given,
    preprocess_flags,
    resumed_config,
)
from postgrad.cli.study import show
from postgrad.errors import UserError
from postgrad.search.config import BUDGETS, SearchConfig
from postgrad.validation import read_yaml, validated

_OF_THIS_CALL = ("recipe", "workers", "ray", "ledger", "json", "quiet")
"""Options that are no settings of the search."""


@dataclass(frozen=True)
class RunOptions:
    """How long it goes on, how it breeds, and where the results go."""

    recipe: File = None
    """A YAML file with any settings of a search, these and others; options given here take their place."""
    budget: Time = None
    """Wall-clock time of the search, such as 90s, 10m or 1h; the controls come after it. Default: 10m."""
    individuals: Count = None
    """Instead, how many children are trained."""
    multiply_adds: Number = None
    """Instead, how many multiply-adds all training may take, such as 1e13."""
    preset: Name = None
    """How probable each mutation is: seed | uniform | adaptive. Default: seed."""
    mutation_file: Annotated[Repeated, tyro.conf.arg(metavar="FILE.py", help_behavior_hint="(repeatable)")] = ()
    """A Python file that registers mutations of your own."""
    mutations: Name = None
    """The mutations that there are, such as deeper,wider. Default: the preset's."""
    objective: Name = None
    """accuracy | pareto: over accuracy, parameters and measured latency. Default: accuracy."""
    population: Count = None
    """Networks that are bred from at a time. Default: 8."""
    max_parameters: Count = None
    """No network may have more."""
    max_multiply_adds: Number = None
    """No network may take more for an image, such as 1e7."""
    workers: Seed = None
    """Processes that make one network each at a time; 0 makes them in this one. Default: as many as there are cores."""
    ray: Name = None
    """Make them on a Ray cluster: local, auto, or HOST:PORT. All its machines must see the results' folder."""
    seed: Seed = None
    """Default: 0."""
    out: Folder = None
    """Where the results go; one that holds something is left alone, and DIR-2, ... is used. Default: runs/search."""
    ledger: Annotated[Folder, tyro.conf.arg(metavar="PAGE")] = None
    """Judge the recipe's claims on a page of a replication ledger, such as docs/ledger/NAME, with the raw results."""
    resume: Folder = None
    """Go on with an interrupted search, with what is left of its budget."""


@dataclass(frozen=True)
class Options:
    """Breed larger networks from a small one by mutation with inherited weights.

    postgrad search --model recipes/networks.py:small3 --data cifar10 --budget 15m
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Settle the settings, search, print the best and what it is compared with."""
    groups = (options.run, options.data, options.model, options.preprocess, options.machine)
    if options.run.resume:
        if options.run.recipe is not None:
            raise UserError("--resume goes on with the search's own settings; leave out --recipe")
        config = resumed_config(SearchConfig, options.run.resume, groups, of_this_call=_OF_THIS_CALL)
    else:
        config = configured(options)
    ledger = options.run.ledger
    with prepared(options.machine):
        from postgrad.search.search import search
        from postgrad.studies.claims import check_ledger, ledger_of_run, raw_of

        if ledger is not None:
            check_ledger(ledger, config.claims)
        ended = search(config, workers=options.run.workers, ray=options.run.ray)
    results = json.loads((ended.directory / "results.json").read_text(encoding="utf-8"))
    show(results, as_json=options.machine.json)
    if not options.machine.json:
        best, base = ended.best, ended.individuals[0]
        of = f"child {best.number}" if best.parent else "the base"
        say(
            f"\nbest of {len(ended.individuals) - 1} children: {of}, {best.parameters:,} parameters (base "
            f"{base.parameters:,}), validation accuracy {best.accuracy:.4f} (base {base.accuracy:.4f})"
        )
        say(f"report: {ended.directory / 'report.html'}")
    if ledger is not None:
        settings = options.run.recipe or raw_of(ledger) / "config.yaml"
        ledger_of_run(ledger, config.claims, ended.directory, f"postgrad search --recipe {settings}")
        say(f"ledger: {ledger.with_suffix('.md')}")
    return 0


def configured(options: Options) -> SearchConfig:
    """The settings of a new search: the recipe's, and in their place those given on the command line."""
    flags = given(options.run, options.data, options.model, options.machine) | preprocess_flags(options.preprocess)
    if "mutation_file" in flags:
        flags["mutation_files"] = flags.pop("mutation_file")
    recipe = flags.pop("recipe", None)
    for name in _OF_THIS_CALL:
        flags.pop(name, None)
    settings: dict[str, Any] = read_yaml(recipe) if recipe else {}
    if "resume" in settings:
        raise UserError(f"{recipe}: resume belongs on the command line, as in postgrad search --resume DIR")
    if flags.keys() & set(BUDGETS):
        settings = {name: value for name, value in settings.items() if name not in BUDGETS}
    return validated(SearchConfig, settings | flags, source=_source(recipe))


def _source(recipe: Path | None) -> str:
    return f"options and {recipe}" if recipe else "options"
