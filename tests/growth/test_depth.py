"""Deepening: the same function on any network, by each kind; what cannot be is refused and leaves all as it was."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import difference, images, net
from torch import Tensor, nn

from postgrad._loading import load
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.growth import depth
from postgrad.growth._places import surroundings
from postgrad.growth.depth import deepen
from postgrad.growth.journal import journal_of, regrow
from postgrad.models.checkpoints import save
from postgrad.models.export import export, load_exported
from postgrad.models.registry import create_model

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
)
RESIDUAL = [
    ("plain", "act", "residual"),
    ("plain", "c1", "residual"),
    ("plain", "fc", "residual_features"),
    ("plain", "drop", "residual_features"),
    ("without normalisation", "act", "residual"),
    ("blocks", "stage1", "copy"),
    ("blocks", "stage2", "copy"),
    ("tokens", "layers", "copy"),
    ("tokens", "layers.0", "residual_tokens"),
    ("1-D", "act", "residual"),
    ("vgg", "0", "residual"),
    ("vgg", "3", "residual_features"),
    ("densenet", "features.denseblock1.denselayer1", "residual"),
    ("vit", "encoder.layers", "copy"),
]
IDENTITY = [
    ("plain", "n0", "before", "eval"),
    ("plain", "act", "after", "eval"),
    ("without normalisation", "c0", "before", "train"),
    ("1-D", "act", "after", "eval"),
]
SLOW_RESIDUAL = [
    ("blocks", "stage2.0", "residual"),
    ("tokens", "layers.0.linear2", "residual_tokens"),
    ("densenet", "features.transition1", "residual"),
    ("vit", "encoder.layers.encoder_layer_0.mlp", "residual_tokens"),
    ("vit", "conv_proj", "residual"),
    ("3-D", "norm", "residual"),
    ("mobilenet", "features.3", "residual"),
    ("resnet", "layer2", "copy"),
    ("resnet", "layer4", "residual"),
    ("bottlenecks", "layer2", "copy"),
    ("densenet", "features", "residual"),
    ("mobilenet", "features", "residual"),
]
SLOW_IDENTITY = [
    ("plain", "fc", "gated", "train"),
    ("vgg", "0.0", "gated", "train"),
    ("tokens", "layers.0", "gated", "train"),
    ("plain", "drop", "after", "train"),
    ("vgg", "1", "after", "eval"),
    ("3-D", "norm", "before", "eval"),
    ("mobilenet", "features.3", "gated", "train"),
    ("mobilenet", "features.0", "after", "eval"),
    ("resnet", "layer2", "after", "eval"),
    ("resnet", "bn1", "before", "eval"),
    ("resnet", "conv1", "gated", "train"),
    ("bottlenecks", "layer1.0.conv2", "gated", "train"),
    ("densenet", "features.conv0", "gated", "train"),
    ("vit", "conv_proj", "gated", "train"),
]


def slow(cases: list[Any]) -> list[Any]:
    return [pytest.param(*each, marks=pytest.mark.slow) for each in cases]


@pytest.mark.parametrize(("name", "after", "block"), [*RESIDUAL, *slow(SLOW_RESIDUAL)])
def test_residual_deepening_changes_nothing_in_either_mode(name: str, after: str, block: str) -> None:
    before, model = net(name), net(name)
    certificate = deepen(model, after, example=images())
    assert certificate.mode == "train"
    assert certificate.exact
    assert certificate.max_error <= 1e-9
    assert [each["block"] for each in certificate.journal[-1]["insertions"]] == [block]
    assert difference(before, model) <= 1e-9
    assert difference(before, model, train=True) <= 1e-9
    assert len(list(model.parameters())) > len(list(before.parameters()))
    assert dict(before.named_parameters()).keys() < dict(model.named_parameters()).keys()


@pytest.mark.parametrize(("name", "after", "form", "mode"), [*IDENTITY, *slow(SLOW_IDENTITY)])
def test_an_identity_layer_stands_as_its_surroundings_allow(name: str, after: str, form: str, mode: str) -> None:
    before, model = net(name), net(name)
    certificate = deepen(model, after, kind="identity", example=images())
    (insertion,) = certificate.journal[-1]["insertions"]
    assert (insertion["options"]["form"], certificate.mode) == (form, mode)
    assert difference(before, model) <= 1e-9
    assert (difference(before, model, train=True) <= 1e-9) == (mode == "train")


def test_the_check_can_fail() -> None:
    before, model = net(), net()
    deepen(model, "act", example=images())
    nn.init.constant_(model.act.grown[0].body[4].bias, 1e-6)
    assert difference(before, model) > 1e-7


def test_a_layer_in_the_wrong_place_is_refused_and_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate decides, not the analysis: one that takes any place for one behind a ReLU gets nowhere."""
    monkeypatch.setattr(depth, "surroundings", lambda *_: (True, False))
    model = net().train()
    optimizer = torch.optim.Adam(model.parameters())
    before, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match="deepen c1: the network would no longer compute the same"):
        deepen(model, "c1", kind="identity", example=images(), optimizer=optimizer)
    assert list(model.named_parameters()) == list(before.items())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.c1._forward_hooks
    assert not hasattr(model.c1, "grown")
    assert optimizer.param_groups[0]["params"] == list(before.values())
    assert journal_of(model) == ()
    assert model.training


