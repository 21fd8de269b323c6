"""The study of what GradNet is worth, from end to end in small: pieces, results, choices, the page, mistakes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.files import locked
from postgrad.studies import worth_beyond
from postgrad.studies.worth import main, run_part
from postgrad.studies.worth_converged import _sum
from postgrad.studies.worth_page import draw_page
from postgrad.studies.worth_pieces import Study, load_data, make_piece, open_study, prices, timed_network
from postgrad.studies.worth_recipe import WorthRecipe
from postgrad.studies.worth_rows import Row

STAGE = {"hidden": [2, 3, 2], "batch_size": 50, "normalise": "power"}
TINY: dict[str, Any] = {
    "data": "digits",
    "model": "mlp",
    "limit": 200,
    "curve": {"totals": [1.6], "switches": [[0.8, 1.6]], "stage": STAGE},
    "converged": {"epochs": 2, "seconds": 0.2, "held_back": 0.3, "stage": STAGE | {"rates": [0.01, 0.1]}},
    "beyond": {
        "base_seconds": 0.25,
        "seconds": 1.2,
        "finetune_seconds": 0.15,
        "settings": [
            {"name": "published", "stage": STAGE},
            {"name": "last", "stage": {"hidden": [4], "layers": ["l2"], "centred": True, "offset": True}},
            {"name": "finetuned", "network": "finetuned", "stage": STAGE},
            {"name": "distilled", "distil": {"images": 20}, "stage": STAGE},
        ],
    },
}
PARTS = ["curve", "converged", "beyond"]
RECIPE = WorthRecipe(**TINY)
WORDS = Path(__file__).parents[2] / "docs" / "ledger" / "worth.yaml"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three parts, finished, in one folder."""
    folder = tmp_path_factory.mktemp("worth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("postgrad.controls.tuning.SHORTEST_SECONDS", 0.02)
        for part in PARTS:
            run_part(part, RECIPE, data_dir=None, out=folder)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return open_study(RECIPE, load_data(RECIPE, None), tmp_path, 0)


def results(out: Path, part: str) -> dict[str, Any]:
    return json.loads((out / f"{part}.json").read_text())


def rows(out: Path, part: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in results(out, part)["rows"]}


# what a run leaves behind


@pytest.mark.parametrize("part", PARTS)
def test_every_test_accuracy_is_that_of_the_kept_predictions(out: Path, part: str) -> None:
    test = load_dataset("digits", limit=200).test
    assert test is not None
    with np.load(out / f"{part}.npz") as kept:
        assert np.array_equal(kept["labels"], test.labels.numpy())
        scored = {name: row for name, row in rows(out, part).items() if row["test_accuracy"] is not None}
        assert {f"{name}-seed0" for name in scored} | {"labels"} == set(kept.files)
        for name, row in scored.items():
            assert row["test_accuracy"] == pytest.approx((kept[f"{name}-seed0"] == kept["labels"]).mean(), abs=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_verdicts_are_those_of_mcnemar(out: Path, part: str) -> None:
    verdicts = results(out, part)["verdicts"]
    assert verdicts
    with np.load(out / f"{part}.npz") as kept:
        right = {name: kept[name] == kept["labels"] for name in kept.files}
    for entry in verdicts:
        a, b = right[f"{entry['method']}-seed0"], right[f"{entry['control']}-seed0"]
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert entry["p"] == pytest.approx(expected)
        assert entry["difference"] == pytest.approx(a.mean() - b.mean())


def test_every_method_stands_beside_its_controls(out: Path) -> None:
    compared: dict[str, set[str]] = {}
    for part in PARTS:
        for entry in results(out, part)["verdicts"]:
            compared.setdefault(entry["method"], set()).add(entry["control"])
    assert compared["half-0.8s-gradnet-1.6s"] == {"all-1.6s", "half-0.8s-finetuned-1.6s"}
    assert compared["chosen"] == {"base", *worth_beyond.CONTROLS}
    for name in ("crossfit", "held-back", "augmented"):
        assert compared[name] == compared[f"{name}-added"]
        assert {"base", "base-views", f"{name}-features-added"} <= compared[name]
    assert "fold-ensemble" in compared["crossfit"]
    assert {"rest", "rest-trained-on"} <= compared["held-back"]
    assert "base-trained-on" in compared["augmented"]


def test_prices_count_everything_below_once(out: Path) -> None:
    found = rows(out, "converged")
    folds = [json.loads((out / "seed-0" / f"without-fold-{k}" / "piece.json").read_text()) for k in (0, 1)]
    below = found["base"]["cpu_seconds"] + sum(fold["cpu_seconds"] for fold in folds)
    assert found["crossfit"]["total_cpu_seconds"] == pytest.approx(found["crossfit"]["cpu_seconds"] + below, abs=0.3)
    tried = rows(out, "beyond")
    base = tried["base"]["cpu_seconds"]
    pieces = [json.loads(file.read_text()) for file in (out / "seed-0").glob("half-0.25s-finetuned-*for*/piece.json")]
    assert len(pieces) == 3
    own = json.loads((out / "seed-0" / "tried-finetuned" / "piece.json").read_text())["cpu_seconds"]
    expected = base + own + sum(piece["cpu_seconds"] for piece in pieces)
    assert tried["finetuned"]["total_cpu_seconds"] == pytest.approx(expected, abs=0.3)
    assert tried["finetuned"]["cpu_seconds"] == pytest.approx(expected - base, abs=0.3)


def test_only_what_was_chosen_on_validation_met_the_test_images(out: Path) -> None:
    found = rows(out, "beyond")
    tried = {name: row for name, row in found.items() if row["kind"] == "tried"}
    assert set(tried) == {"published", "last", "finetuned", "distilled"}
    best = max(tried, key=lambda name: tried[name]["validation_accuracy"])
    assert found["chosen"]["description"].startswith(f"{best}: ")
    assert found["chosen"]["validation_accuracy"] == tried[best]["validation_accuracy"]
    met = [file.parent.name for file in (out / "seed-0").glob("tried-*/test.npz")]
    assert met == [f"tried-{best}"]
    assert all(row["test_accuracy"] is None for row in tried.values())


def test_no_path_and_no_checkpoint_is_left(out: Path) -> None:
    assert not list(out.rglob("checkpoint.pt"))
    assert not list(out.rglob("*.tmp"))
    for part in PARTS:
        assert str(out) not in (out / f"{part}.json").read_text()


# going on


@pytest.mark.parametrize("part", PARTS)
def test_a_finished_part_trains_nothing_again(out: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results(out, part)
    monkeypatch.setattr("postgrad.training.loop.Training.advance", None)  # no step can be taken
    run_part(part, RECIPE, data_dir=None, out=out)
    assert results(out, part) == before


def test_a_piece_that_is_lost_is_made_again(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "seed-0" / "half-0.8s-gradnet-1.6s")
    run_part("curve", RECIPE, data_dir=None, out=copy)
    assert set(rows(copy, "curve")) == set(rows(out, "curve"))
    assert rows(copy, "curve")["all-1.6s"] == rows(out, "curve")["all-1.6s"]


def test_pieces_of_other_settings_are_not_taken(out: Path) -> None:
    assert RECIPE.converged is not None
    longer = RECIPE.model_copy(update={"converged": RECIPE.converged.model_copy(update={"epochs": 3})})
    with pytest.raises(UserError, match=r"converged holds a piece with other settings: epochs was 2\.0, is now 3"):
        run_part("converged", longer, data_dir=None, out=out)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="being written by another process"):
        run_part("curve", RECIPE, data_dir=None, out=tmp_path)


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    often = "import sys, postgrad.training.loop as loop; loop.SAVE_EVERY_SECONDS = 0.1; "
    words = ["curve", str(recipe), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", f"{often}from postgrad.studies.worth import main; sys.exit(main())", *words]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    inside = tmp_path / "out" / "seed-0" / "half-0.8s-finetuned-1.6s" / "training"
    while not inside.exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("piece.json")}
    assert len(finished) == 2
    assert subprocess.run(command, check=True).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert (tmp_path / "out" / "curve.json").exists()


# choices


def test_what_chooses_is_never_trained_on(study: Study) -> None:
    parts = [set(part.tolist()) for part in (study.first, study.second, study.held_out)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert set(study.everything.tolist()) == parts[0] | parts[1]
    fewer = open_study(RECIPE.model_copy(update={"validation_images": 7}), load_data(RECIPE, None), study.directory, 0)
    assert len(fewer.validation) == 7
    assert set(fewer.held_out.tolist()) <= parts[2]


def answer(labels: torch.Tensor, right: float, sureness: float) -> torch.Tensor:
    """Log-probabilities that are right for a share of the images."""
    shown = labels.clone()
    shown[round(right * len(labels)) :] = (labels[round(right * len(labels)) :] + 1) % 10
    return (sureness * torch.nn.functional.one_hot(shown, 10).float()).log_softmax(1)


@pytest.mark.parametrize(("on_validation", "expected"), [(1.0, 2.0), (0.0, 0.0)])
def test_the_weight_of_a_sum_is_chosen_on_validation_images(
    study: Study, on_validation: float, expected: float
) -> None:
    validation, test = study.validation.labels, study.test.labels
    network = Row("base", "base", "", 1, 1, 1, answer(validation, 0.5, 4), answer(test, 0.5, 4))
    stage = replace(
        network, name="s", validation=answer(validation, on_validation, 3), test=answer(test, 1 - on_validation, 3)
    )
    summed = _sum(study, stage, network)
    assert summed.details["weight"] == expected
    assert summed.name == "s-added"
    assert summed.passes == 2
    assert stage.test is not None
    assert network.test is not None
    assert summed.test is not None
    torch.testing.assert_close(summed.test, (network.test + expected * stage.test).log_softmax(1))


def test_prices_of_pieces_that_share_one() -> None:
    def piece(name: str, **below: float) -> Any:
        return worth_beyond.Piece(name, {}, "", 2.0, 0, below)

    assert sum(prices([piece("a", base=10.0), piece("b", base=10.0), piece("base")]).values()) == 2 + 2 + 2


def test_soft_targets_are_the_label_and_the_teachers_word(study: Study, tmp_path: Path) -> None:
    images = [study.images(part) for part in study.second.tensor_split(2)]
    network = study.fresh()
    below = worth_beyond.Below(network, [worth_beyond.Source(network, part) for part in images], [])
    soft = torch.full((6, 10), 0.1)
    np.savez(tmp_path / "labels.npz", probabilities=soft.numpy())
    distil = worth_beyond.DistilConfig(images=6, weight=0.25)
    targets = worth_beyond._targets(study, below, distil, tmp_path / "labels.npz")
    hard = torch.nn.functional.one_hot(torch.cat([part.labels for part in images]), 10).float()
    labelled = torch.tensor([0, 1, 2, len(images[0]), len(images[0]) + 1, len(images[0]) + 2])
    torch.testing.assert_close(targets[labelled], 0.75 * hard[labelled] + 0.025)
    rest = torch.ones(len(hard), dtype=torch.bool)
    rest[labelled] = False
    assert torch.equal(targets[rest], hard[rest])


def test_a_piece_remembers_what_it_stands_on(study: Study) -> None:
    made = worth_beyond.Made(1.5, "quick", 3)
    base = make_piece(study, "base", {}, lambda _: made)
    top = make_piece(study, "top", {"a": (1, 2)}, lambda _: made, [base])
    assert top.below == {"base": 1.5}
    assert top.total_cpu_seconds == 3.0
    assert make_piece(study, "top", {"a": [1, 2]}, lambda _: pytest.fail("made twice"), [base]) == top


def test_networks_of_one_seed_begin_with_the_same_weights(study: Study) -> None:
    first, again = study.fresh(), study.fresh()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    network, piece = timed_network(study, "net", study.first, 0.2)
    assert piece.settings["images"] == len(study.first)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), network.parameters(), strict=True))


