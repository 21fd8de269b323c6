"""Approximate steps: the stated error is the true one, scales are those of least squares, what breaks is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import difference, images, net
from torch import nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.growth.approximate import group_layer, insert_pool, stack
from postgrad.growth.journal import journal_of, regrow


@pytest.mark.parametrize(
    ("name", "after", "kind"),
    [
        ("plain", "act", "max"),
        ("plain", "n0", "average"),
        ("blocks", "stage1", "max"),
        ("vgg", "0.2", "average"),
        ("3-D", "act", "max"),
    ],
)
def test_pooling_states_what_it_costs(name: str, after: str, kind: Any) -> None:
    model = net(name)
    inner = copy.deepcopy(model)
    pool = {"max": F.max_pool2d, "average": F.avg_pool2d}[kind] if name != "3-D" else F.max_pool3d
    inner.get_submodule(after).register_forward_hook(lambda _module, _args, output: pool(output, 2))
    expected = difference(net(name), inner, images())
    certificate = insert_pool(model, after, kind=kind, example=images())
    assert not certificate.exact
    assert certificate.mode == "eval"
    assert certificate.errors["float64 eval, batch 2"] == pytest.approx(expected, rel=1e-6)
    assert difference(inner, model) == 0
    other = net(name, seed=3)
    for entry in journal_of(model):
        regrow(other, **entry)
    other.load_state_dict(model.state_dict())
    assert difference(model, other) == 0


@pytest.mark.parametrize(
    ("model", "after", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, 2)), "0", "takes no smaller image"),
        (net, "fc", "pooling takes images of 2 pixels"),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), "0", "images of 2 pixels"),
        (lambda: net("tokens"), "layers", "pooling takes images"),
    ],
)
def test_pooling_where_it_cannot_be_is_refused(model: Any, after: str, message: str) -> None:
    made = model()
    before = list(made.named_modules())
    with pytest.raises(UserError, match=message) as error:
        insert_pool(made, after, example=images())
    assert "\n" not in str(error.value)
    assert list(made.named_modules()) == before
    with pytest.raises(UserError, match="unknown kind of pooling"):
        insert_pool(made, after, kind="min", example=images())  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_grouped_layer_is_the_nearest_on_the_example(groups: int, padding_mode: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, padding=1, padding_mode=padding_mode)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = images(4)
    with torch.no_grad():
        inputs = model[0](x)
        dense = conv(inputs) - conv.bias[:, None, None]
    old = conv.weight.detach().clone()
    certificate = group_layer(model, "1", groups=groups, example=x)
    assert not certificate.exact
    assert conv.groups == groups
    assert conv.weight.shape == (16, 8 // groups, 3, 3)
    rows, columns = 16 // groups, 8 // groups
    for row in range(16):
        group = row // rows
        kept = old[row, group * columns : (group + 1) * columns]
        part = nn.Conv2d(columns, 1, 3, padding=1, padding_mode=padding_mode, bias=False)
        part.weight = nn.Parameter(kept[None])
        with torch.no_grad():
            alone = part(inputs[:, group * columns : (group + 1) * columns])
        best = np.linalg.lstsq(alone.double().reshape(-1, 1).numpy(), dense[:, row].double().reshape(-1).numpy())[0][0]
        torch.testing.assert_close(conv.weight[row], kept * best.item(), rtol=1e-4, atol=1e-6)


def test_a_block_diagonal_layer_loses_nothing() -> None:
    torch.manual_seed(0)
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten())
    with torch.no_grad():
        model[1].weight.zero_()
        for row in range(8):
            first = row // 2 * 2
            model[1].weight[row, first : first + 2] = grouped.weight[row]
    before = copy.deepcopy(model)
    certificate = group_layer(model, "1", groups=4, example=images())
    assert certificate.max_error < 1e-5
    assert difference(before, model) < 1e-5
    assert certificate.to_json().count('"groups": 4') == 2


def test_the_new_weight_stays_in_its_group_of_the_optimizer() -> None:
    model = net().train()
    optimizer = torch.optim.SGD([{"params": [model.c0.weight]}, {"params": [model.c1.weight], "lr": 0.2}], lr=0.1)
    group_layer(model, "c1", groups=2, example=images(), optimizer=optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    assert optimizer.param_groups[1]["params"][0] is model.c1.weight
    other = net(seed=2)
    for entry in journal_of(model):
        regrow(other, **entry)
    other.load_state_dict(model.state_dict())
    assert difference(model, other) == 0


@pytest.mark.parametrize(
    ("layer", "groups", "message"),
    [
        ("c1", 3, "3 do not divide 'c1' of 8 to 8 channels"),
        ("c1", 1, "give a common divisor of 2 or more"),
        ("fc", 2, "not a dense convolution"),
        ("c3", 2, "unknown module 'c3'"),
    ],
)
def test_groups_that_cannot_be_are_refused(layer: str, groups: int, message: str) -> None:
    model = net()
    weight = model.c1.weight
    with pytest.raises(UserError, match=message) as error:
        group_layer(model, layer, groups=groups, example=images())
    assert "\n" not in str(error.value)
    assert model.c1.weight is weight
    assert model.c1.groups == 1


def test_a_grouped_layer_is_refused() -> None:
    with pytest.raises(UserError, match="not a dense convolution"):
        group_layer(net("mobilenet"), "features.2.conv.1.0", groups=2, example=images())


def test_stacking_runs_the_last_block_twice() -> None:
    model = net("blocks")
    twice = copy.deepcopy(model)
    twice.stage1.register_forward_hook(lambda stage, _args, output: stage[-1](output))
    expected = difference(net("blocks"), twice, images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    certificate = stack(model, "stage1", example=images(), optimizer=optimizer)
    assert not certificate.exact
    assert certificate.errors["float64 eval, batch 2"] == pytest.approx(expected, rel=1e-6)
    assert difference(twice, model) == 0
    assert {id(each) for group in optimizer.param_groups for each in group["params"]} == set(
        map(id, model.parameters())
    )
    other = net("blocks", seed=3)
    for entry in journal_of(model):
        regrow(other, **entry)
    other.load_state_dict(model.state_dict())
    assert difference(model, other) == 0


@pytest.mark.parametrize(
    ("model", "stage", "message"),
    [
        (net, "c0", "is no nn.Sequential of blocks"),
        (lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3)), nn.Flatten()), "0", "cannot follow itself"),
    ],
)
def test_stacking_where_it_cannot_be_is_refused(model: Any, stage: str, message: str) -> None:
    made = model()
    before = list(made.named_modules())
    with pytest.raises(UserError, match=message):
        stack(made, stage, example=images())
    assert list(made.named_modules()) == before
