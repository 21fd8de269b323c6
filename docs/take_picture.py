"""Take the pictures of reports that the documentation shows.

    python docs/take_picture.py runs/demo                   # the top, which the README shows
    python docs/take_picture.py runs/search-cifar10 lineage # the tree of a mutation search
    python docs/take_picture.py runs/mapper mapper          # the Mapper graph of the first coordinate

Needs playwright (in the extra `dev`) and a Chromium on the system.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
PICTURE, LINEAGE, MAPPER = (IMAGES / f"{name}.png" for name in ("demo-report", "search-lineage", "mapper-graph"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1100, 900


@contextlib.contextmanager
def opened(report: Path) -> Iterator[Any]:
    """The page of a report, at twice its size."""
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        sys.exit(f"take_picture: needs one of {', '.join(BROWSERS)} on the system")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=2)
        page.goto(report.resolve().as_uri())
        yield page
        browser.close()


def take_picture(report: Path, picture: Path = PICTURE) -> None:
    """Write the top of a report, down to the end of its table of arms, as a PNG."""
    with opened(report) as page:
        bottom = page.locator("main table").first.bounding_box()
        assert bottom is not None
        height = bottom["y"] + bottom["height"] + 16
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


def take_lineage(report: Path, picture: Path = LINEAGE) -> None:
    """Write the tree of a mutation search as a PNG."""
    with opened(report) as page:
        page.locator("section[aria-labelledby=lineage] .tree").screenshot(path=picture)


def take_mapper(report: Path, picture: Path = MAPPER) -> None:
    """Write the Mapper graph of the first coordinate as a PNG, with the members of its first large node."""
    with opened(report) as page:
        mapper = page.locator("section[aria-labelledby=mapper-graph] .mapper")
        mapper.locator(".coordinate:visible .node:has(.hole) .rim").first.click()
        page.mouse.move(0, 0)
        page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")  # boxes are counted from the top of the window
        top, bottom = (mapper.locator(part).first.bounding_box() for part in (".choice", ".members"))
        assert top is not None
        assert bottom is not None
        begin, end = top["y"] - 8, bottom["y"] + bottom["height"] + 8
        edges = {"x": top["x"] - 8, "width": bottom["width"] + 16, "y": begin, "height": end - begin}
        page.screenshot(path=picture, full_page=True, clip=edges)


if __name__ == "__main__":
    taken = {(): take_picture, ("lineage",): take_lineage, ("mapper",): take_mapper}.get(tuple(sys.argv[2:]))
    if len(sys.argv) < 2 or taken is None:
        sys.exit(__doc__)
    taken(Path(sys.argv[1]) / "report.html")