# the page


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return Path(shutil.copy(WORDS, tmp_path / "worth.yaml"))


def test_the_page_has_every_row_and_says_what_has_not_run(out: Path, page: Path, tmp_path: Path) -> None:
    words = [str(tmp_path / "recipe.yaml"), "--out", str(out), "--draw", "--page", str(page)]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["converged", *words]) == 0
    text = page.with_suffix(".md").read_text()
    assert text.count("Not run.") == 2
    for part in PARTS:
        assert main([part, *words]) == 0
    text = page.with_suffix(".md").read_text()
    assert "Not run." not in text
    for part in PARTS:
        for name, row in rows(out, part).items():
            assert f"| {name} | {row['kind']} | {row['validation_accuracy']:.4f} |" in text
        assert (tmp_path / f"worth-{part}.svg").read_text().startswith("<?xml")
        assert f"(worth-{part}.svg)" in text
        assert f"](raw/worth/{part}.json)" in text


def test_the_page_is_the_same_each_time(out: Path, page: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(out / "beyond.json", raw)
    draw_page(page, raw)
    once = {file.name: file.read_bytes() for file in tmp_path.glob("worth*")}
    draw_page(page, raw)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("worth*")} == once


# mistakes


def test_mistakes_are_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "recipe.yaml", str(tmp_path / "out")
    curve = TINY["curve"]
    for content, said in [
        (TINY | {"curve": None}, "no part 'curve'"),
        (TINY | {"data": "digit"}, "did you mean 'digits'"),
        (TINY | {"curve": curve | {"stage": STAGE | {"normalise": "whiten"}}}, "unknown normalisation 'whiten'"),
        (TINY | {"curve": curve | {"stage": STAGE | {"hidden": [1]}}}, "1 sizes given"),
        (TINY | {"sed": 1}, "did you mean 'seeds'"),
    ]:
        recipe.write_text(yaml.safe_dump(content))
        assert main(["curve", str(recipe), "--out", out]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert main(["curve", str(tmp_path / "none.yaml"), "--out", out]) == 2
    recipe.write_text(yaml.safe_dump(TINY))
    assert main(["curve", str(recipe), "--out", out, "--draw"]) == 2
    assert "run it first" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(study: Study) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__["PARTS"], "curve", interrupted)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    assert main(["curve", str(recipe), "--out", str(tmp_path / "out")]) == 130
    assert "give the same command to go on" in capsys.readouterr().err
