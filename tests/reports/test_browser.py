"""The page in a real browser: its numbers, no errors, no network, a phone, the dark, the keyboard and print."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from postgrad.reports.html import render
from postgrad.reports.schema import read_results

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; on Debian or Ubuntu: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


def opened(browser: Any, run: Path, **settings: Any) -> tuple[Any, list[str], list[str]]:
    """A page of this run, with what it wrote to the console and what it asked the network for."""
    page = browser.new_context(**settings).new_page()
    console: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(render(run).as_uri())
    return page, console, [url for url in requests if not url.startswith(("file:", "data:"))]


def background(page: Any) -> tuple[int, ...]:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return tuple(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


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


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_never_scrolls_sideways(browser: Any, make_run, width: int) -> None:
    page, _, _ = opened(browser, make_run(seeds=3), viewport={"width": width, "height": 800})
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
    page, _, _ = opened(browser, make_run(warnings=["A warning."]), color_scheme=scheme)
    low = page.evaluate(CONTRAST)
    assert low == []


CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => {
    for (let n = node; n; n = n.parentElement) {
      const colour = rgb(getComputedStyle(n).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  const TEXT = "h1, h2, h3, p, th, td, small, .verdict, dt, dd, li, figcaption, text, summary, pre, button";
  const low = [];
  for (const node of document.querySelectorAll(TEXT)) {
    const style = getComputedStyle(node);
    const a = light(rgb(node.namespaceURI.endsWith("svg") ? style.fill : style.color));
    const b = light(behind(node.closest("svg")?.parentElement ?? node));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push([node.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return low;
}"""
