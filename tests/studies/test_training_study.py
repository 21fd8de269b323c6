"""A study of trainings from end to end: what its arms share, what is chosen where, and the same bits again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import postgrad
from postgrad.data.datasets import load_dataset
from postgrad.reports import schema
from postgrad.studies import training_measures
from postgrad.studies.run import ArmRecord
from postgrad.studies.study import study
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.training_measures import measures
from postgrad.training import DivergedError

ARMS = ["base", "ema", "control-same-time-ema", "smooth", "both", "control-same-time-both"]
STEPS = {
    f"seed{seed}/control-same-time-{arm}/training-{number}": 9
    for seed in (0, 1) for arm in ("ema", "both") for number in (0, 1)
}  # fmt: skip


def settings(out: Path, **changes: Any) -> StudyConfig:
    content: dict[str, Any] = {
        "data": "digits",
        "model": "mlp",
        "limit": 80,
        "seeds": 2,
        "threads": 1,
        "training": {"epochs": 2, "batch_size": 16, "schedule": "cosine"},
        "rates": [0.001, 0.1],
        "arms": {
            "ema": "ema:decay=0.5",
            "smooth": {"training": {"label_smoothing": 0.2}},
            "both": {
                "methods": ["weight_sampling:fraction=0.5", "ema:decay=0.9"],
                "training": {"label_smoothing": 0.2},
                "against": ["base", "smooth"],
            },
        },
        "steps": STEPS,
        "out": out,
    }
    return StudyConfig.model_validate(content | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ended = study(settings(tmp_path_factory.mktemp("studies") / "run"), workers=0)
    assert ended.failures == []
    return ended.directory


@pytest.fixture(scope="module")
def results(run: Path) -> schema.Results:
    return schema.read_results(run / "results.json")


def test_each_arm_is_there_with_what_it_is_compared_with(results: schema.Results) -> None:
    assert [arm.name for arm in results.arms] == ARMS
    compared = {(v.method, v.control) for v in results.verdicts if v.metric == "accuracy"}
    assert compared == {
        ("ema", "base"), ("ema", "control-same-time-ema"),
        ("both", "base"), ("both", "smooth"), ("both", "control-same-time-both"),
    }  # fmt: skip
    assert results.arm("smooth").control_for == ["both"]
    assert results.arm("ema").method == "ema"
    assert {v.metric for v in results.verdicts} == {"accuracy", "nll", "ece", "brier", "aurc", "train_accuracy"}


def test_the_rate_is_the_one_that_validation_favours_on_the_first_seed(run: Path) -> None:
    for arm in ARMS:
        first, second = ArmRecord.read(run / arm), ArmRecord.read(run / "seed-1" / arm)
        assert first is not None
        assert second is not None
        assert [trial["lr"] for trial in first.trials] == [0.001, 0.1]
        favoured = max(first.trials, key=lambda trial: (trial["accuracy"], -trial["nll"]))
        assert first.lr == favoured["lr"] == second.lr
        assert [trial["lr"] for trial in second.trials] == [second.lr]


def test_the_curve_is_that_of_the_chosen_rate(run: Path) -> None:
    for arm in ARMS:
        record = ArmRecord.read(run / arm)
        assert record is not None
        chosen = [trial["lr"] for trial in record.trials].index(record.lr)
        curve = (run / arm / "metrics.csv").read_text()
        assert curve == (run / arm / f"training-{chosen}" / "metrics.csv").read_text()
    assert "seed,arm,step,epoch,loss,lr,accuracy,nll,train_accuracy,train_nll" in (run / "metrics.csv").read_text()


def test_the_stored_network_is_what_was_scored(run: Path, results: schema.Results) -> None:
    """An average of the weights is what stays, so that loading needs none of it."""
    test = load_dataset("digits", limit=80).test
    assert test is not None
    for arm in ("ema", "both"):
        network = postgrad.load(run / arm)
        with torch.no_grad():
            found = network(network.preprocess(test.images)).argmax(1)
        value = results.arm(arm).metrics["accuracy"].values[0]
        assert float((found == test.labels).double().mean()) == pytest.approx(value)


def test_accuracy_on_training_images_is_told(results: schema.Results) -> None:
    metric = results.arm("base").metrics["train_accuracy"]
    assert all(value >= 0.5 for value in metric.values)
    low, high = metric.ci95
    assert low <= metric.mean <= high


def test_a_repetition_has_the_same_bits(run: Path, tmp_path: Path, predictions: Any) -> None:
    again = study(StudyConfig.load(run / "config.yaml").model_copy(update={"out": tmp_path / "again"}), workers=0)
    ours, theirs = predictions(again.directory), predictions(run)
    assert ours.keys() == theirs.keys()
    for arm in ours:
        np.testing.assert_array_equal(ours[arm], theirs[arm])


def test_a_method_changes_what_is_learned(run: Path, predictions: Any) -> None:
    found = predictions(run)
    assert not np.array_equal(found["base"], found["ema"])
    assert not np.array_equal(found["smooth"], found["both"])


def test_a_rate_at_which_the_loss_becomes_infinite_is_left_out(tmp_path: Path) -> None:
    config = settings(tmp_path / "run", rates=[1e30, 0.05], arms={"ema": "ema:decay=0.5"}, seeds=1, steps={})
    ended = study(config, workers=0)
    assert ended.failures == []
    record = ArmRecord.read(ended.directory / "base")
    assert record is not None
    assert record.lr == 0.05
    assert "the loss became" in record.trials[0]["diverged"]


def test_an_arm_with_another_schedule_has_none_of_the_study_s_options(tmp_path: Path) -> None:
    training = {"epochs": 1, "schedule": "StepLR", "schedule_options": {"step_size": 1}}
    arms = {"cosine": {"training": {"schedule": "cosine"}}}
    steps = {"seed0/control-same-time/training-0": 2}
    config = settings(tmp_path / "run", arms=arms, training=training, seeds=1, rates=[0.05], steps=steps)
    assert study(config, workers=0).failures == []


def test_where_no_rate_works_the_arm_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    arms = {"ema": "ema:decay=0.5", "wild": {"training": {"optimizer_options": {"weight_decay": 1e30}}}}
    ended = study(settings(tmp_path / "run", arms=arms, seeds=1, steps={}), workers=0)
    assert {failure.arm for failure in ended.failures} == {"wild", "control-same-time-wild"}
    assert "infinite at every learning rate (0.001, 0.1)" in ended.failures[0].reason
    assert json.loads((ended.directory / "results.json").read_text())["recommended"]


def test_what_diverges_is_a_mistake_of_the_user_s() -> None:
    assert issubclass(DivergedError, postgrad.UserError)


def test_ends_of_a_claim(tmp_path: Path) -> None:
    recipe = yaml.safe_load(settings(tmp_path).to_yaml())
    claim = {"claim": "EMA helps", "source": "folklore", "arm": "ema", "metric": "train_accuracy"}
    assert StudyConfig.model_validate(recipe | {"claims": [claim]}).claims[0].metric == "train_accuracy"


def test_what_is_measured_of_its_networks(run: Path, results: schema.Results, capsys: Any, monkeypatch: Any) -> None:
    found = measures(run)
    assert list(found) == ["base", "ema", "smooth", "both"]
    for arm, values in found.items():
        for name in ("accuracy", "nll", "ece", "train_accuracy"):
            assert values[name] == pytest.approx(results.arm(arm).metrics[name].mean, abs=1e-5)
        assert (values["nll_alpha"], values["dead_filters"]) == (values["nll"], 0)  # α is 1, and an MLP has no filters
        assert values["volatility"] == 0  # of a curve of two epochs, whose second half is one
    monkeypatch.setattr("sys.argv", ["training_measures", str(run), "--out", str(run / "measures.json")])
    assert training_measures.main() == 0
    assert "| smooth | " in capsys.readouterr().out
    assert json.loads((run / "measures.json").read_text()) == found


def test_a_norm_and_an_alpha_by_hand(tmp_path: Path) -> None:
    arms = {"flat": "powergrad:alpha=0.5", "warm": "temperature:temperature=2"}
    steps = {f"seed0/control-same-time-{arm}/training-0": 2 for arm in arms}
    directory = study(settings(tmp_path / "run", arms=arms, seeds=1, rates=[0.1], steps=steps), workers=0).directory
    found = measures(directory)
    network: Any = postgrad.load(directory / "flat")
    test = load_dataset("digits", limit=80).test
    assert test is not None
    with torch.no_grad():
        z = network(network.preprocess(test.images)).double()
    assert found["flat"]["logit_norm"] == pytest.approx(
        (z - z.mean(1, keepdim=True)).norm(dim=1).mean().item(), rel=1e-5
    )
    assert found["flat"]["nll_alpha"] == pytest.approx(nn.functional.cross_entropy(z / 2, test.labels).item(), rel=1e-5)
    assert found["flat"]["nll"] == pytest.approx(nn.functional.cross_entropy(z, test.labels).item(), rel=1e-5)
    assert found["warm"]["nll_alpha"] != pytest.approx(found["warm"]["nll"], rel=1e-3)


def test_an_arm_whose_network_grows(tmp_path: Path) -> None:
    """Its optimizer goes on, its curve says when it grew, its checkpoint is the grown network; other arms do not."""
    arms = {"grown": {"growth": {1: ["widen:layer=l0,to=1.5x"]}}}
    changes = {"seeds": 1, "rates": [0.1], "steps": {}, "controls": ["control-same-time"], "arms": arms}
    ended = study(settings(tmp_path / "run", **changes), workers=0)
    assert ended.failures == []
    sizes = {name: postgrad.load(ended.directory / name).l0.out_features for name in ("base", "grown")}
    assert sizes["grown"] == round(1.5 * sizes["base"])
    events = [json.loads(line) for line in (ended.directory / "events.jsonl").read_text().splitlines()]
    grown = [event for event in events if event["event"] == "grown"]
    assert [(each["training"], each["step"]) for each in grown] == [("seed0/grown/training-0", 5)]
    assert "growths" in (ended.directory / "grown" / "metrics.csv").read_text()
    assert "growths" not in (ended.directory / "base" / "metrics.csv").read_text()
    page = (ended.directory / "report.html").read_text()
    assert 'class="mark' in page
    assert "mark where a network grew" in page


def test_growth_that_cannot_be_is_refused_before_the_study(tmp_path: Path) -> None:
    for arm, message in (
        ({"growth": {1: ["widen:layer=fc9,to=9"]}}, "unknown layer 'fc9'"),
        ({"growth": {7: ["widen:layer=l0,to=2x"]}}, "after epoch 7 the training is over"),
        ({"growth": {1: ["widen:layer=l0,to=2x"]}, "methods": ["ema"]}, "a mean of the weights is not carried over"),
    ):
        with pytest.raises(postgrad.UserError, match=message):
            study(settings(tmp_path / "run", seeds=1, steps={}, arms={"grown": arm}), workers=0)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="did you mean 'widen'"):
        settings(tmp_path / "run", arms={"grown": {"growth": {1: ["widn:layer=l0,to=2x"]}}})


def test_another_network_is_trained_for_the_time_of_an_arm(tmp_path: Path) -> None:
    arms = {"large": {"model": "seed-cnn", "time_of": "ema"}, "ema": {"methods": "ema", "against": ["large"]}}
    config = settings(tmp_path / "run", arms=arms, rates=[0.01], seeds=1, limit=40, steps={})
    ended = study(config, workers=0)
    assert ended.failures == []
    results = schema.read_results(ended.directory / "results.json")
    assert results.arm("large").cost.parameters > results.arm("ema").cost.parameters
    large, timed = (ArmRecord.read(ended.directory / arm) for arm in ("large", "ema"))
    assert large is not None
    assert timed is not None
    assert large.cpu_seconds == pytest.approx(timed.cpu_seconds, rel=0.9, abs=1.0)
    assert "seed0/large/training-0" in StudyConfig.load(ended.directory / "config.yaml").steps
