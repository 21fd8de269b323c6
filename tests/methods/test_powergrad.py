"""PowerGrad's value is cross-entropy's and its gradient (1/α)·CE(softmax(αz))'s, whatever is asked of it."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.methods.powergrad import (
    PowerGradCrossEntropy,
    TemperatureCrossEntropy,
    dead_filters,
    powergrad_cross_entropy,
    temperature_cross_entropy,
)

ALPHAS = (1.0, 0.5, 0.25, 0.05)
Loss = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def labels(classes: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Loss, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The gradient at the logits of a fixed weighted sum over whatever the loss returns."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, target, **options)
    upstream = torch.linspace(0.5, 2, max(1, value.numel()), dtype=value.dtype)[: value.numel()]
    return torch.autograd.grad(value, logits, upstream.view(value.shape).to(value.device))[0]


def reference(alpha: float) -> Loss:
    """Torch's own loss at αz, over α."""
    return lambda logits, target, **options: F.cross_entropy(logits * alpha, target, **options) / alpha


def check(loss: Loss, alpha: float, logits: Tensor, target: Tensor, **options: Any) -> None:
    value = loss(logits, target, **options)
    torch.testing.assert_close(value, F.cross_entropy(logits, target, **options), rtol=0, atol=0, equal_nan=True)
    expected = gradient(reference(alpha), logits, target, **options)
    torch.testing.assert_close(gradient(loss, logits, target, **options), expected, rtol=1e-12, atol=1e-12)


def at(alpha: float) -> Loss:
    return lambda *args, **options: powergrad_cross_entropy(*args, alpha=alpha, **options)


@settings(max_examples=300)
@given(
    shape=st.lists(st.integers(0, 3), min_size=0, max_size=3),
    classes=st.integers(1, 20),
    alpha=st.floats(0.01, 1),
    reduction=st.sampled_from(("none", "mean", "sum")),
    smoothing=st.sampled_from((0.0, 0.1, 1.0)),
    weighted=st.booleans(),
    kind=st.sampled_from(("classes", "ignored", "class 0 ignored", "all ignored", "probabilities")),
    seed=st.integers(0, 99),
)
def test_whatever_cross_entropy_takes(
    shape: list[int],
    classes: int,
    alpha: float,
    reduction: str,
    smoothing: float,
    weighted: bool,
    kind: str,
    seed: int,
) -> None:
    whole = [*shape[:1], classes, *shape[1:]]
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = draw(classes, seed=seed, scale=1).abs() + 0.1
    target = labels(classes, *shape, seed=seed)
    if kind == "probabilities":
        target = draw(*whole, seed=seed + 1).softmax(min(1, len(shape)))
    elif kind == "class 0 ignored":
        options["ignore_index"] = 0
    elif kind == "ignored":
        target = torch.where(labels(2, *shape, seed=seed).bool(), target, -100)
    elif kind == "all ignored":
        options["ignore_index"] = 255
        target = torch.full_like(target, 255)
    check(at(alpha), alpha, draw(*whole, seed=seed), target, **options)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_papers_formula(alpha: float) -> None:
    logits, target = draw(6, 5), labels(5, 6)
    powers = logits.softmax(1) ** alpha
    expected = (powers / powers.sum(1, keepdim=True) - F.one_hot(target, 5)) / 6
    torch.testing.assert_close(gradient(at(alpha), logits, target), expected * 0.5, rtol=1e-12, atol=1e-12)


def from_incoming_gradient(logits: Tensor, target: Tensor, alpha: float = 0.25, **options: Any) -> Tensor:
    """The mistake: read p off the gradient that arrives, which a mean has already divided by N."""
    watched = logits * 1.0
    if watched.requires_grad:
        onehot = F.one_hot(target, logits.shape[1])

        def power(grad: Tensor) -> Tensor:
            powers = (grad + onehot).clamp(min=0) ** alpha
            return powers / powers.sum(1, keepdim=True) - onehot

        watched.register_hook(power)
    return F.cross_entropy(watched, target, **options)


@pytest.mark.parametrize("wrong", [F.cross_entropy, from_incoming_gradient, reference(0.25), at(0.3)])
def test_the_check_refuses_other_losses(wrong: Loss) -> None:
    with pytest.raises(AssertionError):
        check(wrong, 0.25, draw(6, 5), labels(5, 6))


def test_alpha_one_is_cross_entropy() -> None:
    check(at(1.0), 1.0, draw(6, 5), labels(5, 6))


