"""The lineage of a mutation search: a tree without overlaps, what it says in words, and its tables."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_lineage import made_up_lineage

from postgrad.errors import UserError
from postgrad.reports import lineage_drawing as drawing
from postgrad.reports.html import render
from postgrad.reports.rundir import read_run
from postgrad.reports.schema import LineageNode, read_results
from postgrad.reports.sections.lineage import lineage


def nodes_of(networks: int = 40, **settings: Any) -> list[LineageNode]:
    return [LineageNode(**node) for node in made_up_lineage(networks, **settings)]


def descendants(nodes: list[LineageNode], parents: list[int]) -> list[LineageNode]:
    """The same networks under these parents, by their places in the list."""
    changed = [nodes[0].model_copy(update={"parent": None})]
    for node, parent in zip(nodes[1:], parents, strict=False):
        changed.append(node.model_copy(update={"parent": nodes[parent % len(changed)].name}))
    return changed


MADE_UP = nodes_of(30, seed=1)
trees = st.lists(st.integers(0, 1000), max_size=20).map(lambda parents: descendants(MADE_UP, parents))
"""Any tree has some such list of parents."""


@settings(max_examples=40)
@given(trees)
def test_no_two_networks_share_a_place_and_parents_stand_among_their_children(nodes: list[LineageNode]) -> None:
    at = drawing.places(nodes)
    assert len({(place.generation, place.row) for place in at.values()}) == len(nodes)
    for node in nodes:
        rows = [at[child.name].row for child in nodes if child.parent == node.name]
        if rows:
            assert min(rows) <= at[node.name].row <= max(rows)
        if node.parent is not None:
            assert at[node.name].generation == at[node.parent].generation + 1


@settings(max_examples=40)
@given(trees)
def test_a_row_is_free_to_the_right_of_a_network_without_children(nodes: list[LineageNode]) -> None:
    at = drawing.places(nodes)
    parents = {node.parent for node in nodes}
    for leaf in (at[node.name] for node in nodes if node.name not in parents):
        assert not [other for other in at.values() if other.generation > leaf.generation and other.row == leaf.row]


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_colours_rise_with_the_accuracy_and_reach_both_ends(accuracies: list[float]) -> None:
    first = nodes_of(0)[0]
    nodes = [first.model_copy(update={"accuracy": accuracy}) for accuracy in accuracies]
    ends = drawing.bounds(nodes)
    levels = [drawing.level(accuracy, ends) for accuracy in sorted(accuracies)]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] == (drawing.LEVELS - 1 if len(set(accuracies)) > 1 else 0)


def test_each_colour_has_as_many_networks() -> None:
    first = nodes_of(0)[0]
    nodes = [first.model_copy(update={"accuracy": i / 60}) for i in range(60)]
    counts = np.bincount([drawing.level(node.accuracy, drawing.bounds(nodes)) for node in nodes])
    assert counts.tolist() == [10] * drawing.LEVELS


def test_the_tree_draws_every_network_with_what_is_known_of_it() -> None:
    nodes = nodes_of()
    svg = ElementTree.fromstring(drawing.tree(nodes))
    circles = list(svg.iter("circle"))
    assert len(circles) == len(nodes)
    for node, circle in zip(nodes, circles, strict=True):
        title = circle.findtext("title") or ""
        assert title.startswith(f"{node.mutation}, number {node.number}: ")
        assert f"{node.parameters:,} parameters" in title
        assert all(operation in title for operation in node.operations)
        assert (node.parent is None) or ("exact, error 3.0e-15" if node.exact else "approximate") in title
    radii = {node.parameters: float(c.attrib["r"]) for node, c in zip(nodes, circles, strict=True)}
    small, large = min(radii), max(radii)
    assert radii[large] / radii[small] == pytest.approx((large / small) ** 0.5, rel=1e-3)
    width, height = (float(v) for v in svg.attrib["viewBox"].split()[2:])
    assert all(0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height for c in circles)


def test_the_path_to_the_winner_is_marked_and_said() -> None:
    nodes = nodes_of()
    path = drawing.winning(nodes)
    assert (path[0].parent, path[-1].winner) == (None, True)
    assert all(child.parent == parent.name for parent, child in itertools.pairwise(path))
    svg = ElementTree.fromstring(drawing.tree(nodes))
    marked = [c for c in svg.iter("circle") if "won" in c.attrib["class"]]
    thick = [p for p in svg.iter("path") if "won" in p.attrib["class"]]
    assert (len(marked), len(thick)) == (len(path), len(path) - 1)
    said = svg.attrib["aria-label"]
    assert said.startswith(f"Tree of {len(nodes)} networks over ")
    assert said.endswith(f", then {path[-1].mutation} ({100 * path[-1].accuracy:.4g} %).")


def test_of_too_many_networks_those_without_children_are_left_out() -> None:
    nodes = nodes_of(900)
    shown = drawing.drawn(nodes)
    parents = {node.parent for node in nodes}
    assert len(shown) < len(nodes)
    assert {node.name for node in shown} == {node.name for node in nodes if node.name in parents or node.winner}
    assert len(list(ElementTree.fromstring(drawing.tree(nodes)).iter("circle"))) == len(shown)


def test_a_base_alone_is_a_tree() -> None:
    nodes = nodes_of(0)
    assert "Tree of 1 network" in drawing.in_words(nodes)
    assert len(list(ElementTree.fromstring(drawing.tree(nodes)).iter("circle"))) == 1
    assert len(list(ElementTree.fromstring(drawing.progress(nodes)).iter("circle"))) == 1


def test_the_best_so_far_never_falls() -> None:
    nodes = nodes_of()
    svg = ElementTree.fromstring(drawing.progress(nodes))
    steps = next(line for line in svg.iter("polyline") if line.attrib["class"] == "frontier")
    heights = [float(pair.split(",")[1]) for pair in steps.attrib["points"].split()]
    assert heights == sorted(heights, reverse=True)  # down the page are lower accuracies
    assert len(list(svg.iter("circle"))) == len(nodes)
    assert f"the best {100 * max(node.accuracy for node in nodes):.4g} %" in svg.attrib["aria-label"]


def test_mutations_are_counted_as_they_went(make_run) -> None:
    made_up = made_up_lineage(60)
    run = make_run(lineage=made_up)
    section = lineage(read_run(run))
    assert section is not None
    of_name = {node["name"]: node for node in made_up}
    children = [node for node in made_up if node["parent"]]
    assert sum(row["trained"] for row in section["mutations"]) == len(children)
    assert sum(row["refused"] for row in section["mutations"]) == sum(sum(node["refused"].values()) for node in made_up)
    for row in section["mutations"]:
        gains = [n["accuracy"] - of_name[n["parent"]]["accuracy"] for n in children if n["mutation"] == row["name"]]
        assert row["better"] == sum(gain > 0 for gain in gains)
        assert row["best"] == f"{100 * max(gains):+.1f}".replace("-", "−")


def test_the_page_has_the_section_where_there_is_a_lineage_alone(make_run) -> None:
    run = make_run(lineage=made_up_lineage(12))
    page = render(run).read_text(encoding="utf-8")
    assert page.count('href="#lineage"') == 2  # in the contents, and beside its title
    for node in read_results(run / "results.json").lineage:
        assert f'id="network-{node.name}"' in page
    document = json.loads((run / "results.json").read_text())
    del document["lineage"]
    (run / "results.json").write_text(json.dumps(document))
    assert "lineage" not in render(run).read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[2]


@pytest.mark.parametrize("wrong", ["orphan", "twice"])
def test_a_child_before_its_parent_is_refused(make_run, wrong: str) -> None:
    run = make_run()
    document = json.loads((run / "results.json").read_text())
    nodes = made_up_lineage(5)
    document["lineage"] = nodes[1:] if wrong == "orphan" else [*nodes, nodes[-1]]
    (run / "results.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="lineage"):
        read_results(run / "results.json")
