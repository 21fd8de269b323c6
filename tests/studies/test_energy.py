"""Energy models trained by name: few labels, kill and resume, divergence, and what is left for sampling."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from postgrad import load
from postgrad.cli import main
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods._stability import Stability
from postgrad.methods.energy_samples import Chains
from postgrad.methods.jem import JEM
from postgrad.studies.arm_config import MethodConfig
from postgrad.studies.config import TrainConfig
from postgrad.studies.energy import check_range
from postgrad.studies.single import settled_recipe, train_network
from postgrad.studies.study import study
from postgrad.studies.study_config import StudyConfig
from postgrad.training import DivergedError

FEW = "jem:steps=2,buffer_size=70"


def config(out: Path, method: str = FEW, **changes: Any) -> TrainConfig:
    settings = {"model": "mlp", "data": "digits", "limit": 80, "threads": 1, "training": {"epochs": 4}, "out": out}
    return TrainConfig.model_validate(settings | {"methods": [method]} | changes)


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_network(config(tmp_path_factory.mktemp("runs") / "undisturbed"))[0]


def test_what_is_watched_stands_in_the_learning_curve_and_chains_are_kept(undisturbed: Path) -> None:
    rows = list(csv.DictReader((undisturbed / "training" / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 4
    for name in ("energy_gap", "sample_reach", "sample_spread", "gradient_norm", "returns"):
        assert all(np.isfinite(float(row[name])) for row in rows)
    chains = Chains.load(undisturbed)
    assert chains is not None
    assert chains.images.shape == (70, 1, 8, 8)
    assert (chains.langevin.steps, chains.langevin.noise) == (2, 0.01)
    assert load(undisturbed).preprocess == Preprocessing(mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("method", [FEW, "jem:variant=sada-jem,steps=1,buffer_size=700,storage=uint8,per_class=true"])
def test_a_training_that_was_killed_ends_with_the_same_bits(
    method: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed if method == FEW else train_network(config(tmp_path / "whole", method))[0]
    real, calls = JEM.after_step, 0

    def killed(self: JEM) -> None:
        nonlocal calls
        calls += 1
        real(self)
        if calls == 6:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("postgrad.training.loop.SAVE_EVERY_SECONDS", -1.0)
        patch.setattr(JEM, "after_step", killed)
        with pytest.raises(ZeroDivisionError):
            train_network(config(tmp_path / "run", method))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed, _ = train_network(config(tmp_path, method, resume=tmp_path / "run"))
    assert weights(resumed) == weights(whole)
    assert all((resumed / name).read_bytes() == (whole / name).read_bytes() for name in ("chains.safetensors",))
    chains = (resumed / "chains.safetensors").read_bytes()
    train_network(config(tmp_path, method, resume=resumed))  # it is over: nothing is drawn anew
    assert (resumed / "chains.safetensors").read_bytes() == chains


def test_with_few_labels_the_others_make_no_difference_to_the_classes(tmp_path: Path) -> None:
    method = "jem:steps=1,buffer_size=70,labels_per_class=1"
    directory, _ = train_network(config(tmp_path / "few", method, training={"steps": 3}))
    assert load(directory)(torch.zeros(2, 1, 8, 8)).isfinite().all()


def test_images_without_a_label_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "more.npz", x_train=np.zeros((9, 8, 8), np.uint8))
    more = {"transfer": str(tmp_path / "more.npz"), "training": {"steps": 2}}
    train_network(config(tmp_path / "run", **more))
    assert "9 of them without a label" in capsys.readouterr().err
    with pytest.raises(UserError, match="without a label are learnt from by a teacher or by JEM"):
        train_network(config(tmp_path / "plain", methods=[], **more))


def events(directory: Path) -> list[dict[str, Any]]:
    file = directory / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("factor", [1, 50])
def test_a_learning_rate_fifty_times_too_large_is_noticed(
    factor: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"epochs": 6, "lr": 0.02 * factor}
    settings, directory = config(tmp_path / "run", model="seed-cnn", training=training), tmp_path / "run"
    with contextlib.suppress(DivergedError):
        train_network(settings)
    told = [event for event in events(directory) if event["event"] == "diverged"]
    assert bool(told) is (factor == 50)
    for number, event in enumerate(told, start=1):
        assert (event["retry"], event["factor"]) == (number, 0.5**number)
        assert event["back_to"] < event["step"]
    if told:
        assert "times the learning rate and the chains' step" in capsys.readouterr().err
    gave_up = any(event["event"] == "gave up" for event in events(directory))
    assert len(told) == 3 or not gave_up
    assert load(directory)(torch.zeros(2, 1, 8, 8)).isfinite().all()


def test_a_step_that_no_return_makes_small_enough_ends_with_the_best_network(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", "jem:steps=2,buffer_size=70,step_size=1000000")
    with pytest.raises(DivergedError, match="after 3 returns to a good state"):
        train_network(settings)
    assert [event["event"] for event in events(tmp_path / "run")] == ["diverged"] * 3 + ["gave up"]
    assert load(tmp_path / "run")(torch.zeros(2, 1, 8, 8)).isfinite().all()


def test_where_nothing_is_said_it_has_a_recipe_of_its_own(tmp_path: Path) -> None:
    default = settled_recipe(config(tmp_path, training={}))
    assert (default.epochs, default.schedule) == (20, "cosine")
    assert settled_recipe(config(tmp_path, training={"steps": 5, "schedule": "constant"})).steps == 5
    assert settled_recipe(config(tmp_path, methods=[], training={})).epochs == 30


def test_other_values_for_black_and_white_are_refused(tmp_path: Path) -> None:
    jem = [MethodConfig(name="jem")]
    with pytest.raises(UserError, match=r"give --mean \.5 --std \.5"):
        check_range(jem, Preprocessing())
    check_range([], Preprocessing())
    check_range(jem, Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3))
    words = ["train", "--model", "mlp", "--data", "digits", "--limit", "60", "--method", FEW, "--mean", ".3", "--std"]
    assert main([*words, ".2", "--out", str(tmp_path / "run")]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--method", "jem:variant=jam"], "jem:variant: should be 'jem'"),
        (["--method", "jem:buffer=9"], "did you mean 'buffer_size'"),
        (["--method", "jem:images=9"], "unknown option of jem 'images'"),
        (["--method", FEW, "--grow", "1:deepen:after=l0"], "growth: an energy model goes back"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    words: list[str], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["train", "--model", "mlp", "--data", "digits", "--limit", "60", "--epochs", "3"]
    assert main([*shared, *words, "--out", str(tmp_path / "net")]) == 2
    assert hint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_arm_of_a_study_keeps_its_chains_and_says_that_it_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Stability.trouble

    def trouble(self: Stability, figures: dict[str, float]) -> str | None:
        first = "energy_gap" in figures and self.step == 1 and self.returns == 0
        return "energy_gap became 7" if first and seen_rate(self) == 0.01 else real(self, figures)

    def seen_rate(stability: Stability) -> float:
        assert stability._optimizer is not None
        return float(stability._optimizer.defaults["lr"])

    monkeypatch.setattr(Stability, "trouble", trouble)
    settings = {
        "model": "mlp", "data": "digits", "limit": 60, "mean": 0.5, "std": 0.5, "threads": 1, "seeds": 1,
        "training": {"epochs": 2}, "out": tmp_path / "study", "controls": ["control-same-time"],
        "arms": {"energy": {"methods": f"{FEW},variant=jem++"}, "wild": {"methods": FEW, "training": {"lr": 0.01}}},
    }  # fmt: skip
    ended = study(StudyConfig.model_validate(settings), workers=0)
    assert ended.failures == []
    directory = ended.directory
    assert Chains.load(directory / "energy") is not None
    warnings = json.loads((directory / "wild" / "arm.json").read_text())["warnings"]
    assert any("diverged at step 2 (energy_gap became 7); back to the state of step 0" in each for each in warnings)
    assert json.loads((directory / "energy" / "arm.json").read_text())["warnings"] == []
    assert any(
        "diverged at step" in warning for warning in json.loads((directory / "results.json").read_text())["warnings"]
    )
    assert "diverged at step" in (directory / "report.html").read_text()
