"""The section on Mapper's graphs: where it is, what it weighs, and how it works in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CONTRAST, opened

from postgrad.data.datasets import load_dataset
from postgrad.methods._mapper_graph import Edge, MapperGraph, Node, Training
from postgrad.methods._nearest import Points
from postgrad.methods.mapper import MapperClassifier
from postgrad.methods.mapper_table import SHOWN, graph_table
from postgrad.reports import html
from postgrad.reports.html import render


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_dataset("digits", limit=300).train


@pytest.fixture(scope="module")
def fitted(digits: Any) -> MapperClassifier:
    return MapperClassifier(n_components=4, n_intervals=6, hidden=(4,), epochs=1).fit(digits.images, digits.labels)


@pytest.fixture(scope="module")
def written(fitted: MapperClassifier) -> str:
    return json.dumps(fitted.graph_table())


@pytest.fixture
def run(make_run, written: str) -> Path:
    """A run directory with a Mapper."""
    directory: Path = make_run()
    (directory / "mapper_graph.json").write_text(written)
    return directory


def test_the_section_is_there_where_the_file_is(run: Path) -> None:
    page = render(run).read_text(encoding="utf-8")
    assert page.count('href="#mapper-graph"') == 2  # in the contents, and beside its title
    assert page.count('class="coordinate"') == 4
    (run / "mapper_graph.json").unlink()
    without = render(run).read_text(encoding="utf-8")
    assert "mapper" not in without.partition("<body>")[2]
    assert "thumbnail" not in without


def test_a_page_that_grows_too_large_drops_the_images_of_nodes_first(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = render(run)
    size, sprite = whole.stat().st_size, json.loads((run / "mapper_graph.json").read_text())["members"]["sprite"]
    assert sprite["png"] in whole.read_text(encoding="utf-8")
    monkeypatch.setattr(html, "LARGEST", size - 1)
    page = render(run).read_text(encoding="utf-8")
    assert "Left out, so that this page stays below 6 MB: images of Mapper&#39;s nodes." in page
    assert sprite["png"] not in page
    assert "circle is a node: images of" in page


def worst_graphs() -> list[MapperGraph]:
    """Twenty coordinates of 10,000 images of noise, which no PNG makes smaller.

    Each interval has a node of 1,000 images and 40 of one, which are in the large node of the next interval too.
    """
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (10_000, 784), dtype=np.uint8).astype(np.float32) / 255
    training = Training(Points(noise), (1, 28, 28), tuple(str(place % 10) for place in range(10_000)))
    everything = {str(i): 100 for i in range(10)}
    found = []
    for c in range(20):
        own = generator.permutation(10_000).reshape(10, 1000)
        nodes, edges = [], []
        for i in range(10):
            limits, first = (0.5 * i, 0.5 * i + 0.7), 41 * i
            nodes.append(Node(first, i, limits, tuple(np.sort(own[i]).tolist()), 0.0, everything))
            for j, place in enumerate(own[(i + 1) % 10, :40].tolist()):
                nodes.append(Node(first + j + 1, i, limits, (place,), 0.0, {str(place % 10): 1}))
                edges.append(Edge(first + j + 1, 41 * ((i + 1) % 10), 1))
        found.append(MapperGraph(c, tuple(nodes), tuple(edges), training))
    return found


def test_the_worst_of_ten_thousand_images_in_twenty_coordinates_adds_less_than_3_mb(make_run) -> None:
    run = make_run()
    before = render(run).stat().st_size
    table = graph_table(worst_graphs())
    assert sum(node["nodes"] for written in table["coordinates"] for node in written["nodes"]) == 20 * 10 * 41
    (run / "mapper_graph.json").write_text(json.dumps(table))
    page = render(run)
    assert 2_000_000 < page.stat().st_size - before < 3_000_000
    assert "Left out, so that" not in page.read_text(encoding="utf-8")


def drawing(page: Any) -> Any:
    return page.locator(".mapper .coordinate:visible")


PIXELS = """async image => {
  const style = getComputedStyle(image), sheet = new Image();
  sheet.src = style.backgroundImage.slice(5, -2);
  await sheet.decode();
  const scale = parseFloat(style.backgroundSize) / sheet.naturalWidth;
  const [x, y] = style.backgroundPosition.split(" ").map(end => Math.round(-parseFloat(end) / scale));
  const [width, height] = [style.width, style.height].map(side => Math.round(parseFloat(side) / scale));
  const canvas = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  canvas.drawImage(sheet, x, y, width, height, 0, 0, width, height);
  return [...canvas.getImageData(0, 0, width, height).data].filter((_, i) => i % 4 === 0);
}"""
"""What a thumbnail shows: the red of each of its pixels."""


def shown(page: Any) -> dict[int, list[int]]:
    """The training images that the panel shows, by what it calls them, with their pixels."""
    found = {}
    for image in page.locator(".mapper .thumbnail").all():
        name = image.get_attribute("aria-label")
        found[int(name.removeprefix("training image ").partition(",")[0])] = image.evaluate(PIXELS)
    return found


@pytest.mark.slow
def test_a_node_shows_its_members(browser: Any, run: Path, fitted: MapperClassifier, digits: Any) -> None:
    page, console, requests = opened(browser, run)
    images = digits.images.flatten(1).numpy()
    assert page.locator(".mapper .thumbnail").count() == 0
    seen = []
    for c in (0, 2):
        page.get_by_role("combobox", name="Coordinate").select_option(index=c)
        graph = {node.id: node for node in fitted.graph(c).nodes}
        large = sorted(graph.values(), key=lambda node: -node.size)
        for node in (large[0], large[1], large[-1]):
            page.locator(f'.coordinate:visible .node[data-node="{node.id}"] .rim').click()
            panel = shown(page)
            assert len(panel) == min(node.size, SHOWN)
            assert panel.keys() <= set(node.members)
            for place, pixels in panel.items():
                np.testing.assert_array_equal(pixels, images[place])
            heading = page.locator(".mapper .chosen-node").inner_text()
            assert heading.startswith(f"{node.size} image")
            assert page.locator(".mapper .node.chosen").count() == 1
            seen.append((node, panel))
    (first, _), (last, panel) = seen[0], seen[2]
    assert last.interval != first.interval or not panel.keys() & set(first.members)
    wrong = images[(np.fromiter(panel, int) + 1) % len(images)]
    assert not all(np.array_equal(pixels, other) for pixels, other in zip(panel.values(), wrong, strict=True))
    assert (console, requests) == ([], [])


@pytest.mark.slow
def test_another_coordinate_is_chosen(browser: Any, run: Path) -> None:
    page, console, _ = opened(browser, run)
    select = page.locator(".mapper select")
    assert select.locator("option").count() == 4
    assert drawing(page).get_attribute("data-coordinate") == "0"
    drawing(page).locator(".node .rim").first.click()
    assert page.locator(".mapper .members li").count() > 0
    select.select_option(value="3")
    assert drawing(page).get_attribute("data-coordinate") == "3"
    assert page.locator(".mapper .members li, .mapper .chosen").count() == 0
    assert console == []


@pytest.mark.slow
def test_the_keyboard_gets_to_every_node(browser: Any, run: Path, fitted: MapperClassifier) -> None:
    page, console, _ = opened(browser, run)
    page.locator(".mapper select").focus()
    focused = "document.activeElement.dataset.node"
    for _ in range(3):  # the drawing may be a stop of its own where it scrolls
        page.keyboard.press("Tab")
        if page.evaluate(focused) is not None:
            break
    visited = [page.evaluate(focused)]
    nodes = {str(node.id) for node in fitted.graph(0).nodes}
    for _ in range(len(nodes) + 2):
        page.keyboard.press("ArrowRight")
        visited.append(page.evaluate(focused))
    assert set(visited) == nodes
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    assert page.locator(".mapper .node[aria-pressed=true]").get_attribute("data-node") == visited[-1]
    last = next(node for node in fitted.graph(0).nodes if str(node.id) == visited[-1])
    assert shown(page).keys() <= set(last.members)
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    assert page.locator(".mapper .node[aria-pressed=true]").get_attribute("data-node") == visited[0]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.graph')") is None
    assert console == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_section_is_readable_in_the_light_and_in_the_dark(browser: Any, run: Path, scheme: str) -> None:
    page, _, _ = opened(browser, run, color_scheme=scheme)
    drawing(page).locator(".node .rim").first.click()
    assert page.evaluate(CONTRAST) == []
    hole = page.locator(".mapper .hole").first.evaluate("hole => getComputedStyle(hole).fill")
    assert hole == page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, run: Path, width: int) -> None:
    page, _, _ = opened(browser, run, viewport={"width": width, "height": 800})
    drawing(page).locator(".node .rim").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_without_script_all_coordinates_are_there(browser: Any, run: Path) -> None:
    page, _, _ = opened(browser, run, java_script_enabled=False)
    assert drawing(page).count() == 4
    assert not page.locator(".mapper select").is_visible()
    assert not page.locator(".mapper .members").is_visible()


@pytest.mark.slow
def test_without_their_images_members_are_listed(browser: Any, run: Path, fitted: MapperClassifier) -> None:
    table = fitted.graph_table()
    table["members"]["sprite"] = None
    (run / "mapper_graph.json").write_text(json.dumps(table))
    page, console, _ = opened(browser, run)
    node = max(fitted.graph(0).nodes, key=lambda node: node.size)
    page.locator(f'.coordinate:visible .node[data-node="{node.id}"] .rim').click()
    said = page.locator(".mapper .members p").last.inner_text()
    listed = [int(place) for place in said.partition(": ")[2].split(", ")]
    assert len(listed) == min(SHOWN, node.size)
    assert set(listed) <= set(node.members)
    assert console == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_one_graph(browser: Any, fitted: MapperClassifier, tmp_path: Path, scheme: str) -> None:
    fitted.graph(1).draw(tmp_path / "report.html")
    page, console, requests = opened(browser, tmp_path, color_scheme=scheme)
    node = max(fitted.graph(1).nodes, key=lambda node: node.size)
    page.locator(f'.node[data-node="{node.id}"] .rim').click()
    assert shown(page).keys() <= set(node.members)
    assert page.evaluate(CONTRAST) == []
    assert (console, requests) == ([], [])
