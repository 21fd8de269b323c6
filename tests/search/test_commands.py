"""Random lists of commands: as stated, and each of them trains a step or was refused before."""

from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from bred import BASES, IMAGES, parent_of
from bred import parent as shared
from torch import nn

from postgrad.errors import UserError
from postgrad.growth.operations import grow
from postgrad.search.commands import draw_commands
from postgrad.search.feasible import check_feasible
from postgrad.search.mutations import Infeasible, Parent


@pytest.fixture(scope="module")
def parents() -> dict[str, Parent]:
    return {name: shared(name) for name in BASES}


def test_lists_are_as_long_and_as_mixed_as_stated(parents: dict[str, Parent]) -> None:
    draw = np.random.default_rng(0)
    lists = [draw_commands(parents["three"], draw) for _ in range(30)]
    lengths = [len(each) for each in lists]
    assert set(lengths) == {3, 4, 5, 6, 7}
    commands = [command for each in lists for command in each]
    deeper = sum(command.name == "deepen" for command in commands)
    assert abs(deeper / len(commands) - 0.6) < 3 * math.sqrt(0.24 / len(commands))
    wider = [command.options for command in commands if command.name == "widen"]
    assert len(wider) + deeper == len(commands)
    times = [float(each["to"].removesuffix("x")) for each in wider]
    assert 1.2 <= min(times) < 1.3
    assert 2.3 < max(times) <= 2.4
    assert {each["layer"] for each in wider} == {"0"}  # neither the last convolution, 3, nor the last layer, 7


def test_no_list_exceeds_the_limits(parents: dict[str, Parent]) -> None:
    parent, tighter = (parent_of(BASES["three"](), parameters=most, depth=6, width=12) for most in (3000, 10))
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(8):
        with contextlib.suppress(Infeasible):  # where no three commands fit
            drawn.append(draw_commands(parent, draw))
    assert drawn
    for commands in drawn:
        plan = check_feasible(parent, commands)
        assert plan.parameters() <= 3000
        assert plan.depth <= 6
        with pytest.raises(Infeasible, match="the limit is 10"):  # negative control
            check_feasible(tighter, commands)


def outcome(parent: Parent, seed: int) -> str:
    """Draw a list, grow by it, and train one step."""
    try:
        commands = draw_commands(parent, np.random.default_rng(seed))
    except Infeasible:
        return "refused"
    assert 3 <= len(commands) <= 7
    model = copy.deepcopy(parent.model)
    try:
        steps = grow(model, commands, example=parent.example, seed=seed)
    except UserError:
        return "refused"
    assert max(step.certificate.max_error for step in steps) <= 1e-9
    assert check_feasible(parent, commands).parameters() >= steps[-1].parameters
    train_a_step(model)
    return "trained"


def train_a_step(model: nn.Module) -> None:
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = nn.functional.cross_entropy(model(IMAGES), torch.arange(4) % 3)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert any(not torch.equal(each, before[name]) for name, each in model.named_parameters())


@pytest.mark.parametrize("base", ["three", *(pytest.param(base, marks=pytest.mark.slow) for base in [*BASES][1:])])
def test_a_random_list_trains_a_step(base: str, parents: dict[str, Parent]) -> None:
    assert outcome(parents[base], seed=23) == "trained"  # three commands, of both kinds


@pytest.mark.slow
def test_random_lists_train_a_step_or_were_refused(parents: dict[str, Parent]) -> None:
    """Forty-five of the five hundred that `docs/search_lists.py` goes through."""
    outcomes = [outcome(parent, 500 + number) for parent in parents.values() for number in range(15)]
    assert outcomes.count("trained") > 0.9 * len(outcomes)
