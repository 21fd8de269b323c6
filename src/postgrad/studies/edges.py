"""Fine-tuning only the important edges, against all edges, random and large ones: accuracy against steps and time.

>>> python -m postgrad.studies.edges --recipe recipes/edges-digits.yaml --out runs/edges-digits
>>> python -m postgrad.studies.edges --page docs/ledger/edges.md --runs runs/edges-digits

The first line runs a study, or goes on with it: each finished training is kept as a file, and the same line given
again takes it from there. The second makes the page of the ledger from finished studies.

Each seed trains a base network on the first half of the training data, stopped early, and every arm fine-tunes that
base on the second half for the same number of steps. Masks are made on the second half's training images. Learning
rates come from one grid, by accuracy on the second half's validation part; test images are only scored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from postgrad.data.datasets import Dataset, load_dataset
from postgrad.errors import UserError
from postgrad.evaluation.statistics import t_interval, verdicts
from postgrad.files import locked, write_atomic
from postgrad.reports.edge_chart import draw_curves
from postgrad.reports.edge_drawing import write_picture
from postgrad.studies.edges_page import write_page
from postgrad.studies.edges_pieces import KINDS, Arm, EdgeStudy, Seed
from postgrad.studies.environment import environment
from postgrad.studies.run import write_arrays
from postgrad.validation import read_yaml, validated


def arms(config: EdgeStudy) -> list[Arm]:
    """All arms of a study."""
    return [Arm("all"), *(Arm(kind, share) for share in config.shares for kind in KINDS)]


def run_study(config: EdgeStudy, directory: Path, *, data_dir: Path | None = None) -> dict[str, Any]:
    """Run what is missing of a study in `directory`, and write its results.json, chart and predictions.

    >>> results = run_study(EdgeStudy(data="digits", seeds=2), Path("runs/edges-digits"))
    >>> {arm["name"]: arm["accuracy"]["mean"] for arm in results["arms"]}

    Raises `UserError` where the directory holds a study with other settings.
    """
    dataset = load_dataset(config.data, data_dir=data_dir, limit=config.limit)
    if dataset.train is None or dataset.test is None:
        raise UserError(f"{config.data}: the study needs training and test images; name another data set")
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        _check_settings(config, directory)
        seeds = [Seed(config, dataset, directory / f"seed-{seed}", seed) for seed in range(config.seeds)]
        chosen = {arm: _tuned(arm, seeds, config) for arm in arms(config)}
        results = _collect(config, dataset, seeds, chosen)
        write_atomic(directory / "results.json", json.dumps(results, indent=1))
        predictions = {
            f"{arm.name}-seed{s.seed}": s.predictions(arm, rate) for arm, rate in chosen.items() for s in seeds
        }
        bases = {f"base-seed{s.seed}": s.base_predictions() for s in seeds}
        labels = dataset.test.labels.to(torch.uint8)
        write_arrays(directory / "predicted.npz", labels=labels, **bases, **predictions)
    write_picture(draw_curves(results), directory, "curves")
    return results


def _tuned(arm: Arm, seeds: Sequence[Seed], config: EdgeStudy) -> float:
    """Train the grid on the first seeds and the best rate on all; returns that rate.

    A rate at which the loss became infinite with any seed is left out, and the next best takes its place.
    """
    trials = {rate: [seed.fine_tuned(arm, rate) for seed in seeds[: config.tuning_seeds]] for rate in config.rates}
    for rate in sorted(trials, key=lambda rate: _quality(trials[rate]), reverse=True):
        if not any("diverged" in seed.fine_tuned(arm, rate) for seed in seeds):
            return rate
    raise UserError(f"{arm.name}: the loss became infinite at every learning rate; give lower ones")


def _quality(records: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Mean validation accuracy, then NLL; a rate that diverged comes last."""
    if any("diverged" in record for record in records):
        return -1.0, 0.0
    validation = [record["validation"] for record in records]
    return float(np.mean([v["accuracy"] for v in validation])), -float(np.mean([v["nll"] for v in validation]))


