"""Rows of the ledger: each verdict from results with known truth, and the index that is committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postgrad.errors import UserError
from postgrad.evaluation.statistics import verdicts
from postgrad.reports.schema import Arm, Cost, Data, Metric, Results, Verdict
from postgrad.studies.claims import judge, write_index, write_ledger
from postgrad.studies.study_config import Claim

LEDGER = Path(__file__).resolve().parents[2] / "docs" / "ledger"
CONTROLS = ["control-finetune", "control-features"]


def study(seeds: int = 5, **shares: float) -> Results:
    """Results of arms that are right on these shares of 4,000 images, over some seeds."""
    names = {"base": shares["base"], "gradnet": shares["ours"], CONTROLS[0]: shares["a"], CONTROLS[1]: shares["b"]}
    generator = np.random.default_rng(0)
    difficulty = generator.random(4000)
    correct = {
        name: [difficulty < share + generator.normal(0, 0.002) for _ in range(seeds)] for name, share in names.items()
    }
    arms = [
        Arm(
            name=name,
            kind="control" if name in CONTROLS else "method" if name == "gradnet" else "base",
            control_for=["gradnet"] if name in CONTROLS else [],
            metrics={"accuracy": metric([float(np.mean(seed)) for seed in of_seeds])},
            cost=Cost(),
        )
        for name, of_seeds in correct.items()
    ]
    return Results(
        command="postgrad study recipe.yaml",
        data=Data(name="digits", n_train=1, n_validation=1, n_test=4000, fingerprint="0"),
        seeds=list(range(seeds)),
        arms=arms,
        verdicts=[Verdict(**entry) for entry in verdicts(correct, {"gradnet": ["base", *CONTROLS]})],
    )


def metric(values: list[float]) -> Metric:
    return Metric(mean=float(np.mean(values)), ci95=None, ci_over="seeds", n_seeds=len(values), values=values)


def claim(**changes: Any) -> Claim:
    return Claim(**{"claim": "C", "source": "S", "published_base": 0.7, "published": 0.8, **changes})


@pytest.mark.parametrize(
    ("verdict", "seeds", "shares"),
    [
        ("replicated", 5, {"base": 0.7, "ours": 0.8, "a": 0.75, "b": 0.76}),
        ("partly", 5, {"base": 0.7, "ours": 0.8, "a": 0.75, "b": 0.85}),
        ("partly", 5, {"base": 0.7, "ours": 0.8, "a": 0.75, "b": 0.8}),
        ("not replicated", 5, {"base": 0.8, "ours": 0.8, "a": 0.7, "b": 0.7}),
        ("not replicated", 5, {"base": 0.85, "ours": 0.8, "a": 0.7, "b": 0.7}),
        ("preliminary", 4, {"base": 0.7, "ours": 0.8, "a": 0.75, "b": 0.76}),
        ("preliminary", 1, {"base": 0.7, "ours": 0.8, "a": 0.75, "b": 0.76}),
    ],
)
def test_each_verdict(verdict: str, seeds: int, shares: dict[str, float]) -> None:
    row = judge(claim(), study(seeds, **shares), raw="raw/x")
    assert row.verdict == verdict
    best = max(CONTROLS, key=lambda name: shares["ab"[CONTROLS.index(name)]])
    assert (row.control, row.n_seeds) == (best, seeds)
    assert row.difference == pytest.approx(row.ours - row.control_figure, abs=0.02 if seeds < 5 else 1e-9)
    assert row.interval is not None
    assert row.interval[0] <= row.difference <= row.interval[1]


@pytest.mark.parametrize(
    ("verdict", "seeds", "ours"),
    [("replicated", 5, 0.7), ("not replicated", 5, 0.73), ("not replicated", 5, 0.67), ("preliminary", 4, 0.7)],
)
def test_a_claim_that_nothing_changes(verdict: str, seeds: int, ours: float) -> None:
    row = judge(claim(expects="no difference"), study(seeds, base=0.7, ours=ours, a=0.6, b=0.6), raw="raw/x")
    assert row.verdict == verdict
    assert seeds < 5 or "would have been found" in row.reason


def test_where_an_arm_is_not_compared_with_the_base_the_first_other_stands_in_for_it() -> None:
    results = study(base=0.9, ours=0.8, a=0.7, b=0.75)
    without = results.model_copy(update={"verdicts": [v for v in results.verdicts if v.control != "base"]})
    row = judge(claim(), without, raw="raw/x")
    assert (row.verdict, row.control) == ("replicated", CONTROLS[1])
    assert row.base == pytest.approx(results.arm(CONTROLS[0]).metrics["accuracy"].mean)
    assert CONTROLS[0] in row.reason
    assert judge(claim(), results, raw="raw/x").verdict == "not replicated"


def test_a_claim_that_cannot_be_tested_says_why() -> None:
    row = judge(claim(not_testable="needs ImageNet"), study(base=0.7, ours=0.8, a=0.7, b=0.7), raw="raw/x")
    assert (row.verdict, row.reason, row.ours) == ("not testable here", "needs ImageNet", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"arm": "gradnut"}, "did you mean 'gradnet'"), ({"metric": "acuracy"}, "did you mean 'accuracy'")],
)
def test_unknown_names_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge(claim(**changes), study(base=0.7, ours=0.8, a=0.7, b=0.7), raw="raw/x")


def test_a_method_without_controls_proves_nothing() -> None:
    results = study(base=0.7, ours=0.8, a=0.7, b=0.7)
    alone = results.model_copy(update={"arms": results.arms[:2], "verdicts": results.verdicts[:1]})
    with pytest.raises(UserError, match="no fair control"):
        judge(claim(), alone, raw="raw/x")


def test_a_page_its_rows_and_the_index(tmp_path: Path) -> None:
    row = judge(claim(claim="MNIST .92"), study(base=0.7, ours=0.8, a=0.75, b=0.76), raw="raw/x")
    write_ledger(tmp_path / "one", "One study", [row])
    write_ledger(tmp_path / "two", "Another", [row.model_copy(update={"claim": "MNIST .96"})])
    assert {file.name for file in tmp_path.iterdir()} == {"one.md", "one.json", "two.md", "two.json", "index.md"}
    index, text = ((tmp_path / name).read_text() for name in ("index.md", "one.md"))
    assert "[One study](one.md)" in index
    assert "| MNIST .96 |" in index
    assert "**replicated**: better than the base, better than 2 of 2 controls" in text
    assert "[raw/x](raw/x)" in text


def test_the_committed_index_is_that_of_the_committed_rows(tmp_path: Path) -> None:
    for file in LEDGER.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
        assert (LEDGER / f"{file.stem}.md").exists()
        for row in json.loads(file.read_text())["rows"]:
            assert (LEDGER / row["raw"] / "results.json").exists()
    write_index(tmp_path)
    assert (tmp_path / "index.md").read_text() == (LEDGER / "index.md").read_text()
