"""Networks by name: what works, what is refused, and what survives a copy."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from postgrad import create_model
from postgrad.errors import UserError
from postgrad.models.names import BUILT_IN
from postgrad.models.registry import rebuild
from postgrad.models.source import source_of

SPECS = [*BUILT_IN, "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5", "timm:resnet10t"]


def images(spec: str) -> torch.Tensor:
    return torch.rand(2, 3, 24, 24) if spec == "seed-cnn" else torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize("spec", SPECS)
def test_a_copy_gives_the_same_logits(spec: str) -> None:
    torch.manual_seed(0)
    network = create_model(spec, num_classes=5).eval()
    x = images(spec)
    expected = network(x)
    rebuilt = rebuild(source_of(network)).eval()
    rebuilt.load_state_dict(network.state_dict())
    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    assert expected.shape == (2, 5)
    assert torch.equal(copy.deepcopy(network)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)
    assert torch.equal(rebuilt(x), expected)
    torch.testing.assert_close(channels_last(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("spec", SPECS)
def test_every_parameter_gets_a_gradient(spec: str) -> None:
    network = create_model(spec, num_classes=5)
    network(images(spec)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own, of torch.jit
@pytest.mark.parametrize("spec", list(BUILT_IN))
def test_compiles(spec: str) -> None:
    network = create_model(spec, num_classes=5).eval()
    x = images(spec)
    compiled = torch.compile(network, backend="aot_eager" if spec == "resnet20" else "inductor")
    torch.testing.assert_close(compiled(x), network(x), atol=1e-4, rtol=1e-4)


def test_fresh_weights_follow_torchs_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return create_model("seed-cnn", num_classes=10).c0.weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_options_go_to_the_network_and_into_its_source() -> None:
    network = create_model("mlp", num_classes=4, in_channels=1, image_size=(6, 5), hidden=(8, 9))
    source = source_of(copy.deepcopy(network))
    assert source.kwargs == {"hidden": [8, 9]}
    assert (source.image_size, source.in_channels, source.num_classes) == ((6, 5), 1, 4)
    assert [p.shape for p in rebuild(source).parameters()] == [p.shape for p in network.parameters()]


def test_an_option_that_no_manifest_can_hold_leaves_no_source() -> None:
    network = create_model("timm:resnet10t", num_classes=4, act_layer=torch.nn.SiLU)
    assert source_of(network) is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("seedcnn", "unknown model 'seedcnn': did you mean 'seed-cnn'"),
        ("resnet", "did you mean 'resnet20'"),
        ("", "unknown model ''. Known: file.py:factory, mlp"),
        ("torchvision:resnet81", "did you mean 'resnet18'"),
        ("torchvision:", "unknown torchvision model ''"),
        ("timm:resnet81", "did you mean 'resnet18'"),
        ("no_such_package.nets:build", "no installed package has a module 'no_such_package.nets'"),
        ("no_such_file.py:build", "no_such_file.py: no such file"),
        ("math:pi", "is an object of type float, not a function or class"),
        ("math:sqr", "unknown factory in math 'sqr': did you mean 'sqrt'"),
        ("math:sqrt", "math:sqrt failed: TypeError"),
        (":build", "write it as pkg.mod:factory or file.py:factory"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.").replace("(", r"\(")):
        create_model(spec, num_classes=10)


@pytest.mark.parametrize(
    "sizes", [{"num_classes": 1}, {"num_classes": 10, "in_channels": 0}, {"num_classes": 10, "image_size": 0}]
)
def test_sizes_that_make_no_network(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="needs at least 2 classes, 1 channel and 1 pixel"):
        create_model("mlp", **sizes)


@pytest.mark.parametrize("spec", ["seed-cnn", "torchvision:resnet18", "timm:resnet10t"])
def test_an_option_that_the_network_does_not_take(spec: str) -> None:
    with pytest.raises(UserError, match=r"does not take these options: .*depht"):
        create_model(spec, num_classes=10, depht=3)
