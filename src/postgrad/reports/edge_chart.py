"""The chart of the edge study: accuracy of each way to choose edges, against steps and against CPU time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from postgrad.evaluation.statistics import t_interval

STYLES = {
    "all": ("#000000", "-", "all weights and biases"),
    "gradient": ("#0072B2", "-", "edges with the largest mean gradient"),
    "magnitude": ("#D55E00", "--", "edges with the largest weights"),
    "random": ("#009E73", ":", "edges at random"),
}
"""Colour (of Okabe and Ito's palette, for the colour-blind), dash and name of each way."""

QUIET = "#555555"


def draw_curves(results: Mapping[str, Any]) -> Figure:
    """A column for each share of edges: validation accuracy against steps above, against CPU seconds below.

    >>> write_picture(draw_curves(results), Path("runs/edges-digits"), "curves")

    `results` is a study's results.json. Lines are means over seeds, bands their 95 % intervals; time includes the
    ranking of the edges, and the grey line is where all of them began.
    """
    shares = results["config"]["shares"]
    with rc_context({"font.size": 9, "axes.labelcolor": QUIET}):
        figure = Figure(figsize=(1.0 + 3.1 * len(shares), 6.6))
        panels = figure.subplots(2, len(shares), sharey=True, sharex="row", squeeze=False)
        for column, share in enumerate(shares):
            for row, against in enumerate(("step", "seconds")):
                axes = panels[row, column]
                _panel(axes, results, share, against)
                axes.set_xlabel("steps" if against == "step" else "CPU seconds, ranking included")
            panels[0, column].set_title(f"{100 * share:g} % of the edges of each layer", fontsize=10)
        for axes in panels[:, 0]:
            axes.set_ylabel("validation accuracy")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        columns = 2 if len(shares) > 1 else 1
        figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False)
        config, seeds = results["config"], len(results["base"]["seeds"])
        figure.suptitle(
            f"Fine-tuning some edges of {config['model']} on {config['data']}: mean over {seeds} seeds, 95 % interval",
            fontsize=11,
        )
        figure.tight_layout(rect=(0, 0.12 if columns == 2 else 0.2, 1, 0.99))
    return figure


def _panel(axes: Axes, results: Mapping[str, Any], share: float, against: str) -> None:
    began = [record["validation"]["accuracy"] for record in results["base"]["seeds"]]
    axes.axhline(float(np.mean(began)), color="#999999", linewidth=1, label="the base network")
    for arm in results["arms"]:
        if arm["kind"] == "all" or arm["share"] == share:
            colour, dash, name = STYLES[arm["kind"]]
            x, y = curves(arm["seeds"], began, against)
            mean_x = x.mean(0)
            low, high = _interval(y)
            axes.fill_between(mean_x, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(mean_x, y.mean(0), color=colour, linestyle=dash, linewidth=1.6, label=name)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(left=0)
    axes.tick_params(colors=QUIET, length=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _interval(y: np.ndarray) -> tuple[list[float], list[float]]:
    """Student's 95 % interval of the mean of each column (seeds, points); no wider than a line for a single seed."""
    ends = [t_interval(column) or (float(column.mean()),) * 2 for column in y.T]
    return [low for low, _ in ends], [high for _, high in ends]


def curves(records: Sequence[Mapping[str, Any]], began: Sequence[float], against: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (or CPU seconds) and accuracies of each seed's learning curve, (seeds, 1 + points), from the base on."""
    xs, ys = [], []
    for record, start in zip(records, began, strict=True):
        offset = record["ranking_cpu_seconds"] if against == "seconds" else 0.0
        xs.append([offset, *(offset + point[against] for point in record["curve"])])
        ys.append([start, *(point["accuracy"] for point in record["curve"])])
    return np.array(xs, np.float64), np.array(ys, np.float64)
