"""Branches, skip connections, groups and dropout: the same function on any network, in both modes where claimed."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import difference, images, net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from postgrad.errors import UserError
from postgrad.growth import topology
from postgrad.growth.beside import Keep, Skip
from postgrad.growth.depth import deepen
from postgrad.growth.journal import journal_of, regrow, replay
from postgrad.growth.topology import add_skip, branch, insert_dropout, insert_group
from postgrad.methods.normalisation import Scale
from postgrad.models.export import export, load_exported

Step = tuple[Callable[..., Any], dict[str, Any]]
EVERY: dict[str, Step] = {
    "add": (branch, {"layer": "act"}),
    "add three": (branch, {"layer": "c1", "ways": 3}),
    "gated": (branch, {"layer": "c1", "kind": "gated"}),
    "concat": (branch, {"layer": "c1", "kind": "concat", "ways": 3}),
    "concat linear": (branch, {"layer": "fc", "kind": "concat"}),
    "skip": (add_skip, {"source": "c0", "target": "act"}),
    "pooled skip": (add_skip, {"source": "act", "target": "fc"}),
    "group": (insert_group, {"after": "act", "groups": 4}),
    "dropout": (insert_dropout, {"after": "act", "p": 0.3}),
}


def grown(steps: Any, name: str = "plain", seed: int = 0) -> nn.Module:
    model = net(name, seed)
    for step in steps:
        operator, options = EVERY[step]
        operator(model, **options, example=images())
    return model


def shaken(model: nn.Module) -> nn.Module:
    """Parameters that leave no gate closed."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.1, 0.2)
    return model


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [
        ("plain", "c1", {}),
        ("plain", "act", {"ways": 3}),
        ("plain", "c1", {"kind": "gated", "ways": 3}),
        ("plain", "c1", {"kind": "concat", "ways": 3}),
        ("plain", "fc", {"kind": "concat", "ways": 6}),
        ("without normalisation", "c0", {"kind": "concat"}),
        pytest.param("blocks", "stage2", {}, marks=pytest.mark.slow),
        ("blocks", "stage1.1", {"ways": 4}),
        pytest.param("blocks", "stage2.0", {"kind": "gated"}, marks=pytest.mark.slow),
        ("tokens", "layers.0", {}),
        pytest.param("tokens", "layers.1.linear1", {"kind": "concat"}, marks=pytest.mark.slow),
        ("1-D", "norm", {}),
        ("3-D", "conv", {"kind": "concat"}),
        pytest.param("densenet", "features.denseblock1.denselayer1", {}, marks=pytest.mark.slow),
        ("densenet", "features.denseblock1", {}),
        pytest.param("mobilenet", "features.2", {"kind": "gated"}, marks=pytest.mark.slow),
        pytest.param("vit", "encoder.layers.encoder_layer_1", {}, marks=pytest.mark.slow),
        pytest.param("resnet", "layer3", {"ways": 3}, marks=pytest.mark.slow),
        pytest.param("bottlenecks", "layer2.1", {"kind": "gated"}, marks=pytest.mark.slow),
        pytest.param("vgg", "0", {}, marks=pytest.mark.slow),
        pytest.param("mobilenet", "features", {}, marks=pytest.mark.slow),
    ],
)
def test_branches_change_nothing_in_either_mode(name: str, layer: str, options: dict[str, Any]) -> None:
    before, model = net(name), net(name)
    if layer.endswith("denseblock1"):
        with pytest.raises(UserError, match="runs its own children"):
            branch(model, layer, example=images(), **options)
        return
    certificate = branch(model, layer, example=images(), **options)
    assert (certificate.mode, certificate.exact) == ("train", True)
    assert max(difference(before, model), difference(before, model, train=True)) <= 1e-9
    assert dict(before.named_parameters()).keys() < dict(model.named_parameters()).keys()
    (beside,) = model.get_submodule(layer).branches
    assert len(beside.copies) == options.get("ways", 2) - 1
    nn.init.normal_(next(iter(beside.parameters())), 0.5, 0.2)
    assert difference(before, model) > 1e-6


def test_shares_that_do_not_sum_to_one_are_refused_and_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_shares", lambda ways, _: torch.full((ways,), 1.001 / ways))
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    before = list(model.named_parameters())
    with pytest.raises(UserError, match="branch c1: the network would no longer compute the same"):
        branch(model, "c1", example=images(), optimizer=optimizer)
    assert list(model.named_parameters()) == before
    assert not model.c1._forward_hooks
    assert optimizer.param_groups[0]["params"] == [each for _, each in before]
    assert journal_of(model) == ()


