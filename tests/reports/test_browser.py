"""The page in a real browser: its numbers, no errors, no network, a phone, the dark, the keyboard and print."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from browsing import CONTRAST, background, opened
from made_up_lineage import made_up_lineage
from made_up_study import write_study

from postgrad.reports.comparison import compare
from postgrad.reports.html import render
from postgrad.reports.schema import read_results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 13 arms, 5 seeds and 10,000 test images."""
    return write_study(tmp_path_factory.mktemp("studies") / "study", n_test=10_000)


def test_shows_the_numbers_without_errors_or_network(browser: Any, make_run) -> None:
    run = make_run()
    page, console, requests = opened(browser, run)
    text = page.inner_text("body").replace("\u00a0", " ")
    for arm in read_results(run / "results.json").arms:
        assert f"{100 * arm.metrics['accuracy'].mean:.2f} %" in text
        assert f"{arm.metrics['nll'].mean:.3f}" in text
    assert page.inner_text("h1").startswith("GradNet ")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert console == []
    assert requests == []


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1280])
@pytest.mark.parametrize("kind", ["run", "study", "search"])
def test_never_scrolls_sideways(browser: Any, make_run, large: Path, width: int, kind: str) -> None:
    run = large if kind == "study" else make_run(seeds=3, lineage=made_up_lineage(90) if kind == "search" else [])
    page, _, _ = opened(browser, run, viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_follows_the_dark_and_the_button(browser: Any, make_run) -> None:
    page, _, _ = opened(browser, make_run(), color_scheme="dark")
    assert max(background(page)) < 60
    page.focus("#theme")
    page.keyboard.press("Enter")
    assert min(background(page)) > 220
    page.click("#theme")
    assert max(background(page)) < 60


def test_is_light_on_paper(browser: Any, make_run) -> None:
    page, _, _ = opened(browser, make_run(), color_scheme="dark")
    page.emulate_media(media="print")
    assert min(background(page)) > 220
    assert not page.is_visible("#theme")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_against_its_background(browser: Any, make_run, scheme: str) -> None:
    run = make_run(warnings=["A warning."], lineage=made_up_lineage(30))
    page, _, _ = opened(browser, run, color_scheme=scheme)
    low = page.evaluate(CONTRAST)
    assert low == []


def rows(page: Any) -> list[str]:
    """The names of the visible arms of the leaderboard, in order."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#leaderboard tbody tr")].filter(row => row.checkVisibility())
            .map(row => row.id.replace("arm-", ""))"""
    )


def column(page: Any, number: int) -> list[float]:
    cells = f"#leaderboard tbody tr > :nth-child({number})"
    return [float(v) for v in page.eval_on_selector_all(cells, "cells => cells.map(cell => cell.dataset.value)")]


def test_the_leaderboard_sorts_by_any_column_and_says_how(browser: Any, large: Path) -> None:
    page, console, _ = opened(browser, large)
    heading = page.locator("#leaderboard th", has=page.locator("button", has_text="Accuracy"))
    assert heading.get_attribute("aria-sort") is None
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, 2) == sorted(column(page, 2), reverse=True)
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, 2) == sorted(column(page, 2))
    page.locator("#leaderboard th button", has_text="Parameters").press("Space")
    assert column(page, 7) == sorted(column(page, 7))
    assert page.locator("#leaderboard [aria-sort]").count() == 1
    page.locator("#leaderboard th button", has_text="Arm").click()
    labels = page.eval_on_selector_all("#leaderboard tbody th", "cells => cells.map(cell => cell.dataset.value)")
    assert labels == sorted(labels, key=str.lower)
    assert console == []


def test_the_leaderboard_filters_by_text_and_kind_and_says_how_many(browser: Any, large: Path) -> None:
    page, _, _ = opened(browser, large)
    status = page.locator(".tools [role=status]")
    assert status.inner_text() == "13 arms"
    assert status.get_attribute("aria-live") == "polite"
    page.get_by_label("Find").fill("variant-1")
    assert len(rows(page)) == 4
    assert status.inner_text() == "4 of 13 arms"
    controls = page.get_by_role("button", name="Controls")
    controls.press("Enter")
    assert controls.get_attribute("aria-pressed") == "false"
    assert rows(page) == ["gradnet-variant-1"]
    page.get_by_label("Find").fill("")
    assert rows(page) == ["base", "gradnet", "gradnet-variant-1", "gradnet-variant-2"]
    page.get_by_label("Find").fill("nothing at all")
    assert (rows(page), status.inner_text()) == ([], "0 of 13 arms")


