"""How fast GradNet's work on per-sample gradients is, beside a loop, `torch.func`, BackPACK and Opacus in the same run.

    python benchmarks/gradients.py [--json FILE] [--plot FILE] [--page FILE] [--quick] [--threads N] [--device cuda]
    python benchmarks/gradients.py --read FILE [--plot FILE] [--page FILE]

The work: gradients of a seed-cnn's weights on CIFAR-10 images, selection of the top 15 % of each gradient and layer,
scale+power, and GradNet 5+100+25; under all ten labels (inference), or under one random label with GradNet's backward
pass and update (training). docs/benchmarks.md says what is compared and where the floor comes from.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gradient_benchmark import growth, memory, pages, sparsity
from gradient_benchmark.floor import Floor, MachineRate, layers_of
from gradient_benchmark.peers import quieten, require_peers
from gradient_benchmark.setting import CLASSES, HIDDEN, Setting, make_setting
from gradient_benchmark.timing import Timing, in_turn
from gradient_benchmark.works import IMPLEMENTATIONS, WORKS, Bench, Case, Choices, check, choose

import postgrad.progress
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.studies.environment import environment


@dataclass(frozen=True)
class Scale:
    """How much is measured: `probe` images choose the peers' ways and warm up, `memory` are kinds of work."""

    batches: tuple[int, ...]
    base_steps: int
    repeats: int
    repeats_of_long_work: int
    probe: int
    training_gradients: int
    memory: tuple[str, ...]
    growth: Sequence[growth.Point]


FULL = Scale(
    batches=(250, 25),
    base_steps=300,
    repeats=5,
    repeats_of_long_work=3,
    probe=25,
    training_gradients=1500,
    memory=("all_labels", "random_label_training", "bare"),
    growth=growth.POINTS,
)
QUICK = Scale(
    batches=(25,),
    base_steps=20,
    repeats=2,
    repeats_of_long_work=2,
    probe=5,
    training_gradients=100,
    memory=("all_labels", "random_label_training"),
    growth=growth.QUICK_POINTS,
)
_LONG = 1000
"""Gradients from which a piece of work is long."""


def measure(scale: Scale, *, device: str) -> dict[str, Any]:
    """Everything that goes into the JSON file."""
    say("training the base network")
    setting = make_setting(device=device, steps=scale.base_steps, images=max(scale.batches))
    layers = layers_of(setting.model, setting.batch(1).inputs)
    floor = Floor.of(layers, HIDDEN, CLASSES)
    choices = choose(setting, scale.probe)
    bench = Bench(setting, choices, training_gradients=scale.training_gradients)
    say("checking that all implementations do the same")
    check(bench)
    shares = sparsity.measure(setting, layers, setting.batch(max(scale.batches)))
    rate = MachineRate(setting.device)
    timings = time_all(bench, scale, rate)
    peaks = measure_memory(setting, [case for case in timings if case.work in scale.memory], choices)
    return {
        "machine_gmacs": rate.best / 1e9,
        "machine_gmacs_shape": rate.shape,
        "rows": make_rows(timings, peaks, floor, rate.best),
        "growth": measure_growth(scale, choices, setting.device),
        "floor": floor_figures(floor, shares),
        "choices": choices.as_dict(),
        "images": setting.origin,
        "base_steps": scale.base_steps,
        "device": device,
        "memory": memory.method(setting.device),
        "environment": environment() | {"peers": {name: metadata.version(name) for name in PEER_PACKAGES}},
    }


PEER_PACKAGES = ("backpack-for-pytorch", "opacus")


def time_all(bench: Bench, scale: Scale, rate: MachineRate) -> dict[Case, Timing]:
    """Each kind of work and batch by all implementations in turn; the machine's rate is measured again before each."""
    timings: dict[Case, Timing] = {}
    for work, labels in WORKS:
        for batch in scale.batches:
            rate.measure()
            say(f"timing {work}, {labels} label{'s' * (labels == 'all')}, batch {batch}")
            cases = {name: Case(work, labels, name, batch) for name in IMPLEMENTATIONS}
            for name in IMPLEMENTATIONS:
                bench.seconds(Case(work, labels, name, min(batch, scale.probe)))  # first allocations, compilation
            repeats = scale.repeats_of_long_work if cases["postgrad"].gradients >= _LONG else scale.repeats
            runs = {name: lambda case=case: bench.seconds(case) for name, case in cases.items()}
            timings |= {cases[name]: timing for name, timing in in_turn(runs, repeats).items()}
    return timings


