"""The edge study: fair arms, files that are kept, and a page whose figures are those of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.reports.edge_chart import STYLES, curves, draw_curves
from postgrad.studies import edges_pieces
from postgrad.studies.edges import arms, main, run_study
from postgrad.studies.edges_pieces import Arm, EdgeStudy, Seed
from postgrad.validation import read_yaml, validated

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "limit": 100,
    "seeds": 2,
    "base_accuracy": 0.5,
    "base_epochs": 4,
    "shares": (0.1,),
    "rates": (0.01, 0.1),
    "epochs": 2,
    "batch_size": 16,
    "ranking_images": 20,
    "evaluations": 3,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study") / "edges-tiny"
    run_study(EdgeStudy(**TINY), directory)
    return directory


@pytest.fixture
def seed(study: Path) -> Seed:
    return Seed(EdgeStudy(**TINY), load_dataset("digits", limit=100), study / "seed-0", 0)


def results_of(study: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((study / "results.json").read_text())
    return content


def test_every_arm_has_its_results(study: Path) -> None:
    results = results_of(study)
    assert [arm["name"] for arm in results["arms"]] == ["all", "gradient-10", "magnitude-10", "random-10"]
    assert {(v["method"], v["control"]) for v in results["verdicts"] if v["scope"] == "method"} == {
        ("gradient-10", control) for control in ("base", "all", "magnitude-10", "random-10")
    }
    whole, *masked = results["arms"]
    assert whole["trained"] == 256 * 64 + 256 + 128 * 256 + 128 + 10 * 128 + 10
    assert {arm["trained"] for arm in masked} == {1638 + 3277 + 128}
    assert all(arm["ranking_cpu_seconds"] > 0 for arm in masked if arm["kind"] == "gradient")
    assert all(arm["ranking_cpu_seconds"] == 0 for arm in results["arms"] if arm["kind"] != "gradient")


def test_test_accuracies_are_those_of_the_kept_predictions(study: Path) -> None:
    results = results_of(study)
    with np.load(study / "predicted.npz") as predicted:
        for name, arm in {"base": results["base"], **{arm["name"]: arm for arm in results["arms"]}}.items():
            found = [np.mean(predicted[f"{name}-seed{seed}"] == predicted["labels"]) for seed in (0, 1)]
            assert arm["accuracy"]["values"] == pytest.approx(found)
            assert arm["accuracy"]["mean"] == pytest.approx(np.mean(found))


def test_masked_weights_alone_differ_from_the_base(seed: Seed, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[torch.nn.Module] = []
    score = Seed._score
    monkeypatch.setattr(Seed, "_score", lambda self, model, file: trained.append(model) or score(self, model, file))
    monkeypatch.setattr(Seed, "_file", lambda self, arm, rate: self.directory / f"again-{arm.name}.json")
    arm = Arm("gradient", 0.1)
    record = seed.fine_tuned(arm, 0.1)
    masks, _ = seed.masks(arm)
    assert masks is not None
    for name, weight in trained[0].named_parameters():
        changed = weight != seed.base.get_parameter(name)
        allowed = masks.get(name, torch.zeros_like(changed))
        assert not (changed & ~allowed).any()
    changed = sum(int((p != seed.base.get_parameter(n)).sum()) for n, p in trained[0].named_parameters())
    assert 0 < changed <= record["trained"]


def test_masks_are_what_their_names_say(seed: Seed) -> None:
    weights = {name: seed.base.get_parameter(name) for name in ("l0.weight", "l1.weight", "l2.weight")}
    gradient, magnitude, chance = (seed.masks(Arm(kind, 0.1))[0] for kind in ("gradient", "magnitude", "random"))
    assert gradient is not None
    assert magnitude is not None
    assert chance is not None
    importance, _ = seed.ranked
    for name, weight in weights.items():
        assert weight[magnitude[name]].abs().min() >= weight[~magnitude[name]].abs().max()
        assert importance[name][gradient[name]].min() >= importance[name][~gradient[name]].max()
        assert gradient[name].sum() == magnitude[name].sum() == chance[name].sum()
        overlap = int((chance[name] & gradient[name]).sum())
        assert overlap < 0.3 * int(gradient[name].sum())  # a tenth by chance


def test_the_ranking_sees_neither_validation_nor_test_images(seed: Seed, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    ranking = edges_pieces.edge_importance
    monkeypatch.setattr(edges_pieces, "edge_importance", lambda m, x, y, **o: seen.append(x) or ranking(m, x, y, **o))
    assert seed.ranked
    setting = seed.setting
    allowed = {image.numpy().tobytes() for image in setting.train.subset(setting.halves.method_train).images}
    assert {image.numpy().tobytes() for image in seen[0]} <= allowed
    assert len(seen[0]) == 20


def test_a_finished_training_is_not_done_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results_of(study)

    def no_training(*arguments: Any, **options: Any) -> None:
        raise AssertionError("everything was trained before")

    monkeypatch.setattr(edges_pieces, "train", no_training)
    assert json.loads(json.dumps(run_study(EdgeStudy(**TINY), study))) == before


def test_a_lost_training_is_done_again_to_the_same_end(study: Path) -> None:
    before = results_of(study)["arms"][1]
    lost = study / "seed-1" / "gradient-10" / f"rate-{before['rate']:g}.json"
    lost.unlink()
    after = run_study(EdgeStudy(**TINY), study)["arms"][1]
    assert after["accuracy"]["values"] == before["accuracy"]["values"]
    assert after["seeds"][1]["curve"][-1]["accuracy"] == before["seeds"][1]["curve"][-1]["accuracy"]


def test_a_rate_that_diverges_is_left_out(tmp_path: Path) -> None:
    config = EdgeStudy(**{**TINY, "seeds": 1, "rates": (0.05, 1e30)})
    results = run_study(config, tmp_path / "study")
    assert {arm["rate"] for arm in results["arms"]} == {0.05}
    assert {arm["trials"]["1e+30"] for arm in results["arms"]} == {-1.0}
    with pytest.raises(UserError, match="infinite at every learning rate"):
        run_study(EdgeStudy(**{**TINY, "seeds": 1, "rates": (1e30,)}), tmp_path / "hopeless")


def test_other_settings_are_refused(study: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--out", str(study), "--seeds", "3"]) == 2
    assert "other settings (" in capsys.readouterr().err
    assert main([]) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "x"), "--data", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert main(["--page", str(tmp_path / "page.md")]) == 2
    assert "--runs" in capsys.readouterr().err
    assert main(["--page", str(tmp_path / "page.md"), "--runs", str(tmp_path)]) == 2
    assert "finish the study first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shares": (0.1, 1.5)}, "shares between 0 and 1"),
        ({"rates": ()}, "learning rates above 0"),
        ({"tuning_seeds": 9}, "9 of 5 seeds"),
        ({"epoch": 1}, "did you mean 'epochs'"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        validated(EdgeStudy, changes, source="options")


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("edges-*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_settings_of_a_study(recipe: Path) -> None:
    config = validated(EdgeStudy, read_yaml(recipe), source=str(recipe))
    assert config.seeds >= 5
    assert len(arms(config)) == 10


def test_the_page_shows_the_results(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "ledger" / "edges.md"
    assert main(["--page", str(page), "--runs", str(study)]) == 0
    text = page.read_text()
    for arm in results_of(study)["arms"]:
        assert f"| {arm['name']} | {arm['trained']:,} | {arm['accuracy']['mean']:.4f} |" in text
    for target in ("raw/edges/edges-tiny/results.json", "../images/edges-tiny-curves.svg"):
        assert f"({target})" in text
        assert (page.parent / target).is_file()
    again = page.read_bytes(), (page.parent / "../images/edges-tiny-curves.svg").read_bytes()
    assert main(["--page", str(page)]) == 0
    assert (page.read_bytes(), (page.parent / "../images/edges-tiny-curves.svg").read_bytes()) == again


def test_curves_begin_at_the_base_and_after_the_ranking() -> None:
    record = {"ranking_cpu_seconds": 2.0, "curve": [{"step": 5, "seconds": 1.5, "accuracy": 0.8}]}
    x, y = curves([record], [0.7], "seconds")
    np.testing.assert_allclose(x, [[2.0, 3.5]])
    np.testing.assert_allclose(y, [[0.7, 0.8]])
    np.testing.assert_allclose(curves([record], [0.7], "step")[0], [[0, 5]])


def test_the_chart_has_a_line_for_each_way(study: Path) -> None:
    results = results_of(study)
    figure = draw_curves(results)
    above, below = figure.axes
    for axes, against in ((above, "step"), (below, "seconds")):
        lines = {line.get_label(): line for line in axes.lines}
        assert set(lines) == {"the base network", *(name for _, _, name in STYLES.values())}
        arm = results["arms"][1]
        began = [record["validation"]["accuracy"] for record in results["base"]["seeds"]]
        x, y = curves(arm["seeds"], began, against)
        drawn = lines[STYLES["gradient"][2]].get_xydata()
        np.testing.assert_allclose(drawn, np.stack([x.mean(0), y.mean(0)], axis=1))