def test_on_a_phone_a_menu_sorts(browser: Any, large: Path) -> None:
    page, _, _ = opened(browser, large, viewport={"width": 360, "height": 800})
    page.get_by_label("Sort by").select_option(label="Accuracy")
    assert column(page, 2) == sorted(column(page, 2), reverse=True)
    page.get_by_label("Sort by").select_option(index=0)
    assert rows(page)[:2] == ["base", "gradnet"]


def test_without_script_everything_is_there(browser: Any, large: Path) -> None:
    page, _, _ = opened(browser, large, java_script_enabled=False)
    assert page.locator("#leaderboard tbody tr").count() == 13
    assert page.locator("#leaderboard button").count() == 0
    assert not page.locator(".tools").is_visible()
    assert not page.locator("#theme").is_visible()


def test_the_keyboard_gets_everywhere_and_sees_where_it_is(browser: Any, large: Path) -> None:
    page, _, _ = opened(browser, large)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    seen = []
    for _ in range(400):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUS)
        if found["tag"] == "BODY":
            break
        seen.append(found)
    assert found["tag"] == "BODY", "the focus never left the page"
    assert {"INPUT", "BUTTON", "A", "SUMMARY"} <= {one["tag"] for one in seen}
    assert [one for one in seen if not one["visible"]] == []


FOCUS = """() => {
  const node = document.activeElement, style = getComputedStyle(node);
  return { tag: node.tagName, name: node.textContent.trim().slice(0, 30),
           visible: node.tagName === "BODY" || (style.outlineStyle !== "none" && style.opacity === "1") };
}"""


def test_a_link_into_something_folded_opens_it(browser: Any, large: Path) -> None:
    page, _, _ = opened(browser, large)
    anchor = "group-GradNet-gradnet-variant-2-accuracy-seconds"
    assert not page.locator(f"#{anchor}").is_visible()
    page.goto(page.url + f"#{anchor}")
    assert page.locator(f"#{anchor}").is_visible()
    page.evaluate("location.hash = '#arm-control-features-gradnet'")
    page.wait_for_timeout(200)
    assert page.evaluate("document.querySelector(':target').id") == "arm-control-features-gradnet"


def test_links_show_when_they_are_wanted(browser: Any, make_run) -> None:
    page, _, _ = opened(browser, make_run())
    link = page.locator("h2#cost .anchor")
    opacity = "node => getComputedStyle(node).opacity"
    assert link.evaluate(opacity) == "0"
    page.hover("h2#cost")
    assert link.evaluate(opacity) == "1"
    page.mouse.move(0, 0)
    link.focus()
    assert link.evaluate(opacity) == "1"


def test_prints_whole_and_without_controls(browser: Any, large: Path, tmp_path: Path) -> None:
    page, console, _ = opened(browser, large)
    page.get_by_label("Find").fill("variant-1")
    page.emulate_media(media="print")
    assert not page.locator(".tools").is_visible()
    assert not page.locator("nav").is_visible()
    assert len(rows(page)) == 13
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 with the browser's own margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert page.pdf(path=tmp_path / "page.pdf").startswith(b"%PDF")
    assert page.locator("#leaderboard th", has_text="Accuracy").is_visible()
    assert console == []


def test_a_study_and_a_comparison_give_no_errors(browser: Any, large: Path, make_run, tmp_path: Path) -> None:
    page, console, requests = opened(browser, large)
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    comparison = compare(large, make_run(), tmp_path / "comparison.html")
    page.goto(comparison.as_uri())
    assert "not tested on the same images" in page.inner_text("body")
    assert (console, requests) == ([], [])


@pytest.mark.parametrize("width", [360, 1280])
def test_a_comparison_never_scrolls_sideways(browser: Any, large: Path, make_run, tmp_path: Path, width: int) -> None:
    run = make_run()
    page, _, _ = opened(browser, run, viewport={"width": width, "height": 800})
    page.goto(compare(large, run, tmp_path / "comparison.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_large_study_is_made_in_seconds_and_stays_small(large: Path) -> None:
    began = time.process_time()
    page = render(large)
    assert time.process_time() - began < 5
    assert page.stat().st_size < 6_000_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_a_study_is_readable_against_its_background(browser: Any, large: Path, scheme: str) -> None:
    page, _, _ = opened(browser, large, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.evaluate(CONTRAST) == []
