"""Charts and drawings are well-formed, hold the numbers that they show, and say them in words."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from postgrad.evaluation.metrics import reliability
from postgrad.reports import charts, diagrams
from postgrad.reports.drawing import draw_blocks


def parsed(drawing: str) -> ElementTree.Element:
    element = ElementTree.fromstring(drawing)
    assert element.tag == "svg"
    return element


def texts(element: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in element.iter("text")]


def points_of(element: ElementTree.Element) -> np.ndarray:
    line = next(element.iter("polyline"))
    return np.array([[float(v) for v in pair.split(",")] for pair in line.attrib["points"].split()])


def test_a_line_runs_through_its_points() -> None:
    series = charts.Series("Base", "base", np.array([0.0, 5.0, 10.0]), np.array([0.2, 0.6, 0.7]))
    chart = parsed(charts.line_chart([series], what="Accuracy", x_label="seconds", written=charts.as_percent))
    assert chart.attrib["aria-label"] == "Accuracy against seconds: Base ends at 70 %."
    drawn = points_of(chart)
    assert (np.diff(drawn[:, 0]) > 0).all()
    assert (np.diff(drawn[:, 1]) < 0).all()
    assert np.diff(drawn[:, 1])[0] / np.diff(drawn[:, 1])[1] == pytest.approx(4, rel=0.02)


def test_long_curves_are_thinned_by_means() -> None:
    x = np.arange(10_000.0)
    noisy = np.sin(x)
    chart = parsed(charts.line_chart([charts.Series("a", "base", x, noisy)], what="Loss", x_label="steps"))
    assert len(points_of(chart)) == 240


def test_a_single_value_is_a_dot() -> None:
    series = charts.Series("a", "base", np.array([1.0]), np.array([0.5]))
    chart = parsed(charts.line_chart([series], what="Loss", x_label="steps"))
    assert len(list(chart.iter("circle"))) == 1


def test_scatter_names_every_arm_and_draws_its_interval() -> None:
    dots = [
        charts.Point("Base", "base", 3.0, 0.72, (0.70, 0.74)),
        charts.Point("GradNet & co", "method", 25.0, 0.78, None),
    ]
    chart = parsed(charts.scatter(dots, x_label="seconds"))
    assert {"Base", "GradNet & co"} <= set(texts(chart))
    whiskers = [line for line in chart.iter("line") if "whisker" in line.attrib["class"]]
    assert len(whiskers) == 1
    assert "GradNet & co: 25, 78 %" in chart.attrib["aria-label"]


def test_reliability_bars_are_as_high_as_the_accuracy() -> None:
    p = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    curve = reliability(p, [0] * 5 + [1] * 5 + [0] * 10)
    chart = parsed(diagrams.reliability_chart(curve, label="Base", style="base"))
    bars = [rect for rect in chart.iter("rect") if rect.attrib["class"] == "bar base"]
    assert [float(bar.attrib["height"]) for bar in bars] == pytest.approx([222, 111])
    assert "confidence 0.90, accuracy 0.50" in chart.attrib["aria-label"]


def test_class_changes_are_sorted_and_absent_classes_left_out() -> None:
    before, after = np.array([0.5, 0.9, np.nan]), np.array([0.6, 0.7, np.nan])
    chart = parsed(diagrams.change_chart(["dog", "cat", "none"], before, after))
    shown = [text for text in texts(chart) if text in {"dog", "cat", "none", "+10.0", "−20.0"}]
    assert shown == ["dog", "+10.0", "cat", "−20.0"]


def test_of_many_classes_the_largest_changes_are_shown() -> None:
    change = np.linspace(-0.3, 0.3, 100)
    chart = parsed(diagrams.change_chart([f"class {i}" for i in range(100)], 0.5 - change / 2, 0.5 + change / 2))
    names = [text for text in texts(chart) if text.startswith("class ")]
    assert len(names) == 24
    assert names[0] == "class 99"
    assert names[-1] == "class 0"


def test_blocks_are_drawn_over_the_layers_that_they_read() -> None:
    blocks = [
        {"name": "c0.weight", "shape": [64, 3, 5, 5], "inputs": 4800, "hidden": 5},
        {"name": "l1.weight", "shape": [10, 2304], "inputs": 23_040, "hidden": 25},
    ]
    drawing = parsed(draw_blocks({"blocks": blocks, "outputs": 10}))
    assert {"c0", "64 × 3 × 5 × 5", "4,800", "l1", "10 × 2304", "23,040", "5", "25", "10"} <= set(texts(drawing))
    assert len(list(drawing.iter("path"))) == 4


def test_neighbouring_layers_share_a_hidden_block() -> None:
    blocks = [{"name": f"c{i}.weight", "shape": [4, 4], "inputs": 16} for i in range(3)]
    groups = [{"reads": [0, 1], "hidden": 7}, {"reads": [1, 2], "hidden": 9}]
    drawing = parsed(draw_blocks({"blocks": blocks, "groups": groups, "outputs": 10}))
    assert len(list(drawing.iter("path"))) == 6
    assert {"7", "9"} <= set(texts(drawing))


def test_the_middle_of_a_deep_network_is_left_out() -> None:
    blocks = [{"name": f"layer{i}.weight", "shape": [4, 4], "inputs": 16, "hidden": 3} for i in range(60)]
    drawing = parsed(draw_blocks({"blocks": blocks, "outputs": 10}))
    assert "… 48 more layers …" in texts(drawing)
    assert "layer59" in texts(drawing)
    assert "layer30" not in texts(drawing)
