"""A study from end to end: the same bits wherever it runs, failures that stop nothing else, verdicts over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from postgrad import progress
from postgrad.cli import main
from postgrad.errors import UserError
from postgrad.reports import schema
from postgrad.studies import display
from postgrad.studies.improve import improve
from postgrad.studies.overhead import scheduling_overhead
from postgrad.studies.study import study
from postgrad.studies.study_config import StudyConfig

CONTROLS = ["control-features"]
ARMS = ["base", "gradnet", *(f"{name}-gradnet" for name in CONTROLS), "last", *(f"{name}-last" for name in CONTROLS)]
LAST = "gradnet:epochs=1,layers=[l2.weight],hidden=[4]"


def steps(seeds: int) -> dict[str, int]:
    return {
        f"seed{seed}/{control}{suffix}/training/{part}": (5 if suffix == "-last" else 4) if part == "final" else 2
        for seed in range(seeds)
        for control in ("control-finetune", "control-features")
        for suffix in ("", "-gradnet", "-last", "-broken")
        for part in ("trial-0", "trial-1", "trial-2", "final")
    }


def tiny(out: Path, **changes: Any) -> StudyConfig:
    settings: dict[str, Any] = {
        "model": "mlp",
        "data": "digits",
        "limit": 60,
        "arms": {"gradnet": "gradnet:epochs=1,hidden=2+4+3", "last": LAST},
        "controls": CONTROLS,
        "seeds": 2,
        "epochs": 2,
        "threads": 1,
        "steps": steps(2),
        "out": out,
    }
    return StudyConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that this process made."""
    ended = study(tiny(tmp_path_factory.mktemp("studies") / "alone"), workers=0)
    assert ended.failures == []
    return ended.directory


@pytest.fixture
def results(alone: Path) -> schema.Results:
    return schema.read_results(alone / "results.json")


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[arm], theirs[arm]) for arm in ours)


def events(run: Path, *names: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] in names]


def test_results_hold_every_arm_over_its_seeds(alone: Path, results: schema.Results) -> None:
    jsonschema.validate(json.loads((alone / "results.json").read_text()), json.loads(schema.json_schema()))
    assert [arm.name for arm in results.arms] == ARMS
    assert results.seeds == [0, 1]
    assert all(arm.metrics["accuracy"].n_seeds == 2 for arm in results.arms)
    of = {arm.name: arm for arm in results.arms}
    assert of["control-features-last"].control_for == ["last"]
    assert (of["last"].method, of["last"].title, of["gradnet"].title) == ("gradnet", "last", "GradNet")
    assert results.failures == []
    assert results.warnings == ["left out: control-finetune, control-more-data, control-same-price"]


def test_verdicts_compare_each_method_with_its_own_controls(results: schema.Results) -> None:
    compared = {(verdict.method, verdict.control) for verdict in results.verdicts}
    assert compared == {(m, c) for m in ("gradnet", "last") for c in ("base", *(f"{name}-{m}" for name in CONTROLS))}
    metrics = list(dict.fromkeys(verdict.metric for verdict in results.verdicts))
    assert metrics == ["accuracy", "nll", "ece", "brier", "aurc"]
    nll = {arm.name: arm.metrics["nll"].values for arm in results.arms}
    found = next(v for v in results.verdicts if (v.method, v.control, v.metric) == ("last", "base", "nll"))
    assert found.difference == pytest.approx(np.mean(np.subtract(nll["last"], nll["base"])))


def test_one_of_its_arms_is_what_improve_makes(alone: Path, tmp_path: Path, predictions) -> None:
    from postgrad.studies.config import ImproveConfig

    settings = tiny(tmp_path / "run").model_dump(
        exclude={"arms", "ood", "corruptions", "claims", "seeds", "training", "rates"}
    )
    method = [{"name": "gradnet", "options": {"epochs": 1, "hidden": (2, 4, 3)}}]
    run = improve(ImproveConfig.model_validate(settings | {"methods": method, "seeds": [1]}))
    ours, theirs = predictions(alone), predictions(run)
    for name in ("base", "gradnet"):
        np.testing.assert_array_equal(ours[f"seed-1/{name}"], theirs[name])
    for name in CONTROLS:
        np.testing.assert_array_equal(ours[f"seed-1/{name}-gradnet"], theirs[name])


