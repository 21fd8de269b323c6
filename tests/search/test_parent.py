"""What a mutation sees of a network."""

from __future__ import annotations

import pytest
import torch
from bred import BASES, IMAGES, parent_of, three
from networks_to_grow import Residual, Squeeze, mlp
from small_nets import Plain
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.growth.depth import deepen
from postgrad.models.registry import create_model
from postgrad.search.individual import Architecture
from postgrad.search.parent import Parent, architecture_of, halvings, most_poolings


@pytest.mark.parametrize(
    ("name", "image", "side", "expected"),
    [
        ("seed-cnn", 32, 24, Architecture(depth=3, pools=2, side=24)),  # functional pooling
        ("seed-cnn", 8, 8, Architecture(depth=3, pools=2, side=8)),  # 8 → 6 → 3 → 2
        ("resnet20", 32, 32, Architecture(depth=20, pools=2, side=32)),  # strides, and pooling of all of the image
        ("mlp", 32, 32, Architecture(depth=3, pools=0, side=32)),
    ],
)
def test_the_architecture_of_known_networks(name: str, image: int, side: int, expected: Architecture) -> None:
    model = create_model(name, num_classes=10, image_size=image).eval()
    assert architecture_of(model, torch.zeros(2, 3, side, side)) == expected


class Shrinking(nn.Module):
    """Every way to halve an image: max, average, a stride, all of the image at once, and none by a padded layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.stride = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.max_pool2d(self.conv(x), 2), 2)
        x = self.stride(x)
        return self.head(F.avg_pool2d(x, tuple(x.shape[2:])).flatten(1))


def test_halvings_are_counted_whatever_halves_but_not_global_pooling() -> None:
    model = Shrinking().eval()
    images = torch.zeros(1, 3, 32, 32)
    assert halvings(model, images) == 3
    assert halvings(model, images, ["conv"]) == 4
    assert halvings(model, images) == 3  # the hook is gone
    assert halvings(model, torch.zeros(1, 3, 32, 64)) == 3


def test_an_image_of_an_odd_side_is_halved_as_often_as_it_is() -> None:
    assert halvings(nn.MaxPool2d(2), torch.zeros(1, 3, 9, 9)) == 1
    assert halvings(nn.Flatten(), torch.zeros(1, 3, 9, 9)) == 0
    assert architecture_of(Squeeze().eval(), IMAGES).pools == 0  # it squeezes all of the image, and works on that


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_a_batch_of_any_size_and_memory_order_is_looked_at(form: torch.memory_format) -> None:
    model = Plain().eval().to(memory_format=form)
    for count in (1, 3):
        images = torch.randn(count, 3, 16, 20)[:, :, :, 2:18].contiguous(memory_format=form)
        assert architecture_of(model, images) == Architecture(depth=4, pools=1, side=16)
        with torch.autocast("cpu", torch.bfloat16):
            assert halvings(model, images[:, :, :, ::2]) == 1  # of 16 × 8 pixels, 8 × 4 are left


@pytest.mark.parametrize(("side", "most"), [(32, 3), (28, 2), (24, 2), (16, 2), (8, 1), (7, 0), (4, 0), (2, 0)])
def test_poolings_leave_four_pixels(side: int, most: int) -> None:
    assert most_poolings(Architecture(depth=3, pools=0, side=side)) == most


def test_sites_stand_behind_activations_and_before_the_last_layer() -> None:
    parent = parent_of(three())
    assert [site.name for site in parent.sites] == ["1", "2", "4"]
    assert [(site.features, site.side) for site in parent.sites] == [(6, 16), (6, 8), (8, 8)]
    blocks = parent_of(Residual())
    assert "head" not in {site.name for site in blocks.outputs}


def test_a_module_that_runs_twice_is_no_site() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.one(x))
            return self.head(self.act(self.two(x)).mean((2, 3)))

    assert [site.name for site in parent_of(Twice()).sites] == ["one", "two"]


def test_sites_of_a_grown_network_stand_behind_what_was_put_in() -> None:
    model = three()
    parent_of(model)
    deepen(model, "1", kind="identity", example=IMAGES)
    parent = parent_of(model)
    assert parent.architecture.depth == 4
    assert [site.name for site in parent.sites] == ["0", "1", "2", "4"]


@pytest.mark.parametrize("name", BASES)
def test_a_network_is_looked_at_without_a_trace(name: str) -> None:
    parent = parent_of(BASES[name]())
    before = {name: tensor.clone() for name, tensor in parent.model.state_dict().items()}
    hooks = [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in parent.model.modules()]
    assert parent.sites
    assert parent.widths
    assert parent.graph is parent.graph  # analysed once
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.model.state_dict().items())
    assert hooks == [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in parent.model.modules()]


def test_a_network_in_training_keeps_its_mode_and_statistics() -> None:
    model = Plain()
    parent = parent_of(model)
    model.train()
    model.n1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chance = torch.get_rng_state()  # dropout would draw from it
    assert architecture_of(model, IMAGES) == parent.architecture
    assert parent.sites
    assert model.training
    assert not model.n1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    model(IMAGES)  # negative control
    assert not torch.equal(model.n0.running_mean, before["n0.running_mean"])


def test_widths_are_those_that_can_grow_each_once() -> None:
    widths = {width.layer: (width.channels, width.step, width.depth) for width in parent_of(Residual()).widths}
    assert widths == {"stem": (6, 1, 0), "a1": (4, 1, 1), "b1": (4, 1, 3)}  # a2 and b2 are of the stem's stream


def test_a_network_without_images_inside_has_sites_too() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), *list(mlp()))
    parent = parent_of(model, torch.randn(2, 3, 2, 2))
    assert isinstance(parent, Parent)
    assert [site.shape[1:] for site in parent.sites] == [(6,), (5,), (4,)]
    assert not any(site.images for site in parent.sites)
