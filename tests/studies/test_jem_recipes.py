"""The studies of energy models: each can be read, has its controls, and can be judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from postgrad.data.preprocessing import Preprocessing
from postgrad.studies.energy import check_range, is_energy_model
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import trials

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes" / "jem").glob("*.yaml"))


def test_there_are_three() -> None:
    assert [path.stem for path in RECIPES] == ["cifar10", "few-labels", "mnist"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_judged(path: Path) -> None:
    config = StudyConfig.load(path)
    made = {trial.arm: trial for trial in trials(config)}
    assert len(config.seeds) == 3
    assert (config.mean, config.std) == ((0.5,), (0.5,))
    for arm in config.training_arms().values():
        assert is_energy_model(arm.methods)
        check_range(arm.methods, Preprocessing(mean=config.mean, std=config.std))
    for claim in config.claims:
        if claim.not_testable is None:
            assert len(made[str(claim.arm)].against) >= 2, "a reference and a fair control"
    assert config.out.name == f"jem-{path.stem}"
    assert f"postgrad study recipes/jem/{path.name}" in path.read_text(encoding="utf-8")
