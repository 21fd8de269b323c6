"""The settings of a search: what ends it, how they are written and read, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postgrad.errors import UserError
from postgrad.search.config import SearchConfig
from postgrad.validation import validated


def test_ten_minutes_where_nothing_ends_it() -> None:
    assert SearchConfig().budget == "10m"
    assert SearchConfig(individuals=5).budget is None
    assert SearchConfig(multiply_adds=1e9, budget=None).budget is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"individuals": 7, "mutations": "deeper,wider"},
        {"multiply_adds": 1e12, "training": {"epochs": 2, "lr": 0.1}},
        {"budget": "1h", "claims": [{"claim": "better than stacking", "source": "a plan", "arm": "best"}]},
    ],
)
def test_settings_are_read_as_they_were_written(settings: dict[str, Any], tmp_path: Path) -> None:
    config = SearchConfig.model_validate({"mutation_files": "mine.py", "resume": None, **settings})
    config.save(tmp_path / "config.yaml")
    assert SearchConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": "10m", "individuals": 3}, "give one of budget, individuals, multiply_adds, got budget and"),
        ({"budget": "soon"}, "a time such as 90s"),
        ({"individuals": 0}, "individuals: should be greater than 0"),
        ({"multiply_adds": -1}, "multiply_adds: should be greater than 0"),
        ({"training": {"budget": "1m"}}, "a child is trained for a fixed length; give epochs or steps"),
        ({"training": {"stop_accuracy": 0.9}}, "stop_accuracy: a child"),
        ({"objective": "speed"}, "objective: should be 'accuracy' or 'pareto'"),
        ({"poplation": 3}, "unknown setting 'poplation': did you mean 'population'?"),
        ({"tournament": 0}, "tournament"),
        ({"base_epochs": 0}, "base_epochs"),
        ({"claims": [{"claim": "x", "source": "y", "arm": "control-random"}]}, "proves its arm best alone"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml") as refused:
        validated(SearchConfig, settings, source="recipe.yaml")
    assert said in str(refused.value)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "recipes" / "search").glob("*.yaml")), ids=str)
def test_recipes_can_be_read_and_judged(file: Path) -> None:
    config = SearchConfig.load(file)
    assert config.out.name == f"search-{file.stem}"
    assert file.stem == "digits" or config.claims