def _collect(config: EdgeStudy, dataset: Dataset, seeds: Sequence[Seed], chosen: dict[Arm, float]) -> dict[str, Any]:
    assert dataset.train is not None
    assert dataset.test is not None
    labels = dataset.test.labels.numpy()
    correct = {arm.name: [s.predictions(arm, rate) == labels for s in seeds] for arm, rate in chosen.items()}
    correct["base"] = [s.base_predictions() == labels for s in seeds]
    comparisons = {
        f"gradient-{100 * share:g}": ["base", "all", f"magnitude-{100 * share:g}", f"random-{100 * share:g}"]
        for share in config.shares
    }
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "n_train": len(seeds[0].setting.tuning_images),
        "n_validation": len(seeds[0].setting.validation),
        "n_test": len(dataset.test),
    }
    return {
        "schema": 1,
        "study": "edges",
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "data": data,
        "base": {**_summary([s.base_record for s in seeds]), "seeds": [s.base_record for s in seeds]},
        "arms": [_arm(arm, rate, seeds, config) for arm, rate in chosen.items()],
        "verdicts": verdicts(correct, comparisons),
    }


def _arm(arm: Arm, rate: float, seeds: Sequence[Seed], config: EdgeStudy) -> dict[str, Any]:
    records = [seed.fine_tuned(arm, rate) for seed in seeds]
    trials = {tried: [seed.fine_tuned(arm, tried) for seed in seeds[: config.tuning_seeds]] for tried in config.rates}
    tuning = sum(record["cpu_seconds"] for tried in trials.values() for record in tried)
    return {
        "name": arm.name,
        "kind": arm.kind,
        "share": arm.share,
        "trained": records[0]["trained"],
        "rate": rate,
        "trials": {f"{tried:g}": _quality(found)[0] for tried, found in trials.items()},
        "tuning_cpu_seconds": tuning,
        **_summary(records),
        "cpu_seconds": float(np.mean([record["cpu_seconds"] for record in records])),
        "ranking_cpu_seconds": float(np.mean([record["ranking_cpu_seconds"] for record in records])),
        "seeds": records,
    }


def _summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Test accuracy and NLL over seeds, each with its mean, values and 95 % interval."""
    return {
        metric: {"mean": float(np.mean(values)), "ci95": t_interval(values), "values": values}
        for metric in ("accuracy", "nll")
        for values in [[record["test"][metric] for record in records]]
    }


def _check_settings(config: EdgeStudy, directory: Path) -> None:
    """Write the settings of a new study; refuse to go on with one that had others."""
    file = directory / "config.yaml"
    if not file.exists():
        write_atomic(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        return
    began = validated(EdgeStudy, read_yaml(file), source=str(file))
    changed = [name for name in EdgeStudy.model_fields if getattr(began, name) != getattr(config, name)]
    if changed:
        raise UserError(f"{directory} holds a study with other settings ({', '.join(changed)}); choose another --out")


def _config(options: argparse.Namespace) -> EdgeStudy:
    """The recipe's settings, and in their place those given on the command line."""
    settings = read_yaml(options.recipe) if options.recipe else {}
    names = ("data", "model", "limit", "seeds", "base_accuracy", "epochs", "tuning_seeds", "ranking_images")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return validated(EdgeStudy, settings | given, source=str(options.recipe or "options"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m postgrad.studies.edges",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, help="settings as YAML; options given here take their place")
    for name in ("data", "model"):
        parser.add_argument(f"--{name}")
    for name in ("limit", "seeds", "tuning-seeds", "ranking-images"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("base-accuracy", "epochs"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--data-dir", type=Path, help="where the data sets lie; default $POSTGRAD_DATA")
    parser.add_argument("--out", type=Path, help="the study's folder; one that is there is gone on with")
    parser.add_argument("--page", type=Path, help="make this page of the ledger from its raw results")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="finished studies, copied beside it first")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study, or make the page; 0 done, 2 the user's mistake, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        if options.page is not None:
            write_page(options.page, options.runs)
            return 0
        if options.out is None:
            raise UserError("--out is missing; name the study's folder, or --page to make the page of the ledger")
        run_study(_config(options), options.out.expanduser(), data_dir=options.data_dir)
    except UserError as error:
        print(f"postgrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("postgrad: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
