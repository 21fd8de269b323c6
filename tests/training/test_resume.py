"""An interrupted training that goes on ends with the same bits as one that was left alone."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from postgrad.errors import UserError
from postgrad.training import Recipe

RECIPES = {
    "sgd": {},
    "momentum, StepLR by epoch": {
        "optimizer_options": {"momentum": 0.9, "nesterov": True},
        "schedule": "StepLR",
        "schedule_options": {"step_size": 2, "gamma": 0.5},
        "schedule_interval": "epoch",
    },
    "adam, cosine": {"optimizer": "adam", "lr": 0.01, "schedule": "cosine"},
    "adamw, one cycle, best": {
        "optimizer": "adamw",
        "lr": 0.01,
        "schedule": "onecycle",
        "keep": "best",
        "schedule_options": {"max_lr": 0.05},
        "validate_every": 2,
    },
    "rmsprop, CyclicLR": {
        "optimizer": "RMSprop",
        "lr": 0.01,
        "schedule": "CyclicLR",
        "schedule_options": {"base_lr": 0.001, "max_lr": 0.01, "step_size_up": 3, "cycle_momentum": False},
    },
    "adam with numpy's numbers": {
        "optimizer": "adam",
        "lr": np.float64(0.01),
        "optimizer_options": {"betas": (0.8, np.float32(0.5))},
    },
}


@pytest.mark.usefixtures("save_every_step")
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("after", [1, 8])
def test_going_on_inside_an_epoch_gives_the_same_bits(problem, same_bits, tmp_path, name, after):
    recipe = Recipe(steps=17, batch_size=16, **RECIPES[name])
    undisturbed, expected = problem.train(recipe)
    problem.train_interrupted(recipe, after=after, directory=tmp_path)
    model, history = problem.train(recipe, directory=tmp_path, resume=True, model=problem.model())
    assert same_bits(model, undisturbed)
    without_seconds = [{**row, "seconds": 0} for row in history.rows]
    assert without_seconds == [{**row, "seconds": 0} for row in expected.rows]
    assert (history.best_step, history.best_metrics) == (expected.best_step, expected.best_metrics)


@pytest.mark.usefixtures("save_every_step")
def test_interrupted_again_and_again(problem, same_bits, tmp_path):
    recipe = Recipe(steps=12, batch_size=16, optimizer="adam", lr=0.01)
    for _ in range(4):
        problem.train_interrupted(recipe, after=2, directory=tmp_path, resume=True)
    model, _ = problem.train(recipe, directory=tmp_path, resume=True)
    assert same_bits(model, problem.train(recipe)[0])


@pytest.mark.usefixtures("save_every_step")
def test_a_lost_part_of_the_checkpoint_would_be_seen(problem, same_bits, tmp_path):
    """Negative control: without the optimizer's momentum the bits differ."""
    recipe = Recipe(steps=12, batch_size=16, optimizer_options={"momentum": 0.9})
    problem.train_interrupted(recipe, after=6, directory=tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["optimizer"]["state"] = {}
    torch.save(content, tmp_path / "checkpoint.pt")
    model, _ = problem.train(recipe, directory=tmp_path, resume=True)
    assert not same_bits(model, problem.train(recipe)[0])


def test_a_finished_training_returns_at_once(problem, same_bits, tmp_path):
    recipe = Recipe(steps=9, batch_size=16, keep="best", validate_every=2)
    model, history = problem.train(recipe, directory=tmp_path)

    def never(*_):
        raise AssertionError("a finished training takes no step")

    again, same_history = problem.train(recipe, directory=tmp_path, resume=True, make_batch=never, validate=never)
    assert same_bits(model, again)
    assert history == same_history
    assert not again.training


def test_without_resume_it_begins_anew(problem, tmp_path):
    problem.train(Recipe(steps=9, batch_size=16), directory=tmp_path)
    _, history = problem.train(Recipe(steps=4, batch_size=16), directory=tmp_path)
    assert history.steps == 4
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 1


@pytest.mark.usefixtures("save_every_step")
def test_rows_written_after_the_checkpoint_are_dropped(problem, tmp_path):
    recipe = Recipe(steps=12, batch_size=16, validate_every=1)
    problem.train_interrupted(recipe, after=5, directory=tmp_path)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("6,1.2,9.9,0.05,0.0,9.9,1.0\n7,half a li")
    problem.train(recipe, directory=tmp_path, resume=True)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *map(str, range(1, 13))]
    assert "9.9" not in lines[6]


