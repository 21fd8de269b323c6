"""The engine against one backward pass at a time in float64, and against torch.func, over many kinds of network."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.gradients import GradientEngine, GradientFallbackWarning, contract, per_sample_gradients, plan

TOLERANCE = 1e-9
NAMES = ["small", "seed-cnn", "mlp", "grouped", "volumes", "signals", "norms", "residual", "transformer", "tied"]
NAMES += ["tied-functionally", "used-twice", "in-place", "windows", "attention"]
WITH_CLOSED_FORMS_ONLY = [name for name in NAMES if name not in ("transformer", "tied-functionally")]
RESNET18 = pytest.param("resnet18", marks=pytest.mark.slow)
SOME_LAYERS = {"resnet18": ["conv1", "bn1", "layer1", "layer2.0.downsample", "fc"]}


def gradients(model: nn.Module, x: Tensor, labels: Tensor | str, **options: object) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientFallbackWarning)
        return per_sample_gradients(model, x, labels, **options)


@pytest.mark.parametrize("name", [*NAMES, RESNET18])
def test_equals_one_backward_pass_at_a_time(name, build, loop_gradients, relative_error) -> None:
    case = build(name)
    found = gradients(case.model, case.x, case.labels)
    assert {key: rows.shape for key, rows in found.items()} == {
        key: (len(case.x), *parameter.shape) for key, parameter in case.model.named_parameters()
    }
    assert relative_error(found, loop_gradients(case.model, case.x, case.labels)) <= TOLERANCE


@pytest.mark.parametrize("name", [*NAMES, RESNET18])
def test_all_labels_are_each_label(name, build, loop_gradients, relative_error) -> None:
    case = build(name)
    found = gradients(case.model, case.x, "all", layers=SOME_LAYERS.get(name))
    for label in (0, case.classes - 1):
        expected = loop_gradients(case.model, case.x, torch.full((len(case.x),), label))
        expected = {key: expected[key] for key in found}
        assert relative_error({key: rows[:, label] for key, rows in found.items()}, expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["seed-cnn", "grouped", "norms", "attention"])
def test_equals_torch_func(name, build, func_gradients, relative_error) -> None:
    case = build(name)
    found = gradients(case.model, case.x, case.labels)
    assert relative_error(found, func_gradients(case.model, case.x, case.labels)) <= TOLERANCE


@pytest.mark.parametrize("name", WITH_CLOSED_FORMS_ONLY)
def test_closed_forms_cover(name, build) -> None:
    """No `GradientFallbackWarning`: warnings are errors in these tests."""
    case = build(name)
    per_sample_gradients(case.model, case.x, case.labels)


@pytest.mark.slow
def test_resnet18_at_64_pixels(build, loop_gradients, relative_error) -> None:
    case = build("resnet18", size=64, images=2)
    found = per_sample_gradients(case.model, case.x, case.labels)
    assert relative_error(found, loop_gradients(case.model, case.x, case.labels)) <= TOLERANCE


# --- negative controls: these comparisons can fail ---------------------------------------------------------------


def test_a_wrong_label_is_seen(build, loop_gradients, relative_error) -> None:
    case = build("seed-cnn")
    wrong = case.labels.clone()
    wrong[-1] = (wrong[-1] + 1) % case.classes
    found = gradients(case.model, case.x, wrong)
    assert relative_error(found, loop_gradients(case.model, case.x, case.labels)) > 1e-3


def drop_all_but_the_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    real = contract.contract

    def overwrite(layer, x, delta, slots, out, written, scratch, **how) -> None:
        real(layer, x, delta, slots, out, set(), scratch, **how)
        written.update(slots.values())

    monkeypatch.setattr(contract, "contract", overwrite)


def test_a_dropped_use_is_seen(build, loop_gradients, relative_error, monkeypatch) -> None:
    case = build("used-twice")
    drop_all_but_the_last_use(monkeypatch)
    monkeypatch.setattr(plan, "_agreeing", lambda found, reference: set(found))
    engine_without_trial = gradients(case.model, case.x, case.labels)
    assert relative_error(engine_without_trial, loop_gradients(case.model, case.x, case.labels)) > 1e-3


def test_the_trial_sends_a_wrong_closed_form_to_torch_func(build, loop_gradients, relative_error, monkeypatch) -> None:
    case = build("used-twice")
    drop_all_but_the_last_use(monkeypatch)
    with pytest.warns(GradientFallbackWarning, match=r"shared\.weight"):
        found = per_sample_gradients(case.model, case.x, case.labels)
    assert relative_error(found, loop_gradients(case.model, case.x, case.labels)) <= TOLERANCE


# --- the slower ways ---------------------------------------------------------------------------------------------


def test_what_has_no_closed_form_is_named_once(build) -> None:
    case = build("transformer")
    with pytest.warns(GradientFallbackWarning) as caught:
        per_sample_gradients(case.model, case.x, "all", layers=["encoder", "embedding"])
    (message,) = [str(warning.message) for warning in caught]
    assert "self_attn.in_proj_weight" in message
    assert "linear1" not in message
    assert "embedding" not in message
    assert "torch.func" in message


class Branching(nn.Module):
    """Its path depends on the numbers, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 1.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(row * self.scale if float(row.sum()) > 0 else row) for row in x])


def test_the_loop_takes_over_where_torch_func_cannot(loop_gradients, relative_error) -> None:
    torch.manual_seed(0)
    model, x, labels = Branching().double(), torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    x[0], x[1] = x[0].abs(), -x[1].abs()
    with pytest.warns(GradientFallbackWarning, match="one backward pass at a time"):
        found = per_sample_gradients(model, x, labels)
    assert relative_error(found, loop_gradients(model, x, labels)) <= TOLERANCE


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


