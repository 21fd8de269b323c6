"""Widening whole networks: every row of the table of widths, exactly, and what is refused leaves no trace."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import networks_to_grow as networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_to_grow import CASES, Case, awake, images, numbers
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.growth import _resize
from postgrad.growth._probes import leaves
from postgrad.growth.journal import regrow
from postgrad.growth.width import widen


def mostly_slow(names: Iterable[str]) -> list[Any]:
    """Every fourth at once, the others among the slow tests."""
    return [pytest.param(name, marks=[pytest.mark.slow] if number % 4 else []) for number, name in enumerate(names)]


def outputs(model: nn.Module, example: Any, training: bool = False) -> list[Tensor]:
    """What a copy gives, its dropout off."""
    model = copy.deepcopy(model).train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    with torch.no_grad():
        return leaves(model(*(example if isinstance(example, tuple) else (example,))))


def double(example: Any) -> Any:
    return tuple(each.double() for each in example) if isinstance(example, tuple) else example.double()


def worst(before: list[Tensor], after: list[Tensor]) -> float:
    pairs = zip(before, after, strict=True)
    return max(((old - new).abs().max() / old.abs().max()).item() for old, new in pairs)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that a refused change must leave: the same objects with the same content."""
    tensors = {key: (id(value), value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    said = {name: {k: v for k, v in vars(module).items() if k[0] != "_"} for name, module in model.named_modules()}
    return {"tensors": tensors, "said": said, "repr": repr(model)}


def assert_untouched(before: dict[str, Any], model: nn.Module) -> None:
    after = state_of(model)
    assert after["said"] == before["said"]
    assert after["repr"] == before["repr"]
    assert after["tensors"].keys() == before["tensors"].keys()
    for key, (identity, content) in after["tensors"].items():
        assert identity == before["tensors"][key][0]
        assert torch.equal(content, before["tensors"][key][1])


@pytest.mark.parametrize("name", CASES)
def test_the_network_computes_the_same(name: str) -> None:
    """Oracle: the network before, in float64, in both modes, on other images than those of the certificate."""
    case = CASES[name]
    model = awake(case.make()).double()
    example = double(case.example)
    other = tuple(each.flip(0).cos() for each in example) if isinstance(example, tuple) else example.flip(0).cos()
    before = [outputs(model, each, training) for each in (example, other) for training in (False, True)]
    parameters = sum(each.numel() for each in model.parameters())
    certificate = widen(model, case.layer, to=case.to, example=example)
    after = [outputs(model, each, training) for each in (example, other) for training in (False, True)]
    assert max(worst(*pair) for pair in zip(before, after, strict=True)) < 1e-11
    assert certificate.exact
    assert certificate.mode == "train"
    assert certificate.max_error < 1e-11
    assert sum(each.numel() for each in model.parameters()) > parameters


@pytest.mark.parametrize("name", mostly_slow(CASES))
def test_a_fresh_network_regrows_to_it_in_its_own_precision(name: str) -> None:
    case = CASES[name]
    model = awake(case.make())
    before = outputs(model, case.example)
    certificate = widen(model, case.layer, to=case.to, example=case.example)
    after = outputs(model, case.example)
    assert worst(before, after) < 1e-5
    fresh = case.make().eval()
    regrow(fresh, **certificate.journal[-1])
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(outputs(fresh, case.example), after, strict=True))
    assert repr(fresh) == repr(model)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str, int, str]] = {}


def refused(name: str, example: Any, layer: str, to: int, message: str) -> Callable[[Any], Any]:
    def enter(make: Any) -> Any:
        REFUSED[name] = (make, example, layer, to, message)
        return make

    return enter


@refused("a view with sizes of its own", numbers(2, 3, 5), "a", 9, "hard|shape|invalid|run")
class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x).view(-1, 6)))


@refused("a view that would be right by chance", numbers(3, 5), "a", 12, "would no longer compute the same|run")
class ByChance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x).view(len(x), 3, -1)[..., :2])).flatten(1)


@refused("heads that an attribute says which is not called so", numbers(2, 4, 5), "qkv#1", 3, "run|compute the same")
class StaleHeads(networks.Attention):
    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head(x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))).mean(1)


@refused("a scale written into the code", numbers(2, 4, 5), "q#1", 5, "matmul multiplies|size of")
class Scaled(networks.Handmade):
    pass


@refused("an unknown operation", numbers(2, 5), "0", 8, "fft_fft in 1 is not among the operations")
def _fft() -> nn.Module:
    class Fourier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).real

    return nn.Sequential(nn.Linear(5, 6), Fourier(), nn.Linear(6, 3))


@refused("a softmax over channels", numbers(2, 5), "0", 8, "softmax in 1 goes along it")
def _softmax() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Softmax(-1), nn.Linear(6, 3))


