"""What GradNet is worth: accuracy against time, what it adds to a converged network, and the search beyond it.

>>> python -m postgrad.studies.worth curve recipes/worth/cifar10.yaml --data-dir DIR --out runs/worth
>>> python -m postgrad.studies.worth curve recipes/worth/cifar10.yaml --out runs/worth --draw

Every network and every second stage is a piece of its own: a finished one is kept in the folder --out, and a training
that was interrupted, also by `kill -9`, goes on from its last checkpoint. With --draw nothing is trained: the raw
results of that part are copied beside the ledger's page, and its tables and charts are made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from postgrad.errors import UserError
from postgrad.evaluation.statistics import verdicts
from postgrad.files import locked, write_atomic
from postgrad.studies.environment import environment
from postgrad.studies.run import write_arrays
from postgrad.studies.worth_beyond import beyond
from postgrad.studies.worth_converged import converged
from postgrad.studies.worth_curve import curve
from postgrad.studies.worth_page import draw_page
from postgrad.studies.worth_pieces import Study, load_data, open_study
from postgrad.studies.worth_recipe import WorthRecipe
from postgrad.studies.worth_rows import Row, accuracy
from postgrad.training import make_fabric
from postgrad.validation import read_yaml, validated

PARTS: dict[str, Callable[[Study], Iterator[Row]]] = {"curve": curve, "converged": converged, "beyond": beyond}


def run_part(part: str, recipe: WorthRecipe, *, data_dir: Path | None, out: Path) -> Path:
    """Train and score what one part still lacks; returns its results, `out/PART.json`.

    >>> run_part("curve", recipe, data_dir=Path("data"), out=Path("runs/worth"))
    PosixPath('runs/worth/curve.json')

    The results are written anew after each row, with the predictions on the test images beside them in PART.npz.
    Raises `UserError` for a part that the recipe does not have, and for pieces in `out` made with other settings.
    """
    if getattr(recipe, part) is None:
        raise UserError(f"the recipe has no part '{part}'; add one, or name another")
    torch.set_num_threads(recipe.threads)
    dataset = load_data(recipe, data_dir)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        studies = [open_study(recipe, dataset, out, seed) for seed in recipe.seeds]
        rehearse(studies[0], part)
        rows: list[tuple[int, Row]] = []
        for study in studies:
            for row in PARTS[part](study):
                rows.append((study.seed, row))
                _write(studies[0], part, rows, out)
    return out / f"{part}.json"


def rehearse(study: Study, part: str) -> None:
    """Try every stage of a part on a few images, so that what does not fit is said before hours of training.

    What is loaded or compiled at its first use is so now, and not charged to the first piece.
    """
    make_fabric(study.recipe.device)
    config = getattr(study.recipe, part)
    stages = [setting.stage for setting in config.settings] if part == "beyond" else [config.stage]
    network = study.fresh()
    for stage in stages:
        study.stage(stage, network).rehearse(study.validation.images[:3])


def keep_raw(part: str, out: Path, raw: Path) -> None:
    """Copy the results of a part and its predictions to where they are committed."""
    if not (out / f"{part}.json").exists():
        raise UserError(f"{out} has no results of the part '{part}'; run it first, without --draw")
    raw.mkdir(parents=True, exist_ok=True)
    for suffix in ("json", "npz"):
        shutil.copyfile(out / f"{part}.{suffix}", raw / f"{part}.{suffix}")


def _write(study: Study, part: str, rows: Sequence[tuple[int, Row]], out: Path) -> None:
    predictions = {f"{row.name}-seed{seed}": row.test.argmax(1) for seed, row in rows if row.test is not None}
    arrays = {name: classes.numpy().astype(np.uint8) for name, classes in predictions.items()}
    write_arrays(out / f"{part}.npz", labels=study.test.labels.numpy().astype(np.uint8), **arrays)
    results = {
        "part": part,
        "recipe": study.recipe.model_dump(mode="json", include={"data", "model", "limit", "seeds", "threads", part}),
        "images": {
            "fingerprint": study.dataset.fingerprint,
            "first_half": len(study.first),
            "second_half": len(study.second),
            "validation": len(study.validation),
            "test": len(study.test),
        },
        "environment": environment(),
        "rows": [_as_json(study, seed, row) for seed, row in rows],
        "verdicts": _verdicts(study, rows),
    }
    write_atomic(out / f"{part}.json", json.dumps(results, indent=1))


def _as_json(study: Study, seed: int, row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "seed": seed,
        "validation_accuracy": round(accuracy(row.validation, study.validation.labels), 5),
        "test_accuracy": None if row.test is None else round(accuracy(row.test, study.test.labels), 5),
        "cpu_seconds": round(row.cpu_seconds, 1),
        "total_cpu_seconds": round(row.total_cpu_seconds, 1),
        "passes": row.passes,
        "description": row.description,
        "details": row.details,
    }


def _verdicts(study: Study, rows: Sequence[tuple[int, Row]]) -> list[dict[str, Any]]:
    """Each row beside those that it is compared with, where all of them have been scored for the same seeds."""
    correct: dict[str, list[np.ndarray]] = {}
    for _, row in rows:
        if row.test is not None:
            correct.setdefault(row.name, []).append((row.test.argmax(1) == study.test.labels).numpy())
    compared = {
        row.name: [other for other in row.against if len(correct.get(other, ())) == len(correct[row.name])]
        for _, row in rows
        if row.against
    }
    return [entry for entry in verdicts(correct, compared) if entry["p"] is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, or draw, one part of the study; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS), help="which part")
    parser.add_argument("recipe", type=Path, help="the YAML file with its settings")
    parser.add_argument("--data-dir", type=Path, help="where the data lie")
    parser.add_argument("--out", type=Path, required=True, help="the folder of its pieces and results")
    parser.add_argument("--draw", action="store_true", help="train nothing; keep raw results and draw the page")
    parser.add_argument(
        "--page", type=Path, default=Path("docs/ledger/worth.yaml"), help="the page's words, for --draw"
    )
    options = parser.parse_args(arguments)
    try:
        recipe = validated(WorthRecipe, read_yaml(options.recipe), source=str(options.recipe))
        if options.draw:
            raw = options.page.parent / "raw" / options.page.stem
            keep_raw(options.part, options.out, raw)
            draw_page(options.page, raw)
        else:
            run_part(options.part, recipe, data_dir=options.data_dir, out=options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{options.out} keeps everything so far; give the same command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
