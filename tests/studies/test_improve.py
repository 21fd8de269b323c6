"""The main job from end to end: what a run leaves behind, that it can be loaded, repeated, resumed and trusted."""

from __future__ import annotations

import csv
import dataclasses
import getpass
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

import postgrad
from postgrad._loading import load_classifier
from postgrad.cli import main
from postgrad.data.datasets import Dataset, Images, load_dataset
from postgrad.data.preprocessing import Augmentation, augment
from postgrad.data.splits import halves
from postgrad.errors import UserError
from postgrad.evaluation.calibration import apply_temperature, fit_temperature
from postgrad.evaluation.metrics import nll
from postgrad.files import locked
from postgrad.reports import schema
from postgrad.studies import arms
from postgrad.studies.config import ImproveConfig
from postgrad.studies.improve import improve
from postgrad.studies.trials import trials

CONTROLS = ["control-finetune", "control-features", "control-more-data", "control-same-price"]
ARMS = ["base", "gradnet", *CONTROLS]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", limit=100)


@pytest.fixture
def results(finished: Path) -> schema.Results:
    return schema.read_results(finished / "results.json")


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[arm], theirs[arm]) for arm in ours)


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    else:
        yield str(value)


# what a run leaves behind


def test_run_directory_holds_what_it_should(finished: Path) -> None:
    files = {"config.yaml", "environment.json", "results.json", "metrics.csv", "events.jsonl", "report.html"}
    assert files | {*ARMS, "examples.npz", "gradnet_blocks.json", ".lock"} == {path.name for path in finished.iterdir()}
    assert not list(finished.rglob("checkpoint.pt"))
    assert not list(finished.rglob("*.tmp"))
    assert not [path for path in finished.rglob("*") if path.suffix in (".pkl", ".pt", ".pth")]


def test_environment_holds_no_path_and_no_name(finished: Path) -> None:
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["threads"] == 1
    values = list(leaves(environment))
    assert not [value for value in values if "/" in value or "\\" in value]
    names = {getpass.getuser(), Path.home().name, socket.gethostname()}
    assert not [value for value in values if names & set(re.findall(r"\w+", value))]


def test_settings_are_resolved_and_read_back(finished: Path) -> None:
    config = ImproveConfig.load(finished / "config.yaml")
    assert config.methods[0].options == {"epochs": 1, "hidden": (2, 4, 3)}
    assert (config.epochs, config.seeds, config.threads, config.limit) == (3, (0,), 1, 100)
    assert str(finished.parent) not in (finished / "config.yaml").read_text()
    assert {key.split("/")[1] for key in config.steps} == set(CONTROLS)
    assert all(count > 0 for count in config.steps.values())


def test_embedded_data_stop_early_unless_told_otherwise(tiny, tmp_path: Path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("postgrad.studies.improve.run_trial", stop)
    with pytest.raises(KeyboardInterrupt):
        improve(tiny(tmp_path / "run", epochs=None))
    assert 0.5 < (ImproveConfig.load(tmp_path / "run" / "config.yaml").base_accuracy or 0) < 1


def test_results_follow_the_published_schema(finished: Path, results: schema.Results) -> None:
    jsonschema.validate(json.loads((finished / "results.json").read_text()), json.loads(schema.json_schema()))
    assert [arm.name for arm in results.arms] == ARMS
    assert [arm.kind for arm in results.arms] == ["base", "method", *["control"] * 4]
    assert all(arm.control_for == (["gradnet"] if arm.kind == "control" else []) for arm in results.arms)
    run_alone = [v for v in results.verdicts if v.scope == "run"]
    assert [v.control for v in run_alone] == ["base", *CONTROLS]
    assert {v.test for v in run_alone} == {"mcnemar"}
    assert {v.verdict for v in results.verdicts if v.scope == "method"} == {"too few seeds"}


def test_figures_are_those_of_the_stored_predictions(finished: Path, results: schema.Results, digits: Dataset) -> None:
    assert digits.test is not None
    labels = digits.test.labels.numpy()
    for arm in results.arms:
        with np.load(finished / arm.name / "test_predictions.npz") as stored:
            probabilities = stored["probabilities"].astype(np.float64)
            np.testing.assert_array_equal(stored["labels"], labels)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        accuracy = arm.metrics["accuracy"]
        assert accuracy.mean == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))
        assert arm.metrics["nll"].mean == pytest.approx(-np.mean(np.log(probabilities[range(100), labels])), rel=1e-5)
        assert accuracy.ci_over == "images"
        assert accuracy.ci95 is not None
        assert accuracy.ci95[0] <= accuracy.mean <= accuracy.ci95[1]