@refused("rotated queries", numbers(2, 4, 5), "qkv#2", 6, "cannot be widened: flip")
def _rotated() -> nn.Module:
    return networks.Attention(rope=True)


@refused("classes", numbers(2, 6), "4", 5, "cannot be widened: it is what the network returns")
def _classes() -> nn.Module:
    return networks.mlp()


@refused("a layer that is not there", numbers(2, 6), "5x", 5, "unknown layer '5x'")
def _no_such_layer() -> nn.Module:
    return networks.mlp()


@refused("an activation", numbers(2, 6), "1", 9, "makes no channels of its own")
def _no_layer() -> nn.Module:
    return networks.mlp()


@refused("no more than there are", numbers(2, 6), "0", 5, "it has 5 channels; give a greater number, not 5")
def _no_more() -> nn.Module:
    return networks.mlp()


@refused("less than none", numbers(2, 6), "0", -3, "give a greater number, not -3")
def _less() -> nn.Module:
    return networks.mlp()


@refused("a factor that is not there", images(), "grouped#2", 8, r"its factors are #0 \(3\), #1 \(2\)")
def _no_factor() -> nn.Module:
    return networks.Grouped()


@refused("half a group", images(), "grouped", 7, "grow in steps of 2 or 3: to=8 or 9, not 7")
def _half_a_group() -> nn.Module:
    return networks.Grouped()


@refused("some units within a normalised group", images(), "conv#1", 3, "takes a mean over it")
def _uneven() -> nn.Module:
    return networks.GroupNormed()


@refused("a weight's own normalisation", images(3, 8), "0", 9, "sums over it|mean in 2")
def _centred() -> nn.Module:
    return networks.normed_weights()


@refused("a spectral norm", numbers(2, 6), "0", 9, "is not among the operations|cannot be widened")
def _spectral() -> nn.Module:
    model = networks.mlp()
    model[2] = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4))
    return model


@refused("a buffer that is not stored", numbers(2, 6), "a", 9, "is not stored with the weights")
class NotStored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("scale", torch.rand(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) * self.scale)


@refused("chance in its eval mode", numbers(2, 6), "0", 9, "compute the same")
def _chance() -> nn.Module:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    return nn.Sequential(nn.Linear(6, 5), Noise(), nn.Linear(5, 3))


@refused("an example on which the layer is silent", torch.zeros(1, 6), "0", 9, "prove nothing|NaN|greater")
def _silent() -> nn.Module:
    model = networks.mlp()
    with torch.no_grad():
        model[0].bias.fill_(-1e6)
        model[2].weight.zero_()
    return model


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("training", [False, True])
def test_refused_in_one_line_and_left_as_it_was(name: str, training: bool) -> None:
    make, example, layer, to, message = REFUSED[name]
    model = make().train(training)
    optimizer = torch.optim.Adam(model.parameters())
    before, groups = state_of(model), [list(map(id, group["params"])) for group in optimizer.param_groups]
    modes = {module: module.training for module in model.modules()}
    chance = torch.get_rng_state()
    with pytest.raises(UserError, match=message) as caught:
        widen(model, layer, to=to, example=example, optimizer=optimizer)
    assert "\n" not in str(caught.value)
    assert_untouched(before, model)
    assert {module: module.training for module in model.modules()} == modes
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == groups
    assert torch.equal(torch.get_rng_state(), chance)


def replica_map(wide: Tensor, old: Tensor) -> Tensor:
    """Which old row each new one is, by its content; every one must be a row of the old weight."""
    same = (wide[:, None].flatten(2) == old[None].flatten(2)).all(-1)
    assert same.sum(1).tolist() == [1] * len(wide)
    return same.int().argmax(1)


def test_it_is_net2wider_on_an_mlp() -> None:
    """Oracle: the equations of the paper, written out for two linear layers."""
    model = awake(networks.mlp(nn.Tanh)).double()
    old = copy.deepcopy(model)
    x = numbers(7, 6).double()
    widen(model, "0", to=13, example=x)
    index = replica_map(model[0].weight.detach(), old[0].weight.detach())
    assert torch.equal(index[:5], torch.arange(5))
    assert torch.equal(model[0].bias, old[0].bias[index])
    assert torch.equal(model[2].bias, old[2].bias)
    count = torch.bincount(index, minlength=5)
    assert sorted(count.tolist()) == [2, 2, 3, 3, 3]  # each as often as the others or once more
    sums = torch.zeros(4, 5).double().index_add_(1, index, model[2].weight.detach())
    assert (sums - old[2].weight).abs().max() < 1e-15
    hidden = torch.tanh(x @ old[0].weight.T[:, index] + old[0].bias[index])
    by_hand = hidden @ (old[2].weight[:, index] / count[index]).T + old[2].bias
    torch.testing.assert_close(model[:3](x), by_hand, rtol=1e-12, atol=1e-12)
    assert (model[2].weight - old[2].weight[:, index] / count[index]).abs().max() > 1e-3  # but shares that differ


