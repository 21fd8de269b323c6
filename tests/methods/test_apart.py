"""timm's BatchNormAct2d taken apart: the same network, and what each surgery makes of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import postgrad
from postgrad._compat import prepare_torchvision
from postgrad.changes import changes_of, note_change
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods._apart import is_timms, taken_apart
from postgrad.methods.fixup import apply_fixup
from postgrad.methods.frn import FilterResponseNorm, FilterResponseNormTLU, apply_frn
from postgrad.methods.mimicnorm import apply_mimicnorm
from postgrad.methods.norm import apply_norm
from postgrad.methods.normalisation import remove_normalisation
from postgrad.models.registry import create_model

prepare_torchvision()

from timm.layers import BatchNormAct2d, Conv2dSame, DropBlock2d, convert_sync_batchnorm  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "ReLU": {},
    "SiLU": {"act_layer": "silu"},
    "no activation": {"apply_act": False},
    "dropped": {"drop_layer": partial(DropBlock2d, drop_prob=0.5, block_size=3)},
    "dropped, no activation": {"drop_layer": nn.Dropout, "apply_act": False},
    "no scale": {"affine": False},
    "no statistics": {"track_running_stats": False},
    "all batches alike": {"momentum": None, "eps": 0.1},
}


def drawn(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """With a state as after some training."""
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


def take_apart(model: nn.Module) -> None:
    with taken_apart(model):
        note_change(model, "taken apart")


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def step(model: nn.Module, x: Tensor) -> Tensor:
    """An output in training, after which the model has taken a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    out: Tensor = model.train()(x)
    out.float().square().sum().backward()
    optimizer.step()
    return out


def check_same(whole: nn.Module, parts: nn.Module, x: Tensor) -> None:
    """Both compute the same bits, in evaluation and in training, and after a step."""
    with torch.no_grad():
        assert torch.equal(whole.eval()(x), parts.eval()(x))
    assert torch.equal(step(whole, x), step(parts, x))
    before, after = whole.state_dict(), parts.state_dict()
    assert len(before) == len(after)
    assert all(map(torch.equal, before.values(), after.values()))


# Taking apart changes nothing.


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(3, 6), st.integers(3, 6)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "channels_last", "strided"]),
    seed=st.integers(0, 99),
)
def test_the_parts_compute_what_the_whole_did(
    kind: str, shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str, seed: int
) -> None:
    torch.manual_seed(seed)
    channels = shape[1]
    norm = drawn(BatchNormAct2d(channels, **KINDS[kind]))
    whole = nn.Sequential(nn.Conv2d(channels, channels, 1), norm).to(dtype)
    parts = copy.deepcopy(whole)
    take_apart(parts)
    assert not any(is_timms(module, "BatchNormAct2d") for module in parts.modules())
    x = torch.randn(shape, dtype=dtype)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x.transpose(2, 3)
    check_same(whole, parts, x)


@pytest.mark.parametrize("change", ["eps", "activation", "mode", "momentum"])
def test_parts_that_differ_would_be_noticed(change: str) -> None:
    whole = nn.Sequential(nn.Conv2d(3, 4, 3), drawn(BatchNormAct2d(4)))
    parts = copy.deepcopy(whole)
    take_apart(parts)
    norm = parts[1].norm
    if change == "eps":
        norm.eps = 1e-2
    elif change == "activation":
        parts[1].act = nn.ReLU6()
        whole[1].bias.data += 6
        norm.bias.data += 6
    elif change == "mode":
        norm.track_running_stats = False
    else:
        norm.momentum = 0.2
    with pytest.raises(AssertionError):
        check_same(whole, parts, torch.randn(2, 3, 5, 5))


def test_under_autocast_it_is_the_same() -> None:
    whole = nn.Sequential(nn.Conv2d(3, 4, 3), drawn(BatchNormAct2d(4)))
    parts = copy.deepcopy(whole)
    take_apart(parts)
    with torch.autocast("cpu", torch.bfloat16):
        check_same(whole, parts, torch.randn(2, 3, 5, 5))


def test_it_is_made_of_the_same_objects_and_modes() -> None:
    norm = BatchNormAct2d(4, drop_layer=nn.Dropout).eval()
    norm.half()
    norm.running_mean = norm.running_mean.float()  # as mixed precision by hand leaves them
    norm.weight.requires_grad_(False)
    norm.act.train()
    model = nn.Sequential(norm)
    take_apart(model)
    parts = model[0]
    assert [name for name, _ in parts.named_children()] == ["norm", "drop", "act"]
    assert type(parts.norm) is nn.BatchNorm2d
    assert all(getattr(parts.norm, name) is getattr(norm, name) for name in (*norm._parameters, *norm._buffers))
    assert parts.drop is norm.drop
    assert parts.act is norm.act
    assert [each.training for each in (parts, *parts)] == [False, False, False, True]
    assert parts.norm.running_mean.dtype == torch.float32


def test_what_is_nothing_is_left_out() -> None:
    model = nn.Sequential(BatchNormAct2d(4), BatchNormAct2d(4, apply_act=False))
    take_apart(model)
    assert [name for name, _ in model[0].named_children()] == ["norm", "act"]
    assert type(model[1]) is nn.BatchNorm2d


