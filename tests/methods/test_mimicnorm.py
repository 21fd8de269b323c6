"""MimicNorm: against the literal procedure, closed forms and blocks by hand; what is refused stays as it was."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from postgrad._compat import prepare_torchvision
from postgrad._loading import load
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods.mimicnorm import Centred, apply_mimicnorm, bake_mimicnorm
from postgrad.methods.normalisation import Scale
from postgrad.models.checkpoints import save
from postgrad.models.export import export
from postgrad.models.registry import create_model

_library = prepare_torchvision()
GAIN = 1 / math.sqrt(1 - 1 / math.pi)


class Block(nn.Module):
    """A residual block; `norm_last` of False makes it a pre-activation block."""

    def __init__(self, channels: int = 8, norm_last: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels) if norm_last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """A stem, blocks and a linear layer."""

    def __init__(self, *blocks: nn.Module, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(Block(), Block())


def images(n: int = 6, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def centred_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if parametrize.is_parametrized(module)]


def scalars(model: nn.Module) -> list[float]:
    return [module.scale.item() for module in model.modules() if isinstance(module, Scale)]


# What is changed.


def test_what_becomes_of_a_residual_network() -> None:
    model = net()
    assert apply_mimicnorm(model, seed=0) == 5 + 4 + 1
    assert [type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] == [nn.BatchNorm1d]
    assert centred_layers(model) == ["blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]
    assert all(m.bias is not None and not m.bias.any() for m in model.modules() if isinstance(m, nn.Conv2d))
    for name in centred_layers(model):
        torch.testing.assert_close(model.get_submodule(name).weight.mean((1, 2, 3)), torch.zeros(8), atol=1e-7, rtol=0)
    assert model.stem.weight.mean((1, 2, 3)).abs().max() > 1e-2  # the same test refuses what is not centred


@pytest.mark.parametrize(
    ("layer", "centred"),
    [
        (nn.Conv2d(50, 4, 1), False),
        (nn.Conv2d(51, 4, 1), True),
        (nn.Conv2d(3, 4, 3), False),
        (nn.Conv2d(3, 4, 7), True),
        (nn.Conv2d(4, 4, 9, padding=4, groups=4), False),  # depthwise, though its fan-in is 81
        (nn.Conv2d(120, 4, 1, groups=2), True),
        (nn.Conv2d(120, 4, 1, groups=4), False),
        (nn.Conv1d(60, 4, 1), True),
    ],
)
def test_small_fan_in_and_depthwise_are_skipped(layer: nn.Conv2d, centred: bool) -> None:
    always = nn.Conv2d(layer.out_channels, 4, 5) if isinstance(layer, nn.Conv2d) else nn.Conv1d(4, 4, 51)
    model = nn.Sequential(layer, always, nn.Flatten(), nn.Linear(4, 2))
    apply_mimicnorm(model, seed=0)
    assert centred_layers(model) == (["0", "1"] if centred else ["1"])
    assert not parametrize.is_parametrized(model[3].layer)


@pytest.mark.parametrize(
    ("residual", "expected"), [("code", [1.44 / n for n in range(1, 10)]), ("paper", [n**-0.5 for n in range(1, 10)])]
)
def test_scalars_count_the_blocks_of_the_whole_network(residual: str, expected: list[float]) -> None:
    model = create_model("resnet20", num_classes=10)
    apply_mimicnorm(model, residual=residual)
    assert scalars(model) == pytest.approx(expected)
    assert all(module.scale.requires_grad for module in model.modules() if isinstance(module, Scale))


def test_a_block_computes_what_the_paper_draws() -> None:
    model = net().double()
    apply_mimicnorm(model, residual="paper", seed=0)
    x = torch.rand(2, 8, 5, 5, dtype=torch.float64)
    block = model.blocks[1]

    def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
        weight = layer.parametrizations.weight.original
        return F.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True), layer.bias, padding=1)

    branch = convolved(torch.relu(convolved(x, block.conv1)), block.conv2)
    torch.testing.assert_close(block(x), torch.relu(x + branch / math.sqrt(2)))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(block(x), torch.relu(x + branch))


def test_logits_are_normalised_without_parameters() -> None:
    model = net().double()
    apply_mimicnorm(model, seed=0)
    logits = model.train()(images(50, dtype=torch.float64))
    torch.testing.assert_close(logits.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(logits.var(0, unbiased=False), torch.ones(4, dtype=torch.float64), atol=5e-3, rtol=0)
    assert list(model.fc.norm.parameters()) == []
    assert model.eval()(images(1, dtype=torch.float64)).shape == (1, 4)
    assert model.eval()(images(0, dtype=torch.float64)).shape == (0, 4)


def test_one_image_is_no_batch_to_train_on() -> None:
    model = net()
    apply_mimicnorm(model)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model.train()(images(1))


def test_the_start_is_hes_times_the_published_factor() -> None:
    wide = nn.Conv2d(64, 400, 3)
    depthwise = nn.Conv2d(400, 400, 3, groups=400)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), wide, depthwise, nn.Flatten(), nn.Linear(400, 2))
    linear = model[4].weight.clone()
    apply_mimicnorm(model, seed=0)
    assert wide.weight.std().item() == pytest.approx(math.sqrt(2 / 576) * GAIN, rel=0.01)
    assert wide.weight.std().item() != pytest.approx(math.sqrt(2 / 576), rel=0.1)
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / 27), rel=0.05)
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / 36), rel=0.05)  # as if over four channels
    assert torch.equal(model[4].layer.weight, linear)


@pytest.mark.parametrize("residual", ["code", "paper"])
def test_a_branch_has_the_factor_once(residual: str) -> None:
    """In its convolutions as in the paper, or in the number at its end as in the authors' program."""
    torch.manual_seed(0)
    model = create_model("resnet20", num_classes=10)
    apply_mimicnorm(model, residual=residual, seed=0)
    block = model.layer3[2]  # type: ignore[index, union-attr]
    number = block.bn2.scale.item() * 9 if residual == "code" else block.bn2.scale.item() * 3
    stds = [getattr(block, name).weight.std().item() / math.sqrt(2 / 576) for name in ("conv1", "conv2")]
    if residual == "code":
        assert number == pytest.approx(1.2**2)
        assert stds == pytest.approx([1, 1], rel=0.02)
    else:
        assert number == pytest.approx(1)
        assert stds == pytest.approx([GAIN, GAIN], rel=0.02)


