"""The end of a search: its lineage, its arms on the test images, and what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

import postgrad
from postgrad.data.datasets import load_dataset
from postgrad.evaluation.statistics import mcnemar
from postgrad.reports.schema import Results, read_results
from postgrad.search.config import SearchConfig
from postgrad.search.controls import CONTROLS, Control
from postgrad.search.events import Log, read_events
from postgrad.search.individual import Individual
from postgrad.search.lineage import lineage, winner_of
from postgrad.search.results import TITLES, close_search
from postgrad.studies.claims import ledger_of_run, raw_of
from postgrad.studies.study_config import Claim

REFUSED = {"number": 3, "mutation": "wider", "reason": "it would have 700000 parameters; the limit is 60000"}


@pytest.fixture(scope="module")
def closed(bred: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that ended: its winner is the grandchild, its controls were made before, one of them failed."""
    directory = tmp_path_factory.mktemp("closed") / "search"
    shutil.copytree(bred.context.directory, directory)
    shutil.rmtree(directory / "control-stacking")
    context = replace(bred.context, directory=directory)
    finished = list(bred.path)
    finished[-1] = replace(finished[-1], accuracy=0.99)  # whatever became of it
    log = Log(directory)
    log("search begins", data=context.fingerprint)
    for individual in finished:
        log("individual", **asdict(individual))
    log("refused", parent=finished[0].name, job="child", **REFUSED)
    log("failed", job="child", number=4, parent=finished[0].name, mutation="wider", reason="too little memory")
    close_search(context, finished, lambda jobs: {jobs[-1]: "no stage can be stacked"})
    return directory


@pytest.fixture
def results(closed: Path) -> Results:
    return read_results(closed / "results.json")


def test_all_arms_are_there_in_their_order_and_those_that_failed_are_told(results: Results) -> None:
    assert [arm.name for arm in results.arms] == [name for name in TITLES if name != "control-stacking"]
    assert [arm.kind for arm in results.arms] == ["base", "method", "control", "control", "control"]
    assert all(arm.control_for == ["best"] for arm in results.arms if arm.kind == "control")
    assert [(each.arm, each.reason) for each in results.failures] == [("control-stacking", "no stage can be stacked")]
    assert results.warnings == ["network 4 failed: too little memory"]


def test_the_winner_is_compared_with_every_arm_on_the_test_images(closed: Path, results: Results) -> None:
    right = {}
    for arm in results.arms:
        with np.load(closed / arm.name / "test_predictions.npz") as stored:
            right[arm.name] = stored["probabilities"].argmax(1) == stored["labels"]
        assert arm.metrics["accuracy"].mean == pytest.approx(right[arm.name].mean())
    of_run = [verdict for verdict in results.verdicts if verdict.scope == "run"]
    assert {verdict.control for verdict in of_run} == {arm.name for arm in results.arms} - {"best"}
    for verdict in of_run:
        assert (verdict.method, verdict.test) == ("best", "mcnemar")
        assert verdict.p == pytest.approx(mcnemar(right["best"], right[verdict.control]))


def test_predictions_are_those_of_the_network_that_lies_there(bred: Any, closed: Path) -> None:
    dataset = load_dataset("digits", limit=200)
    network = postgrad.load(closed / "best")
    with torch.no_grad():
        said = network(bred.context.preprocess(dataset.test.images)).softmax(1).numpy()
    with np.load(closed / "best/test_predictions.npz") as stored:
        np.testing.assert_allclose(stored["probabilities"], said, atol=1e-5)
        assert stored["labels"].tolist() == dataset.test.labels.tolist()
    assert len(bred.context.images) + len(bred.context.held_back) == len(dataset.train)


def test_prices_are_those_of_the_whole_search(bred: Any, results: Results) -> None:
    base, *children = bred.path
    costs = {arm.name: arm.cost for arm in results.arms}
    whole = sum(each.cpu_seconds for each in children)
    assert costs["best"].train_cpu_seconds == pytest.approx(whole, abs=1e-4)
    assert costs["best"].total_cpu_seconds == pytest.approx(whole + base.cpu_seconds, abs=1e-4)
    assert costs["best"].lineage_multiply_adds == bred.winner.lineage_multiply_adds
    assert costs["best"].multiply_adds == bred.winner.multiply_adds
    scratch = costs["control-from-scratch"]
    assert scratch.train_cpu_seconds == scratch.total_cpu_seconds
    finetuned = costs["control-finetune"]
    assert finetuned.total_cpu_seconds == pytest.approx(finetuned.train_cpu_seconds + base.cpu_seconds, abs=2e-4)