def test_temperatures_come_from_validation_images(finished: Path, results: schema.Results, digits: Dataset) -> None:
    assert digits.train is not None
    validation = digits.train.subset(halves(digits).method_validation)
    labels, fitted = validation.labels.numpy(), 0
    for arm in results.arms:
        probabilities = load_classifier(finished / arm.name).predict_proba(validation.images)
        scaled = {"nll_scaled", "ece_scaled", "ece_equal_mass_scaled", "brier_scaled"} & arm.metrics.keys()
        if (probabilities.argmax(axis=1) == labels).all():
            assert (arm.temperature, scaled) == (None, set())
            continue
        fitted += 1
        assert arm.temperature == pytest.approx([fit_temperature(probabilities, labels)], rel=1e-4)
        with np.load(finished / arm.name / "test_predictions.npz") as stored:
            expected = nll(apply_temperature(stored["probabilities"], arm.temperature[0]), stored["labels"])
        assert arm.metrics["nll_scaled"].mean == pytest.approx(expected, rel=1e-5)
        assert len(scaled) == 4
    assert fitted


def test_times_add_up(results: schema.Results) -> None:
    own = {arm.name: arm.cost.train_cpu_seconds for arm in results.arms}
    total = {arm.name: arm.cost.total_cpu_seconds for arm in results.arms}
    assert all(own.values())
    base = own["base"]
    assert base == total["base"]
    for name in ("gradnet", "control-finetune", "control-features"):
        assert total[name] == pytest.approx(own[name] + base, abs=1e-3)
    assert total["control-more-data"] == own["control-more-data"]
    stands_on = max(total["control-finetune"], total["control-more-data"])
    assert total["control-same-price"] == pytest.approx(own["control-same-price"] + stands_on, abs=1e-3)


def test_prices_are_counted(results: schema.Results) -> None:
    passes = {arm.name: arm.cost.inference_passes for arm in results.arms}
    assert passes["base"] == passes["control-finetune"] == passes["control-features"] == 1
    assert passes["gradnet"] == 10
    assert 1 < passes["control-same-price"] <= 10
    parameters = {arm.name: arm.cost.parameters or 0 for arm in results.arms}
    unit = 128 + 1 + 10
    assert abs(parameters["control-features"] - parameters["gradnet"]) <= unit


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_loadable_and_predicts_what_was_stored(
    arm: str, finished: Path, digits: Dataset, predictions
) -> None:
    assert digits.test is not None
    classifier = load_classifier(finished / arm)
    np.testing.assert_array_equal(classifier.predict_proba(digits.test.images), predictions(finished)[arm])
    assert tuple(classifier.class_names) == digits.class_names
    assert isinstance(postgrad.load(finished / arm), nn.Module) == (
        arm in ("base", "control-finetune", "control-more-data")
    )


def test_arms_are_not_one_and_the_same(finished: Path, predictions) -> None:
    """Negative control of the test above."""
    found = predictions(finished)
    assert list(found) == sorted(ARMS)
    assert len({array.tobytes() for array in found.values()}) == len(ARMS)


