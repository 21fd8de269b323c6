"""Pictures of important edges: a perceptron as columns of nodes with its strongest edges, other layers as heat maps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from postgrad.files import atomic_path

HEAT = colormaps["YlGnBu"]
LINES = LinearSegmentedColormap.from_list("lines", HEAT(np.linspace(0.35, 1, 256)))
"""Light is weak, dark is strong, also in grey and for the colour-blind; lines begin where they stand out on white."""

INK, QUIET = "#222222", "#555555"
EDGES_DRAWN = 160
NODES_DRAWN = 24
LAYERS_DRAWN = 24
BINS = 128
DPI = 160

# A drawing of a perceptron is laid out in inches.
_MARGIN, _IMAGE, _GAP, _NAMES = 0.4, 2.2, 2.4, 1.1
_BOTTOM, _COLUMN, _TOP = 1.75, 4.9, 1.25
_PANEL = 5.9
_LETTERS_PER_INCH = 14

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Edges:
    """One weight: its name, the importance of each edge (its own shape), and which of them were chosen."""

    name: str
    importance: Array
    kept: NDArray[np.bool_]

    @property
    def layer(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def chosen(self) -> Array:
        """The importance of the chosen edges, 0 elsewhere."""
        return np.where(self.kept, self.importance, 0.0)


def draw_edges(
    layers: Sequence[Edges], *, title: str, remark: str, input_shape: Sequence[int], class_names: Sequence[str]
) -> Figure:
    """A perceptron with its important edges, or heat maps of the layers of any other network.

    >>> figure = draw_edges(layers, title="mlp on digits", remark="", input_shape=(1, 8, 8), class_names="0123456789")
    >>> write_picture(figure, Path("runs/edges"))

    `input_shape` (C, H, W) is that of the images which the network sees; `remark` is a line below the title. A network
    counts as a perceptron where each weight is a matrix that takes up what the one before it gives.
    """
    with rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": QUIET}):
        if is_perceptron(layers, input_shape):
            figure, legend = _perceptron(layers, input_shape, class_names), "importance of the edges drawn in a layer"
            return _finished(figure, title, remark, legend, LINES, ("weakest", "strongest"))
        figure, left_out = _heat_maps(layers)
        legend = "importance, as a share of the largest in its picture"
        if left_out:
            legend += f"; {left_out} layers in the middle are left out"
        return _finished(figure, title, remark, legend, HEAT, ("0 %", "100 %"))


def write_picture(
    figure: Figure, directory: Path, name: str = "edges", kinds: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Write a figure as SVG and PNG, the same bytes for the same figure."""
    files = [directory / f"{name}.{kind}" for kind in kinds]
    with rc_context({"svg.hashsalt": "postgrad"}):
        for file in files:
            kind = file.suffix.removeprefix(".")
            with atomic_path(file) as temporary:
                figure.savefig(temporary, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else {})
    return files


def is_perceptron(layers: Sequence[Edges], input_shape: Sequence[int]) -> bool:
    """Whether the weights are a chain of matrices that begins at the pixels."""
    shapes = [layer.importance.shape for layer in layers]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != math.prod(input_shape):
        return False
    return all(before[0] == after[1] for before, after in pairwise(shapes))


def _perceptron(layers: Sequence[Edges], input_shape: Sequence[int], class_names: Sequence[str]) -> Figure:
    width = _MARGIN + _IMAGE + _GAP * len(layers) + _NAMES
    height = _BOTTOM + _COLUMN + _TOP
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    columns = [_column(layers, number) for number in range(len(layers))]
    positions = [_pixels(input_shape)]
    for number, (layer, nodes) in enumerate(zip(layers, columns, strict=True)):
        positions.append(_nodes(nodes, len(layer.importance), x=_MARGIN + _IMAGE + _GAP * (number + 1)))
    _draw_pixels(axes, layers[0], input_shape)
    for number, (layer, nodes) in enumerate(zip(layers, columns, strict=True)):
        sources, targets = positions[number], positions[number + 1]
        drawn = _draw_lines(axes, layer, sources, targets)
        said = f"{layer.layer}\n{layer.kept.size:,} edges\n{int(layer.kept.sum()):,} kept, {drawn:,} drawn"
        axes.text(_MARGIN + _IMAGE + _GAP * (number + 0.5), _BOTTOM - 0.15, said, ha="center", va="top", color=QUIET)
        _draw_nodes(axes, targets, nodes, last=number == len(layers) - 1)
    for node in columns[-1]:
        if class_names[node] != str(node):
            x, y = positions[-1][node]
            axes.text(x + 0.16, y, _shortened(class_names[node]), va="center")
    return figure


