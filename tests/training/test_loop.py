"""The loop against a hand-written one; stopping, keeping, logging and refusing."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.training import Recipe, make_fabric


def hand_written_loop(problem, *, steps, batch_size, seed):
    """Plain torch, sharing with the loop only how a seed is derived from seed, purpose and number."""

    def derived(*key):
        return np.random.SeedSequence((seed, *key)).generate_state(2).tolist()

    model = problem.model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    order = torch.empty(0)
    per_epoch = math.ceil(len(problem.x) / batch_size)
    with torch.random.fork_rng(devices=[]):
        for step in range(steps):
            epoch, position = divmod(step, per_epoch)
            if position == 0:
                order = torch.randperm(len(problem.x), generator=torch.Generator().manual_seed(derived(0, epoch)[0]))
            indices = order[position * batch_size :][:batch_size]
            for_augmentation, for_network = derived(1, step, 0)
            batch = problem.make_batch(indices, torch.Generator().manual_seed(for_augmentation))
            torch.manual_seed(for_network)
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
            schedule.step()
    return model


RECIPE = Recipe(
    steps=25,
    batch_size=16,
    lr=0.1,
    optimizer_options={"momentum": 0.9, "weight_decay": 1e-3},
    schedule="cosine",
)


def test_equals_a_hand_written_loop_bit_for_bit(problem, same_bits):
    model, _ = problem.train(RECIPE)
    assert same_bits(model, hand_written_loop(problem, steps=25, batch_size=16, seed=5))
    assert not same_bits(model, hand_written_loop(problem, steps=25, batch_size=16, seed=6))


def test_images_are_laid_out_with_their_channels_last_and_nothing_else_changes(problem):
    images = torch.randn(70, 3, 5, 4)
    seen = []

    def train(laid_out):
        def loss(network, batch):
            inputs, rest = batch
            seen.append((inputs.is_contiguous(memory_format=torch.channels_last), rest["rows"].is_contiguous()))
            return F.cross_entropy(network((inputs if laid_out else inputs.contiguous()).mean((2, 3))), rest["y"])

        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        return problem.train(
            Recipe(steps=3, batch_size=8),
            model=model,
            make_batch=lambda i, generator: (images[i], {"y": problem.y[i], "rows": images[i, :, 0]}),
            loss=loss,
            validate=None,
        )[0]

    torch.testing.assert_close(train(True).weight, train(False).weight)
    assert seen
    assert all(each == (True, True) for each in seen)


def test_same_seed_same_bits_and_the_callers_random_numbers_are_left_alone(problem, same_bits):
    state = torch.get_rng_state()
    first, history = problem.train(RECIPE)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    second, again = problem.train(RECIPE)
    assert same_bits(first, second)
    assert [row["loss"] for row in history.rows] == [row["loss"] for row in again.rows]
    other, _ = problem.train(RECIPE, seed=6)
    assert not same_bits(first, other)


def test_every_image_once_an_epoch_in_a_new_order(problem):
    seen = []

    def make_batch(indices, generator):
        seen.append(indices)
        return problem.make_batch(indices, generator)

    problem.train(Recipe(epochs=2, batch_size=16), make_batch=make_batch)
    assert [len(indices) for indices in seen] == [16, 16, 16, 16, 6] * 2
    first, second = torch.cat(seen[:5]), torch.cat(seen[5:])
    assert torch.equal(first.sort().values, torch.arange(70))
    assert torch.equal(second.sort().values, torch.arange(70))
    assert not torch.equal(first, second)


def test_fractions_of_an_epoch(problem):
    assert problem.train(Recipe(epochs=1.4, batch_size=16))[1].steps == 7
    assert problem.train(Recipe(epochs=0.001, batch_size=16))[1].steps == 1
    assert problem.train(Recipe(epochs=3, batch_size=1000))[1].steps == 3


def test_rows_of_the_learning_curve_and_their_file(problem, tmp_path):
    _, history = problem.train(
        Recipe(
            steps=12,
            batch_size=16,
            lr=0.1,
            schedule="StepLR",
            schedule_interval="epoch",
            schedule_options={"step_size": 1, "gamma": 0.5},
        ),
        directory=tmp_path,
    )
    assert [row["step"] for row in history.rows] == [5, 10, 12]
    assert [row["lr"] for row in history.rows] == pytest.approx([0.1, 0.05, 0.025])
    assert list(history.rows[0]) == ["step", "epoch", "loss", "lr", "accuracy", "nll", "seconds"]
    with open(tmp_path / "metrics.csv", newline="") as file:
        written = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert written == history.rows
    assert history.epochs == pytest.approx(2.4)
    assert history.cpu_seconds > 0
    assert history.best_metrics["accuracy"] == max(row["accuracy"] for row in history.rows)


def test_event_file_for_tensorboard(problem, tmp_path):
    pytest.importorskip("tensorboard", reason="event files need the tensorboard extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = problem.train(Recipe(epochs=3, batch_size=16), directory=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 15]
    assert [event.value for event in events.Scalars("accuracy")] == pytest.approx(
        [row["accuracy"] for row in history.rows]
    )


def test_stops_at_the_target(problem):
    recipe = Recipe(epochs=100, batch_size=16, lr=0.2, stop_accuracy=0.8, validate_every=3)
    model, history = problem.train(recipe)
    assert history.reached_target is True
    assert history.steps < 500
    assert history.steps % 3 == 0
    assert problem.validate(model)["accuracy"] == history.best_metrics["accuracy"] >= 0.8
    assert all(row["accuracy"] < 0.8 for row in history.rows[:-1])


def test_a_target_is_looked_at_every_50_steps(problem):
    _, history = problem.train(Recipe(steps=120, batch_size=16, stop_accuracy=1.0, lr=1e-6))
    assert [row["step"] for row in history.rows] == [50, 100, 120]


def test_goes_on_with_the_best_weights_if_the_target_is_never_reached(problem):
    """The figures fall by a script, so that the best is neither the first nor the last."""
    figures = iter([0.3, 0.5, 0.4, 0.2])
    weights = []

    def validate(model):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"accuracy": next(figures)}

    model, history = problem.train(
        Recipe(steps=8, batch_size=16, stop_accuracy=0.9, validate_every=2), validate=validate
    )
    assert history.reached_target is False
    assert (history.best_step, history.best_metrics) == (4, {"accuracy": 0.5})
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights[1].items())


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 3)])
def test_keeps_the_best_or_the_last(problem, keep, kept):
    figures = iter([0.3, 0.5, 0.5, 0.2])
    weights = []

    def validate(model):
        weights.append(model[0].weight.detach().clone())
        return {"accuracy": next(figures)}

    model, history = problem.train(Recipe(steps=8, batch_size=16, keep=keep, validate_every=2), validate=validate)
    assert torch.equal(model[0].weight, weights[kept])
    assert history.best_step == 4
    assert history.reached_target is None


def test_model_is_in_training_mode_except_for_validation(problem):
    modes = []

    def loss(model, batch):
        modes.append(("step", model.training))
        return problem.loss(model, batch)

    def validate(model):
        modes.append(("validation", model.training))
        return {"accuracy": 0.5}

    model = problem.model().eval()
    problem.train(Recipe(steps=4, batch_size=16, validate_every=2), model=model, loss=loss, validate=validate)
    assert set(modes) == {("step", True), ("validation", False)}
    assert not model.training


class Watcher:
    """A companion that keeps a copy of a weight after each step."""

    def __init__(self, weight):
        self.weight, self.seen, self.steps, self.ended = weight, [], None, False

    def begin(self, optimizer, steps):
        self.steps = steps

    def after_step(self):
        self.seen.append(self.weight.detach().clone())

    def finish(self):
        self.ended = True
        with torch.no_grad():
            self.weight.zero_()

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_companions_see_each_step_and_have_the_last_word(problem, tmp_path):
    model = problem.model()
    watcher = Watcher(model[0].weight)
    recipe = Recipe(steps=4, batch_size=16)
    problem.train(recipe, model=model, companions=[watcher], directory=tmp_path)
    assert (watcher.steps, len(watcher.seen), watcher.ended) == (4, 4, True)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(watcher.seen))
    again = problem.model()
    problem.train(recipe, model=again, companions=[Watcher(again[0].weight)], directory=tmp_path, resume=True)
    for finished in (model, again):
        assert not finished[0].weight.any()


def test_what_a_companion_keeps_is_in_the_checkpoint(problem, tmp_path):
    model, straight = problem.model(), problem.model()
    recipe = Recipe(steps=6, batch_size=16, validate_every=3)
    undisturbed, first, second = (Watcher(net[0].weight) for net in (straight, model, model))
    problem.train(recipe, model=straight, companions=[undisturbed])
    rest = {"validate": lambda _: {}, "after_look": lambda history: history.steps == 3}
    problem.train(recipe, model=model, companions=[first], directory=tmp_path, **rest)
    assert len(first.seen) == 3
    assert not first.ended
    problem.train(recipe, model=model, companions=[second], directory=tmp_path, resume=True, **rest)
    assert second.ended
    assert all(torch.equal(a, b) for a, b in zip(second.seen, undisturbed.seen, strict=True))


def test_a_budget_s_timing_is_hidden_from_companions(problem):
    model = problem.model()
    watcher = Watcher(model[0].weight)
    _, history = problem.train(Recipe(budget="0.2s", batch_size=16), model=model, companions=[watcher])
    assert len(watcher.seen) == watcher.steps == history.steps


def test_adaptive_clipping_bounds_each_unit(problem):
    """Plain SGD with rate 1 moves each unit's weights by its gradient: by no more than the fraction of their norm."""
    pytest.importorskip("timm", reason="needs postgrad[timm]")
    moved = {}
    for clip in (None, 0.01):
        model = problem.model()
        before = model[0].weight.detach().clone()
        problem.train(Recipe(steps=1, batch_size=16, lr=1.0, adaptive_clip=clip), model=model)
        moved[clip] = ((model[0].weight - before).norm(dim=1) / before.norm(dim=1)).max()
    assert moved[0.01] <= 0.01 * 1.001
    assert moved[None] > 0.02


