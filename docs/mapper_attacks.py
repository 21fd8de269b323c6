"""Is Mapper immune to attacks? It, nearest neighbours, its own network on coordinates, and a convolutional network.

    postgrad study recipes/mapper/mnist-10k.yaml --data-dir DIR --out runs/mapper-mnist-10k
    python docs/mapper_attacks.py runs/mapper-mnist-10k --json docs/ledger/raw/mapper-attacks.json
        --page docs/ledger/mapper-attacks.md

The arms of the study's first seed are attacked without gradients (Square, HopSkipJump), by what fools the convolutional
network, and by what fools a differentiable stand-in for Mapper. Goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from postgrad.cli.classifiers import saved_classifier
from postgrad.cli.options import ModelOptions
from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.evaluation.attack import measure_attack
from postgrad.files import write_atomic
from postgrad.methods.mapper_surrogate import soft_mapper
from postgrad.validation import read_yaml

ARMS = {"base": "convolutional network", "mapper": "Mapper", "knn": "nearest neighbours", "pca-mlp": "PCA and MLP"}
ATTACKS = {
    ("square", None): "Square, without gradients",
    ("hopskipjump", None): "HopSkipJump, without gradients",
    ("autoattack", "base"): "AutoAttack on the convolutional network",
    ("autoattack", "stand-in"): "AutoAttack on a stand-in for Mapper",
}
"""(attack, what it is made against; None is the classifier itself) -> how the page calls it."""
STAND_IN: dict[str, Any] = {"neighbours": 100, "temperature": 0.5}
TRIED_ON = {"stand-in": ("mapper", "knn")}
"""Where not all arms are."""


def attacked(run: Path, options: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    """Make what is missing, and write the file after each."""
    classifiers = {name: saved_classifier(str(run / name), ModelOptions(), {}, "cpu") for name in ARMS}
    sources = {"base": classifiers["base"], "stand-in": soft_mapper(classifiers["mapper"], **STAND_IN)}
    settings = read_yaml(run / "config.yaml")
    test = load_dataset(settings["data"], data_dir=options.data_dir or settings.get("data_dir")).test
    assert test is not None
    there = {(each["arm"], each["attack"], each["source"], each["epsilon"]) for each in records}
    for epsilon in options.epsilon:
        for (attack, source), words in ATTACKS.items():
            for arm, classifier in classifiers.items():
                if (arm, attack, source, epsilon) in there or arm not in TRIED_ON.get(str(source), ARMS):
                    continue
                entry = measure_attack(
                    classifier,
                    test.images,
                    test.labels,
                    attack=attack,
                    epsilon=epsilon,
                    n=options.images,
                    source=None if source in (None, arm) else sources[source],
                )
                records.append({"arm": arm, "source": source, **entry})
                kept = entry["metrics"]["robust_accuracy"]["mean"]
                print(f"{ARMS[arm]}, {words}, {epsilon:g}: {kept:.2f} are still right", flush=True)
                if options.json:
                    write_atomic(options.json, json.dumps(records, indent=1) + "\n")


def table(records: Sequence[dict[str, Any]], epsilon: float) -> str:
    """One row for each attack, one column for each classifier: the share that is right before and after it."""
    mine = [each for each in records if each["epsilon"] == epsilon]
    found = {(each["arm"], each["attack"], each["source"]): each["metrics"] for each in mine}
    lines = ["| " + " | ".join(["", *ARMS.values()]) + " |", "|---" + "|--:" * len(ARMS) + "|"]
    clean = [next((m["accuracy"]["mean"] for (a, *_), m in found.items() if a == arm), None) for arm in ARMS]
    lines.append("| none | " + " | ".join("" if each is None else f"{each:.2f}" for each in clean) + " |")
    for key, words in ATTACKS.items():
        cells = [_cell(found.get((arm, *key))) for arm in ARMS]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "–"
    robust = metrics["robust_accuracy"]
    return f"{robust['mean']:.2f} ({robust['ci95'][0]:.2f} to {robust['ci95'][1]:.2f})"


def worst(records: Sequence[dict[str, Any]], arm: str, epsilon: float) -> float:
    """The least that any attack left of an arm."""
    mine = [each for each in records if (each["arm"], each["epsilon"]) == (arm, epsilon)]
    return min(each["metrics"]["robust_accuracy"]["mean"] for each in mine)


def page(records: Sequence[dict[str, Any]]) -> str:
    """What came of it, as a page of the ledger."""
    epsilons = sorted({each["epsilon"] for each in records})
    n = records[0]["n"]
    least = [
        f"- {epsilon:g}: Mapper {worst(records, 'mapper', epsilon):.2f}, the convolutional network "
        f"{worst(records, 'base', epsilon):.2f}, nearest neighbours {worst(records, 'knn', epsilon):.2f}, PCA and MLP "
        f"{worst(records, 'pca-mlp', epsilon):.2f}"
        for epsilon in epsilons
    ]
    immune = all(worst(records, "mapper", epsilon) > 0.5 for epsilon in epsilons)
    verdict = "more than half of its answers stand" if immune else "it is not immune"
    tables = [f"## Changes of up to {epsilon:g}\n\n{table(records, epsilon)}" for epsilon in epsilons]
    return f"""# Is Mapper immune to attacks?

"The Mapper Classifier is immune to any gradient based attack" is the claim of arXiv 1910.08103. It has no gradient
where neighbours change, but there are attacks without gradients, and there are stand-ins that have one. Each attack
changes pixels (0 to 1) of {n} test images by at most what the heading says, on the arms of
`recipes/mapper/mnist-10k.yaml`, seed 0. A figure is the share of images that are right before and after it, with a 95 %
interval over images.

`python docs/mapper_attacks.py runs/mapper-mnist-10k --json docs/ledger/raw/mapper-attacks.json`

What the strongest of these attacks leaves:

{chr(10).join(least)}

So {verdict}. The stand-in averages {STAND_IN["neighbours"]} neighbours with weights
softmax(−distance/{STAND_IN["temperature"]}). AutoAttack is what `postgrad score --attack autoattack` makes of it;
Square has 1,000 steps, HopSkipJump 20, each with up to 1,000 questions.

{chr(10).join(tables)}

Raw: [mapper-attacks.json](raw/mapper-attacks.json).
"""


def main() -> int:
    """Attack, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished study of recipes/mapper/mnist-10k.yaml")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--json", type=Path, help="read where it exists, and written on the way")
    parser.add_argument("--page", type=Path, help="the page of the ledger, written at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    if options.json and options.json.exists():
        records = json.loads(options.json.read_text(encoding="utf-8"))
    try:
        attacked(options.run, options, records)
    except UserError as error:
        print(error)
        return 2
    for epsilon in options.epsilon:
        print(f"\n{epsilon:g}\n{table(records, epsilon)}")
    if options.page:
        write_atomic(options.page, page(records))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
