"""What is shown of the figures: the table on the terminal and on the documentation page, and the plot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from postgrad.errors import UserError
from postgrad.files import atomic_path, write_atomic

BEGIN = "[//]: # (figures written by benchmarks/gradients.py)"
END = "[//]: # (end of the figures)"
_WIDTH = 140
WORKS = {"all_labels": "all labels, inference", "random_label_training": "one random label, training"}
HEADINGS = {
    "work": "left",
    "batch": "right",
    "implementation": "left",
    "gradients/s": "right",
    "spread": "right",
    "bare gradients/s": "right",
    "share of floor": "right",
    "× best peer": "right",
    "peak MB": "right",
}
AXES = {"batch": "images in a batch", "labels": "labels (all of them)", "width": "filters in each convolution"}

Row = Mapping[str, Any]


def table(figures: Mapping[str, Any]) -> list[list[str]]:
    """The rows under `HEADINGS`; bare gradients are a column of the other kinds of work."""
    return [_cells(row) for row in figures["rows"] if row["work"] in WORKS]


def _cells(row: Row) -> list[str]:
    return [
        WORKS[row["work"]],
        str(row["batch"]),
        row["implementation"],
        f"{row['gradients_per_second']:,.0f}",
        f"{100 * row['spread']:.0f} %",
        f"{row['bare_gradients_per_second']:,.0f}",
        f"{100 * row['share_of_floor']:.0f} %",
        f"{row['ratio_to_best_peer']:.2f}",
        f"{row['peak_memory_mb']:,.0f}",
    ]


def print_table(figures: Mapping[str, Any]) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    shown = Table()
    for heading, side in HEADINGS.items():
        shown.add_column(heading, justify=cast(Any, side), no_wrap=True)
    rows = table(figures)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        shown.add_row(*row, end_section=following is None or following[:2] != row[:2])
    console = Console()
    # A file or a pipe has no width of its own, and the columns must not be cut.
    Console(width=max(_WIDTH, console.width)).print(shown)


def summary(figures: Mapping[str, Any]) -> list[str]:
    """What was measured on what, and the few numbers that matter, one sentence each."""
    environment, headline = figures["environment"], max(row["batch"] for row in figures["rows"])
    machine = environment["gpu"] if figures["device"] != "cpu" else environment["processor"]
    lines = [
        f"{machine}, threads: {environment['threads']}, torch {environment['versions']['torch']}; {figures['images']}; "
        f"base network after {figures['base_steps']} steps.",
        f"The machine multiplies and adds {figures['machine_gmacs']:.1f} G a second "
        f"({figures['machine_gmacs_shape']}, float32).",
    ]
    for work, title in WORKS.items():
        row = _ours(figures, work, headline)
        vmap = f", {100 * row['memory_share_of_vmap']:.0f} % of vmap's memory"
        lines.append(
            f"{title[0].upper()}{title[1:]}, batch {headline}: {row['gradients_per_second']:,.0f} gradients a second, "
            f"{row['ratio_to_best_peer']:.2f}× the best peer at this batch ({row['ratio_to_best_peer_any_batch']:.2f}× "
            f"the best at any), {100 * row['share_of_floor']:.0f} % of the dense floor{vmap}."
        )
    return lines


def _ours(figures: Mapping[str, Any], work: str, batch: int) -> Row:
    return next(
        row
        for row in figures["rows"]
        if row["implementation"] == "postgrad" and row["work"] == work and row["batch"] == batch
    )


def write_page(figures: Mapping[str, Any], page: Path, plot: Path | None = None) -> None:
    """Put the figures between the page's two markers, and a link to the plot where there is one."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page} cannot be read: {error.strerror}; give the page that has the markers") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page} has no place for the figures; it needs the lines '{BEGIN}' and '{END}'")
    content = markdown(figures)
    if plot is not None:
        link = Path(os.path.relpath(plot, page.parent)).as_posix()
        content += f"\n\n![Gradients alone, a second, by batch, labels and width]({link})"
    write_atomic(page, f"{before}{BEGIN}\n\n{content}\n\n{END}{after}")


def markdown(figures: Mapping[str, Any]) -> str:
    """The summary, the table, and where the floor comes from."""
    sentences = "\n".join(f"- {line}" for line in summary(figures))
    rule = "|".join("---:" if side == "right" else "---" for side in HEADINGS.values())
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in table(figures))]
    derivation = f"```text\n{figures['floor']['derivation']}\n{figures['floor']['zeros']}\n```"
    return "\n\n".join([sentences, "\n".join(lines), derivation])


def write_plot(figures: Mapping[str, Any], file: Path) -> None:
    """Bare gradients a second against batch, labels and width, a line for each implementation; axes are logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(row["implementation"] for row in figures["growth"]))
    for axes, (axis, title) in zip(figure.subplots(1, 3, sharey=True), AXES.items(), strict=True):
        for name in names:
            points = [row for row in figures["growth"] if row["axis"] == axis and row["implementation"] == name]
            axes.plot(
                [row["value"] for row in points],
                [row["gradients_per_second"] for row in points],
                marker="o",
                linewidth=2.5 if name == "postgrad" else 1.2,
                label=name,
            )
        values = sorted({row["value"] for row in figures["growth"] if row["axis"] == axis})
        axes.set(xscale="log", yscale="log", xlabel=title)
        axes.set_xticks(values, [str(value) for value in values])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
    first = figure.axes[0]
    first.set_ylabel("gradients alone, a second")
    first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    first.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    first.yaxis.minorticks_off()
    first.legend()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
