"""What can be widened, as a table and as a picture: against networks whose couplings are known by hand."""

from __future__ import annotations

import contextlib
import shutil
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from growing import ConvNet
from torch import Tensor, nn

from postgrad import create_model
from postgrad.errors import UserError
from postgrad.growth._drawing import COLOURS, Box, Entry, colours_of, rows
from postgrad.growth.axes import analyse
from postgrad.growth.explain import CoupledWidth, coupled_widths, picture
from postgrad.growth.width import widen

SVG = "{http://www.w3.org/2000/svg}"


class Normalised(nn.Module):
    """Tokens whose stream is normalised, with a parameter of the network itself."""

    def __init__(self, before: nn.Module) -> None:
        super().__init__()
        self.before = before
        self.place = nn.Parameter(torch.randn(5, 8))
        self.into = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.before(self.into(x) + self.place)))


def widths(model: nn.Module, x: Tensor) -> list[CoupledWidth]:
    return coupled_widths(model, analyse(model, x))


def drawn(model: nn.Module, x: Tensor, title: str = "net") -> str:
    return picture(model, analyse(model, x), title)


def elements(text: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter(f"{SVG}{tag}"))


def hints(text: str) -> list[str]:
    return [title.text or "" for title in elements(text, "title")]


def test_widths_of_a_plain_network() -> None:
    found = widths(ConvNet(), torch.randn(2, 3, 8, 8))
    assert [(each.number, each.name, each.size, each.step) for each in found] == [
        (1, "conv1", 6, 1),
        (None, "input of conv1", 3, 1),
        (2, "conv2", 5, 1),
        (None, "head", 4, 1),
    ]
    assert found[0].layers == ("conv1", "bn1", "conv2")
    assert found[0].row() == ("conv1", "6", "conv1, bn1 (+1 more)", "1")
    assert found[3].row() == ("head", "4", "head", "fixed: it is what the network returns")


@pytest.mark.parametrize(("before", "step"), [(nn.Identity(), 1), (nn.GELU(), 8)])
def test_a_mean_over_units_gives_the_step_unless_layers_and_sums_alone_stand_before_it(
    before: nn.Module, step: int
) -> None:
    model = Normalised(before)
    width = next(each for each in widths(model, torch.randn(2, 5, 4)) if each.name == "into")
    assert width.step == step
    assert width.layers == ("place", "into", "norm", "head")
    assert width.remark().startswith(f"{step} (layer_norm in norm takes a mean over it: " if step > 1 else "1")
    with contextlib.nullcontext() if step == 1 else pytest.raises(UserError, match="takes a mean over it"):
        widen(model, "into", to=9, example=torch.randn(2, 5, 4))


def test_every_layer_is_in_the_picture_with_its_widths_and_reasons() -> None:
    text = drawn(ConvNet(), torch.randn(2, 3, 8, 8), "a <net> & more")
    said = hints(text)
    for layer in ("conv1: 3 → 6", "bn1: 6", "conv2: 6 → 5", "bn2: 5", "head: 5 → 4"):
        assert layer in said
    assert "head: 4; fixed: it is what the network returns" in said
    assert said[0] == "a <net> & more"
    fills = [rect.get("fill") for rect in elements(text, "rect")]
    assert fills.count("url(#fixed)") == 2 + 1, "the input, the output, and the legend"


def test_coupled_layers_have_one_colour_and_others_have_another() -> None:
    text = drawn(ConvNet(), torch.randn(2, 3, 8, 8))
    of: dict[str, set[str]] = {}
    for group in elements(text, "g"):
        hint, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        if hint is not None and rect is not None and "; " in (hint.text or ""):
            of.setdefault((hint.text or "").partition(":")[0], set()).add(str(rect.get("fill")))
    assert len(of["conv1"]) == len(of["conv2"]) == 1
    assert of["conv1"] != of["conv2"]


def test_layers_stand_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(6, 3)
            self.first = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    said = hints(drawn(Backwards(), torch.randn(2, 4)))
    assert said.index("first: 4 → 6") < said.index("last: 6 → 3")


def test_a_parametrized_layer_is_one_layer() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    assert widths(model, torch.randn(2, 4))[0].layers == ("0", "2")
    assert "0: 4 → 6" in hints(drawn(model, torch.randn(2, 4)))


def test_rows_are_modules_that_fit() -> None:
    names = ["stem", "norm", *(f"body.{block}.{layer}" for block in range(4) for layer in range(5)), "head"]
    found = rows([Box(name, name, (), ()) for name in names])
    assert [(prefix, len(members)) for prefix, members in found] == [
        ("", 2), ("body.0", 5), ("body.1", 5), ("body.2", 5), ("body.3", 5), ("", 1),
    ]  # fmt: skip
    assert [box.name for _, members in found for box in members] == names


def test_colours_are_far_apart_readable_and_the_widest_have_their_own() -> None:
    def rgb(colour: str) -> list[int]:
        return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]

    def light(colour: str) -> float:
        parts = [part / 255 for part in rgb(colour)]
        parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    for a, b in combinations(COLOURS, 2):
        assert sum((x - y) ** 2 for x, y in zip(rgb(a), rgb(b), strict=True)) ** 0.5 > 40
    ink = light("#1a1a1a")
    assert all((light(colour) + 0.05) / (ink + 0.05) > 4.5 for colour in COLOURS)
    entries = [Entry(number, "", "", 20 if number in (1, 9) else 2) for number in range(1, 30)]
    given = colours_of(entries)
    assert [colour for number, colour in given.items() if colour in (given[1], given[9])] == [given[1], given[9]]
    assert all(given[number] != given[number + 1] for number in range(1, 29))


@pytest.mark.slow
def test_the_picture_is_drawn_inside_its_frame_in_a_browser(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no chromium on this machine; on Debian or Ubuntu: apt-get install chromium")
    text = drawn(create_model("resnet20", num_classes=10), torch.randn(2, 3, 16, 16), "resnet20")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content(f"<body style='margin:0'>{text}")
        outside = page.evaluate(
            """() => {
              const frame = document.querySelector('svg').getBoundingClientRect();
              return [...document.querySelectorAll('svg text')].filter(text => {
                const box = text.getBoundingClientRect();
                return box.right > frame.right + 1 || box.bottom > frame.bottom + 1 || box.left < frame.left;
              }).map(text => text.textContent);
            }"""
        )
        wide = page.evaluate(
            """() => [...document.querySelectorAll('svg g g')].filter(cell => {
              const text = cell.querySelector('text'), rect = cell.querySelector('rect');
              return text && text.getBoundingClientRect().width > rect.getBoundingClientRect().width + 1;
            }).map(cell => cell.textContent)"""
        )
        browser.close()
    assert (outside, wide) == ([], [])
