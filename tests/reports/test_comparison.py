"""Two runs on one page: differences with their intervals on the same images, and none on different ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from postgrad.errors import UserError
from postgrad.reports import comparison
from postgrad.reports.comparison import compare
from postgrad.reports.rundir import read_run


@pytest.fixture
def pair(study: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The study, and a copy of it in which the base answers differently and one setting is another."""
    other = tmp_path / "other"
    shutil.copytree(study, other)
    generator = np.random.default_rng(5)
    values = []
    for seed in range(5):
        path = (other if seed == 0 else other / f"seed-{seed}") / "base/test_predictions.npz"
        with np.load(path) as old:
            probabilities, labels = old["probabilities"].copy(), old["labels"]
        wrong = np.flatnonzero(probabilities.argmax(1) != labels)[: 20 + int(generator.integers(0, 8))]
        probabilities[wrong] = np.eye(10, dtype=np.float32)[labels[wrong]]
        np.savez(path, probabilities=probabilities, labels=labels)
        values.append(float((probabilities.argmax(1) == labels).mean()))
    edit(other, lambda d: d["arms"][0]["metrics"]["accuracy"].update(values=values, mean=float(np.mean(values))))
    (other / "config.yaml").write_text("data: made-up\nseeds: 5\nmethods:\n- name: gradnet\n")
    return study, other


def edit(run: Path, change: Any) -> None:
    document = json.loads((run / "results.json").read_text())
    change(document)
    (run / "results.json").write_text(json.dumps(document))


def context(pair: tuple[Path, Path]) -> dict[str, Any]:
    return comparison._context(*(read_run(path) for path in pair), names=("study", "other"))


def test_differences_are_paired_over_the_seeds_that_both_have(pair: tuple[Path, Path]) -> None:
    row = context(pair)["rows"][0]
    before, after = (read_run(path).results.arm("base").metrics["accuracy"].values for path in pair)
    test = stats.ttest_rel(after, before)
    low, high = test.confidence_interval()
    assert row["value"] == pytest.approx(np.mean(after) - np.mean(before))
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert row["interval"] == f"{100 * low:+.1f} to {100 * high:+.1f}"


def test_answers_to_the_same_images_are_compared_by_mcnemar(pair: tuple[Path, Path]) -> None:
    row = context(pair)["rows"][0]
    assert [seed for seed, _, _ in row["mcnemar"]] == [0, 1, 2, 3, 4]
    runs = [read_run(path).predictions["base"] for path in pair]
    right = [found.predicted == found.labels for found in runs]
    only_after, only_before = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    p = stats.binomtest(only_after, only_after + only_before).pvalue
    assert row["mcnemar"][0][1] == ("p < 0.001" if p < 0.001 else f"p = {p:.3f}")


def test_the_same_answers_give_no_difference(pair: tuple[Path, Path]) -> None:
    row = context(pair)["rows"][1]
    assert (row["value"], row["mcnemar"][0][1], row["p_value"]) == (0, "p = 1.00", 1.0)


def test_other_labels_are_other_images(pair: tuple[Path, Path]) -> None:
    path = pair[1] / "gradnet/test_predictions.npz"
    with np.load(path) as old:
        np.savez(path, probabilities=old["probabilities"], labels=np.roll(old["labels"], 1))
    row = context(pair)["rows"][1]
    assert [seed for seed, _, _ in row["mcnemar"]] == [1, 2, 3, 4]


def test_accuracies_on_different_data_are_not_subtracted(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit(pair[1], lambda d: d["data"].update(fingerprint="f" * 16))
    found = context(pair)
    assert not found["same_data"]
    assert all(row["value"] is None for row in found["rows"])
    page = compare(*pair, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "not tested on the same images" in page
    assert "Difference</th>" not in page
    assert "pair-line" not in page.partition("</style>")[2]


def test_one_seed_has_the_interval_of_its_images(make_run, tmp_path: Path) -> None:
    first = make_run()
    second = tmp_path / "second"
    shutil.copytree(first, second)
    row = comparison._context(read_run(first), read_run(second), ("a", "b"))["rows"][0]
    assert row["interval"] is not None
    assert row["p_value"] is None
    (second / "base/test_predictions.npz").unlink()
    row = comparison._context(read_run(first), read_run(second), ("a", "b"))["rows"][0]
    assert (row["interval"], row["mcnemar"]) == (None, [])


def test_settings_that_differ_are_listed_with_both_values(pair: tuple[Path, Path]) -> None:
    assert context(pair)["settings"] == [("methods.0.name", "not set", "gradnet")]
    (pair[1] / "config.yaml").write_text("data: made-up\nseeds: [3, 4]\n")
    assert context(pair)["settings"] == [("seeds", "5", "3, 4")]
    (pair[1] / "config.yaml").unlink()
    assert not context(pair)["configured"]


def test_the_page_says_what_it_found(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = compare(*pair, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1 measurably gained from study to other, and 0 lost" in page
    assert "methods.0.name" in page
    assert "the loss became infinite" in page


def test_results_alone_are_enough(pair: tuple[Path, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(pair[1] / "results.json", bare)
    page = compare(pair[0], bare, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "no predictions for the same images" in page
    assert "holds no config.yaml" in page
    assert "holds no environment.json" in page


def test_nothing_is_overwritten(pair: tuple[Path, Path], tmp_path: Path) -> None:
    there = tmp_path / "comparison.html"
    there.write_text("mine")
    assert compare(*pair, there) == tmp_path / "comparison-2.html"
    assert compare(*pair, there) == tmp_path / "comparison-3.html"
    assert there.read_text() == "mine"


def test_a_run_is_not_compared_with_itself(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are the same run"):
        compare(study, study / "../study", tmp_path / "page.html")


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    assert comparison._names([Path("/x/a/run"), Path("/x/b/run")]) == ("a/run", "b/run")
    assert comparison._names([Path("/x/a"), Path("/x/b")]) == ("a", "b")
