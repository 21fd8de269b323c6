"""Take the picture of a report that the README shows.

    python docs/take_picture.py runs/demo

Needs playwright (in the extra `dev`) and a Chromium on the system.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parent / "images" / "demo-report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1100, 900


def take_picture(report: Path, picture: Path = PICTURE) -> None:
    """Write the top of a report, down to the end of its table of arms, as a PNG of twice the size."""
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        sys.exit(f"take_picture: needs one of {', '.join(BROWSERS)} on the system")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=2)
        page.goto(report.resolve().as_uri())
        bottom = page.locator("main table").first.bounding_box()
        assert bottom is not None
        height = bottom["y"] + bottom["height"] + 16
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    take_picture(Path(sys.argv[1]) / "report.html")
