"""The study of ablations on some digits: what it keeps, what it never looks at, how it goes on, and what it draws."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from postgrad.controls.tuning import accuracy_and_nll, batched
from postgrad.errors import UserError
from postgrad.files import locked
from postgrad.methods.gradnet import GradNet
from postgrad.studies import ablations
from postgrad.studies.ablation_page import draw
from postgrad.studies.ablation_recipe import Ablations, setting_file
from postgrad.studies.ablations import WatchedGradNet, main, run
from postgrad.validation import read_yaml, validated

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "ablations" / "gradnet.yaml"

TINY: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    "base_accuracy": 0.6,
    "images": 40,
    "validation_images": 15,
    "test_images": 20,
    "gradnet": {"hidden": [2, 4, 3], "epochs": 2, "batch_size": 10, "lr": 0.01},
    "groups": {
        "normalisation": {
            "title": "Normalisation",
            "settings": {
                "scale+power (published)": {},
                "fisher": {"normalise": "fisher"},
                "kfac": {"normalise": "kfac"},
            },
        },
        "optimizers": {
            "title": "Optimisation methods",
            "settings": {
                "SGD (published)": {},
                "Adam": {"optimizer": "adam", "lr": [0.0001, 0.003]},
                "hopeless": {"lr": 1e30},
            },
        },
    },
    "separators": {"size": 8, "names": ["quadratic", "logistic regression"]},
}


def recipe(**changes: Any) -> Ablations:
    return Ablations.model_validate(TINY | changes)


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted((out / "settings").glob("*.json"))}


def without_times(value: Any) -> Any:
    """Results without what differs from one run to the next."""
    if isinstance(value, Mapping):
        return {key: without_times(part) for key, part in value.items() if "seconds" not in key}
    return [without_times(part) for part in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ablations") / "study"
    run(recipe(), data_dir=None, out=out)
    return out


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    """A study of which the base alone is finished."""
    for part in ("base", "settings/base.json", "recipe.yaml"):
        target = tmp_path / "study" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (finished / part).is_dir() else shutil.copyfile)(finished / part, target)
    return tmp_path / "study"


def test_each_setting_is_kept_and_shared_ones_run_once(finished: Path) -> None:
    assert set(results(finished)) == {
        "base",
        "default",
        "normalise=fisher",
        "normalise=kfac",
        "lr=0.0001+0.003,optimizer=adam",
        "lr=1e+30",
        "separator=quadratic",
        "separator=logistic-regression",
    }
    default = results(finished)["default"]
    assert [row["epoch"] for row in default["curve"]] == [1, 2]
    assert {"validation_accuracy", "test_accuracy", "loss", "cpu_seconds"} <= default["curve"][0].keys()
    assert 0 < default["curve"][0]["cpu_seconds"] < default["curve"][1]["cpu_seconds"]
    assert not list(finished.rglob("*.fit")), "checkpoints of finished settings are dropped"
    assert not list(finished.rglob("base-training"))


@pytest.mark.parametrize("kind", ["scale+power", "fisher", "kfac"])
def test_a_curve_ends_where_gradnet_itself_does(finished: Path, kind: str) -> None:
    """The same setting fitted by GradNet alone has the same accuracy on the same images."""
    study = ablations._prepared(recipe(), None, finished)
    gradnet = GradNet(
        study.base,
        hidden=(2, 4, 3),
        epochs=2,
        batch_size=10,
        normalise=kind,
        augment=study.augmentation,
        preprocess=study.preprocess,
    ).fit(study.fitted_on.images, study.fitted_on.labels)
    curve = results(finished)["default" if kind == "scale+power" else f"normalise={kind}"]["curve"]
    for name, images in (("test", study.test), ("validation", study.validation)):
        found = accuracy_and_nll(ablations.torch.from_numpy(gradnet.decision_function(images.images)), images.labels)
        assert curve[-1][f"{name}_accuracy"] == found["accuracy"]
        assert curve[-1][f"{name}_nll"] == pytest.approx(found["nll"], rel=1e-5)


def test_the_base_is_stopped_and_scored_on_the_same_images(finished: Path) -> None:
    study = ablations._prepared(recipe(), None, finished)
    base = results(finished)["base"]
    assert base["reached_target"]
    assert base["numbers"] == {"images": 40, "validation": 15, "test": 20, "whole_test": 359}
    right = batched(study.base, study.preprocess, study.test.images).argmax(1) == study.test.labels
    assert base["test_accuracy"] == pytest.approx(float(right.double().mean()))
    assert base["whole_test_accuracy"] > 0.4


def test_no_image_is_in_two_sets(finished: Path) -> None:
    study = ablations._prepared(recipe(), None, finished)
    assert study.dataset.train is not None
    seen = [image.numpy().tobytes() for part in (study.fitted_on, study.validation) for image in part.images]
    everything = [image.numpy().tobytes() for image in study.dataset.train.images]
    assert len(set(seen)) == len(seen) == 55
    assert set(seen) <= set(everything)


def test_settings_that_diverge_say_so(finished: Path) -> None:
    hopeless = results(finished)["lr=1e+30"]
    assert "the loss became" in hopeless["diverged"]
    assert "curve" not in hopeless


def test_validation_chooses_the_learning_rate_and_test_images_do_not(begun: Path, monkeypatch: Any) -> None:
    asked: list[tuple[float, float, set[str]]] = []

    def fit(study: Any, settled: Mapping[str, Any], directory: Path, sets: Mapping[str, Any]) -> dict[str, Any]:
        directory.mkdir(parents=True)
        asked.append((settled["lr"], settled["epochs"], set(sets)))
        if settled["lr"] == 3.0:
            return {"diverged": "the loss became nan"}
        good = settled["lr"] == 0.2
        row = {"validation_accuracy": 0.9 if good else 0.5, "validation_nll": 1.0, "cpu_seconds": 1.0}
        return {"curve": [row]}

    monkeypatch.setattr(ablations, "_fit", fit)
    study = ablations._prepared(recipe(), None, begun)
    found = ablations.run_setting(study, {"lr": [0.1, 0.2, 0.3, 3.0]})
    only_validation = {"validation"}
    assert asked[:4] == [(rate, 1, only_validation) for rate in (0.1, 0.2, 0.3, 3.0)]
    assert asked[4:] == [(0.2, 2, {"validation", "test"})]
    assert found["options"]["lr"] == 0.2
    assert [trial["lr"] for trial in found["trials"] if "diverged" in trial] == [3.0]


def test_an_interrupted_study_goes_on_to_the_same_results(finished: Path, begun: Path, monkeypatch: Any) -> None:
    evaluations = 0
    validator = WatchedGradNet._validator

    def interrupted(self: WatchedGradNet, x: Any, y: Any) -> Any:
        validate = validator(self, x, y)

        def once(head: Any) -> Any:
            nonlocal evaluations
            evaluations += 1
            if evaluations in (2, 5):
                raise KeyboardInterrupt
            return validate(head)

        return once

    monkeypatch.setattr(WatchedGradNet, "_validator", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(recipe(), data_dir=None, out=begun)
    run(recipe(), data_dir=None, out=begun)
    assert without_times(results(begun)) == without_times(results(finished))


def test_what_is_finished_is_not_done_again(finished: Path, monkeypatch: Any) -> None:
    before = results(finished)
    monkeypatch.setattr(WatchedGradNet, "fit", lambda *_, **__: pytest.fail("fitted again"))
    monkeypatch.setattr(ablations, "train", lambda *_, **__: pytest.fail("trained again"))
    run(recipe(), data_dir=None, out=finished)
    assert results(finished) == before
    more = {**TINY["groups"], "new": {"title": "New", "settings": {"b": {"select": 0.5}}}}
    run(recipe(groups=more), data_dir=None, out=finished, only=["optimizers"])
    with pytest.raises(BaseException, match="fitted again"):
        run(recipe(groups=more), data_dir=None, out=finished, only=["new"])


def test_time_of_evaluations_is_not_the_settings_own() -> None:
    rows = [{"epoch": 1.0, "seconds": 5.0, "evaluation_seconds": 2.0}]
    rows += [{"epoch": 2.0, "seconds": 11.0, "evaluation_seconds": 3.0}]
    assert list(ablations._curve(rows)) == [{"epoch": 1.0, "cpu_seconds": 3.0}, {"epoch": 2.0, "cpu_seconds": 6.0}]


def test_separators_are_measured_on_one_projection(finished: Path) -> None:
    with np.load(finished / "projected.npz") as arrays:
        assert arrays["train"].shape == (40, 10, 8)
        assert arrays["test"].shape == (20, 10, 8)
    for name in ("quadratic", "logistic-regression"):
        found = results(finished)[f"separator={name}"]
        assert set(found["accuracy"]) == {"train", "validation", "test"}
        assert found["projection_cpu_seconds"] > 0


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "ledger").mkdir(parents=True)
    shutil.copyfile(ROOT / "docs" / "ledger" / "ablations.yaml", tmp_path / "docs" / "ledger" / "ablations.yaml")
    return tmp_path / "docs"


def test_page_and_pictures(finished: Path, docs: Path) -> None:
    draw(recipe(), docs, finished)
    page = (docs / "ledger" / "ablations.md").read_text()
    found = results(finished)
    assert f"| fisher | 0.01 | {found['normalise=fisher']['curve'][-1]['validation_accuracy']:.4f} |" in page
    assert "| hopeless |  | diverged |" in page
    assert f"the base has {found['base']['whole_test_accuracy']:.4f}" in page
    assert f"| quadratic | {found['separator=quadratic']['accuracy']['train']:.4f} |" in page
    for name in ("normalisation", "optimizers"):
        assert f"(../images/ablation-{name}.png)" in page
        with Image.open(docs / "images" / f"ablation-{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    again = page
    draw(recipe(), docs, None)
    assert (docs / "ledger" / "ablations.md").read_text() == again
    for file in (docs / "ledger" / "raw" / "ablations").iterdir():
        assert "/tmp" not in file.read_text()


def test_page_of_what_has_not_been_run(docs: Path) -> None:
    draw(recipe(), docs, None)
    page = (docs / "ledger" / "ablations.md").read_text()
    assert "Not run yet" in page
    assert page.count("not run") == 3 + 3 + 2
    assert "images/" not in page


def test_equal_settings_have_one_file() -> None:
    defaults = {"hidden": [5, 100, 25], "lr": 0.01}
    assert setting_file(Path("a"), dict(defaults), defaults) == Path("a/default.json")
    one = setting_file(Path("a"), {**defaults, "optimizer_options": {"momentum": 0.9}}, defaults)
    assert one == Path("a/optimizer_options=momentum-0.9.json")
    names = {setting_file(Path("a"), {**defaults, "hidden": hidden}, defaults) for hidden in ([5, 10], [51, 0], [510])}
    assert len(names) == 3


def test_the_recipe_draws_the_six_figures() -> None:
    study = validated(Ablations, read_yaml(RECIPE), source="recipe")
    six = {"optimizers", "regularisers", "percentile", "structure", "normalisation-5-25-10", "normalisation-5-100-25"}
    assert six < set(study.groups)
    for group in study.groups.values():
        assert sum("published" in label for label in group.settings) == 1
    for structure in ("5-25-10", "5-100-25"):
        settings = study.groups[f"normalisation-{structure}"].settings.values()
        kinds = {setting.get("normalise", "scale+power") for setting in settings}
        assert kinds == {"none", "scale", "std", "std+l2", "power", "scale+power", "fisher", "kfac"}
    assert study.quick().data == "digits"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"a": {"title": "A", "settings": {"b": {"hiden": [1]}}}}}, "did you mean 'hidden'"),
        ({"groups": {"a": {"title": "A", "settings": {"b": {"lr": ["fast"]}}}}}, "gradnet:lr"),
        ({"groups": {"a": {"title": "A", "settings": {"b": {"memory": "1GB"}}}}}, "the study itself gives memory"),
        ({"groups": {"separators": {"title": "A", "settings": {}}}}, "has a section of its own"),
        ({"separators": {"names": ["forest"]}}, "unknown separator 'forest'"),
        ({"base_accuracy": 72}, "base_accuracy: should be less than or equal to 1"),
        ({"pictures": 5}, "unknown setting 'pictures'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(TINY | changes))
    assert main([str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_studies_that_cannot_be_are_refused(finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match="unknown group 'optimiser': did you mean 'optimizers'"):
        run(recipe(), data_dir=None, out=finished, only=["optimiser"])
    with pytest.raises(UserError, match="holds ablations with another seed, images"):
        run(recipe(images=30, seed=1), data_dir=None, out=finished)
    with locked(finished), pytest.raises(UserError, match="written by another process"):
        run(recipe(), data_dir=None, out=finished)
    with pytest.raises(UserError, match="cifar10"):
        run(recipe(data="cifar10"), data_dir=tmp_path, out=tmp_path / "out")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(TINY))
    monkeypatch.setattr(ablations, "run_separators", lambda study: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([str(file), "--out", str(finished)]) == 130
