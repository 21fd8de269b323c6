"""Periodic weight sampling against means in NumPy, a quadratic in closed form, and itself without an interruption."""

from __future__ import annotations

import io
import itertools
import pickle
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.methods.weight_sampling import PeriodicWeightSampling
from postgrad.models.registry import create_model

VARIANTS: dict[str, dict[str, Any]] = {
    "pswa": {},
    "pwalks": {"period": 2},
    "pswm": {"beta": 0.3},
    "pswm over two epochs": {"variant": "pswm", "period": 2},
}
EVERY_VARIANT = pytest.mark.parametrize("options", [{"variant": name} | VARIANTS[name] for name in VARIANTS])


class Walker(nn.Module):
    """Parameters that a step moves at random, from where they are."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList([torch.randn(shape, generator=self.generator).to(dtype) for shape in shapes])

    @torch.no_grad()
    def step(self) -> list[np.ndarray]:
        for weight in self.weights:
            weight += torch.randn(weight.shape, generator=self.generator).to(weight)
        return self.values()

    def values(self) -> list[np.ndarray]:
        return [weight.detach().double().numpy().copy() for weight in self.weights]


def means(samples: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The mean of each weight over the samples, by brute force."""
    return [np.mean(np.stack(values), axis=0) for values in zip(*samples, strict=True)]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], rtol: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    steps=st.integers(2, 7),
    window=st.integers(2, 7),
    period=st.integers(1, 3),
)
def test_the_weights_become_the_mean_of_those_of_the_last_steps(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, steps: int, window: int, period: int
) -> None:
    window = min(window, steps)
    model = Walker(shapes, dtype)
    variant = "pswa" if period == 1 else "pwalks"
    sampling = PeriodicWeightSampling(
        model, steps_per_epoch=steps, fraction=window / steps, period=period, variant=variant
    )
    samples: list[list[np.ndarray]] = []
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    for step in range(2 * period * steps):
        last = model.step()
        if step % steps >= steps - window:
            samples.append(last)
        sampling.update(model)
        if (step + 1) % (period * steps) == 0:
            assert_close(model.values(), means(samples), rtol)
            samples = []
        else:
            assert_close(model.values(), last, rtol=0)
            with sampling.averaged:
                assert_close(model.values(), means(samples) if samples else last, rtol)
            assert_close(model.values(), last, rtol=0)


def test_a_window_that_is_one_step_off_would_be_noticed() -> None:
    """Negative control of the test above."""
    model = Walker([(2, 3)])
    sampling = PeriodicWeightSampling(model, steps_per_epoch=6, fraction=0.5)
    walk = []
    for _ in range(6):
        walk.append(model.step())
        sampling.update(model)
    assert_close(model.values(), means(walk[3:]))
    with pytest.raises(AssertionError):
        assert_close(model.values(), means(walk[2:]))
    with pytest.raises(AssertionError):
        assert_close(model.values(), means(walk[2:5]))


def test_weight_momentum_mixes_the_mean_before_with_the_new_one() -> None:
    model = Walker([(2, 3), (4,)])
    sampling = PeriodicWeightSampling(model, steps_per_epoch=5, fraction=0.6, variant="pswm", beta=0.3)
    before: list[np.ndarray] | None = None
    for _ in range(4):
        walk = []
        for _ in range(5):
            walk.append(model.step())
            if len(walk) == 5:
                new = means(walk[2:4])
                with sampling.averaged:  # what a replacement now would make
                    mixed = new if before is None else [0.3 * b + 0.7 * m for b, m in zip(before, new, strict=True)]
                    assert_close(model.values(), mixed)
            sampling.update(model)
        mean = means(walk[2:])
        mixed = mean if before is None else [0.3 * b + 0.7 * m for b, m in zip(before, mean, strict=True)]
        assert_close(model.values(), mixed)
        before = mean  # the mean, not what became of it


