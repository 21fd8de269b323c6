"""The README's figures come from results.json, and nothing but the marked block changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from postgrad.reports.schema import Arm, Cost, Data, Metric, Results, Verdict, write_results

README = """# Title

<!-- demo table -->
old figures
<!-- /demo table -->

between

<!-- results table -->
<!-- /results table -->

<!-- claims table -->
<!-- /claims table -->

end
"""


def metric(mean: float) -> Metric:
    return Metric(mean=mean, ci95=(mean - 0.01, mean + 0.01), ci_over="images", n_seeds=1, values=[mean])


def arm(name: str, kind: str, accuracy: float, *, passes: int = 1, **more: object) -> Arm:
    metrics = {"accuracy": metric(accuracy), "nll": metric(0.321), "ece": metric(0.054)}
    cost = Cost(train_cpu_seconds=12.34, parameters=106698, inference_passes=passes)
    return Arm.model_validate({"name": name, "kind": kind, "metrics": metrics, "cost": cost, **more})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as far as the README is concerned."""
    directory = tmp_path / "runs" / "demo"
    directory.mkdir(parents=True)
    compared = {"metric": "accuracy", "ci95": None, "test": "mcnemar", "scope": "run", "method": "gradnet"}
    results = Results(
        command="improve",
        data=Data(name="digits", n_train=1294, n_validation=144, n_test=359, fingerprint="0" * 16),
        seeds=[0],
        arms=[
            arm("base", "base", 0.8512),
            arm("gradnet", "method", 0.9234, passes=10, method="gradnet"),
            arm("control-finetune", "control", 0.9345, control_for=["gradnet"]),
        ],
        verdicts=[
            Verdict(**compared, control="base", difference=0.0722, p=0.00001, verdict="better"),
            Verdict(**compared, control="control-finetune", difference=-0.0111, p=0.4, verdict="no difference"),
        ],
        seconds=142.0,
    )
    write_results(results, directory / "results.json")
    surroundings = {"threads": 2, "cores": 2, "processor": "A processor"}
    (directory / "environment.json").write_text(json.dumps(surroundings))
    (directory / "config.yaml").write_text(yaml.safe_dump({"model": "seed-cnn", "base_accuracy": 0.85}))
    return directory


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(README, encoding="utf-8")
    return path


def test_the_demo_table_has_the_figures_of_the_run(script, run: Path, readme: Path) -> None:
    assert script("update_readme").main([str(run)], readme=readme) == 0
    lines = readme.read_text(encoding="utf-8").replace("\u00a0", " ").splitlines()
    fitted = "0.321 | 0.054 | 12.3 s | 106,698 | 1 pass"
    assert f"| `base` | 85.12 % (84.12 to 86.12) | {fitted} | better (+7.2 points, p < 0.001) |" in lines
    finetuned = "`control-finetune` | 93.45 % (92.45 to 94.45)"
    assert f"| {finetuned} | {fitted} | no different (−1.1 points, p = 0.40) |" in lines
    text = "\n".join(lines)
    assert "GradNet beats the base by 7.2 points (p < 0.001), but does not measurably differ from fine-tuning" in text
    assert "The whole run took 142 s with 2 threads on 2 cores (A processor)." in text
    assert "old figures" not in text


def test_only_the_block_changes_and_twice_is_once(script, run: Path, readme: Path) -> None:
    update = script("update_readme")
    update.main([str(run)], readme=readme)
    once = readme.read_text(encoding="utf-8")
    update.main([str(run)], readme=readme)
    assert readme.read_text(encoding="utf-8") == once
    before, after = README.split("<!-- demo table -->")[0], README.split("<!-- /demo table -->")[1]
    assert once.startswith(before)
    assert once.endswith(after)


def test_the_table_of_results_has_a_row_for_each_run(script, run: Path, readme: Path) -> None:
    file = str(run / "results.json")
    assert script("update_readme").main(["--results", file, file], readme=readme) == 0
    lines = readme.read_text(encoding="utf-8").replace("\u00a0", " ").splitlines()
    row = "| digits | seed-cnn, stopped at 0.85 | 1 | 85.12 % | 92.34 % | **93.45 %** | – | – | – |"
    assert lines.count(row) == 2


def test_the_table_of_claims_has_a_row_for_each_that_was_tested(script, tmp_path: Path, readme: Path) -> None:
    row = {"claim": "it helps", "metric": "accuracy", "base": 0.5, "ours": 0.625, "control_figure": 0.6, "n_seeds": 5}
    others = [{"claim": "it is calm", "metric": "ece", "control_figure": None}, {"claim": "ImageNet", "ours": None}]
    rows = [row | {"verdict": "partly"}] + [row | {"verdict": "preliminary"} | other for other in others]
    (tmp_path / "powergrad.json").write_text(json.dumps({"title": "PowerGrad", "rows": rows}))
    assert script("update_readme").main(["--claims", str(tmp_path / "powergrad.json")], readme=readme) == 0
    text = readme.read_text(encoding="utf-8").replace("\u00a0", " ")
    page = "[powergrad](docs/ledger/powergrad.md)"
    assert f"| it helps | 50.00 % → 62.50 % | 60.00 % | 5 | partly | {page} |" in text
    assert f"| it is calm | 0.500 → 0.625 | – | 5 | preliminary | {page} |" in text
    assert "ImageNet" not in text


def test_a_readme_without_the_block_is_left_alone(script, run: Path, readme: Path, capsys) -> None:
    readme.write_text("# Title\n", encoding="utf-8")
    assert script("update_readme").main([str(run)], readme=readme) == 2
    assert readme.read_text(encoding="utf-8") == "# Title\n"
    assert "<!-- demo table -->" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_said(script, tmp_path: Path, readme: Path, capsys) -> None:
    assert script("update_readme").main([str(tmp_path / "nothing")], readme=readme) == 2
    assert "results.json" in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == README


@pytest.mark.parametrize(
    "words", [[], ["runs/demo", "--results", "results.json"], ["--results", "results.json", "--claims", "page.json"]]
)
def test_one_of_the_tables_is_asked_for(script, words: list[str], readme: Path) -> None:
    with pytest.raises(SystemExit):
        script("update_readme").main(words, readme=readme)


def test_the_readme_of_the_project_has_all_blocks(script, root: Path) -> None:
    update = script("update_readme")
    text = (root / "README.md").read_text(encoding="utf-8")
    for name in ("demo table", "results table", "claims table"):
        assert "figures" in update.with_block(text, name, "figures")
