"""The ledger's page: its cells against raw results made by hand, and the page that is committed."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from postgrad.errors import UserError
from postgrad.reports.schema import Arm, Cost, Data, Metric, Results, Verdict, write_results
from postgrad.studies.config import ImproveConfig
from postgrad.studies.ledger import HEADS, Page, main, render_page
from postgrad.studies.raw import keep_raw
from postgrad.validation import read_yaml, validated

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT / "docs" / "ledger" / "gradnet.yaml"
TABLE_1 = {
    "gradnet-cifar10-79": (0.79, 0.8289),
    "gradnet-cifar10-76": (0.76, 0.8201),
    "gradnet-cifar10-74": (0.74, 0.8066),
    "gradnet-cifar10-72": (0.72, 0.7936),
    "gradnet-cifar10-68": (0.68, 0.7649),
    "gradnet-cifar10-65": (0.65, 0.7511),
    "gradnet-cifar10-62": (0.62, 0.7274),
    "gradnet-cifar10-55": (0.55, 0.7016),
    "gradnet-cifar10-51": (0.51, 0.6856),
    "gradnet-cifar10-49": (0.49, 0.678),
    "gradnet-mnist-92": (0.92, 0.98),
    "gradnet-mnist-96": (0.96, 0.9857),
    "gradnet-mnist-9894": (0.9894, 0.9914),
}

Raw = Callable[..., Path]


def page(*rows: dict[str, Any], **others: Any) -> Page:
    content = {"title": "T", "source": "S", "introduction": "I", "method": "gradnet", "rows": rows, **others}
    return Page.model_validate(content)


def cells(text: str, claim: str) -> dict[str, str]:
    """The cells of a row of the first table, by their heads."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {claim} |"))
    return dict(zip(HEADS, [cell.strip() for cell in line.strip("|").split("|")], strict=True))


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """Write the raw results of a run: accuracies by arm, McNemar's verdict for each control."""

    def write(
        run: str,
        accuracies: dict[str, float],
        verdicts: dict[str, str],
        *,
        scope: str = "run",
        augmented: list[float | None] | None = None,
    ) -> Path:
        folder = tmp_path / "raw" / run
        folder.mkdir(parents=True)
        kinds = {"base": "base", "gradnet": "method"}
        results = Results(
            version=1,
            command="postgrad improve",
            data=Data(name="digits", n_train=90, n_validation=10, n_test=100, fingerprint="0"),
            seeds=[0],
            arms=[
                Arm(
                    name=name,
                    kind=kinds.get(name, "control"),  # type: ignore[arg-type]
                    metrics={
                        metric: Metric(mean=value, ci95=None, ci_over="images", n_seeds=1, values=[value])
                        for metric in ("accuracy", "nll", "ece")
                    },
                    cost=Cost(),
                )
                for name, value in accuracies.items()
            ],
            verdicts=[
                Verdict.model_validate(
                    {"method": "gradnet", "control": control, "metric": "accuracy", "difference": 0.01, "p": 0.01}
                    | {"ci95": None, "scope": scope, "verdict": verdict}
                    | {"test": "mcnemar" if scope == "run" else "paired-t"}
                )
                for control, verdict in verdicts.items()
            ],
        )
        write_results(results, folder / "results.json")
        bases = [
            {"kind": "base"} if a is None else {"kind": "base", "augmented_accuracy": a} for a in augmented or [None]
        ]
        (folder / "arms.json").write_text(json.dumps([*bases, {"kind": "method"}]))
        (folder / "metrics.csv").write_text("seed,arm,epoch\n0,base,30.0\n0,gradnet,4.0\n0,gradnet,5.0\n0,other,9.0\n")
        surroundings = {"processor": "P", "threads": 1, "versions": {"torch": "2"}}
        (folder / "environment.json").write_text(json.dumps(surroundings))
        return folder

    return write


