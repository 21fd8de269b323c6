"""The recipes for published claims on training-time methods: each can be read, and each of its claims can be judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from postgrad.evaluation.statistics import MIN_SEEDS
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import trials

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes" / "training").glob("*.yaml"))


def test_there_are_some() -> None:
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_tests_its_claims(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = StudyConfig.load(path)
    made = {trial.arm: trial for trial in trials(config)}
    assert len(config.seeds) >= MIN_SEEDS
    assert config.claims
    for claim in config.claims:
        if claim.not_testable is None:
            method = made[claim.arm or next(iter(config.arms))]
            assert method.kind == "method"
            assert len(method.against) >= 2, "a reference and a fair control"
    assert path.stem == config.out.name
    assert f"postgrad study recipes/training/{path.name}" in path.read_text(encoding="utf-8")
