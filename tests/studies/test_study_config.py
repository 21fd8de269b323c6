"""A recipe of a study: every setting checked, round trip, and what it says when it is not that of a study begun."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from postgrad.cli import main
from postgrad.errors import UserError
from postgrad.studies.executors import check_ray
from postgrad.studies.study_config import StudyConfig, check_same
from postgrad.studies.trials import trials
from postgrad.validation import validated

ROOT = Path(__file__).resolve().parents[2]

RECIPE: dict[str, Any] = {"data": "digits", "model": "mlp", "limit": 60, "arms": {"gradnet": "gradnet:steps=1"}}

CLAIM = {"claim": "MNIST .92", "source": "Table 1", "arm": "gradnet", "published": 0.98}

WRONG: dict[str, tuple[Any, str]] = {
    "model": ("resnet21", "did you mean 'resnet20'?"),
    "weights": ("nowhere.pt", "no such weights file"),
    "data": ("digit", "did you mean 'digits'?"),
    "data_dir": ([1], "data_dir: "),
    "limit": (0, "limit: should be greater than 0, got 0"),
    "size": ("large", "size: should be a valid integer"),
    "crop": (9, "cannot be cropped to 9×9"),
    "mean": ("a", "mean: expected numbers with commas between them"),
    "std": (0, "std: expected numbers above 0"),
    "per_image_standardise": ("perhaps", "per_image_standardise: should be a valid boolean"),
    "device": ("tpu", "unknown device 'tpu'"),
    "threads": (0, "threads: should be greater than 0"),
    "memory": ("much", "memory: memory: cannot read"),
    "out": ([1], "out: "),
    "resume": ("runs/study", "resume belongs on the command line"),
    "epochs": (-1, "epochs: should be greater than 0"),
    "budget": ("10", "budget: expected a time such as 90s"),
    "base_accuracy": (85, "base_accuracy: expected a fraction between 0 and 1"),
    "base_accuracy_on": ("train", "base_accuracy_on: should be 'plain' or 'augmented'"),
    "base_validate_every": (0, "base_validate_every: should be greater than 0"),
    "bases": ([1], "bases: "),
    "base_targets": ([72], "base_targets.0: expected a fraction"),
    "controls": (["control-finetun"], "did you mean 'control-finetune'?"),
    "seeds": (0, "seeds: expected at least one seed"),
    "whole_halves": ("perhaps", "whole_halves: should be a valid boolean"),
    "steps": ({"seed0/base": -1}, "steps.seed0/base: should be greater than or equal to 0"),
    "arms": ({"gradnet": "gradnut"}, "did you mean 'gradnet'?"),
    "training": ({"epochs": 1}, "training: no setting of a study of second-stage methods"),
    "rates": ([0], "rates.0: should be greater than 0"),
    "ood": (["noise", "noise"], "ood: expected each name once"),
    "corruptions": (3, "corruptions: should be a valid tuple"),
    "claims": ([CLAIM | {"arm": "gradnut"}], "unknown arm of the claim 'MNIST .92' 'gradnut': did you mean 'gradnet'?"),
}


def test_every_setting_is_tried() -> None:
    assert set(WRONG) == set(StudyConfig.model_fields)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Give a recipe to `postgrad study`, which must refuse it in one line."""
    monkeypatch.chdir(tmp_path)

    def check(recipe: Any, *hints: str, words: tuple[str, ...] = ()) -> None:
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        before = sorted(tmp_path.iterdir())
        assert main(["study", "recipe.yaml", "--workers", "0", "--quiet", *words]) == 2, capsys.readouterr()
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1, err
        for hint in hints:
            assert hint in err
        assert sorted(tmp_path.iterdir()) == before

    return check


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_value_is_one_line(refused: Any, field: str) -> None:
    value, hint = WRONG[field]
    refused(RECIPE | {field: value}, hint)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"seed": 3}, "unknown setting 'seed': did you mean 'seeds'?"),
        ({"methods": ["gradnet"]}, "unknown setting 'methods'"),
        ({"seeds": [1, 1]}, "each of them once"),
        ({"seeds": -2}, "at least one seed"),
        ({"seeds": "many"}, "seeds: should be a valid tuple"),
        ({"arms": {}}, "arms: expected at least one method"),
        ({"arms": ["gradnet"]}, "arms: expected lines of the form 'name: method'"),
        ({"arms": {"base": "gradnet"}}, "an arm's name"),
        ({"arms": {"a": {"name": "gradnet", "arm": "b"}}}, "the name of an arm stands before its method"),
        ({"arms": {"a": "gradnet:epoch=1"}}, "did you mean 'epochs'?"),
        ({"arms": {"a": "gradnet:select=15"}}, "select: expected a share above 0 and at most 1"),
        ({"arms": {"a": "gradnet", "b": "gradnet:layers=[l7]"}}, "unknown layer 'l7'"),
        ({"controls": ["control-same-price"]}, "name these two as well"),
        ({"data": "npz:nowhere.npz"}, "nowhere.npz"),
        ({"ood": ["noisy"]}, "did you mean 'noise'?"),
        ({"ood": ["digits"]}, "digits is the data of the study itself"),
        ({"claims": [CLAIM | {"metric": "acuracy"}]}, "did you mean 'accuracy'?"),
        ({"claims": [{"claim": "MNIST .92"}]}, "source: missing"),
        ({"claims": "better"}, "claims: should be a valid tuple"),
        ({"corruptions": ["jpg"]}, "did you mean 'jpeg'?"),
        ({"corruptions": "jpeg,jpeg"}, "corruptions: expected each name once"),
    ],
)
def test_other_mistakes_are_one_line_before_any_training(refused: Any, settings: dict[str, Any], hint: str) -> None:
    refused(RECIPE | settings, hint)


