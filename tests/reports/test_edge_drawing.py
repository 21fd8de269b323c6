"""Pictures of edges hold what was chosen, are the same each time, and cope with every kind of layer."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from postgrad.reports.edge_drawing import Edges, by_layer, draw_edges, is_perceptron, write_picture


def edges(name: str, *shape: int, top: float = 0.5, seed: int = 0) -> Edges:
    importance = np.random.default_rng(seed).random(shape)
    return Edges(f"{name}.weight", importance, importance > np.quantile(importance, 1 - top))


def drawn(layers: list[Edges], input_shape: tuple[int, int, int], classes: int = 3) -> Figure:
    return draw_edges(
        layers, title="t", remark="r", input_shape=input_shape, class_names=[f"class {i}" for i in range(classes)]
    )


def said(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    return [*found, *(axes.get_title(loc="left") for axes in figure.axes), *(axes.get_title() for axes in figure.axes)]


def lines(figure: Figure) -> list[LineCollection]:
    return [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]


def test_a_small_perceptron_has_a_line_for_each_kept_edge() -> None:
    layers = [edges("l0", 5, 16), edges("l1", 3, 5, seed=1)]
    figure = drawn(layers, (1, 4, 4))
    assert [len(c.get_segments()) for c in lines(figure)] == [int(layer.kept.sum()) for layer in layers]
    texts = said(figure)
    assert {"0", "4", "class 2", "5 units", "3 classes", "input: 4×4 pixels"} <= set(texts)
    assert "l0\n80 edges\n40 kept, 40 drawn" in texts


def test_the_strongest_edge_is_drawn_last_and_darkest() -> None:
    layer = edges("l0", 3, 16)
    figure = drawn([layer], (1, 4, 4))
    collection = lines(figure)[0]
    target, source = np.unravel_index(layer.importance.argmax(), layer.importance.shape)
    start, end = collection.get_segments()[-1]
    weakest = layer.importance.min()
    widths, colours = collection.get_linewidths(), collection.get_colors()
    assert widths[-1] == max(widths)
    assert colours[-1][:3].sum() < colours[0][:3].sum()
    assert weakest < layer.importance[target, source]
    # pixels from the left and from above, outputs from above
    assert start[0] == pytest.approx(0.4 + 2.2 * (source % 4 + 0.5) / 4)
    assert start[1] == pytest.approx(1.75 + 2.45 + 1.1 - 2.2 * (source // 4 + 0.5) / 4)
    assert end[1] == pytest.approx(1.75 + 4.9 * (1 - (target + 0.5) / 3))


def test_of_many_units_the_important_ones_are_drawn() -> None:
    first, second = edges("l0", 200, 784, top=0.1), edges("l1", 10, 200, seed=1)
    first.importance[150] += 5
    first.kept[150] = True
    figure = drawn([first, second], (1, 28, 28), classes=10)
    texts = said(figure)
    assert "150" in texts
    assert "200 units, 24 drawn" in texts
    assert max(len(c.get_segments()) for c in lines(figure)) <= 160


def test_colour_images_are_one_picture_of_pixels() -> None:
    layer = edges("l0", 4, 3 * 5 * 2)
    image = drawn([layer], (3, 5, 2), classes=4).axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), layer.chosen.sum(0).reshape(3, 5, 2).sum(0))


def test_only_a_chain_from_the_pixels_is_a_perceptron() -> None:
    chain = [edges("l0", 5, 16), edges("l1", 3, 5)]
    assert is_perceptron(chain, (1, 4, 4))
    assert not is_perceptron(chain, (1, 5, 5))
    assert not is_perceptron(chain[::-1], (1, 4, 4))
    assert not is_perceptron([edges("c", 5, 1, 3, 3), chain[1]], (1, 4, 4))


def test_a_convolution_is_summed_over_its_kernel_and_averaged_over_its_channels() -> None:
    layer = edges("c0", 6, 2, 3, 3)
    figure = drawn([layer, edges("l1", 3, 24)], (2, 4, 4))
    matrix, kernel = (axes.images[0].get_array() for axes in figure.axes[:2])
    summed, mean = layer.importance.sum((2, 3)), layer.importance.mean((0, 1))
    np.testing.assert_allclose(matrix, summed / summed.max())
    np.testing.assert_allclose(kernel, mean / mean.max())
    assert "c0  (6×2×3×3: 108 edges, 54 kept)" in said(figure)


def test_wide_layers_are_averaged_over_neighbours() -> None:
    layer = edges("l", 2, 1000)
    shown = drawn([layer], (1, 4, 4)).axes[0].images[0].get_array()
    assert shown.shape == (2, 128)
    starts = np.linspace(0, 1000, 128, endpoint=False).astype(int)
    expected = np.stack([part.mean(1) for part in np.split(layer.importance, starts[1:], axis=1)], axis=1)
    np.testing.assert_allclose(shown, expected / expected.max())


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 3, 1, 1)],
        [(4, 3, 5)],
        [(4, 3, 2, 2, 2)],
        [(2, 2)] * 30,
        [(4, 3, 3, 3)] * 5,
        [(1, 8, 16)],
    ],
    ids=["1x1", "one axis", "three axes", "many layers", "five layers", "position embedding"],
)
def test_every_kind_of_layer_has_a_picture(shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    figure = drawn([edges(f"layer{i}", *shape) for i, shape in enumerate(shapes)], (3, 9, 9))
    write_picture(figure, tmp_path)
    assert len(shapes) <= 24 or any("6 layers in the middle are left out" in text for text in said(figure))


def test_layers_without_any_gradient_have_a_picture(tmp_path: Path) -> None:
    nothing = Edges("l0.weight", np.zeros((3, 16)), np.zeros((3, 16), bool))
    figure = drawn([nothing], (1, 4, 4))
    assert "l0\n48 edges\n0 kept, 0 drawn" in said(figure)
    write_picture(figure, tmp_path)
    write_picture(drawn([Edges("c.weight", np.zeros((3, 1, 2, 2)), nothing.kept)], (1, 4, 4)), tmp_path)


def test_files_are_whole_and_the_same_each_time(tmp_path: Path) -> None:
    figures = [drawn([edges("l0", 3, 16)], (1, 4, 4)) for _ in range(2)]
    first, second = (write_picture(figure, tmp_path / str(i)) for i, figure in enumerate(figures))
    assert [file.name for file in first] == ["edges.svg", "edges.png"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert ElementTree.parse(first[0]).getroot().tag.endswith("svg")
    with Image.open(first[1]) as image:
        assert image.size[0] > 600


def test_tensors_become_layers() -> None:
    importance, mask = torch.rand(2, 3), torch.tensor([[True, False, True]] * 2)
    layer = by_layer({"fc.weight": importance}, {"fc.weight": mask})[0]
    np.testing.assert_allclose(layer.chosen, importance.numpy() * mask.numpy())
    assert layer.layer == "fc"
