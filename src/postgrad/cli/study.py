"""`postgrad study`: a recipe of methods × seeds: every arm with its controls, on several workers, compared."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from postgrad.cli.console import prepared, print_json, say
from postgrad.cli.options import Count, File, Folder, MachineOptions, Name, Seed, given, resumed_config
from postgrad.cli.results import improvement_table
from postgrad.errors import UserError
from postgrad.studies.study_config import StudyConfig, check_same
from postgrad.validation import read_yaml, validated

_OF_THIS_CALL = ("recipe", "workers", "ray", "ledger", "json", "quiet")
"""Options that are no settings of the study."""


@dataclass(frozen=True)
class RunOptions:
    """What is done, on what, and where the results go."""

    recipe: Annotated[File, tyro.conf.Positional] = None
    """A YAML file that names the data, the model, the arms and the seeds."""
    workers: Seed = None
    """Processes that make one arm each at a time; 0 makes them in this one. Default: as many as there are cores."""
    ray: Name = None
    """Make them on a Ray cluster: local, or the address of one that runs. All its machines must see the results'
    folder."""
    data_dir: Folder = None
    """Where the data sets lie. Default: the recipe's, else $POSTGRAD_DATA, else a cache folder."""
    limit: Count = None
    """Use N training and N test images, stratified, first in file order. Default: the recipe's."""
    seeds: Count = None
    """Run with the seeds 0 ... N-1. Default: the recipe's."""
    out: Folder = None
    """Where the results go; one that holds something is left alone, and DIR-2, ... is used. Default: runs/study."""
    ledger: Annotated[Folder, tyro.conf.arg(metavar="PAGE")] = None
    """Judge the recipe's claims on a page of a replication ledger, such as docs/ledger/NAME, with the raw results."""
    resume: Folder = None
    """Go on with an interrupted study; a recipe that is given as well must be its own."""


@dataclass(frozen=True)
class Options:
    """Compare methods, each with its controls, over several seeds.

    postgrad study recipes/digits-study.yaml
    """

    run: RunOptions = field(default_factory=RunOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Settle the settings, run the study, print the table and what failed."""
    config = resumed(options) if options.run.resume else configured(options)
    ledger = options.run.ledger
    with prepared(options.machine):
        from postgrad.studies.claims import check_ledger, ledger_of_run, raw_of
        from postgrad.studies.study import study

        if ledger is not None:
            check_ledger(ledger, config.claims)
        ended = study(config, workers=options.run.workers, ray=options.run.ray)
    file = ended.directory / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if results is not None:
        show(results, as_json=options.machine.json)
    for failure in ended.failures:
        say(f"postgrad: {failure.arm}, seed {failure.seed}: {failure.reason}")
    if results is not None and not options.machine.json:
        say(f"\nreport: {ended.directory / 'report.html'}")
    if results is not None and ledger is not None:
        command = _command(options.run, raw_of(ledger) / "config.yaml")
        ledger_of_run(ledger, config.claims, ended.directory, command)
        say(f"ledger: {ledger.with_suffix('.md')}")
    return 1 if ended.failures else 0


def _command(run: RunOptions, settings: Path) -> str:
    """The words that make the study again; `settings` are those that were kept, for where no recipe was named."""
    flags = [f"--{name} {value}" for name in ("limit", "seeds") if (value := getattr(run, name)) is not None]
    return " ".join(["postgrad study", str(run.recipe or settings), *flags])


def show(results: dict[str, Any], *, as_json: bool) -> None:
    """The whole document, or the table and the verdicts on accuracy."""
    if as_json:
        print_json(results)
        return
    for kind in ("notes", "warnings"):
        for text in results[kind]:
            say(f"{kind.removesuffix('s')}: {text}")
    of_accuracy = [verdict for verdict in results["verdicts"] if verdict["metric"] == "accuracy"]
    print(improvement_table(results | {"verdicts": of_accuracy}))
    if len(of_accuracy) < len(results["verdicts"]):
        print("verdicts on calibration and selection: results.json, report.html")


def configured(options: Options) -> StudyConfig:
    """The settings of a new study: the recipe's, and in their place those given on the command line."""
    recipe = options.run.recipe
    if recipe is None:
        raise UserError("give a recipe, such as recipes/digits-study.yaml, or --resume DIR")
    flags = given(options.run, options.machine)
    for name in _OF_THIS_CALL:
        flags.pop(name, None)
    config = validated(StudyConfig, read_yaml(recipe) | flags, source=str(recipe))
    if config.resume is not None:
        raise UserError(f"{recipe}: resume belongs on the command line, as in postgrad study --resume {config.resume}")
    return config


def resumed(options: Options) -> StudyConfig:
    """The settings of an interrupted study, from its directory; a recipe given beside them must say the same."""
    directory, recipe = options.run.resume, options.run.recipe
    assert directory is not None
    there = resumed_config(StudyConfig, directory, (options.run, options.machine), of_this_call=_OF_THIS_CALL)
    if recipe is None:
        return there
    given_now = StudyConfig.load(recipe)
    check_same(there, given_now, where=directory, source=recipe)
    return there.model_copy(update={"claims": given_now.claims})
