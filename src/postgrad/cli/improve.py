"""`postgrad improve`: a trained network, or a fresh one, and data: better classifiers, controls, a report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from postgrad.cli.console import prepared, print_json, say
from postgrad.cli.options import (
    Count,
    DataOptions,
    File,
    Folder,
    MachineOptions,
    ModelOptions,
    Number,
    PreprocessOptions,
    Repeated,
    Seed,
    Text,
    Time,
    given,
    preprocess_flags,
    resumed_config,
)
from postgrad.cli.results import improvement_table
from postgrad.errors import UserError
from postgrad.studies.config import ImproveConfig
from postgrad.validation import read_yaml, validated


@dataclass(frozen=True)
class RunOptions:
    """What is done, and where the results go."""

    method: Annotated[Repeated, tyro.conf.arg(metavar="NAME[:KEY=VALUE,...]", help_behavior_hint="(repeatable)")] = ()
    """A method and its options, such as gradnet:epochs=10,hidden=5+100+25. Default: gradnet."""
    epochs: Number = None
    """Passes over its images of a base network that is trained here, at most. Default: 30."""
    budget: Time = None
    """The training time of each method, such as 90s, 10m or 1h. Default: the method's own epochs."""
    base_accuracy: Number = None
    """Stop such a base network at this validation accuracy, such as 0.72. Default: 0.85 for digits, else none."""
    controls: Annotated[Text, tyro.conf.arg(metavar="NAME[,NAME,...]")] = None
    """Which controls each method gets, such as control-finetune,control-features. Default: all four."""
    seed: Seed = None
    """Run with this seed. Default: 0."""
    seeds: Count = None
    """Run with the seeds 0 ... N-1."""
    recipe: File = None
    """A YAML file with any of these settings; options given here take their place."""
    out: Folder = None
    """Where the results go; one that holds something is left alone, and DIR-2, ... is used. Default: runs/improve."""
    resume: Folder = None
    """Go on with an interrupted run, with its own settings."""


@dataclass(frozen=True)
class Options:
    """Make a trained network better, and prove each gain against a fair control.

    postgrad improve --model my_net.py:build --weights my.safetensors --data folder:pictures --size 224
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Settle the settings, improve, print the table."""
    groups = (options.run, options.data, options.model, options.preprocess, options.machine)
    config = resumed_config(ImproveConfig, options.run.resume, groups) if options.run.resume else configured(options)
    with prepared(options.machine):
        from postgrad.studies.improve import improve

        directory = improve(config)
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    if options.machine.json:
        print_json(results)
    else:
        for kind in ("notes", "warnings"):
            for text in results[kind]:
                say(f"{kind.removesuffix('s')}: {text}")
        print(improvement_table(results))
        say(f"\nreport: {directory / 'report.html'}")
    return 0


def configured(options: Options) -> ImproveConfig:
    """The settings of a new run: the recipe's, and in their place those given on the command line."""
    flags = given(options.run, options.data, options.model) | preprocess_flags(options.preprocess)
    flags |= {key: value for key, value in given(options.machine).items() if key in ("device", "threads")}
    recipe = flags.pop("recipe", None)
    settings: dict[str, Any] = read_yaml(recipe) if recipe else {}
    if "method" in flags:
        flags["methods"] = flags.pop("method")
    if "seed" in flags and "seeds" in flags:
        raise UserError("--seed names one seed and --seeds a number of them; give one of the two")
    if "seed" in flags:
        flags["seeds"] = [flags.pop("seed")]
    elif "seeds" in flags:
        flags["seeds"] = list(range(flags["seeds"]))
    return validated(ImproveConfig, settings | flags, source=f"options and {recipe}" if recipe else "options")
