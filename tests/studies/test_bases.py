"""Rows that share the training of their base: bits, steps and price as alone, in any order, and no step twice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import postgrad
from postgrad.errors import UserError
from postgrad.files import locked
from postgrad.studies import bases
from postgrad.studies.config import ImproveConfig
from postgrad.studies.improve import improve
from postgrad.studies.trials import Trial, trials

LOW, HIGH, NEVER = 0.4, 0.85, 0.999
STEPS = 24


@dataclass(eq=False)
class Work:
    """Counts the steps that are taken, stands for the clock, and interrupts where it is told."""

    steps: int = 0
    interrupt_at: int | None = None
    real: Callable[..., Tensor] = field(default=torch.nn.functional.cross_entropy)

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        if arguments[0].requires_grad:
            self.steps += 1
            if self.steps == self.interrupt_at:
                raise KeyboardInterrupt
        return self.real(*arguments, **options)


def only_bases(config: ImproveConfig) -> list[Trial]:
    return [trial for trial in trials(config) if trial.kind == "base"]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Only bases are trained, and a step takes a second."""
    counted = Work()
    monkeypatch.setattr("torch.nn.functional.cross_entropy", counted)
    monkeypatch.setattr("postgrad.training.clock.Stopwatch._now", lambda _: (float(counted.steps),) * 2)
    monkeypatch.setattr(
        "postgrad.studies.improve.trials", lambda config: [t for t in trials(config) if t.kind == "base"]
    )
    monkeypatch.setattr("postgrad.studies.prepare.rehearse", lambda _: None)
    return counted


Row = Callable[..., Path]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Path]]:
    """Where rows that train alone are kept for all tests, and those that are there."""
    return tmp_path_factory.mktemp("alone"), {}


@pytest.fixture
def row(tiny: Callable[..., ImproveConfig], tmp_path: Path, work: Work, alone: tuple[Path, dict[Any, Path]]) -> Row:
    """Make a row whose base stops at an accuracy, alone or sharing; returns the directory of its base."""

    def make(accuracy: float | None, *, shared: bool = True, out: str = "row", **changes: Any) -> Path:
        settings: dict[str, Any] = {"model": "seed-cnn", "limit": 400, "epochs": STEPS / 3, "base_validate_every": 2}
        settings |= {"steps": {}, "base_accuracy": accuracy}
        if shared:
            settings |= {"bases": tmp_path / "bases", "base_targets": (LOW, HIGH)}
            return improve(tiny(tmp_path / out, **settings | changes)) / "base"
        folder, made = alone
        key = repr(settings | changes)
        if key not in made:
            made[key] = improve(tiny(folder / "row", **settings | changes)) / "base"
        return made[key]

    return make


def told(base: Path) -> dict[str, Any]:
    """What a base says of itself, but for what depends on the machine's load."""
    record = json.loads((base / "arm.json").read_text())
    kept = ("seed", "cpu_seconds", "seconds", "validation_accuracy", "augmented_accuracy", "warnings")
    described = record["description"].removesuffix("; rows of one base share its training")
    return {name: record[name] for name in kept} | {"description": described}


