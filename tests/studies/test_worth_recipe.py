"""The recipe of the study of what GradNet is worth: what is refused, and that the one in the repository is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postgrad.errors import UserError
from postgrad.studies.worth_recipe import WorthRecipe
from postgrad.validation import read_yaml, validated

RECIPE = Path(__file__).parents[2] / "recipes" / "worth" / "cifar10.yaml"
BEYOND = {"base_seconds": 1, "seconds": 5, "finetune_seconds": 1, "settings": [{"name": "a"}]}


def read(**settings: Any) -> WorthRecipe:
    return validated(WorthRecipe, settings, source="recipe.yaml")


def test_the_committed_recipe_has_all_parts() -> None:
    recipe = validated(WorthRecipe, read_yaml(RECIPE), source=str(RECIPE))
    assert recipe.curve is not None
    assert recipe.converged is not None
    assert recipe.beyond is not None
    assert recipe.curve.stage == recipe.converged.stage
    switches = {until for until, _ in recipe.curve.switches}
    halves = {total / 2 for total in recipe.curve.totals}
    assert switches <= halves, "a switch at half of a total shares its network with training alone"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"curv": None}, "did you mean 'curve'"),
        ({"seeds": []}, "seeds"),
        ({"curve": {"totals": [1], "switches": [[3, 2]]}}, "the first of a pair must be the smaller"),
        ({"curve": {"totals": [0], "switches": []}}, "greater than 0"),
        ({"curve": {"totals": [1], "switches": [], "stage": {"reads": "pixels"}}}, "'gradients' or 'features'"),
        ({"curve": {"totals": [1], "switches": [], "stage": {"rates": []}}}, "rates"),
        ({"converged": {"folds": 1}}, "folds"),
        ({"converged": {"held_back": 1.0}}, "held_back"),
        ({"converged": {"weights": [-1]}}, "weights"),
        ({"beyond": BEYOND | {"settings": []}}, "settings"),
        ({"beyond": BEYOND | {"settings": [{"name": "a"}, {"name": "a"}]}}, "each name may be there once"),
        ({"beyond": BEYOND | {"settings": [{"name": "../a"}]}}, "name"),
        ({"beyond": BEYOND | {"finetune_seconds": 2.5}}, "must leave something"),
        ({"beyond": BEYOND | {"settings": [{"name": "a", "network": "other"}]}}, "'base' or 'finetuned'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml") as caught:
        read(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
