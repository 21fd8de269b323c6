"""The studies of Mapper: each can be read, has nearest neighbours or another method as a control, and can be judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import trials

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes" / "mapper").glob("*.yaml"))


def test_there_are_three() -> None:
    assert [path.stem for path in RECIPES] == ["mnist-10k", "mnist-60k", "mnist-gradients"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_judged(path: Path) -> None:
    config = StudyConfig.load(path)
    made = {trial.arm: trial for trial in trials(config)}
    assert len(config.seeds) == 3
    for claim in config.claims:
        arm = made[str(claim.arm)]
        assert arm.method is not None
        assert arm.method.name == "mapper"
        assert {"base", "control-finetune-" + arm.arm} < set(arm.against)
        others = [made[name] for name in arm.method.against]
        assert others
        assert all(arm.arm in other.control_for for other in others)
    assert f"--ledger docs/ledger/mapper-{path.stem}" in path.read_text(encoding="utf-8")
