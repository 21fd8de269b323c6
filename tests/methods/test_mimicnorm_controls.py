"""The controls and the diagnostic of MimicNorm: no normalisation, Fixup's start, correlation with depth."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from postgrad._loading import load
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods.activation_correlation import activation_correlation
from postgrad.methods.fixup import apply_fixup
from postgrad.methods.mimicnorm import apply_mimicnorm
from postgrad.methods.normalisation import draw_he, remove_normalisation
from postgrad.models.checkpoints import save
from postgrad.models.registry import create_model


def images(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


def used(model: nn.Module) -> nn.Module:
    """The network with statistics, scales and shifts as after some training, in evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def resnet20() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model("resnet20", num_classes=10)


def straight(depth: int, width: int, norm: bool = False) -> nn.Sequential:
    """Convolutions 1×1 with ReLU on images of one pixel: a wide perceptron."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 2))


def start_as_he(model: nn.Module) -> None:
    draw_he([layer for layer in model.modules() if isinstance(layer, nn.Conv2d)], torch.Generator().manual_seed(3))


# Without normalisation.


@pytest.mark.parametrize(
    "model",
    [
        resnet20(),
        nn.Sequential(nn.Flatten(), nn.Linear(768, 9), nn.BatchNorm1d(9), nn.Linear(9, 2)),
        nn.Sequential(nn.Conv2d(3, 4, 3, groups=1, bias=True), nn.BatchNorm2d(4, affine=False), nn.Flatten()),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)),
    ],
    ids=["resnet20", "linear", "without scale", "one dimension"],
)
def test_in_evaluation_the_network_computes_what_it_did(model: nn.Module) -> None:
    model = used(copy.deepcopy(model).double())
    x = images(dtype=torch.float64)
    expected = model(x)
    unfolded = copy.deepcopy(model)
    count = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert remove_normalisation(model) == count
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    torch.testing.assert_close(model(x), expected)
    for name, module in list(unfolded.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parent, _, child = name.rpartition(".")
            setattr(unfolded.get_submodule(parent), child, nn.Identity())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(unfolded(x), expected)


def test_without_statistics_it_is_taken_for_a_fresh_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).double()
    expected = model[0](images(dtype=torch.float64)) / math.sqrt(1 + 1e-5)
    assert remove_normalisation(model) == 1
    torch.testing.assert_close(model(images(dtype=torch.float64)), expected)


def test_nothing_to_remove_is_said() -> None:
    with pytest.warns(UserWarning, match="no batch normalisation"):
        assert remove_normalisation(nn.Linear(2, 2)) == 0


def test_a_normalisation_without_a_layer_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"^0 \(BatchNorm2d\) does not follow"):
        remove_normalisation(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("change", [remove_normalisation, apply_fixup])
def test_the_optimizer_follows_and_a_saved_network_is_loaded(change, tmp_path: Path) -> None:
    model = resnet20().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change(model, optimizer=optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    model.fc.weight.data.normal_()
    save(model, tmp_path / "net", preprocess=Preprocessing(), class_names=tuple("abcdefghij"))
    assert torch.equal(load(tmp_path / "net")(images()), model(images()))


# Fixup.


def test_fixup_starts_branches_and_classifier_at_zero() -> None:
    model = resnet20()
    assert apply_fixup(model, seed=0) == 19
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(model.layer1(x), x)
    assert not model(images()).any()
    first, last = model.layer3[1].conv1.weight, model.layer3[1].conv2.weight
    assert not last.any()
    assert first.std().item() == pytest.approx(math.sqrt(2 / 576) * 9 ** (-1 / 2), rel=0.02)  # L = 9, m = 2
    assert model.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / 27), rel=0.1)
    model.fc.weight.data.normal_()
    model(images()).square().sum().backward()
    assert last.grad is not None
    assert last.grad.any()


def test_fixup_needs_branches() -> None:
    with pytest.raises(UserError, match="no residual branch"):
        apply_fixup(straight(2, 60, norm=True))


# Correlation with depth.


def relu_moment(rho: float) -> float:
    """E[relu(u) relu(v)] for unit normal u and v of correlation rho."""
    return (math.sqrt(1 - rho * rho) + rho * (math.pi - math.acos(rho))) / (2 * math.pi)


def pearson_after_relu(rho: float) -> float:
    """The paper's operator with weight mean: the correlation of relu(u) and relu(v)."""
    return (relu_moment(rho) - relu_moment(0)) / (relu_moment(1) - relu_moment(0))


def two_alike(rho: float, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    common, one, two = torch.randn(3, width, generator=generator).double()
    rows = [math.sqrt(rho) * common + math.sqrt(1 - rho) * each for each in (one, two)]
    return torch.stack(rows).reshape(2, width, 1, 1)


@pytest.mark.parametrize("centred", [True, False])
def test_depth_does_what_theorem_3_says(centred: bool) -> None:
    width, rho = 1500, 0.9
    model = straight(4, width).double()
    if centred:
        apply_mimicnorm(model, seed=0)
    else:
        start_as_he(model)
    found = activation_correlation(model, two_alike(rho, width))
    assert [name for name, _ in found] == ["0", "2", "4", "6", "9.layer" if centred else "9"]
    expected, cosine = [rho], rho
    for _ in range(4):
        expected.append(pearson_after_relu(cosine))
        cosine = expected[-1] if centred else 2 * relu_moment(cosine)
    assert [value for _, value in found] == pytest.approx(expected, abs=0.06)
    assert expected[-1] < 0.75 if centred else expected[-1] > 0.85


def test_centring_keeps_images_apart_as_normalisation_does() -> None:
    x = two_alike(0.9, 200).repeat(20, 1, 1, 1)[:8].float() + 0.3 * torch.randn(
        8, 200, 1, 1, generator=torch.Generator().manual_seed(1)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        normalised = straight(20, 200, norm=True)
    none, mimic = copy.deepcopy(normalised), copy.deepcopy(normalised)
    remove_normalisation(none)
    start_as_he(none)
    apply_mimicnorm(mimic, seed=0)
    last = {
        name: activation_correlation(model, x)[-1][1]
        for name, model in {"BN": normalised, "none": none, "mimic": mimic}.items()
    }
    assert last["none"] > 0.85
    assert last["BN"] < 0.5
    assert last["mimic"] < 0.6


def test_the_correlation_is_that_of_numpy_and_the_network_is_left_alone() -> None:
    numpy = pytest.importorskip("numpy")
    model = resnet20()
    state = copy.deepcopy(model.state_dict())
    x = images(3)
    found = activation_correlation(model, x)
    matrix = numpy.corrcoef(x.flatten(1).numpy())
    assert found[0] == ("conv1", pytest.approx((matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3, abs=1e-6))
    assert found[-1][0] == "fc"
    assert len(found) == 20
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_one_image_has_no_correlation() -> None:
    with pytest.raises(UserError, match="two images or more, got 1"):
        activation_correlation(resnet20(), images(1))