@pytest.mark.parametrize("classes", [5, 40])
def test_alpha_zero_is_the_limit(classes: int) -> None:
    logits, target = draw(6, classes), labels(classes - 1, 6)
    limit = (1 / classes - F.one_hot(target, classes).double()) / 6
    torch.testing.assert_close(gradient(at(0), logits, target), limit * 0.5, rtol=1e-12, atol=1e-12)
    logits[:, -1] = -torch.inf  # a class that is ruled out stays so
    limit = torch.full((6, classes), 1 / (classes - 1), dtype=torch.float64)
    limit[:, -1] = 0
    found = gradient(at(0), logits, target)
    torch.testing.assert_close(found, (limit - F.one_hot(target, classes)) / 12, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("logits", [(7, 1000), (2, 33, 3, 3), (300, 12), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_working_in_place_gives_torchs_numbers(logits: tuple[int, ...], dtype: torch.dtype) -> None:
    z = draw(*logits, dtype=dtype).requires_grad_()
    weight = torch.ones((), dtype=dtype)
    target = torch.zeros_like(z)  # then the gradient is zero but for what the weights make of it
    target[:, 0] = 1
    loss = powergrad_cross_entropy(z, target, reduction="sum")
    (grad,) = torch.autograd.grad(loss, z, weight)
    expected = torch.softmax(z.detach() * 0.25, 1) - target
    torch.testing.assert_close(grad, expected, rtol=0, atol=0 if logits[1] > 15 else 1e-6)


@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "label_smoothing": 0.1}])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_second_derivative_is_the_gradients(options: dict[str, Any], soft: bool, weighted: bool) -> None:
    target = draw(3, 4, seed=1).softmax(1) if soft else torch.tensor([1, -100, 3])
    weight = torch.tensor([1.0, 2, 0.5, 1], dtype=torch.float64) if weighted else None

    def field(logits: Tensor) -> Tensor:
        loss = powergrad_cross_entropy(logits, target, weight=weight, **options)
        return torch.autograd.grad(loss, logits, create_graph=True)[0]

    logits = draw(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(field, (logits,))
    torch.testing.assert_close(  # the same numbers whether or not a second derivative is wanted
        field(logits).detach(),
        torch.autograd.grad(powergrad_cross_entropy(logits, target, weight=weight, **options), logits)[0],
    )


def test_soft_targets_get_the_gradient_of_the_value() -> None:
    for options in itertools.product(("none", "mean", "sum"), (0.0, 0.2), (None, torch.rand(4).double())):
        settings = dict(zip(("reduction", "label_smoothing", "weight"), options, strict=True))
        logits, target = draw(3, 4, 2), draw(3, 4, 2, seed=1).softmax(1).requires_grad_()
        ours = torch.autograd.grad(powergrad_cross_entropy(logits, target, **settings).sum(), target)[0]
        theirs = torch.autograd.grad(F.cross_entropy(logits, target, **settings).sum(), target)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "channels_last"])
def test_any_layout(layout: str) -> None:
    target = labels(20, 4)
    if layout == "channels_last":
        logits, target = draw(4, 20, 3, 3).contiguous(memory_format=torch.channels_last), labels(20, 4, 3, 3)
    elif layout == "transposed":
        logits = draw(20, 4).t()
    elif layout == "strided":
        logits = draw(4, 40)[:, ::2]
    else:
        logits = draw(1, 20).expand(4, 20)
    check(at(0.25), 0.25, logits, target, label_smoothing=0.1)


def test_class_numbers_of_a_byte() -> None:
    logits, target = draw(5, 4), labels(4, 5)
    torch.testing.assert_close(
        gradient(at(0.25), logits, target.to(torch.uint8)), gradient(at(0.25), logits, target), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_on_in_float32(dtype: torch.dtype) -> None:
    logits, target = draw(8, 30, dtype=dtype).requires_grad_(), labels(30, 8)
    loss = powergrad_cross_entropy(logits, target, weight=torch.ones(30, dtype=dtype))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target), rtol=0, atol=0)
    scale = 2.0**14  # as a gradient scaler has it
    (loss * scale).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    exact = torch.softmax(logits.detach().double() * 0.25, 1) - F.one_hot(target, 30)
    torch.testing.assert_close(logits.grad, (exact * scale / 8).to(dtype))


