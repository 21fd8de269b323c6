"""The compiled gradient of PowerGrad is torch's in float64, for whatever logits, and is taken where it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from postgrad.methods import _powergrad_kernels as kernels
from postgrad.methods.powergrad import PowerGradCrossEntropy, powergrad_cross_entropy

INF, NAN = float("inf"), float("nan")


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def labels(classes: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Callable[..., Tensor], logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The gradient at the logits of a fixed weighted sum over whatever the loss returns."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, target, **options)
    upstream = torch.linspace(0.5, 2, max(1, value.numel()), dtype=value.dtype)[: value.numel()]
    return torch.autograd.grad(value, logits, upstream.view(value.shape))[0]


def check(found: Tensor, logits: Tensor, target: Tensor, alpha: float, **options: Any) -> None:
    """Compare with torch's own loss at αz, over α, in float64.

    A power 2^x of a float32 x is known to about |x| units in its last place, and none below 2^-126 is there.
    """

    def exact(z: Tensor, target: Tensor, **options: Any) -> Tensor:
        return F.cross_entropy(z * alpha, target, **options) / alpha

    expected = gradient(exact, logits.double(), target, **options)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=3e-5, atol=1e-6, equal_nan=True)
    worst = (found - expected).abs().nan_to_num().sum(1)
    assert (worst <= 3e-6).all()  # x · 2^-x is never large, so that a whole row is this close


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(0, 5),
    classes=st.integers(1, 200),
    alpha=st.floats(0.01, 1),
    scale=st.sampled_from((1e-6, 0.1, 3.0, 100.0, 1e4)),
    shift=st.sampled_from((0.0, 1e4, -1e4)),
    reduction=st.sampled_from(("none", "mean", "sum")),
    smoothing=st.sampled_from((0.0, 0.1, 1.0)),
    ignore=st.sampled_from((-100, 0)),
    seed=st.integers(0, 99),
)
def test_any_logits(
    rows: int,
    classes: int,
    alpha: float,
    scale: float,
    shift: float,
    reduction: str,
    smoothing: float,
    ignore: int,
    seed: int,
) -> None:
    logits, target = draw(rows, classes, seed=seed, scale=scale) + shift, labels(classes, rows, seed=seed)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignore}
    check(gradient(powergrad_cross_entropy, logits, target, alpha=alpha, **options), logits, target, alpha, **options)


def test_a_wrong_gradient_is_refused() -> None:
    logits, target = draw(6, 40), labels(40, 6)
    right = gradient(powergrad_cross_entropy, logits, target)
    check(right, logits, target, 0.25)
    for wrong in (right * 1.0001, right.roll(1, 1), gradient(powergrad_cross_entropy, logits, target, alpha=0.2501)):
        with pytest.raises(AssertionError):
            check(wrong, logits, target, 0.25)


ROWS = {
    "a class ruled out": [-INF, 1.0, 2.0],
    "all ruled out": [-INF, -INF, -INF],
    "infinite": [INF, 1.0, 2.0],
    "infinite both ways": [INF, -INF, 2.0],
    "not a number": [NAN, 1.0, 2.0],
    "not a number, infinite": [1.0, NAN, INF],
    "only that": [NAN, NAN, NAN],
    "huge": [3e38, -3e38, 2.9e38],
    "huge and equal": [3e38, 3e38, 3e38],
    "tiny": [1e-40, -1e-40, 0.0],
    "zeros": [0.0, -0.0, -0.0],
    "far below": [0.0, -1e30, -400.0],
    "all far below": [-1e5, -2e5, -3e5],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("repeats", [1, 30])
@pytest.mark.parametrize("sign", [1, -1])
def test_any_row(row: str, repeats: int, sign: int) -> None:
    strange = torch.tensor(ROWS[row]).repeat(repeats)
    if "number" in row:
        strange = torch.copysign(strange, torch.tensor(float(sign)))  # a NaN has a sign, too
    logits = torch.stack((draw(3 * repeats), strange, draw(3 * repeats, seed=2)))
    target = torch.tensor([0, 1, 2])
    for alpha in (1.0, 0.25):
        check(gradient(powergrad_cross_entropy, logits, target, alpha=alpha), logits, target, alpha)
    assert gradient(powergrad_cross_entropy, logits, target)[[0, 2]].isfinite().all()  # it stays with that row


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF])
def test_every_nan_stays_one(bits: int) -> None:
    logits = draw(2, 20)
    logits.view(torch.int32)[1, 7] = bits
    found = gradient(powergrad_cross_entropy, logits, labels(20, 2))
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_the_powers_are_exact_to_float32() -> None:
    x = -np.concatenate((np.linspace(0, 126, 100_001), np.logspace(-40, 2, 10_001))).astype(np.float32)
    found = np.empty_like(x)
    total = kernels._powers(x, np.float32(0), np.float32(1), found)
    exact = np.exp2(x.astype(np.float64))
    assert np.abs(found / exact - 1).max() <= 2e-7
    assert total == pytest.approx(exact.sum(), rel=1e-5)
    ends = np.array([0.0, -0.0, -126.6, -200.0, -3e38, -np.inf, np.nan], np.float32)
    found = np.empty_like(ends)
    kernels._powers(ends, np.float32(0), np.float32(1), found)
    np.testing.assert_allclose(found, [1, 1, 0, 0, 0, 0, np.nan], rtol=2e-7, atol=0)


def test_alpha_zero_is_the_limit() -> None:
    logits, target = draw(6, 40), labels(39, 6)
    logits[:, -1] = -INF
    limit = torch.full((6, 40), 1 / 39)
    limit[:, -1] = 0
    found = gradient(powergrad_cross_entropy, logits, target, alpha=0, reduction="sum")
    torch.testing.assert_close(found, (limit - F.one_hot(target, 40)) * 0.5)


def test_all_ignored() -> None:
    found = gradient(powergrad_cross_entropy, draw(4, 20), torch.full((4,), -100))
    assert torch.equal(found, torch.zeros(4, 20))


def test_a_schedule_takes_it_too() -> None:
    criterion = PowerGradCrossEntropy(alpha=(1.0, 0.0), steps=4)
    logits, target = draw(6, 40), labels(40, 6)
    criterion.advance()
    assert torch.equal(
        gradient(criterion, logits, target), gradient(powergrad_cross_entropy, logits, target, alpha=0.75)
    )


def test_a_kept_graph_gives_the_same_again() -> None:
    logits = draw(8, 40).requires_grad_()
    before = logits.detach().clone()
    loss = powergrad_cross_entropy(logits, labels(40, 8))
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(loss, logits)[0], first)
    assert torch.equal(logits, before)


def test_more_threads_change_nothing() -> None:
    logits, target, threads = draw(301, 300), labels(300, 301), torch.get_num_threads()
    assert logits.numel() > kernels._ONE_THREAD_UP_TO
    found = []
    try:
        for each in (1, 2):
            torch.set_num_threads(each)
            found.append(gradient(powergrad_cross_entropy, logits, target, reduction="none"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits that the compiled loops were given."""
    seen: list[Tensor] = []
    real = kernels.class_gradient

    def spy(logits: Tensor, *others: Any) -> Tensor:
        seen.append(logits)
        return real(logits, *others)

    monkeypatch.setattr(kernels, "class_gradient", spy)
    return seen


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("plain", True),
        ("ignore_index", True),
        ("smoothing", True),
        ("one example without its axis", True),
        ("weight", False),
        ("probabilities", False),
        ("transposed", False),
        ("strided", False),
        ("spatial", False),
        ("float64", False),
        ("bytes", False),
        ("targets strided", False),
    ],
)
def test_what_is_taken(case: str, expected: bool, taken: list[Tensor]) -> None:
    logits, target, options = draw(6, 20), labels(20, 6), dict[str, Any]()
    match case:
        case "ignore_index":
            options["ignore_index"] = int(target[0])
        case "smoothing":
            options["label_smoothing"] = 0.1
        case "one example without its axis":
            logits, target = logits[0], target[0]
        case "weight":
            options["weight"] = torch.ones(20)
        case "probabilities":
            target = F.one_hot(target, 20).float()
        case "transposed":
            logits = draw(20, 6).t()
        case "strided":
            logits = draw(6, 40)[:, ::2]
        case "spatial":
            logits, target = draw(6, 20, 2), labels(20, 6, 2)
        case "float64":
            logits = logits.double()
        case "bytes":
            target = target.to(torch.uint8)
        case "targets strided":
            target = labels(20, 12)[::2]
    found = gradient(powergrad_cross_entropy, logits, target, **options)
    assert bool(taken) == expected
    plain = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    target = target.double() if target.is_floating_point() else target
    exact = gradient(powergrad_cross_entropy, logits.double(), target, **plain)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_second_derivative_goes_without(taken: list[Tensor]) -> None:
    logits = draw(6, 20).requires_grad_()
    (grad,) = torch.autograd.grad(powergrad_cross_entropy(logits, labels(20, 6)), logits, create_graph=True)
    assert not taken
    torch.testing.assert_close(grad, gradient(powergrad_cross_entropy, logits, labels(20, 6)) * 2)
    grad.square().sum().backward()
    assert logits.grad is not None


def test_a_trace_has_no_numbers_in_it(taken: list[Tensor]) -> None:
    target = labels(20, 6)
    traced = make_fx(lambda logits: gradient(powergrad_cross_entropy, logits, target))(draw(6, 20))
    assert not taken
    other = draw(6, 20, seed=5)
    torch.testing.assert_close(traced(other), gradient(powergrad_cross_entropy, other, target))
