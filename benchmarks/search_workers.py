"""How many more individuals a minute a search makes on two nodes than on one: Ray, one thread to a worker.

    python benchmarks/search_workers.py [--data digits] [--children N] [--epochs N] [--repeat N] [--json FILE]

A Ray cluster of one node with one processor, then of two, on this machine; each search has one worker on each node and
the same settings. Every child is its parent with one dropout more, so that all cost the same and the rate does not hang
on what was drawn. A rate is that from when each worker has made its first child up to the end of the last; the start of
workers and the base come before. Repetitions are interleaved, and a figure is their median. It wants two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from numpy.random import Generator

from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.growth.words import Operation
from postgrad.search.board import SearchBoard
from postgrad.search.config import SearchConfig
from postgrad.search.context import Context
from postgrad.search.events import Log, read_events, recorded
from postgrad.search.mutations import mutation
from postgrad.search.parent import Parent
from postgrad.search.search import Crew
from postgrad.studies.environment import environment

NETWORK = f"{Path(__file__).resolve().parents[1] / 'recipes' / 'networks.py'}:small3"
NODES = (1, 2)


@mutation("one more dropout")
def one_more_dropout(parent: Parent, draw: Generator) -> list[Operation]:
    """A child that costs what its parent does."""
    return [Operation("insert_dropout", {"after": parent.sites[0].name, "p": 0.01})]


def rate(config: SearchConfig, nodes: int) -> float:
    """Children a minute of a search on so many nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1)
        with tempfile.TemporaryDirectory() as folder:
            context = replace(Context.of(config, Path(folder)), directory=Path(folder))
            config.save(context.directory / "config.yaml")
            log = Log(context.directory)
            with recorded(context.directory, 0) as record:
                Crew(context, nodes, cluster.address).work(SearchBoard(config, context.directory, log, record), log)
            return _rate_of(read_events(context.directory))
    finally:
        cluster.shutdown()


def _rate_of(events: list[dict[str, Any]]) -> float:
    """From when each worker has made its first child, in which it still imports and compiles what it needs."""
    ends = [event for event in events if event["event"] == "trial ends" and event["number"] > 0]
    first = {event["slot"]: event["elapsed"] for event in reversed(ends)}
    warm = max(first.values())
    later = [event["elapsed"] for event in ends if event["elapsed"] > warm]
    return 60 * len(later) / (later[-1] - warm)


def measured(config: SearchConfig, repeat: int) -> dict[str, Any]:
    """The rates on one node and on two, and their ratio."""
    rates: dict[int, list[float]] = {nodes: [] for nodes in NODES}
    for _ in range(repeat):
        for nodes in NODES:
            rates[nodes].append(rate(config, nodes))
    medians = {nodes: statistics.median(rates[nodes]) for nodes in NODES}
    return {
        "individuals_per_minute": {str(nodes): [round(each, 2) for each in rates[nodes]] for nodes in NODES},
        "ratio": round(medians[2] / medians[1], 3),
    }


def table(figures: dict[str, Any]) -> str:
    lines = ["nodes  individuals a minute (median, each)"]
    for nodes, rates in figures["individuals_per_minute"].items():
        lines.append(f"{nodes:>5}  {statistics.median(rates):8.1f}   {', '.join(f'{each:.1f}' for each in rates)}")
    return "\n".join([*lines, f"ratio  {figures['ratio']:8.2f}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--children", type=int, default=16, help="of each search")
    parser.add_argument("--epochs", type=float, default=20.0, help="of each child")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = SearchConfig(
        model=NETWORK,
        data=arguments.data,
        individuals=arguments.children,
        base_epochs=1,
        training={"epochs": arguments.epochs},
        preset="uniform",
        mutations=("one more dropout",),
        mutation_files=(Path(__file__).resolve(),),
        population=1,
        tournament=1,
        genes=False,
        threads=1,
    )
    try:
        figures = measured(config, arguments.repeat)
    except UserError as error:
        print(f"search_workers: {error}", file=sys.stderr)
        return 2
    print(table(figures))
    if arguments.json:
        write_atomic(arguments.json, json.dumps({**figures, "environment": environment()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
