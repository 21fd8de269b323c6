"""Losses of distillation against published formulas in float64, and what must hold at their edges."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad import create_model, widen
from postgrad.errors import UserError
from postgrad.growth.depth import deepen
from postgrad.methods.distillation import (
    PUBLISHED_WEIGHTS,
    DistillationLoss,
    attention_transfer_loss,
    distillation_loss,
    feature,
)

KINDS = ("kd", "dkd", "logit-mse")


def draw(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def some_labels(count: int, classes: int, *, seed: int = 1) -> Tensor:
    """Class indices, some of them −1."""
    return torch.randint(-1, classes, (count,), generator=torch.Generator().manual_seed(seed))


def reference(
    z: Tensor,
    t: Tensor,
    y: Tensor,
    *,
    kind: str,
    temperature: float,
    hard: float,
    soft: float,
    alpha: float,
    beta: float,
) -> float:
    """The published formulas image by image, by probabilities in float64; no logsumexp, no masks."""
    right, far = [], []
    for ours, theirs, label in zip(z.double(), t.double(), y.tolist(), strict=True):
        if label >= 0:
            right.append(float(-ours.softmax(0)[label].log()))
        p, q = (theirs / temperature).softmax(0), (ours / temperature).softmax(0)
        if kind == "kd":
            far.append(temperature**2 * float((p * (p / q).log()).sum()))
        elif kind == "logit-mse":
            far.append(float((ours - theirs).square().mean()))
        else:
            target = label if label >= 0 else int(theirs.argmax())
            others = [number for number in range(len(p)) if number != target]
            p_t, q_t = float(p[target]), float(q[target])
            binary = [(p_t, q_t), (float(p[others].sum()), float(q[others].sum()))]
            tckd = sum(a * float(torch.tensor(a / b, dtype=torch.float64).log()) for a, b in binary)
            p_o, q_o = p[others] / p[others].sum(), q[others] / q[others].sum()
            far.append(temperature**2 * (alpha * tckd + beta * float((p_o * (p_o / q_o).log()).sum())))
    return hard * sum(right) / max(len(right), 1) + soft * sum(far) / max(len(far), 1)


@settings(max_examples=80)
@given(
    count=st.integers(0, 5),
    classes=st.integers(2, 12),
    kind=st.sampled_from(KINDS),
    temperature=st.floats(0.5, 8),
    weights=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2), st.floats(0, 2), st.floats(0, 8)),
    seed=st.integers(0, 99),
)
def test_value_is_that_of_the_published_formula(
    count: int, classes: int, kind: Any, temperature: float, weights: tuple[float, ...], seed: int
) -> None:
    z, t = draw(count, classes, seed=seed), draw(count, classes, seed=seed + 1)
    y = some_labels(count, classes, seed=seed + 2)
    named = dict(zip(("hard", "soft", "alpha", "beta"), weights, strict=True))
    value = distillation_loss(z, t, y, kind=kind, temperature=temperature, **named)
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(reference(z, t, y, kind=kind, temperature=temperature, **named), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_finite_differences(kind: Any) -> None:
    z, t, y = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_(), torch.tensor([2, -1, 0])
    assert torch.autograd.gradcheck(lambda ours: distillation_loss(ours, t, y, kind=kind, hard=0.3), (z,))
    distillation_loss(z, t, y, kind=kind).backward()
    assert t.grad is None


def test_kd_is_the_sum_of_the_parts_that_dkd_weighs() -> None:
    """KD = TCKD + (1 − p_target) · NCKD (eq. 6): a weight of β that is not 1 − p is another loss."""
    z, t, y = draw(1, 6), draw(1, 6, seed=1), torch.tensor([3])
    rest = float(1 - (t / 2).softmax(1)[0, 3])
    kd = distillation_loss(z, t, y, kind="kd", temperature=2, hard=0, soft=1)
    dkd = distillation_loss(z, t, y, kind="dkd", temperature=2, hard=0, soft=1, alpha=1, beta=rest)
    torch.testing.assert_close(kd, dkd, rtol=1e-12, atol=0)
    other = distillation_loss(z, t, y, kind="dkd", temperature=2, hard=0, soft=1, alpha=1, beta=1)
    assert not torch.isclose(kd, other, rtol=1e-3)


def test_kd_of_a_high_temperature_is_the_mean_square_of_centred_logits() -> None:
    z, t, y = draw(4, 5), draw(4, 5, seed=1), torch.full((4,), -1)
    far = (z - z.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    value = distillation_loss(z, t, y, temperature=1e4, hard=0, soft=1)
    torch.testing.assert_close(value, far.square().sum(1).mean() / (2 * 5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_distance_of_equal_logits_is_exactly_zero(kind: Any, dtype: torch.dtype) -> None:
    z = draw(50, 10, dtype=dtype, scale=10)
    assert float(distillation_loss(z, z.clone(), some_labels(50, 10), kind=kind, hard=0, soft=1)) == 0
    assert float(distillation_loss(z, z + draw(50, 10, seed=9, dtype=dtype), some_labels(50, 10), kind=kind)) > 0


@pytest.mark.parametrize("size", [30.0, 200.0, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_dkd_stays_finite_and_precise_where_the_target_is_certain(size: float, sign: int) -> None:
    """Logits (±s, 0, 1): p_target goes to 1 or to 0; what is to be had in closed form is compared."""
    t = torch.tensor([[sign * size, 0.0, 1.0]])
    z = torch.tensor([[-sign * size, 1.0, 0.0]]).requires_grad_()
    y = torch.tensor([0])
    tckd, nckd = (
        distillation_loss(z, t, y, kind="dkd", temperature=1, hard=0, soft=1, alpha=a, beta=1 - a) for a in (1.0, 0.0)
    )
    rest = torch.logsumexp(torch.tensor([0.0, 1.0], dtype=torch.float64), 0)
    # With p = 1 (or 0) the binary KL is −log q: the other's logit is 2·s away, less the weight of the two others.
    expected = float(F.softplus(torch.tensor(size, dtype=torch.float64) + sign * rest))
    assert float(tckd.detach()) == pytest.approx(expected, rel=1e-5)
    tanh = float(torch.tanh(torch.tensor(0.5, dtype=torch.float64)))  # KL of (σ(−1), σ(1)) and (σ(1), σ(−1))
    assert float(nckd.detach()) == pytest.approx(tanh, rel=1e-5)
    assert torch.autograd.grad(tckd + nckd, z)[0].isfinite().all()


def test_the_usual_form_of_dkd_fails_there() -> None:
    """The negative control of the test above: logarithms of summed probabilities."""
    q = torch.tensor([[-200.0, 1.0, 0.0]]).softmax(1)
    assert not torch.log(q[0, 0]).isfinite()


@pytest.mark.parametrize("kind", ["kd", "dkd"])
def test_a_class_that_the_teacher_rules_out_has_no_part(kind: Any) -> None:
    t = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, -torch.inf, 0.0]])
    z = draw(2, 3, dtype=torch.float32).requires_grad_()
    value = distillation_loss(z, t, torch.tensor([0, 0]), kind=kind)
    assert value.isfinite()
    assert torch.autograd.grad(value, z)[0].isfinite().all()
    like = distillation_loss(z, t.clamp(min=-1e4), torch.tensor([0, 0]), kind=kind)
    torch.testing.assert_close(value, like)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_a_label_have_no_hard_term(kind: Any) -> None:
    z, t = draw(6, 4), draw(6, 4, seed=1)
    none = torch.full((6,), -1)
    assert float(distillation_loss(z, t, none, kind=kind, hard=1, soft=0)) == 0
    alone = distillation_loss(z, t, none, kind=kind, hard=0, soft=1)
    assert torch.equal(distillation_loss(z, t, none, kind=kind, hard=1, soft=1), alone)
    some = torch.tensor([1, -1, 3, -1, -1, 0])
    value = distillation_loss(z, t, some, kind=kind, hard=1, soft=0, label_smoothing=0.1)
    kept = some >= 0
    torch.testing.assert_close(value, F.cross_entropy(z[kept], some[kept], label_smoothing=0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_layout_and_autocast_change_nothing(kind: Any) -> None:
    z, t, y = draw(8, 5, dtype=torch.float32), draw(8, 5, seed=1, dtype=torch.float32), some_labels(8, 5)
    expected = distillation_loss(z, t, y, kind=kind)
    turned = distillation_loss(z.T.contiguous().T, t.T.contiguous().T, y, kind=kind)
    torch.testing.assert_close(turned, expected)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distillation_loss(z, t, y, kind=kind)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, expected)
    half = distillation_loss(z.bfloat16(), t.bfloat16(), y, kind=kind)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, distillation_loss(z.bfloat16().float(), t.bfloat16().float(), y, kind=kind))


def test_weights_that_are_not_given_are_the_published_ones() -> None:
    z, t, y = draw(4, 3), draw(4, 3, seed=1), torch.tensor([0, 1, 2, 0])
    for kind in KINDS:
        hard, soft = PUBLISHED_WEIGHTS[kind]
        given_them: Any = {"kind": kind, "hard": hard, "soft": soft}
        assert torch.equal(distillation_loss(z, t, y, kind=kind), distillation_loss(z, t, y, **given_them))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"kind": "dk"}, "did you mean 'dkd'"),
        ({"temperature": 0.0}, "temperature: expected a number above 0"),
        ({"temperature": float("inf")}, "temperature"),
        ({"hard": -1.0}, "hard: expected a number of 0 or more"),
        ({"hard": 0.0, "soft": 0.0}, "nothing would be learnt"),
        ({"kind": "fitnet"}, "hint=layer2"),
        ({"hint": "layer2"}, "leave hints out"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        DistillationLoss(**options)


def test_shapes_that_do_not_fit_are_refused() -> None:
    z = draw(4, 3)
    with pytest.raises(UserError, match="both networks must know the same classes"):
        distillation_loss(z, draw(4, 5), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"labels \(N,\)"):
        distillation_loss(z, z, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UserError, match="one class only"):
        distillation_loss(z[:, :1], z[:, :1], torch.zeros(4, dtype=torch.int64), kind="dkd")
    with pytest.raises(UserError, match="compares features"):
        distillation_loss(z, z, torch.zeros(4, dtype=torch.int64), kind="fitnet")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="same resolution"):
        attention_transfer_loss(draw(2, 3, 4, 4), draw(2, 3, 2, 2))


# features


@settings(max_examples=30)
@given(count=st.integers(0, 3), ours=st.integers(1, 5), theirs=st.integers(1, 5), height=st.integers(1, 4))
def test_attention_is_that_of_the_formula(count: int, ours: int, theirs: int, height: int) -> None:
    s, t = draw(count, ours, height, 3).requires_grad_(), draw(count, theirs, height, 3, seed=1).requires_grad_()
    value = attention_transfer_loss(s.to(memory_format=torch.channels_last), t)
    far = []
    for a, b in zip(s.detach().numpy(), t.detach().numpy(), strict=True):
        q_s, q_t = (a**2).mean(0).ravel(), (b**2).mean(0).ravel()
        far.append(((q_s / (q_s @ q_s) ** 0.5 - q_t / (q_t @ q_t) ** 0.5) ** 2).mean())
    assert float(value.detach()) == pytest.approx(sum(far) / max(count, 1), rel=1e-9)
    value.backward()
    assert t.grad is None


def test_attention_takes_any_size_and_dead_maps() -> None:
    s = draw(2, 3, 4, 4, dtype=torch.float32)
    torch.testing.assert_close(attention_transfer_loss(s, 7 * s), torch.tensor(0.0))
    assert attention_transfer_loss(s, s.roll(1, 3)) > 0.001
    dead = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_transfer_loss(dead, s).backward()
    assert dead.grad is not None
    assert dead.grad.isfinite().all()


def test_fitnet_is_the_mean_square_behind_its_regressor() -> None:
    criterion = DistillationLoss(kind="fitnet", hint="a", hard=0.0, soft=1.0)
    z, y = draw(2, 3, dtype=torch.float32), torch.tensor([0, 1])
    ours, theirs = draw(2, 3, 6, 5, dtype=torch.float32).requires_grad_(), draw(2, 4, 4, 5, dtype=torch.float32)
    value = criterion(z, theirs, y, ours)
    regressor = criterion.regressor
    assert isinstance(regressor, nn.Conv2d)
    assert regressor.kernel_size == (3, 1)  # 6 − 3 + 1 = 4, 5 − 1 + 1 = 5
    torch.testing.assert_close(value, F.mse_loss(regressor(ours), theirs))
    value.backward()
    assert all(parameter.grad is not None for parameter in criterion.parameters())
    assert criterion(z, theirs, y, ours) == value  # made once
    with pytest.raises(UserError, match="must stay what it was"):
        criterion(z, draw(2, 4, 3, 3, dtype=torch.float32), y, ours)
    with pytest.raises(UserError, match="give the student's feature too"):
        criterion(z, theirs, y)
    flat = DistillationLoss(kind="fitnet", hint="a")
    flat(z, draw(2, 7), y, draw(2, 5))
    assert isinstance(flat.regressor, nn.Linear)
    with pytest.raises(UserError, match="an earlier hint"):
        DistillationLoss(kind="fitnet", hint="a")(z, draw(2, 4, 8, 8), y, draw(2, 4, 4, 4))


def test_a_loss_with_its_regressor_is_copied_pickled_and_restored() -> None:
    criterion = DistillationLoss(kind="fitnet", hint="a")
    parts = draw(2, 3), draw(2, 4), torch.tensor([0, 1]), draw(2, 5)
    value = criterion(*parts)
    assert torch.equal(copy.deepcopy(criterion)(*parts), value)
    assert torch.equal(pickle.loads(pickle.dumps(criterion))(*parts), value)
    other = DistillationLoss(kind="fitnet", hint="a")
    assert not torch.equal(other(*parts), value)
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other(*parts), value)
    assert "kind=fitnet" in repr(criterion)


def test_a_feature_is_kept_and_nothing_stays_on_the_network() -> None:
    network = create_model("resnet20", num_classes=3).eval()
    x = draw(2, 3, 8, 8, dtype=torch.float32)
    with feature(network, "layer2") as seen:
        network(x)
        assert seen.value is not None
        assert seen.value.shape[1] == 32
    assert not any(module._forward_hooks for module in network.modules())
    pickle.dumps(copy.deepcopy(network))
    with pytest.raises(ZeroDivisionError), feature(network, "layer2"):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(UserError, match="unknown layer 'layer22': did you mean"), feature(network, "layer22"):
        pass


# grown networks


@pytest.fixture(scope="module")
def parent() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double().eval()


def test_a_grown_network_is_at_no_distance_from_its_parent(parent: nn.Module) -> None:
    """Widening sums in another order: its KL is 0 to float64's error; the identity of deepening is exact."""
    x = draw(6, 3, 8, 8, scale=1)
    none = torch.full((6,), -1)
    wide = copy.deepcopy(parent)
    widen(wide, "0", to=9, example=x, seed=0)
    deep = copy.deepcopy(parent)
    deepen(deep, "3", example=x, kind="residual", seed=0)
    with torch.no_grad():
        far = [float(distillation_loss(child(x), parent(x), none, hard=0, soft=1)) for child in (wide, deep)]
        wide.get_submodule("0").weight.mul_(1.01)  # type: ignore[operator, union-attr]
        broken = float(distillation_loss(wide(x), parent(x), none, hard=0, soft=1))
    assert abs(far[0]) < 1e-14
    assert far[1] == 0
    assert broken > 1e-10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself does
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_exported_it_is_the_same(kind: Any) -> None:
    class Module(nn.Module):
        def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return distillation_loss(z, t, y, kind=kind)

    parts = draw(6, 5, dtype=torch.float32), draw(6, 5, seed=1, dtype=torch.float32), some_labels(6, 5)
    torch.compiler.reset()
    expected = Module()(*parts)
    torch.testing.assert_close(torch.compile(Module(), fullgraph=True)(*parts), expected)
    torch.testing.assert_close(torch.export.export(Module(), parts).module()(*parts), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_it_is_the_same(kind: Any) -> None:
    parts = draw(6, 5), draw(6, 5, seed=1), some_labels(6, 5)
    on_device = distillation_loss(*(part.cuda() for part in parts), kind=kind)
    torch.testing.assert_close(on_device.cpu(), distillation_loss(*parts, kind=kind))
