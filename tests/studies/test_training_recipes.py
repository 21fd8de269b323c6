"""The recipes for published claims on trainings and growth: each can be read, and each of its claims can be judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from postgrad.evaluation.statistics import MIN_SEEDS
from postgrad.models.registry import create_model
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import trials

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for folder in ("training", "distillation") for path in (ROOT / "recipes" / folder).glob("*.yaml"))
GROWTH = sorted((ROOT / "recipes" / "growth").glob("*.yaml"))


def test_there_are_some() -> None:
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_tests_its_claims(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = StudyConfig.load(path)
    made = {trial.arm: trial for trial in trials(config)}
    text = path.read_text(encoding="utf-8")
    assert len(config.seeds) >= (3 if "three seeds" in text else MIN_SEEDS), "fewer are preliminary and must be told"
    assert config.claims
    for claim in config.claims:
        if claim.not_testable is None:
            method = made[claim.arm or next(iter(config.arms))]
            assert method.kind == "method"
            assert len(method.against) >= 2, "a reference and a fair control"
    assert path.stem == config.out.name
    assert f"postgrad study recipes/{path.parent.name}/{path.name}" in text


@pytest.mark.parametrize("path", GROWTH, ids=lambda path: path.stem)
def test_a_recipe_of_growth_is_preliminary_and_says_so_by_its_seeds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = StudyConfig.load(path)
    assert len(config.seeds) == 3
    assert {claim.arm for claim in config.claims} <= {trial.arm for trial in trials(config) if trial.kind == "method"}
    assert f"growth-{path.stem}" == config.out.name
    assert f"postgrad study recipes/growth/{path.name}" in path.read_text(encoding="utf-8")


def test_each_arm_of_a_recipe_of_growth_makes_its_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arms = [arm for path in GROWTH for arm in StudyConfig.load(path).training_arms().values()]
    for model in {arm.model for arm in arms} - {None}:
        network = create_model(model, num_classes=10, in_channels=3, image_size=(32, 32))
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
