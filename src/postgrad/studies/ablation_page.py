"""The page of the ablations and its figures: accuracy against passes, one line for each setting of a group."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from postgrad.files import atomic_path, write_atomic
from postgrad.studies.ablation_recipe import Ablations, Group, separator_file, setting_file
from postgrad.validation import read_yaml, validated

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind readers can tell apart; lines beyond these six are dashed."""

MARKERS = ("o", "s", "^", "D", "v", "P")
"""The first for the published setting; with five for six colours and two dashes no two lines look the same."""

COMMAND = "python -m postgrad.studies.ablations recipes/ablations/gradnet.yaml --data-dir DIR --out runs/ablations"

Results = Mapping[str, Mapping[str, Any] | None]
"""What was measured for each label, None for what has not been run."""


class Page(BaseModel):
    """The words of the page; figures and tables come from the raw results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    source: str
    introduction: str
    findings: str = ""


def draw(recipe: Ablations, docs: Path, out: Path | None) -> None:
    """Write `ledger/ablations.md` and `images/ablation-GROUP.png` in `docs` from `ledger/raw/ablations`.

    With `out` the finished results of that study are copied to the raw results first. The page's words come from
    `ledger/ablations.yaml`.
    """
    page = validated(Page, read_yaml(docs / "ledger" / "ablations.yaml"), source="ablations.yaml")
    raw = docs / "ledger" / "raw" / "ablations"
    if out is not None:
        _keep_raw(out, raw)
    base = _found(raw / "base.json")
    groups = {name: _of_group(recipe, group, raw) for name, group in recipe.groups.items()}
    for name, results in groups.items():
        if base is not None and any(_curve(result) for result in results.values()):
            with atomic_path(docs / "images" / f"ablation-{name}.png") as temporary:
                _picture(recipe.groups[name].title, results, base, temporary)
    parts = [f"# {page.title}", f"Source: {page.source}", page.introduction.strip(), _facts(recipe, base, raw)]
    if page.findings:
        parts += ["## What this says", page.findings.strip()]
    for name, results in groups.items():
        parts += _section(recipe.groups[name].title, name, results, docs)
    parts += ["## Separators", _separators(recipe, raw)]
    write_atomic(docs / "ledger" / "ablations.md", "\n\n".join(parts) + "\n")


def _keep_raw(out: Path, raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    for file in [*sorted((out / "settings").glob("*.json")), out / "recipe.yaml", out / "environment.json"]:
        shutil.copyfile(file, raw / file.name)


def _of_group(recipe: Ablations, group: Group, raw: Path) -> Results:
    return {
        label: _found(setting_file(raw, {**recipe.gradnet, **options}, recipe.gradnet))
        for label, options in group.settings.items()
    }


def _found(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _curve(result: Mapping[str, Any] | None) -> Sequence[Mapping[str, float]]:
    """The points of a learning curve; none for a setting that diverged or was not run."""
    return [] if result is None else result.get("curve", [])


def _picture(title: str, results: Results, base: Mapping[str, Any], path: Path) -> None:
    """Test accuracy against passes; the published setting in black, names in the order in which the lines end."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = {label: _curve(result) for label, result in results.items() if _curve(result)}
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    others = [label for label in drawn if "published" not in label]
    for label, curve in drawn.items():
        number = others.index(label) if label in others else None
        axes.plot(
            [row["epoch"] for row in curve],
            [100 * row["test_accuracy"] for row in curve],
            label=label,
            color="black" if number is None else COLOURS[number % len(COLOURS)],
            linestyle="--" if number is not None and number >= len(COLOURS) else "-",
            linewidth=2.4 if number is None else 1.6,
            marker=MARKERS[0 if number is None else 1 + number % (len(MARKERS) - 1)],
            markersize=5,
        )
    axes.axhline(100 * base["test_accuracy"], color="grey", linestyle=":", label="base network")
    axes.set(xlabel=f"passes over {base['numbers']['images']:,} images", title=title)
    axes.set_ylabel(f"accuracy on {base['numbers']['test']:,} test images, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    ends = {label: curve[-1]["test_accuracy"] for label, curve in drawn.items()} | {
        "base network": base["test_accuracy"]
    }
    order = sorted(range(len(labels)), key=lambda i: -ends[labels[i]])
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside right upper", frameon=False)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _facts(recipe: Ablations, base: Mapping[str, Any] | None, raw: Path) -> str:
    """What was run on what, in one paragraph."""
    command = (
        "`python -m postgrad.studies.ablations recipes/ablations/gradnet.yaml --data-dir DIR --out runs/ablations`"
    )
    if base is None:
        return f"Not run yet: {command}."
    numbers, surroundings = base["numbers"], _found(raw / "environment.json")
    assert surroundings is not None
    stopped = "" if base["reached_target"] else " (which it did not reach)"
    return (
        f"{command}. {recipe.data}, seed {recipe.seed}; {recipe.model} stopped at a validation accuracy of "
        f"{recipe.base_accuracy:g}{stopped} after {base['steps']:,} steps and {base['cpu_seconds']:.0f} CPU s. On the "
        f"whole test set ({numbers['whole_test']:,} images) the base has {base['whole_test_accuracy']:.4f}, on the "
        f"{numbers['test']:,} of them that all figures below are over {base['test_accuracy']:.4f}, on the "
        f"{numbers['validation']:,} validation images {base['validation_accuracy']:.4f}. GradNet is fitted on "
        f"{numbers['images']:,} images of the second half. {surroundings['processor']}, {surroundings['threads']} "
        f"thread(s), torch {surroundings['versions']['torch']}. Raw results: [base.json](raw/ablations/base.json) and "
        "the files beside it."
    )


def _section(title: str, name: str, results: Results, docs: Path) -> list[str]:
    heads = ["setting", "learning rate", "validation", "test", "passes", "CPU s", "parameters"]
    parts = [f"## {title}"]
    if (docs / "images" / f"ablation-{name}.png").exists():
        parts.append(f"![{title}: accuracy against passes](../images/ablation-{name}.png)")
    return [*parts, _table(heads, [_row(label, result) for label, result in results.items()])]


def _row(label: str, result: Mapping[str, Any] | None) -> list[str]:
    if result is None:
        return [label, "", "not run", "", "", "", ""]
    if "curve" not in result:
        return [label, "", "diverged", "", "", "", ""]
    last, rates = result["curve"][-1], [trial["lr"] for trial in result["trials"]]
    rate = f"{result['options'].get('lr', 0.01):g}"
    return [
        label,
        f"{rate} of {', '.join(f'{value:g}' for value in rates)}" if rates else rate,
        f"{last['validation_accuracy']:.4f}",
        f"{last['test_accuracy']:.4f}",
        f"{last['epoch']:g}",
        f"{last['cpu_seconds'] + result['statistics_cpu_seconds']:.0f}",
        f"{result['parameters']:,}",
    ]


def _separators(recipe: Ablations, raw: Path) -> str:
    rows = []
    size = recipe.separators.size
    for name in recipe.separators.names:
        result = _found(separator_file(raw, name))
        if result is None:
            rows.append([name, "not run", "", "", ""])
            continue
        figures = [f"{result['accuracy'][part]:.4f}" for part in ("train", "validation", "test")]
        rows.append([name, *figures, f"{result['cpu_seconds']:.0f}"])
    return (
        "The separators read the same gradients under all labels, selected and normalised as published, on centre "
        f"crops, brought to {size} numbers by one random projection: see [Separators](../methods/separators.md). CPU "
        "seconds are those of fitting alone.\n\n"
        + _table(["separator", "training images", "validation", "test", "CPU s"], rows)
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
