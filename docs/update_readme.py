"""Write the figures of the README from the results of runs, so that a command makes each of them.

    python docs/update_readme.py runs/demo                       the demo's table
    python docs/update_readme.py --results docs/ledger/raw/gradnet-*/results.json    the table of results, a row each
    python docs/update_readme.py --claims docs/ledger/{power,fixed,jem,search}*.json    the table of claims

Only what stands between the markers, `<!-- demo table -->` and `<!-- /demo table -->`, is replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.reports import sentences, words
from postgrad.reports.schema import Arm, Results, read_results

README = Path(__file__).resolve().parent.parent / "README.md"
CONTROLS = {
    "control-finetune": "Fine-tuned",
    "control-features": "Features",
    "control-more-data": "More data",
    "control-same-price": "Same price",
}
VERDICTS = {"no difference": "no different"}


def demo_block(run: Path) -> str:
    """The table of one run with its verdict in words, and how long it took on what."""
    results = read_results(run / "results.json")
    method = sentences.methods(results)[0]
    name = words.arm_name(method)
    headings = ("Arm", "Accuracy", "NLL", "ECE", "Fitting", "Parameters", "Price", f"{name} is")
    rows = [_demo_row(results, arm) for arm in results.arms]
    return "\n\n".join(
        [
            _table(headings, rows, numbers=range(1, 7)),
            f"{sentences.headline(results, method)} {sentences.reach(results)}",
            _circumstances(run, results),
        ]
    )


def results_block(files: Sequence[Path]) -> str:
    """One row for each run: the accuracy of every arm, the best in bold."""
    headings = ("Data", "Base network", "Seeds", "Base", "GradNet", *CONTROLS.values())
    return _table(headings, [_results_row(file) for file in files], numbers=range(2, len(headings)))


def claims_block(files: Sequence[Path]) -> str:
    """One row for each claim that was tested, with a link to its page."""
    headings = ("Claim", "Without → with", "Best control", "Seeds", "Verdict", "Ledger")
    rows = [
        _claim_row(file, row)
        for file in files
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]
        if row["ours"] is not None
    ]
    return _table(headings, rows, numbers=range(1, 4))


def with_block(text: str, name: str, content: str) -> str:
    """`text` with another content between the markers of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise UserError(f"README: expected {begin} and then {end}, each once; put them where the figures belong")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def _demo_row(results: Results, arm: Arm) -> list[str]:
    accuracy = arm.metrics["accuracy"]
    verdicts = [f"{VERDICTS.get(word, word)} ({numbers[0]})" for _, word, numbers in sentences.against(results, arm)]
    return [
        f"`{arm.name}`",
        f"{words.percent(accuracy.mean)} ({words.interval(accuracy.ci95, scale=100)})",
        words.decimal(arm.metrics["nll"].mean),
        words.decimal(arm.metrics["ece"].mean),
        words.seconds(arm.cost.train_cpu_seconds),
        words.count(arm.cost.parameters),
        words.passes(arm.cost.inference_passes),
        verdicts[0] if verdicts else "",
    ]


def _circumstances(run: Path, results: Results) -> str:
    """What the columns mean, how long the run took, and on what machine."""
    over = results.arms[0].metrics["accuracy"].ci_over
    lines = [
        f"Ranges are 95 % intervals over the {f'{results.data.n_test} test images' if over == 'images' else over}. "
        "*Fitting* is process CPU time of an arm's own fitting, tuning included; *price* counts how often the network "
        "runs for each image."
    ]
    environment = run / "environment.json"
    if results.seconds is not None and environment.exists():
        machine = json.loads(environment.read_text(encoding="utf-8"))
        lines.append(
            f"The whole run took {words.seconds(results.seconds)} with {words.plural(machine['threads'], 'thread')} "
            f"on {words.plural(machine['cores'], 'core')} ({machine['processor']})."
        )
    return " ".join(lines)


def _results_row(file: Path) -> list[str]:
    results = read_results(file)
    config = yaml.safe_load((file.parent / "config.yaml").read_text(encoding="utf-8"))
    stop = config.get("base_accuracy")
    base = config["model"] + (f", stopped at {stop:.3g}" if stop else "")
    accuracies = {arm.name: arm.metrics["accuracy"].mean for arm in results.arms}
    best = max(accuracies.values())
    cells = []
    for name in ("base", "gradnet", *CONTROLS):
        value = accuracies.get(name)
        text = words.MISSING if value is None else words.percent(value)
        cells.append(f"**{text}**" if value == best else text)
    return [results.data.name, base, str(len(results.seeds)), *cells]


def _claim_row(file: Path, row: Mapping[str, Any]) -> list[str]:
    share = row["metric"].endswith("accuracy")
    base, ours, control = (
        words.MISSING if value is None else words.percent(value) if share else f"{value:.3f}"
        for value in (row["base"], row["ours"], row["control_figure"])
    )
    page = f"[{file.stem}](docs/ledger/{file.stem}.md)"
    return [row["claim"], f"{base} → {ours}", control, str(row["n_seeds"]), row["verdict"], page]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: range) -> str:
    rule = ["--:" if column in numbers else "---" for column in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def main(arguments: Sequence[str] | None = None, *, readme: Path = README) -> int:
    """Read runs, rewrite one block of the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a finished run of `postgrad improve`")
    parser.add_argument("--results", nargs="+", type=Path, metavar="FILE", help="results.json of several runs")
    parser.add_argument("--claims", nargs="+", type=Path, metavar="FILE", help="rows of several pages of the ledger")
    options = parser.parse_args(arguments)
    if [options.run, options.results, options.claims].count(None) != 2:
        parser.error("give either a run directory, --results FILE ... or --claims FILE ...")
    try:
        if options.run is not None:
            name, content = "demo table", demo_block(options.run)
        elif options.results is not None:
            name, content = "results table", results_block(options.results)
        else:
            name, content = "claims table", claims_block(options.claims)
        write_atomic(readme, with_block(readme.read_text(encoding="utf-8"), name, content))
    except (UserError, OSError) as error:
        print(f"update_readme: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