def test_the_factor_keeps_the_size_of_activations() -> None:
    """Theorem 3: through centred layers with ReLU the mean square stays; without the factor it is lost."""
    layers = [each for _ in range(10) for each in (nn.Conv2d(300, 300, 1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(300, 2))
    apply_mimicnorm(model, seed=1)
    x = torch.randn(64, 300, 1, 1, generator=torch.Generator().manual_seed(0)).relu() * math.sqrt(2)
    out = model[:20](x).square().mean().item()
    assert 0.8 < out < 1.2
    assert out * GAIN**-20 < 0.1


def test_a_seed_means_the_same_draw_and_leaves_the_global_generator_alone() -> None:
    one, two, other = net(0), net(5), net(0)
    before = torch.random.get_rng_state()
    apply_mimicnorm(one, seed=3)
    apply_mimicnorm(two, seed=3)
    apply_mimicnorm(other, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.blocks[0].conv1.weight, two.blocks[0].conv1.weight)
    assert not torch.equal(one.blocks[0].conv1.weight, other.blocks[0].conv1.weight)


# Centring.


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=5),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 99),
)
def test_centring_is_a_projection(shape: list[int], dtype: torch.dtype, seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    once = Centred()(weight)
    assert once.shape == weight.shape
    assert once.dtype == dtype
    tolerance = 10 * torch.finfo(dtype).eps
    assert once.flatten(1).double().mean(1).abs().max() <= tolerance * weight.abs().max()
    torch.testing.assert_close(Centred()(once), once, atol=tolerance * float(weight.abs().max()), rtol=0)
    torch.testing.assert_close(Centred()(weight.transpose(0, -1).contiguous().transpose(0, -1)), once)


def test_centring_has_the_right_gradient_and_keeps_the_memory_format() -> None:
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(Centred(), (weight.clone().requires_grad_(),))
    assert Centred()(weight).is_contiguous(memory_format=torch.channels_last)
    assert Centred()(torch.empty(0, 2, 3, 3)).shape == (0, 2, 3, 3)


def literally_centred(model: nn.Module) -> Callable[[], None]:
    """The published procedure: after a step, take from each filter its mean."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.weight[0].numel() > 50]

    def centre() -> None:
        with torch.no_grad():
            for layer in layers:
                layer.weight -= layer.weight.mean((1, 2, 3), keepdim=True)

    return centre


def train(model: nn.Module, optimizer: torch.optim.Optimizer, after: Callable[[], None] = lambda: None) -> None:
    labels = torch.arange(6) % 4
    model.train()
    for step in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(images(seed=step, dtype=torch.float64)), labels).backward()
        optimizer.step()
        after()


def apart(make: Callable[[nn.Module], torch.optim.Optimizer], centring: bool = True) -> float:
    """How far 20 steps under the parametrization and 20 of the literal procedure end from each other."""
    ours = net().double()
    apply_mimicnorm(ours, seed=0)
    literal = copy.deepcopy(ours)
    bake_mimicnorm(literal)
    train(ours, make(ours))
    bake_mimicnorm(ours)
    train(literal, make(literal), literally_centred(literal) if centring else lambda: None)
    assert ours.state_dict().keys() == literal.state_dict().keys()
    pairs = zip(ours.parameters(), literal.parameters(), strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_under_sgd_it_is_the_literal_procedure(nesterov: bool) -> None:
    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=nesterov)

    assert apart(sgd) < 1e-10
    assert apart(sgd, centring=False) > 1e-3


def test_under_adam_it_is_not() -> None:
    assert apart(lambda model: torch.optim.Adam(model.parameters(), lr=0.01)) > 1e-3


# Optimizers, copies and files.


def test_an_optimizer_follows() -> None:
    model = net()
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in model.parameters() if not any(p is norm for norm in norms)]
    optimizer = torch.optim.SGD([{"params": others}, {"params": norms, "weight_decay": 0.0}], lr=0.1, momentum=0.9)
    model(images()).square().sum().backward()
    optimizer.step()
    apply_mimicnorm(model, optimizer=optimizer)
    plain, spared = ([id(p) for p in group["params"]] for group in optimizer.param_groups)
    assert sorted(plain + spared) == sorted(id(p) for p in model.parameters())
    assert id(model.blocks[0].conv1.parametrizations.weight.original) in plain
    assert {id(model.stem.bias), id(model.blocks[0].bn2.scale), id(model.blocks[1].conv2.bias)} <= set(spared)
    assert set(optimizer.state) == set(model.fc.layer.parameters())  # of what was drawn anew nothing is remembered
    before = model.blocks[0].bn2.scale.item()
    optimizer.zero_grad()
    F.cross_entropy(model(images()), torch.arange(6) % 4).backward()
    optimizer.step()
    assert model.blocks[0].bn2.scale.item() != before


def test_state_dict_deepcopy_and_pickle() -> None:
    model, other = net(0).eval(), net(1).eval()
    apply_mimicnorm(model, seed=0)
    apply_mimicnorm(other, seed=1)
    expected = model(images())
    assert not torch.allclose(other(images()), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images()), expected)
    assert torch.equal(copy.deepcopy(model)(images()), expected)
    assert pickle.loads(pickle.dumps(Scale(2.0)))(torch.ones(1)) == 2
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(model)  # torch's own limit of parametrized layers
    bake_mimicnorm(model)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images()), expected)


def test_baking_a_copy_leaves_the_original() -> None:
    model = net().eval()
    apply_mimicnorm(model)
    expected = model(images())
    baked = copy.deepcopy(model)
    assert bake_mimicnorm(baked) == 4
    assert torch.equal(baked(images()), expected)
    assert torch.equal(model(images()), expected)
    assert centred_layers(baked) == []
    assert len(centred_layers(model)) == 4
    assert "blocks.0.conv1.weight" in baked.state_dict()
    with pytest.warns(UserWarning, match="no centred weight"):
        assert bake_mimicnorm(baked) == 0


@pytest.mark.parametrize("residual", ["code", "paper"])
@pytest.mark.parametrize("bake", [False, True])
def test_a_saved_network_is_loaded(tmp_path: Path, residual: str, bake: bool) -> None:
    model = create_model("resnet20", num_classes=10).eval()
    apply_mimicnorm(model, residual=residual)
    if bake:
        bake_mimicnorm(model)
    save(model, tmp_path / "net", preprocess=Preprocessing(), class_names=tuple("abcdefghij"))
    again = load(tmp_path / "net")
    assert torch.equal(again(images()), model(images()))
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("bake", [False, True])
def test_it_is_exported(tmp_path: Path, bake: bool) -> None:
    model = net().eval()
    apply_mimicnorm(model)
    if bake:
        bake_mimicnorm(model)
    assert export(model, tmp_path / "net.pt2", format="pt2", example=images(2)) < 1e-5
    means = [node for node in torch.export.export(model, (images(2),)).graph.nodes if "mean.dim" in str(node.target)]
    assert len(means) == (1 if bake else 5)  # the network's own pooling, and one for each centred weight


def test_half_precision_stays_half_through_a_scale() -> None:
    model = net()
    apply_mimicnorm(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.blocks[0].bn2(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
        half = model.eval()(images())
    torch.testing.assert_close(half.float(), model(images()), atol=0.05, rtol=0.05)


def test_memory_formats_agree() -> None:
    model = net().eval()
    apply_mimicnorm(model)
    expected = model(images())
    torch.testing.assert_close(model(images().flip(3).flip(3)), expected)
    strided = images(6).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(strided), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own, of torch.jit
def test_it_compiles() -> None:
    model = net()
    apply_mimicnorm(model)
    torch.testing.assert_close(torch.compile(model)(images()), model(images()), atol=1e-4, rtol=1e-4)


# What is refused, and stays.


class ByValue(nn.Module):
    """A forward pass that hangs on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean() > 0 else self.inner(-x)


class Pairs(nn.Module):
    """A sum of two equal sides."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 5), nn.Conv2d(3, 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


class Concatenated(nn.Module):
    """Normalisation of what is no layer's output, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 5, padding=2), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([x, self.conv(x)], 1))


class Activated(nn.BatchNorm2d):
    """A normalisation that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def tied() -> nn.Module:
    model = net()
    model.blocks[1].conv1.weight = model.blocks[0].conv1.weight
    return model


def with_other_parametrization() -> nn.Module:
    model = net()
    nn.utils.parametrizations.weight_norm(model.blocks[0].conv1)
    return model


def unused() -> nn.Module:
    model = net()
    model.spare = nn.BatchNorm2d(8)
    return model


def called_twice() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    layers = [nn.Conv2d(3, 8, 5), norm, nn.ReLU(), nn.Conv2d(8, 8, 3), norm]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))


HEAD = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
REFUSED = {
    "by value": (ByValue, r"torch\.fx cannot follow"),
    "pre-activation": (lambda: Net(Block(norm_last=False)), "does not end in a batch normalisation"),
    "two equal sides": (lambda: nn.Sequential(Pairs(), *HEAD), "neither is the shortcut"),
    "DenseNet": (lambda: nn.Sequential(Concatenated(), *HEAD), r"0\.norm .* does not follow"),
    "norm and activation": (lambda: nn.Sequential(nn.Conv2d(3, 8, 5), Activated(8), *HEAD), "more than normalise"),
    "tied weights": (tied, "shared with another"),
    "weight norm": (with_other_parametrization, "by a parametrization"),
    "unused": (unused, "spare .* never called"),
    "called twice": (called_twice, "more than once"),
    "no classifier": (lambda: nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU()), "come neither"),
    "pooled by hand": (lambda: nn.Sequential(nn.Conv2d(3, 8, 5), nn.Flatten(), nn.Softmax(1)), "come neither"),
    "ends in a norm": (lambda: nn.Sequential(nn.Conv2d(3, 8, 5), *HEAD, nn.BatchNorm1d(4)), "come neither"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_stays_as_it_was(case: str) -> None:
    make, reason = REFUSED[case]
    model = make()
    if case == "called twice":
        model(images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modules, attributes = list(model.modules()), set(vars(model))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = list(optimizer.param_groups[0]["params"])
    generator = torch.random.get_rng_state()
    with pytest.raises(UserError, match=reason) as caught:
        apply_mimicnorm(model, optimizer=optimizer)
    assert "\n" not in str(caught.value)
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))
    assert set(vars(model)) == attributes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(one is other for one, other in zip(parameters, optimizer.param_groups[0]["params"], strict=True))
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_an_unknown_residual_scalar_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'paper'"):
        apply_mimicnorm(net(), residual="papr")  # type: ignore[arg-type]


def test_nothing_to_centre_is_said() -> None:
    mlp = create_model("mlp", num_classes=10, image_size=8)
    state = copy.deepcopy(mlp.state_dict())
    with pytest.warns(UserWarning, match="no convolution of more than 50 weights"):
        assert apply_mimicnorm(mlp) == 0
    assert all(torch.equal(value, state[key]) for key, value in mlp.state_dict().items())
    twice = net()
    apply_mimicnorm(twice)
    with pytest.warns(UserWarning, match="not yet centred"):
        assert apply_mimicnorm(twice) == 0


# Networks of others.


def check_family(spec: str, changed: int, scalars_start: list[float], size: int = 32) -> None:
    model = create_model(spec, num_classes=7)
    assert apply_mimicnorm(model, seed=0) == changed
    assert scalars(model)[: len(scalars_start)] == pytest.approx(scalars_start)
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model.train()(x), torch.arange(4))
    loss.backward()
    assert loss.isfinite()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("spec", "changed", "start", "size"),
    [
        ("seed-cnn", 3, [], 24),
        ("torchvision:resnet18", 41, [1.44, 0.72, 0.48], 32),
        ("torchvision:shufflenet_v2_x0_5", 67, [], 32),
        ("torchvision:squeezenet1_1", 20, [], 32),
        ("torchvision:mobilenet_v2", 80, [1.44, 0.72, 0.48], 32),
    ],
)
def test_families(spec: str, changed: int, start: list[float], size: int) -> None:
    check_family(spec, changed, start, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "changed", "start", "size"),
    [
        ("torchvision:vgg11", 8, [], 32),
        ("torchvision:vgg11_bn", 16, [], 32),
        ("torchvision:resnet50", 107, [1.728, 0.864], 32),
        ("torchvision:resnext50_32x4d", 104, [1.728, 0.864], 32),
        ("torchvision:mnasnet0_5", 70, [1.44, 0.72], 32),
        ("torchvision:regnet_y_400mf", 127, [1.728, 0.864], 32),
        ("torchvision:googlenet", 115, [], 64),
        ("timm:resnet18", 41, [1.44, 0.72], 32),
    ],
)
def test_more_families(spec: str, changed: int, start: list[float], size: int) -> None:
    check_family(spec, changed, start, size)