def check_same(ours: Path, alone: Path) -> None:
    network, other = (postgrad.load(base).state_dict() for base in (ours, alone))
    assert network.keys() == other.keys()
    assert all(torch.equal(network[name], other[name]) for name in network)
    assert (ours / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()
    expected = told(alone)
    expected["seconds"] = expected["cpu_seconds"]  # by the clock of these tests; alone it is the wall's
    assert told(ours) == expected


@pytest.mark.parametrize("order", [(LOW, HIGH, None), (None, HIGH, LOW), (HIGH, LOW, None)])
def test_rows_that_share_are_those_that_train_alone(order: tuple[float | None, ...], row: Row, work: Work) -> None:
    ours = {accuracy: row(accuracy) for accuracy in order}
    assert work.steps == STEPS, "a step was taken twice"
    alone = {accuracy: row(accuracy, shared=False) for accuracy in order}
    for accuracy in order:
        check_same(ours[accuracy], alone[accuracy])
    prices = [told(ours[accuracy])["cpu_seconds"] for accuracy in (LOW, HIGH, None)]
    assert 0 < prices[0] < prices[1] < prices[2] == STEPS, "nothing would be seen in these tests"
    weights = [postgrad.load(ours[accuracy]).state_dict() for accuracy in (LOW, HIGH)]
    assert not all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    said = json.loads((ours[LOW] / "arm.json").read_text())["description"]
    assert said.startswith("stopped at validation accuracy 0.")
    assert said.endswith(f"after {prices[0]:.0f} steps; rows of one base share its training")


def test_accuracy_that_is_never_reached_ends_as_alone(row: Row, work: Work) -> None:
    first = row(NEVER)
    assert work.steps == STEPS
    check_same(row(NEVER), row(NEVER, shared=False))
    assert work.steps == 2 * STEPS, "the second was trained again"
    assert "the base never reached the validation accuracy 0.999" in told(first)["warnings"][0]


def test_accuracy_that_nobody_named_in_time_is_trained_alone_and_says_so(row: Row) -> None:
    row(HIGH, base_targets=())
    late = row(LOW, base_targets=())
    alone = row(LOW, shared=False)
    suffix = "; trained alone, since the shared training was past it"
    assert told(late)["description"] == told(alone)["description"] + suffix
    assert torch.equal(*(torch.cat([p.flatten() for p in postgrad.load(base).parameters()]) for base in (late, alone)))


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1]},
        {"base_validate_every": 3},
        {"base_accuracy_on": "augmented"},
        {"limit": 300},
        {"epochs": 7},
        {"whole_halves": True},
        {"per_image_standardise": False},
        {"model": "mlp"},
    ],
)
def test_other_trainings_are_not_taken_for_this_one(change: dict[str, Any], row: Row, tmp_path: Path) -> None:
    row(LOW)
    row(HIGH)
    assert len(list((tmp_path / "bases").iterdir())) == 1
    check_same(row(LOW, **change), row(LOW, shared=False, **change))
    assert len(list((tmp_path / "bases").iterdir())) == 2


def test_interrupted_and_killed_trainings_go_on(
    row: Row, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a step leaves the last checkpoint, as `kill -9` does; another row may be the one that goes on."""
    alone = {accuracy: row(accuracy, shared=False) for accuracy in (LOW, HIGH)}
    monkeypatch.setattr("postgrad.training.loop.SAVE_EVERY_SECONDS", -1.0)
    steps = told(alone[LOW])["cpu_seconds"]
    for stop in (3, steps + 2):
        work.steps, work.interrupt_at = 0, int(stop)
        with pytest.raises(KeyboardInterrupt):
            row(HIGH, out="interrupted")
    work.interrupt_at = None
    check_same(row(LOW), alone[LOW])
    config = ImproveConfig.load(tmp_path / "interrupted" / "config.yaml")
    check_same(improve(config.model_copy(update={"resume": tmp_path / "interrupted"})) / "base", alone[HIGH])


def test_lost_checkpoint_would_be_seen(row: Row, tmp_path: Path) -> None:
    """Negative control: with other weights in its checkpoint the shared training ends elsewhere."""
    row(LOW)
    (file,) = (tmp_path / "bases").glob("*/training/checkpoint.pt")
    saved = torch.load(file, weights_only=True)
    saved["model"] = {name: tensor + 1e-3 for name, tensor in saved["model"].items()}
    torch.save(saved, file)
    with pytest.raises(AssertionError):
        check_same(row(HIGH), row(HIGH, shared=False))


def test_training_of_another_process_is_waited_for(
    row: Row, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bases, "WAIT_SECONDS", 0.02)
    row(LOW)
    (folder,) = (tmp_path / "bases").iterdir()
    let_go = threading.Event()

    def hold() -> None:
        with locked(folder):
            let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    while not (folder / ".lock").read_text():
        time.sleep(0.01)
    steps = work.steps
    row(LOW)
    assert "waiting for it" not in capsys.readouterr().err, "what is kept needs no lock"
    timer = threading.Timer(0.5, let_go.set)
    timer.start()
    second = row(HIGH)
    holder.join()
    assert capsys.readouterr().err.count("another process trains the same base in") == 1
    assert work.steps > steps
    check_same(second, row(HIGH, shared=False))


def test_folder_that_cannot_be_written_is_not_waited_for(row: Row, tmp_path: Path) -> None:
    (tmp_path / "bases").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        row(LOW)