@given(ways=st.integers(2, 64), seed=st.integers(0, 10**6))
def test_shares_sum_to_one_in_every_dtype(ways: int, seed: int) -> None:
    shares = topology._shares(ways, seed)
    assert shares.shape == (ways,)
    assert shares.min() > 0
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert shares.to(dtype).double().sum() == 1


def test_shares_are_drawn_apart() -> None:
    draws = torch.stack([topology._shares(2, seed) for seed in range(400)])
    assert abs(draws[:, 0].mean() - 0.5) < 0.02
    # Beta(10, 10) has variance 1/84.
    assert draws[:, 0].var().item() == pytest.approx(1 / 84, rel=0.25)


def test_activations_no_longer_write_into_what_copies_are_given_too() -> None:
    def make() -> nn.Module:
        parts = [nn.SiLU(inplace=True), nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True)]
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(*parts), nn.Flatten(), nn.Linear(1568, 2)).eval()

    model, other = make(), make()
    before = copy.deepcopy(model)
    branch(model, "1", ways=3, example=images())
    assert difference(before, model) <= 1e-9
    for entry in journal_of(model):
        regrow(other, **entry)
    other.load_state_dict(shaken(model).state_dict())
    assert difference(model, other) == 0
    assert repr(other) == repr(model)


def test_the_ways_of_a_sum_share_the_gradient() -> None:
    before, model = net(), net()
    branch(model, "c1", ways=3, example=images())
    for each in (before, model):
        each(images()).square().sum().backward()
    (total,) = model.c1.branches
    for share, way in zip(total.weights, [model.c1, *total.copies], strict=True):
        torch.testing.assert_close(way.weight.grad, share.detach() * before.c1.weight.grad, rtol=1e-4, atol=1e-5)


def test_rows_side_by_side_are_the_rows_of_the_layer() -> None:
    before, model = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(images()).square().sum().backward()
    optimizer.step()
    before.load_state_dict(model.state_dict())
    momentum = optimizer.state[model.fc.weight]["momentum_buffer"].clone()
    branch(model, "fc", kind="concat", ways=4, example=images(), optimizer=optimizer)
    ways = [model.fc, *model.fc.branches[0].copies]
    assert [each.out_features for each in ways] == [2, 2, 1, 1]
    torch.testing.assert_close(torch.cat([each.weight for each in ways]), before.fc.weight, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([each.bias for each in ways]), before.fc.bias, rtol=0, atol=0)
    assert torch.equal(optimizer.state[model.fc.weight]["momentum_buffer"], momentum[:2])
    assert {id(each) for each in optimizer.param_groups[0]["params"]} == {id(each) for each in model.parameters()}


