"""The blocks of growth: the identity at the start, whatever the shape; put in by names from a fixed table alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import difference, images, net
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.growth.beside import MOST_WAYS, Skip, Stash, copied
from postgrad.growth.blocks import (
    BLOCKS,
    ConvResidual,
    FeatureResidual,
    Layer,
    Pool,
    TokenResidual,
    fresh_copy,
    gates,
    insert,
    put_behind,
    submodule,
)

BATCHES = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "not contiguous": lambda x: x.transpose(2, 3),
}
IDENTITIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: ConvResidual(6), (6, 5, 5)),
    "residual without normalisation": (lambda: ConvResidual(6, norm=False), (6, 5, 5)),
    "residual 1-D": (lambda: ConvResidual(6, spatial=1), (6, 5)),
    "residual 3-D": (lambda: ConvResidual(6, spatial=3), (6, 3, 2, 4)),
    "tokens": (lambda: TokenResidual(6), (5, 6)),
    "features": (lambda: FeatureResidual(6), (6,)),
    "layer": (lambda: Layer(6), (6, 5, 5)),
    "grouped layer": (lambda: Layer(6, groups=3), (6, 5, 5)),
    "layer 1-D": (lambda: Layer(6, spatial=1, groups=2), (6, 5)),
    "linear layer": (lambda: Layer(6, spatial=0), (6,)),
    "gated layer": (lambda: Layer(6, norm=True, form="gated"), (6, 5, 5)),
    "residual layer": (lambda: Layer(6, norm=True, form="residual"), (6, 5, 5)),
}


def non_negative(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_blocks_start_as_the_identity(name: str, dtype: torch.dtype, n: int) -> None:
    make, shape = IDENTITIES[name]
    x = non_negative((n, *shape), dtype)
    block = make().to(dtype).eval()
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    if n > 1:
        torch.testing.assert_close(block.train()(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["residual", "layer", "gated layer", "residual layer", "grouped layer"])
@pytest.mark.parametrize("layout", BATCHES)
def test_blocks_take_any_memory_layout(name: str, layout: str) -> None:
    x = BATCHES[layout](non_negative((2, 6, 5, 7)))
    torch.testing.assert_close(IDENTITIES[name][0]().eval()(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("name", IDENTITIES)
def test_half_precision_stays_half_under_autocast(name: str) -> None:
    make, shape = IDENTITIES[name]
    x = non_negative((2, *shape), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = make().eval()(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, x, rtol=0, atol=0)


@settings(max_examples=30)
@given(
    n=st.integers(1, 3),
    features=st.integers(1, 5),
    groups=st.integers(1, 3),
    sides=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    form=st.sampled_from(["after", "before", "gated", "residual"]),
    norm=st.booleans(),
)
def test_a_layer_is_what_its_form_says(
    n: int, features: int, groups: int, sides: list[int], form: Any, norm: bool
) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, groups * features, *sides, generator=generator, dtype=torch.float64)
    layer = Layer(groups * features, len(sides), groups, norm, form).double().eval()
    scale = 1 / (1 + 1e-5) ** 0.5 if norm else 1.0  # a fresh normalisation divides by √(1 + ε)
    expected = {"after": x.relu() * scale, "before": x.relu() * scale, "gated": x, "residual": x}[form]
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_alone_is_not_the_identity_below_zero() -> None:
    x = non_negative((2, 6, 5, 5)) - 0.5
    assert (Layer(6)(x) - x).abs().max() > 0.1


@pytest.mark.parametrize(
    "name", [each for each in IDENTITIES if each not in ("layer", "grouped layer", "layer 1-D", "linear layer")]
)
def test_the_gates_alone_get_a_gradient_at_first(name: str) -> None:
    """Where the last layer, or its gate, is zero, nothing before it can matter yet."""
    make, shape = IDENTITIES[name]
    block = make().train()
    x = non_negative((3, *shape)) - 0.5
    (block(x) * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    moving = [path for path, each in block.named_parameters() if each.grad is not None and each.grad.abs().max() > 1e-9]
    assert moving == gates(block)


@pytest.mark.parametrize("name", IDENTITIES)
def test_blocks_are_copied_pickled_and_loaded(name: str) -> None:
    make, shape = IDENTITIES[name]
    block = make().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = non_negative((2, *shape))
    other = make().eval()
    assert not torch.equal(other(x), block(x))
    other.load_state_dict(block.state_dict())
    for same in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), other):
        torch.testing.assert_close(same(x), block(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_is_torchs(kind: Any) -> None:
    x = torch.randn(2, 3, 7, 4)
    expected = F.max_pool2d(x, 2) if kind == "max" else F.avg_pool2d(x, 2)
    torch.testing.assert_close(Pool(kind)(x), expected, rtol=0, atol=0)
    with pytest.raises(UserError, match="unknown kind of pooling 'min'"):
        Pool("min")  # type: ignore[arg-type]


# How they are put in.


def test_a_block_joins_the_end_of_a_sequential_under_a_free_number() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    del model[0][1]  # the children are now called 0 and 2… or 0 and 1, as torch sees fit
    before = dict(model[0].named_children())
    path = insert(model, "0", "residual_features", {"features": 4})
    assert path.startswith("0.")
    assert path.removeprefix("0.") not in before
    assert list(model[0].named_children())[:-1] == list(before.items())
    assert model[0][-1] is model.get_submodule(path)


def test_other_modules_get_one_child_and_one_hook() -> None:
    model = net()
    names = [name for name, _ in model.named_parameters()]
    paths = [insert(model, "act", "residual", {"features": 8}) for _ in range(2)]
    assert paths == ["act.grown.0", "act.grown.1"]
    assert [name for name, _ in model.named_parameters() if "grown" not in name] == names
    assert len(model.act._forward_hooks) == 1
    assert difference(net(), model) == 0
    nn.init.ones_(model.get_submodule(paths[1]).body[-1].bias)
    assert difference(net(), model) > 0.1


def test_a_block_has_mode_device_and_dtype_of_its_place() -> None:
    model = net().double().train()
    block = model.get_submodule(insert(model, "act", "residual", {"features": 8}))
    assert {each.dtype for each in block.parameters()} == {torch.float64}
    assert all(each.training for each in block.modules())
    model.eval()
    assert not model.get_submodule(insert(model, "fc", "dropout", {"p": 0.5})).training


def test_modules_that_run_their_own_children_are_refused() -> None:
    for module in (nn.ModuleList([nn.Linear(2, 2)]), nn.ModuleDict({"a": nn.Linear(2, 2)})):
        model = nn.Module()
        model.inner = module
        for block, options in (("residual_features", {"features": 2}), ("branches", {"kind": "add", "sizes": 2})):
            with pytest.raises(UserError, match="runs its own children"):
                insert(model, "inner", block, options)


@pytest.mark.parametrize("name", ["grown", "branches"])
def test_a_module_with_such_an_attribute_of_its_own_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    setattr(model[0], name, "mine")
    block, options = (
        ("residual_features", {"features": 2}) if name == "grown" else ("branches", {"kind": "add", "sizes": 2})
    )
    with pytest.raises(UserError, match=f"an attribute '{name}' of its own"):
        insert(model, "0", block, options)


@pytest.mark.parametrize(
    ("into", "block", "options", "message"),
    [
        ("akt", "residual", {"features": 8}, "unknown module 'akt': did you mean 'act'"),
        ("", "residual", {"features": 8}, "unknown module ''"),
        ("act", "residuel", {"features": 8}, "unknown block 'residuel': did you mean 'residual'"),
        ("act", "os.system", {"command": "true"}, "unknown block 'os.system'"),
        ("act", "residual", {"features": 10**12}, "takes 1 to 65536 features"),
        ("act", "residual", {"features": 0}, "takes 1 to 65536 features"),
        ("act", "residual", {"features": True}, "takes 1 to 65536 features"),
        ("act", "residual", {"features": "8"}, "takes 1 to 65536 features"),
        ("act", "residual", {"features": 60000}, "would have .* weights"),
        ("act", "residual", {"features": 8, "spatial": 4}, "cannot be made"),
        ("act", "residual", {"features": 8, "code": "true"}, "cannot be made"),
        ("act", "residual", {}, "cannot be made"),
        ("act", "layer", {"features": 8, "form": "inside"}, "unknown form"),
        ("act", "layer", {"features": 8, "groups": 3}, "cannot be made"),
        ("act", "dropout", {"p": 2.0}, "cannot be made"),
        ("act", "copy", {}, "cannot be made"),
        ("act", "copy", {"of": "akt"}, "unknown module 'akt'"),
        ("act", "branches", {"kind": "add", "sizes": 10**9}, f"2 to {MOST_WAYS} ways"),
        ("act", "branches", {"kind": "ad", "sizes": 2}, "unknown kind of branch"),
        ("act", "branches", {"kind": "concat", "sizes": [4, 4]}, "only a convolution or linear"),
        ("c0", "branches", {"kind": "concat", "sizes": [4, 10**12]}, "cannot be split"),
        ("c0", "branches", {"kind": "concat", "sizes": [4, "4"]}, "cannot be made"),
        ("act", "skip", {"source": "akt"}, "unknown module 'akt'"),
        ("act", "skip", {"inputs": 1, "outputs": 1, "spatial": 2}, "cannot be made"),
        ("act", "skip", {"source": "c0", "inputs": 10**6, "outputs": 10**6, "spatial": 2}, "no skip connection leads"),
    ],
)
def test_what_a_damaged_journal_could_say_is_refused_in_one_line(
    into: str, block: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        insert(net(), into, block, options)
    assert "\n" not in str(error.value)


def test_the_table_names_only_modules() -> None:
    assert all(issubclass(each, nn.Module) for each in BLOCKS.values())


def test_submodule_suggests_names_of_the_same_depth() -> None:
    with pytest.raises(
        UserError, match=r"did you mean 'stage2\.1'.* Known: stage1\.0, stage1\.1, stage2\.0, stage2\.1$"
    ):
        submodule(net("blocks"), "stage2.l")


# Copies.


def test_a_fresh_copy_is_drawn_anew_and_leaves_the_users_hooks_behind() -> None:
    seen = []
    module = net("blocks").stage1[1]
    before = copy.deepcopy(module.state_dict())
    module.register_forward_hook(lambda *_: seen.append(1))
    put_behind(module, ConvResidual(8))
    made = fresh_copy(module).eval()
    made(torch.zeros(1, 8, 2, 2))
    assert not seen
    assert not torch.equal(made.conv1.weight, module.conv1.weight)
    assert len(made._forward_hooks) == 1  # growth's own
    for name, value in before.items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)


def test_half_a_skip_connection_is_not_copied() -> None:
    model = net("blocks")
    insert(model, "stage2", "skip", {"source": "stage1", "inputs": 8, "outputs": 12, "spatial": 2})
    with pytest.raises(UserError, match="begins elsewhere"):
        copied(model.stage2)
    assert not copied(model.stage1)._forward_hooks  # it would keep a value that nothing takes
    whole = copy.deepcopy(model)
    assert difference(model, whole) == 0


def test_a_stash_gives_its_value_once_and_is_copied_empty() -> None:
    stash = Stash()
    stash.value = torch.ones(1, requires_grad=True) * 2  # not a leaf, which deepcopy would refuse
    for same in (copy.deepcopy(stash), pickle.loads(pickle.dumps(stash))):
        assert same.value is None
    assert stash.take() == 2
    with pytest.raises(UserError, match="ran without the one where it begins"):
        stash.take()


@pytest.mark.parametrize(
    ("given_shape", "wanted_shape", "spatial"),
    [
        ((2, 4, 8, 8), (2, 4, 8, 8), 2),
        ((2, 4, 8, 8), (2, 6, 4, 3), 2),
        ((2, 4, 3, 3), (2, 6, 6, 6), 2),
        ((2, 4, 9), (2, 4, 5), 1),
        ((2, 4, 3, 4, 5), (2, 2, 3, 2, 1), 3),
        ((2, 4, 8, 8), (2, 6), 0),
        ((2, 4, 3, 4, 5), (2, 4), 0),
        ((2, 4), (2, 6), 0),
        ((2, 5, 4), (2, 5, 6), 0),
    ],
)
def test_a_skip_connection_fits_one_shape_to_another(
    given_shape: tuple[int, ...], wanted_shape: tuple[int, ...], spatial: int
) -> None:
    inputs, outputs = (shape[1 if spatial else -1] for shape in (given_shape, wanted_shape))
    if len(given_shape) > 2 and len(wanted_shape) == 2:
        inputs = given_shape[1]
    stash, output = Stash(), torch.randn(wanted_shape)
    skip = Skip(stash, inputs, outputs, spatial)
    stash.value = torch.ones(given_shape)
    torch.testing.assert_close(skip.join((), {}, output), output, rtol=0, atol=0)
    nn.init.ones_(skip.gate)
    stash.value = torch.ones(given_shape)
    expected = torch.ones(outputs) if inputs == outputs else skip.project.weight.flatten(1).sum(1)
    shape = (1, -1, *[1] * (len(wanted_shape) - 2)) if spatial else (*[1] * (len(wanted_shape) - 1), -1)
    torch.testing.assert_close(skip.join((), {}, output), output + expected.reshape(shape))
    assert stash.value is None


def test_images_reach_a_grown_network_at_any_size() -> None:
    model, grown = net(), net()
    insert(grown, "act", "residual", {"features": 8})
    for size in (4, 11, 17):
        assert difference(model, grown, images(1, size)) == 0