def test_row_that_has_not_run_says_so_after_both_published_figures(tmp_path: Path) -> None:
    text = render_page(page({"claim": "A", "run": "a", "published_base": 0.5, "published": 0.6}), tmp_path)
    found = cells(text, "A")
    assert (found["published base"], found["published GradNet"], found["published gain"]) == ("0.5", "0.6", "+20.0 %")
    assert found["our base, augmented"] == "not run"
    assert not any(found[head] for head in HEADS[5:])


def test_cells_are_those_of_the_raw_results(tmp_path: Path, raw: Raw) -> None:
    accuracies = {"base": 0.5, "gradnet": 0.6, "control-finetune": 0.55, "control-features": 0.7}
    raw("a", accuracies, {"control-finetune": "better", "control-features": "worse"}, augmented=[0.4, 0.44])
    found = cells(render_page(page({"claim": "A", "run": "a"}), tmp_path / "raw"), "A")
    assert found["published base"] == found["published gain"] == "–"
    assert found["our base, augmented"] == "0.4200"
    assert (found["our base"], found["ours"]) == ("0.5000", "0.6000")
    assert (found["gain over the augmented base"], found["gain"]) == ("+42.9 %", "+20.0 %")
    assert found["control-finetune"] == "0.5500"
    assert found["best control"] == "control-features 0.7000"
    assert (found["seeds"], found["passes"]) == ("1", "5")
    assert found["verdict"] == "better than control-finetune; worse than control-features (preliminary)"


def test_verdicts_of_the_method_stand_above_those_of_one_run_and_are_not_preliminary(tmp_path: Path, raw: Raw) -> None:
    accuracies = {"base": 0.5, "gradnet": 0.6, "control-finetune": 0.55, "control-features": 0.7}
    raw("a", accuracies, dict.fromkeys(["control-finetune", "control-features"], "no difference"), scope="method")
    found = cells(render_page(page({"claim": "A", "run": "a"}), tmp_path / "raw"), "A")
    assert found["verdict"] == "no different from all 2 controls"
    assert found["our base, augmented"] == "–"
    assert found["gain over the augmented base"] == "–"


def test_other_runs_have_a_table_of_their_own(tmp_path: Path, raw: Raw) -> None:
    raw("b", {"base": 0.5, "gradnet": 0.6, "control-features": 0.7}, {"control-features": "worse"})
    text = render_page(page({"claim": "A", "run": "a"}, others=[{"claim": "B", "run": "b"}]), tmp_path / "raw")
    assert text.index("## Other runs") < text.index("| B |") < text.index("## B")
    assert cells(text, "B")["control-finetune"] == "–"
    assert "## A" not in text
    assert "`postgrad improve --recipe recipes/ledger/b.yaml --data-dir DIR --out runs/ledger/b`" in text


def test_order_names_rows_only() -> None:
    with pytest.raises(UserError, match="unknown row 'b': did you mean 'bb'"):
        validated(Page, page({"claim": "A", "run": "bb"}).model_dump() | {"order": ["b"]}, source="x")