@pytest.mark.parametrize("step", EVERY)
def test_the_optimizer_trains_all_that_is_new(step: str) -> None:
    model = net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    operator, options = EVERY[step]
    if operator is insert_dropout:
        operator(model, **options, example=images())
    else:
        operator(model, **options, example=images(), optimizer=optimizer)
    old = {name: each.detach().clone() for name, each in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        model(images(4)).square().mean().backward()
        optimizer.step()
    still = [name for name, each in model.named_parameters() if torch.equal(each, old[name])]
    assert not [name for name in still if "branches" in name or "grown" in name]


@pytest.mark.parametrize(
    ("name", "source", "target", "projected"),
    [
        ("plain", "c0", "act", False),
        ("plain", "act", "fc", True),
        ("plain", "drop", "last", True),
        ("blocks", "stage1", "stage2", True),
        ("blocks", "stem", "stage1.0", False),
        ("blocks", "stage2.0", "stage2", False),
        pytest.param("blocks", "stage2.0.conv1", "stage2", False, marks=pytest.mark.slow),
        pytest.param("blocks", "stem", "fc", True, marks=pytest.mark.slow),
        ("tokens", "layers.0", "layers.1", False),
        ("tokens", "layers.0.linear1", "layers.1", True),
        ("1-D", "conv", "act", False),
        ("3-D", "conv", "fc", True),
        pytest.param(
            "densenet", "features.denseblock1.denselayer1", "features.transition1", True, marks=pytest.mark.slow
        ),
        pytest.param("resnet", "layer1", "layer4", True, marks=pytest.mark.slow),
        pytest.param("mobilenet", "features.1", "features.3", False, marks=pytest.mark.slow),
        pytest.param("vgg", "0.0", "0.7", True, marks=pytest.mark.slow),
    ],
)
def test_skip_connections_change_nothing_in_either_mode(name: str, source: str, target: str, projected: bool) -> None:
    before, model = net(name), net(name)
    certificate = add_skip(model, source, target, example=images())
    assert (certificate.mode, certificate.exact) == ("train", True)
    assert max(difference(before, model), difference(before, model, train=True)) <= 1e-9
    (skip,) = (each for each in model.modules() if isinstance(each, Skip))
    assert bool(list(skip.project.parameters())) == projected
    nn.init.ones_(skip.gate)
    assert difference(before, model) > 1e-3


def test_a_skip_connection_adds_what_the_source_gave() -> None:
    model = net("tokens")
    add_skip(model, "layers.0", "layers.1", example=images())
    model.layers[1].branches[0].gate.data.fill_(0.25)
    given: list[Tensor] = []
    model.layers[0].register_forward_hook(lambda _module, _args, output: given.append(output))
    plain = net("tokens")
    plain.layers[1].register_forward_hook(lambda _module, args, output: output + 0.25 * args[0])
    assert difference(plain, model) <= 1e-12


def test_nothing_is_held_after_a_forward_pass() -> None:
    model = net()
    add_skip(model, "c0", "act", example=images())
    held: list[weakref.ref[Tensor]] = []
    model.c0.register_forward_hook(lambda _module, _args, output: held.append(weakref.ref(output)))
    with torch.no_grad():
        model(images())
    gc.collect()
    assert held
    assert all(each() is None for each in held)
    (keep,) = (hook for hook in model.c0._forward_hooks.values() if isinstance(hook, Keep))
    assert keep.stash.value is None


@pytest.mark.parametrize(("first", "last", "works"), [(0, 1, True), (0, 2, True), (1, 2, False)])
def test_a_skip_connection_in_a_checkpointed_part(first: int, last: int, works: bool) -> None:
    """Run again are the layers from `first` to `last`: that of the begin, those of both ends, that of the end."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    x = images()[..., 0, :3]
    add_skip(model, "0", "1", example=x)
    shaken(model)

    def again(y: Tensor) -> Tensor:
        return checkpoint(model[first:last], y, use_reentrant=False)

    (expected,) = torch.autograd.grad(model(x).square().sum(), model[0].weight)
    y = model[last:](again(model[:first](x))).square().sum()
    if works:
        torch.testing.assert_close(torch.autograd.grad(y, model[0].weight)[0], expected)
    else:
        with pytest.raises(UserError, match="ran without the one where it begins"):
            torch.autograd.grad(y, model[0].weight)


@pytest.mark.parametrize(
    ("name", "source", "target", "message"),
    [
        ("plain", "act", "c0", "'c0' is done before 'act'"),
        ("plain", "act", "act", "'act' is done before 'act'"),
        ("blocks", "stage2", "stage2.0", r"'stage2\.0' is done before 'stage2'"),
        ("blocks", "stage1.0.relu", "stage2", "is called 2 times"),
        ("tokens", "patches", "layers.0", "no skip connection leads"),
        ("tokens", "layers.0", "fc", "no skip connection leads"),
        ("plain", "c0", "akt", "unknown module 'akt'"),
    ],
)
def test_skip_connections_that_cannot_be_are_refused(name: str, source: str, target: str, message: str) -> None:
    model = net(name)
    before = list(model.named_modules())
    with pytest.raises(UserError, match=message) as error:
        add_skip(model, source, target, example=images())
    assert "\n" not in str(error.value)
    assert list(model.named_modules()) == before
    assert not any(each._forward_hooks for each in model.modules())


@pytest.mark.parametrize(
    ("after", "init", "form", "mode"),
    [
        ("act", "identity", "after", "eval"),
        ("n0", "identity", "before", "eval"),
        ("c1", "identity", "gated", "train"),
        ("act", "noise", "gated", "train"),
        ("act", "random", "residual", "train"),
    ],
)
def test_groups_are_put_in_by_each_initialisation(after: str, init: Any, form: str, mode: str) -> None:
    before, model = net(), net()
    certificate = insert_group(model, after, groups=4, init=init, example=images())
    (insertion,) = certificate.journal[-1]["insertions"]
    assert (insertion["options"]["form"], certificate.mode) == (form, mode)
    assert difference(before, model) <= 1e-9
    layer = model.get_submodule(after).grown[0].layer
    assert layer.groups == 4
    identity = torch.zeros(8, 2, 3, 3)
    identity[torch.arange(8), torch.arange(8) % 2, 1, 1] = 1
    assert torch.equal(layer.weight, identity) == (init == "identity")
    if init == "noise":
        rest = (layer.weight - identity)[identity == 0]
        assert rest.std().item() == pytest.approx(0.1 * (2 / 18) ** 0.5, rel=0.2)
        assert torch.equal(layer.weight[identity == 1], torch.ones(8))


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    before, model = net(), net()
    before.drop.p = model.drop.p = 0.0
    certificate = insert_dropout(model, "act", p=0.5, example=images())
    assert certificate.mode == "eval"
    assert difference(before, model) == 0
    seen: list[Tensor] = []
    model.act.grown.register_forward_hook(lambda _module, args, output: seen.append(output[args[0] > 0] == 0))
    model.train()(images(32))
    assert seen[0].double().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("operator", "options", "message"),
    [
        (branch, {"layer": "c1", "ways": 1}, "2 to 64 ways, not 1"),
        (branch, {"layer": "c1", "ways": 2.0}, "2 to 64 ways"),
        (branch, {"layer": "c1", "kind": "sum"}, "unknown kind of branch"),
        (branch, {"layer": "n0", "kind": "concat"}, "only a dense convolution or a linear layer"),
        (branch, {"layer": "last", "kind": "concat", "ways": 5}, "the 4 rows of 'last' cannot be split into 5"),
        (insert_group, {"after": "act", "groups": 3}, "3 do not divide the 8 channels of 'act'"),
        (insert_group, {"after": "act", "groups": 0}, "0 do not divide"),
        (insert_group, {"after": "fc", "groups": 2}, "a convolution takes images"),
        (insert_group, {"after": "act", "groups": 2, "init": "zero"}, "unknown initialisation 'zero'"),
        (insert_dropout, {"after": "act", "p": 1.0}, "at least 0 and below 1, got 1.0"),
        (insert_dropout, {"after": "akt", "p": 0.1}, "unknown module 'akt'"),
    ],
)
def test_what_cannot_be_is_refused(operator: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    model = net()
    before = list(model.named_modules())
    with pytest.raises(UserError, match=message) as error:
        operator(model, **options, example=images())
    assert "\n" not in str(error.value)
    assert list(model.named_modules()) == before


def test_a_layer_with_blocks_of_its_own_is_not_split_by_rows() -> None:
    model = net()
    deepen(model, "c1", example=images())
    with pytest.raises(UserError, match="split a layer by rows before that"):
        branch(model, "c1", kind="concat", example=images())


def test_branching_over_half_a_skip_connection_is_refused() -> None:
    model = grown(["skip"])
    with pytest.raises(UserError, match="begins elsewhere"):
        branch(model, "act", example=images())
    assert len(model.act.branches) == 1


# One upon another, and what is made of it.

CHAINS = [
    ["add", "add", "gated"],
    ["concat", "add three", "group"],
    ["skip", "concat linear", "pooled skip", "dropout"],
    ["group", "add", "skip", "add three"],
]


@pytest.mark.parametrize("steps", CHAINS, ids=" + ".join)
def test_one_upon_another_is_copied_pickled_and_grown_again(steps: list[str]) -> None:
    before, model = net(), grown(steps)
    assert difference(before, model) <= 1e-9
    other = net(seed=5)
    for entry in journal_of(model):
        regrow(other, **entry)
    shaken(model)
    other.load_state_dict(model.state_dict())
    for same in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert difference(model, same) == 0
    assert journal_of(other) == journal_of(model)


def test_the_same_calls_are_made_again_on_another_network() -> None:
    model = grown(["skip", "concat", "gated"])
    before, other = net(seed=9), net(seed=9)
    assert len(replay(other, journal_of(model), example=images())) == 3
    assert difference(before, other) <= 1e-9


def test_hooks_of_the_user_survive() -> None:
    model = net()
    seen: list[str] = []
    for name in ("c0", "c1", "act"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    for step in ("concat", "add", "add three", "skip", "group"):
        operator, options = EVERY[step]
        operator(model, **options, example=images())
    seen.clear()
    model(images())
    assert seen == ["c0", "c1", "act"]


def test_half_precision_and_empty_batches_pass() -> None:
    model = grown(["add", "concat", "skip", "pooled skip", "group"])
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images()).dtype == torch.bfloat16
    assert model(images(2)[:0]).shape == (0, 4)
    x = images(3)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), model(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself does
@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("steps", CHAINS, ids=" + ".join)
def test_it_is_compiled_as_one_graph(steps: list[str]) -> None:
    model = shaken(grown(steps))
    compiled = torch.compile(model, fullgraph=True, backend="inductor" if steps == CHAINS[-1] else "aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("steps", CHAINS, ids=" + ".join)
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_it_is_exported(steps: list[str], format: str, tmp_path: Path) -> None:
    model = shaken(grown(steps))
    file = tmp_path / f"net.{format}"
    export(model, file, format=format, example=images())
    torch.testing.assert_close(load_exported(file)(images(3)), model(images(3)), rtol=1e-4, atol=1e-4)


def test_a_module_with_a_scalar_of_its_own_is_branched() -> None:
    scaled = nn.Sequential(nn.Conv2d(3, 8, 3), Scale(0.5), nn.ReLU())
    model = nn.Sequential(scaled, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    before = copy.deepcopy(model)
    branch(model, "0", example=images())
    assert difference(before, model) <= 1e-9