def test_validation_recommends(finished: Path, results: schema.Results, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {arm: json.loads((finished / arm / "arm.json").read_text())["validation_accuracy"] for arm in ARMS}
    assert scores[results.recommended or ""] == max(scores.values())
    load_classifier(finished)
    assert f"using {results.recommended}" in capsys.readouterr().err


def test_events_tell_the_story_in_order(finished: Path) -> None:
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    story = [(event["event"], event.get("arm")) for event in events]
    expected = [("run begins", None)]
    for arm in ARMS:
        expected += [("arm begins", arm), ("arm ends", arm)]
    assert story == [*expected, ("run ends", None)]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_learning_curves_of_all_arms_are_in_one_table(finished: Path) -> None:
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == set(ARMS)
    assert {row["seed"] for row in rows} == {"0"}
    last = [row for row in rows if row["arm"] == "control-finetune"][-1]
    assert (
        int(last["step"]) == ImproveConfig.load(finished / "config.yaml").steps["seed0/control-finetune/training/final"]
    )


def test_report_shows_the_figures(finished: Path, results: schema.Results) -> None:
    page = (finished / "report.html").read_text()
    assert "GradNet" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    shown = 100 * results.arm("gradnet").metrics["accuracy"].mean
    assert f"{shown:.1f}" in page or f"{shown:.2f}" in page


def test_progress_and_notes_say_what_fits_what(results: schema.Results) -> None:
    assert any("preprocessing: " in note for note in results.notes)
    assert any("the base is trained on 45 images of the first half" in note for note in results.notes)
    assert results.warnings == []
    assert (results.data.n_train, results.data.n_validation, results.data.n_test) == (90, 10, 100)


# what is compared, and when a base stops


def test_only_the_controls_that_are_asked_for_are_made(tiny, tmp_path: Path, finished: Path, predictions) -> None:
    directory = improve(tiny(tmp_path / "run", controls=["control-features"]))
    results = schema.read_results(directory / "results.json")
    assert [arm.name for arm in results.arms] == ["base", "gradnet", "control-features"]
    assert {verdict.control for verdict in results.verdicts} == {"base", "control-features"}
    ours, whole = predictions(directory), predictions(finished)
    for arm in ("base", "gradnet"):
        np.testing.assert_array_equal(ours[arm], whole[arm])


SHIFTED = Augmentation(pad=1, crop=True)
"""For digits, which are trained on as they are."""


def augmented_accuracy(arm: Path, images: Images, seed: int) -> float:
    """By hand: one draw of the training augmentation, the network of the arm, the share of right answers."""
    network = postgrad.load(arm)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        logits = network(augment(images.images, network.preprocess, SHIFTED, generator))
    return float((logits.argmax(dim=1) == images.labels).double().mean())


def test_base_is_stopped_and_scored_on_augmented_images_where_asked(
    tiny, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifted = dataclasses.replace(digits, augmentation=SHIFTED)
    monkeypatch.setattr("postgrad.studies.prepare.load_dataset", lambda *_, **__: shifted)
    settings = {"base_accuracy": 0.3, "base_validate_every": 1, "epochs": 400, "controls": ["control-finetune"]}
    plain = improve(tiny(tmp_path / "plain", seeds=[3], **settings))
    augmented = improve(tiny(tmp_path / "augmented", seeds=[3], base_accuracy_on="augmented", **settings))
    records = [json.loads((run / "base" / "arm.json").read_text()) for run in (plain, augmented)]
    assert records[0]["augmented_accuracy"] is None
    assert records[0]["description"].startswith("stopped at validation accuracy")
    assert records[1]["description"].startswith("stopped at augmented validation accuracy")
    assert digits.test is not None
    assert digits.train is not None
    by_hand = [augmented_accuracy(augmented / "base", digits.test, seed) for seed in range(3, 9)]
    assert records[1]["augmented_accuracy"] == pytest.approx(by_hand[0])
    assert len(set(by_hand)) > 1, "another draw would not be seen"
    rows = list(csv.DictReader((augmented / "base" / "metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    validation = digits.train.subset(halves(digits).base_validation)
    assert float(rows[-1]["accuracy"]) == pytest.approx(augmented_accuracy(augmented / "base", validation, 3))
    assert all(float(row["accuracy"]) < 0.3 for row in rows[:-1])
    assert float(rows[-1]["accuracy"]) >= 0.3


def test_base_that_never_reaches_its_accuracy_says_which_step_is_used(tiny, tmp_path: Path) -> None:
    directory = improve(
        tiny(tmp_path / "run", epochs=2, base_accuracy=0.999, base_accuracy_on="augmented", controls="control-features")
    )
    results = schema.read_results(directory / "results.json")
    assert "never reached the augmented validation accuracy 0.999" in results.warnings[0]
    assert re.fullmatch(
        r"best augmented validation accuracy 0\.\d{4}, at step \d+ of \d+", results.arm("base").description or ""
    )


# repeating and resuming


def test_rerun_from_its_own_settings_gives_the_same_bits_in_another_directory(
    finished: Path, predictions, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in finished.rglob("*") if path.is_file()}
    words = ["improve", "--recipe", str(finished / "config.yaml"), "--out", str(finished), "--quiet", "--json"]
    assert main(words) == 0
    again = finished.with_name("first-2")
    assert same(predictions(again), predictions(finished))
    document = json.loads(capsys.readouterr().out)
    first = json.loads((finished / "results.json").read_text())
    for ours, theirs in zip(document["arms"], first["arms"], strict=True):
        assert ours["metrics"] == theirs["metrics"]
        assert ours["description"] == theirs["description"]
    assert document["verdicts"] == first["verdicts"]
    assert ImproveConfig.load(again / "config.yaml").steps == ImproveConfig.load(finished / "config.yaml").steps
    after = {path: hashlib.sha256(path.read_bytes()).digest() for path in finished.rglob("*") if path.is_file()}
    assert after == before


def test_finished_run_resumes_at_once(finished: Path, predictions, capsys: pytest.CaptureFixture[str]) -> None:
    stored, arms = predictions(finished), {arm: (finished / arm / "arm.json").stat().st_mtime_ns for arm in ARMS}
    metrics = [arm["metrics"] for arm in json.loads((finished / "results.json").read_text())["arms"]]
    assert main(["improve", "--resume", str(finished), "--quiet", "--json"]) == 0
    assert [arm["metrics"] for arm in json.loads(capsys.readouterr().out)["arms"]] == metrics
    assert same(predictions(finished), stored)
    assert {arm: (finished / arm / "arm.json").stat().st_mtime_ns for arm in ARMS} == arms


def test_interrupted_run_goes_on_to_the_same_bits(tiny, tmp_path: Path, predictions, monkeypatch, capsys) -> None:
    """Interrupted after the base, inside the method and inside a control; kills from outside are tested elsewhere."""
    undisturbed = improve(tiny(tmp_path / "undisturbed"))
    directory, real, calls = tmp_path / "disturbed", torch.nn.functional.cross_entropy, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in stops:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("torch.nn.functional.cross_entropy", interrupted)
    config, stops = tiny(directory), {8}
    for stop in ({8}, {20}, {40}, set()):
        calls, stops = 0, stop
        try:
            improve(config)
        except KeyboardInterrupt:
            assert f"go on with: postgrad improve --resume {directory}" in capsys.readouterr().err
        config = ImproveConfig.load(directory / "config.yaml").model_copy(update={"resume": directory})
    assert same(predictions(directory), predictions(undisturbed))
    story = [json.loads(line)["event"] for line in (directory / "events.jsonl").read_text().splitlines()]
    assert story.count("run begins") == 1
    assert story.count("run resumes") == 3
    assert story.count("arm ends") == len(ARMS)


def test_warning_of_an_arm_outlives_an_interruption(tiny, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("postgrad.studies.arms._fit_method", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            improve(tiny(tmp_path / "run", epochs=1, base_accuracy=0.999))
    config = ImproveConfig.load(tmp_path / "run" / "config.yaml")
    directory = improve(config.model_copy(update={"resume": tmp_path / "run"}))
    warnings = schema.read_results(directory / "results.json").warnings
    assert len(warnings) == 1
    assert "the base never reached the validation accuracy 0.999" in warnings[0]


def test_resumed_run_must_find_its_data_unchanged(finished: Path, tmp_path: Path) -> None:
    config = ImproveConfig.load(finished / "config.yaml")
    before = (finished / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"digits has changed since .* began"):
        improve(config.model_copy(update={"resume": finished, "limit": 120}))
    assert (finished / "config.yaml").read_bytes() == before


def test_a_run_that_is_being_written_is_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(finished):
        assert main(["improve", "--resume", str(finished), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "is being written by another process" in err
    assert len(err.splitlines()) == 1


# seeds and halves


@pytest.mark.slow
def test_several_seeds_have_directories_of_their_own(tiny, tmp_path: Path, predictions) -> None:
    directory = improve(tiny(tmp_path / "run", seeds=[0, 1]))
    found = predictions(directory)
    assert set(found) == {*ARMS, *(f"seed-1/{arm}" for arm in ARMS)}
    assert not any(np.array_equal(found[arm], found[f"seed-1/{arm}"]) for arm in ARMS)
    results = schema.read_results(directory / "results.json")
    accuracy = results.arm("gradnet").metrics["accuracy"]
    assert (accuracy.n_seeds, accuracy.ci_over, len(accuracy.values)) == (2, "seeds", 2)
    assert accuracy.mean == pytest.approx(np.mean(accuracy.values))
    assert accuracy.values[0] != accuracy.values[1]
    of_method = [v for v in results.verdicts if v.scope == "method"]
    assert [v.control for v in of_method] == ["base", *CONTROLS]
    assert {(v.verdict, v.test, v.p) for v in of_method} == {("too few seeds", "paired-t", None)}
    classifier = load_classifier(directory / "seed-1" / "gradnet")
    test = load_dataset("digits", limit=100).test
    assert test is not None
    np.testing.assert_array_equal(classifier.predict_proba(test.images), found["seed-1/gradnet"])


@pytest.mark.slow
def test_five_seeds_speak_for_the_method(tiny, tmp_path: Path) -> None:
    directory = improve(tiny(tmp_path / "run", seeds=range(5), limit=60, epochs=1))
    verdicts = schema.read_results(directory / "results.json").verdicts
    assert {(v.scope, v.test) for v in verdicts} == {("method", "paired-t")}
    assert all(v.p is not None and v.verdict in ("better", "worse", "no difference") for v in verdicts)


def test_one_seed_alone_is_the_same_as_among_several(tiny, tmp_path: Path, monkeypatch, predictions) -> None:
    """What a seed gives does not depend on the seeds before it."""
    with monkeypatch.context() as patch:
        patch.setattr("postgrad.studies.improve.trials", lambda config: [t for t in trials(config) if t.kind == "base"])
        both = improve(tiny(tmp_path / "both", seeds=[0, 1]))
        alone = improve(tiny(tmp_path / "alone", seeds=[1]))
    assert np.array_equal(predictions(both)["seed-1/base"], predictions(alone)["base"])
    assert not np.array_equal(predictions(both)["base"], predictions(alone)["base"])


@pytest.mark.slow
def test_whole_halves_leave_no_training_image_out(tiny, tmp_path: Path, finished: Path, predictions) -> None:
    directory = improve(tiny(tmp_path / "run", whole_halves=True))
    results = schema.read_results(directory / "results.json")
    assert any("the base is trained on 50 images of the first half" in note for note in results.notes)
    assert any("methods are fitted on 50 of the second half" in note for note in results.notes)
    assert any("whole halves, as published" in note for note in results.notes)
    assert results.data.n_train == 100
    assert {arm.temperature for arm in results.arms} == {None}
    assert not same(predictions(directory), predictions(finished))


def test_a_run_with_mapper_has_its_graph(tiny: Any, tmp_path: Path) -> None:
    run = improve(tiny(tmp_path / "run", methods=["mapper:epochs=1,hidden=8+8,n_components=3,n_intervals=4"]))
    table = json.loads((run / "mapper_graph.json").read_text())
    assert table == json.loads(json.dumps(postgrad.load(run / "mapper").graph_table()))
    assert 'href="#mapper-graph"' in (run / "report.html").read_text(encoding="utf-8")
    assert not (run / "gradnet_blocks.json").exists()


def test_of_several_arms_of_a_method_the_first_is_drawn() -> None:
    methods = [SimpleNamespace(name=name, label=label) for name, label in
               (("gradnet", "gradnet"), ("mapper", "wide"), ("mapper", "narrow"), ("knn", "knn"))]  # fmt: skip
    run: Any = SimpleNamespace(config=SimpleNamespace(method_arms=lambda: methods))

    def drawn(method: Any, kind: str = "method", arm: str | None = None) -> str | None:
        trial: Any = SimpleNamespace(kind=kind, method=method, arm=arm or method.label)
        found = arms._drawing(run, trial)
        return found and found.file

    assert [drawn(method) for method in methods] == ["gradnet_blocks.json", "mapper_graph.json", None, None]
    assert drawn(methods[1], kind="control", arm="control-finetune") is None
