"""What the parts of the page compute, against closed forms and brute force."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from postgrad.errors import UserError
from postgrad.reports import diagrams
from postgrad.reports.charts import frontier
from postgrad.reports.groups import groups, styles
from postgrad.reports.rundir import Run, read_run
from postgrad.reports.sections import calibration, changes, learning, outside, robustness, seeds, verdicts
from postgrad.reports.sections.cost import cost
from postgrad.reports.sections.leaderboard import leaderboard


@pytest.fixture(scope="module")
def run(study: Path) -> Run:
    return read_run(study)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=9))
def test_on_the_frontier_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    found = frontier(points)
    best = {p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
    assert {points[i] for i in found} == best
    assert len(found) == len(best)


def test_bands_reach_from_the_lowest_seed_to_the_highest() -> None:
    x = np.linspace(0, 10, 11)
    line = learning.mean_line("a", "base", [(x, x), (x * 0.8, x * 3), (x[1:], x[1:] * 2)])
    assert line.band is not None
    assert (line.x[0], line.x[-1]) == (1, 8)
    np.testing.assert_allclose(line.band[0], line.x)
    np.testing.assert_allclose(line.band[1], line.x / 0.8 * 3)
    np.testing.assert_allclose(line.y, line.x * (1 + 2 + 3 / 0.8) / 3)


def test_stages_of_growth_are_marked_at_the_mean_over_the_seeds(run: Run) -> None:
    steps = np.array([5.0, 10.0, 15.0, 20.0])
    grown = {"growths": np.array([1.0, 1.0, 3.0, 3.0]), "parameters": np.array([40.0, 40.0, 52.0, 52.0])}
    curves = [{"step": steps, **grown}, {"step": steps + 1, **grown}, {"step": steps}]
    marks = learning.growths(curves, "step")
    assert marks == ((5.5, "grows to 40 parameters"), (15.5, "grows to 52 parameters"))
    method = next(arm.name for arm in run.results.arms if arm.kind == "method")
    assert not learning.learning(run, groups(run.results.arms))["grows"]
    marked = {**run.curves, method: {seed: {**curve, **_grown(curve)} for seed, curve in run.curves[method].items()}}
    section = learning.learning(dataclasses.replace(run, curves=marked), groups(run.results.arms))
    assert section["grows"]
    drawn = [chart for _, charts in section["groups"] for chart in charts if 'class="mark' in chart["chart"]]
    assert drawn
    assert all("grows to 7 parameters" in chart["chart"] for chart in drawn)


def _grown(curve: dict[str, Any]) -> dict[str, Any]:
    half = (np.arange(len(curve["step"])) >= len(curve["step"]) // 2).astype(float)
    return {"growths": half, "parameters": 5 + 2 * half}


def test_looked_at_once_each_seed_is_one_dot_with_its_range() -> None:
    once = [(np.array([float(50 + i)]), np.array([0.8 + 0.1 * i])) for i in range(2)]
    line = learning.mean_line("a", "base", once)
    assert line.band is not None
    assert [float(v[0]) for v in (line.x, line.y, *line.band)] == pytest.approx([50.5, 0.85, 0.8, 0.9])


def test_times_are_medians_over_the_seeds_that_reached_the_level() -> None:
    x = np.array([1.0, 2.0, 3.0])
    lines = [(x, np.array([0.2, 0.9, 0.5])), (x, np.array([0.1, 0.2, 0.7])), (x, np.array([0.1, 0.1, 0.1]))]
    reached = learning._reached(lines, 0.7)
    assert (reached["value"], reached["seeds"]) == (2.5, "2 of 3 seeds")
    assert learning._reached(lines, 0.95) == {"value": None, "written": "not reached", "seeds": None}


def test_equal_time_and_equal_steps_are_both_drawn_for_every_method(run: Run) -> None:
    found = learning.learning(run, groups(run.results.arms))
    assert [group.label for group, _ in found["groups"]] == [
        "GradNet",
        "GradNet (gradnet-variant-1)",
        "GradNet (gradnet-variant-2)",
    ]
    for _, charts in found["groups"]:
        assert [chart["what"].split(" against ")[1] for chart in charts] == ["time", "steps"] * 2
        assert all(str(chart["chart"]).count("<polygon") == 5 for chart in charts)


def test_risk_at_a_coverage_is_the_error_of_the_surest(run: Run) -> None:
    predictions = run.predictions["base"]
    coverage, risk = calibration._risk_coverage(predictions)
    wrong = predictions.predicted != predictions.labels
    surest = np.argsort(-predictions.probabilities.max(axis=1))
    for share, error in zip(coverage, risk, strict=True):
        assert error == pytest.approx(wrong[surest[: round(share * len(wrong))]].mean())
    assert (coverage[-1], risk[-1]) == (1, wrong.mean())


def test_equally_sure_answers_share_their_error() -> None:
    p = np.array([[0.6, 0.4]] * 4, np.float32)
    coverage, risk = calibration._risk_coverage(calibration.Predictions(p, np.array([0, 1, 0, 1])))
    assert coverage[-1] == 1
    np.testing.assert_array_equal(risk, 0.5)


def test_scaled_diagrams_are_there_where_a_temperature_is(run: Run, make_run) -> None:
    found = calibration.calibration(run, groups(run.results.arms))
    assert found["scaled"]
    assert all("T = 1.50" in panel["ece"] for panel in found["reliability"])
    assert [chart["what"] for chart in found["risk"][0][1]] == ["Raw confidences", "After temperature scaling"]
    plain = read_run(make_run())
    assert not calibration.calibration(plain, groups(plain.results.arms))["scaled"]


def test_confusions_are_differences_of_means_over_seeds(run: Run) -> None:
    base, method = run.results.arm("base"), run.results.arm("gradnet")
    expected = np.zeros((10, 10))
    for seed in range(5):
        before, after = (run.predictions_of(arm.name, seed) for arm in (base, method))
        assert before is not None
        assert after is not None
        expected += confusion_matrix(after.labels, after.predicted) - confusion_matrix(before.labels, before.predicted)
    found = changes._confusion(run, base, method, run.results.data.class_names)
    assert found["seeds"] == 5
    names = run.results.data.class_names
    true, called, by = found["largest"][0]
    assert float(by.replace("−", "-")) == pytest.approx(expected[names.index(true), names.index(called)] / 5)
    off = np.abs(expected / 5 * (1 - np.eye(10)))
    assert abs(float(by.replace("−", "-"))) == pytest.approx(off.max())


@pytest.mark.parametrize(("classes", "numbers"), [(10, True), (20, True), (50, False)])
def test_a_confusion_has_numbers_while_they_can_be_read(classes: int, numbers: bool) -> None:
    change = np.zeros((classes, classes))
    change[0, 1], change[2, 2] = 3, -1.5
    drawing = str(diagrams.confusion_change([f"class {i}" for i in range(classes)], change))
    assert (">+3<" in drawing) == numbers
    assert (">−1.5<" in drawing) == numbers
    assert "class 0 called class 1 +3" in drawing
    assert drawing.count('class="cell') == (classes**2 if numbers else 2)


def test_pairs_join_the_seeds_that_both_have(run: Run) -> None:
    found = seeds.seed_by_seed(run)
    assert [d["label"] for d in found["diagrams"]] == [
        "GradNet",
        "GradNet (gradnet-variant-1)",
        "GradNet (gradnet-variant-2)",
    ]
    last = str(found["diagrams"][-1]["chart"])
    assert last.count("pair-line") == 5 + 5 + 5 + 4
    assert dict(found["rows"])["Training on all the data for gradnet-variant-2"][-1] == "–"


def test_values_without_their_seeds_are_not_paired(study: Path, tmp_path: Path) -> None:
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    changed(copied, lambda document: document.update(failures=[]))
    found = seeds.seed_by_seed(read_run(copied))
    assert found["unknown"] == ["Training on all the data for gradnet-variant-2"]
    assert str(found["diagrams"][-1]["chart"]).count("pair-line") == 15


def test_verdicts_show_all_that_was_tested(run: Run) -> None:
    found = verdicts.verdict_table(run)
    assert len(found["accuracy"]) == len(found["others"]) == 12
    first = found["accuracy"][0]
    assert (first["wilcoxon"], first["seeds"], first["detectable"]) == ("0.062", "5 seeds", "1.2 points")
    assert first["mcnemar"] == "0.010, 0.020, 0.030, 0.040, 0.050"
    assert [row["test"] for row in found["accuracy"][:2]] == ["paired t", "paired t, Holm"]
    assert found["notes"] == {
        "1 of 5 seeds failed": ["GradNet (gradnet-variant-2) against Training on all the data for gradnet-variant-2"]
    }


def test_too_few_seeds_are_never_a_gain(run: Run) -> None:
    row = verdicts.verdict_table(run)["accuracy"][-1]
    assert row["verdict"].difference > 0
    assert (row["word"], row["class"], row["p"]) == ("○ too few seeds", "too", "–")
    rows = leaderboard(run, styles(run.results.arms))["rows"]
    assert [(word, kind) for _, word, kind, _ in rows[-1]["against"]] == [("○ too few seeds", "too")]
    assert rows[-1]["seeds"] == "4 of 5 seeds"


def test_p_values_of_many_seeds_are_counted() -> None:
    assert verdicts._mcnemar([0.01] * 7 + [0.3] * 13) == "below 0.05 in 7 of 20"
    assert verdicts._mcnemar(None) == "–"


def test_other_data_has_a_table_and_histograms_where_scores_were_kept(run: Run) -> None:
    kmnist, noise = outside.outside(run, histograms=True)
    assert (kmnist["name"], noise["name"], kmnist["n"]) == ("kmnist", "noise", 400)
    assert kmnist["scores"] == ["largest probability", "largest logit", "energy"]
    assert len(kmnist["rows"]) == 13
    assert kmnist["rows"][0][2][1]["auroc"] == "0.814"
    assert kmnist["histograms"][0]["label"] == "Base"
    assert len(kmnist["histograms"][0]["panels"]) == 3
    assert outside.outside(run, histograms=False)[0]["histograms"] == []


def test_histograms_hold_shares_of_each_side() -> None:
    drawing = str(diagrams.histogram_pair(np.zeros(10), np.ones(90), label="a", style="base"))
    assert drawing.count("V8.0") == 2  # both reach the top: all of each side lies in one bin


def test_infinite_scores_are_left_out_and_missing_ones_have_no_histogram(run: Run) -> None:
    kept = {"inside/energy": np.array([1.0, np.inf]), "noise/energy": np.array([0.0]), "inside/max_logit": np.ones(3)}
    changed_run = dataclasses.replace(run, outside={"base": kept})
    kmnist, noise = outside.outside(changed_run, histograms=True)
    assert kmnist["histograms"] == []
    ((arm, panels),) = [(found["label"], found["panels"]) for found in noise["histograms"]]
    assert (arm, [panel["score"] for panel in panels]) == ("Base", ["energy"])


def test_corruptions_keep_a_share_of_the_clean_accuracy(run: Run) -> None:
    found = robustness.corruptions(run, groups(run.results.arms))
    arm = run.results.arm("base")
    clean = arm.metrics["accuracy"].mean
    written, keeps, value = found["rows"][0][2][0]
    assert value == pytest.approx(clean * (1 - 0.03 * 3))
    assert (written.replace("\u00a0", " "), keeps) == (f"{100 * value:.2f} %", "keeps 91\u00a0%")
    assert len(found["groups"]) == 3
    assert [len(panels) for _, panels in found["groups"]] == [7, 7, 7]


def test_all_corruptions_have_the_same_axis(run: Run) -> None:
    _, panels = robustness.corruptions(run, groups(run.results.arms))["groups"][0]
    axes = {tuple(re.findall(r">(\d+ %)</text>", str(panel["chart"]))) for panel in panels}
    assert len(axes) == 1


@pytest.mark.parametrize(("value", "expected"), [(8 / 255, "8/255"), (0.5, "0.5"), (1 / 255, "1/255"), (0.03, "0.03")])
def test_epsilon_is_written_in_255ths_where_it_is_so_many(value: float, expected: str) -> None:
    assert robustness._epsilon(value) == expected


def test_attacks_always_say_how_large_and_on_how_many_images(run: Run) -> None:
    rows = robustness.attacks(run)
    assert len(rows) == 13
    assert {(row["attack"], row["norm"], row["epsilon"], row["n"]) for row in rows} == {
        ("autoattack", "L∞", "8/255", "100")
    }


def test_of_many_arms_dots_are_numbered_and_the_frontier_is_named(run: Run) -> None:
    found = cost(run, styles(run.results.arms))
    assert found["many"]
    training, prediction, work = (str(chart["chart"]) for chart in found["charts"])
    assert ">1 Base<" in training
    assert ">3<" in training
    assert all("frontier" in chart for chart in (training, prediction, work))
    assert "Memory of a batch" not in found["columns"]
    assert "Multiply-adds" in found["columns"]


def test_curves_of_the_run_are_those_of_its_arms(study: Path, tmp_path: Path, run: Run) -> None:
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    (copied / "metrics.csv").unlink()
    for seed in range(5):
        where = (copied if seed == 0 else copied / f"seed-{seed}") / "base"
        rows = [line.split(",") for line in (study / "metrics.csv").read_text().splitlines()]
        own = [row[2:] for row in rows if row[:2] in (["seed", "arm"], [str(seed), "base"])]
        (where / "metrics.csv").write_text("\n".join(map(",".join, own)) + "\n")
    found = read_run(copied).curves["base"]
    assert set(found) == set(range(5))
    for seed, curve in found.items():
        np.testing.assert_array_equal(curve["loss"], run.curves["base"][seed]["loss"])


def test_a_damaged_table_of_curves_is_named(study: Path, tmp_path: Path) -> None:
    copied = tmp_path / "study"
    shutil.copytree(study, copied)
    for text in ("step,loss\n1,2\n", "seed,arm,loss\n0,base\n", "seed,arm,loss\n0,base,abc\n"):
        (copied / "metrics.csv").write_text(text)
        with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
            read_run(copied)


def changed(run: Path, change: Any) -> None:
    """Rewrite results.json of a run."""
    document = json.loads((run / "results.json").read_text())
    change(document)
    (run / "results.json").write_text(json.dumps(document))
