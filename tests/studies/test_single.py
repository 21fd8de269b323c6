"""One network trained by one recipe: an interruption says how to go on, and going on ends with the same bits."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from postgrad import load
from postgrad.cli import main
from postgrad.studies.config import TrainConfig
from postgrad.studies.single import settled_recipe, train_network


def config(**changes: Any) -> TrainConfig:
    settings = {"model": "mlp", "data": "digits", "limit": 80, "threads": 1, "training": {"epochs": 4}}
    return TrainConfig.model_validate(settings | changes)


def test_interrupted_training_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, history = train_network(config(out=tmp_path / "undisturbed"))
    assert history.epochs == 4
    real, calls = torch.nn.functional.cross_entropy, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.cross_entropy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_network(config(out=tmp_path / "with a space"))
    assert f"go on with: postgrad train --resume '{tmp_path}/with a space'" in capsys.readouterr().err
    assert not (tmp_path / "with a space" / "model.safetensors").exists()
    resumed, _ = train_network(config(resume=tmp_path / "with a space"))
    assert (resumed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_what_is_not_chosen_is_the_base_networks_recipe() -> None:
    default = settled_recipe(config(model="seed-cnn", training={}))
    assert (default.lr, default.schedule, default.schedule_options["step_size"]) == (0.05, "StepLR", 25)
    chosen = settled_recipe(config(model="seed-cnn", training={"optimizer": "adam", "steps": 7, "lr": 0.001}))
    assert (chosen.optimizer, chosen.optimizer_options, chosen.lr) == ("adam", {}, 0.001)
    assert (chosen.steps, chosen.epochs, chosen.schedule) == (7, None, "StepLR")


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("powergrad:alpha=2", "alpha: expected a number from 0 to 1"),
        ("weight_sampling:fraction=3", "fraction"),
        ("norm:kind=grup", "norm:kind: should be 'group'"),
    ],
)
def test_a_method_that_is_refused_leaves_nothing_behind(
    method: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--model", "resnet20", "--data", "digits", "--limit", "60", "--method", method]
    assert main([*words, "--epochs", "1", "--out", str(tmp_path / "net")]) == 2
    assert hint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_methods_are_part_of_the_training_and_of_what_is_kept(tmp_path: Path) -> None:
    def network(*methods: str) -> Any:
        out = tmp_path / "-".join(["net", *(word.partition(":")[0] for word in methods)])
        words = [part for method in methods for part in ("--method", method)]
        shared = ["train", "--model", "resnet20", "--data", "digits", "--limit", "60", "--epochs", "1", "--quiet"]
        assert main([*shared, *words, "--out", str(out)]) == 0
        return load(out)

    x = torch.randn(3, 1, 8, 8)
    changed = network("fixed_classifier", "frn")
    assert type(changed.fc).__name__ == "FixedClassifier"
    plain, flat, averaged = network(), network("powergrad:alpha=0.25"), network("ema:decay=0.5")
    answers = [model(x) for model in (plain, flat, averaged)]
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_a_network_grows_on_the_way_and_an_interrupted_training_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--model", "mlp", "--data", "digits", "--limit", "80", "--epochs", "4", "--quiet"]
    words += ["--grow", "2:widen:layer=l*,to=1.5x", "--grow", "2:deepen:after=l1"]
    assert main([*words, "--out", str(tmp_path / "undisturbed")]) == 0
    grown = load(tmp_path / "undisturbed")
    assert (grown.l0.out_features, grown.l1.out_features, grown.l2.out_features) == (384, 192, 10)
    events = [json.loads(line) for line in (tmp_path / "undisturbed" / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"], event["change"]) for event in events] == [
        ("grown", 4, "256 → 384"), ("grown", 4, "128 → 192"), ("grown", 4, "+ residual features"),
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "undisturbed" / "training" / "metrics.csv").read_text().splitlines()))
    assert [float(row["growths"]) for row in rows] == [0, 3, 3, 3]
    assert float(rows[-1]["parameters"]) == events[-1]["parameters"]

    real, calls = torch.nn.functional.cross_entropy, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("postgrad.training.loop.SAVE_EVERY_SECONDS", -1.0)
        patch.setattr("torch.nn.functional.cross_entropy", interrupted)
        assert main([*words, "--out", str(tmp_path / "run")]) == 130
    assert not (tmp_path / "run" / "model.safetensors").exists()
    kept = torch.load(tmp_path / "run" / "training" / "checkpoint.pt", weights_only=True)
    assert len(kept["changes"]) == 3
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "undisturbed")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grow", "widen:layer=l0,to=9"], "begin with the epoch"),
        (["--grow", "1:widn:layer=l0,to=9"], "did you mean 'widen'"),
        (["--grow", "1:widen:layer=l9,to=9"], "unknown layer 'l9'"),
        (["--grow", "9:deepen:after=l0"], "after epoch 9 the training is over"),
        (["--grow", "1:deepen:after=l0", "--base-accuracy", "0.9"], "leave out stop_accuracy"),
        (["--grow", "1:deepen:after=l0", "--method", "ema:decay=0.5"], "a mean of the weights is not carried over"),
    ],
)
def test_growth_that_is_refused_leaves_nothing_behind(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["train", "--model", "mlp", "--data", "digits", "--limit", "60", "--epochs", "3"]
    assert main([*shared, *words, "--out", str(tmp_path / "net")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