def test_autocast() -> None:
    torch.manual_seed(0)
    layer, x, target = nn.Linear(6, 20), torch.randn(4, 6), labels(20, 4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x)
        assert logits.dtype == torch.bfloat16
        loss = powergrad_cross_entropy(logits, target)
    loss.backward()
    found = layer.weight.grad
    assert found is not None
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(x)
    expected = torch.autograd.grad(reference(0.25)(outputs.float(), target), layer.weight)[0]
    assert loss.dtype == found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_accumulated_parts_are_the_whole() -> None:
    logits, target = draw(8, 5).requires_grad_(), labels(5, 8)
    for part in (slice(0, 4), slice(4, 8)):
        (powergrad_cross_entropy(logits[part], target[part]) / 2).backward()
    assert logits.grad is not None
    check(at(0.25), 0.25, logits.detach(), target)
    torch.testing.assert_close(logits.grad, 2 * gradient(at(0.25), logits, target), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [5, 40])
def test_a_graph_that_is_kept_gives_the_same_again(classes: int) -> None:
    logits = draw(8, classes).requires_grad_()
    before = logits.detach().clone()
    loss = powergrad_cross_entropy(logits, labels(classes, 8))
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(loss, logits)[0], first)
    assert torch.equal(logits, before)


def test_nothing_of_the_logits_size_is_kept_beside_them() -> None:
    logits = draw(8, 5).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        powergrad_cross_entropy(logits, labels(5, 8))
    large = {each.untyped_storage().data_ptr() for each in kept if each.numel() >= logits.numel()}
    assert large == {logits.untyped_storage().data_ptr()}


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_its_range(alpha: float) -> None:
    with pytest.raises(UserError, match="from 0 to 1"):
        powergrad_cross_entropy(draw(2, 3), labels(3, 2), alpha=alpha)
    with pytest.raises(UserError, match="from 0 to 1"):
        PowerGradCrossEntropy(alpha=(1.0, alpha), steps=3)


def test_mistakes_that_torch_knows_stay_its_own() -> None:
    with pytest.raises(ValueError, match="median"):
        powergrad_cross_entropy(draw(2, 3), labels(3, 2), reduction="median")
    with pytest.raises(IndexError):
        powergrad_cross_entropy(draw(2, 3), torch.tensor([0, 3]))


def test_the_module_is_the_function() -> None:
    weight = draw(5, scale=1).abs()
    criterion = PowerGradCrossEntropy(alpha=0.3, weight=weight, ignore_index=2, label_smoothing=0.1, reduction="sum")
    options: dict[str, Any] = {"weight": weight, "ignore_index": 2, "label_smoothing": 0.1, "reduction": "sum"}
    logits, target = draw(6, 5), labels(5, 6)
    found, expected = gradient(criterion, logits, target), gradient(at(0.3), logits, target, **options)
    assert torch.equal(found, expected)
    assert isinstance(criterion, nn.CrossEntropyLoss)
    criterion.advance()
    assert criterion.alpha == 0.3


def test_a_schedule_goes_linearly_and_resumes() -> None:
    criterion = PowerGradCrossEntropy(alpha=(1.0, 0.25), steps=3)
    logits, target = draw(6, 5), labels(5, 6)
    seen = []
    for _ in range(5):
        seen.append(criterion.alpha)
        check(criterion, criterion.alpha, logits, target)
        state = copy.deepcopy(criterion.state_dict())
        criterion.advance()
    assert seen == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.25])
    resumed = PowerGradCrossEntropy(alpha=(1.0, 0.25), steps=3)
    resumed.load_state_dict(state)
    assert resumed.alpha == 0.25


def test_the_alpha_of_the_forward_pass_counts() -> None:
    criterion = PowerGradCrossEntropy(alpha=(1.0, 0.0), steps=2)
    logits, target = draw(6, 5).requires_grad_(), labels(5, 6)
    loss = criterion(logits, target)
    criterion.advance()
    found = torch.autograd.grad(loss, logits)[0]
    assert torch.equal(found, torch.autograd.grad(powergrad_cross_entropy(logits, target, alpha=1), logits)[0])


@pytest.mark.parametrize("options", [{"alpha": (1.0, 0.5)}, {"alpha": 0.5, "steps": 3}, {"alpha": (1, 0), "steps": 0}])
def test_steps_belong_to_a_schedule(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="steps"):
        PowerGradCrossEntropy(**options)


def test_modules_are_copied_pickled_and_shown() -> None:
    criterion = PowerGradCrossEntropy(alpha=(1.0, 0.5), steps=2)
    criterion.advance()
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert twin.alpha == 0.75
        twin.advance()
    assert criterion.alpha == 0.75
    assert repr(criterion) == "PowerGradCrossEntropy(alpha=(1.0, 0.5), steps=2)"
    assert repr(pickle.loads(pickle.dumps(TemperatureCrossEntropy()))) == "TemperatureCrossEntropy(temperature=4.0)"


