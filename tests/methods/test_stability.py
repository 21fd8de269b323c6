"""What is taken for a divergence, and what is done about it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from postgrad.methods._stability import KEPT_EVERY, RETRIES, Stability, gradient_norm
from postgrad.training import DivergedError


def begun(**options: Any) -> tuple[nn.Linear, torch.optim.Optimizer, Stability, list[dict[str, Any]]]:
    torch.manual_seed(0)
    model, events = nn.Linear(2, 2), []
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 1.0, "momentum": 0.9, **options})
    stability = Stability(model, told=lambda **what: events.append(what))
    stability.begin(optimizer)
    return model, optimizer, stability, events


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"energy_gap": 101.0}, "energy_gap became 101"),
        ({"energy_gap": -101.0}, "energy_gap became -101"),
        ({"loss": math.nan}, "loss became nan"),
        ({"sample_reach": 51.0}, "sample_reach became 51"),
        ({"gradient_norm": math.inf}, "gradient_norm became inf"),
        ({"energy_gap": 99.0, "loss": 1e6, "sample_spread": 3.0}, None),
    ],
)
def test_figures_beyond_their_limit_are_trouble(figures: dict[str, float], reason: str | None) -> None:
    found = begun()[2].trouble(figures)
    assert (found is None) if reason is None else (found or "").startswith(reason)


def test_weights_and_optimizer_go_back_and_steps_are_half_as_long() -> None:
    model, optimizer, stability, events = begun()
    for _ in range(KEPT_EVERY):
        step(model, optimizer)
        stability.after_step()
    good, momentum = copy.deepcopy(model.state_dict()), optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    step(model, optimizer)
    assert stability.trouble({"energy_gap": 1e9}) is not None
    stability.go_back("it ran away")
    assert all(torch.equal(value, good[name]) for name, value in model.state_dict().items())
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], momentum)
    assert [(each["back_to"], each["retry"], each["factor"]) for each in events] == [(KEPT_EVERY, 1, 0.5)]
    step(model, optimizer)
    weight = good["weight"] - 0.5 * (0.9 * momentum + 1)
    torch.testing.assert_close(model.weight.detach(), weight)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_state_that_was_not_calm_is_not_kept() -> None:
    model, optimizer, stability, events = begun()
    first = copy.deepcopy(model.state_dict())
    for number in range(KEPT_EVERY):
        step(model, optimizer)
        assert stability.trouble({"energy_gap": 60.0 if number == 3 else 1.0}) is None
        stability.after_step()
    stability.go_back("it ran away")
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    assert events[0]["back_to"] == 0


@pytest.mark.parametrize("schedule", [lr_scheduler.CosineAnnealingLR, lr_scheduler.OneCycleLR])
def test_schedules_do_not_see_the_factor(schedule: Any) -> None:
    def rates(returns: int) -> list[float]:
        model, optimizer, stability, _ = begun()
        options = {"T_max": 6} if schedule is lr_scheduler.CosineAnnealingLR else {"max_lr": 1.0, "total_steps": 6}
        scheduler = schedule(optimizer, **options)
        seen = []
        for _ in range(returns):
            stability.go_back("it ran away")
        for _ in range(5):
            step(model, optimizer)
            scheduler.step()
            seen.append(optimizer.param_groups[0]["lr"])
        return seen

    assert rates(0) == rates(2)


def test_an_optimizer_whose_step_calls_its_parents_is_slowed_down_once() -> None:
    class Child(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # whose class has its hooks from here on
    model, events = nn.Linear(2, 2), []
    optimizer = Child(model.parameters(), lr=1.0)
    stability = Stability(model, told=lambda **what: events.append(what))
    stability.begin(optimizer)
    stability.go_back("it ran away")
    before = model.weight.detach().clone()
    step(model, optimizer)
    torch.testing.assert_close(model.weight.detach(), before - 0.5)


@pytest.mark.parametrize("looked", [True, False])
def test_after_some_returns_it_gives_up_with_the_best_weights(looked: bool) -> None:
    model, optimizer, stability, events = begun()
    step(model, optimizer)
    best = copy.deepcopy(model.state_dict())
    if looked:
        stability.looked(0.9)
    step(model, optimizer)
    stability.looked(0.8) if looked else None
    for _ in range(RETRIES):
        stability.go_back("it ran away")
    with pytest.raises(DivergedError, match=f"after {RETRIES} returns to a good state: it ran away"):
        stability.go_back("it ran away")
    assert torch.equal(model.weight, best["weight"]) is looked
    assert len(events) == RETRIES


def test_without_an_optimizer_there_is_no_way_back() -> None:
    stability = Stability(nn.Linear(2, 2), told=lambda **_: None)
    with pytest.raises(DivergedError, match=r"begin\(optimizer\)"):
        stability.go_back("it ran away")


def test_norm_of_all_gradients() -> None:
    model = nn.Linear(2, 2)
    assert gradient_norm(model) == 0
    model(torch.ones(1, 2)).sum().backward()
    assert gradient_norm(model) == pytest.approx(6**0.5)