def test_it_is_net2wider_on_a_convolutional_network() -> None:
    """Oracle: as above; running statistics are copied, and what leads to the flattened images is shared by channel."""
    model = awake(networks.conv_bn()).double()
    old = copy.deepcopy(model)
    widen(model, "3", to=8, example=images().double())
    index = replica_map(model[3].weight.detach(), old[3].weight.detach())
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(model[4], tensor), getattr(old[4], tensor)[index])
    blocks = model[7].weight.detach().unflatten(1, (8, 64))
    sums = torch.zeros(3, 5, 64).double().index_add_(1, index, blocks)
    assert (sums.flatten(1) - old[7].weight).abs().max() < 1e-15
    assert (model[3].out_channels, model[4].num_features, model[7].in_features) == (8, 8, 512)


def test_replicas_become_different_units_in_training() -> None:
    model = awake(networks.conv_bn(nn.GELU))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    widen(model, "0", to=12, example=images(), optimizer=optimizer)
    assert sorted(replica_map(model[0].weight.detach(), model[0].weight.detach()[:6]).tolist()) == sorted(
        [*range(6)] * 2
    )
    assert {id(each) for group in optimizer.param_groups for each in group["params"]} == set(
        map(id, model.parameters())
    )
    F.cross_entropy(model(images()), torch.tensor([0, 2])).backward()
    optimizer.step()
    rows = model[0].weight.detach().flatten(1)
    assert torch.cdist(rows, rows).fill_diagonal_(1).min() > 1e-6


def test_draws_are_those_of_the_seed() -> None:
    def grown(seed: int) -> Tensor:
        model = awake(networks.mlp())
        chance = torch.get_rng_state()
        widen(model, "0", to=9, example=numbers(2, 6), seed=seed)
        assert torch.equal(torch.get_rng_state(), chance)
        return model[2].weight.detach()

    assert torch.equal(grown(1), grown(1))
    assert not torch.equal(grown(1), grown(2))


@settings(max_examples=12)
@given(
    to=st.integers(7, 40),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    act=st.sampled_from([nn.ReLU, nn.GELU, nn.Hardswish, nn.Sigmoid]),
    layout=st.sampled_from(["contiguous", "channels_last", "strided", "frozen"]),
)
def test_any_width_of_any_such_network(to: int, seed: int, batch: int, act: Any, layout: str) -> None:
    model = awake(networks.conv_bn(act))
    example = torch.randn(batch, 3, 10, 20, generator=torch.Generator().manual_seed(seed))[..., ::2]
    if layout == "channels_last":
        model, example = model.to(memory_format=torch.channels_last), example.to(memory_format=torch.channels_last)
    elif layout == "contiguous":
        example = example.contiguous()
    model[0].requires_grad_(layout != "frozen")
    before = outputs(model.double(), example.double())
    widen(model.float(), "0", to=to, example=example, seed=seed)
    assert worst(before, outputs(model.double(), example.double())) < 1e-11
    assert model[0].weight.requires_grad == (layout != "frozen")
    assert model[3].weight.requires_grad
    if layout == "channels_last":
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert model[3].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["batch norm", "layer norm", "their size"])
def test_every_precision(dtype: torch.dtype, name: str) -> None:
    case = CASES[name]
    model = awake(case.make()).to(dtype)
    if name == "their size" and dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(UserError, match="rounding"):  # roots of shares cannot be held in so few digits
            widen(model, case.layer, to=case.to, example=case.example.to(dtype))
        return
    before = outputs(model.double(), case.example.double())
    widen(model.to(dtype), case.layer, to=case.to, example=case.example.to(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    after = outputs(model.double(), case.example.double())
    assert worst(before, after) < (1e-11 if name != "their size" or dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_modes_hooks_and_names_survive(training: bool) -> None:
    model = awake(networks.Auxiliary()).train(training)
    model.norm.eval()
    calls: list[tuple[int, ...]] = []
    model.a.register_forward_hook(lambda _module, _inputs, output: calls.append(tuple(output.shape)))
    modes = {name: module.training for name, module in model.named_modules()}
    names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    kept = model.b.bias
    widen(model, "a", to=7, example=images())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == kinds
    assert model.b.bias is kept
    calls.clear()
    model(images())
    assert calls == [(2, 7, 8, 8)]


def test_tied_weights_stay_tied() -> None:
    model = awake(networks.Twice())
    widen(model, "one", to=9, example=images(3, 6))
    assert model.one.weight is model.other.weight
    assert model.one.out_features == model.other.out_features == 9


@pytest.mark.parametrize("name", ["residual stream", "depthwise with two channels each", "heads", "torch's stream"])
def test_after_growth_it_is_copied_pickled_exported_and_grown_again(name: str) -> None:
    case = CASES[name]
    model = awake(case.make())
    widen(model, case.layer, to=case.to, example=case.example)
    before = outputs(model, case.example)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stored, weights_only=False),
        torch.export.export(model, (case.example,), strict=False).module(),
    ]
    for other in others:
        torch.testing.assert_close(other(case.example), before[0])
    again = widen(model, case.layer, to=2 * case.to, example=case.example)
    assert len(again.journal) == 2
    assert worst(before, outputs(model, case.example)) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert model(case.example).isfinite().all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself does
def test_after_growth_it_compiles() -> None:
    model = awake(networks.Residual())
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), model(images()))
    widen(model, "stem", to=9, example=images())
    torch.testing.assert_close(compiled(images()), model(images()))


