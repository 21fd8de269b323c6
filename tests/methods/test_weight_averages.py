"""SWA, EMA and LAWA against torch's AveragedModel and means in NumPy, with and without interruptions."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from postgrad.errors import UserError
from postgrad.methods.weight_averages import (
    ExponentialMovingAverage,
    LatestWeightAveraging,
    StochasticWeightAveraging,
)

STEPS = 3
MAKE: dict[str, Callable[..., Any]] = {
    "swa": lambda model, **options: StochasticWeightAveraging(model, steps_per_epoch=STEPS, start_epoch=1, **options),
    "ema": lambda model, **options: ExponentialMovingAverage(model, decay=0.8, **options),
    "lawa": lambda model, **options: LatestWeightAveraging(model, steps_per_epoch=STEPS, k=2, **options),
}
EVERY_AVERAGE = pytest.mark.parametrize("name", MAKE)


class Training:
    """A small training of a network with BatchNorm, at a constant rate."""

    def __init__(self, name: str, **options: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(30, 5, generator=generator)
        self.y = torch.randint(3, (30,), generator=generator)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.average = MAKE[name](self.model, **options)
        self.steps = 0

    def train(self, steps: int) -> Training:
        for _ in range(steps):
            self.step()
            self.average.update(self.model)
        return self

    def step(self) -> None:
        part = slice(10 * (self.steps % STEPS), 10 * (self.steps % STEPS) + 10)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x[part]), self.y[part]).backward()
        self.optimizer.step()
        self.steps += 1

    def averaged(self) -> dict[str, Tensor]:
        with self.average.averaged as network:
            return everything(network)


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_swa_and_ema_are_torchs_to_the_bit() -> None:
    for name, function in (("swa", get_swa_multi_avg_fn()), ("ema", get_ema_multi_avg_fn(0.8))):
        training = Training(name)
        peer = AveragedModel(training.model, multi_avg_fn=function)
        for _ in range(14):
            training.step()
            if name == "ema" or (training.steps % STEPS == 0 and training.steps > STEPS):
                peer.update_parameters(training.model)
            training.average.update(training.model)
        with training.average.averaged as network:
            assert_same(parameters(network), parameters(peer.module))
        with pytest.raises(AssertionError):  # the weights themselves are others
            assert_same(parameters(training.model), parameters(peer.module))


@given(
    steps=st.integers(1, 4),
    start=st.integers(0, 2),
    k=st.integers(1, 4),
    decay=st.floats(0.01, 0.99),
    updates=st.integers(1, 14),
    shape=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_each_is_the_mean_that_it_says(
    steps: int, start: int, k: int, decay: float, updates: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = nn.ParameterList([torch.zeros(shape, dtype=dtype)])
    swa = StochasticWeightAveraging(model, steps_per_epoch=steps, start_epoch=start)
    ema = ExponentialMovingAverage(model, decay=decay)
    lawa = LatestWeightAveraging(model, steps_per_epoch=steps, k=k)
    generator = torch.Generator().manual_seed(updates)
    walk = []
    for _ in range(updates):
        with torch.no_grad():
            model[0] += torch.randn(shape, generator=generator).to(dtype)
        walk.append(model[0].detach().double().numpy().copy())
        for average in (swa, ema, lawa):
            average.update(model)
    ends = walk[steps - 1 :: steps]
    weights = [decay ** (updates - 1)] + [(1 - decay) * decay ** (updates - 1 - step) for step in range(1, updates)]
    expected = {
        swa: np.mean(ends[start:], axis=0) if ends[start:] else walk[-1],
        ema: sum(weight * w for weight, w in zip(weights, walk, strict=True)),
        lawa: np.mean(ends[-k:], axis=0) if ends else walk[-1],
    }
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    for average, mean in expected.items():
        with average.averaged as network:
            np.testing.assert_allclose(network[0].detach().double().numpy(), mean, rtol=rtol, atol=rtol)
        np.testing.assert_array_equal(model[0].detach().double().numpy(), walk[-1])


@EVERY_AVERAGE
def test_the_training_goes_as_without_it(name: str) -> None:
    plain, watched = Training(name), Training(name)
    for _ in range(10):
        plain.step()
        watched.train(1).averaged()
    assert_same(everything(watched.model), everything(plain.model))


@EVERY_AVERAGE
@pytest.mark.parametrize("stop", [2, 6, 7, 11])
def test_an_interrupted_average_ends_with_the_same_bits(name: str, stop: int) -> None:
    whole = Training(name).train(14)
    first = Training(name).train(stop)
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "average": first.average.state_dict()}, file)
    first.train(5)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = Training(name)
    second.model.load_state_dict(saved["model"])
    second.average.load_state_dict(saved["average"])
    second.steps = stop
    assert_same(second.train(14 - stop).averaged(), whole.averaged())


@EVERY_AVERAGE
@pytest.mark.parametrize("kind", [deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["copy", "pickle"])
def test_a_copy_goes_on_by_itself(name: str, kind: Any) -> None:
    whole = Training(name).train(14)
    first = Training(name).train(8)
    second = kind(first)
    first.train(2)
    assert_same(second.train(6).averaged(), whole.averaged())


@EVERY_AVERAGE
def test_batches_renew_the_statistics_as_torch_does(name: str) -> None:
    plain = Training(name)
    batches = [plain.x[:7], plain.x[7:]]
    training = Training(name, batches=batches).train(14)
    before = everything(training.model)
    found = training.averaged()
    assert_same(everything(training.model), before)
    peer = deepcopy(training.model)
    peer.load_state_dict(plain.train(14).averaged())
    update_bn(batches, peer)
    assert_same(found, everything(peer))
    with pytest.raises(AssertionError):
        assert_same(found, plain.averaged())


def test_lawa_holds_no_more_than_k_copies() -> None:
    training = Training("lawa").train(5 * STEPS)
    assert len(training.average.state_dict()["kept"]) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: ExponentialMovingAverage(model, decay=1.0), "decay: should be a number"),
        (lambda model: ExponentialMovingAverage(model, decay=0.0), "decay: should be a number"),
        (lambda model: LatestWeightAveraging(model, steps_per_epoch=2, k=0), "k: should be a whole number of 1"),
        (lambda model: LatestWeightAveraging(model, steps_per_epoch=0), "steps_per_epoch: should be a whole number"),
        (
            lambda model: StochasticWeightAveraging(model, steps_per_epoch=2, start_epoch=-1),
            "start_epoch: should be a whole number of 0",
        ),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[nn.Module], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(nn.Linear(2, 2))


@EVERY_AVERAGE
def test_a_network_that_was_changed_is_refused(name: str) -> None:
    training = Training(name).train(7)
    training.model[3] = nn.Linear(8, 3)
    with pytest.raises(UserError, match="parameters are not those"):
        training.average.update(training.model)
