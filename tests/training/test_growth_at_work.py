"""A training whose network grows on the way: the same bits however often it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from postgrad.changes import changes_of
from postgrad.errors import UserError
from postgrad.growth.at_work import GrowthAtWork
from postgrad.growth.operations import grow
from postgrad.growth.words import parse_operation
from postgrad.training import History, Recipe
from postgrad.training.optimizers import make_optimizer, names_in_order, put_in_order

STAGES = {1: ["widen:layer=0,to=20"], 2: ["deepen:after=3", "widen:layer=0,to=1.2x"]}
RECIPES = {
    "momentum, cosine": {"optimizer_options": {"momentum": 0.9}, "schedule": "cosine"},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
}


def recipe(name: str = "adamw", **changes: Any) -> Recipe:
    return Recipe(**{"epochs": 4, "batch_size": 16, **RECIPES[name], **changes})  # 5 steps an epoch


def grown(
    problem: Any, settings: Recipe, *, stages: Any = STAGES, by: Callable[..., Any] | None = None, **options: Any
) -> tuple[nn.Module, History]:
    model = problem.model()
    growth = GrowthAtWork(model, stages, recipe=settings, n=len(problem.x), example=problem.x[:8], seed=3)
    return (by or problem.train)(settings, model=model, companions=[growth], **options) or (model, None)


@pytest.mark.usefixtures("save_every_step")
@pytest.mark.parametrize(("name", "after"), [("adamw", 4), ("adamw", 5), ("momentum, cosine", 13)])
def test_interrupted_before_and_after_a_growth(problem, same_bits, tmp_path, name, after):
    """After 5 and 10 steps it grows; a checkpoint of step 5 has grown."""
    undisturbed, expected = grown(problem, recipe(name))
    grown(problem, recipe(name), by=problem.train_interrupted, after=after, directory=tmp_path)
    at = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert at["position"]["step"] == after
    assert len(at["changes"]) == (after >= 5) + 2 * (after >= 10)
    model, history = grown(problem, recipe(name), directory=tmp_path, resume=True)
    assert same_bits(model, undisturbed)
    assert changes_of(model) == changes_of(undisturbed)
    without_seconds = [{**row, "seconds": 0} for row in history.rows]
    assert without_seconds == [{**row, "seconds": 0} for row in expected.rows]


@pytest.mark.usefixtures("save_every_step")
def test_without_the_order_of_the_optimizer_its_state_does_not_fit(problem, tmp_path):
    """Negative control: parameters of a block that was put in stand at the end of the optimizer, not of the network."""
    settings = recipe("momentum, cosine")
    stages = {1: ["deepen:after=0"]}
    grown(problem, settings, stages=stages, by=problem.train_interrupted, after=8, directory=tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content.pop("order")[0][-1].startswith("0.grown")
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(RuntimeError, match="shape"):
        grown(problem, settings, stages=stages, directory=tmp_path, resume=True)


def test_a_finished_training_is_loaded_into_a_fresh_network(problem, same_bits, tmp_path):
    model, history = grown(problem, recipe(), directory=tmp_path)
    again, same_history = grown(problem, recipe(), directory=tmp_path, resume=True)
    assert same_bits(model, again)
    assert history == same_history


def test_a_training_that_rests_after_it_has_grown_goes_on(problem, same_bits, tmp_path):
    undisturbed, _ = grown(problem, recipe())
    model = problem.model()
    growth = GrowthAtWork(model, STAGES, recipe=recipe(), n=70, example=problem.x[:8], seed=3)
    for step in (5, 10, None):
        problem.train(
            recipe(),
            model=model,
            companions=[growth],
            directory=tmp_path,
            resume=True,
            after_look=lambda history, step=step: history.steps == step,
        )
    assert same_bits(model, undisturbed)


def test_it_grows_when_so_many_epochs_are_over_and_trains_what_is_new(problem):
    seen: list[tuple[int, str, str]] = []
    model = problem.model()
    first = model[0].weight
    growth = GrowthAtWork(
        model,
        STAGES,
        recipe=recipe(),
        n=70,
        example=problem.x[:8],
        told=lambda step, what: seen.append((step, what.place, what.change)),
    )
    looks: list[tuple[int, dict[str, float]]] = []
    problem.train(
        recipe(validate_every=1),
        model=model,
        companions=[growth],
        validate=lambda network: looks.append((network[0].out_features, problem.validate(network))) or looks[-1][1],
    )
    assert seen == [(5, "0", "16 → 20"), (10, "3", "+ residual features"), (10, "0", "20 → 24")]
    assert [size for size, _ in looks] == [16] * 4 + [20] * 5 + [24] * 11
    assert model[0].weight is not first
    assert all(bool(each.abs().sum() > 0) for each in model[3].grown.parameters()), "its last layer began at zero"


def test_the_optimizer_is_carried_over(problem):
    """By hand: the same steps, the same growth with the same optimizer, in a loop of one's own."""
    settings = recipe("momentum, cosine", schedule="constant", steps=7, epochs=None)
    ours, _ = grown(problem, settings, stages={1: ["widen:layer=0,to=20"]}, validate=None)
    from postgrad.training.batches import Batches, own_random_numbers

    model = problem.model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
    batches = Batches(70, 16, 5)
    with own_random_numbers(torch.device("cpu")):
        for step in range(7):
            indices, generator, _ = batches(step)
            loss = problem.loss(model, problem.make_batch(indices, generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 4:
                call = parse_operation("widen:layer=0,to=20")
                grow(model, [call], example=problem.x[:8], optimizer=optimizer, seed=3)
    for (name, a), b in zip(ours.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        (STAGES, {"epochs": None, "budget": "5s"}, "with a time budget"),
        (STAGES, {"keep": "best"}, "the best weights may be those of the network before"),
        (STAGES, {"stop_accuracy": 0.9}, "leave out stop_accuracy"),
        ({4: ["deepen:after=3"]}, {}, "after epoch 4 the training is over, as it takes 4"),
        ({0: ["deepen:after=3"]}, {}, "expected a number of epochs, 1 or more"),
        ({1: []}, {}, "nothing grows after epoch 1"),
        ({1: ["widn:layer=0"]}, {}, "did you mean 'widen'"),
        ({1: ["widen:layr=0,to=2"]}, {}, "did you mean 'layer'"),
        ({1: ["widen:layer=0"]}, {}, "to is missing; write widen:layer=…,to=…"),
        ({1: ["widen:layer=0,to=many"]}, {}, "widen:to: should be a valid integer"),
        ({1: ["widen:layer=0,to=0.5x"]}, {}, "a multiple above 1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_training(problem, stages, settings, message):
    with pytest.raises(UserError, match=message):
        grown(problem, recipe(**settings), stages=stages)


def test_a_rehearsal_says_what_does_not_fit_and_changes_nothing(problem, same_bits):
    model = problem.model()
    good = GrowthAtWork(model, STAGES, recipe=recipe(), n=70, example=problem.x[:8])
    good.rehearse()
    assert same_bits(model, problem.model())
    assert changes_of(model) == ()
    bad = GrowthAtWork(model, {1: ["widen:layer=4,to=9"]}, recipe=recipe(), n=70, example=problem.x[:8])
    with pytest.raises(UserError, match="what the network returns"):
        bad.rehearse()


@pytest.mark.usefixtures("save_every_step")
def test_other_growth_than_the_checkpoints_is_refused(problem, tmp_path):
    grown(problem, recipe(), by=problem.train_interrupted, after=3, directory=tmp_path)
    with pytest.raises(UserError, match="a training with other growth"):
        grown(problem, recipe(), stages={1: ["widen:layer=0,to=21"]}, directory=tmp_path, resume=True)


def test_an_optimizer_of_other_parameters_is_refused(problem):
    model = problem.model()
    optimizer = make_optimizer("sgd", model.parameters(), lr=0.1, options={})
    order = names_in_order(optimizer, model)
    put_in_order(optimizer, model, [list(reversed(order[0]))])
    assert names_in_order(optimizer, model) == [list(reversed(order[0]))]
    for wrong in ([order[0][1:]], [*order, []], [[*order[0], "no.such"]]):
        with pytest.raises(UserError, match="of an optimizer with other parameters"):
            put_in_order(optimizer, model, wrong)


def test_all_operations_or_none(problem, same_bits):
    model = problem.model()
    calls = [parse_operation(word) for word in ("widen:layer=0,to=20", "widen:layer=4,to=9")]
    with pytest.raises(UserError, match="what the network returns"):
        grow(model, calls, example=problem.x[:8])
    assert same_bits(model, problem.model())


KILLED = """
    import sys, torch
    from pathlib import Path
    from torch import nn
    from torch.nn import functional as F
    from postgrad.growth.at_work import GrowthAtWork
    from postgrad.training import Recipe, loop, train

    loop.SAVE_EVERY_SECONDS = 0.0
    torch.manual_seed(0)
    x = torch.randn(48, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    recipe = Recipe(epochs=4, batch_size=16, optimizer="adam", schedule="cosine", lr=0.01)
    growth = GrowthAtWork(model, {2: ["widen:layer=0,to=12", "deepen:after=1"]}, recipe=recipe, n=48, example=x[:4])
    before = growth.after_step
    def after_step():
        print(growth._step + 1, flush=True)
        before()
    growth.after_step = after_step
    train(
        model, n=48, seed=0, directory=Path(sys.argv[1]), resume=True, companions=[growth], recipe=recipe,
        make_batch=lambda i, g: (x[i] + torch.randn(len(i), 6, generator=g), y[i]),
        loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
    )
    torch.save(model.state_dict(), Path(sys.argv[1]) / "weights.pt")
"""


@pytest.mark.slow
def test_killed_while_it_grows_and_after_it_has_grown(tmp_path: Path) -> None:
    """Real processes, killed so that they can clean up nothing: in the growth after step 6, and at step 8."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, "-W", "error", str(script)]

    def run(directory: Path, kill_at: int | None) -> None:
        with subprocess.Popen(
            [*command, str(directory)], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) == kill_at:
                    process.kill()
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL)

    run(tmp_path / "killed", 6)
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["position"]["step"] < 6
    run(tmp_path / "killed", 8)
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["position"]["step"] in (6, 7)
    run(tmp_path / "killed", None)
    run(tmp_path / "undisturbed", None)
    weights, expected = (
        torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("killed", "undisturbed")
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
