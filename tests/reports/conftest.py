"""A run directory with made-up classifiers on scikit-learn's digits, for the report's tests."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CHROMIUM, FLAGS
from made_up_study import write_study
from scipy.special import softmax
from sklearn.datasets import load_digits

from postgrad.evaluation.scorecard import across_seeds, scorecard
from postgrad.evaluation.statistics import verdicts
from postgrad.reports.schema import Results, write_results

ARMS: dict[str, tuple[str, float, float, float]] = {
    # name: kind, mean margin of the true class, confidence factor, CPU seconds
    "base": ("base", 2.6, 1.7, 3.1),
    "gradnet": ("method", 3.0, 1.5, 24.8),
    "control-finetune": ("control", 3.5, 1.4, 24.6),
    "control-features": ("control", 2.65, 1.8, 24.9),
    "control-more-data": ("control", 3.1, 1.2, 27.8),
    "control-same-price": ("control", 2.8, 0.8, 0.0),
}
N_TEST = 360
MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 13 arms and 5 seeds with everything that a report can show; a test that changes it copies it first."""
    return write_study(tmp_path_factory.mktemp("studies") / "study", n_test=300, steps=60)


def _predictions(margin: float, confidence: float, labels: np.ndarray, seed: int) -> np.ndarray:
    difficulty = np.random.default_rng(7).normal(size=(len(labels), 10))
    z = 0.95 * difficulty + 0.3 * np.random.default_rng(seed).normal(size=(len(labels), 10))
    z[np.arange(len(labels)), labels] += margin * (1 + 0.04 * (labels - 4.5) * (margin == 3.0))
    return softmax(confidence * z, axis=1).astype(np.float32)


def _write_curve(path: Path, final: float, seconds: float) -> None:
    generator = np.random.default_rng(0)
    lines = ["step,epoch,loss,lr,accuracy,seconds"]
    for i in range(1, 401):
        loss = 2.3 * np.exp(-i / 90) + 0.15 + 0.05 * generator.normal()
        accuracy = f"{final - 0.6 * np.exp(-i / 70):.4f}" if i % 20 == 0 else ""
        lines.append(f"{10 * i},{i / 20:.2f},{loss:.4f},0.01,{accuracy},{seconds * i / 400:.3f}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run directory: `make_run(seeds=1, files=True, **fields of results.json)`."""

    def make(*, seeds: int = 1, files: bool = True, arms: dict[str, Any] = ARMS, **extra: Any) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        digits = load_digits()
        images = (digits.images[:N_TEST, None] * 255 / 16).round().astype(np.uint8)
        labels = digits.target[:N_TEST].astype(np.int64)
        p = {
            name: [_predictions(margin, sharp, labels, 100 * i + seed) for seed in range(seeds)]
            for i, (name, (_, margin, sharp, _)) in enumerate(arms.items())
        }
        correct = {name: [x.argmax(1) == labels for x in by_seed] for name, by_seed in p.items()}
        others = [name for name, arm in arms.items() if arm[0] != "method"]
        comparisons = {name: others for name, arm in arms.items() if arm[0] == "method"}
        document = {
            "command": "postgrad improve --out runs/demo",
            "data": {
                "name": "digits",
                "n_train": 647,
                "n_validation": 72,
                "n_test": N_TEST,
                "fingerprint": "d1c7a5e09b3f4482",
                "class_names": [str(i) for i in range(10)],
                "shape": [1, 8, 8],
                "preprocessing": "pixels / 255, standardised per image",
                "notes": ["a stratified fifth of the images is the test set"],
            },
            "seeds": list(range(seeds)),
            "arms": [_arm(name, arm, [_card(x.tobytes()) for x in p[name]]) for name, arm in arms.items()],
            "verdicts": verdicts(correct, comparisons),
            "recommended": "control-finetune",
            "started": "2026-11-21T09:30:00",
            "seconds": 131.4,
            **extra,
        }
        write_results(Results.model_validate(document), run / "results.json")
        if files:
            _write_files(run, {name: x[0] for name, x in p.items()}, images, labels, arms)
        return run

    return make


@functools.cache
def _card(probabilities: bytes) -> dict[str, Any]:
    """The scorecard of these predictions of the digits; its bootstrap takes longer than making a page."""
    p = np.frombuffer(probabilities, np.float32).reshape(N_TEST, 10)
    return scorecard(p, load_digits().target[:N_TEST])


def _arm(name: str, arm: tuple[str, float, float, float], cards: list[dict[str, Any]]) -> dict[str, Any]:
    kind, _, _, cpu = arm
    passes = {"method": 11, "base": 1}.get(kind, 11 if name == "control-same-price" else 1)
    return {
        "name": name,
        "kind": kind,
        "method": name if kind == "method" else None,
        "control_for": ["gradnet"] if kind == "control" else [],
        "metrics": across_seeds(cards),
        "cost": {
            "train_cpu_seconds": cpu,
            "total_cpu_seconds": cpu + (3.1 if name != "base" else 0),
            "train_seconds": cpu * 0.55,
            "peak_memory_mb": 211.5 if kind == "method" else 64.2,
            "parameters": 1_284_330 if kind == "method" else 114_314,
            "inference_ms_per_image": 0.021 * passes,
            "inference_passes": passes,
        },
    }


def _write_files(
    run: Path, p: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray, arms: dict[str, Any]
) -> None:
    for name, probabilities in p.items():
        (run / name).mkdir()
        np.savez_compressed(run / name / "test_predictions.npz", probabilities=probabilities, labels=labels)
        if arms[name][3]:
            _write_curve(run / name / "metrics.csv", (probabilities.argmax(1) == labels).mean(), arms[name][3])
    np.savez_compressed(run / "examples.npz", images=images)
    blocks = [
        {"name": "c0.weight", "shape": [64, 1, 5, 5], "inputs": 1600, "hidden": 5},
        {"name": "c1.weight", "shape": [64, 64, 5, 5], "inputs": 102_400, "hidden": 100},
        {"name": "l1.weight", "shape": [10, 256], "inputs": 2560, "hidden": 25},
    ]
    (run / "gradnet_blocks.json").write_text(json.dumps({"blocks": blocks, "outputs": 10}))
    environment = {
        "postgrad": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0",
        "hardware": {"cpu": "x86_64", "cores": 2},
    }
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "config.yaml").write_text("model: seed-cnn\ndata: digits\nmethods:\n- name: gradnet\nseeds: [0]\n")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; on Debian or Ubuntu: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """With none of the pages of other tests."""
    yield chromium
    for context in chromium.contexts:
        context.close()
