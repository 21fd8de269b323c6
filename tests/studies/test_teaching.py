"""`postgrad train --teacher` and arms of studies that have one: from the command line to the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from postgrad import GradNet, load
from postgrad.cli import main
from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.studies.config import TrainConfig
from postgrad.studies.run import ArmRecord
from postgrad.studies.single import train_network
from postgrad.studies.study import study
from postgrad.studies.study_config import StudyConfig

WORDS = ["train", "--model", "mlp", "--data", "digits", "--limit", "80", "--epochs", "2", "--quiet"]


def trained(out: Path, **settings: Any) -> Any:
    shared = {"model": "mlp", "data": "digits", "limit": 80, "threads": 1, "training": {"epochs": 2}, "out": out}
    directory, _ = train_network(TrainConfig.model_validate(shared | settings))
    return load(directory)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("teachers") / "teacher"
    trained(out, seed=3)
    return str(out)


@pytest.fixture(scope="module")
def gradnet(teacher: str) -> str:
    out = Path(teacher).with_name("gradnet")
    train = load_dataset("digits", limit=80).train
    assert train is not None
    GradNet(load(teacher), steps=1, batch_size=4).fit(train.images, train.labels).save(out)
    return str(out)


@pytest.fixture(scope="module")
def unlabelled(teacher: str) -> str:
    path = Path(teacher).with_name("unlabelled.npz")
    images = load_dataset("digits").train
    assert images is not None
    np.savez(path, x_train=images.images[-30:, 0].numpy())
    return str(path)


def test_a_teacher_changes_what_is_learnt(
    teacher: str, gradnet: str, unlabelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: dict[str, dict[str, Any]] = {
        "alone": {},
        "kd": {"teacher": teacher, "methods": "distillation:T=4"},
        "ensemble": {"teacher": [teacher, gradnet], "methods": "distillation:T=4", "teacher_views": 1},
        "fitnet": {"teacher": teacher, "methods": "distillation:kind=fitnet,hint=l0"},
        "transfer": {"teacher": teacher, "methods": "distillation:T=4", "transfer": unlabelled},
    }
    found = {name: weights(trained(tmp_path / name, **settings)) for name, settings in calls.items()}
    different = {bytes(each.numpy().tobytes()) for each in found.values()}
    assert len(different) == len(found)
    assert "30 transfer images, 30 of them without a label, join 72 training images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--method", "distillation"], "distillation needs a teacher"),
        (["--teacher", "TEACHER"], "give --method distillation"),
        (["--teacher-views", "2"], "there is no teacher"),
        (["--teacher", "nowhere", "--method", "distillation"], "nowhere is neither a saved model"),
        (["--teacher", "TEACHER", "--method", "distillation:kind=fitnet,hint=l9"], "unknown layer 'l9'"),
        (["--teacher", "TEACHER", "--method", "distillation:T=4,temperature=2"], "'T' is 'temperature'"),
        (["--transfer", "UNLABELLED"], "images without a label are learnt from by a teacher"),
        (
            [
                "--teacher",
                "TEACHER",
                "--method",
                "distillation:kind=fitnet,hint=l0",
                "--grow",
                "1:widen:layer=l0,to=300",
            ],
            "does not fit it once that has grown",
        ),
    ],
)
def test_what_does_not_go_together_leaves_nothing_behind(
    words: list[str], hint: str, teacher: str, unlabelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"TEACHER": teacher, "UNLABELLED": unlabelled}
    assert main([*WORDS, *(names.get(word, word) for word in words), "--out", str(tmp_path / "net")]) == 2
    assert hint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["kd", "kept", "fitnet"])
def test_an_interrupted_training_goes_on_to_the_same_bits(
    kind: str, teacher: str, unlabelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "distillation:kind=fitnet,hint=l0,teacher_hint=l1" if kind == "fitnet" else "distillation"
    settings: dict[str, Any] = {"teacher": teacher, "methods": method, "transfer": unlabelled}
    settings |= {"teacher_views": 2} if kind == "kept" else {}
    undisturbed = trained(tmp_path / "undisturbed", **settings)
    real, calls = torch.nn.functional.cross_entropy, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("postgrad.training.loop.SAVE_EVERY_SECONDS", -1.0)
        patch.setattr("torch.nn.functional.cross_entropy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "run", **settings)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = trained(tmp_path, **settings, resume=tmp_path / "run")
    assert torch.equal(weights(resumed), weights(undisturbed))


def test_the_command_line_names_teacher_transfer_images_and_views(
    teacher: str, unlabelled: str, tmp_path: Path
) -> None:
    words = ["--teacher", teacher, "--teacher", teacher, "--method", "distillation:kind=dkd,T=2"]
    words += ["--transfer", unlabelled, "--teacher-views", "3"]
    assert main([*WORDS, *words, "--out", str(tmp_path / "net")]) == 0
    config = TrainConfig.load(tmp_path / "net" / "config.yaml")
    assert config.teacher == (teacher, teacher)
    assert (config.methods[0].options, config.transfer) == ({"kind": "dkd", "temperature": 2}, unlabelled)
    assert np.load(tmp_path / "net" / "teacher" / "answers-2.npy").shape == (72 + 30, 10)


@pytest.fixture(scope="module")
def studied(teacher: str, unlabelled: str) -> Path:
    """A study of one arm whose temperature is tuned, at two rates and for two seeds."""
    arm = {"methods": "distillation:kind=dkd", "tune": {"temperature": [1, 8]}, "teacher": teacher}
    steps = {f"seed{seed}/control-same-time/training-{number}": 2 for seed in (0, 1) for number in (0, 1)}
    content = {
        "data": "digits", "model": "mlp", "limit": 80, "seeds": 2, "threads": 1, "steps": steps,
        "arms": {"kept": arm | {"teacher_views": 2, "transfer": unlabelled}}, "rates": [0.001, 0.01],
        "training": {"epochs": 1, "batch_size": 16}, "out": Path(teacher).with_name("study"),
    }  # fmt: skip
    ended = study(StudyConfig.model_validate(content), workers=0)
    assert ended.failures == []
    return ended.directory


def test_an_arm_of_a_study_has_a_teacher_and_transfer_images(studied: Path) -> None:
    record = ArmRecord.read(studied / "kept")
    assert record is not None
    assert "taught by" in record.description
    assert record.on_training is not None
    assert record.on_training["images"] == 72  # those with labels
    asking = json.loads((studied / "kept" / "teacher" / "answers.json").read_text())["cpu_seconds"]
    assert set(asking) == {"0", "1"}
    chosen = next(t for t in record.trials if (t["lr"], t["temperature"]) == (record.lr, record.tuned["temperature"]))
    assert record.cpu_seconds == pytest.approx(chosen["cpu_seconds"] + sum(asking.values()))
    assert not torch.equal(weights(load(studied / "base")), weights(load(studied / "kept")))


def test_options_in_question_are_chosen_on_the_first_seed_as_the_rate_is(studied: Path) -> None:
    first, second = ArmRecord.read(studied / "kept"), ArmRecord.read(studied / "seed-1" / "kept")
    assert first is not None
    assert second is not None
    tried = [(trial["temperature"], trial["lr"]) for trial in first.trials]
    assert tried == [(1, 0.001), (1, 0.01), (8, 0.001), (8, 0.01)]
    favoured = max(first.trials, key=lambda trial: (trial["accuracy"], -trial["nll"]))
    assert (first.lr, first.tuned) == (favoured["lr"], {"temperature": favoured["temperature"]})
    assert (second.lr, second.tuned) == (first.lr, first.tuned)
    assert [(trial["temperature"], trial["lr"]) for trial in second.trials] == [(first.tuned["temperature"], first.lr)]


@pytest.mark.parametrize(
    ("arm", "hint"),
    [
        ({"methods": ["frn", "ema"], "tune": {"decay": [0.9]}}, "an arm of one method"),
        ({"methods": "ema", "tune": {"decay": []}}, "the values in question"),
        ({"methods": "ema:decay=0.9", "tune": {"decay": [0.9]}}, "decay is an option of the method already"),
    ],
)
def test_what_cannot_be_tuned_is_refused(arm: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        StudyConfig.model_validate({"arms": {"arm": arm}})


def test_an_option_in_question_that_there_is_not_is_refused() -> None:
    content = {
        "data": "digits",
        "model": "mlp",
        "limit": 80,
        "arms": {"arm": {"methods": "ema", "tune": {"decy": [1]}}},
    }
    with pytest.raises(UserError, match="did you mean 'decay'"):
        study(StudyConfig.model_validate(content), workers=0)


def test_a_study_of_an_arm_without_its_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="distillation needs a teacher"):
        StudyConfig.model_validate({"arms": {"kd": "distillation"}})