def measure_memory(setting: Setting, cases: Sequence[Case], choices: Choices) -> dict[Case, float]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        setting.save(Path(folder))
        measured = memory.peaks(
            Path(folder), cases, choices, device=str(setting.device), threads=torch.get_num_threads()
        )
        for number, (case, peak) in enumerate(measured, 1):
            found[case] = peak
            say(f"memory {number}/{len(cases)}: {case.work}, {case.implementation}, batch {case.batch}: {peak:.0f} MB")
    return found


def measure_growth(scale: Scale, choices: Choices, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for point, found in zip(
        scale.growth,
        growth.measure(scale.growth, choices, device=device, repeats=scale.repeats_of_long_work),
        strict=True,
    ):
        say(f"growth with {point.axis}: {point.value}")
        rows += found
    return rows


def make_rows(
    timings: dict[Case, Timing], peaks: dict[Case, float], floor: Floor, machine_rate: float
) -> list[dict[str, Any]]:
    """A row for each case, with its ratios to the others."""
    speeds = {case: case.gradients / timing.seconds for case, timing in timings.items()}

    def best_peer(case: Case, *, any_batch: bool) -> float:
        return max(
            speed
            for other, speed in speeds.items()
            if other.implementation != "postgrad"
            and (other.work, other.labels) == (case.work, case.labels)
            and (any_batch or other.batch == case.batch)
        )

    rows = []
    for case, timing in timings.items():
        bare = Case("bare", case.labels, case.implementation, case.batch)
        vmap = Case(case.work, case.labels, "vmap", case.batch)
        rows.append(
            {
                "work": case.work,
                "labels": case.labels,
                "implementation": case.implementation,
                "batch": case.batch,
                "gradients_per_second": speeds[case],
                "spread": timing.spread,
                "bare_gradients_per_second": speeds[bare],
                "share_of_floor": speeds[case] * floor.multiply_adds(case.work, case.labels) / machine_rate,
                "ratio_to_best_peer": speeds[case] / best_peer(case, any_batch=False),
                "ratio_to_best_peer_any_batch": speeds[case] / best_peer(case, any_batch=True),
                "peak_memory_mb": peaks.get(case),
                "memory_share_of_vmap": peaks[case] / peaks[vmap] if case in peaks else None,
            }
        )
    return rows


def floor_figures(floor: Floor, shares: sparsity.Shares) -> dict[str, Any]:
    """Multiply-adds for one gradient of each kind of work, dense and without zeros, and how they come about."""
    return {
        "multiply_adds": [
            {
                "work": work,
                "labels": labels,
                "dense": floor.multiply_adds(work, labels),
                "non_zero": shares.multiply_adds(floor, HIDDEN, work, labels),
            }
            for work, labels in WORKS
        ],
        "non_zero_delta": dict(zip([layer.name for layer in shares.layers], shares.delta, strict=True)),
        "non_zero_selected": dict(zip([layer.name for layer in shares.layers], shares.selected, strict=True)),
        "derivation": floor.derivation(),
        "zeros": sparsity.describe(shares, floor, HIDDEN),
    }


def show(figures: dict[str, Any]) -> None:
    print(figures["floor"]["derivation"])
    print(figures["floor"]["zeros"])
    pages.print_table(figures)
    for line in pages.summary(figures):
        print(line)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; make it with --json") from error


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the growth there, as PNG")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table between that page's markers")
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="measure nothing: take the figures of an earlier --json"
    )
    parser.add_argument("--quick", action="store_true", help="batch 25 only and few repetitions, in less than a minute")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for everybody; default: torch's own number")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is measured."""
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads: expected 1 or more, got {options.threads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; leave it out")
    require_peers()
    quieten()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # Progress bars would be drawn within what is timed.
    postgrad.progress.quiet = True


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.read is not None:
            figures = read(options.read)
        else:
            prepare(options)
            figures = measure(QUICK if options.quick else FULL, device=options.device)
        show(figures)
        if options.json is not None:
            write_atomic(options.json, json.dumps(figures, indent=1) + "\n")
        if options.plot is not None:
            pages.write_plot(figures, options.plot)
        if options.page is not None:
            pages.write_page(figures, options.page, options.plot)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