@pytest.mark.parametrize("length", [6, 7])
def test_sequence_first_layers_go_through_torch_func(length, loop_gradients, relative_error) -> None:
    torch.manual_seed(0)
    model, x, labels = SequenceFirst().double(), torch.randn(6, length, 5).double(), torch.arange(6) % 4
    with pytest.warns(GradientFallbackWarning, match=r"inner\.weight, inner\.bias: through torch\.func"):
        found = per_sample_gradients(model, x, labels)
    assert relative_error(found, loop_gradients(model, x, labels)) <= TOLERANCE


class Times(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.number


def test_a_parameter_that_is_a_single_number(loop_gradients) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), Times(), nn.Linear(7, 4)).double()
    x, labels = torch.randn(6, 5).double(), torch.arange(6) % 4
    with pytest.warns(GradientFallbackWarning, match=r"2\.number: through torch\.func"):
        found = per_sample_gradients(model, x, labels)
    torch.testing.assert_close(found, loop_gradients(model, x, labels))


def test_a_parametrised_weight_goes_through_torch_func(loop_gradients, relative_error) -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    model, x, labels = nn.Sequential(nn.Tanh(), layer).double(), torch.randn(5, 6).double(), torch.arange(5) % 4
    with pytest.warns(GradientFallbackWarning, match="original0"):
        found = per_sample_gradients(model, x, labels)
    assert relative_error(found, loop_gradients(model, x, labels)) <= TOLERANCE


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of images, as in ConvNeXt: a layer type whose usual layout is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("size", [4, 6])
def test_an_overridden_forward_goes_through_torch_func(size, loop_gradients, relative_error) -> None:
    """Also where the images' width happens to be the number of channels, so that the shapes alone look right."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 1), ChannelNorm(4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model, x, labels = nn.Sequential(*layers).double(), torch.randn(4, 3, size, size).double(), torch.arange(4) % 3
    with pytest.warns(GradientFallbackWarning, match=r"gradients of 1\.weight, 1\.bias: through torch\.func"):
        found = per_sample_gradients(model, x, labels)
    assert relative_error(found, loop_gradients(model, x, labels)) <= TOLERANCE


def test_a_last_layer_of_zeros_hides_nothing(loop_gradients, relative_error) -> None:
    """All gradients before it are zero at first; the plan must hold when the weights are no longer zero."""
    torch.manual_seed(0)
    model, x, labels = SequenceFirst().double(), torch.randn(6, 6, 5).double(), torch.arange(6) % 4
    nn.init.zeros_(model.head.weight)
    with pytest.warns(GradientFallbackWarning, match=r"inner\.weight"):
        engine = GradientEngine(model, x)
    assert not dict(engine.gradients(x, labels))["inner.weight"].any()
    nn.init.normal_(model.head.weight)
    found = {name: rows.clone() for name, rows in engine.gradients(x, labels)}
    expected = {name: rows.flatten(1) for name, rows in loop_gradients(model, x, labels).items()}
    assert relative_error(found, expected) <= TOLERANCE


class Overwriting(nn.Module):
    """Writes into a layer's input after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x)
        answer = self.head(hidden)
        with torch.no_grad():
            hidden.mul_(3)
        return answer + hidden[:, :3]


def test_an_input_that_is_overwritten_is_refused() -> None:
    torch.manual_seed(0)
    model, x, labels = Overwriting(), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    with pytest.raises(UserError, match=r"cannot be differentiated: .* modified by an inplace operation"):
        per_sample_gradients(model, x, labels, layers=["head"])
    found = per_sample_gradients(model, x, labels, parameters=["head.bias"])["head.bias"]
    expected = model(x).softmax(1).detach() - F.one_hot(labels, 3)
    assert torch.allclose(found, expected, rtol=1e-5)


# --- forms of input ----------------------------------------------------------------------------------------------


def test_strided_and_channels_last_images(build, loop_gradients, relative_error) -> None:
    case = build("seed-cnn")
    expected = loop_gradients(case.model, case.x, case.labels)
    strided = torch.stack([case.x, case.x], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert relative_error(gradients(case.model, strided, case.labels), expected) <= TOLERANCE
    model = case.model.to(memory_format=torch.channels_last)
    last = case.x.to(memory_format=torch.channels_last)
    assert relative_error(gradients(model, last, case.labels), expected) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near_float64(dtype, build, loop_gradients, relative_error) -> None:
    case = build("small")
    expected = loop_gradients(case.model, case.x, case.labels)
    found = gradients(case.model.to(dtype), case.x.to(dtype), case.labels)
    assert {rows.dtype for rows in found.values()} == {dtype}
    error = relative_error({key: rows.double() for key, rows in found.items()}, expected)
    assert error <= 20 * torch.finfo(dtype).eps


def test_a_sure_network_keeps_its_digits(build) -> None:
    """Where p is nearly 1, p − 1 in float32 would be zero or wrong by half; the softmax is taken in float64."""
    case = build("small")
    model, x = case.model.float(), case.x.float()
    with torch.no_grad():
        model[-1].bias[2] += 18
    labels = torch.full((len(x),), 2)
    found = per_sample_gradients(model, x, labels, parameters=["4.bias"])["4.bias"]
    expected = model(x).double().softmax(1).detach() - F.one_hot(labels, 5)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=0)
