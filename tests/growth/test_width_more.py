"""Widening under layer normalisation to any size, tied weights, attention: against formulas written out by hand."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from postgrad._compat import prepare_torchvision
from postgrad.errors import UserError
from postgrad.growth import _streams, approximate, depth, kernels, topology, width
from postgrad.growth._resize import Plan
from postgrad.growth.axes import analyse
from postgrad.growth.certificate import Certificate
from postgrad.growth.journal import regrow
from postgrad.growth.width import widen
from postgrad.methods.weight_averages import ExponentialMovingAverage

Norm = Callable[[int], nn.Module]
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "rms with ε": lambda size: nn.RMSNorm(size, eps=0.1)}


class Words(nn.Module):
    """A stream that an embedding, positions and a gated MLP make, read behind normalisations."""

    def __init__(self, norm: Norm = nn.LayerNorm, size: int = 12, *, tied: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(11, size)
        self.places = nn.Parameter(torch.randn(1, 6, size) * 0.3)
        self.before, self.last = norm(size), norm(size)
        self.up, self.down = nn.Linear(size, 40), nn.Linear(20, size)
        self.head = nn.Linear(size, 11, bias=False)
        if tied:
            self.head.weight = self.words.weight
        with torch.no_grad():
            for each in (*self.before.parameters(), *self.last.parameters()):
                each.add_(0.3 * torch.randn_like(each))

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places
        gate, value = self.up(self.before(x)).chunk(2, -1)
        x = x + self.down(F.silu(gate) * value)
        return self.head(self.last(x))


class Layers(nn.Module):
    """`first`, anything, a normalisation over what comes, a linear layer."""

    def __init__(self, *between: nn.Module, norm: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.between = nn.Sequential(*between)
        self.norm = norm or nn.LayerNorm(8)
        self.last = last or nn.Identity()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.norm(self.between(self.first(x)))))


def words(seed: int = 1) -> Tensor:
    return torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(seed))


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(before: nn.Module, after: nn.Module, x: Tensor) -> float:
    """In float64, over the spread."""
    both = [copy.deepcopy(net).double().eval() for net in (before, after)]
    old, new = (net(x.double() if x.is_floating_point() else x).detach() for net in both)
    return ((old - new).abs().max() / old.std()).item()


def refused(net: nn.Module, message: str, layer: str, **arguments: Any) -> None:
    before, parts = copy.deepcopy(net.state_dict()), {name: vars(each).copy() for name, each in net.named_modules()}
    with pytest.raises(UserError, match=message):
        widen(net, layer, **arguments)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(vars(each).keys() == parts[name].keys() for name, each in net.named_modules())


@settings(max_examples=6)
@given(
    norm=st.sampled_from(sorted(NORMS)),
    size=st.integers(3, 12),
    more=st.integers(1, 15),
    tied=st.booleans(),
    init=st.sampled_from(["replicate", "fanout_zero"]),
    seed=st.integers(0, 100),
)
def test_normalised_streams_grow_to_any_size(norm: str, size: int, more: int, tied: bool, init: Any, seed: int) -> None:
    net = Words(NORMS[norm], size, tied=tied, seed=seed).double()
    before = copy.deepcopy(net)
    certificate = widen(net, "words", to=size + more, example=words(), init=init, seed=seed)
    assert certificate.max_error < 1e-12
    assert certificate.mode == "train"
    assert difference(before, net, words(seed + 2)) < 1e-10
    assert (net.head.weight is net.words.weight) is tied
    assert net.last.normalized_shape == (size + more,)


def test_layer_normalisation_is_what_the_formula_says() -> None:
    net = Words().double()
    old = copy.deepcopy(net)
    widen(net, "words", to=17, example=words())
    assert isinstance(net.last, nn.LayerNorm)
    assert isinstance(old.last, nn.LayerNorm)
    assert net.last.eps == old.last.eps * 12 / 17
    torch.testing.assert_close(net.last.weight[:12], old.last.weight * (12 / 17) ** 0.5)
    torch.testing.assert_close(net.last.bias, F.pad(old.last.bias, (0, 5)))
    for name in ("words.weight", "places"):
        mean = old.get_parameter(name).mean(-1, keepdim=True)
        torch.testing.assert_close(net.get_parameter(name)[..., 12:], mean.expand(*mean.shape[:-1], 5))
    torch.testing.assert_close(net.down.bias[12:], old.down.bias.mean().expand(5))
    assert torch.equal(net.head.weight[:, :12], old.head.weight)
    assert net.head.weight[:, 12:].std() > 0.5 * old.head.weight.std()  # free, so that new units learn at once


def test_rms_normalisation_is_what_the_formula_says() -> None:
    net = Words(NORMS["rms with ε"]).double()
    old = copy.deepcopy(net)
    widen(net, "words", to=17, example=words())
    assert net.last.eps == pytest.approx(0.1 * 12 / 17)
    torch.testing.assert_close(net.last.weight[:12], old.last.weight * (12 / 17) ** 0.5)
    for name in ("words.weight", "places"):
        assert net.get_parameter(name)[..., 12:].count_nonzero() == 0


def test_gradients_of_units_go_in_part_to_their_mean() -> None:
    net = Words().double()
    old = copy.deepcopy(net)
    widen(net, "words", to=17, example=words())
    weights = inputs(2, 6, 11).double()
    before, after = (torch.autograd.grad((each(words()) * weights).sum(), each.words.weight)[0] for each in (old, net))
    # A new row is the mean of the old ones, so each of these has 1/12 of its gradient.
    torch.testing.assert_close(after[:, :12] + after[:, 12:].sum(1, keepdim=True) / 12, before)
    assert not torch.allclose(after[:, :12], before)  # which alone is not the old one
    assert after[:, 12:].abs().max() > 0.01


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_network_widened_so_trains_and_grows_on(norm: str) -> None:
    net = Words(NORMS[norm])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    labels = words(9)
    losses = []
    for to in (17, 20, 40, 43):
        widen(net, "words", to=to, example=words(), optimizer=optimizer)
        for _ in range(3):
            loss = F.cross_entropy(net(words()).flatten(0, 1), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert net.places[..., 40:].std(-1).min() > 0  # no longer their mean, nor zero


@pytest.mark.parametrize("wrong", ["factor", "ε", "mean"])
def test_what_is_wrong_with_the_formula_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Plan:
        plan = _streams.any_size(*arguments)
        if wrong == "factor":
            return dataclasses.replace(plan, factors=dict.fromkeys(plan.factors, (0.99, 1 / 0.99)))
        if wrong == "ε":
            return dataclasses.replace(plan, settings={})
        (one,) = plan.widenings
        starts = {key: "zero" if start == "mean" else start for key, start in one.starts.items()}
        return dataclasses.replace(plan, widenings=(dataclasses.replace(one, starts=starts),))

    monkeypatch.setattr(width, "any_size", broken)
    refused(Words(), "would no longer compute the same", "words", to=17, example=words())


@pytest.mark.parametrize(
    ("net", "example", "message"),
    [
        (Layers(nn.ReLU()), inputs(2, 6), r"relu in between\.0 works on it"),
        (Layers(norm=nn.LayerNorm(8, elementwise_affine=False)), inputs(2, 6), "layer_norm in norm has no weight"),
        (Layers(nn.LayerNorm(8)), inputs(2, 6), "layer_norm in norm takes a mean over it after another"),
        (Layers(last=nn.Sigmoid()), inputs(2, 6), "sigmoid in last works on it"),
        (Layers(nn.Linear(8, 8), nn.RMSNorm(8)), inputs(2, 6), None),
        (Layers(nn.GroupNorm(1, 8)), inputs(2, 6), r"group_norm in between\.0 takes a mean over it"),
    ],
    ids=["relu", "no scale", "twice", "sigmoid", "two streams", "group norm"],
)
def test_which_operation_holds_a_normalised_stream(net: nn.Module, example: Tensor, message: str | None) -> None:
    if message is None:
        assert widen(net, "first", to=9, example=example).max_error < 1e-12
    else:
        refused(net, f"{message}.*: to=16, not 9", "first", to=9, example=example)


def test_per_channel_layers_before_the_norm_hold_it() -> None:
    class Block(nn.Module):
        """As ConvNeXt's, but for the scale."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 2, stride=2)
            self.each = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 20), nn.Linear(20, 8)
            self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.down(F.gelu(self.up(self.norm(self.each(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
            return self.head(self.last(x.mean((2, 3))))

    refused(Block(), "conv2d in each takes each of its units by itself", "stem", to=9, example=inputs(2, 3, 8, 8))
    assert widen(Block(), "stem", to=16, example=inputs(2, 3, 8, 8)).max_error < 1e-12


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("times", [2, 3])
def test_tied_weights_are_repeated(norm: str, times: int) -> None:
    net = Words(NORMS[norm], tied=True)
    before = copy.deepcopy(net)
    certificate = widen(net, "words", to=12 * times, example=words())
    assert certificate.max_error < 1e-12
    assert net.head.weight is net.words.weight
    assert torch.equal(net.words.weight[:, :12], before.words.weight)
    torch.testing.assert_close(net.last.weight[:12], before.last.weight / times)
    assert difference(before, net, words(4)) < (1e-10 if times == 2 else 1e-6)  # a third is rounded
    fresh = Words(NORMS[norm], tied=True)
    regrow(fresh, **certificate.journal[0])
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.eval()(words(5)), net.eval()(words(5)))


def test_a_tied_weight_without_its_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Words):
        def forward(self, words: Tensor) -> Tensor:
            return self.head(F.gelu(self.last(self.words(words))))

    class Twice(Words):
        def forward(self, words: Tensor) -> Tensor:
            x = self.last(self.words(words))
            return self.head(x) + self.down(F.silu(self.up(x)[..., :20])).mean()

    class Elsewhere(Words):
        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.last(self.down(F.silu(self.up(self.last(self.words(words)))[..., :20]))))

    for kind, why in (
        (Plain, "no normalisation stands directly before linear in head"),
        (Twice, "linear in up reads what is normalised before it"),
        (Elsewhere, "layer_norm in last reads what is normalised"),
    ):
        net = kind(tied=True)
        refused(net, r"words\.weight is both read along it and summed over", "words", to=24, example=words())
        assert any(why in reason for axis in analyse(net, words()).axes for reason in axis.fixed), kind
    monkeypatch.setattr(width, "_repeated", lambda *given: dataclasses.replace(repeated(*given), factors={}))
    refused(Words(tied=True), "would no longer compute the same", "words", to=24, example=words())


repeated = width._repeated


class Attention(nn.Module):
    """Keeps its sizes as timm's does: heads and their size, not tied to the stream."""

    def __init__(self, size: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, size // heads, size
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, self.attn_dim))


def attentive(kind: Callable[[], nn.Module] = Attention) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed_dim = 8
            self.embed, self.norm, self.attention = nn.Linear(5, 8), nn.LayerNorm(8), kind()
            self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            x = x + self.attention(self.norm(x))
            return self.head(self.last(x).mean(1))

    return Net()


def test_heads_and_their_sizes_follow_what_a_module_says_of_itself() -> None:
    x = inputs(2, 4, 5)
    for layer, to, said in (
        ("attention.qkv#1", 3, {"num_heads": 3, "head_dim": 4, "attn_dim": 12, "scale": 0.5}),
        ("attention.qkv#2", 9, {"num_heads": 2, "head_dim": 9, "attn_dim": 18, "scale": 1 / 3}),
        ("embed", 16, {"num_heads": 2, "head_dim": 4, "attn_dim": 8, "scale": 0.5}),
        ("embed", 11, {"num_heads": 2, "head_dim": 4, "attn_dim": 8, "scale": 0.5}),
    ):
        net = attentive()
        certificate = widen(net, layer, to=to, example=x)
        assert certificate.max_error < 1e-12
        attention = net.get_submodule("attention")
        assert {name: getattr(attention, name) for name in said} == pytest.approx(said)
        assert net.embed_dim == (to if layer == "embed" else 8)
        fresh = attentive()
        regrow(fresh, **certificate.journal[0])
        fresh.load_state_dict(net.state_dict())
        assert torch.equal(fresh.eval()(x), net.eval()(x))


class TiedHeads(nn.Module):
    """Attention of torch's own, whose heads times their size are the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return made


def test_heads_that_are_tied_to_the_stream_grow_with_it() -> None:
    x = inputs(2, 4, 5)
    for to, heads in ((16, 4), (24, 6), (12, 3), (10, 2)):
        net = attentive(TiedHeads)
        assert widen(net, "embed", to=to, example=x).max_error < 1e-12
        inner = net.get_submodule("attention.inner")
        assert (inner.embed_dim, inner.num_heads, inner.head_dim) == (to, heads, to // heads)
    for layer, to in (("attention.inner#1", 4), ("attention.inner#2", 6)):
        refused(attentive(TiedHeads), r"channels of embed; widen that layer, to=16", layer, to=to, example=x)
    refused(attentive(TiedHeads), "into heads: to=10 or 12, not 11", "embed", to=11, example=x)


def vision(name: str) -> tuple[nn.Module, Tensor, str]:
    prepare_torchvision()
    torch.manual_seed(0)
    x = inputs(2, 3, 32, 32)
    if name == "vit":
        from torchvision.models.vision_transformer import VisionTransformer

        net: nn.Module = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5)
        layer = "conv_proj"
    elif name == "swin":
        from torchvision.models.swin_transformer import SwinTransformer

        net, layer = SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=5), "features.0.0"
    elif name == "maxvit":
        from torchvision.models.maxvit import MaxVit

        net = MaxVit((32, 32), 8, 4, [16], [1], 8, stochastic_depth_prob=0.1, num_classes=5)
        layer = "blocks.0.layers.0.layers.MBconv.layers.conv_c"
    else:
        timm = pytest.importorskip("timm")
        sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2}
        net = timm.create_model(name, num_classes=5, img_size=32, patch_size=8, **sizes)
        layer = "patch_embed.proj"
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval(), x, layer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin", "maxvit", "vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_streams_of_vision_transformers_grow_with_their_heads(name: str) -> None:
    net, x, layer = vision(name)
    before = copy.deepcopy(net)
    size = analyse(net, x).made_by(layer)[0].size
    certificate = widen(net, layer, to=2 * size, example=x)
    assert certificate.max_error < 1e-10
    assert difference(before, net, inputs(3, 3, 32, 32, seed=7)) < 1e-9
    torch.export.export(net, (x,), strict=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to"), [("vit", 18), ("vit_tiny_patch16_224", 19), ("deit_tiny_patch16_224", 17)])
def test_streams_of_vision_transformers_grow_to_other_sizes(name: str, to: int) -> None:
    net, x, layer = vision(name)
    assert widen(net, layer, to=to, example=x).max_error < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(("to", "heads"), [(24, (3, 8)), (20, (2, 10)), (18, (2, 9))])
def test_streams_grow_with_the_size_of_heads_where_their_number_does_not_fit(to: int, heads: tuple[int, int]) -> None:
    net, x, layer = vision("maxvit")
    before = copy.deepcopy(net)
    assert widen(net, layer, to=to, example=x).max_error < 1e-10
    assert difference(before, net, inputs(3, 3, 32, 32, seed=7)) < 1e-5  # of weights that float32 rounds
    attention = net.get_submodule("blocks.0.layers.0.layers.window_attention.attn_layer.1")
    assert (attention.n_heads, attention.head_dim) == heads


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 2])
def test_windows_of_timm_grow_in_heads_and_their_size(factor: int) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=5, img_size=56, embed_dim=8, depths=(1, 1), num_heads=(2, 2)
    ).eval()
    x = inputs(1, 3, 56, 56)
    certificate = widen(net, f"layers.0.blocks.0.attn.qkv#{factor}", to=6, example=x)
    assert certificate.max_error < 1e-10


@pytest.mark.slow
def test_heads_of_vision_transformers() -> None:
    net, x, _ = vision("vit")
    refused(net, "channels of conv_proj", "encoder.layers.encoder_layer_0.self_attention#1", to=4, example=x)
    net, x, _ = vision("swin")
    refused(net, r"channels of features\.0\.0; widen", "features.1.0.attn.qkv#1", to=4, example=x)
    net, x, _ = vision("vit_tiny_patch16_224")
    assert widen(net, "blocks.0.attn.qkv#1", to=3, example=x).max_error < 1e-10
    assert net.embed_dim == 16


def test_averages_grow_with_the_network_or_not_at_all() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    averages = [AveragedModel(net), ExponentialMovingAverage(net)]
    x = inputs(4, 5)
    with torch.no_grad():
        net[0].weight.add_(0.1)
    averages[0].update_parameters(net)
    averages[1].update(net)
    before = averages[0](x)
    others = AveragedModel(nn.Linear(2, 2))
    inner = averages[0].module
    refused(net, "another network", "0", to=9, example=x, averages=[*averages, others])
    assert averages[0].module is inner
    assert net[0].out_features == 6
    averages[1].update(net)
    widen(net, "0", to=9, example=x, averages=averages)
    torch.testing.assert_close(averages[0](x), before)
    averages[0].update_parameters(net)
    averages[1].update(net)
    with averages[1].averaged as network:
        assert network(x).shape == (4, 3)


@pytest.mark.parametrize("operator", ["deepen", "put", "kernel", "branch", "ways", "skip", "group", "dropout", "stack"])
def test_averages_follow_every_operator(operator: str) -> None:
    torch.manual_seed(0)
    stage = nn.Sequential(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()))
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), stage, nn.Flatten(), nn.Linear(216, 4))
    x = inputs(2, 3, 6, 6)
    averages = [AveragedModel(net), ExponentialMovingAverage(net)]
    with torch.no_grad():
        net[0].weight.mul_(1.1)
    averages[0].update_parameters(net)
    averages[1].update(net)
    before = averages[0](x)
    call: Callable[..., Certificate] = {
        "deepen": partial(depth.deepen, net, "1"),
        "put": partial(depth.deepen, net, "1", kind="identity"),
        "kernel": partial(kernels.grow_kernel, net, "0", to=5),
        "branch": partial(topology.branch, net, "2"),
        "ways": partial(topology.branch, net, "0", kind="concat"),
        "skip": partial(topology.add_skip, net, "0", "1"),
        "group": partial(topology.insert_group, net, "1", groups=2),
        "dropout": partial(topology.insert_dropout, net, "1", p=0.5),
        "stack": partial(approximate.stack, net, "2"),
    }[operator]
    certificate = call(example=x, averages=averages)
    if certificate.exact:
        torch.testing.assert_close(averages[0].eval()(x), before, rtol=1e-4, atol=1e-5)
    averages[0].update_parameters(net)
    averages[1].update(net)
    assert len(list(averages[0].module.parameters())) == len(list(net.parameters()))


def test_factors_have_numbers() -> None:
    def grouped() -> nn.Module:
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4)
        return nn.Sequential(first, nn.GroupNorm(2, 12), nn.ReLU(), second, nn.ReLU(), nn.Conv2d(8, 2, 1))

    x = inputs(2, 3, 6, 6)
    cases: list[tuple[str, int, Callable[[nn.Module], tuple[Any, ...]], tuple[Any, ...]]] = [
        ("3#2", 5, lambda net: (net[3].weight.shape, net[3].groups, net[0].out_channels), ((20, 3, 3, 3), 4, 12)),
        ("0", 24, lambda net: (net[3].groups, net[1].num_groups, net[1].num_channels), (8, 4, 24)),
    ]
    for layer, to, seen, wanted in cases:
        net = grouped()
        widen(net, layer, to=to, example=x)
        assert seen(net) == wanted
    graph = analyse(grouped(), x)
    assert [axis.size for axis in graph.made_by("0")] == [2, 2, 3]
    refused(grouped(), r"its factors are #0 \(2\), #1 \(2\), #2 \(3\)", "0#3", to=5, example=x)
    refused(grouped(), "there are 2 of it; give a greater number, not 2", "0#0", to=2, example=x)
    refused(grouped(), "it has 12 channels; give a greater number, not 12", "0", to=12, example=x)
    net = Words()
    widen(net, "up#1", to=25, example=words())
    assert net.up.weight.shape == (50, 12)
    refused(Words(), "its 40 channels grow in steps of 2: to=50 or 52, not 51", "up", to=51, example=words())


def test_certificates_say_what_was_done() -> None:
    certificate: Certificate = widen(Words(), "words", to=17, example=words())
    entry = certificate.journal[0]
    assert entry["attributes"]["last"] == {"eps": pytest.approx(1e-5 * 12 / 17), "normalized_shape": [17]}  # type: ignore[index, call-overload]
    assert certificate.errors["rounding"] < 1e-5
