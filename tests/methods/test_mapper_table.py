"""What a drawing of Mapper graphs shows: sizes, classes, edges and images, against graphs and training images."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.methods import mapper_table
from postgrad.methods.mapper import MapperClassifier
from postgrad.methods.mapper_table import SHOWN, graph_table
from postgrad.methods.mapper_transformer import MapperTransformer

SMALL: Any = {"n_components": 3, "n_intervals": 5}
NAMES = [f"digit {i}" for i in range(10)]


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_dataset("digits", limit=200).train


@pytest.fixture(scope="module")
def fitted(digits: Any) -> MapperClassifier:
    mapper = MapperClassifier(**SMALL, hidden=(4,), epochs=1, class_names=NAMES)
    return mapper.fit(digits.images, digits.labels)


def graphs(mapper: Any) -> list[Any]:
    return [mapper.graph(c) for c in range(3)]


def tiles(table: dict[str, Any]) -> np.ndarray:
    """The images of a sprite, one by one (N, h, w, channels), cut out by hand."""
    sprite = table["members"]["sprite"]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite["png"]))))
    width, height, columns = sprite["width"], sprite["height"], sprite["columns"]
    found = []
    for i in range(len(table["members"]["places"])):
        y, x = i // columns * height, i % columns * width
        found.append(sheet[y : y + height, x : x + width].reshape(height, width, -1))
    return np.stack(found)


def members(graph: Any) -> dict[int, set[int]]:
    return {node.id: set(node.members) for node in graph.nodes}


def test_nodes_and_edges_are_those_of_the_graph(fitted: MapperClassifier, digits: Any) -> None:
    table = json.loads(json.dumps(fitted.graph_table()))
    labels = digits.labels.numpy()
    assert (table["classes"], table["noun"], table["left_out"]) == (NAMES, "image", 0)
    for c, written in enumerate(table["coordinates"]):
        graph = fitted.graph(c)
        of_id = {node.id: node for node in graph.nodes}
        assert (written["coordinate"], written["intervals"]) == (c, 5)
        assert {node["id"] for node in written["nodes"]} == of_id.keys()
        for node in written["nodes"]:
            ours = of_id[node["id"]]
            assert (node["size"], node["largest"], node["nodes"]) == (ours.size, ours.size, 1)
            assert node["interval"] == ours.interval
            assert written["limits"][str(node["interval"])] == list(ours.limits)
            counts = np.bincount(labels[list(ours.members)], minlength=10)
            assert dict(map(tuple, node["classes"])) == {i: counts[i] for i in np.flatnonzero(counts)}
            assert [count for _, count in node["classes"]] == sorted(counts[counts > 0].tolist(), reverse=True)
        ids = [node["id"] for node in written["nodes"]]
        assert {(frozenset((ids[a], ids[b])), shared) for a, b, shared in written["edges"]} == {
            (frozenset((edge.a, edge.b)), edge.shared) for edge in graph.edges
        }


def test_a_node_shows_members_alone_and_as_many_as_it_can(fitted: MapperClassifier, digits: Any) -> None:
    table = fitted.graph_table()
    places, labels = np.asarray(table["members"]["places"]), np.asarray(table["members"]["labels"])
    assert len(set(places.tolist())) == len(places)
    np.testing.assert_array_equal(labels, digits.labels.numpy()[places])
    for c, written in enumerate(table["coordinates"]):
        sets = members(fitted.graph(c))
        for node in written["nodes"]:
            shown = places[node["shown"]].tolist()
            assert len(set(shown)) == len(shown) == min(node["size"], SHOWN)
            assert set(shown) <= sets[node["id"]]
            turn = [number for number, _ in node["classes"]]
            in_order = [turn.index(labels[place]) for place in node["shown"]]
            assert in_order == sorted(in_order)
    every = {place for c in range(3) for of_node in members(fitted.graph(c)).values() for place in of_node}
    assert len(places) < len(every), "nodes show the same images where they can"


def test_the_sprite_holds_the_training_images(fitted: MapperClassifier, digits: Any) -> None:
    table = fitted.graph_table()
    images = digits.images.numpy()[table["members"]["places"]].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(tiles(table), images)
    assert not np.array_equal(np.roll(tiles(table), 1, axis=0), images)
    assert fitted.graph_table() == table


@pytest.mark.parametrize("most", [2, 4])
def test_of_many_nodes_the_smallest_are_gathered(
    fitted: MapperClassifier, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapper_table, "_NODES_OF_INTERVAL", (most, most))
    table = fitted.graph_table()
    gathered = 0
    for c, written in enumerate(table["coordinates"]):
        graph = fitted.graph(c)
        sets, in_interval = members(graph), {node.id: node.interval for node in graph.nodes}
        sizes = {id: len(of_node) for id, of_node in sets.items()}
        drawn_alone = {node["id"] for node in written["nodes"] if node["nodes"] == 1}
        union = []
        for node in written["nodes"]:
            rest = [i for i in sets if in_interval[i] == node["interval"] and i not in drawn_alone]
            own = rest if node["nodes"] > 1 else [node["id"]]
            gathered += node["nodes"] > 1
            assert node["nodes"] == len(own)
            assert node["largest"] == max(sizes[i] for i in own)
            assert node["size"] == sum(count for _, count in node["classes"]) == sum(sizes[i] for i in own)
            assert all(sizes[i] <= sizes[j] for i in rest for j in drawn_alone if in_interval[j] == node["interval"])
            union.append(set().union(*(sets[i] for i in own)))
            assert {table["members"]["places"][place] for place in node["shown"]} <= union[-1]
        per_interval = np.bincount([node["interval"] for node in written["nodes"]])
        assert per_interval.max() <= most
        wanted = {
            (a, b): len(union[a] & union[b])
            for a in range(len(union))
            for b in range(a + 1, len(union))
            if union[a] & union[b]
        }
        assert {(a, b): shared for a, b, shared in written["edges"]} == wanted
    assert gathered


def test_the_sprite_keeps_within_its_bytes(
    fitted: MapperClassifier, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitted.graph_table()
    size = len(base64.b64decode(whole["members"]["sprite"]["png"]))
    monkeypatch.setattr(mapper_table, "SPRITE_BYTES", size // 3)
    table = fitted.graph_table()
    assert 0.6 * size / 3 < len(base64.b64decode(table["members"]["sprite"]["png"])) <= size // 3
    assert set(table["members"]["places"]) < set(whole["members"]["places"])
    images = digits.images.numpy()[table["members"]["places"]].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(tiles(table), images)
    nodes = [node for written in table["coordinates"] for node in written["nodes"]]
    assert all(node["shown"] for node in nodes if node["size"] >= SHOWN), "what is left out is spread over the nodes"


@pytest.mark.parametrize(("shape", "side"), [((3, 80, 40), (32, 16, 3)), ((2, 16, 16), (16, 16, 1))])
def test_large_images_are_made_small(shape: tuple[int, ...], side: tuple[int, ...]) -> None:
    images = torch.rand((30, *shape), generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    mapper = MapperTransformer(**SMALL).fit(images)
    table = graph_table([mapper.graph(0)])
    found = tiles(table)
    assert found.shape[1:] == side
    assert (table["classes"], table["members"]["labels"]) == ([], [])
    if side[:2] == shape[1:]:
        first = (images[table["members"]["places"], :1] * 255).round().byte().permute(0, 2, 3, 1)
        np.testing.assert_array_equal(found, first)


def test_rows_have_no_images() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 5))
    table = graph_table([MapperTransformer(**SMALL).fit(rows).graph(0, labels=[9, 10] * 20)])
    assert (table["noun"], table["members"]["sprite"], table["classes"]) == ("point", None, ["9", "10"])
    assert [place % 2 for place in table["members"]["places"]] == table["members"]["labels"]


def test_too_many_intervals_are_said(fitted: MapperClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapper_table, "MOST_INTERVALS", 12)
    table = fitted.graph_table()
    assert ([written["coordinate"] for written in table["coordinates"]], table["left_out"]) == ([0, 1], 1)
    monkeypatch.setattr(mapper_table, "MOST_INTERVALS", 4)
    with pytest.raises(UserError, match="coordinate 0 has 5 intervals, and a drawing shows 4; fit with fewer") as error:
        fitted.graph_table()
    assert "\n" not in str(error.value)