TRAININGS: dict[str, Any] = {
    "data": "digits", "model": "mlp", "limit": 60, "training": {"epochs": 1}, "arms": {"ema": "ema:decay=0.9"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"epochs": 3}, "epochs: no setting of a study of trainings; its lengths stand under training"),
        ({"base_accuracy": 0.8}, "base_accuracy: no setting of a study of trainings"),
        ({"controls": ["control-finetune"]}, "controls: control-finetune: arms of this kind have control-same-time"),
        ({"controls": []}, "controls: expected at least one for ema"),
        ({"controls": [], "arms": {"a": {"methods": "ema", "against": ["base"]}}}, "expected at least one for a"),
        ({"training": {"epoch": 1}}, "did you mean 'epochs'?"),
        ({"training": {"epochs": 0}}, "training: epochs: should be greater than 0"),
        ({"rates": [-0.1]}, "rates.0: should be greater than 0"),
        ({"rates": "fast"}, "rates: should be a valid tuple"),
        ({"arms": {"a": {"name": "gradnet", "against": ["a"]}}}, "unknown arm that a is compared with 'a'"),
        ({"arms": {"a": {"name": "gradnet", "against": ["knnn"]}, "knn": "knn"}}, "did you mean 'knn'?"),
        ({"arms": {"a": "ema", "b": "gradnet"}}, "need studies of their own"),
        ({"arms": {"a": "emma"}}, "did you mean 'ema'?"),
        ({"arms": {"a": "ema:deckay=1"}}, "did you mean 'decay'?"),
        ({"arms": {"a": {"methods": ["gradnet"]}}}, "gradnet is no part of a training"),
        ({"arms": {"a": {"method": "ema"}}}, "unknown setting 'arms.a.method'"),
        ({"arms": {"a": {"methods": "ema", "against": ["bse"]}}}, "did you mean 'base'?"),
        ({"arms": {"a": {"methods": "ema", "against": ["a"]}}}, "unknown arm that a is compared with 'a'"),
        ({"arms": {"a": {"time_of": "bse"}}}, "did you mean 'base'?"),
        ({"arms": {"a": {"time_of": "base"}, "b": {"time_of": "a"}}}, "unknown arm whose time b has 'a'"),
        ({"arms": {"a": {"time_of": "base", "growth": {1: ["widen:layer=c0,to=9"]}}}}, "has its epochs"),
        ({"arms": {"a": {"training": {"optimizer": "sgdd"}}}}, "did you mean 'SGD'?"),
        ({"arms": {"a": {"training": {"label_smoothing": 2}}}}, "label_smoothing: should be less than 1"),
        ({"claims": [CLAIM | {"arm": "emma"}]}, "did you mean 'ema'?"),
    ],
)
def test_mistakes_in_a_study_of_trainings(refused: Any, settings: dict[str, Any], hint: str) -> None:
    refused(TRAININGS | settings, hint)


def test_a_training_reads_back_as_it_was_written(tmp_path: Path) -> None:
    both = {"methods": ["ema:decay=0.9", "weight_sampling"], "training": {"label_smoothing": 0.1}, "against": "ema"}
    config = StudyConfig.model_validate(TRAININGS | {"arms": {"ema": "ema", "both": both}, "rates": 0.1})
    assert config.controls == ("control-same-time",)
    assert config.rates == (0.1,)
    config.save(tmp_path / "config.yaml")
    assert StudyConfig.load(tmp_path / "config.yaml") == config