def _column(layers: Sequence[Edges], number: int) -> NDArray[np.intp]:
    """The outputs of a layer that are drawn: all of a few, else those with the most importance on both sides."""
    into = layers[number].chosen.sum(1)
    total = into / (into.sum() or 1.0)
    if number + 1 < len(layers):
        out = layers[number + 1].chosen.sum(0)
        total = total + out / (out.sum() or 1.0)
    return np.sort(np.argsort(-total, kind="stable")[:NODES_DRAWN])


def _pixels(input_shape: Sequence[int]) -> Array:
    """Where each input lies (C·H·W, 2): the channels of a pixel share one place of the image."""
    channels, height, width = input_shape
    left, right, bottom, top = _image_box(height, width)
    x = left + (right - left) * (np.arange(width) + 0.5) / width
    y = top - (top - bottom) * (np.arange(height) + 0.5) / height
    places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return np.tile(places, (channels, 1))


def _image_box(height: int, width: int) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the image: square pixels, in the middle of its place."""
    scale = _IMAGE / max(height, width)
    x, y = _MARGIN + _IMAGE / 2, _BOTTOM + _COLUMN / 2
    return x - scale * width / 2, x + scale * width / 2, y - scale * height / 2, y + scale * height / 2


def _nodes(shown: NDArray[np.intp], count: int, *, x: float) -> Array:
    """Where each unit of a column lies (count, 2); NaN for those that are not drawn."""
    places = np.full((count, 2), np.nan)
    places[shown, 0] = x
    places[shown, 1] = _BOTTOM + _COLUMN * (1 - (np.arange(len(shown)) + 0.5) / len(shown))
    return places


def _draw_lines(axes: Axes, layer: Edges, sources: Array, targets: Array) -> int:
    """Draw the strongest of the chosen edges between what is drawn; returns how many."""
    drawable = np.isfinite(targets[:, :1]) & np.isfinite(sources[:, 0])[None, :]
    strength = np.where(drawable, layer.chosen, 0.0).ravel()
    order = np.argsort(-strength, kind="stable")[:EDGES_DRAWN]
    order = order[strength[order] > 0][::-1]  # the strongest last, so on top
    if len(order):
        to, come = np.unravel_index(order, drawable.shape)
        share = Normalize(strength[order[0]], strength[order[-1]])(strength[order])
        ends = np.stack([sources[come], targets[to]], axis=1)
        axes.add_collection(LineCollection(list(ends), colors=LINES(share), linewidths=0.4 + 1.6 * share**2, zorder=2))
    return len(order)


def _draw_pixels(axes: Axes, layer: Edges, input_shape: Sequence[int]) -> None:
    """The input as an image: for each pixel the importance of the chosen edges that leave it."""
    channels, height, width = input_shape
    total = layer.chosen.sum(0).reshape(channels, height, width).sum(0)
    left, right, bottom, top = _image_box(height, width)
    darkest = 1.6 * (total.max() or 1.0)  # grey, so that lines stay visible on it
    axes.imshow(total, extent=(left, right, bottom, top), cmap="Greys", vmin=0, vmax=darkest, aspect="auto", zorder=1)
    axes.add_patch(Rectangle((left, bottom), right - left, top - bottom, fill=False, edgecolor=QUIET, linewidth=0.8))
    shape = f"{height}×{width} pixels" + (f", {channels} channels" if channels > 1 else "")
    axes.text((left + right) / 2, top + 0.1, f"input: {shape}", ha="center", va="bottom")
    said = "grey: importance of the kept\nedges that leave a pixel"
    axes.text((left + right) / 2, bottom - 0.1, said, ha="center", va="top", color=QUIET, fontsize=8)


def _draw_nodes(axes: Axes, places: Array, shown: NDArray[np.intp], *, last: bool) -> None:
    x, y = places[shown].T
    axes.scatter(x, y, s=130, facecolor="white", edgecolor=INK, linewidth=0.7, zorder=4)
    for node, at, height in zip(shown, x, y, strict=True):
        axes.text(at, height - 0.005, str(node), ha="center", va="center", fontsize=6 if node < 1000 else 4, zorder=5)
    said = f"{len(places):,} classes" if last else f"{len(places):,} units"
    said += "" if len(shown) == len(places) else f", {len(shown)} drawn"
    axes.text(x[0], _BOTTOM + _COLUMN + 0.08, said, ha="center", va="bottom")


def _heat_maps(layers: Sequence[Edges]) -> tuple[Figure, int]:
    """For each layer the importance summed over the kernel, outputs × inputs, and the mean kernel beside it.

    The number of layers that are left out comes with the figure.
    """
    shown = _some(layers)
    wide = 1 if len(shown) <= 3 else 2 if len(shown) <= 8 else 3
    rows = math.ceil(len(shown) / wide)
    width, height = _PANEL * wide, 2.3 * rows + 1.7
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        rows,
        3 * wide,
        width_ratios=[3.4, 1.15, 0.25] * wide,
        left=0.7 / width,
        right=1,
        top=1 - 1.1 / height,
        bottom=1.3 / height,
        wspace=0.25,
        hspace=0.75,
    )
    for number, layer in enumerate(shown):
        row, column = divmod(number, wide)
        _draw_matrix(figure.add_subplot(grid[row, 3 * column]), layer)
        if math.prod(layer.importance.shape[2:]) > 1:
            _draw_kernel(figure.add_subplot(grid[row, 3 * column + 1]), layer)
    return figure, len(layers) - len(shown)


def _some(layers: Sequence[Edges]) -> list[Edges]:
    """All layers, or the first and the last of too many."""
    if len(layers) <= LAYERS_DRAWN:
        return list(layers)
    return [*layers[: LAYERS_DRAWN // 2], *layers[-LAYERS_DRAWN // 2 :]]


def _draw_matrix(axes: Axes, layer: Edges) -> None:
    outputs, inputs = layer.importance.shape[:2]
    matrix = layer.importance.reshape(outputs, inputs, -1).sum(2)
    image = _binned(_binned(matrix, 0), 1)
    _show(axes, image, extent=(0, inputs, outputs, 0))
    shape = "×".join(str(side) for side in layer.importance.shape)
    axes.set_title(
        f"{layer.layer}  ({shape}: {layer.kept.size:,} edges, {int(layer.kept.sum()):,} kept)",
        loc="left",
        fontsize=9,
    )
    axes.set_ylabel("output")
    axes.set_xlabel("input" if inputs <= BINS else "input (neighbours averaged)")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_kernel(axes: Axes, layer: Edges) -> None:
    mean = layer.importance.mean((0, 1))
    while mean.ndim > 2:
        mean = mean.mean(0)
    mean = np.atleast_2d(mean)
    _show(axes, mean, aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("mean kernel")


def _show(axes: Axes, image: Array, **options: Any) -> None:
    drawn = image / (image.max() or 1.0)
    axes.imshow(drawn, cmap=HEAT, vmin=0, vmax=1, interpolation="nearest", **{"aspect": "auto", **options})
    axes.tick_params(colors=QUIET, labelsize=8, length=2)
    for spine in axes.spines.values():
        spine.set_color(QUIET)
        spine.set_linewidth(0.6)


def _binned(matrix: Array, axis: int) -> Array:
    """Means over neighbours, so that at most 128 rows or columns are left and none falls between two pixels."""
    count = matrix.shape[axis]
    if count <= BINS:
        return matrix
    starts = np.linspace(0, count, BINS, endpoint=False).astype(int)
    sizes = np.diff([*starts, count])
    return np.add.reduceat(matrix, starts, axis=axis) / np.expand_dims(sizes, 1 - axis)


def _finished(figure: Figure, title: str, remark: str, legend: str, colours: Colormap, ends: tuple[str, str]) -> Figure:
    """Title and remark above, one colour bar for all below."""
    width, height = figure.get_size_inches()
    figure.text(0.3 / width, 1 - 0.2 / height, title, va="top", fontsize=12)
    wrapped = textwrap.fill(remark, int((width - 0.6) * _LETTERS_PER_INCH))
    figure.text(0.3 / width, 1 - 0.45 / height, wrapped, va="top", color=QUIET)
    length = min(4.4, width - 1.4)
    bar = figure.add_axes((0.5 - length / 2 / width, 0.45 / height, length / width, 0.13 / height))
    figure.colorbar(ScalarMappable(Normalize(0, 1), colours), cax=bar, orientation="horizontal", ticks=[0, 1])
    bar.set_title(legend, fontsize=9, color=QUIET, pad=4)
    bar.set_xticklabels(ends)
    bar.tick_params(colors=QUIET, labelsize=8, length=0)
    return figure


def _shortened(name: str) -> str:
    return name if len(name) <= 12 else name[:11] + "…"


def by_layer(importance: Mapping[str, Any], masks: Mapping[str, Any]) -> list[Edges]:
    """What `draw_edges` takes, of tensors by parameter name."""
    return [Edges(name, importance[name].double().numpy(), masks[name].numpy()) for name in importance]
