"""Which layer gives the logits: found in networks of every make, and refused where there is no such layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad._compat import prepare_torchvision
from postgrad.errors import UserError
from postgrad.methods._last_layer import last_layer
from postgrad.models.registry import create_model

prepare_torchvision()


def name_of(layer: nn.Module, model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is layer)


class Own(nn.Module):
    """Registered in another order than run, with branches that depend on data, and a head within a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.ModuleDict({"drop": nn.Dropout(), "out": nn.Sequential(nn.Linear(4, 3), nn.Identity())})
        self.body = Body()
        self.unused = nn.Linear(4, 3)

    def forward(self, x: Tensor, *, verbose: bool = False) -> Tensor:
        x = self.body(x).flatten(1)
        if verbose:
            print(x.shape)
        return self.head["out"](self.head["drop"](x)).log_softmax(1)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = nn.Linear(5, 4), nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x), self.weight)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x) + self.two(x)) / 2


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.sum() > 0 else -self.one(x)


def test_it_is_found_by_the_way_of_the_data() -> None:
    model = Own()
    assert last_layer(model) is model.head["out"][0]
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("spec", ["seed-cnn", "mlp", "resnet20"])
def test_in_the_projects_own_networks(spec: str) -> None:
    layer = last_layer(create_model(spec, num_classes=7, image_size=24))
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 7


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("torchvision:shufflenet_v2_x0_5", "fc"),
        ("torchvision:squeezenet1_1", "classifier.1"),
        ("torchvision:googlenet", "fc"),
        ("timm:resnet10t", "fc"),
        ("timm:test_vit", "head"),
        ("timm:levit_conv_512_s8", "head.linear"),
    ],
)
def test_in_networks_of_others(spec: str, name: str) -> None:
    with torch.device("meta"):
        model = _made(spec)
    model.train()
    assert name_of(last_layer(model), model) == name


def _made(spec: str) -> nn.Module:
    maker, _, name = spec.partition(":")
    if maker == "timm":
        import timm

        return timm.create_model(name)
    import torchvision

    return torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))


@pytest.mark.slow
def test_in_every_network_of_torchvision() -> None:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    for name in names:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("regnet"):  # their making needs numbers
            if name not in ("regnet_x_400mf", "regnet_y_400mf"):
                continue
            model = torchvision.models.get_model(name)
        else:
            with torch.device("meta"):
                model = torchvision.models.get_model(name, **options)
        layer = last_layer(model)
        assert isinstance(layer, nn.Linear | nn.Conv2d), name
        assert layer.weight.shape[0] == 1000, name


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Functional(), "its own weight 'weight'|2 layers with weights"),
        (TwoHeads(), "comes from 2 layers with weights: one, two"),
        (Undecided(), "cannot be traced"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "0 layers with weights: none"),
    ],
)
def test_what_is_not_clear_is_refused(model: nn.Module, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refusal:
        last_layer(model)
    assert "by hand" in str(refusal.value)
    assert all(module.training for module in model.modules())


def test_several_named_classifiers_are_refused() -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model("deit_tiny_distilled_patch16_224")
    with pytest.raises(UserError, match="several classifiers"):
        last_layer(model)


def test_the_last_one_registered_would_be_the_wrong_one() -> None:
    model = Own()
    assert [module for module in model.modules() if isinstance(module, nn.Linear)][-1] is not last_layer(model)
