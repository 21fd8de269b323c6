"""What energy models are worth beside accuracy: calibration, strange images, attacks, drawn images, time.

    postgrad study recipes/jem/mnist.yaml --data-dir DIR --out runs/jem-mnist
    postgrad train --model seed-cnn --data mnist --data-dir DIR --limit 20000 --epochs 10 --out runs/features-mnist
    python docs/energy_measures.py runs/jem-mnist runs/features-mnist --json docs/ledger/raw/jem-mnist-measures.json
        --page docs/ledger/jem-mnist-measures.md --pictures docs/images

Each network of the study is attacked and drawn from; the rest is in the study's own results. The second run is the
network whose features the Fréchet distance is taken in. Goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from postgrad.cli.classifiers import saved_classifier
from postgrad.cli.options import ModelOptions
from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.evaluation.attack import measure_attack
from postgrad.evaluation.ood import SCORES
from postgrad.files import write_atomic
from postgrad.methods.energy_samples import Chains
from postgrad.studies.sampling import grid, write_picture, write_samples
from postgrad.validation import read_yaml

ARMS = {"base": "plain", "jem": "JEM", "jem-plus-plus": "JEM++", "sada-jem": "SADA-JEM"}
"""Arm -> how the page calls it; those that a study has not are left out."""
EPSILONS = {"mnist": (0.1, 0.2), "cifar10": (2 / 255, 8 / 255)}
ATTACKED, DRAWN, SHOWN = 50, 1000, 64
CALIBRATION = {
    "accuracy": "accuracy", "nll": "NLL", "nll_scaled": "NLL, scaled", "ece": "ECE", "ece_scaled": "ECE, scaled",
}  # fmt: skip


def places(run: Path, seeds: Sequence[int]) -> Iterator[tuple[str, int, Path]]:
    """(arm, seed, its folder) of the finished networks of a study."""
    for seed in seeds:
        for arm in ARMS:
            place = (run if seed == seeds[0] else run / f"seed-{seed}") / arm
            if (place / "arm.json").is_file():
                yield arm, seed, place


def measure(run: Path, features: Path, options: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    """Make what is missing, and write the file after each."""
    settings = read_yaml(run / "config.yaml")
    folder = options.data_dir or settings.get("data_dir")
    data = load_dataset(settings["data"], data_dir=folder, limit=settings.get("limit"))
    assert data.test is not None
    seen_by = saved_classifier(str(features), ModelOptions(), {}, "cpu")
    there = {(each["arm"], each["seed"], each["what"]) for each in records}

    def keep(arm: str, seed: int, what: str, figures: Mapping[str, Any]) -> None:
        records.append({"arm": arm, "seed": seed, "what": what, **figures})
        print(f"{ARMS[arm]}, seed {seed}: {what}", flush=True)
        if options.json:
            write_atomic(options.json, json.dumps(records, indent=1) + "\n")

    for arm, seed, place in places(run, settings["seeds"]):
        classifier = saved_classifier(str(place), ModelOptions(), {}, "cpu")
        for epsilon in EPSILONS[settings["data"]]:
            if (arm, seed, f"attack {epsilon:.3g}") not in there:
                about = {"attack": "autoattack", "epsilon": epsilon, "n": ATTACKED}
                found = measure_attack(classifier, data.test.images, data.test.labels, **about)  # type: ignore[arg-type]
                keep(arm, seed, f"attack {epsilon:.3g}", found)
        if (arm, seed, "samples") not in there:
            sets: dict[str, Any] = {"training": data.train, "test": data.test, "features": seen_by}
            with tempfile.TemporaryDirectory() as scratch:
                drawn = write_samples(classifier, Path(scratch), DRAWN, chains=Chains.load(place), **sets)
            if options.pictures and seed == settings["seeds"][0] and arm != "base":
                write_picture(options.pictures / f"samples-{run.name}-{arm}.png", grid(drawn.samples[:SHOWN], 16))
            keep(arm, seed, "samples", drawn.figures)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and the lowest and highest of the seeds."""
    if not values:
        return "–"
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.fmean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})"


def calibration(results: Mapping[str, Any]) -> str:
    """How good and how well calibrated each arm is, before and after a temperature is fitted."""
    rows = [
        [ARMS[name], *(cell(arm["metrics"][metric]["values"]) for metric in CALIBRATION)]
        for name, arm in arms_of(results).items()
    ]
    return table(["network", *CALIBRATION.values()], rows)


def strangers(results: Mapping[str, Any]) -> str:
    """AUROC of each score on each other data set."""
    found = {
        (entry["data"], entry["score"], name): entry["metrics"]["auroc"]["values"]
        for name, arm in arms_of(results).items()
        for entry in arm["outside"]
    }
    sets = list(dict.fromkeys(data for data, *_ in found))
    rows = [
        [f"{data}, {score.replace('_', ' ')}", *(cell(found.get((data, score, name), [])) for name in arms_of(results))]
        for data in sets
        for score in SCORES
    ]
    return table(["told apart by", *(ARMS[name] for name in arms_of(results))], rows)