@pytest.mark.parametrize(
    ("after", "expected"),
    [("n0", (False, True)), ("c0", (False, False)), ("drop", (True, False))],
)
def test_the_graph_tells_where_a_relu_stands(after: str, expected: tuple[bool, bool]) -> None:
    assert surroundings(net(), after, images()) == expected


class Signs(nn.Module):
    """What is ≥ 0 on the example without being so by structure, or by structure without looking so."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.inner, self.what = nn.Identity(), what
        self.shift = nn.Parameter(torch.full((1,), 5.0))

    def forward(self, x: Tensor) -> Tensor:
        y = {
            "shifted": lambda: x + self.shift,
            "relu6": lambda: nn.functional.relu6(x),
            "clamped below zero": lambda: x.clamp(min=-0.5),
            "sum": lambda: torch.relu(x) + torch.sigmoid(x) * 2,
            "minus": lambda: torch.relu(x) - 1e-9,
            "pooled": lambda: nn.functional.max_pool2d(torch.relu(x), 3, padding=1),
            "joined": lambda: torch.cat([torch.relu(x), torch.exp(x)], 1),
            "joined with itself": lambda: torch.cat([torch.relu(x), x], 1),
        }[self.what]()
        return self.inner(y).flatten(1)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        *[(each, True) for each in ("relu6", "sum", "pooled", "joined")],
        *[(each, False) for each in ("shifted", "clamped below zero", "minus", "joined with itself")],
    ],
)
def test_the_sign_is_decided_by_structure_and_not_by_luck(what: str, expected: bool) -> None:
    assert surroundings(Signs(what), "inner", images())[0] == expected


def test_the_sign_of_a_graph_that_cannot_be_read_is_open() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(x)
            return x * 2 if x.sum() > 1e9 else x

    assert surroundings(Fickle(), "act", images()) == (False, False)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 50),
    channels=st.sampled_from([1, 3, 65]),
    n=st.integers(1, 3),
    scale=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 50.0, 1e4]),
)
def test_a_calibrated_normalisation_is_the_identity_far_beyond_its_precision(
    seed: int, channels: int, n: int, scale: float
) -> None:
    x = torch.randn(n, channels, 3, 3, generator=torch.Generator().manual_seed(seed)) * scale + 1
    norm = nn.BatchNorm2d(channels)
    depth._calibrate(norm, x, identity=True)
    y = copy.deepcopy(norm).double().eval()(x.double())
    assert (y - x).abs().max() <= 1e-10 * max(scale, 1e-2)
    # It is set to the statistics of the example: training mode on the same images changes next to nothing.
    train = copy.deepcopy(norm).double().train()(x.double())
    assert (train - x).abs().max() <= 0.02 * max(scale, 0.01)


def test_calibration_by_rounding_alone_would_not_do() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm1d(64)
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    with torch.no_grad():
        norm.running_var.copy_(variance)
        norm.running_mean.copy_(mean)
        norm.bias.copy_(mean)
        norm.weight.copy_((variance + norm.eps).sqrt())
    y = norm.double().eval()(x.double())
    assert (y - x).abs().max() > 1e-8


# What survives.


def test_hooks_names_and_modes_survive() -> None:
    model = net()
    model.c0.eval()
    model.train()
    model.n0.eval()
    seen: list[str] = []
    model.act.register_forward_hook(lambda *_: seen.append("mine"))
    names = list(dict(model.named_parameters()))
    modes = {name: module.training for name, module in model.named_modules()}
    state, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    certificate = deepen(model, "act", example=images())
    assert [name for name in dict(model.named_parameters()) if "grown" not in name] == names
    assert {name: model.get_submodule(name).training for name in modes} == modes
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), chance)
    seen.clear()
    model(images())
    assert seen == ["mine"]
    assert certificate.journal == journal_of(model)


@pytest.mark.parametrize("kind", ["residual", "identity"])
def test_growth_upon_growth(kind: Any) -> None:
    before, model = net(), net()
    for after in ("act", "act"):
        deepen(model, after, kind=kind if after == "act" else "residual", example=images())
    assert len(model.act.grown) == 2
    assert len(journal_of(model)) == 2
    assert difference(before, model) <= 1e-9


def test_the_seed_decides_the_draw() -> None:
    grown = [net() for _ in range(3)]
    for model, seed in zip(grown, (0, 0, 1), strict=True):
        deepen(model, "act", example=images(), seed=seed)
    first, second, other = (model.act.grown[0].body[0].weight for model in grown)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_optimizer_trains_what_is_new_the_gate_first() -> None:
    model = net().train()
    decayed = [each for each in model.parameters() if each.dim() > 1]
    others = [each for each in model.parameters() if each.dim() <= 1]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 1e-4}, {"params": others}], lr=0.1, momentum=0.9)
    deepen(model, "c1", example=images(), optimizer=optimizer)
    body = model.c1.grown[0].body
    groups = [{id(each) for each in group["params"]} for group in optimizer.param_groups]
    assert id(body[0].weight) in groups[0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    old = copy.deepcopy(body.state_dict())
    for step in range(2):
        model(images(4)).square().mean().backward()
        if not step:
            assert body[4].weight.grad.abs().max() > 0
            assert body[0].weight.grad.abs().max() == 0
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(body[4].weight, old["4.weight"])
    assert not torch.equal(body[3].weight, old["3.weight"])


def test_a_grown_network_is_saved_and_built_again(tmp_path: Path) -> None:
    model = create_model("seed-cnn", num_classes=4, image_size=8)
    x = images(2, 8)
    for after, kind in (("c1", "residual"), ("c0", "identity"), ("l1", "residual")):
        deepen(model, after, kind=kind, example=x)  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.1)
    model.eval()
    save(model, tmp_path / "net", preprocess=Preprocessing(), class_names=list("abcd"))
    torch.testing.assert_close(load(tmp_path / "net")(x), model(x), rtol=0, atol=0)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(same(x), model(x), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_grown_network_is_exported(tmp_path: Path, format: str) -> None:
    model = net()
    for after, kind in (("act", "residual"), ("n0", "identity"), ("c1", "identity"), ("fc", "residual")):
        deepen(model, after, kind=kind, example=images())  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.1)
    file = tmp_path / f"net.{format}"
    export(model, file, format=format, example=images())
    torch.testing.assert_close(load_exported(file)(images(3)), model(images(3)), rtol=1e-4, atol=1e-4)


def test_regrowing_needs_the_journal_alone() -> None:
    model, other = net("tokens"), net("tokens", seed=5)
    for after in ("layers", "layers.0.linear1", "fc"):
        deepen(model, after, example=images())
    for entry in journal_of(model):
        regrow(other, **entry)
    other.load_state_dict(model.state_dict())
    assert difference(model, other) == 0


# What is refused.


@pytest.mark.parametrize(
    ("name", "after", "message"),
    [
        ("blocks", "stage1.0.relu", "is called 2 times in one forward pass"),
        ("tokens", "layers.0.self_attn.out_proj", "does not run in the network's forward pass"),
        ("tokens", "layers.0.self_attn", "gives tuple, not one tensor"),
        ("densenet", "features.denseblock1", "runs its own children"),
        ("plain", "akt", "unknown module 'akt': did you mean 'act'"),
        ("plain", "", "unknown module ''"),
    ],
)
def test_places_where_no_block_can_be_are_refused(name: str, after: str, message: str) -> None:
    model = net(name)
    before = list(model.named_modules())
    with pytest.raises(UserError, match=message) as error:
        deepen(model, after, example=images())
    assert "\n" not in str(error.value)
    assert list(model.named_modules()) == before


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="unknown kind of deepening 'identty': did you mean 'identity'"):
        deepen(net(), "act", kind="identty", example=images())  # type: ignore[arg-type]


def test_whole_numbers_are_no_place_for_a_block() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    tokens = torch.arange(4).reshape(1, 4)
    with pytest.raises(UserError, match=r"gives torch\.int64 of shape"):
        deepen(model, "0", example=tokens)
    assert deepen(model, "1", example=tokens).journal[-1]["insertions"][0]["block"] == "residual_tokens"


# Other ways to run it.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself does
@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize(("name", "after", "kind"), [("plain", "act", "residual"), ("tokens", "layers.0", "identity")])
def test_it_is_compiled(name: str, after: str, kind: Any) -> None:
    model = net(name)
    deepen(model, after, kind=kind, example=images())
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.1)
    compiled = torch.compile(model, backend="aot_eager" if name == "tokens" else "inductor")
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_it_goes_where_the_network_is(device: str) -> None:
    model = net().to(device)
    deepen(model, "act", kind="identity", example=images().to(device))
    deepen(model, "act", example=images().to(device))
    assert {each.device.type for each in (*model.parameters(), *model.buffers())} == {device}
    with torch.autocast(device, torch.bfloat16):
        assert model(images().to(device)).isfinite().all()


def test_a_batch_of_one_and_channels_last_images_will_do() -> None:
    x = images(1).contiguous(memory_format=torch.channels_last)
    model = net()
    assert deepen(model, "act", example=x).max_error <= 1e-9
