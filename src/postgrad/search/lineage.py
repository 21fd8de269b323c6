"""The lineage of a search: every network with its parent, what was refused of it, and when it was finished."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from postgrad.files import write_atomic
from postgrad.reports.schema import LineageNode
from postgrad.search.config import SearchConfig
from postgrad.search.individual import Individual
from postgrad.search.population import Population

FILE = "lineage.json"
_OF_REFUSAL = ("number", "parent", "mutation", "reason")


def winner_of(finished: Sequence[Individual]) -> Individual:
    """The most accurate on validation images, of equal ones the one that was finished first."""
    return max(finished, key=lambda each: each.accuracy)


def lineage(
    finished: Sequence[Individual], events: Iterable[Mapping[str, Any]], config: SearchConfig
) -> list[LineageNode]:
    """The networks as results.json has them, in the order in which they were finished.

    >>> lineage(board.finished, read_events(directory), config)[0].mutation
    'base'

    `events` are those of the search's log: when each was finished, and what was refused.
    """
    events = list(events)
    at = {event["name"]: event["elapsed"] for event in events if event["event"] == "individual"}
    refused: dict[str, Counter[str]] = {}
    for event in refusals(events):
        if event["parent"] is not None:
            refused.setdefault(event["parent"], Counter())[event["mutation"]] += 1
    population = Population(config.population, config.tournament, config.objective)
    winner, nodes = winner_of(finished), []
    for each in finished:
        population.add(each)
        nodes.append(
            LineageNode(
                name=each.name,
                number=each.number,
                parent=each.parent,
                mutation=each.mutation or "base",
                operations=list(each.operations),
                accuracy=each.accuracy,
                parameters=each.parameters,
                multiply_adds=each.multiply_adds,
                lineage_multiply_adds=each.lineage_multiply_adds,
                latency_ms=each.latency_ms,
                max_error=each.max_error,
                exact=each.exact,
                seconds=at[each.name],
                population_accuracy=fmean(member.accuracy for member in population.members),
                refused=dict(refused.get(each.name, {})),
                winner=each is winner,
            )
        )
    return nodes


def refusals(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was found infeasible before any training: number, parent, mutation, reason; None where there was none."""
    return [{name: event.get(name) for name in _OF_REFUSAL} for event in events if event["event"] == "refused"]


def write_lineage(
    directory: Path, nodes: Sequence[LineageNode], finished: Sequence[Individual], events: Iterable[Mapping[str, Any]]
) -> None:
    """lineage.json: the winner's name, all networks (with genes and prices), and all refusals with their reasons."""
    more = {each.name: asdict(each) for each in finished}
    content = {
        "winner": next(node.name for node in nodes if node.winner),
        "networks": [{**more[node.name], **node.model_dump()} for node in nodes],
        "refused": refusals(events),
    }
    write_atomic(directory / FILE, json.dumps(content, indent=1))
