"""What a run consists of: the right arms, in an order in which each can be made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.methods.registry import CONTROLS_OF_SHAPE, LEARN_FROM_TEACHER, METHODS
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


def test_a_method_that_others_are_compared_with_is_a_control_without_controls() -> None:
    arms = {"a": {"name": "gradnet", "against": ["b", "c"]}, "b": "gradnet", "c": {"name": "gradnet", "against": ["b"]}}
    config = StudyConfig.model_validate({"arms": arms, "controls": ["control-features"]})
    found = {trial.arm: trial for trial in trials(config)}
    assert list(found) == ["base", "a", "control-features-a", "b", "c", "control-features-c"]
    assert {arm: trial.kind for arm, trial in found.items() if trial.control is None} == {
        "base": "base", "a": "method", "b": "control", "c": "method",
    }  # fmt: skip
    assert found["a"].against == ("base", "control-features-a", "b", "c")
    assert found["c"].against == ("base", "control-features-c", "b")
    assert (found["b"].control_for, found["c"].control_for) == (("a", "c"), ("a",))
    assert found["control-features-a"].method is found["a"].method


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
        taught = {"methods": method.name, "teacher": "runs/teacher"}
        arm = taught if method.name in LEARN_FROM_TEACHER else method.name
        config = StudyConfig.model_validate({"arms": {"arm": arm}})
        made = {trial.control for trial in trials(config) if trial.kind == "control"}
        assert made == set(asked_for)


def trainings(arms: dict[str, object], **settings: object) -> dict[tuple[int, str], Trial]:
    config = StudyConfig.model_validate({"arms": arms, **settings})
    return {(trial.seed, trial.arm): trial for trial in trials(config)}


def test_trainings_stand_on_nothing_but_the_rate_of_the_first_seed() -> None:
    found = trainings({"ema": "ema"}, seeds=[4, 2])
    assert list(found) == [(seed, arm) for seed in (4, 2) for arm in ("base", "ema", "control-same-time")]
    assert found[4, "ema"].stands_on == set()
    assert found[2, "ema"].stands_on == {(4, "ema")}
    assert found[4, "control-same-time"].stands_on == {(4, "ema")}
    assert found[2, "control-same-time"].stands_on == {(2, "ema"), (4, "control-same-time")}
    assert found[4, "ema"].against == ("base", "control-same-time")


def test_an_arm_that_others_are_compared_with_is_a_control_unless_it_is_compared_itself() -> None:
    smooth = {"training": {"label_smoothing": 0.1}}
    found = trainings({"smooth": smooth, "ema": {"methods": "ema", "against": ["base", "smooth"]}})
    assert (found[0, "smooth"].kind, found[0, "smooth"].control_for) == ("control", ("ema",))
    assert found[0, "ema"].against == ("base", "smooth", "control-same-time")
    assert found[0, "base"].control_for == ("ema",)
    compared = trainings({"smooth": smooth | {"against": ["base"]}, "ema": {"methods": "ema", "against": ["smooth"]}})
    assert compared[0, "smooth"].kind == "method"
    assert compared[0, "ema"].against == ("smooth", "control-same-time-ema")


def test_the_control_of_a_training_s_time_has_its_settings_and_none_of_its_methods() -> None:
    found = trainings({"a": {"methods": "ema", "training": {"batch_size": 4}}})
    control = found[0, "control-same-time"]
    assert control.training is not None
    assert (control.training.methods, control.training.training) == ((), {"batch_size": 4})


def test_an_arm_for_the_time_of_another_comes_after_it() -> None:
    large = {"model": "resnet20", "time_of": "ema"}
    found = trainings({"large": large, "ema": {"methods": "ema", "against": ["large"]}}, seeds=[4, 2])
    assert [arm for seed, arm in found if seed == 4] == ["base", "ema", "control-same-time", "large"]
    assert found[4, "large"].stands_on == {(4, "ema")}
    assert found[2, "large"].stands_on == {(2, "ema"), (4, "large")}
    assert (found[4, "large"].kind, found[4, "large"].control_for) == ("control", ("ema",))


def test_a_trial_says_what_it_is() -> None:
    assert str(Trial(3, "gradnet-last", "method")) == "gradnet-last, seed 3"


@pytest.mark.parametrize("name", ["base", "control-finetune", "seed-1", "../up", "a b", "", ".hidden", "a/b"])
def test_names_that_no_folder_of_an_arm_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="an arm's name consists of"):
        study(name)