@pytest.mark.usefixtures("save_every_step")
def test_time_is_that_of_all_parts_together(problem, tmp_path):
    """Each step burns 10 ms of CPU time; work between the parts does not count."""

    def burn(seconds):
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    def slow_batch(indices, generator):
        burn(0.01)
        return problem.make_batch(indices, generator)

    recipe = Recipe(steps=30, batch_size=16)
    calls = 0

    def crashing(indices, generator):
        nonlocal calls
        calls += 1
        if calls > 15:
            raise RuntimeError("crash")
        return slow_batch(indices, generator)

    with pytest.raises(RuntimeError, match="crash"):
        problem.train(recipe, directory=tmp_path, make_batch=crashing, validate=None)
    burn(0.5)
    _, history = problem.train(recipe, directory=tmp_path, make_batch=slow_batch, validate=None, resume=True)
    assert 0.3 <= history.cpu_seconds < 0.3 + 0.35
    assert history.wall_seconds >= 0.3
    assert history.rows[-1]["seconds"] == pytest.approx(history.cpu_seconds, abs=0.1)


def test_ctrl_c_keeps_the_step_that_was_under_way(problem, same_bits, tmp_path):
    recipe = Recipe(steps=20, batch_size=16, optimizer="adam", lr=0.01)
    steps = 0

    def interrupt(model, batch):
        nonlocal steps
        steps += 1
        if steps == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return problem.loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        problem.train(recipe, directory=tmp_path, loss=interrupt)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["position"]["step"] == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model, _ = problem.train(recipe, directory=tmp_path, resume=True)
    assert same_bits(model, problem.train(recipe)[0])


def test_an_interrupt_while_a_batch_is_made_keeps_all_steps_before(problem, same_bits, tmp_path):
    """Where Ctrl-C is not ours to defer, it may still come at a place where the weights are whole."""
    recipe = Recipe(steps=20, batch_size=16, optimizer="adam", lr=0.01)
    steps = 0

    def interrupted(indices, generator):
        nonlocal steps
        steps += 1
        if steps == 8:
            raise KeyboardInterrupt
        return problem.make_batch(indices, generator)

    with pytest.raises(KeyboardInterrupt):
        problem.train(recipe, directory=tmp_path, make_batch=interrupted)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["position"]["step"] == 7
    model, _ = problem.train(recipe, directory=tmp_path, resume=True)
    assert same_bits(model, problem.train(recipe)[0])