def test_the_lineage_has_every_network_and_every_refusal(bred: Any, closed: Path, results: Results) -> None:
    stored = json.loads((closed / "lineage.json").read_text())
    assert [node.name for node in results.lineage] == [each.name for each in bred.path]
    assert [node["name"] for node in stored["networks"]] == [each.name for each in bred.path]
    assert stored["winner"] == bred.winner.name
    assert stored["refused"] == [{**REFUSED, "parent": bred.path[0].name}]
    assert results.lineage[0].refused == {"wider": 1}
    assert [node.parent for node in results.lineage] == [None, bred.path[0].name, bred.path[1].name]
    assert [tuple(node.operations) for node in results.lineage] == [each.operations for each in bred.path]
    assert results.lineage[-1].max_error <= 1e-9
    assert stored["networks"][-1]["genes"] == asdict(bred.winner.genes)
    page = (closed / "report.html").read_text()
    assert "Mutation search" in page
    assert f'id="network-{bred.winner.name}"' in page


def test_the_winners_curve_goes_through_its_lineage(bred: Any, closed: Path) -> None:
    rows = (closed / "best/metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    last = dict(zip(columns, rows[-1].split(","), strict=True))
    steps = [bred.context.individual(each.name).trained["steps"] for each in bred.path]
    assert float(last["step"]) == sum(steps)
    assert int(last["parameters"]) == bred.winner.parameters
    assert int(last["growths"]) == 2
    assert (closed / "metrics.csv").read_text().startswith("seed,arm,")


def test_the_run_is_loaded_as_what_validation_recommends(closed: Path, results: Results) -> None:
    shares = {arm: json.loads((closed / arm / "arm.json").read_text())["validation_accuracy"] for arm in
              (arm.name for arm in results.arms)}  # fmt: skip
    assert shares[results.recommended or ""] == max(shares.values())
    assert postgrad.load(closed) is not None


def test_where_nothing_beats_the_base_there_is_nothing_to_control(bred: Any, tmp_path: Path) -> None:
    directory = tmp_path / "search"
    shutil.copytree(bred.context.directory / "population", directory / "population")
    context = replace(bred.context, directory=directory)
    base = replace(bred.path[0], accuracy=1.0)
    log = Log(directory)
    for individual in (base, bred.path[1]):
        log("individual", **asdict(individual))
    asked: list[Any] = []
    found = close_search(context, [base, bred.path[1]], lambda jobs: asked.extend(jobs) or {})
    assert asked == []
    assert [arm.name for arm in found.arms] == ["base", "best"]
    assert "no network was more accurate than the base, so there are no controls" in found.notes
    assert not any(arm in CONTROLS for arm in (directory / "population").iterdir())


def made_up(individual: Callable[..., Individual], accuracies: list[float]) -> list[Individual]:
    return [individual(number, accuracy=accuracy) for number, accuracy in enumerate(accuracies)]


def test_the_population_is_that_of_the_search_at_each_moment(bred: Any, individual, tmp_path: Path) -> None:
    accuracies = [0.1, 0.5, 0.2, 0.3, 0.9, 0.4]
    finished = made_up(individual, accuracies)
    log = Log(tmp_path)
    for each in finished:
        log("individual", name=each.name)
    config = bred.context.config.model_copy(update={"population": 3})
    nodes = lineage(finished, read_events(tmp_path), config)
    # The oldest leaves, but not the best: 0.1, then 0.5 once 0.9 is there, then 0.2.
    members = [[0.1], [0.1, 0.5], [0.1, 0.5, 0.2], [0.5, 0.2, 0.3], [0.2, 0.3, 0.9], [0.3, 0.9, 0.4]]
    assert [node.population_accuracy for node in nodes] == pytest.approx([fmean(each) for each in members])
    assert [node.winner for node in nodes] == [False] * 4 + [True, False]
    assert [node.seconds for node in nodes] == sorted(node.seconds for node in nodes)


def test_of_equal_ones_the_first_finished_wins(individual) -> None:
    finished = made_up(individual, [0.1, 0.7, 0.7])
    assert winner_of(finished) is finished[1]
    assert Control("control-finetune", finished[1].name).label == {"job": "control", "arm": "control-finetune"}


def test_claims_are_judged_and_the_lineage_is_kept_beside_the_page(closed: Path, tmp_path: Path) -> None:
    claim, page = Claim(claim="bred networks win", source="a plan", arm="best"), tmp_path / "ledger" / "search"
    results = read_results(closed / "results.json")
    (closed / "environment.json").write_text("{}")
    bred_from = SearchConfig.model_validate({"claims": [claim.model_dump()]})
    bred_from.save(closed / "config.yaml")
    ledger_of_run(page, bred_from.claims, closed, "postgrad search --recipe a.yaml")
    assert "| bred networks win |" in page.with_suffix(".md").read_text()
    assert raw_of(page).joinpath("lineage.json").read_bytes() == (closed / "lineage.json").read_bytes()
    with np.load(raw_of(page) / "predicted.npz") as kept:
        right = (kept["best-seed0"] == kept["labels"]).mean()
    assert right == pytest.approx(results.arm("best").metrics["accuracy"].mean)