def test_one_layer_in_two_places_stays_one() -> None:
    norm = drawn(BatchNormAct2d(4))
    whole = nn.Sequential(norm, nn.Sequential(nn.Conv2d(4, 4, 1), norm))
    parts = copy.deepcopy(whole)
    take_apart(parts)
    assert parts[0] is parts[1][1]
    check_same(whole, parts, torch.randn(2, 4, 3, 3))


def test_nothing_is_drawn_and_the_parts_are_copied_and_pickled() -> None:
    model = nn.Sequential(BatchNormAct2d(4)).eval()
    generator = torch.random.get_rng_state()
    take_apart(model)
    assert torch.equal(torch.random.get_rng_state(), generator)
    x = torch.randn(2, 4, 3, 3)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), model(x))


# What stays whole.


class Sub(BatchNormAct2d):
    """What may do more."""


def with_own_forward() -> nn.Module:
    norm = BatchNormAct2d(4)
    norm.forward = lambda x: x  # type: ignore[method-assign]
    return norm


def with_one_child_more() -> nn.Module:
    norm = BatchNormAct2d(4)
    norm.more = nn.ReLU()
    return norm


def parametrized() -> nn.Module:
    norm = BatchNormAct2d(4)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    return norm


def of_that_name() -> nn.Module:
    return type("BatchNormAct2d", (nn.BatchNorm2d,), {})(4)


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "a subclass": lambda: Sub(4),
    "another forward": with_own_forward,
    "another child": with_one_child_more,
    "parametrized": parametrized,
    "not timm's": of_that_name,
    "synchronised": lambda: convert_sync_batchnorm(BatchNormAct2d(4)),
    "torch's": lambda: nn.BatchNorm2d(4),
}


@pytest.mark.parametrize("case", WHOLE)
def test_anything_else_stays_whole(case: str) -> None:
    model = nn.Sequential(WHOLE[case]())
    norm = model[0]
    take_apart(model)
    assert model[0] is norm


@pytest.mark.parametrize("case", [case for case in WHOLE if case != "torch's"])
def test_what_stays_whole_is_refused_with_its_name(case: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 5), BatchNormAct2d(4), nn.Conv2d(4, 4, 1), WHOLE[case]())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modules, trained = list(model.modules()), list(optimizer.param_groups[0]["params"])
    surgeries: list[Callable[..., int]] = [apply_frn, remove_normalisation, apply_mimicnorm]
    if isinstance(model[3], nn.BatchNorm2d):
        surgeries.append(partial(apply_norm, kind="group"))
    for surgery in surgeries:
        with pytest.raises(UserError, match=rf"^3 .*{type(model[3]).__name__}"):
            surgery(model, optimizer=optimizer)
        assert all(one is other for one, other in zip(modules, model.modules(), strict=True))
        assert all(one is other for one, other in zip(trained, optimizer.param_groups[0]["params"], strict=True))
    assert changes_of(model) == ()


def test_a_layer_that_is_the_network_is_not_replaced() -> None:
    with pytest.raises(UserError):
        apply_frn(BatchNormAct2d(4))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, None])
def test_without_a_change_the_network_gets_back_what_it_had(error: type[BaseException] | None) -> None:
    model = nn.Sequential(BatchNormAct2d(4), nn.Sequential(BatchNormAct2d(4)))
    modules = list(model.modules())

    def surgery() -> None:
        with taken_apart(model):
            assert len(list(model.modules())) == 8
            if error is not None:
                raise error

    if error is None:
        surgery()
    else:
        with pytest.raises(error):
            surgery()
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))


def test_where_nothing_is_to_be_done_the_network_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))  # of filters too small to be centred
    modules = list(model.modules())
    with pytest.warns(UserWarning, match="MimicNorm changed nothing"):
        assert apply_mimicnorm(model) == 0
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))


# Each surgery makes of timm's layer what it makes of torch's with an activation behind it.


class Block(nn.Module):
    def __init__(self, norm_and_act: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm_and_act(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.norm1(self.conv1(x))))


