"""Pages of reports in a real browser, for the tests that look at them there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from postgrad.reports.html import render

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


def opened(browser: Any, run: Path, **settings: Any) -> tuple[Any, list[str], list[str]]:
    """A page of this run, with what it wrote to the console and what it asked the network for."""
    page = browser.new_context(**settings).new_page()
    console: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    report = run / "report.html"
    page.goto((report if report.exists() else render(run)).as_uri())
    return page, console, [url for url in requests if not url.startswith(("file:", "data:"))]


def background(page: Any) -> tuple[int, ...]:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return tuple(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


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
