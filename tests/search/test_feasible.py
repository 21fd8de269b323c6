"""What is refused before anything is grown: with the reason, and rightly; and how large a network would be."""

from __future__ import annotations

import copy

import pytest
import torch
from bred import BASES, IMAGES, parent_of
from bred import parent as shared
from networks_to_grow import Normed, Residual
from small_nets import blocks
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.growth.operations import grow
from postgrad.growth.words import OPERATORS, Operation, parse_operation
from postgrad.search import feasible
from postgrad.search.feasible import check_feasible
from postgrad.search.mutations import Infeasible, Parent, architecture_of


class Tokens(nn.Module):
    """Patches as tokens through layer normalisation, with groups beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 4, stride=4)
        self.body = Normed()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.patches(x).flatten(2).transpose(1, 2)).mean(1)


def multiples() -> nn.Module:
    """A width over which a normalisation takes a mean, behind an activation."""
    return nn.Sequential(nn.Linear(16, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 3))


NETWORKS = {**BASES, "stages": blocks, "tokens": Tokens, "stream": Residual, "multiples": multiples}


@pytest.fixture(scope="module")
def parents() -> dict[str, Parent]:
    return {name: shared(name) if name in BASES else parent_of(NETWORKS[name]()) for name in NETWORKS}


def operations(words: str) -> list[Operation]:
    return [parse_operation(word) for word in words.split()]


def test_every_operator_has_a_rule() -> None:
    assert feasible._RULES.keys() == OPERATORS.keys()


REFUSED = [
    ("three", "widen:layer=nine,to=9", "nine: the parent has no layer of that name"),
    ("three", "widen:layer=7,to=9", "7: cannot be widened: it is what the network returns"),
    ("three", "widen:layer=1,to=9", "1: it makes no channels of its own"),
    ("three", "widen:layer=0,to=6", "0: it has 6 channels, which is not less than 6"),
    ("three", "widen:layer=0,to=9 widen:layer=0,to=8", "0: it has 9 channels, which is not less than 8"),
    ("three", "widen:layer=9*,to=9", "no layer matches '9"),
    ("three", "widen:layer=0#1,to=9", "0#1: it makes a product of 1"),
    ("three", "deepen:after=nine", "nine: the parent has no layer of that name"),
    ("three", "insert_group:after=1,groups=4", "1: 4 groups do not divide its 6 channels"),
    ("three", "widen:layer=0,to=8 insert_group:after=1,groups=3", "1: 3 groups do not divide its 8 channels"),
    ("three", "insert_group:after=6,groups=2", "6: it gives no images"),
    ("three", "insert_pool:after=6", "6: it gives no images"),
    ("three", "grow_kernel:layer=0,to=4", "grows by an even number of taps"),
    ("three", "grow_kernel:layer=0,to=3", "cannot grow"),
    ("three", "grow_kernel:layer=7,to=5", "7: only convolutions have a kernel"),
    ("three", "add_skip:source=4,target=1", "1: it is done before 4"),
    ("three", "group_layer:layer=7,groups=2", "7: it is no dense convolution"),
    ("three", "group_layer:layer=0,groups=2", "0: 2 groups do not divide 3 to 6 channels"),
    ("three", "insert_dropout:after=1,p=1", "dropout of 1"),
    ("three", "stack:stage=0", "0: it is no nn.Sequential of blocks"),
    ("residual", "deepen:after=act,kind=identiti", "deepen:kind: should be 'residual' or 'identity'"),
    ("residual", "branch:layer=nine", "nine: the parent has no layer"),
    ("multiples", "widen:layer=0,to=8", "0: layer_norm in 2 takes a mean over it"),
    ("multiples", "widen:layer=0,to=12 widen:layer=0,to=18", "so it grows by whole multiples of 12"),
    ("tokens", "add_skip:source=patches,target=body.down", "cannot be made from"),
    ("stream", "widen:layer=b*,to=3", "which is not less than 3"),
]
"""Network, what is asked for, the reason: whatever is refused here is refused by the operators too."""


@pytest.mark.parametrize(("name", "words", "reason"), REFUSED)
def test_what_is_refused_is_refused_by_the_operators_too(
    name: str, words: str, reason: str, parents: dict[str, Parent]
) -> None:
    with pytest.raises(Infeasible) as refused:
        check_feasible(parents[name], operations(words))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError):
        grow(copy.deepcopy(parents[name].model), operations(words), example=parents[name].example)


def test_a_linear_layer_behind_a_flattened_image_takes_no_smaller_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 3))
    parent = parent_of(model)
    with pytest.raises(Infeasible, match="1: what follows takes no smaller image than it gets"):
        check_feasible(parent, operations("insert_pool:after=1"))
    with pytest.raises(UserError):
        grow(copy.deepcopy(model), operations("insert_pool:after=1"), example=IMAGES)


def test_images_are_halved_as_often_as_they_allow(parents: dict[str, Parent]) -> None:
    once = operations("insert_pool:after=1")
    check_feasible(parents["three"], once)  # 16 → 8 → 4
    with pytest.raises(Infeasible, match="1: images of 16 pixels a side are halved at most 2 times, not 3"):
        check_feasible(parents["three"], [*once, *operations("insert_pool:after=1")])


@pytest.mark.parametrize(
    ("limits", "words", "reason"),
    [
        ({"parameters": 700}, "widen:layer=0,to=9", "it would have 944 parameters; the limit is 700"),
        ({"depth": 4}, "deepen:after=1,kind=identity deepen:after=1,kind=identity", "it would be 5 layers deep"),
        ({"width": 8}, "widen:layer=0,to=9", "0: it would have 9 channels; the limit is 8"),
        ({"width": 8}, "widen:layer=0,to=1.5x", "0: it would have 9 channels; the limit is 8"),
    ],
)
def test_limits_hold(limits: dict[str, int], words: str, reason: str) -> None:
    with pytest.raises(Infeasible, match=reason):
        check_feasible(parent_of(BASES["three"](), **limits), operations(words))
    check_feasible(parent_of(BASES["three"]()), operations(words))  # negative control


def test_a_deep_network_may_stay_as_deep_as_it_is() -> None:
    parent = parent_of(BASES["three"](), depth=2)
    check_feasible(parent, operations("widen:layer=0,to=9"))
    with pytest.raises(Infeasible, match="it would be 4 layers deep; the limit is 2"):
        check_feasible(parent, operations("deepen:after=1,kind=identity"))


COUNTED = [
    ("three", "widen:layer=0,to=9"),
    ("three", "widen:layer=0,to=1.7x widen:layer=0,to=1.5x widen:layer=3,to=11"),
    ("three", "widen:layer=0,to=7 grow_kernel:layer=3,to=5 grow_kernel:layer=0,to=5"),
    ("three", "widen:layer=0,to=9 branch:layer=3 insert_dropout:after=1,p=0.1"),
    ("three", "branch:layer=3,kind=gated,ways=3"),
    ("three", "branch:layer=3,kind=concat"),
    ("three", "widen:layer=0,to=8 add_skip:source=1,target=4"),
    ("three", "add_skip:source=0,target=4 deepen:after=4"),
    ("three", "group_layer:layer=3,groups=2"),
    ("residual", "widen:layer=c*,to=12 deepen:after=fc"),
    ("residual", "insert_group:after=act,groups=4,init=random"),
    ("stages", "deepen:after=stage2"),
    ("stages", "widen:layer=stage1.1.conv1,to=12 stack:stage=stage1"),
    ("stages", "deepen:after=stem"),
    ("squeezed", "widen:layer=depthwise,to=12 widen:layer=down,to=5"),
    ("tokens", "widen:layer=body.embed,to=12 deepen:after=body.down"),
]


@pytest.mark.parametrize(
    ("name", "words"),
    [pytest.param(*each, marks=[pytest.mark.slow] if n % 4 else []) for n, each in enumerate(COUNTED)],
)
def test_parameters_and_depth_are_those_of_the_grown_network(name: str, words: str, parents: dict[str, Parent]) -> None:
    plan = check_feasible(parents[name], operations(words))
    model = copy.deepcopy(parents[name].model)
    grow(model, operations(words), example=IMAGES)
    assert plan.parameters() == sum(each.numel() for each in model.parameters())
    assert plan.depth == architecture_of(model, IMAGES).depth


@pytest.mark.slow
def test_of_layers_widened_afterwards_the_parameters_are_the_most(parents: dict[str, Parent]) -> None:
    """The layer inside the block that was put in stays as wide as it is, which the plan does not know."""
    words = operations("deepen:after=stem widen:layer=stem,to=12")
    model = copy.deepcopy(parents["stages"].model)
    grow(model, words, example=IMAGES)
    assert check_feasible(parents["stages"], words).parameters() > sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize(
    "words",
    [
        "insert_group:after=1,groups=2 widen:layer=0,to=9",
        "branch:layer=0,kind=concat widen:layer=0,to=9",
        "group_layer:layer=3,groups=2 widen:layer=0,to=8",
    ],
)
def test_what_ties_channels_comes_after_widening(words: str, parents: dict[str, Parent]) -> None:
    """These might be grown: what the axis graph of the parent does not say is not guessed."""
    with pytest.raises(Infeasible, match="comes before and ties its channels; widen first"):
        check_feasible(parents["three"], operations(words))
    check_feasible(parents["three"], operations(words)[:1])


def test_of_a_pattern_those_that_can_be_widened_are_taken(parents: dict[str, Parent]) -> None:
    plan = check_feasible(parents["three"], operations("widen:layer=[07],to=9"))
    assert plan.sizes
    assert [axis.size for axis in plan.sizes] == [6]


def test_nothing_is_trained_or_changed(parents: dict[str, Parent]) -> None:
    model = parents["residual"].model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chance = torch.get_rng_state()
    for words in ("deepen:after=act", "insert_pool:after=act", "add_skip:source=n0,target=act"):
        check_feasible(parents["residual"], operations(words))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