def net(norm_and_act: Callable[[int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 5), norm_and_act(8), Block(norm_and_act), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    torch.manual_seed(1)
    for module in norms_of(model):
        drawn(module)  # type: ignore[arg-type]
    return model


def torchs(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


SURGERIES: dict[str, tuple[Callable[..., int], int]] = {
    "frn": (apply_frn, 3),
    "mimicnorm": (partial(apply_mimicnorm, seed=0), 3 + 3 + 1),
    "fixup": (partial(apply_fixup, seed=0), 3),
    "remove_normalisation": (remove_normalisation, 3),
    "group": (partial(apply_norm, kind="group"), 3),
    "renorm": (partial(apply_norm, kind="renorm"), 3),
    "none": (partial(apply_norm, kind="none"), 3),
}


@pytest.mark.parametrize("surgery", SURGERIES)
def test_surgeries_do_what_they_do_with_torchs(surgery: str) -> None:
    apply, changed = SURGERIES[surgery]
    ours, reference = net(BatchNormAct2d), net(torchs)
    x = torch.randn(4, 3, 9, 9)
    for model in (ours, reference):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step(model, x)
        assert apply(model, optimizer=optimizer) == changed
        trained = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
        assert trained == {id(parameter) for parameter in model.parameters()}
        step(model, x)
        model.eval()
    assert torch.equal(ours(x), reference(x))
    program = torch.export.export(ours, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), ours(x))
    values = [sorted(each.double().sum().item() for each in model.state_dict().values()) for model in (ours, reference)]
    assert values[0] == values[1]
    other = net(lambda channels: BatchNormAct2d(channels, act_layer="silu"))
    step(other, x)
    apply(other)
    step(other, x)
    if surgery != "fixup":  # whose last layer is zero
        assert not torch.allclose(other.eval()(x), ours(x), atol=1e-4)


# timm's networks.


def check_rebuilt(model: nn.Module, x: Tensor, folder: Path) -> None:
    postgrad.save(model, folder, preprocess=Preprocessing(), class_names=[str(i) for i in range(10)])
    with torch.no_grad():
        out = model.eval()(x)
        assert torch.equal(postgrad.load(folder)(x), out)
        assert torch.equal(copy.deepcopy(model)(x), out)


TIMMS = {  # batch normalisations; of which with ReLU, whose place a TLU takes
    "regnetx_002": (44, 27),
    "efficientnet_lite0": (49, 0),
    "cspresnet50": (55, 0),
}


@pytest.mark.parametrize(
    "name", [name if name == "regnetx_002" else pytest.param(name, marks=pytest.mark.slow) for name in TIMMS]
)
def test_no_batch_norm_is_left_in_timms(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(f"timm:{name}", num_classes=10)
    norms, with_relu = TIMMS[name]
    assert sum(type(getattr(module, "act", None)) is nn.ReLU for module in norms_of(model)) == with_relu
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    assert apply_frn(model, optimizer=optimizer) == norms
    assert norms_of(model) == []
    assert sum(isinstance(module, FilterResponseNorm) for module in model.modules()) == norms
    assert sum(isinstance(module, FilterResponseNormTLU) for module in model.modules()) == with_relu
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    x = torch.randn(2, 3, 32, 32)
    model.train()(x).square().sum().backward()
    optimizer.step()
    check_rebuilt(model, x, tmp_path / "net")


@pytest.mark.parametrize("name", ["regnetx_002", pytest.param("tf_efficientnet_lite0", marks=pytest.mark.slow)])
def test_folding_keeps_what_timms_compute(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(f"timm:{name}", num_classes=10).double().eval()
    for norm in norms_of(model):
        drawn(norm)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected, count = model(x), len(norms_of(model))
    without = copy.deepcopy(model)
    assert remove_normalisation(model) == count
    torch.testing.assert_close(model(x), expected)
    check_rebuilt(model.float(), x.float(), tmp_path / "net")
    norms_of(without)[-1].bias.data += 0.1  # type: ignore[operator]
    remove_normalisation(without)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(without(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("surgery", [apply_frn, remove_normalisation, apply_mimicnorm])
def test_timms_are_exported(surgery: Callable[..., int]) -> None:
    torch.manual_seed(0)
    model = create_model("timm:regnetx_002", num_classes=10).double().eval()
    surgery(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_parts_compile() -> None:
    model = net(BatchNormAct2d).eval()
    take_apart(model)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(torch.compile(model)(x), model(x))


def test_a_refused_network_of_timms_has_its_own_modules_back() -> None:
    model = create_model("timm:resnetv2_50", num_classes=10)
    modules = list(model.modules())
    with pytest.raises(UserError, match="does not follow a convolution"):
        apply_mimicnorm(model)
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))
    assert changes_of(model) == ()


@pytest.mark.parametrize(
    "name",
    [
        "regnetx_002",  # an identity behind the classifier
        pytest.param("dla34", marks=pytest.mark.slow),  # a convolution for a classifier
        pytest.param("mobilenetv3_small_050", marks=pytest.mark.slow),  # timm's own Linear
        pytest.param("tf_mobilenetv3_small_075", marks=pytest.mark.slow),  # convolutions that pad by themselves
    ],
)
def test_mimicnorm_takes_timms(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(f"timm:{name}", num_classes=10)
    filters = [module.weight[0].numel() for module in model.modules() if isinstance(module, nn.Conv2d)]
    expected = len(norms_of(model)) + sum(each > 50 for each in filters) + 1
    assert apply_mimicnorm(model, seed=0) == expected
    (logits,) = norms_of(model)
    assert logits.num_features == 10  # type: ignore[union-attr]
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        out = model.train()(x)
    assert out.shape == (4, 10)
    torch.testing.assert_close(out.mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    check_rebuilt(model, x, tmp_path / "net")


def test_a_padding_convolution_is_folded_into() -> None:
    conv = Conv2dSame(3, 4, 3, stride=2, bias=False)
    model = nn.Sequential(conv, drawn(BatchNormAct2d(4))).double().eval()
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    expected = model(x)
    assert remove_normalisation(model) == 1
    assert model[0] is conv
    torch.testing.assert_close(model(x), expected)
