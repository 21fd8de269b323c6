"""The drawing of a Mapper graph: nothing over anything else, areas and widths that count, classes in colours."""

from __future__ import annotations

import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.data.datasets import load_dataset
from postgrad.methods import mapper_page
from postgrad.methods._mapper_layout import MARGIN, Place, Sizes, lay_out
from postgrad.methods.mapper import MapperClassifier
from postgrad.methods.mapper_drawing import COLOURS, Look, draw, hint
from postgrad.methods.mapper_table import graph_table
from postgrad.methods.mapper_transformer import MapperTransformer

SHEET = Path(mapper_page.__file__).with_name("mapper_graph.css").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fitted() -> MapperClassifier:
    digits = load_dataset("digits", limit=200).train
    assert digits is not None
    return MapperClassifier(n_components=3, n_intervals=5, hidden=(4,), epochs=1).fit(digits.images, digits.labels)


@pytest.fixture(scope="module")
def table(fitted: MapperClassifier) -> dict[str, Any]:
    return fitted.graph_table()


def node(interval: int, size: int, nodes: int = 1, classes: list[tuple[int, int]] | None = None) -> dict[str, Any]:
    return {
        "id": 0,
        "interval": interval,
        "nodes": nodes,
        "largest": size if nodes == 1 else 1,
        "size": size,
        "classes": [(0, size)] if classes is None else classes,
        "shown": [],
    }


def coordinate(intervals: int, nodes: list[dict[str, Any]], edges: Any = ()) -> dict[str, Any]:
    limits = {str(i): (0.75 * i - 2, 0.75 * i - 1) for i in range(intervals)}
    return {"coordinate": 0, "intervals": intervals, "limits": limits, "nodes": nodes, "edges": list(edges)}


def made_up(*nodes: dict[str, Any], names: tuple[str, ...] = ("a", "b"), edges: Any = ()) -> dict[str, Any]:
    members = {"places": [], "labels": [], "sprite": None}
    drawn = [coordinate(max(node["interval"] for node in nodes) + 1, list(nodes), edges)]
    return {"classes": list(names), "noun": "image", "members": members, "coordinates": drawn, "left_out": 0}


def svg_of(table: dict[str, Any], number: int = 0) -> ElementTree.Element:
    return ElementTree.fromstring(draw(table["coordinates"][number], Look.of(table)))


def with_class(svg: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in svg.iter() if name in element.attrib.get("class", "").split()]


def overlapping(places: Any) -> list[tuple[Place, Place]]:
    """Those whose boxes have points in common; a circle is taken for the square around it."""

    def apart(a: Place, b: Place) -> bool:
        across = abs(a.x - b.x) >= a.half_width + b.half_width - 1e-9
        return across or abs(a.y - b.y) >= a.half_height + b.half_height - 1e-9

    return [(a, b) for a, b in itertools.combinations(places, 2) if not apart(a, b)]


@st.composite
def coordinates(draw: Any) -> dict[str, Any]:
    intervals = draw(st.integers(1, 60))
    most = draw(st.sampled_from([1, 30, 300, 60_000]))
    places = draw(st.lists(st.tuples(st.integers(0, intervals - 1), st.integers(1, most)), min_size=1, max_size=40))
    gathered = draw(st.sets(st.integers(0, intervals - 1), max_size=4))
    nodes = [node(*place) for place in places] + [node(interval, 37, nodes=37) for interval in gathered]
    ends = st.tuples(st.integers(0, len(nodes) - 1), st.integers(0, len(nodes) - 1), st.integers(1, 9))
    return coordinate(intervals, nodes, draw(st.lists(ends, max_size=10)))


@settings(max_examples=60, deadline=None)
@given(coordinates())
def test_no_two_nodes_overlap_and_each_is_in_the_column_of_its_interval(one: dict[str, Any]) -> None:
    layout = lay_out(one, Sizes.of([one]))
    assert overlapping(layout.places) == []
    for place, of in zip(layout.places, one["nodes"], strict=True):
        left = MARGIN + layout.step * of["interval"]
        assert left - 1e-9 <= place.x - place.half_width
        assert place.x + place.half_width <= left + layout.step + 1e-9
        assert place.y - place.half_height > 0
        assert place.y + place.half_height <= layout.bottom
    if len(layout.places) > 1:
        assert overlapping([*layout.places, layout.places[0]])