def test_arms_and_seeds_differ(alone: Path, predictions) -> None:
    """Negative control of all tests that compare bits."""
    found = predictions(alone)
    assert len(found) == 2 * len(ARMS)
    assert len({array.tobytes() for array in found.values()}) == len(found)


def test_settings_repeat_the_study(alone: Path, tmp_path: Path, predictions, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["study", str(alone / "config.yaml"), "--workers", "0", "--out", "again", "--quiet", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    first = json.loads((alone / "results.json").read_text())
    assert same(predictions(tmp_path / "again"), predictions(alone))
    assert document["verdicts"] == first["verdicts"]
    assert [arm["metrics"] for arm in document["arms"]] == [arm["metrics"] for arm in first["arms"]]


def test_finished_study_resumes_at_once(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("arm.json")}
    assert main(["study", "--resume", str(alone), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "control-features-last" in out
    assert {path: path.stat().st_mtime_ns for path in alone.rglob("arm.json")} == before


CLAIM = {"claim": "MNIST .92", "source": "Table 1", "arm": "gradnet", "published_base": 0.92, "published": 0.98}


def test_a_ledger_judges_the_claims_and_keeps_the_raw_results(alone: Path, tmp_path: Path, capsys) -> None:
    recipe, page = tmp_path / "recipe.yaml", tmp_path / "ledger" / "page"
    settings = yaml.safe_load((alone / "config.yaml").read_text())
    recipe.write_text(yaml.safe_dump(settings | {"claims": [CLAIM]}))
    assert main(["study", str(recipe), "--resume", str(alone), "--ledger", str(page), "--quiet"]) == 0
    (row,) = json.loads(page.with_suffix(".json").read_text())["rows"]
    results = schema.read_results(alone / "results.json")
    assert row["ours"] == results.arm("gradnet").metrics["accuracy"].mean
    assert (row["verdict"], row["n_seeds"], row["control"]) == ("preliminary", 2, "control-features-gradnet")
    assert row["command"] == f"postgrad study {recipe}"
    assert (page.parent / row["raw"] / "results.json").read_bytes() == (alone / "results.json").read_bytes()
    assert "MNIST .92" in (page.parent / "index.md").read_text()
    assert f"ledger: {page}.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "claims", "message"),
    [
        ("page", [], "makes no claims"),
        ("page.md", [CLAIM], "without its ending"),
        ("made", [CLAIM], "is made from made.yaml"),
    ],
)
def test_a_ledger_that_cannot_be_is_told_before_anything_runs(
    alone: Path, tmp_path: Path, capsys, page: str, claims: list[Any], message: str
) -> None:
    (tmp_path / "made.yaml").write_text("title: T")
    recipe = tmp_path / "recipe.yaml"
    settings = yaml.safe_load((alone / "config.yaml").read_text())
    recipe.write_text(yaml.safe_dump(settings | {"claims": claims}))
    words = ["study", str(recipe), "--out", str(tmp_path / "run"), "--ledger", str(tmp_path / page), "--quiet"]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_differs_is_told_at_resume(alone: Path, tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    settings = yaml.safe_load((alone / "config.yaml").read_text())
    recipe.write_text(yaml.safe_dump(settings | {"limit": 61, "epochs": 3.0}))
    assert main(["study", str(recipe), "--resume", str(alone), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "limit is 60 there, 61 here; epochs is 2.0 there, 3.0 here" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_worker_processes_make_the_same_bits(
    alone: Path, tmp_path: Path, predictions, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "LINE_EVERY_SECONDS", 0.5)
    ended = study(tiny(tmp_path / "run"), workers=1)
    assert same(predictions(ended.directory), predictions(alone))
    config = StudyConfig.load(ended.directory / "config.yaml")
    assert config.steps == StudyConfig.load(alone / "config.yaml").steps
    assert len(events(ended.directory, "trial begins")) == len(events(ended.directory, "trial ends")) == 2 * len(ARMS)
    err = capfd.readouterr().err
    assert "of 10 trials" in err
    assert "seed 0" in err
    assert not list(ended.directory.rglob("progress.json"))
    assert not list(ended.directory.glob(".workers*"))
    overhead = scheduling_overhead(ended.directory)
    assert overhead is not None
    assert 0 <= overhead < 0.5


def test_arms_are_scored_on_other_data_and_corruptions_too(tmp_path: Path) -> None:
    arms = {"last": LAST}
    config = tiny(tmp_path / "run", arms=arms, ood=["noise"], corruptions=["contrast"], limit=40, epochs=1)
    ended = study(config, workers=0)
    results = schema.read_results(ended.directory / "results.json")
    for arm in results.arms:
        auroc = {entry.score: entry.metrics["auroc"] for entry in arm.outside if entry.data == "noise"}
        assert auroc["max_softmax"].n_seeds == 2
        directories = [ended.directory / arm.name, ended.directory / "seed-1" / arm.name]
        by_hand = []
        for directory in directories:
            with np.load(directory / "outside_scores.npz") as scores:
                by_hand.append(pairs_right(scores["inside/max_softmax"], scores["noise/max_softmax"]))
        assert auroc["max_softmax"].values == pytest.approx(by_hand, abs=1e-6)
        assert [entry.severity for entry in arm.corruptions] == [1, 2, 3, 4, 5]
        assert {entry.metrics["accuracy"].n_seeds for entry in arm.corruptions} == {2}


def pairs_right(inside: np.ndarray, outside: np.ndarray) -> float:
    """The area under the ROC curve, counted over all pairs."""
    return float(((inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)).mean())


def failing(monkeypatch: pytest.MonkeyPatch, broken: Callable[[Any, Any], bool], error: BaseException) -> None:
    from postgrad.studies import arms

    real = arms.run_trial

    def run_trial(run: Any, trial: Any) -> Any:
        if broken(run, trial):
            raise error
        return real(run, trial)

    monkeypatch.setattr(arms, "run_trial", run_trial)


def test_a_failing_arm_stops_nothing_else(
    tmp_path: Path, alone: Path, predictions, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    recipe = tmp_path / "recipe.yaml"
    tiny(tmp_path / "run").save(recipe)
    with monkeypatch.context() as patch:
        failing(patch, lambda _, t: (t.arm, t.seed) == ("last", 1), ValueError("a\nbug"))
        assert main(["study", str(recipe), "--workers", "0", "--quiet"]) == 1
    err = capsys.readouterr().err
    assert "postgrad: last, seed 1: ValueError: a bug\n" in err
    assert "postgrad: control-features-last, seed 1: not begun: it needs last, seed 1, which failed\n" in err
    run = tmp_path / "run"
    assert "ValueError: a" in (run / "seed-1" / "last" / "failure.txt").read_text()
    results = schema.read_results(run / "results.json")
    assert {(failure.arm, failure.seed) for failure in results.failures} == {
        ("last", 1),
        ("control-features-last", 1),
    }
    counts = {arm.name: arm.metrics["accuracy"].n_seeds for arm in results.arms}
    assert (counts["last"], counts["gradnet"], counts["base"]) == (1, 2, 2)
    assert {v.n_seeds for v in results.verdicts if v.method == "last" and v.scope == "method"} == {1}
    assert {v.n_seeds for v in results.verdicts if v.method == "gradnet" and v.scope == "method"} == {2}
    assert results.recommended not in ("last", "control-features-last")
    assert (run / "report.html").exists()

    assert main(["study", "--resume", str(run), "--workers", "0", "--quiet"]) == 0
    assert same(predictions(run), predictions(alone))
    assert schema.read_results(run / "results.json").failures == []
    assert not list(run.rglob("failure.txt"))


def test_a_study_in_which_everything_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    tiny(tmp_path / "run", seeds=1).save(recipe)
    failing(monkeypatch, lambda _, trial: trial.arm == "base", UserError("no network is made today"))
    assert main(["study", str(recipe), "--workers", "0", "--quiet"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "postgrad: base, seed 0: no network is made today"
    assert len(lines) == len(ARMS)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_training_that_diverges_is_a_failure_of_its_arm(tmp_path: Path) -> None:
    arms = {"gradnet": "gradnet:epochs=1,hidden=2+4+3", "broken": "gradnet:epochs=3,hidden=2+4+3,lr=1e30"}
    ended = study(tiny(tmp_path / "run", seeds=1, arms=arms), workers=0)
    assert [failure.arm for failure in ended.failures] == ["broken", *(f"{name}-broken" for name in CONTROLS)]
    assert "the loss became" in ended.failures[0].reason
    assert "gradnet" in [arm.name for arm in schema.read_results(ended.directory / "results.json").arms]


@pytest.mark.parametrize("after", [2, 6, 20])
def test_full_disk_is_the_users_to_mend(tmp_path: Path, disk_full_after, capsys, after: int) -> None:
    recipe = tmp_path / "recipe.yaml"
    tiny(tmp_path / "run", seeds=1).save(recipe)
    disk_full_after(after)
    assert main(["study", str(recipe), "--workers", "0", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "the disk is full" in err
    assert len(err.splitlines()) == 1


def test_interruption_keeps_what_is_finished_and_says_how_to_go_on(
    tmp_path: Path, alone: Path, predictions, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    recipe = tmp_path / "recipe.yaml"
    tiny(tmp_path / "run").save(recipe)
    with monkeypatch.context() as patch:
        failing(patch, lambda _, trial: trial.arm == "control-features-last", KeyboardInterrupt())
        assert main(["study", str(recipe), "--workers", "0", "--quiet"]) == 130
    run = tmp_path / "run"
    assert f"go on with: postgrad study --resume {run}" in capsys.readouterr().err
    kept = len(list(run.rglob("arm.json")))
    assert 0 < kept < 2 * len(ARMS)
    assert main(["study", str(recipe), "--resume", str(run), "--workers", "0", "--quiet"]) == 0
    assert same(predictions(run), predictions(alone))
    assert len(events(run, "trial ends")) == 2 * len(ARMS)


@pytest.mark.slow
def test_five_seeds_allow_verdicts_although_one_failed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda _, t: (t.arm, t.seed) == ("control-features", 3), ValueError("lost"))
    config = tiny(
        tmp_path / "run",
        seeds=5,
        arms={"last": LAST},
        limit=40,
        epochs=1,
        steps=steps(5),
        controls=["control-finetune", "control-features"],
    )
    ended = study(config, workers=0)
    assert [(failure.arm, failure.seed) for failure in ended.failures] == [("control-features", 3)]
    verdicts = schema.read_results(ended.directory / "results.json").verdicts
    words = {v.control: v for v in verdicts if v.scope == "method" and v.metric == "accuracy"}
    assert words["control-finetune"].n_seeds == 5
    assert words["control-finetune"].p is not None
    assert words["control-features"].n_seeds == 4
    assert words["control-features"].verdict == "too few seeds"


def test_progress_is_written_for_others_to_show(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    with progress.reported_to(file):
        with progress.progress("training", 10, start=2) as advance:
            advance(3, note="loss 1")
        content = json.loads(file.read_text())
        with progress.progress("next", 10) as advance:
            advance(1)
        assert json.loads(file.read_text()) == content, "more than once a second"
    assert {key: content[key] for key in ("what", "done", "total", "unit", "note")} == {
        "what": "training",
        "done": 5,
        "total": 10,
        "unit": "steps",
        "note": "loss 1",
    }
    assert not file.exists()


def test_overhead_is_what_is_held_beyond_the_trials_own(tmp_path: Path) -> None:
    assert scheduling_overhead_of(tmp_path, []) is None
    assert scheduling_overhead_of(tmp_path, [(9.0, 10.0), (0.5, 0.5)]) == pytest.approx(1 - 9.5 / 10.5)


def scheduling_overhead_of(folder: Path, times: list[tuple[float, float]]) -> float | None:
    lines = [{"event": "trial begins"}, *({"event": "trial ends", "seconds": a, "held": b} for a, b in times)]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return scheduling_overhead(folder)