def test_each_step_is_sampled_with_the_probability() -> None:
    """Of the 15 non-empty subsets of a window of 4 exactly one has the mean; its size is binomial."""
    epochs, chance = 300, 0.3
    model = Walker([(5,)])
    sampling = PeriodicWeightSampling(model, steps_per_epoch=4, fraction=1, probability=chance, seed=3)
    subsets = [list(chosen) for size in range(1, 5) for chosen in itertools.combinations(range(4), size)]
    taken = np.zeros(4)
    for _ in range(epochs):
        walk = []
        for _ in range(4):
            walk.append(model.step())
            sampling.update(model)
        (found,) = model.values()
        matches = [s for s in subsets if np.allclose(found, means([walk[i] for i in s])[0], rtol=1e-10, atol=1e-10)]
        if matches == [[3]]:  # the last step's weights: sampled alone, or none was and nothing was replaced
            continue
        assert len(matches) == 1
        taken[matches[0]] += 1
    expected = epochs * chance
    assert np.all(abs(taken[:3] - expected) < 4 * np.sqrt(epochs * chance * (1 - chance)))


def test_the_seed_decides_which_steps_are_sampled() -> None:
    def end(seed: int) -> list[np.ndarray]:
        model = Walker([(5,)])
        sampling = PeriodicWeightSampling(model, steps_per_epoch=8, fraction=1, probability=0.5, seed=seed)
        for _ in range(16):
            model.step()
            sampling.update(model)
        return model.values()

    assert_close(end(1), end(1), rtol=0)
    assert not np.allclose(end(1), end(2))


def test_without_a_sample_the_weights_stay_as_they_are() -> None:
    model = Walker([(2,)])
    sampling = PeriodicWeightSampling(model, steps_per_epoch=2, fraction=1, probability=1e-12)
    for _ in range(4):
        last = model.step()
        sampling.update(model)
        assert_close(model.values(), last, rtol=0)


@EVERY_VARIANT
def test_gradient_descent_on_a_quadratic_goes_as_its_closed_form(options: dict[str, Any]) -> None:
    """f(w) = ½ Σ a (w − c)²; a step shrinks w − c by r = 1 − lr·a, and the mean of steps n … S by a geometric sum."""
    a, c = torch.tensor([0.1, 0.5, 1.3], dtype=torch.float64), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    steps, window, lr, periods = 8, 4, 0.3, 3
    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    sampling = PeriodicWeightSampling(model, steps_per_epoch=steps, fraction=window / steps, **options)
    start = (model.weight.detach()[0] - c).numpy().copy()
    period, r = options.get("period", 1), 1 - lr * a.numpy()
    for _ in range(periods * period * steps):
        optimizer.zero_grad()
        (0.5 * a * (model.weight[0] - c) ** 2).sum().backward()
        optimizer.step()
        sampling.update(model)
    shrinks = r ** (steps - window + 1) * (1 - r**window) / (1 - r) / window  # of one epoch's samples
    shrinks = shrinks * np.mean([r ** (steps * epoch) for epoch in range(period)], axis=0)
    distance, before = start, None
    for _ in range(periods):
        mean = shrinks * distance
        mixed = options["variant"] == "pswm" and before is not None
        beta = options.get("beta", 0.5)
        distance, before = beta * before + (1 - beta) * mean if mixed else mean, mean
    np.testing.assert_allclose((model.weight.detach()[0] - c).numpy(), distance, rtol=1e-11, atol=1e-14)
    with pytest.raises(AssertionError):  # plain descent ends elsewhere
        np.testing.assert_allclose(r ** (periods * period * steps) * start, distance, rtol=0.1)


