"""The ledger's page on what GradNet is worth: tables and charts from raw results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from postgrad.evaluation.statistics import MIN_SEEDS
from postgrad.files import write_atomic
from postgrad.studies.worth_curve import ALONE, FINETUNED, HALF, SWITCHED
from postgrad.validation import read_yaml, validated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "curve": "Accuracy against time",
    "converged": "On a network converged on all the data",
    "beyond": "Beyond the original",
}

BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#0072B2", "#D55E00", "#009E73", "#8E44AD", "#CC3311", "#666666"
MARKERS = "vD^P"
"""Colours that are told apart by all eyes, and marks for those who see none."""

Results = Mapping[str, Any]


class Part(BaseModel):
    """The words of one part of the page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str
    introduction: str
    findings: str = ""


class WorthPage(BaseModel):
    """The words of the page; figures come from raw results alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    introduction: str
    curve: Part
    converged: Part
    beyond: Part


def draw_page(words: Path, raw: Path) -> Path:
    """Write the page and its charts beside its words: `worth.md`, `worth-curve.svg`, …; parts not run say so.

    >>> draw_page(Path("docs/ledger/worth.yaml"), Path("docs/ledger/raw/worth"))
    PosixPath('docs/ledger/worth.md')
    """
    page = validated(WorthPage, read_yaml(words), source=str(words))
    sections = [f"# {page.title}", page.introduction.strip()]
    for part in TITLES:
        file = raw / f"{part}.json"
        results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        sections += _section(part, getattr(page, part), results, words)
    target = words.with_suffix(".md")
    write_atomic(target, "\n\n".join(section for section in sections if section) + "\n")
    return target


def _section(part: str, said: Part, results: Results | None, words: Path) -> list[str]:
    head = [f"## {TITLES[part]}", said.introduction.strip(), f"`{said.command}`"]
    if results is None:
        return [*head, "Not run."]
    chart = words.with_name(f"{words.stem}-{part}.svg")
    write_atomic(chart, svg(CHARTS[part](results)))
    return [
        *head,
        f"![{TITLES[part]}]({chart.name})",
        said.findings.strip(),
        _table_of(results),
        _comparisons(results),
        _surroundings(part, results, words),
    ]


def _table_of(results: Results) -> str:
    heads = ["classifier", "what", "validation", "test", "own CPU s", "total CPU s", "passes", "how"]
    rows = []
    for name, entries in by_name(results).items():
        first = entries[0]
        rows.append(
            [
                name,
                first["kind"],
                f"{mean(entries, 'validation_accuracy'):.4f}",
                "–" if first["test_accuracy"] is None else f"{mean(entries, 'test_accuracy'):.4f}",
                f"{mean(entries, 'cpu_seconds'):.0f}",
                f"{mean(entries, 'total_cpu_seconds'):.0f}",
                str(first["passes"]),
                first["description"],
            ]
        )
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _comparisons(results: Results) -> str:
    lines = []
    for entry in results["verdicts"]:
        low, high = (100 * end for end in entry["ci95"])
        scope = "over seeds" if entry["scope"] == "method" else "first seed alone"
        lines.append(
            f"- {entry['method']} against {entry['control']}: **{entry['verdict']}**, "
            f"{100 * entry['difference']:+.2f} points [{low:+.2f}, {high:+.2f}], p = {entry['p']:.2g} "
            f"({entry['test']}, {scope})"
        )
    return "\n".join(lines)


def _surroundings(part: str, results: Results, words: Path) -> str:
    name, images, machine = results["recipe"]["data"], results["images"], results["environment"]
    seeds = len({row["seed"] for row in results["rows"]})
    fewer = "" if seeds >= MIN_SEEDS else f"; fewer than {MIN_SEEDS}, so these are statements about these runs"
    return (
        f"{name}: two halves of {images['first_half']:,} and {images['second_half']:,} training images; "
        f"{images['validation']:,} validation images choose and are never trained on; {images['test']:,} test images. "
        f"{seeds} seed{'s' * (seeds > 1)}{fewer}. {machine['processor']}, {machine['threads']} thread(s), torch "
        f"{machine['versions']['torch']}. Raw results: [{part}.json](raw/{words.stem}/{part}.json), predictions in "
        f"[{part}.npz](raw/{words.stem}/{part}.npz)."
    )


def by_name(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The rows of each classifier, one for each seed, in the order in which they came."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        found.setdefault(row["name"], []).append(row)
    return found


def mean(entries: Sequence[Mapping[str, Any]], key: str) -> float:
    """The mean of a figure over seeds."""
    return fmean(entry[key] for entry in entries)


# charts


def curve_chart(results: Results) -> Figure:
    """Test accuracy against total CPU seconds: a line for training alone in either way, and one for each switch."""
    figure, axes = _canvas(6.4, 4.4)
    lines: dict[str, list[tuple[float, float]]] = {}
    for entries in by_name(results).values():
        point = (mean(entries, "total_cpu_seconds"), 100 * mean(entries, "test_accuracy"))
        lines.setdefault(entries[0]["kind"], []).append(point)
    starts = dict(zip([kind for kind in lines if kind.startswith(SWITCHED)], sorted(lines.get(HALF, [])), strict=False))
    styles: dict[str, dict[str, Any]] = {
        ALONE: {"color": BLUE, "marker": "o", "label": f"training alone: {ALONE}"},
        FINETUNED: {"color": ORANGE, "marker": "s", "linestyle": "--", "label": f"training alone: {FINETUNED}"},
    }
    for number, kind in enumerate(starts):
        colour, mark = (GREEN, PURPLE, RED, GREY)[number % 4], MARKERS[number % len(MARKERS)]
        styles[kind] = {"color": colour, "marker": mark, "linestyle": ":", "label": kind}
    for kind, style in styles.items():
        points = sorted(([starts[kind]] if kind in starts else []) + lines.get(kind, []))
        if points:
            axes.plot(*zip(*points, strict=True), linewidth=1.8, markersize=6, **style)
    ring: dict[str, Any] = {"marker": "o", "markersize": 9, "markerfacecolor": "white", "markeredgecolor": GREY}
    for number, (x, y) in enumerate(starts.values()):
        axes.plot([x], [y], linestyle="", zorder=3, label="" if number else "the switch: one half alone", **ring)
    axes.set_xscale("log")
    ticks = sorted({round(x) for points in lines.values() for x, _ in points})
    axes.set_xticks(_apart(ticks), [str(tick) for tick in _apart(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("total process CPU time in seconds, tuning included")
    axes.set_ylabel("test accuracy in %")
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def converged_chart(results: Results) -> Figure:
    """Test accuracy of each classifier as a dot with its interval over test images, methods set off from controls."""
    rows = [(name, entries) for name, entries in by_name(results).items() if entries[0]["test_accuracy"] is not None]
    return _dots(rows, "test_accuracy", results["images"]["test"], "test accuracy in %")


def beyond_chart(results: Results) -> Figure:
    """Validation accuracy of all that was tried, and of base and controls beside it; test accuracy as open rings."""
    return _dots(
        list(by_name(results).items()),
        "validation_accuracy",
        results["images"]["validation"],
        "validation accuracy in %",
        rings=True,
    )


def _dots(
    rows: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    key: str,
    images: int,
    label: str,
    *,
    rings: bool = False,
) -> Figure:
    figure, axes = _canvas(7.2, 1.1 + 0.27 * len(rows))
    colours = {"base": GREY, "method": ORANGE, "tried": GREEN}
    marks = {"base": "D", "method": "o", "tried": "^"}
    ring: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": RED}
    for position, (_, entries) in enumerate(rows):
        kind, share = entries[0]["kind"], mean(entries, key)
        half = 196 * (share * (1 - share) / images) ** 0.5
        style = {"color": colours.get(kind, BLUE), "marker": marks.get(kind, "s")}
        axes.errorbar(100 * share, -position, xerr=half, capsize=2, elinewidth=1, markersize=6, linestyle="", **style)
        if rings and entries[0]["test_accuracy"] is not None:
            test = 100 * mean(entries, "test_accuracy")
            axes.plot(test, -position, **ring)
    axes.set_yticks([-position for position in range(len(rows))], [name for name, _ in rows], fontsize=9)
    axes.set_ylim(0.6 - len(rows), 0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{label}; bars: 95 % over images")
    for kind in dict.fromkeys(entries[0]["kind"] for _, entries in rows):
        axes.plot([], [], linestyle="", marker=marks.get(kind, "s"), color=colours.get(kind, BLUE), label=kind)
    if rings:
        axes.plot([], [], linestyle="", label="on test images", **ring)
    axes.legend(frameon=False, fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5)
    return figure


def svg(figure: Figure) -> bytes:
    """A figure as SVG, the same bytes each time."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "postgrad", "svg.fonttype": "path"}), BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
        return file.getvalue()


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _apart(ticks: Sequence[int]) -> list[int]:
    """Those ticks of a logarithmic axis that leave room for their labels."""
    kept: list[int] = []
    for tick in ticks:
        if tick > 0 and (not kept or tick / kept[-1] > 1.25):
            kept.append(tick)
    return kept


CHARTS: dict[str, Callable[[Results], Figure]] = {
    "curve": curve_chart,
    "converged": converged_chart,
    "beyond": beyond_chart,
}
