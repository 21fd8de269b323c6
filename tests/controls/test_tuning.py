"""Tuning in time: validation data choose the rate, trials are charged, step counts repeat a training to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls import tuning
from postgrad.controls.setting import without
from postgrad.controls.tuning import DIVERGED, Fitted, Task, accuracy_and_nll, batched, network_validator, tuned
from postgrad.data.splits import halves
from postgrad.errors import UserError

RATES = (1e-7, 0.3)
"""At the first nothing is learned in a few steps, at the second everything."""


def points(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(80, 5, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long()


def make_task(*, reverse: bool = False) -> Task:
    """Two classes divided by the sign of the first number; with `reverse` the validation labels are the wrong ones."""
    x, y = points(0)
    held_out, truth = points(1)

    def make_batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return x[indices] + 0.01 * torch.randn(len(indices), 5, generator=generator), y[indices]

    def validate(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return accuracy_and_nll(model(held_out), 1 - truth if reverse else truth)

    return Task(lambda: nn.Linear(5, 2), len(x), make_batch, validate, batch_size=16)


def run(directory: Path, steps: dict[str, int], task: Task | None = None, **options: Any) -> Fitted:
    settings: dict[str, Any] = {"rates": RATES, "seconds": 0.5, "seed": 0, **options}
    return tuned(task or make_task(), directory=directory, steps=steps, key="k", **settings)


def few_steps(count: int = 25) -> dict[str, int]:
    return {f"k/{name}": count for name in ("trial-0", "trial-1", "trial-2", "final")}


def test_the_rate_that_is_best_on_validation_is_chosen(tmp_path: Path) -> None:
    fitted = run(tmp_path, few_steps())
    assert fitted.description.startswith("learning rate 0.3 of 1e-07, 0.3, 25 steps")
    assert [trial["lr"] for trial in fitted.trials] == list(RATES)
    assert fitted.trials[1]["accuracy"] > 0.95 > fitted.trials[0]["accuracy"]
    x, y = points(2)
    assert float((fitted.model(x).argmax(dim=1) == y).double().mean()) > 0.9


def test_it_is_validation_that_chooses(tmp_path: Path) -> None:
    """Negative control: where validation prefers what has learned nothing, the other rate is chosen."""
    fitted = run(tmp_path, few_steps(), make_task(reverse=True))
    assert fitted.description.startswith("learning rate 1e-07")


def test_equal_accuracies_are_decided_by_the_likelihood(tmp_path: Path) -> None:
    task = make_task()
    always_right = Task(
        task.make_model, task.n, task.make_batch, lambda model: {**task.validate(model), "accuracy": 1.0}, 16
    )
    assert run(tmp_path, few_steps(), always_right).description.startswith("learning rate 0.3")
    assert run(tmp_path / "2", few_steps(), always_right, rates=(0.3, 1e-7)).description.startswith("learning rate 0.3")


def test_trials_are_charged(tmp_path: Path) -> None:
    fitted = run(tmp_path, few_steps())
    kept = [
        torch.load(file, weights_only=True)["history"]["cpu_seconds"]
        for file in sorted(tmp_path.rglob("checkpoint.pt"))
    ]
    assert len(kept) == 3
    assert fitted.cpu_seconds == pytest.approx(sum(kept))
    assert fitted.cpu_seconds > max(kept)


def test_a_time_becomes_step_counts_that_repeat_it_to_the_bit(tmp_path: Path, same_bits) -> None:
    steps: dict[str, int] = {}
    first = run(tmp_path / "1", steps)
    assert steps.keys() == {"k/trial-0", "k/trial-1", "k/final"}
    assert min(steps.values()) > 0
    again = run(tmp_path / "2", dict(steps), seconds=100.0)
    assert same_bits(first.model, again.model)
    assert again.trials == first.trials
    assert again.description == first.description


def test_another_step_count_or_seed_gives_other_bits(tmp_path: Path, same_bits) -> None:
    """Negative control of the test above."""
    fitted = run(tmp_path / "1", few_steps())
    assert not same_bits(fitted.model, run(tmp_path / "2", few_steps() | {"k/final": 26}).model)
    assert not same_bits(fitted.model, run(tmp_path / "3", few_steps(), seed=1).model)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path, few_steps(2))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_a_rate_at_which_the_loss_becomes_infinite_is_left_out(tmp_path: Path, same_bits) -> None:
    steps = {f"k/{name}": 60 for name in ("trial-0", "trial-1", "trial-2", "final")}
    fitted = run(tmp_path / "1", steps, rates=(1e-7, 0.3, 1e38))
    assert fitted.trials[2] == {"lr": 1e38, "diverged": True}
    assert fitted.description.startswith("learning rate 0.3")
    assert steps["k/trial-2"] == DIVERGED
    again = run(tmp_path / "2", steps, rates=(1e-7, 0.3, 1e38))
    assert same_bits(fitted.model, again.model)
    assert not (tmp_path / "2" / "trial-2").exists()


def test_no_rate_left_is_a_plain_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"infinite at every learning rate \(1e\+37, 1e\+38\)"):
        run(tmp_path, few_steps(60), rates=(1e37, 1e38))


def test_a_final_training_that_diverges_hands_over_to_the_next_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_bits
) -> None:
    real = tuning._run

    def brittle(task, rate, seconds, seed, directory, steps, key):  # type: ignore[no-untyped-def]
        if rate == 0.3 and key == "k/final":
            directory.mkdir(parents=True)
            raise tuning.Diverged(1000.0)
        return real(task, rate, seconds, seed, directory, steps, key)

    monkeypatch.setattr(tuning, "_run", brittle)
    steps = few_steps()
    fitted = run(tmp_path / "1", steps)
    assert fitted.description.startswith("learning rate 1e-07")
    assert fitted.cpu_seconds > 1000
    assert steps["k/trial-1"] == DIVERGED
    monkeypatch.undo()
    assert same_bits(fitted.model, run(tmp_path / "2", steps).model)


def test_an_interrupted_tuning_goes_on_to_the_same_bits(tmp_path: Path, same_bits) -> None:
    undisturbed = run(tmp_path / "1", few_steps())
    task, batches = make_task(), 0

    def interrupted(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        nonlocal batches
        batches += 1
        if batches == 60:
            raise KeyboardInterrupt
        return task.make_batch(indices, generator)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "2", few_steps(), Task(task.make_model, task.n, interrupted, task.validate, 16))
    resumed = run(tmp_path / "2", few_steps())
    assert same_bits(undisturbed.model, resumed.model)
    assert resumed.trials == undisturbed.trials


@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)))
def test_without_keeps_order_and_repetitions(indices: list[int], others: list[int]) -> None:
    kept = without(torch.tensor(indices, dtype=torch.int64), torch.tensor(others, dtype=torch.int64))
    assert kept.tolist() == [index for index in indices if index not in set(others)]


def test_validator_measures_the_network_on_the_images(make_setting, digits) -> None:
    setting, images = make_setting(), digits.test
    with torch.no_grad():
        logits = setting.base(digits.preprocess(images.images))
    expected = {
        "accuracy": float((logits.argmax(1) == images.labels).double().mean()),
        "nll": float(F.cross_entropy(logits, images.labels)),
    }
    assert network_validator(setting, images)(setting.base) == pytest.approx(expected, rel=1e-5)


def test_validator_spreads_over_many_images(make_setting, digits, monkeypatch, make_network) -> None:
    monkeypatch.setattr(tuning, "VALIDATION_IMAGES", 3)
    seen: list[Tensor] = []
    monkeypatch.setattr(tuning, "batched", lambda model, preprocess, images: seen.append(images) or torch.zeros(3, 10))
    network_validator(make_setting(), digits.test)(make_network())
    count = len(digits.test)
    torch.testing.assert_close(seen[0], digits.test.images[[0, (count - 1) // 2, count - 1]])


def test_batched_evaluates_and_puts_the_mode_back(digits) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).train()
    images = digits.train.images.repeat(3, 1, 1, 1)
    logits = batched(net, digits.preprocess, images)
    assert net.training
    with torch.no_grad():
        torch.testing.assert_close(logits, net.eval()(digits.preprocess(images)))


def test_tuning_images_hold_none_that_validate(make_setting, digits) -> None:
    parts = halves(digits)
    whole = torch.cat([parts.method_train, parts.method_validation])
    setting = make_setting(halves=type(parts)(parts.base_train, whole, whole, parts.method_validation))
    expected = digits.train.images[parts.method_train]
    torch.testing.assert_close(setting.tuning_images.images, expected)
    assert len(setting.validation) == len(parts.method_validation)
