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
from postgrad.studies.run import ArmRecord
from postgrad.studies.study import study
from postgrad.studies.study_config import StudyConfig

WORDS = ["train", "--model", "mlp", "--data", "digits", "--limit", "80", "--epochs", "2", "--quiet"]


def trained(out: Path, *words: str) -> Any:
    assert main([*WORDS, *words, "--out", str(out)]) == 0
    return load(out)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("teachers") / "teacher"
    trained(out, "--seed", "3", "--lr", "0.1")
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
    calls = {
        "alone": [],
        "kd": ["--teacher", teacher, "--method", "distillation:T=4"],
        "kd again": ["--teacher", teacher, "--method", "distillation:temperature=4"],
        "dkd": ["--teacher", teacher, "--method", "distillation:kind=dkd,T=4"],
        "ensemble": ["--teacher", teacher, "--teacher", gradnet, "--method", "distillation"],
        "second stage": ["--teacher", gradnet, "--method", "distillation", "--teacher-views", "1"],
        "fitnet": ["--teacher", teacher, "--method", "distillation:kind=fitnet,hint=l0"],
        "transfer": ["--teacher", teacher, "--method", "distillation", "--transfer", unlabelled],
    }
    found = {name: weights(trained(tmp_path / name, *words)) for name, words in calls.items()}
    assert torch.equal(found.pop("kd again"), found["kd"])
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
    words = ["--teacher", teacher, "--method", method, "--transfer", unlabelled, "--lr", "0.001"]
    words += ["--teacher-views", "2"] if kind == "kept" else []
    undisturbed = trained(tmp_path / "undisturbed", *words)
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
        assert main([*WORDS, *words, "--out", str(tmp_path / "run")]) == 130
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert torch.equal(weights(load(tmp_path / "run")), weights(undisturbed))


def test_arms_of_a_study_have_teachers_and_transfer_images(teacher: str, unlabelled: str, tmp_path: Path) -> None:
    kept = {"methods": "distillation:T=2", "teacher": teacher, "teacher_views": 2, "transfer": unlabelled}
    arms = {
        "soft": {"methods": "distillation:T=2", "teacher": teacher},
        "kept": kept | {"against": ["base", "soft"]},
    }
    steps = {f"seed0/control-same-time-kept/training-{number}": 2 for number in (0, 1)}
    content = {
        "data": "digits", "model": "mlp", "limit": 80, "seeds": 1, "threads": 1, "steps": steps, "arms": arms,
        "training": {"epochs": 1, "batch_size": 16}, "rates": [0.001, 0.05], "out": tmp_path / "run",
    }  # fmt: skip
    ended = study(StudyConfig.model_validate(content), workers=0)
    assert ended.failures == []
    record = ArmRecord.read(ended.directory / "kept")
    assert record is not None
    assert "taught by" in record.description
    assert record.on_training is not None
    assert record.on_training["images"] == 72
    asking = json.loads((ended.directory / "kept" / "teacher" / "answers.json").read_text())["cpu_seconds"]
    assert set(asking) == {"0", "1"}
    chosen = next(trial for trial in record.trials if trial["lr"] == record.lr)
    assert record.cpu_seconds == pytest.approx(chosen["cpu_seconds"] + sum(asking.values()))
    networks = [weights(load(ended.directory / arm)) for arm in ("base", "soft", "kept")]
    assert not torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[1], networks[2])


def test_a_study_of_an_arm_without_its_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="distillation needs a teacher"):
        StudyConfig.model_validate({"arms": {"kd": "distillation"}})