def test_what_is_kept_of_a_run_names_no_path_and_all_predictions(finished: Path, tmp_path: Path) -> None:
    config = ImproveConfig.load(finished / "config.yaml")
    assert config.out != ImproveConfig().out
    keep_raw(finished, tmp_path / "raw")
    settings = read_yaml(tmp_path / "raw" / "config.yaml")
    assert not {"out", "data_dir", "weights"} & settings.keys()
    assert ImproveConfig.load(tmp_path / "raw" / "config.yaml").steps == config.steps
    with np.load(tmp_path / "raw" / "predicted.npz") as kept, np.load(finished / "base/test_predictions.npz") as stored:
        np.testing.assert_array_equal(kept["base-seed0"], stored["probabilities"].argmax(1))
        np.testing.assert_array_equal(kept["labels"], stored["labels"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()}
    keep_raw(finished, tmp_path / "raw")
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == before


def test_half_copied_results_are_not_shown(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """results.json comes last, so that a kill in between leaves none."""
    monkeypatch.setattr("postgrad.studies.raw.write_arrays", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        keep_raw(finished, tmp_path / "a")
    assert "not run" in render_page(page({"claim": "A", "run": "a"}), tmp_path)


def test_command_copies_finished_runs_and_makes_the_page(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.yaml"
    rows = [{"claim": "A", "run": finished.name}, {"claim": "B", "run": "b"}]
    file.write_text(
        yaml.safe_dump({"title": "T", "source": "S", "introduction": "I", "method": "gradnet", "rows": rows})
    )
    assert main([str(file)]) == 0
    assert cells(file.with_suffix(".md").read_text(), "A")["our base, augmented"] == "not run"
    assert main([str(file), "--runs", str(finished.parent)]) == 0
    text = file.with_suffix(".md").read_text()
    with open(finished / "metrics.csv", newline="") as lines:
        assert [row["epoch"] for row in csv.DictReader(lines) if row["arm"] == "gradnet"][-1] == "1.0"
    assert cells(text, "A")["passes"] == "1"
    assert cells(text, "B")["our base, augmented"] == "not run"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--run"], "give --runs DIR"),
        (["--run", "gradnet-cifar10-73", "--runs", "x"], "unknown row 'gradnet-cifar10-73': did you mean"),
        (["--run", "gradnet-cifar10-72", "--runs", "x", "--recipes", "nowhere"], "cannot read nowhere"),
    ],
)
def test_mistakes_are_one_line(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(LEDGER), *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1


# the ledger of this repository


def test_every_row_of_table_1_is_there_with_its_published_figures() -> None:
    ledger = validated(Page, read_yaml(LEDGER), source="gradnet.yaml")
    assert {row.run: (row.published_base, row.published) for row in ledger.rows} == TABLE_1


def test_the_page_is_that_of_its_raw_results() -> None:
    ledger = validated(Page, read_yaml(LEDGER), source="gradnet.yaml")
    assert LEDGER.with_suffix(".md").read_text(encoding="utf-8") == render_page(ledger, LEDGER.parent / "raw")


def test_every_run_has_a_recipe_that_fits_its_row() -> None:
    ledger = validated(Page, read_yaml(LEDGER), source="gradnet.yaml")
    for row in ledger.every_row():
        if row.command is None:
            ImproveConfig.load(ROOT / "recipes" / "ledger" / f"{row.run}.yaml")
    for run, (base, _) in TABLE_1.items():
        recipe = ImproveConfig.load(ROOT / "recipes" / "ledger" / f"{run}.yaml")
        assert recipe.base_accuracy == (None if base == 0.79 else base)
        assert recipe.base_accuracy_on == "augmented"
        assert recipe.methods[0].options == {"epochs": 5}
        assert recipe.controls[0] == "control-finetune"
        assert (len(recipe.seeds), len(recipe.controls)) in {(1, 1), (3, 4)}


def test_each_row_of_table_1_gets_a_first_run_before_any_gets_more() -> None:
    order = validated(Page, read_yaml(LEDGER), source="gradnet.yaml").order
    assert set(order[: len(TABLE_1)]) == set(TABLE_1)
    recipes = {name: ImproveConfig.load(ROOT / "recipes" / "ledger" / f"{name}.yaml") for name in order}
    assert order[-1] == "gradnet-cifar10-full"
    assert {name for name in order if order.count(name) > 1} == {n for n, r in recipes.items() if len(r.seeds) > 1}


def test_cifar10_rows_look_alike_so_that_their_bases_are_one_training() -> None:
    recipes = [ImproveConfig.load(file) for file in (ROOT / "recipes" / "ledger").glob("gradnet-cifar10-*.yaml")]
    ladder = [recipe for recipe in recipes if recipe.base_accuracy_on == "augmented"]
    assert len(ladder) == 11
    of_base = ("model", "data", "epochs", "base_validate_every", "whole_halves", "threads", "limit")
    assert len({tuple(getattr(recipe, name) for name in of_base) for recipe in ladder}) == 1


def test_make_knows_the_target() -> None:
    said = subprocess.run(
        ["make", "--dry-run", "ledger", "RUNS=somewhere", "THREADS=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "postgrad.studies.ledger docs/ledger/gradnet.yaml --runs somewhere --run --threads 2" in said
