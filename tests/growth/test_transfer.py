"""Optimizers and averages that go along with a growth: against networks that were grown before they were trained."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from postgrad._compat import prepare_torchvision
from postgrad.errors import UserError
from postgrad.growth.moves import Along, Move
from postgrad.growth.transfer import transfer, transfer_average
from postgrad.methods.weight_averages import (
    ExponentialMovingAverage,
    LatestWeightAveraging,
    StochasticWeightAveraging,
)
from postgrad.methods.weight_sampling import PeriodicWeightSampling

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, dampening=0.1),
    "nesterov": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p, lr: torch.optim.Adam(p, lr, eps=1e-30),
    "amsgrad": lambda p, lr: torch.optim.Adam(p, lr, eps=1e-30, amsgrad=True),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr, eps=1e-30, weight_decay=0.1),
    "nadam": lambda p, lr: torch.optim.NAdam(p, lr, eps=1e-30),
    "radam": lambda p, lr: torch.optim.RAdam(p, lr, eps=1e-30),
    "adamax": lambda p, lr: torch.optim.Adamax(p, lr, eps=1e-30),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr, eps=1e-30, momentum=0.9, centered=True),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr, eps=1e-30),
    "adagrad from 0.1": lambda p, lr: torch.optim.Adagrad(p, lr, initial_accumulator_value=0.1),
    "fused adam": lambda p, lr: torch.optim.Adam(p, lr, eps=1e-30, fused=True),
}
MUON = getattr(torch.optim, "Muon", None)
Maps = Mapping[int, tuple[Tensor, Tensor]]
"""Layer -> from which old unit each new one comes, and its share."""


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 3, 3, bias=False),  # whose gradient would be nothing but rounding
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Conv2d(3, 4, 3),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ).double()


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(6, 2, 7, 7, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (6,), generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x, y = batch(number)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def split_of(index: Tensor, seed: int = 0) -> Tensor:
    """Random shares that sum to 1 over the replicas of each unit."""
    raw = 0.2 + torch.rand(len(index), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return raw / torch.stack([raw[index == unit].sum() for unit in index])


def wide(replicas: int = 2, units: tuple[int, int] = (3, 4)) -> dict[int, tuple[Tensor, Tensor]]:
    """A growth of both convolutions of `network`, the second on both of its sides."""
    first, second = (torch.cat([torch.arange(n), torch.arange(n).repeat(replicas)[: n - 1]]) for n in units)
    return {0: (first, split_of(first)), 3: (second, split_of(second, 1))}


def grow(model: nn.Sequential, maps: Maps, noise: Mapping[int, Tensor] | None = None) -> list[Move]:
    """Widen layers of a chain in place; `noise` is added to the weights of the layer of that number."""
    moves: list[Move] = []
    incoming: Along | None = None

    def put(layer: nn.Module, name: str, alongs: list[Along], added: Tensor | float = 0.0) -> None:
        old = getattr(layer, name)
        new = old.detach()
        for along in alongs:
            new = torch.stack(
                [
                    new.select(along.dim, int(unit)) * value
                    for unit, value in zip(along.index, along.value, strict=True)
                ],
                dim=along.dim,
            )
        new = (new + added).to(old.dtype).contiguous()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        setattr(layer, name, new)
        moves.append(Move(old, new, tuple(alongs)))

    for number, layer in enumerate(model):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            alongs = [] if incoming is None else [incoming]
            outgoing = None
            if number in maps:
                index, split = maps[number]
                ones = torch.ones_like(split)
                outgoing = Along(0, index, ones, split)
                if layer.bias is not None:
                    put(layer, "bias", [outgoing])
                alongs = [outgoing, *alongs]
                incoming = Along(1, index, split, ones)
            else:
                incoming = None
            if alongs:
                put(layer, "weight", alongs, 0.0 if noise is None else noise.get(number, 0.0))
        elif isinstance(layer, nn.BatchNorm2d) and incoming is not None:
            assert outgoing is not None
            for name in ("weight", "bias"):
                put(layer, name, [outgoing])
            still = Along(0, outgoing.index, outgoing.value, torch.ones_like(outgoing.value))
            for name in ("running_mean", "running_var"):
                put(layer, name, [still])
    return moves


def grown_copy(model: nn.Sequential, maps: Maps, noise: Mapping[int, Tensor] | None = None) -> nn.Sequential:
    other = copy.deepcopy(model)
    grow(other, maps, noise)
    return other


def states(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [optimizer.state.get(each, {}) for group in optimizer.param_groups for each in group["params"]]


def greatest_difference(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> float:
    """Of all tensors that the two optimizers keep, relative to the size of each."""
    worst = 0.0
    for mine, theirs in zip(states(one), states(other), strict=True):
        if mine.keys() != theirs.keys():
            return float("inf")
        for key, expected in theirs.items():
            assert mine[key].dtype == expected.dtype
            assert mine[key].shape == expected.shape
            difference = (mine[key] - expected).abs().max() / expected.abs().max().clamp(min=1e-300)
            worst = max(worst, float(difference))
    return worst


def trained_and_grown_before(make: Callable[..., Any]) -> tuple[nn.Sequential, Any, nn.Sequential, Any, Maps]:
    """A trained network; and one grown before that training, that has gone through the same weights."""
    model, maps = network(), wide()
    optimizer = make(model.parameters(), 0.01)
    before = grown_copy(model, maps)
    walker = make(before.parameters(), 0.0)
    for number in range(7):
        with torch.no_grad():
            for to, each in zip(before.parameters(), grown_copy(model, maps).parameters(), strict=True):
                to.copy_(each)
        step(before, walker, number)
        step(model, optimizer, number)
    return model, optimizer, before, walker, maps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_that_of_a_network_grown_before_and_training_goes_on_from_it(name: str) -> None:
    model, optimizer, before, walker, maps = trained_and_grown_before(OPTIMIZERS[name])
    others = {}
    for state in ("copy", "reset"):
        other, its_optimizer = copy.deepcopy((model, optimizer))
        transfer(its_optimizer, grow(other, maps), state=state)
        others[state] = its_optimizer
    transfer(optimizer, grow(model, maps))
    assert greatest_difference(optimizer, walker) < 1e-9
    assert greatest_difference(others["copy"], walker) > 1e-2
    assert greatest_difference(others["reset"], walker) == float("inf")

    with torch.no_grad():
        for to, each in zip(before.parameters(), model.parameters(), strict=True):
            to.copy_(each)
    walker.param_groups[0]["lr"] = 0.01
    for number in range(7, 11):
        step(model, optimizer, number)
        step(before, walker, number)
    for mine, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.skipif(MUON is None, reason="this torch has no Muon")
def test_muon_keeps_its_momentum() -> None:
    assert MUON is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(3)])
    index = torch.tensor([0, 1, 2, 3, 1, 1, 3])
    maps = {0: (index, split_of(index)), 1: (index, split_of(index, 1))}
    optimizer, before = MUON(model.parameters(), 0.01), grown_copy(model, maps)
    walker = MUON(before.parameters(), 0.0, weight_decay=0.0)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        with torch.no_grad():
            for to, each in zip(before.parameters(), grown_copy(model, maps).parameters(), strict=True):
                to.copy_(each)
        for each, its in ((before, walker), (model, optimizer)):
            its.zero_grad()
            each(x).square().mean().backward()
            its.step()
    other, its_optimizer = copy.deepcopy((model, optimizer))
    transfer(its_optimizer, grow(other, maps), state="copy")
    transfer(optimizer, grow(model, maps))
    assert greatest_difference(optimizer, walker) < 1e-5
    assert greatest_difference(its_optimizer, walker) > 1e-2
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (lambda groups: torch.optim.SGD(groups, 0.05, momentum=0.9), (2.0, 0.5, 1.0)),
        (lambda groups: torch.optim.Adam(groups, 0.01, eps=1e-30), (1.0, 0.5, 1.0)),
    ],
    ids=["sgd", "adam"],
)
@pytest.mark.parametrize("state", ["split", "copy", "reset"])
def test_at_the_right_rates_the_grown_network_computes_what_the_old_one_would_have(
    make: Callable[..., Any], rates: tuple[float, ...], state: Any
) -> None:
    """Two equal replicas of each unit: SGD needs twice the rate into them and half the rate out of them.

    dL/dW' is half of dL/dW, W' itself is W; dL/dC' is dL/dC, C' itself is half of C. Adam does not see the first half.
    """
    index, half = torch.arange(4).repeat(2), torch.full((8,), 0.5, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        old = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
        x = torch.randn(9, 3, dtype=torch.float64)
        target = torch.randn(9, 2, dtype=torch.float64)

    def train(model: nn.Sequential, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
            optimizer.step()

    def groups(model: nn.Sequential) -> list[dict[str, Any]]:
        return [{"params": model[0].parameters()}, {"params": [model[1].weight]}, {"params": [model[1].bias]}]

    optimizer = make(groups(old))
    train(old, optimizer, 6)
    new, its_optimizer = copy.deepcopy((old, optimizer))
    transfer(its_optimizer, grow(new, {0: (index, half)}), state=state)
    for group, rate in zip(its_optimizer.param_groups, rates, strict=True):
        group["lr"] *= rate
    train(old, optimizer, 8)
    train(new, its_optimizer, 8)
    error = float((new(x) - old(x)).detach().abs().max())
    assert error < 1e-12 if state == "split" else error > 1e-4


def test_units_that_come_from_none_have_no_history_and_adam_no_correction_for_them() -> None:
    old = nn.Parameter(torch.ones(2, 1, dtype=torch.float64))
    optimizer = torch.optim.Adam([old], lr=1.0)
    for _ in range(3000):
        old.grad = torch.ones_like(old)
        optimizer.step()
    index = torch.tensor([0, 1, -1])
    share = torch.ones(3, dtype=torch.float64)
    new = nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))
    transfer(optimizer, [Move(old, new, (Along(0, index, share, share),))])
    longest = torch.zeros(3, 1, dtype=torch.float64)
    for _ in range(50):
        before = new.detach().clone()
        new.grad = torch.ones_like(new)
        optimizer.step()
        longest = longest.maximum((new.detach() - before).abs())
    assert longest[0] == pytest.approx(1.0, abs=1e-6)
    # The greatest of (1 − 0.9ᵏ)/√(1 − 0.999ᵏ), here at √(1 − 0.999ˢᵗᵉᵖ) = 0.98.
    assert longest[2] == pytest.approx(6.5685, rel=0.03)
    assert float(optimizer.state[new]["step"]) == 3050


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]),
    data=st.data(),
)
def test_every_shape_dtype_and_map_against_numpy(shape: tuple[int, ...], dtype: torch.dtype, data: Any) -> None:
    dims = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    generator = torch.Generator().manual_seed(sum(shape))
    alongs, size = [], list(shape)
    for dim in dims:
        index = torch.tensor(data.draw(st.lists(st.integers(-1, shape[dim] - 1), max_size=6)), dtype=torch.int64)
        alongs.append(Along(dim, index, *torch.rand(2, len(index), generator=generator, dtype=torch.float64)))
        size[dim] = len(index)
    is_turned = data.draw(st.booleans())  # strides of another order
    turn = tuple(reversed(range(len(shape))))
    old = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
    new = nn.Parameter(torch.zeros([size[at] for at in turn], dtype=dtype).permute(turn))
    new = new if is_turned else nn.Parameter(torch.zeros(size, dtype=dtype))
    kept = {key: torch.randn(shape, generator=generator).to(dtype) for key in ("exp_avg", "exp_avg_sq")}
    kept["step"] = torch.tensor(3.0)
    optimizer = torch.optim.Adam([old], lr=0.1)
    optimizer.state[old] = dict(kept)
    transfer(optimizer, [Move(old, new, tuple(alongs))])
    expected = {key: kept[key].to(torch.complex128).numpy() for key in ("exp_avg", "exp_avg_sq")}
    for key, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        for along in alongs:
            columns = [
                np.zeros_like(expected[key].take(0, axis=along.dim))
                if unit < 0
                else expected[key].take(int(unit), axis=along.dim) * float(share) ** power
                for unit, share in zip(along.index, along.gradient, strict=True)
            ]
            empty = np.zeros([0 if at == along.dim else n for at, n in enumerate(expected[key].shape)])
            expected[key] = np.stack(columns, axis=along.dim) if columns else empty
        found = optimizer.state[new][key]
        assert found.dtype == dtype
        assert found.stride() == new.stride()
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-12}.get(dtype, 1e-6)
        assert found.to(torch.complex128).numpy() == pytest.approx(expected[key], rel=tolerance, abs=tolerance / 10)
    assert float(optimizer.state[new]["step"]) == 3
    assert optimizer.state[new]["step"] is not kept["step"]
    assert list(optimizer.state) == [new]
    assert optimizer.param_groups[0]["params"] == [new]


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop", "adagrad", "fused adam"])
@pytest.mark.parametrize("state", ["split", "copy", "reset"])
def test_training_goes_on_as_with_an_optimizer_made_anew_from_that_state(name: str, state: Any) -> None:
    model, make = network(), OPTIMIZERS[name]
    optimizer = make(model.parameters(), 0.01)
    for number in range(3):
        step(model, optimizer, number)
    transfer(optimizer, grow(model, wide()), state=state)
    twin = copy.deepcopy(model)
    fresh = make(twin.parameters(), 0.5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    third, pickled = pickle.loads(pickle.dumps((model, optimizer)))
    fourth, copied = copy.deepcopy((model, optimizer))
    for number in range(3, 6):
        for each, its in ((model, optimizer), (twin, fresh), (third, pickled), (fourth, copied)):
            step(each, its, number)
    for others in zip(*(each.parameters() for each in (model, twin, third, fourth)), strict=True):
        assert all(torch.equal(others[0], other) for other in others[1:])


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("flags", [{"fused": True}, {"foreach": True}, {"capturable": True}], ids=str)
def test_fused_and_foreach_go_on_on_channels_last_weights(device: str, flags: dict[str, bool]) -> None:
    if device == "cpu" and "capturable" in flags:
        pytest.skip("torch takes capturable steps on a GPU alone")
    trained = []
    for options in (flags, {"foreach": False}):
        model = network().float().to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, **options)
        for number in range(8):
            if number == 4:
                moves = grow(model, wide())
                for move in moves:  # as a growth that keeps the strides would
                    if move.new.dim() == 4:
                        move.new.data = move.new.data.contiguous(memory_format=torch.channels_last)
                transfer(optimizer, moves)
            x, y = batch(number)
            optimizer.zero_grad()
            F.cross_entropy(model(x.float().to(device)), y.to(device)).backward()
            optimizer.step()
        state = optimizer.state[model[3].weight]
        assert state["exp_avg"].is_contiguous(memory_format=torch.channels_last)
        assert not state["exp_avg"].is_contiguous()
        trained.append([each.detach() for each in model.parameters()])
    for one, other in zip(*trained, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_groups_positions_names_and_what_is_not_trained() -> None:
    model = network()
    named = dict(model.named_parameters())
    groups = [
        {"params": [(name, named[name]) for name in ("7.weight", "0.weight", "1.bias")], "lr": 0.5},
        {"params": [(name, named[name]) for name in ("3.bias", "7.bias")]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    bystander = nn.Parameter(torch.zeros(2))
    optimizer.add_param_group({"params": [("other", bystander)]})
    bystander.grad = torch.ones(2)
    step(model, optimizer, 0)  # clears that gradient first
    kept = optimizer.state[named["7.bias"]]["momentum_buffer"]
    transfer(optimizer, grow(model, wide()))
    first, second, third = optimizer.param_groups
    found = [
        [each is now for each, now in zip(group["params"], expected, strict=True)]
        for group, expected in (
            (first, [model[7].weight, model[0].weight, model[1].bias]),
            (second, [model[3].bias, model[7].bias]),
            (third, [bystander]),
        )
    ]
    assert all(itertools.chain(*found))
    assert first["param_names"] == ["7.weight", "0.weight", "1.bias"]
    assert (first["lr"], second["lr"]) == (0.5, 0.1)
    assert optimizer.state[named["7.bias"]]["momentum_buffer"] is kept  # nothing happened to it
    assert not set(optimizer.state) - {each for group in optimizer.param_groups for each in group["params"]}
    assert model[3].weight not in optimizer.state  # was not trained, and is not
    step(model, optimizer, 1)


def test_a_tensor_that_was_moved_twice_is_as_if_it_was_moved_once() -> None:
    once, twice = network(), network()
    optimizers = [OPTIMIZERS["adam"](each.parameters(), 0.01) for each in (once, twice)]
    for each, its in zip((once, twice), optimizers, strict=True):
        step(each, its, 0)
    maps = wide()
    transfer(optimizers[0], grow(once, maps))
    transfer(optimizers[1], [*grow(twice, {0: maps[0]}), *grow(twice, {3: maps[3]})])
    assert greatest_difference(*optimizers) < 1e-12


def test_before_the_first_step_there_is_nothing_to_carry() -> None:
    model = network()
    for name in ("sgd", "adam"):
        optimizer = OPTIMIZERS[name](model.parameters(), 0.01)
        transfer(optimizer, grow(model, wide(units=(model[0].out_channels, model[3].out_channels))))
        assert not optimizer.state
        step(model, optimizer, 0)
        model = network()


@pytest.mark.parametrize("make", [torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Rprop, torch.optim.Adafactor])
def test_what_nobody_knows_how_to_grow_is_named_and_can_be_forgotten(make: Callable[..., Any]) -> None:
    model = network()
    optimizer = make(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    kept = {each: dict(state) for each, state in optimizer.state.items()}
    moves = grow(model, wide())
    for state in ("split", "copy"):
        with pytest.raises(UserError, match=rf"{make.__name__} keeps '\w+' .*state='reset'"):
            transfer(optimizer, moves, state=state)
    assert [[id(each) for each in group["params"]] for group in optimizer.param_groups] == [
        [id(each) for each in group] for group in groups
    ]
    assert optimizer.state.keys() == kept.keys()
    assert all(optimizer.state[each][key] is value for each in kept for key, value in kept[each].items())
    transfer(optimizer, moves, state="reset")
    step(model, optimizer, 1)


def test_wrong_names_and_optimizers_that_cannot_be_carried() -> None:
    model = network()
    with pytest.raises(UserError, match="did you mean 'split'"):
        transfer(torch.optim.SGD(model.parameters(), 0.1), [], state="splitt")
    for state in ("split", "reset"):
        with pytest.raises(UserError, match="LBFGS keeps one history"):
            transfer(torch.optim.LBFGS(model.parameters()), [], state=state)

    class Sharded(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})
            self.inner = torch.optim.SGD(self.param_groups[0]["params"], 0.1)

    with pytest.raises(UserError, match="Sharded works through an optimizer with groups of its own"):
        transfer(Sharded(model.parameters()), [])


def test_an_optimizer_set_up_by_fabric_goes_along() -> None:
    prepare_torchvision()
    from postgrad.training.fabric import make_fabric

    model, plain = network(), network()
    optimizer = OPTIMIZERS["adam"](model.parameters(), 0.01)
    _, wrapped = make_fabric(torch.device("cpu")).setup(model, optimizer)
    peer = OPTIMIZERS["adam"](plain.parameters(), 0.01)
    for number in range(6):
        if number == 3:
            transfer(wrapped, grow(model, wide()))
            transfer(peer, grow(plain, wide()))
        step(model, wrapped, number)
        step(plain, peer, number)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 3, gamma=0.5),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 12),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=12),
    "warm-up, then cosine": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(optimizer, 8)],
        milestones=[4],
    ),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, [lambda n: 0.9**n, lambda n: 1 / (1 + n)]),
    "swa": lambda optimizer: SWALR(optimizer, swa_lr=0.03, anneal_epochs=5),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("saved", [False, True], ids=["at once", "saved and loaded"])
def test_schedules_go_on_by_themselves(name: str, saved: bool) -> None:
    def course(grows: bool) -> list[tuple[float, ...]]:
        def make(model: nn.Sequential) -> tuple[torch.optim.Optimizer, Any]:
            groups = [{"params": model[:4].parameters()}, {"params": model[4:].parameters(), "lr": 0.02}]
            optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
            return optimizer, SCHEDULES[name](optimizer)

        model = network()
        optimizer, scheduler = make(model)
        rates = []
        for number in range(12):
            step(model, optimizer, number)
            if name == "plateau":
                scheduler.step(1.0)
            else:
                scheduler.step()
            rates.append(tuple(group[key] for group in optimizer.param_groups for key in ("lr", "momentum")))
            if grows and number == 5:
                transfer(optimizer, grow(model, wide()))
                if saved:
                    state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                    optimizer, scheduler = make(model)
                    scheduler.load_state_dict(state[1])
                    optimizer.load_state_dict(state[0])
        return rates

    rates = course(grows=True)
    assert rates == course(grows=False)
    assert len(set(rates)) > 1


NOISE = {
    3: torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
    7: torch.randn(3, 7, generator=torch.Generator().manual_seed(6), dtype=torch.float64),
}


def zero_sum(noise: Tensor, index: Tensor) -> Tensor:
    """Noise (out, in, …) less its mean over the replicas of each unit that it comes out of."""
    means = torch.stack([noise[:, index == unit].mean(dim=1) for unit in index], dim=1)
    return noise - means


def quiet_noise(maps: Maps) -> dict[int, Tensor]:
    # Noise on the second convolution would differ over its own replicas; these are to stay alike.
    rows = maps[3][0]
    return {3: zero_sum(NOISE[3], maps[0][0])[rows], 7: zero_sum(NOISE[7], rows)}


AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "swa": lambda model: StochasticWeightAveraging(model, steps_per_epoch=2, start_epoch=1),
    "ema": lambda model: ExponentialMovingAverage(model, decay=0.8),
    "lawa": lambda model: LatestWeightAveraging(model, steps_per_epoch=1, k=3),
    "pswa": lambda model: PeriodicWeightSampling(model, steps_per_epoch=5, fraction=0.8),
    "pswm": lambda model: PeriodicWeightSampling(model, steps_per_epoch=3, fraction=1.0, variant="pswm"),
}


@pytest.mark.parametrize("noisy", [False, True], ids=["plain", "noise"])
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_is_that_of_a_network_grown_before(name: str, noisy: bool) -> None:
    model, maps = network(), wide()
    noise = quiet_noise(maps) if noisy else None
    optimizer, average = OPTIMIZERS["sgd"](model.parameters(), 0.05), AVERAGES[name](model)
    before = grown_copy(model, maps, noise)
    its_average = AVERAGES[name](before)
    for number in range(7):
        step(model, optimizer, number)
        with torch.no_grad():
            for to, each in zip(before.parameters(), grown_copy(model, maps, noise).parameters(), strict=True):
                to.copy_(each)
        average.update(model)
        its_average.update(before)
    x, _ = batch(99)
    with average.averaged as network_:
        computed = network_.eval()(x).detach()
    transfer(optimizer, moves := grow(model.train(), maps, noise))
    transfer_average(average, model, moves)
    with average.averaged as network_:
        assert torch.allclose(network_.eval()(x), computed, rtol=1e-9, atol=1e-12)
    for number in range(7, 12):
        step(model.train(), optimizer, number)
        with torch.no_grad():
            for to, each in zip(before.parameters(), model.parameters(), strict=True):
                to.copy_(each)
        average.update(model)
        its_average.update(before)
    with average.averaged as one, its_average.averaged as other:
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
    AVERAGES[name](model).load_state_dict(copy.deepcopy(average.state_dict()))


@pytest.mark.parametrize(
    ("function", "use_buffers"),
    # torch's own mean of buffers fails on the count of batches of a BatchNorm.
    [(get_ema_multi_avg_fn(0.8), False), (get_ema_multi_avg_fn(0.8), True), (get_swa_multi_avg_fn(), False)],
    ids=["ema", "ema of buffers", "swa"],
)
def test_torchs_average_is_that_of_a_network_grown_before(function: Any, use_buffers: bool) -> None:
    model, maps = network(), wide()
    noise = quiet_noise(maps)
    optimizer = OPTIMIZERS["sgd"](model.parameters(), 0.05)
    average = AveragedModel(model, multi_avg_fn=function, use_buffers=use_buffers).eval()
    its_average = AveragedModel(grown_copy(model, maps, noise), multi_avg_fn=function, use_buffers=use_buffers)
    for number in range(5):
        step(model, optimizer, number)
        average.update_parameters(model)
        its_average.update_parameters(grown_copy(model, maps, noise))
    x, _ = batch(99)
    computed = average(x).detach()
    transfer(optimizer, moves := grow(model, maps, noise))
    broken = copy.deepcopy(average)
    transfer_average(average, model, moves)
    assert not average.module[0].training
    assert torch.allclose(average(x), computed, rtol=1e-9, atol=1e-12)
    whole = [
        Move(each.old, each.new, tuple(Along(a.dim, a.index, a.gradient, a.value) for a in each.along))
        for each in moves
    ]  # shares the wrong way round
    transfer_average(broken, model, whole)
    assert not torch.allclose(broken(x), computed, atol=1e-3)
    for number in range(5, 8):
        step(model, optimizer, number)
        average.update_parameters(model)
        its_average.update_parameters(model)
    for (name, mine), theirs in zip(average.state_dict().items(), its_average.state_dict().values(), strict=True):
        assert torch.allclose(mine.double(), theirs.double(), rtol=1e-9, atol=1e-12), name
    again = AveragedModel(model, multi_avg_fn=function, use_buffers=use_buffers)
    again.load_state_dict(average.state_dict())
    assert torch.equal(copy.deepcopy(average)(x), average(x))


def test_an_average_has_its_own_dtype_and_what_is_new_begins_with_the_networks() -> None:
    model = network().float()
    average = AveragedModel(model).double().requires_grad_(False)
    fresh = nn.Conv2d(2, 5, 3, bias=False)
    fresh.weight.data[:3] = model[0].weight.data
    index, share = torch.tensor([0, 1, 2, -1, -1]), torch.ones(5, dtype=torch.float64)
    along = Along(0, index, share, share)
    moves = [Move(model[0].weight, fresh.weight, (along,))]
    with torch.no_grad():
        average.module[0].weight.mul_(2)
    model[0] = fresh
    model.append(nn.Linear(3, 3))
    transfer_average(average, model, moves)
    assert {each.dtype for each in average.parameters()} == {torch.float64}
    assert not any(each.requires_grad for each in average.module[0].parameters())
    weight = average.module[0].weight
    assert torch.allclose(weight[:3], 2 * fresh.weight[:3].double())
    assert torch.equal(weight[3:], fresh.weight[3:].double())
    assert torch.equal(average.module[8].weight, model[8].weight.double())
    with torch.no_grad():
        fresh.weight.zero_()
    assert weight.abs().sum() > 0  # a copy


def test_an_average_follows_a_tensor_that_was_moved_twice() -> None:
    once, twice = network(), network()
    averages = [AveragedModel(each) for each in (once, twice)]
    with torch.no_grad():
        for average in averages:
            average.module[3].weight.mul_(3)
    maps = wide()
    transfer_average(averages[0], once, grow(once, maps))
    transfer_average(averages[1], twice, [*grow(twice, {0: maps[0]}), *grow(twice, {3: maps[3]})])
    for one, other in zip(averages[0].parameters(), averages[1].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)


def test_averages_that_cannot_follow() -> None:
    model, other = network(), network(1)
    average = ExponentialMovingAverage(model)
    average.update(model)
    with pytest.raises(UserError, match="another network"):
        transfer_average(average, other, [])
    with pytest.raises(UserError, match="another network"):
        transfer_average(AveragedModel(nn.Sequential(nn.Linear(2, 2), *network())), model, [])
    with pytest.raises(UserError, match="expected torch's AveragedModel"):
        transfer_average(nn.Linear(2, 2), model, [])  # type: ignore[arg-type]
    with average.averaged, pytest.raises(UserError, match="leave the `averaged` block"):
        transfer_average(average, model, [])
    late = AveragedModel(model)
    maps = wide()
    grow(model, {0: maps[0]})  # nobody told the average
    moves = grow(model, {3: maps[3]})
    with pytest.raises(UserError, match="moves of every growth"):
        transfer_average(late, model, moves)
    with pytest.raises(UserError, match="moves of every growth"):
        transfer_average(average, model, moves)
