"""A time budget becomes a number of steps, which then stands for it."""

from __future__ import annotations

import time

import pytest
import torch

from postgrad.errors import UserError
from postgrad.training import Recipe
from postgrad.training.plan import steps_within


class Clock:
    """A clock that its own steps and validations move."""

    def __init__(self, step, validation=0.0, warm_up=0.0):
        self.now, self.steps, self.validations = 0.0, 0, 0
        self._step, self._validation, self._warm_up = step, validation, warm_up

    def __call__(self):
        return self.now

    def take_step(self, step):
        assert step == self.steps
        self.steps += 1
        self.now += self._step + (self._warm_up if step < 2 else 0.0)

    def validate(self):
        self.validations += 1
        self.now += self._validation


def planned(clock, seconds, interval=10**9):
    return steps_within(seconds, clock=clock, take_step=clock.take_step, validate=clock.validate, interval=interval)


def burning(problem, seconds):
    """Batches that take so much processor time each, so that the machine's other work matters little."""

    def make_batch(indices, generator):
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass
        return problem.make_batch(indices, generator)

    return make_batch


def test_times_the_steps_after_the_warm_up():
    clock = Clock(step=0.01, warm_up=1.0)
    assert planned(clock, 100.0) == pytest.approx(100 / 0.01, rel=1e-3)
    assert clock.steps == pytest.approx(502, abs=1)  # a twentieth, behind the two


def test_a_slow_first_validation_is_no_part_of_the_time():
    clock = Clock(step=0.01, validation=0.5)
    validate = clock.validate

    def first_slow():
        clock.now += 20.0 * (clock.validations == 0)
        validate()

    clock.validate = first_slow
    assert planned(clock, 100.0, interval=100) == pytest.approx((100 - 0.5) / (0.01 + 0.5 / 100), abs=1)


def test_validation_is_part_of_the_time():
    clock = Clock(step=0.01, validation=0.5)
    steps = planned(clock, 100.0, interval=50)
    assert steps * 0.01 + steps // 50 * 0.5 == pytest.approx(100, abs=1)


def test_timing_takes_a_fifth_of_the_budget_at_most_and_one_step():
    clock = Clock(step=1.0)
    assert planned(clock, 20.0) == 20
    assert clock.steps == 5
    clock = Clock(step=50.0)
    assert planned(clock, 20.0) == 1
    assert clock.steps == 2


def test_the_same_training_gets_its_own_time_back(problem):
    """A control that is its method again has as many steps, give or take what a machine's clock does."""
    make_batch = burning(problem, 0.03)
    _, first = problem.train(Recipe(steps=60, batch_size=16), make_batch=make_batch)
    _, again = problem.train(Recipe(budget=f"{first.cpu_seconds:.3f}s", batch_size=16), make_batch=make_batch)
    assert again.steps == pytest.approx(first.steps, rel=0.1)
    assert again.cpu_seconds == pytest.approx(first.cpu_seconds, rel=0.15)


def test_a_training_by_budget_equals_one_by_its_number_of_steps(problem, same_bits, tmp_path):
    recipe = Recipe(budget="0.4s", batch_size=16, optimizer="adam", schedule="cosine", lr=0.01)
    model, history = problem.train(recipe, directory=tmp_path)
    by_steps = Recipe(**{**recipe.model_dump(), "budget": None, "steps": history.steps})
    assert history.steps > 20
    assert same_bits(model, problem.train(by_steps)[0])
    again, same = problem.train(by_steps, directory=tmp_path, resume=True)
    assert same == history
    assert same_bits(model, again)


def test_the_budget_is_kept(problem):
    make_batch = burning(problem, 0.02)
    _, history = problem.train(Recipe(budget="2s", batch_size=16), make_batch=make_batch)
    assert history.cpu_seconds == pytest.approx(2.0, rel=0.25)


def test_the_number_of_steps_is_stored_and_used_again(problem, same_bits, tmp_path):
    recipe = Recipe(budget="0.5s", batch_size=16)
    problem.train_interrupted(recipe, after=18, directory=tmp_path)
    total = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["total"]
    model, history = problem.train(recipe, directory=tmp_path, resume=True)
    assert history.steps == total
    assert same_bits(model, problem.train(Recipe(steps=total, batch_size=16))[0])


def test_the_number_of_steps_is_stored_before_the_first_step(problem, tmp_path):
    problem.train_interrupted(Recipe(budget="0.5s", batch_size=16), after=0, directory=tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()


@pytest.mark.usefixtures("save_every_step")
def test_another_budget_is_refused(problem, tmp_path):
    problem.train_interrupted(Recipe(budget="0.5s", batch_size=16), after=1, directory=tmp_path)
    with pytest.raises(UserError, match=r"with budget 0\.5s, not 1m"):
        problem.train(Recipe(budget="1m", batch_size=16), directory=tmp_path, resume=True)
