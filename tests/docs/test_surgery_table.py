"""The page that says which networks each surgery takes, against the surgeries themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods" / "surgeries.md"


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    """Each network's cells, with reasons in the place of their numbers."""
    text = PAGE.read_text(encoding="utf-8")
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
    rows = {}
    for network, cells in re.findall(r"^\| ((?:torchvision|timm):\S+) \| (.+) \|$", text, re.MULTILINE):
        rows[network] = [reasons[cell.strip("()")] if cell.startswith("(") else cell for cell in cells.split(" | ")]
    return rows


def test_every_family_has_its_row(script: Any, said: dict[str, list[str]]) -> None:
    assert list(said) == list(script("surgery_table").NETWORKS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    ["torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:mnasnet0_5", "torchvision:densenet121",
     "timm:dla34", "timm:regnetx_002"],
)  # fmt: skip
def test_the_page_says_what_happens(script: Any, said: dict[str, list[str]], network: str) -> None:
    table = script("surgery_table")
    assert said[network] == [table.outcome(network, surgery) for surgery in table.SURGERIES]