def test_a_second_ctrl_c_leaves_at_once(problem, tmp_path):
    def interrupt_twice(model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        problem.train(Recipe(steps=20), directory=tmp_path, loss=interrupt_twice)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["position"]["step"] == 0


def test_ctrl_c_in_the_last_step_keeps_the_finished_training(problem, same_bits, tmp_path):
    recipe = Recipe(steps=4, batch_size=16)

    def interrupt(model):
        os.kill(os.getpid(), signal.SIGINT)
        return problem.validate(model)

    with pytest.raises(KeyboardInterrupt):
        problem.train(recipe, directory=tmp_path, validate=interrupt)
    model, history = problem.train(recipe, directory=tmp_path, resume=True)
    assert history.steps == 4
    assert same_bits(model, problem.train(recipe)[0])


def test_trains_in_another_thread_too(problem, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(problem.train(Recipe(steps=3), directory=tmp_path)[1].steps)
    )
    thread.start()
    thread.join()
    assert results == [3]


KILLED = """
    import sys, torch
    from pathlib import Path
    from torch import nn
    from torch.nn import functional as F
    from postgrad.training import Recipe, loop, train

    loop.SAVE_EVERY_SECONDS = 0.02
    torch.manual_seed(0)
    x = torch.randn(300, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    step = 0

    class Say:
        def begin(self, optimizer, steps): pass
        def finish(self): pass
        def state_dict(self): return {}
        def load_state_dict(self, state): pass
        def after_step(self):
            global step
            step += 1
            print(step, flush=True)

    train(
        model, n=300, seed=0, directory=Path(sys.argv[1]), resume=True, companions=[Say()],
        make_batch=lambda i, g: (x[i] + torch.randn(len(i), 6, generator=g), y[i]),
        loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        recipe=Recipe(steps=400, batch_size=16, optimizer="adam", schedule="cosine", lr=0.01),
    )
    torch.save(model.state_dict(), Path(sys.argv[1]) / "weights.pt")
"""


def test_killed_inside_an_epoch(tmp_path, monkeypatch, capfd):
    """A real process, killed so that it can clean up nothing."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(KILLED))

    def run_here(directory):
        monkeypatch.setattr("postgrad.training.loop.SAVE_EVERY_SECONDS", 30.0)
        monkeypatch.setattr(sys, "argv", [str(script), str(directory)])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(script))
        return torch.load(directory / "weights.pt", weights_only=True), capfd.readouterr().out

    command = [sys.executable, "-W", "error", str(script), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 205:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    at = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["position"]["step"]
    assert 0 < at < 400
    weights, said = run_here(tmp_path / "killed")
    assert len(said.splitlines()) == 400 - at
    expected, _ = run_here(tmp_path / "undisturbed")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("save_every_step")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.1}, "lr was 0.05, is now 0.1"),
        ({"steps": 30}, "a training of 20 steps, not 30"),
        ({"steps": None, "budget": "1m"}, "a training with budget None, not 1m"),
        ({"optimizer_options": {"momentum": 0.5}}, "optimizer_options was {}, is now {'momentum': 0.5}"),
    ],
)
def test_other_settings_than_the_checkpoints_are_refused(problem, tmp_path, change, message):
    settings = {"steps": 20, "batch_size": 16}
    problem.train_interrupted(Recipe(**settings), after=3, directory=tmp_path)
    with pytest.raises(UserError, match=message):
        problem.train(Recipe(**{**settings, **change}), directory=tmp_path, resume=True)


@pytest.mark.usefixtures("save_every_step")
def test_another_seed_data_or_network_is_refused(problem, tmp_path):
    recipe = Recipe(steps=20, batch_size=16)
    problem.train_interrupted(recipe, after=3, directory=tmp_path)
    with pytest.raises(UserError, match="seed was 5, is now 6"):
        problem.train(recipe, directory=tmp_path, resume=True, seed=6)
    with pytest.raises(UserError, match="the checkpoint is of another network"):
        problem.train(recipe, directory=tmp_path, resume=True, model=torch.nn.Linear(6, 3))
    problem.x = problem.x[:60]
    with pytest.raises(UserError, match="n was 70, is now 60"):
        problem.train(recipe, directory=tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(problem, tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint\.pt is not a checkpoint that can be read; delete it"):
        problem.train(Recipe(steps=2), directory=tmp_path, resume=True)


def test_a_checkpoint_cannot_run_code(problem, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"format": 1, "settings": {}, "evil": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        problem.train(Recipe(steps=2), directory=tmp_path, resume=True)
    assert not (tmp_path / "owned").exists()


def test_a_training_that_rests_after_a_look_goes_on_to_the_same_bits(problem, same_bits, tmp_path):
    recipe = Recipe(
        steps=17, batch_size=16, lr=0.05, optimizer_options={"momentum": 0.9}, validate_every=3, keep="best"
    )
    looks, undisturbed = [], problem.model()

    def look(history):
        looks.append((history.steps, len(history.rows), undisturbed[0].weight.detach().clone()))
        return False

    _, expected = problem.train(recipe, model=undisturbed, after_look=look)
    assert [look[:2] for look in looks] == [(3, 1), (6, 2), (9, 3), (12, 4), (15, 5), (17, 6)]
    for step in (6, 12):
        model, rested = problem.train(
            recipe, directory=tmp_path, resume=True, after_look=lambda history, step=step: history.steps == step
        )
        assert (rested.steps, len(rested.rows)) == (step, step // 3)
        assert not model.training
        assert torch.equal(model[0].weight, looks[step // 3 - 1][2]), "the last weights, not the best"
    model, history = problem.train(recipe, directory=tmp_path, resume=True, after_look=lambda _: True)
    assert history.steps == 15
    model, history = problem.train(recipe, directory=tmp_path, resume=True)
    assert same_bits(model, undisturbed)
    assert (history.steps, history.best_step) == (expected.steps, expected.best_step)
