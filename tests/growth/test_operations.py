"""Several calls of operators, by patterns and multiples: which layers they reach, and to which sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from growing import ConvNet
from torch import Tensor, nn

from postgrad.changes import changes_of
from postgrad.errors import UserError
from postgrad.growth.operations import Grown, grow, matching
from postgrad.growth.words import parse_operation

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """A stream of 6 channels through two blocks, and a head that is normalised over its features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv1": nn.Conv2d(6, 4, 3, padding=1), "conv2": nn.Conv2d(4, 6, 1)}) for _ in range(2)
        )
        self.neck = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["conv2"](block["conv1"](x).relu())
        return self.head(self.norm(self.neck(x.mean((2, 3))).relu()))


def grown(model: nn.Module, *words: str, **options: Any) -> tuple[list[Grown], list[str]]:
    said: list[str] = []
    return grow(model, [parse_operation(word) for word in words], example=IMAGES, say=said.append, **options), said


def test_a_pattern_reaches_all_layers_that_it_matches_and_coupled_ones_once() -> None:
    model = Blocks()
    done, said = grown(model, "widen:layer=*conv*,to=2x")
    assert [(each.place, each.change) for each in done] == [
        ("blocks.0.conv1", "4 → 8"),
        ("blocks.0.conv2", "6 → 12"),
        ("blocks.1.conv1", "4 → 8"),
    ]
    assert said == []
    assert set(done[1].coupled) == {"stem", "blocks.0.conv1", "blocks.1.conv1", "blocks.1.conv2", "neck"}
    assert [each.operation.options["to"] for each in done] == [8, 12, 8]


def test_multiples_are_rounded_to_what_the_channels_allow_and_that_is_said() -> None:
    model = Blocks()
    done, said = grown(model, "widen:layer=blocks.0.conv1,to=1.4x", "widen:layer=neck,to=1.5x")
    assert [each.change for each in done] == ["4 → 6", "8 → 16"]
    assert said[0] == "blocks.0.conv1: 1.4x of 4 channels would be 5.6; it gets 6"
    assert said[1].endswith("would be 12; it gets 16, as they grow in steps of 8")
    assert grown(Blocks(), "widen:layer=blocks.0.conv1,to=1.01x")[0][0].change == "4 → 5", "one more at least"


def test_what_a_pattern_matches_and_cannot_be_widened_is_said() -> None:
    done, said = grown(Blocks(), "widen:layer=*e*,to=2x")
    assert [each.place for each in done] == ["stem", "neck"]
    assert said == ["not widened: head (it is what the network returns)"]
    with pytest.raises(UserError, match=r"none of these can be widened: head \(it is what the network returns"):
        grown(Blocks(), "widen:layer=hea*,to=2x")
    with pytest.raises(UserError, match="name layers that make channels"):
        grown(ConvNet(), "widen:layer=dropou*,to=2x")


def test_operators_in_their_order_reach_what_the_ones_before_them_put_in() -> None:
    model = ConvNet()
    done, _ = grown(model, "deepen:after=relu", "widen:layer=relu.grown.0.*,to=9")
    assert done[0].change == "+ residual"
    assert done[1].place.startswith("relu.grown.0.")
    assert [each.parameters for each in done] == sorted(each.parameters for each in done)


def test_seeds_go_on_with_each_growth() -> None:
    model = ConvNet()
    grown(model, "widen:layer=conv1,to=8", "widen:layer=conv2,to=7", seed=4)
    grown(model, "widen:layer=conv2,to=8", seed=4)
    grown(model, "widen:layer=conv2,to=9,seed=1", seed=4)
    assert [change.options["arguments"]["seed"] for change in changes_of(model)] == [4, 5, 6, 1]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("conv1", ["conv1"]),
        ("layer*.conv1", ["layer1.0.conv1", "layer2.conv1"]),
        ("layer?.conv1", ["layer2.conv1"]),
        ("layer[2].*", ["layer2.conv1"]),
        ("*", ["conv1", "layer1.0.conv1", "layer2.conv1"]),
    ],
)
def test_patterns_match_whole_names_and_dots(pattern: str, expected: list[str]) -> None:
    assert matching(pattern, ["conv1", "layer1.0.conv1", "layer2.conv1"]) == expected


def test_a_pattern_without_a_match_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no layer matches 'layr\*'; the nearest are layer1"):
        matching("layr*", ["conv1", "layer1", "fc"])


@pytest.mark.parametrize("factor", ["9", "x"])
def test_a_factor_that_is_not_there_is_refused(factor: str) -> None:
    with pytest.raises(UserError, match="count its factors from 0"):
        grown(ConvNet(), f"widen:layer=conv1#{factor},to=2x")
