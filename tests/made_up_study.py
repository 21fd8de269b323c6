"""A made-up study for the report's tests: many arms and seeds, failures, other data, corruptions and attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from postgrad.evaluation import metrics
from postgrad.evaluation.statistics import t_interval
from postgrad.reports.schema import Results, write_results

CONTROLS = ("finetune", "features", "more-data")
SCORES = ("max_softmax", "max_logit", "energy")
CORRUPTIONS = ("gaussian-noise", "gaussian-blur", "salt-and-pepper", "contrast", "brightness", "translation", "jpeg")
SETS = ("kmnist", "noise")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_study(
    run: Path, *, methods: int = 3, seeds: int = 5, n_test: int = 1000, side: int = 32, steps: int = 300
) -> Path:
    """A study of `1 + 4 × methods` arms: a base, and methods with three controls each; the last control fails once."""
    run.mkdir()
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, n_test)
    arms = _arms(methods)
    failed = (arms[-1]["name"], seeds - 1)
    curves = ["seed,arm,step,epoch,loss,lr,accuracy,nll,seconds"]
    values: dict[str, list[float]] = {}
    for number, arm in enumerate(arms):
        cards, margin = [], 2.2 + 0.25 * (arm["kind"] == "method") + 0.04 * number
        for seed in range(seeds):
            if (arm["name"], seed) == failed:
                continue
            p = _predictions(labels, margin, seed)
            where = (run if seed == 0 else run / f"seed-{seed}") / arm["name"]
            where.mkdir(parents=True)
            np.savez(where / "test_predictions.npz", probabilities=p, labels=labels)
            plain = metrics.summarise(metrics.outcomes(p, labels))
            cards.append(plain | {f"{name}_scaled": plain[name] for name in ("nll", "ece", "ece_equal_mass", "brier")})
            curves += _curve(arm["name"], seed, cards[-1]["accuracy"], steps, number)
        values[arm["name"]] = [card["accuracy"] for card in cards]
        arm |= _scores(cards, number)
        if number % 4 < 2:
            scores = {
                f"{name}/{score}": generator.normal(3.0 if name == "inside" else 1.5, 1.0, 400).astype(np.float32)
                for name in ("inside", *SETS)
                for score in SCORES
            }
            np.savez(run / arm["name"] / "outside_scores.npz", **scores)
    (run / "metrics.csv").write_text("\n".join(curves) + "\n")
    np.savez(run / "examples.npz", images=generator.integers(0, 256, (min(n_test, 2000), 3, side, side), np.uint8))
    (run / "config.yaml").write_text(f"data: made-up\nseeds: {seeds}\n")
    document = {
        "command": "postgrad study recipes/made-up.yaml",
        "data": {
            "name": "made-up",
            "n_train": 5000,
            "n_validation": 500,
            "n_test": n_test,
            "fingerprint": "0123456789abcdef",
            "class_names": CLASSES,
        },
        "seeds": list(range(seeds)),
        "arms": arms,
        "verdicts": _verdicts(arms, values, seeds),
        "recommended": "base",
        "warnings": ["left out: control-same-price"],
        "notes": ["made up, to look at"],
        "failures": [{"arm": failed[0], "seed": failed[1], "reason": "the loss became infinite at step 120"}],
    }
    write_results(Results.model_validate(document), run / "results.json")
    return run


def _arms(methods: int) -> list[dict[str, Any]]:
    arms: list[dict[str, Any]] = [{"name": "base", "kind": "base"}]
    for i in range(methods):
        name = "gradnet" if i == 0 else f"gradnet-variant-{i}"
        arms.append({"name": name, "kind": "method", "method": "gradnet", "description": f"Variant {i}."})
        arms += [
            {
                "name": f"control-{control}-{name}",
                "kind": "control",
                "control_for": [name],
                "title": f"control-{control}-{name}",
            }
            for control in CONTROLS
        ]
    return arms


def _predictions(labels: np.ndarray, margin: float, seed: int) -> np.ndarray:
    z = 0.95 * np.random.default_rng(7).normal(size=(len(labels), 10))
    z += 0.4 * np.random.default_rng([seed, int(1000 * margin)]).normal(size=z.shape)
    z[np.arange(len(labels)), labels] += margin
    return softmax(1.6 * z, axis=1).astype(np.float32)


def _curve(arm: str, seed: int, final: float, steps: int, number: int) -> list[str]:
    noise = np.random.default_rng([seed, number]).normal(size=steps + 1)
    lines = []
    for i in range(1, steps + 1):
        loss = 2.3 * np.exp(-i / 70) + 0.12 + 0.03 * noise[i] + 0.01 * number
        accuracy = f"{final - 0.6 * np.exp(-i / 50) + 0.004 * noise[i]:.4f}" if i % 10 == 0 else ""
        lines.append(f"{seed},{arm},{10 * i},{i / 20},{loss:.4f},0.01,{accuracy},,{(0.05 + 0.01 * number) * i:.3f}")
    return lines


def _metric(values: list[float]) -> dict[str, Any]:
    interval = t_interval(values)
    return {
        "mean": float(np.mean(values)),
        "ci95": interval,
        "ci_over": "seeds",
        "n_seeds": len(values),
        "values": values,
    }


def _scores(cards: list[dict[str, float]], number: int) -> dict[str, Any]:
    """Metrics, cost and everything else that an arm was put to."""
    accuracy = [card["accuracy"] for card in cards]
    worse = [
        {
            "corruption": name,
            "severity": severity,
            "metrics": {"accuracy": _metric([a * (1 - 0.03 * severity * (i % 3 + 1)) for a in accuracy])},
        }
        for i, name in enumerate(CORRUPTIONS)
        for severity in range(1, 6)
    ]
    outside = [
        {
            "data": name,
            "score": score,
            "matching": "resized so that the shorter side fits, then cropped at the centre",
            "n": 400,
            "metrics": {
                "auroc": _metric([0.8 + 0.01 * i + 0.002 * k for k in range(len(cards))]),
                "aupr_in": _metric([0.82] * len(cards)),
                "aupr_out": _metric([0.79] * len(cards)),
                "fpr95": _metric([0.4 - 0.02 * i] * len(cards)),
            },
        }
        for name in SETS
        for i, score in enumerate(SCORES)
    ]
    attack = {"accuracy": _metric(accuracy), "robust_accuracy": _metric([0.3 * a for a in accuracy])}
    return {
        "metrics": {name: _metric([card[name] for card in cards]) for name in cards[0]},
        "cost": {
            "train_cpu_seconds": 3.0 + 2.5 * number,
            "total_cpu_seconds": 6.0 + 2.5 * number,
            "train_seconds": 2.0 + number,
            "parameters": 100_000 * (1 + number),
            "inference_ms_per_image": 0.02 * (1 + number % 5),
            "inference_passes": 1 + 10 * (number % 4 == 1),
            "multiply_adds": 3.1e6 * (1 + number % 7),
            "latency_ms_1": 1.2 + 0.1 * number,
            "file_bytes": 400_000 * (1 + number),
        },
        "temperature": [1.5 + 0.02 * k for k in range(len(cards))],
        "outside": outside,
        "corruptions": worse,
        "attacks": [{"attack": "autoattack", "norm": "linf", "epsilon": 8 / 255, "n": 100, "metrics": attack}],
    }


def _verdicts(arms: list[dict[str, Any]], values: dict[str, list[float]], seeds: int) -> list[dict[str, Any]]:
    result = []
    for method in (arm["name"] for arm in arms if arm["kind"] == "method"):
        for control in ["base", *(arm["name"] for arm in arms if method in arm.get("control_for", []))]:
            n = min(len(values[method]), len(values[control]))
            difference = np.subtract(values[method][:n], values[control][:n])
            enough = n >= 5
            word = ("better" if difference.mean() > 0 else "worse") if enough else "too few seeds"
            result.append(
                {
                    "method": method,
                    "control": control,
                    "metric": "accuracy",
                    "difference": float(difference.mean()),
                    "ci95": t_interval(difference) if n > 1 else None,
                    "p": 0.003 if enough else None,
                    "test": "paired-t",
                    "scope": "method",
                    "verdict": word,
                    "n_seeds": n,
                    "detectable": 0.012,
                    "wilcoxon_p": 0.0625,
                    "mcnemar_p": [0.01 * (k + 1) for k in range(n)],
                    "bootstrap_ci95": (float(difference.mean()) - 0.01, float(difference.mean()) + 0.01),
                    "notes": [] if enough else [f"{seeds - n} of {seeds} seeds failed"],
                }
            )
            result.append(result[-1] | {"metric": "nll", "mcnemar_p": None, "bootstrap_ci95": None, "notes": []})
    return result
