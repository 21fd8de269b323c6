"""Other normalisations in place of batch normalisation: against closed forms, and with the optimizer in step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import postgrad
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods.norm import BatchRenorm2d, apply_norm
from postgrad.models.registry import create_model


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return create_model("resnet20", num_classes=10)


@pytest.mark.parametrize("kind", ["group", "layer", "renorm", "none"])
def test_no_batch_norm_is_left_and_the_optimizer_trains_what_came(kind: str) -> None:
    model = resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert apply_norm(model, kind=kind, optimizer=optimizer) == 19  # type: ignore[arg-type]
    assert not [module for module in model.modules() if type(module) is nn.BatchNorm2d]
    trained = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert trained == {id(parameter) for parameter in model.parameters()}
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()


def test_group_norm_has_the_published_groups_where_channels_allow() -> None:
    model = nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(48), nn.BatchNorm2d(7))
    apply_norm(model, kind="group")
    assert [layer.num_groups for layer in model] == [32, 16, 7]


def test_scale_and_shift_are_carried_over() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model = nn.Sequential(norm)
    apply_norm(model, kind="layer")
    x = torch.randn(3, 4, 5, 5)
    centred = x - x.mean((1, 2, 3), keepdim=True)
    expected = centred / (x.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(model(x), expected * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1))


def test_batch_renorm_starts_as_batch_norm_and_ends_as_running_statistics() -> None:
    x = torch.randn(8, 3, 4, 4) * 1.3 + 0.4
    early, plain = BatchRenorm2d(3, warm_up=10), nn.BatchNorm2d(3)
    torch.testing.assert_close(early(x), plain(x))
    torch.testing.assert_close(early.running_var, plain.running_var)
    late = BatchRenorm2d(3, warm_up=1)
    late.num_batches_tracked.fill_(100)
    late.running_mean.fill_(0.2)
    late.running_var.fill_(1.5)
    frozen = copy.deepcopy(late).eval()
    torch.testing.assert_close(late(x), frozen(x))  # r and d within their bounds make up for the batch entirely
    with pytest.raises(AssertionError):
        torch.testing.assert_close(early(x), frozen(x))


def test_batch_renorm_has_no_gradient_through_its_correction() -> None:
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    layer = BatchRenorm2d(2, warm_up=1).double()
    layer.num_batches_tracked.fill_(100)
    layer.running_var.fill_(2.0)
    running = layer.running_mean.clone(), layer.running_var.clone()
    upstream = torch.randn(x.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((layer(x) * upstream).sum(), x)
    deviation = (x.var((0, 2, 3), unbiased=False) + layer.eps).sqrt()
    r = (deviation / (running[1] + layer.eps).sqrt()).detach().view(1, -1, 1, 1)
    mean = x.mean((0, 2, 3), keepdim=True)
    plain = (x - mean) / deviation.view(1, -1, 1, 1) * r
    (expected,) = torch.autograd.grad((plain * upstream).sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kind", ["group", "layer", "renorm"])
def test_epsilon_and_momentum_are_those_of_the_old_layer(kind: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, eps=0.3, momentum=0.5))
    old = copy.deepcopy(model[0])
    apply_norm(model, kind=kind)  # type: ignore[arg-type]
    assert model[0].eps == 0.3
    if kind == "renorm":
        x = torch.randn(5, 4, 2, 2)
        torch.testing.assert_close(model(x), old(x))
        torch.testing.assert_close(model[0].running_mean, old.running_mean)


def test_statistics_that_are_not_kept_are_refused() -> None:
    with pytest.raises(UserError, match="running statistics"):
        apply_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), kind="renorm")


class Own(nn.BatchNorm2d):
    """What somebody's network has in the place of batch normalisation."""


def test_a_class_of_its_own_is_refused_before_anything_is_changed() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Own(3))
    with pytest.raises(UserError, match="1 is a Own"):
        apply_norm(model, kind="group")
    assert type(model[0]) is nn.BatchNorm2d


def test_unknown_kind_and_nothing_to_replace() -> None:
    with pytest.raises(UserError, match="did you mean 'group'"):
        apply_norm(resnet(), kind="groups")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="no BatchNorm2d"):
        assert apply_norm(nn.Sequential(nn.Linear(2, 2)), kind="group") == 0


def test_a_saved_network_is_built_again(tmp_path: Path) -> None:
    model = resnet()
    apply_norm(model, kind="renorm")
    postgrad.save(model, tmp_path / "net", preprocess=Preprocessing(), class_names=[str(i) for i in range(10)])
    again = postgrad.load(tmp_path / "net")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), model.eval()(x))
