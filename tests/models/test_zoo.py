"""torchvision's and timm's networks: their own preprocessing, and no weights but the user's."""

from __future__ import annotations

import sys

import pytest
import torch

from postgrad import create_model
from postgrad._compat import prepare_torchvision
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FAMILIES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
]


def test_torchvision_brings_its_weights_preprocessing() -> None:
    network = create_model("torchvision:resnet18", num_classes=10)
    assert network.preprocess == Preprocessing(size=256, crop=224, **IMAGENET)
    assert network.preprocess_origin == "torchvision's default weights"


def test_the_preprocessing_is_torchvisions_own_to_rounding() -> None:
    prepare_torchvision()
    from torchvision.models import ResNet18_Weights

    images = torch.randint(0, 256, (2, 3, 300, 260), dtype=torch.uint8)
    ours = create_model("torchvision:resnet18", num_classes=10).preprocess(images)
    theirs = ResNet18_Weights.DEFAULT.transforms()(images)
    assert float((ours - theirs).abs().max()) < 2 * 0.5 / 255 / 0.224  # they round to uint8 after resizing


def test_timm_brings_its_configuration() -> None:
    import timm

    ours = create_model("timm:resnet10t", num_classes=10).preprocess
    config = timm.data.resolve_model_data_config(timm.create_model("resnet10t"))
    resize, crop, _, normalise = timm.data.create_transform(**config, is_training=False).transforms
    assert (ours.size, ours.crop) == (resize.size, crop.size[0])
    torch.testing.assert_close((torch.tensor(ours.mean), torch.tensor(ours.std)), (normalise.mean, normalise.std))


def test_timm_takes_any_number_of_channels() -> None:
    network = create_model("timm:resnet10t", num_classes=4, in_channels=1).eval()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 4)
    assert len(network.preprocess.mean) == 1


def test_torchvision_refuses_grey_images() -> None:
    with pytest.raises(UserError, match="takes images of 3 channels, these have 1"):
        create_model("torchvision:resnet18", num_classes=10, in_channels=1)


@pytest.mark.parametrize(
    ("spec", "option"),
    [("torchvision:resnet18", {"weights": "DEFAULT"}), ("timm:resnet10t", {"checkpoint_path": "evil.pth"})],
)
def test_weights_are_never_loaded_by_an_option(spec: str, option: dict[str, str]) -> None:
    with pytest.raises(UserError, match="load a file with --weights"):
        create_model(spec, num_classes=10, **option)


def test_without_timm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'postgrad\[timm\]'"):
        create_model("timm:resnet18", num_classes=10)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_gives_logits_in_both_modes(name: str) -> None:
    network = create_model(f"torchvision:{name}", num_classes=5)
    x = network.preprocess(torch.zeros(2, 3, 400, 400, dtype=torch.uint8))
    with torch.no_grad():
        assert network(x).shape == (2, 5)
        assert network.eval()(x).shape == (2, 5)