def test_adaptive_clipping_refuses_scaled_gradients():
    with pytest.raises(UserError, match="16-mixed"):
        Recipe(steps=1, adaptive_clip=0.01, precision="16-mixed")


def test_frozen_parameters_stay(problem):
    model = problem.model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    problem.train(Recipe(steps=3, batch_size=16, optimizer_options={"weight_decay": 0.1}), model=model)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_the_users_error(problem, tmp_path, value):
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        return problem.loss(model, batch) * (value if calls == 7 else 1.0)

    with pytest.raises(UserError, match=rf"base: the loss became {value} at step 7 with learning rate 0.05; try"):
        problem.train(Recipe(steps=20, batch_size=16), loss=loss, directory=tmp_path, label="base")


def test_training_that_diverges_by_its_learning_rate(problem):
    def squared(model, batch):
        return (model(batch[0]) ** 2).sum()

    with pytest.raises(UserError, match=r"learning rate 1e\+20"):
        problem.train(Recipe(steps=50, batch_size=16, lr=1e20), model=nn.Linear(6, 3), loss=squared)


def test_a_full_disk_is_the_users_error(problem, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(UserError, match=r"a file of that name is in the way|a part of that path is a file"):
        problem.train(Recipe(steps=2), directory=in_the_way)


def test_refuses_what_cannot_be_trained(problem):
    with pytest.raises(UserError, match="need validation data"):
        problem.train(Recipe(steps=2, stop_accuracy=0.5), validate=None)
    with pytest.raises(UserError, match="need validation data"):
        problem.train(Recipe(steps=2, keep="best"), validate=None)
    with pytest.raises(UserError, match="seed must be 0 or more"):
        problem.train(Recipe(steps=2), seed=-1)
    with pytest.raises(UserError, match="no parameter that requires a gradient"):
        problem.train(Recipe(steps=2), model=nn.Flatten())
    problem.x = problem.x[:0]
    with pytest.raises(UserError, match="no images"):
        problem.train(Recipe(steps=2))


def test_precision_is_the_fabrics(problem):
    with pytest.raises(UserError, match="the recipe's precision is 64-true, that of its fabric is 32-true"):
        problem.train(Recipe(steps=2, precision="64-true"), fabric=make_fabric("cpu"))
    model, _ = problem.train(
        Recipe(steps=2, precision="64-true"),
        make_batch=lambda i, g: (problem.x[i].double(), problem.y[i]),
        validate=None,
    )
    assert model[0].weight.dtype == torch.float64


def test_writes_nothing_without_a_directory(problem, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    problem.train(Recipe(steps=3))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