def test_it_can_be_called_under_no_grad_and_autocast_and_in_training() -> None:
    model = awake(networks.conv_bn()).train()
    statistics = model[1].running_mean.clone()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        widen(model, "3", to=7, example=images())
    assert torch.equal(model[1].running_mean, statistics)
    assert model[3].weight.dtype == torch.float32
    assert model[3].weight.requires_grad


def test_new_units_that_lead_nowhere_yet() -> None:
    model = awake(networks.conv_bn()).double()
    old = copy.deepcopy(model)
    widen(model, "0", to=9, example=images().double(), init="fanout_zero")
    assert torch.equal(model[0].weight[:6], old[0].weight)
    assert not model[3].weight[:, 6:].any()
    assert torch.equal(model[3].weight[:, :6], old[3].weight)
    assert model[0].weight[6:].std().item() == pytest.approx(old[0].weight.std().item(), rel=0.3)
    assert worst(outputs(old, images().double()), outputs(model, images().double())) < 1e-12


def _rules() -> Iterator[Any]:
    """Rules of widening, broken one by one."""
    real_shared, real_units, real_shares = _resize.shared, _resize.units, _resize.shares

    def lose(*args: Any) -> Tensor:
        return real_shared(*args) * (1 + 1e-6)

    def swap(dim: Any, axis: Any, index: Tensor) -> Tensor:
        found = real_units(dim, axis, index)
        return found if len(found) == found.max() + 1 else found.flip(0)

    def double_share(dim: Any, axis: Any, index: Tensor, share: Tensor) -> Tensor:
        return real_shares(dim, axis, index, share) * 1.5

    yield pytest.param("shared", lose, id="shares that do not sum to one")
    yield pytest.param("units", swap, id="units in another order")
    yield pytest.param("shares", double_share, id="shares too large")


@pytest.mark.parametrize(("rule", "broken"), list(_rules()))
@pytest.mark.parametrize("name", ["mlp", "residual stream", "flattened", "within groups, out", "their size"])
def test_negative_control_a_broken_rule_is_refused(
    rule: str, broken: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    model = awake(case.make())
    before = state_of(model)
    monkeypatch.setattr(_resize, rule, broken)
    if (rule, name) == ("shared", "their size"):  # whose shares are not drawn but computed
        widen(model, case.layer, to=case.to, example=case.example)
        return
    with pytest.raises(UserError):
        widen(model, case.layer, to=case.to, example=case.example)
    assert_untouched(before, model)


def test_negative_control_one_forgotten_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _resize._along

    def forgetful(graph: Any, name: str, plan: Any) -> Any:
        return [] if name == "n2.running_var" else real(graph, name, plan)

    monkeypatch.setattr(_resize, "_along", forgetful)
    model = awake(networks.Residual())
    before = state_of(model)
    with pytest.raises(UserError):
        widen(model, "stem", to=9, example=images())
    assert_untouched(before, model)


@pytest.mark.slow
def test_every_pair_of_cases_of_one_network_can_follow_each_other() -> None:
    by_network: dict[Any, list[Case]] = {}
    for case in CASES.values():
        by_network.setdefault(case.make, []).append(case)
    for first, second in itertools.permutations(by_network[networks.Squeeze], 2):
        model = awake(first.make()).double()
        before = outputs(model, first.example.double())
        widen(model, first.layer, to=first.to, example=first.example.double())
        layer, _, factor = second.layer.partition("#")
        to = second.to if factor else 2 * model.get_submodule(layer).weight.shape[0]
        widen(model, second.layer, to=to, example=first.example.double())
        assert worst(before, outputs(model, first.example.double())) < 1e-11