def test_the_mean_of_noisy_descent_has_the_variance_of_theory() -> None:
    """w ← r w + noise: the mean of m stationary steps has variance s²/m² · Σ_ij r^|i−j|, below a single one's s²."""
    rate, noise, window, copies = 0.7, 1.0, 8, 20_000
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.zeros(copies, dtype=torch.float64)))
    sampling = PeriodicWeightSampling(model, steps_per_epoch=40, fraction=window / 40)
    generator = torch.Generator().manual_seed(0)
    variance = noise**2 / (1 - rate**2)
    for _ in range(40):
        with torch.no_grad():
            model.w.mul_(rate).add_(torch.randn(copies, generator=generator, dtype=torch.float64), alpha=noise)
        single = float(model.w.detach().var())
        sampling.update(model)
    distances = np.abs(np.subtract.outer(np.arange(window), np.arange(window)))
    theory = variance * np.mean(rate**distances)
    assert float(model.w.detach().var()) == pytest.approx(theory, rel=0.05)
    assert single == pytest.approx(variance, rel=0.05)
    assert theory < 0.6 * variance


class Setting:
    """A small training of a network with BatchNorm: images, labels, and an optimizer with momentum."""

    def __init__(self, *, optimizer: str = "sgd", **options: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(40, 1, 6, 6, generator=generator)
        self.y = torch.randint(3, (40,), generator=generator)
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}[optimizer]
        momentum = {"momentum": 0.9} if optimizer == "sgd" else {}
        self.optimizer = kind(self.model.parameters(), lr=0.02, **momentum)
        if options.get("reset_momentum"):
            options["optimizer"] = self.optimizer
        self.sampling = PeriodicWeightSampling(self.model, steps_per_epoch=5, **({"fraction": 0.6} | options))
        self.steps = 0

    def train(self, steps: int) -> Setting:
        for _ in range(steps):
            part = slice(8 * (self.steps % 5), 8 * (self.steps % 5) + 8)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.x[part]), self.y[part]).backward()
            self.optimizer.step()
            self.sampling.update(self.model)
            self.steps += 1
        return self

    def everything(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [4, 5, 13])
@pytest.mark.parametrize(
    "options",
    [{"variant": name} | VARIANTS[name] for name in ("pswa", "pwalks", "pswm")]
    + [{"probability": 0.5, "seed": 7}, {"reset_momentum": True}],
)
def test_an_interrupted_training_ends_with_the_same_bits(options: dict[str, Any], stop: int, optimizer: str) -> None:
    whole = Setting(optimizer=optimizer, **options).train(20)
    first = Setting(optimizer=optimizer, **options).train(stop)
    file = io.BytesIO()
    parts = {"model": first.model, "optimizer": first.optimizer, "sampling": first.sampling}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    first.train(4)  # what is saved is not what goes on
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = Setting(optimizer=optimizer, **options)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.sampling.load_state_dict(saved["sampling"])
    second.steps = stop
    assert_same(second.train(20 - stop).everything(), whole.everything())


def test_a_resumption_without_the_state_would_be_noticed() -> None:
    """Negative control of the test above."""
    whole = Setting().train(20)
    second = Setting().train(4)
    forgetful = Setting()
    forgetful.model.load_state_dict(second.model.state_dict())
    forgetful.optimizer.load_state_dict(second.optimizer.state_dict())
    forgetful.steps = 4
    with pytest.raises(AssertionError):
        assert_same(forgetful.train(16).everything(), whole.everything())


@pytest.mark.parametrize(
    "kind", [deepcopy, lambda setting: pickle.loads(pickle.dumps(setting))], ids=["copy", "pickle"]
)
@EVERY_VARIANT
def test_a_copy_goes_on_by_itself(options: dict[str, Any], kind: Any) -> None:
    whole = Setting(**options).train(20)
    first = Setting(**options).train(9)
    second = kind(first)
    first.train(3)
    assert_same(second.train(11).everything(), whole.everything())