def attacks(records: Sequence[Mapping[str, Any]]) -> str:
    """The share of images that are right before and after AutoAttack."""
    mine = [each for each in records if each["what"].startswith("attack")]
    epsilons = sorted({each["epsilon"] for each in mine})
    names = [name for name in ARMS if any(each["arm"] == name for each in mine)]

    def values(name: str, metric: str, epsilon: float) -> list[float]:
        chosen = [each for each in mine if (each["arm"], each["epsilon"]) == (name, epsilon)]
        return [each["metrics"][metric]["mean"] for each in chosen]

    rows = [
        [
            ARMS[name],
            cell(values(name, "accuracy", epsilons[0]), 2),
            *(cell(values(name, "robust_accuracy", epsilon), 2) for epsilon in epsilons),
        ]
        for name in names
    ]
    return table(["network", "none", *(f"{_epsilon(epsilon)}" for epsilon in epsilons)], rows)


def _epsilon(value: float) -> str:
    return f"{value * 255:.0f}/255" if value < 0.05 else f"{value:g}"


def samples(records: Sequence[Mapping[str, Any]]) -> str:
    """How far drawn images are from test images."""
    names = [name for name in ARMS if any((each["arm"], each["what"]) == (name, "samples") for each in records)]
    mine = {name: [each for each in records if (each["arm"], each["what"]) == (name, "samples")] for name in names}
    distance, nearest = "frechet_distance", "distance_to_nearest"
    rows = [[ARMS[name], *(cell([r[key] for r in mine[name]], 2) for key in (distance, nearest))] for name in names]
    reference = mine[names[0]][0][f"{distance}_of_training"]
    rows.append(["as many training images", f"{reference:.2f}", "–"])
    return table(["images of", "Fréchet distance to test images", "distance to the nearest training image"], rows)


def curve(place: Path) -> list[tuple[float, float]]:
    """(CPU seconds, validation accuracy) of a training, look by look."""
    with open(place / "metrics.csv", newline="", encoding="utf-8") as lines:
        return [(float(row["seconds"]), float(row["accuracy"])) for row in csv.DictReader(lines)]


def reached(points: Sequence[tuple[float, float]], target: float) -> float:
    """When a curve first reaches an accuracy, on the straight line between looks; from 0 at its beginning."""
    before = (0.0, 0.0)
    for now in points:
        if now[1] >= target:
            share = (target - before[1]) / (now[1] - before[1])
            return before[0] + share * (now[0] - before[0])
        before = now
    raise ValueError(f"the curve ends at {before[1]}, below {target}")


def times(run: Path, seeds: Sequence[int]) -> str:
    """What JEM++ needs to be as accurate as JEM, seed by seed; nothing where a study has not both."""
    folders = {(arm, seed): place for arm, seed, place in places(run, seeds)}
    rows = []
    for seed in seeds:
        pair = [folders.get((arm, seed)) for arm in ("jem", "jem-plus-plus")]
        if any(place is None for place in pair):
            return ""
        slow, fast = (curve(place) for place in pair if place is not None)
        target = min(max(accuracy for _, accuracy in points) for points in (slow, fast))
        a, b = reached(slow, target), reached(fast, target)
        rows.append([str(seed), f"{target:.3f}", f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}"])
    return table(["seed", "validation accuracy", "JEM, CPU s", "JEM++, CPU s", "JEM / JEM++"], rows)


def arms_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The plain network and the energy models, without controls."""
    found = {arm["name"]: arm for arm in results["arms"]}
    return {name: found[name] for name in ARMS if name in found}


def page(run: Path, records: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> str:
    """All tables and pictures, as a page of the ledger."""
    settings = read_yaml(run / "config.yaml")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    data, seeds = settings["data"], settings["seeds"]
    pictures = [
        f"![Images drawn from {words}](../images/samples-{run.name}-{arm}.png)\n\n*{words}, seed {seeds[0]}.*"
        for arm, words in ARMS.items()
        if options.pictures and (options.pictures / f"samples-{run.name}-{arm}.png").is_file()
    ]
    time = times(run, seeds)
    blocks = [
        f"# Energy models on {data}: beside accuracy",
        f"The networks of [{run.name}]({run.name}.md), {settings['limit']:,} images, {len(seeds)} seeds. Figures are\n"
        "means, with the lowest and highest of the seeds. The verdicts on accuracy and calibration are on that page.",
        f"`python docs/energy_measures.py {run} {options.features} --json {options.json} --page {options.page}`",
        "## Calibration",
        "*Scaled*: with a temperature fitted on validation images.",
        calibration(results),
        "## Strange images",
        "AUROC: how often a score calls a test image more familiar than a strange one.",
        strangers(results),
        "## Attacks",
        f"The share of {ATTACKED} test images that are right before and after AutoAttack, as `postgrad score`\n"
        "makes it, by the largest change of a pixel (0 to 1).",
        attacks(records),
        "## Drawn images",
        f"{DRAWN:,} images that continue the chains of the training; of the plain network, chains from noise. The\n"
        "Fréchet distance is between penultimate features of a seed-cnn of its own, and compares with no other.",
        samples(records),
        *pictures,
        *(["## Time to equal accuracy", "To the highest accuracy that both reach.", time] if time else []),
        f"Raw: [{options.json.name}](raw/{options.json.name})." if options.json else "",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished study of recipes/jem/")
    parser.add_argument("features", type=Path, help="a run of postgrad train on the same data")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", type=Path, help="read where it exists, and written on the way")
    parser.add_argument("--page", type=Path, help="the page of the ledger, written at the end")
    parser.add_argument("--pictures", type=Path, help="a folder for samples of the first seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    if options.json and options.json.exists():
        records = json.loads(options.json.read_text(encoding="utf-8"))
    try:
        measure(options.run, options.features, options, records)
    except UserError as error:
        print(error)
        return 2
    text = page(options.run, records, options)
    print(text)
    if options.page:
        write_atomic(options.page, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
