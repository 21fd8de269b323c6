"""What a run consists of: the right arms, in an order in which each can be made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.methods.registry import CONTROLS_OF_SHAPE, METHODS
from postgrad.studies.config import CONTROLS, ImproveConfig
from postgrad.studies.study_config import StudyConfig
from postgrad.studies.trials import Trial, trials


def study(*arms: str, **settings: object) -> StudyConfig:
    return StudyConfig.model_validate({"arms": dict.fromkeys(arms, "gradnet"), **settings})


def test_improve_makes_its_arms_in_the_order_that_they_always_had() -> None:
    assert [trial.arm for trial in trials(ImproveConfig())] == ["base", "gradnet", *CONTROLS]


def test_one_method_needs_no_suffix_and_several_do() -> None:
    assert [trial.arm for trial in trials(study("one", controls="control-features"))] == [
        "base",
        "one",
        "control-features",
    ]
    assert [trial.arm for trial in trials(study("one", "two", controls="control-features"))] == [
        "base",
        "one",
        "control-features-one",
        "two",
        "control-features-two",
    ]


def test_the_best_of_two_controls_needs_both() -> None:
    found = {trial.arm: trial for trial in trials(study("a", "b"))}
    assert found["control-same-price-b"].needs == ("base", "b", "control-finetune-b", "control-more-data-b")
    assert found["control-features-b"].needs == ("base", "b")
    assert found["b"].needs == ("base",)
    assert found["base"].needs == ()


@given(
    names=st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), min_size=1, max_size=4, unique=True),
    seeds=st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True),
)
def test_every_trial_comes_once_and_after_what_it_needs(names: list[str], seeds: list[int]) -> None:
    names = [name for name in names if name != "base"] or ["gradnet"]
    found = trials(study(*names, seeds=seeds))
    assert len(found) == len(seeds) * (1 + len(names) * (1 + len(CONTROLS))) == len(set(found))
    seen: set[tuple[int, str]] = set()
    for trial in found:
        assert {(trial.seed, arm) for arm in trial.needs} <= seen
        seen.add((trial.seed, trial.arm))


def test_every_method_has_the_controls_of_its_shape() -> None:
    for method in METHODS.values():
        asked_for = CONTROLS_OF_SHAPE[method.shape]
        config = StudyConfig.model_validate({"arms": {"arm": method.name}})
        made = {trial.control for trial in trials(config) if trial.kind == "control"}
        assert made == set(asked_for)


def test_a_trial_says_what_it_is() -> None:
    assert str(Trial(3, "gradnet-last", "method")) == "gradnet-last, seed 3"


@pytest.mark.parametrize("name", ["base", "control-finetune", "seed-1", "../up", "a b", "", ".hidden", "a/b"])
def test_names_that_no_folder_of_an_arm_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="an arm's name consists of"):
        study(name)
