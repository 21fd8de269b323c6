"""The page of the ledger on important edges, made from the raw results of its studies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.reports.edge_chart import draw_curves
from postgrad.reports.edge_drawing import write_picture

KEPT = ("results.json", "predicted.npz")

INTRODUCTION = """\
# Important edges

Source: the poster "Improving Neural Networks using Gradient Space" says that finding the important parameters of a
network "could make further training faster and more efficient", and gives no figures.

The question: does fine-tuning only the edges with the largest mean gradient keep the accuracy of fine-tuning
everything, and is it more than random edges, or the largest weights, would do?

Each seed trains a base network on the first half of the training data, stopped early, and every arm fine-tunes that
base on the second half for the same number of steps: SGD with momentum .9, weight decay 5e-4, a cosine schedule to
zero. Edges are chosen within each layer; the rest, biases included, stays as it was, bit for bit. "All" trains all
weights and biases. Gradients rank the edges over images of the second half, and that time counts as the arm's own. Each
arm's learning rate comes from the same grid, by accuracy on a tenth of the second half that nothing is trained on; test
images only score. "Tuning" is the time of all trials of the grid.
"""

HEADS = (
    "arm",
    "trained",
    "test accuracy",
    "95 % interval",
    "NLL",
    "steps",
    "CPU s",
    "of it ranking",
    "tuning, CPU s",
    "learning rate",
)


def write_page(page: Path, runs: Sequence[Path]) -> None:
    """Copy the raw results of finished studies beside the page; make the page and its charts from all that lie there.

    >>> write_page(Path("docs/ledger/edges.md"), [Path("runs/edges-digits")])

    Raw results lie in `raw/edges/STUDY/` beside the page, charts in `../images/`.
    """
    raw = page.parent / "raw" / "edges"
    for run in runs:
        if not (run / "results.json").is_file():
            raise UserError(f"{run} holds no results.json; finish the study first")
        (raw / run.name).mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(run / name, raw / run.name / name)
    studies = sorted(raw.glob("*/results.json"))
    if not studies:
        raise UserError(f"{raw} holds no results; name finished studies with --runs")
    parts = [INTRODUCTION]
    for file in studies:
        results = json.loads(file.read_text(encoding="utf-8"))
        name = file.parent.name
        write_picture(draw_curves(results), page.parent.parent / "images", f"{name}-curves", kinds=("svg",))
        parts.append(section(name, results))
    write_atomic(page, "\n".join(parts))


def section(name: str, results: Mapping[str, Any]) -> str:
    """One study: its table, what it says in numbers, its chart and where the raw results lie."""
    config, data = results["config"], results["data"]
    rows = [_row("base", results["base"]), *(_row(arm["name"], arm) for arm in results["arms"])]
    lines = [HEADS, ["---"] * len(HEADS), *rows]
    grid = ", ".join(f"{rate:g}" for rate in config["rates"])
    surroundings = results["environment"]
    return "\n\n".join(
        [
            f"## {config['model']} on {config['data']}",
            f"`python -m postgrad.studies.edges --recipe recipes/{name}.yaml --out runs/{name}`",
            f"{config['seeds']} seeds; {data['n_train']:,} images to fine-tune on, {data['n_validation']:,} to "
            f"validate, {data['n_test']:,} to test; batches of {config['batch_size']}; learning rates {grid}, chosen "
            f"over {_seeds(config['tuning_seeds'])}; edges ranked over at most {config['ranking_images']:,} images.",
            "\n".join("| " + " | ".join(cells) + " |" for cells in lines),
            _remarks(results),
            f"![Accuracy against steps and time](../images/{name}-curves.svg)",
            "\n".join(_line(verdict) for verdict in results["verdicts"] if verdict["p"] is not None),
            f"Raw results: [results.json](raw/edges/{name}/results.json); {surroundings['processor']}, "
            f"{surroundings['threads']} thread(s), torch {surroundings['versions']['torch']}.\n",
        ]
    )


def _row(name: str, arm: Mapping[str, Any]) -> list[str]:
    accuracy, records = arm["accuracy"], arm["seeds"]
    interval = f"{accuracy['ci95'][0]:.4f} to {accuracy['ci95'][1]:.4f}" if accuracy["ci95"] else "–"
    start = [name, f"{arm['trained']:,}" if "trained" in arm else "–", f"{accuracy['mean']:.4f}", interval]
    start.append(f"{arm['nll']['mean']:.4f}")
    if name == "base":
        steps = sum(record["steps"] for record in records) / len(records)
        seconds = sum(record["cpu_seconds"] for record in records) / len(records)
        return [*start, f"{steps:.0f}", f"{seconds:.2f}", "–", "–", "–"]
    total = arm["cpu_seconds"] + arm["ranking_cpu_seconds"]
    edge = "" if arm["rate"] not in _ends(arm) else " (end of the grid)"
    return [
        *start,
        f"{records[0]['steps']}",
        f"{total:.2f}",
        f"{arm['ranking_cpu_seconds']:.2f}",
        f"{arm['tuning_cpu_seconds']:.1f}",
        f"{arm['rate']:g}{edge}",
    ]


def _ends(arm: Mapping[str, Any]) -> tuple[float, float]:
    rates = sorted(float(rate) for rate in arm["trials"])
    return rates[0], rates[-1]


def _remarks(results: Mapping[str, Any]) -> str:
    """What the table says, in figures that are computed from it."""
    arms = {arm["name"]: arm for arm in results["arms"]}
    whole, base = arms["all"], results["base"]["accuracy"]["mean"]
    gain = whole["accuracy"]["mean"] - base
    lines = []
    for share in results["config"]["shares"]:
        words = []
        for kind in ("gradient", "magnitude", "random"):
            arm = arms[f"{kind}-{100 * share:g}"]
            difference = arm["accuracy"]["mean"] - base
            words.append(f"{kind} {100 * difference:+.2f} points")
        lines.append(f"- {100 * share:g} % of the edges, above the base: {', '.join(words)}; all {100 * gain:+.2f}.")
    per_step = [1000 * arm["cpu_seconds"] / arm["seeds"][0]["steps"] for arm in results["arms"]]
    lines.append(
        f"- A step of fine-tuning everything takes {per_step[0]:.2f} CPU ms, one of a masked arm "
        f"{min(per_step[1:]):.2f} to {max(per_step[1:]):.2f} (validation included)."
    )
    return "\n".join(lines)


def _line(verdict: Mapping[str, Any]) -> str:
    interval = verdict["ci95"]
    within = f" [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]" if interval else ""
    scope = "" if verdict["scope"] == "method" else ", first seed alone"
    return (
        f"- {verdict['method']} against {verdict['control']}: **{verdict['verdict']}**, "
        f"{100 * verdict['difference']:+.2f} points{within}, p = {verdict['p']:.2g} ({verdict['test']}{scope})"
    )


def _seeds(count: int) -> str:
    return "the first seed" if count == 1 else f"the first {count} seeds"