@pytest.mark.parametrize("criterion", [PowerGradCrossEntropy(), PowerGradCrossEntropy(alpha=(1.0, 0.25), steps=9)])
def test_torch_export(criterion: nn.Module) -> None:
    logits, target = draw(6, 5, dtype=torch.float32), labels(5, 6)
    program = torch.export.export(criterion, (logits, target))
    torch.testing.assert_close(program.module()(logits, target), F.cross_entropy(logits, target))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself does
@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("alpha", [0.25, (1.0, 0.25)])
@pytest.mark.parametrize("soft", [False, True])
def test_torch_compile(classes: int, alpha: float | tuple[float, float], soft: bool) -> None:
    criterion = PowerGradCrossEntropy(alpha=alpha, steps=None if isinstance(alpha, float) else 4, label_smoothing=0.1)
    torch.compiler.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="inductor" if classes == 40 else "aot_eager")
    logits, target = draw(6, classes, dtype=torch.float32), labels(classes, 6)
    if soft:
        target = draw(6, classes, dtype=torch.float32).softmax(1)
    for _ in range(2):
        torch.testing.assert_close(compiled(logits, target), criterion(logits, target))
        torch.testing.assert_close(gradient(compiled, logits, target), gradient(criterion, logits, target))
        criterion.advance()


@pytest.mark.parametrize("device", ["cuda"])
def test_another_device(device: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    for classes, alpha in itertools.product((5, 1000), (0.25, 0.0)):
        logits, target = draw(64, classes), labels(classes, 64)
        on_device = gradient(at(alpha), logits.to(device), target.to(device))
        torch.testing.assert_close(on_device.cpu(), gradient(at(alpha), logits, target), rtol=1e-12, atol=1e-12)
    scheduled = PowerGradCrossEntropy(alpha=(1.0, 0.0), steps=4)
    scheduled(logits.to(device), target.to(device))  # also where the module stayed behind
    scheduled.to(device)(logits.to(device), target.to(device))


DISTRIBUTED = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from postgrad.methods.powergrad import powergrad_cross_entropy

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
layer, x, target = torch.nn.Linear(3, 4), torch.randn(6, 3), torch.randint(4, (6,))
twin = DistributedDataParallel(layer)
own = slice(3 * rank, 3 * rank + 3)
powergrad_cross_entropy(twin(x[own]), target[own]).backward()
found = layer.weight.grad.clone()
layer.zero_grad()
powergrad_cross_entropy(layer(x), target).backward()
torch.testing.assert_close(found, layer.weight.grad)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_together(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISTRIBUTED]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=dict(os.environ), stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors.decode()


def test_the_temperature_is_the_control() -> None:
    weight = draw(5, scale=1).abs()
    options: dict[str, Any] = {"weight": weight, "ignore_index": 2, "label_smoothing": 0.1}
    logits, target = draw(6, 5), labels(5, 6)
    for reduction in ("none", "mean", "sum"):
        found = temperature_cross_entropy(logits, target, temperature=4, reduction=reduction, **options)
        torch.testing.assert_close(found, 4 * F.cross_entropy(logits / 4, target, reduction=reduction, **options))
        control = TemperatureCrossEntropy(temperature=4, reduction=reduction, **options)
        torch.testing.assert_close(
            gradient(control, logits, target),
            gradient(at(0.25), logits, target, reduction=reduction, **options),
            rtol=1e-12,
            atol=1e-12,
        )
    with pytest.raises(AssertionError):  # its value is another's
        check(TemperatureCrossEntropy(temperature=4), 0.25, logits, target)


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
def test_temperatures_that_are_none(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature"):
        TemperatureCrossEntropy(temperature=temperature)
    with pytest.raises(UserError, match="temperature"):
        temperature_cross_entropy(draw(2, 3), labels(3, 2), temperature=temperature)


def test_dead_filters_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv1d(4, 2, 3), nn.Linear(3, 3))
    assert dead_filters(model) == {"0": 0, "2": 0}
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].weight[2] *= 1e-9
        model[0].weight[3] *= 1e-6
        model[2].weight.zero_()
    assert dead_filters(model) == {"0": 2, "2": 2}
    assert dead_filters(model, below=1e-5) == {"0": 3, "2": 2}
    with torch.no_grad():
        model[0].weight *= 1e-30  # small everywhere is not dead
    assert dead_filters(model)["0"] == 2
    assert dead_filters(nn.Linear(2, 2)) == {}
