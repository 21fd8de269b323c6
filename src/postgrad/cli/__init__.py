"""The command line: finds the verb, parses its options, calls one function and prints. Nothing here imports torch."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from postgrad.errors import UserError, unknown_name

VERBS = {
    "improve": (
        "postgrad.cli.improve",
        "a trained network (or a fresh one) and data: better classifiers, and a report",
    ),
    "study": ("postgrad.cli.study", "a recipe of methods × seeds: each with its controls, compared over the seeds"),
    "train": ("postgrad.cli.train", "a network and data: a checkpoint"),
    "predict": ("postgrad.cli.predict", "a classifier and images: a CSV of classes and probabilities"),
    "score": ("postgrad.cli.score", "a classifier and test data: accuracy, calibration, cost"),
    "sample": ("postgrad.cli.sample", "images from a classifier that is an energy model too, as pictures"),
    "edges": ("postgrad.cli.edges", "a network and data: its important edges, as a picture and as masks"),
    "grow": ("postgrad.cli.grow", "a trained network: a larger one that computes the same, with proof"),
    "search": ("postgrad.cli.search", "a small network and data: larger ones, bred by mutation with inherited weights"),
    "report": ("postgrad.cli.report", "a run: its report.html, made again"),
    "export": ("postgrad.cli.export", "a classifier: one file for use elsewhere, checked against the original"),
    "list": ("postgrad.cli.catalogue", "the methods, models and data sets there are"),
    "doctor": ("postgrad.cli.doctor", "what is installed, whether it fits together, what this machine can do"),
}
"""Verb -> the module that holds its `Options` and its `run(options) -> int`, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 2 the user's mistake, 130 interrupted, 1 a bug."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UserError as error:
        print(f"postgrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("postgrad: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough; Python would complain once more when it flushes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        print("postgrad: this is a bug in postgrad; please report it with the lines above", file=sys.stderr)
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"postgrad {version('postgrad')}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        raise unknown_name("option" if verb.startswith("-") else "verb", verb, VERBS)
    from postgrad.cli.parsing import parse

    module = importlib.import_module(VERBS[verb][0])
    try:
        options = parse(module.Options, words[1:], verb=verb)
    except SystemExit:  # --help has been printed
        return 0
    return int(module.run(options))


def _overview() -> str:
    from postgrad import __doc__ as purpose

    verbs = "\n".join(f"  {name:8} {what}" for name, (_, what) in VERBS.items())
    return (
        f"{purpose}\n\nusage: postgrad VERB [options]\n\n{verbs}\n\n"
        "postgrad VERB --help shows the options of a verb; postgrad --version the version.\n"
        "To begin: postgrad improve (the embedded data, a fresh network, a few minutes)."
    )
