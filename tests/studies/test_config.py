"""The settings of a run: round trip through YAML, and one plain line for what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from postgrad.errors import UserError
from postgrad.studies.config import CONTROLS, ImproveConfig
from postgrad.validation import validated

METHOD = "gradnet:epochs=2,hidden=5+100+25,lr=1e-3,normalise=scale+power"


@given(
    limit=st.none() | st.integers(1, 10**6),
    base_accuracy=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    mean=st.none() | st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    steps=st.dictionaries(st.from_regex(r"seed[0-9]/[a-z-]{1,9}/final", fullmatch=True), st.integers(0, 10**7)),
)
def test_settings_read_back_equal_those_written(
    tmp_path_factory: pytest.TempPathFactory, mean: list[float] | None, **settings: object
) -> None:
    config = ImproveConfig.model_validate(
        {**settings, "mean": mean, "std": mean and [0.2] * 3, "methods": [METHOD], "weights": "some/weights.pt"}
    )
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    config.save(file)
    assert ImproveConfig.load(file) == config


def test_method_may_be_a_word_or_a_mapping() -> None:
    word = ImproveConfig.model_validate({"methods": ["gradnet:epochs=3"]})
    mapping = ImproveConfig.model_validate({"methods": [{"name": "gradnet", "options": {"epochs": 3}}]})
    assert word == mapping


def test_controls_may_be_a_word_or_a_list_in_any_order() -> None:
    word = ImproveConfig.model_validate({"controls": "control-features, control-finetune"})
    assert word == ImproveConfig(controls=("control-finetune", "control-features"))
    assert "--controls control-finetune,control-features" in word.command()
    assert ImproveConfig().controls == CONTROLS
    assert "--controls" not in ImproveConfig().command()


def test_resume_is_not_written() -> None:
    assert "resume" not in ImproveConfig(resume=Path("runs/demo")).to_yaml()


def test_command_does_not_say_where_bases_are_shared() -> None:
    assert "bases" not in ImproveConfig(bases=Path("runs/bases"), base_targets=(0.5,)).command()
    assert "targets" not in ImproveConfig(bases=Path("runs/bases"), base_targets=(0.5,)).command()


def test_only_the_given_parts_of_the_preprocessing_are_flags() -> None:
    config = ImproveConfig.model_validate({"crop": 24, "mean": ".5,.5,.5", "std": ".25,.25,.25"})
    assert config.preprocess_flags() == {"crop": 24, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epoch": 3}, "unknown setting 'epoch': did you mean 'epochs'?"),
        ({"zzz": 3}, "unknown setting 'zzz': known: base_accuracy, base_accuracy_on, "),
        ({"limit": "x"}, "limit: should be a valid integer, got 'x'"),
        ({"limit": 0}, "limit: should be greater than 0, got 0"),
        ({"epochs": float("nan")}, "epochs: should be a finite number"),
        ({"methods": ["gradnut"]}, "did you mean 'gradnet'?"),
        ({"methods": [{"name": "gradnet", "option": {}}]}, "unknown setting 'methods.0.option'"),
        ({"methods": []}, "at least one method"),
        ({"methods": ["gradnet", "gradnet:lr=1"]}, "each of them once"),
        ({"budget": "10"}, "a time such as 90s"),
        ({"memory": "much"}, "memory: memory: cannot read"),
        ({"base_accuracy": 72}, "72 % is 0.72"),
        ({"mean": ".5"}, "mean and std belong together"),
        ({"mean": ".5,.5", "std": ".5"}, "mean has 2 numbers and std 1"),
        ({"mean": "a", "std": ".5"}, "mean: expected numbers with commas between them, got 'a'"),
        ({"mean": "0", "std": "0"}, "std: expected numbers above 0"),
        ({"controls": "control-finetun"}, "unknown control 'control-finetun': did you mean 'control-finetune'?"),
        ({"controls": []}, "controls: expected at least one for gradnet"),
        ({"controls": ["control-finetune"] * 2}, "expected each control once"),
        ({"controls": ["control-same-price", "control-finetune"]}, "name these two as well"),
        ({"base_accuracy_on": "train"}, "base_accuracy_on: should be 'plain' or 'augmented', got 'train'"),
        ({"base_targets": [0.5, 72]}, "base_targets.1: expected a fraction between 0 and 1"),
        ({"base_validate_every": 0}, "base_validate_every: should be greater than 0"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 1]}, "each of them once"),
        ({"seeds": [-1]}, "seeds.0: should be greater than or equal to 0, got -1"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_source(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(ImproveConfig, settings, source="recipe.yaml")
    message = str(caught.value)
    assert message.startswith("recipe.yaml: ")
    assert sentence in message
    assert "\n" not in message


def test_every_mistake_is_named() -> None:
    with pytest.raises(UserError, match=r"limit: .*; unknown setting 'epoch'"):
        validated(ImproveConfig, {"limit": 0, "epoch": 3}, source="recipe.yaml")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "just words", "1: 2", "\xff\xfe"])
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        ImproveConfig.load(file)


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    assert ImproveConfig.load(tmp_path / "recipe.yaml") == ImproveConfig()


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        ImproveConfig().data = "mnist"  # type: ignore[misc]