@pytest.mark.parametrize(("largest", "power"), [(200, 1.0), (10_000, 0.5)])
def test_area_grows_with_the_members_or_their_root(largest: int, power: float) -> None:
    table = made_up(node(0, largest), node(1, largest // 10), node(2, 1))
    radii = {}
    for group in with_class(svg_of(table), "node"):
        (rim,) = with_class(group, "rim")
        radii[int((group.findtext("title") or "").split()[0].replace(",", ""))] = float(rim.attrib["r"])
    assert radii[largest // 10] ** 2 / radii[largest] ** 2 == pytest.approx(0.1**power, rel=1e-3)
    assert radii[1] ** 2 / radii[largest] ** 2 == pytest.approx((1 / largest) ** power, rel=1e-3)
    assert min(radii.values()) > 2
    said = mapper_page.how_to_read(table)
    assert ("square root of their number" in said) == (power < 1)


def test_every_node_and_edge_is_drawn_and_says_its_numbers(fitted: MapperClassifier, table: dict[str, Any]) -> None:
    for c in range(3):
        graph, svg = fitted.graph(c), svg_of(table, c)
        titles = {int(g.attrib["data-node"]): g.findtext("title") or "" for g in with_class(svg, "node")}
        assert titles.keys() == {node.id for node in graph.nodes}
        for of in graph.nodes:
            first, *classes = titles[of.id].split("\n")
            assert first.startswith(f"{of.size} image{'s' if of.size > 1 else ''} in interval {of.interval + 1} of 5, ")
            low, high = (float(end.replace("−", "-")) for end in re.findall(r"[−\d.]+", first)[-2:])
            np.testing.assert_allclose((low, high), of.limits, atol=0.1 * (of.limits[1] - of.limits[0]))
            most = max(of.classes, key=lambda name: of.classes[name])
            assert of.size == 1 or f": {of.classes[most]} (" in classes[0]
        lines = with_class(svg, "shared")
        shared = [int((line.findtext("title") or "").split()[0]) for line in lines]
        assert sorted(shared) == sorted(edge.shared for edge in graph.edges)
        widths = [float(line.attrib["stroke-width"]) for line in lines]
        np.testing.assert_allclose(widths, np.maximum(14 * np.array(shared) / max(shared), 0.8), rtol=1e-4)


def test_slices_are_the_shares_of_the_classes() -> None:
    classes = [(1, 50), (0, 30), (2, 20)]
    (group,) = with_class(svg_of(made_up(node(0, 100, classes=classes), names=("a", "b", "c"))), "node")
    (rim,) = with_class(group, "rim")
    x, y = float(rim.attrib["cx"]), float(rim.attrib["cy"])
    found = []
    for path in with_class(group, "slice"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
        angles = [math.atan2(a - x, y - b) % (2 * math.pi) for a, b in (numbers[2:4], numbers[-2:])]
        found.append((path.attrib["class"], round(((angles[1] - angles[0]) % (2 * math.pi)) / (2 * math.pi), 3)))
    assert found == [("slice class-1", 0.5), ("slice class-0", 0.3), ("slice class-2", 0.2)]
    assert [text.text for text in group.iter("text")] == ["b", "50 %"]


def test_purity_is_never_rounded_to_all_or_nothing() -> None:
    table = made_up(node(0, 1000, classes=[(0, 999), (1, 1)]))
    assert hint(table["coordinates"][0]["nodes"][0], table["coordinates"][0], Look.of(table)).split("\n")[1:] == [
        "class a: 999 (> 99 %)",
        "class b: 1 (< 1 %)",
    ]


def test_gathered_nodes_are_a_number() -> None:
    table = made_up(node(0, 40), node(0, 37, nodes=37), edges=[])
    (pill,) = [group for group in with_class(svg_of(table), "node") if with_class(group, "pill")]
    assert [text.text for text in pill.iter("text")] == ["+37"]
    assert (pill.findtext("title") or "").startswith("37 nodes of one image, 37 images together in interval 1 of 1")
    assert "+37 stands for 37 more" in mapper_page.how_to_read(table)


def test_of_many_classes_those_that_win_most_have_colours() -> None:
    names = tuple(f"n{i}" for i in range(COLOURS + 4))
    nodes = [node(i % 5, 9, classes=[(i, 5), (0, 4)]) for i in range(4, COLOURS + 4)]
    table = made_up(*nodes, names=names)
    look = Look.of(table)
    assert {names[i] for i, style in enumerate(look.styles) if style == "class-other"} == set(names[:4])
    assert len({style for style in look.styles if style != "class-other"}) == COLOURS
    assert "other classes" in mapper_page.part(table)


def contrast(colour: str, paper: str) -> float:
    def light(text: str) -> float:
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted((light(colour), light(paper)))
    return (high + 0.05) / (low + 0.05)


def test_each_colour_is_seen_in_the_light_and_in_the_dark() -> None:
    colours = re.findall(r"--class-\d: (#\w{6})", SHEET)
    papers = re.findall(r"--paper: (#\w{6})", SHEET)
    assert (len(set(colours)), len(papers)) == (COLOURS, 2)
    for colour in colours:
        assert min(contrast(colour, paper) for paper in papers) >= 3, colour
    assert contrast("#ffdd00", papers[0]) < 3


def test_a_page_of_its_own(fitted: MapperClassifier, tmp_path: Path) -> None:
    written = fitted.graph(1).draw(tmp_path / "graph.html")
    assert written == tmp_path / "graph.html"
    page = written.read_text(encoding="utf-8")
    assert "<h1>Mapper graph of coordinate 1</h1>" in page
    assert not re.findall(r"""(?:src|href|url\()\s*=?["']?(?!data:|["']?data:)\S*//""", page)
    assert "<select" not in page
    assert draw(graph_table([fitted.graph(1)])["coordinates"][0], Look.of(graph_table([fitted.graph(1)]))) in page


def test_names_cannot_leave_their_place() -> None:
    table = made_up(node(0, 300), names=("</script><b>&", "b"))
    table["members"]["sprite"] = {"width": 8, "height": 8, "columns": 1, "png": "</style><script>"}
    page = mapper_page.page(table, "<i>")
    assert "<b>" not in page
    assert "<i>" not in page
    assert page.count("</style>") == 1
    data = re.search(r'<script type="application/json">(.*?)</script>', page)
    assert data is not None
    assert json.loads(data[1])["names"] == ["</script><b>&", "b"]


def test_without_labels_there_are_no_colours(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 4))
    page = MapperTransformer(n_components=1).fit(rows).graph(0).draw(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "slice class-none" in page
    assert "Colours of classes" not in page
    assert "points of one interval" in page
