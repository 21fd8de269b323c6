"""The page of attacks on Mapper: its figures are those of the records, and its verdict follows from them."""

from __future__ import annotations

from typing import Any

import pytest


def record(arm: str, attack: str, source: str | None, robust: float, epsilon: float = 0.1) -> dict[str, Any]:
    metrics = {"accuracy": {"mean": 0.9}, "robust_accuracy": {"mean": robust, "ci95": [robust - 0.1, robust + 0.1]}}
    return {"arm": arm, "attack": attack, "source": source, "epsilon": epsilon, "n": 50, "metrics": metrics}


def records(left_by_square: float) -> list[dict[str, Any]]:
    arms = {"base": 0.7, "mapper": left_by_square, "knn": 0.6, "pca-mlp": 0.5}
    made = [record(arm, "square", None, robust) for arm, robust in arms.items()]
    return [*made, record("mapper", "autoattack", "stand-in", 0.66)]


def test_the_worst_attack_counts_and_the_rest_is_not_run(script: Any) -> None:
    attacks = script("mapper_attacks")
    assert attacks.worst(records(0.8), "mapper", 0.1) == 0.66
    lines = attacks.table(records(0.25), 0.1).splitlines()
    assert lines[0] == "|  | convolutional network | Mapper | nearest neighbours | PCA and MLP |"
    assert lines[2] == "| none | 0.90 | 0.90 | 0.90 | 0.90 |"
    assert lines[3].startswith("| Square, without gradients | 0.70 (0.60 to 0.80) | 0.25 (0.15 to 0.35) |")
    assert lines[4] == "| HopSkipJump, without gradients | – | – | – | – |"


@pytest.mark.parametrize(("left", "said"), [(0.25, "So it is not immune."), (0.8, "more than half of its")])
def test_the_verdict_follows(script: Any, left: float, said: str) -> None:
    text = script("mapper_attacks").page(records(left))
    assert said in text
    assert f"- 0.1: Mapper {min(left, 0.66):.2f}, the convolutional network 0.70" in text
