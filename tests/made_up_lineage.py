"""A made-up mutation search for the report's tests: networks in tournaments of two, the oldest leaving."""

from __future__ import annotations

from typing import Any

import numpy as np

MUTATIONS = ("deeper", "wider", "skip", "group", "pool")


def made_up_lineage(networks: int = 40, *, population: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """`networks` children of one base as results.json has them, the most accurate of them the winner."""
    draw = np.random.default_rng(seed)
    nodes = [_node(0, None, "base", [], 0.42, 24_000, 0.0)]
    alive = [nodes[0]]
    for number in range(1, networks + 1):
        if draw.random() < 0.15:  # the proposal was refused, so its number stays free
            parent, mutation = alive[draw.integers(len(alive))], str(draw.choice(MUTATIONS))
            parent["refused"][mutation] = parent["refused"].get(mutation, 0) + 1
            continue
        parent = max((alive[i] for i in draw.integers(len(alive), size=2)), key=lambda node: node["accuracy"])
        mutation = str(draw.choice(MUTATIONS))
        node = _node(
            number,
            parent["name"],
            mutation,
            [f"widen:layer=conv{number % 3},to={40 + number}"],
            float(np.clip(parent["accuracy"] + draw.normal(0.02, 0.03), 0.1, 0.9)),
            int(parent["parameters"] * draw.uniform(1, 1.3)),
            parent["lineage_multiply_adds"],
        )
        node["seconds"] = 12.0 + 11.3 * number + float(draw.uniform(-5, 5))
        alive.append(node)
        if len(alive) > population:
            oldest = next(each for each in alive if each is not max(alive, key=lambda node: node["accuracy"]))
            alive.remove(oldest)
        node["population_accuracy"] = float(np.mean([each["accuracy"] for each in alive]))
        nodes.append(node)
    max(nodes, key=lambda node: node["accuracy"])["winner"] = True
    return nodes


def _node(
    number: int,
    parent: str | None,
    mutation: str,
    operations: list[str],
    accuracy: float,
    parameters: int,
    ancestors: float,
) -> dict[str, Any]:
    return {
        "name": f"{number:012x}",
        "number": number,
        "parent": parent,
        "mutation": mutation,
        "operations": operations,
        "accuracy": accuracy,
        "parameters": parameters,
        "multiply_adds": 30 * parameters,
        "lineage_multiply_adds": int(ancestors + 90 * parameters * 1000),
        "latency_ms": parameters / 1e5,
        "max_error": None if parent is None else 3e-15,
        "exact": mutation != "pool",
        "seconds": 10.0,
        "population_accuracy": accuracy,
        "refused": {},
        "winner": False,
    }
