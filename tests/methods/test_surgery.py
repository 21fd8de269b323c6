"""New layers in place of old ones, and the optimizer that follows them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from postgrad.errors import UserError
from postgrad.methods._surgery import optimizer_follows, replace_modules


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_shared_layer_is_replaced_under_every_name() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared)).double().eval()
    new = nn.Linear(3, 3)
    assert replace_modules(model, {shared: new}) == 1
    assert model[0] is model[1][1] is new
    assert new.weight.dtype == torch.float64
    assert not new.training


def test_a_network_cannot_be_replaced_inside_itself() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"nn\.Sequential"):
        replace_modules(layer, {layer: nn.ReLU()})


def test_optimizer_groups_and_states_follow() -> None:
    model = net()
    norm = model[1]
    groups = [{"params": [*model[0].parameters(), *model[2].parameters()]}, {"params": norm.parameters(), "lr": 0.5}]
    optimizer = torch.optim.Adam(groups)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    new = nn.LayerNorm(4)
    with optimizer_follows(model, optimizer) as heir_of:
        replace_modules(model, {norm: new})
        heir_of[new.weight] = norm.weight
    first, second = (group["params"] for group in optimizer.param_groups)
    assert second == [new.weight]
    assert first[-1] is new.bias  # nothing was said of it
    assert optimizer.param_groups[1]["lr"] == 0.5
    assert norm.weight not in optimizer.state
    assert model[0].weight in optimizer.state
    optimizer.zero_grad()
    model(torch.randn(5, 3)).square().sum().backward()
    before = new.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, new.weight)


def test_what_was_left_untrained_and_what_is_another_networks_stay_so() -> None:
    model, other = net(), nn.Linear(1, 1)
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([*other.parameters(), *model[2].parameters()], lr=0.1)
    with optimizer_follows(model, optimizer):
        replace_modules(model, {model[1]: nn.Identity()})
    assert optimizer.param_groups[0]["params"] == [*other.parameters(), *model[2].parameters()]


def test_names_of_parameters_follow_where_the_optimizer_has_them() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    with optimizer_follows(model, optimizer):
        replace_modules(model, {model[1]: nn.LayerNorm(4, bias=False)})
    (group,) = optimizer.param_groups
    assert group["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias", "1.weight"]
    named = dict(model.named_parameters())
    assert all(named[name] is each for name, each in zip(group["param_names"], group["params"], strict=True))


def test_a_surgery_that_fails_leaves_the_optimizer_alone() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = list(optimizer.param_groups[0]["params"])

    def surgery() -> None:
        with optimizer_follows(model, optimizer):
            replace_modules(model, {model[1]: nn.Identity()})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        surgery()
    assert [a is b for a, b in zip(before, optimizer.param_groups[0]["params"], strict=True)] == [True] * 6