def test_arms_that_are_controls_make_up_for_those_left_out() -> None:
    arms = {"ema": {"methods": "ema", "against": ["swa"]}, "swa": "swa"}
    config = StudyConfig.model_validate(TRAININGS | {"controls": [], "arms": arms})
    assert [trial.arm for trial in trials(config)] == ["base", "ema", "swa"]
    assert config.left_out() == ("control-same-time",)
    second_stage = {"mapper": {"name": "mapper", "against": ["knn"]}, "knn": "knn"}
    config = StudyConfig.model_validate(RECIPE | {"controls": [], "arms": second_stage})
    assert [trial.arm for trial in trials(config)] == ["base", "mapper", "knn"]


def test_all_mistakes_are_named_at_once(refused: Any) -> None:
    refused(RECIPE | {"limit": 0, "base_accuracy": 85}, "limit: ", "base_accuracy: ")


def test_arms_are_not_left_out_silently(refused: Any) -> None:
    refused({"data": "digits"}, "arms: missing")


def test_words_that_do_not_go_together(refused: Any, tmp_path: Path) -> None:
    refused(RECIPE, "--workers 0 works in this process", words=("--ray", "local"))
    assert main(["study"]) == 2
    assert main(["study", "--resume", str(tmp_path)]) == 2
    assert main(["study", "nowhere.yaml"]) == 2


@pytest.mark.parametrize("address", ["nowhere", "ray://127.0.0.1:10001", "127.0.0.1:99999", "127.0.0.1:1"])
def test_a_cluster_that_is_not_there(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=rf"--ray {re.escape(address)}: "):
        check_ray(address)


def test_an_arm_that_stands_there_twice_is_not_lost(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("arms:\n  gradnet: gradnet\n  other: gradnet\n  gradnet: 'gradnet:epochs=2'\n")
    with pytest.raises(UserError, match=r"recipe.yaml is not valid YAML: 'gradnet' stands there twice .*line 4"):
        StudyConfig.load(file)


def test_settings_read_back_equal_those_written(tmp_path: Path) -> None:
    config = StudyConfig.model_validate(RECIPE | {"seeds": 5, "ood": "noise,digits", "claims": [CLAIM]})
    config.save(tmp_path / "config.yaml")
    assert StudyConfig.load(tmp_path / "config.yaml") == config
    assert config.seeds == (0, 1, 2, 3, 4)
    assert config.ood == ("noise", "digits")
    assert config.left_out() == ()


def test_the_same_method_twice_under_names_of_its_own() -> None:
    config = StudyConfig.model_validate({"arms": {"few": "gradnet:epochs=1", "many": "gradnet:epochs=9"}})
    assert [(method.label, method.options["epochs"]) for method in config.method_arms()] == [("few", 1), ("many", 9)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"limit": 61}, "limit is 60 there, 61 here"),
        ({"seeds": 2}, "seeds is [0] there, [0, 1] here"),
        ({"arms": {"gradnet": "gradnet:steps=2"}}, "arms is "),
        ({"base_accuracy": 0.5}, "base_accuracy is 0.85 there, 0.5 here"),
        ({"steps": {"seed0/gradnet/training": 3}}, "steps are others"),
    ],
)
def test_a_changed_recipe_is_told_from_the_study(changes: dict[str, Any], sentence: str) -> None:
    there = validated(StudyConfig, RECIPE | {"base_accuracy": 0.85, "threads": 1, "steps": {"a": 1}}, source="there")
    check_same(there, validated(StudyConfig, RECIPE, source="here"), where=Path("runs/study"), source=Path("r.yaml"))
    with pytest.raises(UserError) as caught:
        check_same(
            there, validated(StudyConfig, RECIPE | changes, source="here"), where=Path("runs"), source=Path("r.yaml")
        )
    assert sentence in str(caught.value)
    assert str(caught.value).count(" there, ") <= 1


def test_the_recipe_in_the_documentation_is_the_one_that_comes_with_it() -> None:
    recipe = ROOT / "recipes" / "digits-study.yaml"
    shown, *_ = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "studies.md").read_text(), re.M | re.S)
    assert yaml.safe_load(shown) == yaml.safe_load(recipe.read_text())
    config = StudyConfig.load(recipe)
    assert len(config.method_arms()) == 2
    assert len(config.seeds) == 5
    assert config.left_out() == ()