def test_momentum_is_kept_or_set_to_zero() -> None:
    for optimizer, key in (("sgd", "momentum_buffer"), ("adam", "exp_avg")):
        for reset in (False, True):
            setting = Setting(optimizer=optimizer, reset_momentum=reset).train(4)
            assert all(state[key].any() for state in setting.optimizer.state.values())
            setting.train(1)
            assert [bool(state[key].any()) for state in setting.optimizer.state.values()] == [not reset] * 6
            if optimizer == "adam":
                assert all(state["exp_avg_sq"].any() for state in setting.optimizer.state.values())


def test_buffers_are_those_of_the_training_unless_batches_are_given() -> None:
    setting = Setting().train(4)
    norm = setting.model[1]
    before = norm.running_mean.clone()
    with setting.sampling.averaged:
        assert torch.equal(norm.running_mean, before)
    plain = Setting()
    plain.sampling.update = lambda model: None  # type: ignore[method-assign]
    assert torch.equal(plain.train(5).model[1].running_mean, setting.train(1).model[1].running_mean)


def statistics(setting: Setting, batches: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Means over batches of the mean and the unbiased variance of what BatchNorm gets, in NumPy."""
    got = [setting.model[0](batch).detach().double().numpy() for batch in batches]
    return (
        np.mean([each.mean(axis=(0, 2, 3)) for each in got], axis=0),
        np.mean([each.var(axis=(0, 2, 3), ddof=1) for each in got], axis=0),
    )


def test_batches_renew_the_statistics_of_batch_norm() -> None:
    probe = Setting()
    batches = [probe.x[:10], probe.x[10:30]]
    setting = Setting(batches=batches)
    norm = setting.model[1]
    norm.eval()  # a frozen layer stays so
    setting.train(4)
    before, modes = setting.everything(), [module.training for module in setting.model.modules()]
    random_numbers = torch.get_rng_state()
    with setting.sampling.averaged as network:
        assert network is setting.model
        mean, variance = statistics(setting, batches)
        np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(norm.running_var, variance, rtol=1e-4)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(norm.running_mean, before["1.running_mean"], rtol=1e-2)
    assert_same(setting.everything(), before)
    setting.train(1)  # the weights are replaced
    mean, variance = statistics(setting, batches)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, variance, rtol=1e-4)
    assert [module.training for module in setting.model.modules()] == modes
    assert norm.momentum == 0.1
    assert torch.equal(torch.get_rng_state(), random_numbers)


def test_dropout_in_the_renewal_leaves_the_random_numbers_alone() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3), nn.Linear(3, 2))
    sampling = PeriodicWeightSampling(model, steps_per_epoch=2, fraction=1, batches=[(torch.randn(5, 3), "a label")])
    before = torch.get_rng_state()
    sampling.update(model)
    sampling.update(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("batches", "error"), [([], UserError), ([torch.zeros(5, 9)], RuntimeError)], ids=["none", "of another shape"]
)
def test_batches_that_do_not_work_leave_the_network_as_it_was(batches: list[Tensor], error: type[Exception]) -> None:
    setting = Setting(batches=batches).train(4)
    before = setting.everything()
    with pytest.raises(error), setting.sampling.averaged:
        pass
    assert_same(setting.everything(), before)
    with pytest.raises(error):
        setting.sampling.update(setting.model)
    assert_same(setting.everything(), before)
    assert setting.model[1].momentum == 0.1
    assert setting.model.training


def test_an_exception_inside_puts_the_weights_back() -> None:
    setting = Setting().train(4)
    before = setting.everything()

    def fail_on_the_average() -> None:
        with setting.sampling.averaged, setting.sampling.averaged as network:
            assert not torch.equal(network[0].weight, before["0.weight"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_on_the_average()
    assert_same(setting.everything(), before)


def test_a_step_on_the_averaged_weights_is_refused() -> None:
    setting = Setting().train(4)
    with setting.sampling.averaged, pytest.raises(UserError, match="leave the `averaged` block"):
        setting.sampling.update(setting.model)
    setting.train(1)


def test_shared_frozen_empty_strided_and_single_weights() -> None:
    model = nn.Module()
    tied = nn.Parameter(torch.randn(4, 3, dtype=torch.float64).t())
    assert not tied.is_contiguous()
    model.one, model.other = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    model.one.weight = model.other.weight = tied
    model.other.bias.requires_grad_(False)
    model.empty, model.single = nn.Parameter(torch.zeros(0, 2)), nn.Parameter(torch.ones(()))
    frozen = model.other.bias.clone()
    sampling = PeriodicWeightSampling(model, steps_per_epoch=3, fraction=1, variant="pwalks", period=2)
    samples = []
    for step in range(6):
        with torch.no_grad():
            tied += step
        samples.append(tied.detach().clone().numpy())
        sampling.update(model)
    np.testing.assert_allclose(tied.detach().numpy(), np.mean(samples, axis=0), rtol=1e-12)
    assert model.one.weight is model.other.weight
    assert tied.stride() == (1, 3)
    assert torch.equal(model.other.bias, frozen)
    assert list(sampling.state_dict()["kept"]["mean"]) == [name for name, _ in model.named_parameters()]


def test_channels_last_under_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampling = PeriodicWeightSampling(model, steps_per_epoch=4, fraction=0.5)
    walk = []
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.randn(8, 3, 6, 6).to(memory_format=torch.channels_last)
            F.cross_entropy(model(x), torch.randint(3, (8,))).backward()
        optimizer.step()
        walk.append(model[0].weight.detach().double().numpy().copy())
        sampling.update(model)
    np.testing.assert_allclose(model[0].weight.detach(), np.mean(walk[2:], axis=0), rtol=1e-5, atol=1e-7)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.dtype == torch.float32


def test_the_averaged_network_is_exported_as_it_is() -> None:
    setting = Setting().train(4)
    with setting.sampling.averaged as network:
        expected = network.eval()(setting.x)
        program = torch.export.export(network, (setting.x,))
        exported = {name: tensor.clone() for name, tensor in program.state_dict.items()}
        assert_same(exported, setting.everything())
        torch.testing.assert_close(program.module()(setting.x), expected)
    assert not torch.equal(exported["0.weight"], setting.model[0].weight)


@pytest.mark.slow
def test_a_compiled_network_is_sampled_like_a_plain_one() -> None:
    def end(compiled: bool) -> dict[str, Tensor]:
        setting = Setting()
        network = torch.compile(setting.model, backend="aot_eager") if compiled else setting.model
        for start in range(0, 40, 4):
            setting.optimizer.zero_grad()
            F.cross_entropy(network(setting.x[start : start + 4]), setting.y[start : start + 4]).backward()
            setting.optimizer.step()
            setting.sampling.update(network)
        return setting.everything()

    plain, compiled = end(False), end(True)
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_network_may_be_moved_before_its_first_sample(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model = nn.Linear(3, 2)
    sampling = PeriodicWeightSampling(model, steps_per_epoch=2, fraction=1)
    model.to(device, torch.float64)
    sampling.update(model)
    with sampling.averaged:
        assert model.weight.device.type == device
    saved = {"kept": {"mean": {name: tensor.cpu() for name, tensor in sampling.state_dict()["kept"]["mean"].items()}}}
    sampling.load_state_dict(sampling.state_dict() | saved)
    sampling.update(model)
    assert model.weight.dtype == torch.float64


def test_a_network_is_known_inside_its_wrapper() -> None:
    wrapped, plain = Setting().train(4), Setting().train(5)
    wrapped.sampling.update, update = (lambda model: update(nn.Sequential(model))), wrapped.sampling.update
    assert_same(wrapped.train(1).everything(), plain.everything())


def test_a_network_that_was_changed_is_refused() -> None:
    setting = Setting().train(4)
    before = setting.everything()
    for change in (
        lambda model: model.__setitem__(4, nn.Linear(64, 3)),
        lambda model: model.append(nn.Linear(3, 3)),
        lambda model: model.pop(4),
        lambda model: model.double(),
    ):
        changed = deepcopy(setting)
        change(changed.model)
        with pytest.raises(UserError, match="make the PeriodicWeightSampling"):
            changed.sampling.update(changed.model)
        with pytest.raises(UserError, match="make the PeriodicWeightSampling"), changed.sampling.averaged:
            pass
    with pytest.raises(UserError, match="another network"):
        setting.sampling.update(deepcopy(setting.model))
    assert_same(setting.everything(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "pswaa"}, "did you mean 'pswa'"),
        ({"period": 2}, "use variant='pwalks'"),
        ({"variant": "pwalks"}, "give a period"),
        ({"beta": 0.5}, "only variant='pswm' has one"),
        ({"variant": "pswm", "beta": 1.0}, "beta: should be a number"),
        ({"variant": "pswm", "beta": -0.1}, "beta: should be a number"),
        ({"variant": "pswm", "period": 0}, "period: should be a whole number of 1"),
        ({"variant": "pswm", "period": 1.5}, "period: should be a whole number of 1"),
        ({"fraction": 0}, "fraction: should be a number"),
        ({"fraction": 1.2}, "fraction: should be a number"),
        ({"fraction": "half"}, "fraction: should be a number"),
        ({"probability": 0.0}, "probability: should be a number"),
        ({"probability": float("nan")}, "probability: should be a number"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: should be a whole number of 1"),
        ({"steps_per_epoch": True}, "steps_per_epoch: should be a whole number of 1"),
        ({"seed": -1}, "seed: should be a whole number of 0"),
        ({"reset_momentum": True}, "give the optimizer"),
        ({"batches": iter([torch.zeros(2, 3)])}, "give a list or a DataLoader"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PeriodicWeightSampling(nn.Linear(3, 2), **({"steps_per_epoch": 8} | options))


def test_networks_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(UserError, match="no parameters"):
        PeriodicWeightSampling(nn.ReLU(), steps_per_epoch=8)
    with pytest.raises(UserError, match="'weight' is bfloat16"):
        PeriodicWeightSampling(nn.Linear(3, 2).bfloat16(), steps_per_epoch=8)
    late = nn.Linear(3, 2)
    sampling = PeriodicWeightSampling(late, steps_per_epoch=2, fraction=1)
    late.half()
    with pytest.raises(UserError, match="'weight' is float16"):
        sampling.update(late)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1)
    with pytest.raises(UserError, match="trains none of this network's"):
        PeriodicWeightSampling(nn.Linear(3, 2), steps_per_epoch=8, reset_momentum=True, optimizer=other)


def test_a_window_in_which_nothing_can_change_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="nothing will change"):
        PeriodicWeightSampling(nn.Linear(3, 2), steps_per_epoch=4)


def test_a_state_of_something_else_is_refused() -> None:
    setting = Setting().train(4)
    state = setting.sampling.state_dict()
    with pytest.raises(UserError, match="other settings"):
        Setting(fraction=1).sampling.load_state_dict(state)
    with pytest.raises(UserError, match="other settings"):
        setting.sampling.load_state_dict({})
    other = PeriodicWeightSampling(nn.Linear(3, 2), steps_per_epoch=5, fraction=0.6)
    with pytest.raises(UserError, match="another network"):
        other.load_state_dict(state)


def test_memory_is_one_copy_of_the_weights_or_two() -> None:
    for options, copies in (({}, 1), ({"variant": "pwalks", "period": 3}, 1), ({"variant": "pswm"}, 2)):
        setting = Setting(**options).train(30)
        assert len(setting.sampling.state_dict()["kept"]) == copies


def test_networks_of_the_project_are_sampled() -> None:
    model = create_model("resnet20", num_classes=3, in_channels=1)
    sampling = PeriodicWeightSampling(model, steps_per_epoch=2, fraction=1, batches=[torch.randn(4, 1, 8, 8)])
    for _ in range(2):
        sampling.update(model)
    assert model.training
