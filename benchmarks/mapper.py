"""How fast Mapper's nodes are found, and new points mapped to them, beside KeplerMapper and giotto-tda in the same run.

    python benchmarks/mapper.py [--images 3000] [--new 300] [--repeats 3] [--giotto PYTHON] [--sizes N N] [--json FILE]

All get the same images (MNIST where it is there, else digits), the same 20 principal components and the same 10
intervals with overlap .33. KeplerMapper clusters by scipy's single linkage, cut at the first empty of 10 bins; it can
not map new points, so scikit-learn's nearest neighbours of each interval do that for it. giotto-tda pins an old
numpy and scikit-learn and needs an environment of its own, whose interpreter is given by --giotto:

    python -m venv giotto && giotto/bin/pip install giotto-tda

It clusters by its FirstSimpleGap, beside ours with cut="gap". Seconds are CPU time of one thread, the median of
repetitions in turn; the network after Mapper is no part of it. The clusters must be the same, or the benchmark fails.
--sizes shows how ours grows: so many images, in increasing numbers, with 10,000 new ones, once each.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.neighbors import NearestNeighbors

import postgrad.progress
from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.methods.mapper_transformer import MapperTransformer
from postgrad.studies.environment import environment

Nodes = set[tuple[int, frozenset[int]]]
"""Of each node its coordinate and its members."""

_GIOTTO = """
import json, sys, time
import numpy as np
from gtda.mapper import FirstSimpleGap, OneDimensionalCover, Projection, make_mapper_pipeline

arrays = np.load(sys.argv[1])
rows, values = arrays["rows"], arrays["values"]
began, found = time.process_time(), []
for c in range(values.shape[1]):
    cover = OneDimensionalCover(kind="uniform", n_intervals=10, overlap_frac=0.33)
    masks = cover.fit_transform(values[:, c : c + 1])
    for interval in range(masks.shape[1]):
        members = np.flatnonzero(masks[:, interval])
        labels = FirstSimpleGap(linkage="single", relative_gap_size=0.3).fit(rows[members]).labels_
        found += [[c, members[labels == label].tolist()] for label in np.unique(labels)]
json.dump({"seconds": time.process_time() - began, "nodes": found}, sys.stdout)
"""


class SingleLinkage(ClusterMixin, BaseEstimator):
    """scipy's single linkage, cut at the first empty of 10 bins."""

    def __init__(self, min_samples: int = 1) -> None:
        self.min_samples = min_samples

    def fit(self, x: Any, y: Any = None) -> SingleLinkage:
        self.labels_ = np.ones(len(x), dtype=int)
        if len(x) > 2:
            merges = linkage(x, "single")
            counts, edges = np.histogram(merges[:, 2], bins=10)
            empty = np.flatnonzero(counts == 0)
            if len(empty):
                self.labels_ = fcluster(merges, edges[empty[0]], "distance")
        return self


def kepler_nodes(rows: Any, ours: MapperTransformer) -> Nodes:
    """The nodes by KeplerMapper, over our intervals."""
    import kmapper

    class Cover(kmapper.Cover):
        def __init__(self, cover: Any) -> None:
            super().__init__(n_cubes=len(cover), perc_overlap=cover.overlap)
            self.ours = cover

        def fit(self, data: Any) -> Any:
            return []

        def transform(self, data: Any, centers: Any = None) -> Any:
            first, last = self.ours.of(data[:, 1])
            cubes = (data[(first <= i) & (i <= last)] for i in range(len(self.ours)))
            return [cube for cube in cubes if len(cube)]

    found: Nodes = set()
    for c, cover in enumerate(ours.committee_.covers):
        lens = ours.committee_.values[:, c : c + 1]
        graph = kmapper.KeplerMapper(verbose=0).map(lens, rows, clusterer=SingleLinkage(), cover=Cover(cover))
        found |= {(c, frozenset(members)) for members in graph["nodes"].values()}
    return found


def neighbours_rows(rows: Any, new: Any, ours: MapperTransformer) -> Any:
    """Rows of new points by scikit-learn's nearest neighbours among the points of their intervals."""
    committee, membership = ours.committee_, ours.committee_.membership()
    values = ours.latent_(_data(new))
    parts = []
    for c, cover in enumerate(committee.covers):
        low, high = cover.asked(values[:, c], ours.margin)
        part = np.zeros((len(new), committee.n_nodes), dtype=np.float32)
        for pair in set(zip(low.tolist(), high.tolist(), strict=True)):
            asking = np.flatnonzero((low == pair[0]) & (high == pair[1]))
            there = np.flatnonzero((committee.first[:, c] <= pair[1]) & (committee.last[:, c] >= pair[0]))
            index = NearestNeighbors(n_neighbors=min(20, len(there))).fit(rows[there])
            distances, places = index.kneighbors(new[asking])
            weights = 1 / (distances + 1e-5)
            weights /= weights.sum(axis=1, keepdims=True)
            picked = sparse.csr_matrix(
                (weights.ravel(), (np.repeat(np.arange(len(asking)), places.shape[1]), there[places].ravel())),
                shape=(len(asking), len(rows)),
            )
            part[asking] = (picked @ membership).toarray() * (committee.coordinate == c)
        parts.append(part)
    return sum(parts)


def our_nodes(mapper: MapperTransformer) -> Nodes:
    return {
        (c, frozenset(node.members)) for c in range(len(mapper.committee_.covers)) for node in mapper.graph(c).nodes
    }


def giotto_nodes(python: str, rows: Any, values: Any) -> tuple[float, Nodes]:
    """CPU seconds and nodes of giotto-tda, in the environment of that interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "points.npz"
        np.savez(file, rows=rows, values=values)
        done = subprocess.run([python, "-c", _GIOTTO, str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"giotto-tda failed: {done.stderr.strip().splitlines()[-1]}")
    answer = json.loads(done.stdout)
    return answer["seconds"], {(c, frozenset(members)) for c, members in answer["nodes"]}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def measure(images: int, new: int, repeats: int, giotto: str | None) -> dict[str, Any]:
    """Everything that goes into the JSON file."""
    name, rows, others = points(images, new)
    settings: Any = {"memory": "6GB"}
    MapperTransformer(**settings).fit(rows[:300]).transform(others[:5])  # compiles, once
    seconds: dict[str, list[float]] = {}

    def note(work: str, amount: float) -> None:
        seconds.setdefault(work, []).append(amount)

    for repeat in range(repeats):
        print(f"repetition {repeat + 1} of {repeats}", file=sys.stderr)
        took, ours = timed(lambda: MapperTransformer(**settings).fit(rows))
        note("postgrad, nodes", took)
        took, theirs = timed(lambda: kepler_nodes(rows, ours))  # noqa: B023, called at once
        note("KeplerMapper, nodes", took)
        if our_nodes(ours) != theirs:
            raise UserError("KeplerMapper's nodes are others than ours")
        took, mapped = timed(lambda: ours.transform(others))  # noqa: B023
        note("postgrad, new points", took)
        took, wanted = timed(lambda: neighbours_rows(rows, others, ours))  # noqa: B023
        note("scikit-learn, new points", took)
        if np.abs(mapped - wanted).max() > 1e-4:
            raise UserError("scikit-learn's rows of new points are others than ours")
        if giotto is not None:
            took, gaps = timed(lambda: MapperTransformer(**settings, cut="gap").fit(rows))
            note("postgrad, nodes by gaps", took)
            took, nodes = giotto_nodes(giotto, rows, gaps.committee_.values)
            note("giotto-tda, nodes by gaps", took)
            if our_nodes(gaps) != nodes:
                raise UserError(f"giotto-tda's nodes are others than ours: {len(nodes ^ our_nodes(gaps))} differ")
    medians = {work: statistics.median(each) for work, each in seconds.items()}
    pairs = [("KeplerMapper, nodes", "postgrad, nodes"), ("scikit-learn, new points", "postgrad, new points")]
    pairs += [("giotto-tda, nodes by gaps", "postgrad, nodes by gaps")] if giotto is not None else []
    return {
        "data": name,
        "images": len(rows),
        "new": len(others),
        "repeats": repeats,
        "nodes": ours.committee_.n_nodes,
        "seconds": seconds,
        "medians": medians,
        "ratios": {peer: medians[peer] / medians[mine] for peer, mine in pairs},
        "environment": environment(),
    }


def growth(sizes: list[int]) -> list[dict[str, float]]:
    """For each number of images the CPU seconds of fitting and mapping, and the most memory of the process so far."""
    found = []
    for size in sorted(sizes):
        _, rows, others = points(size, 10_000)
        fit, mapper = timed(lambda: MapperTransformer(memory="6GB").fit(rows))  # noqa: B023, called at once
        mapping, _ = timed(lambda: mapper.transform(others))  # noqa: B023
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        found.append({"images": len(rows), "fit": fit, "transform": mapping, "peak_gb": peak})
        print(
            f"{len(rows):,} images: fitted in {fit:.1f} s, {len(others):,} mapped in {mapping:.1f} s", file=sys.stderr
        )
    return found


def points(images: int, new: int) -> tuple[str, Any, Any]:
    try:
        dataset = load_dataset("mnist", limit=max(images, new))
    except UserError:
        dataset = load_dataset("digits")
    assert dataset.train is not None
    assert dataset.test is not None
    train, test = (part.images.flatten(1).float().div(255).numpy() for part in (dataset.train, dataset.test))
    return dataset.name, train[:images], test[:new]


def _data(rows: Any) -> Any:
    from postgrad.methods._mapper_latent import Data

    return Data(rows)


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{result['images']:,} images of {result['data']}, {result['new']:,} new ones, {result['nodes']:,} nodes"]
    lines += [f"{work:28}{amount:10.2f} s" for work, amount in result["medians"].items()]
    lines += [f"{peer:28}{ratio:9.1f} × ours" for peer, ratio in result["ratios"].items()]
    lines += [
        f"{each['images']:,} images: {each['fit']:.1f} s to fit, {each['transform']:.1f} s to map 10,000, "
        f"at most {each['peak_gb']:.2f} GB"
        for each in result["growth"]
    ]
    if "giotto-tda, nodes by gaps" not in result["medians"]:
        lines.append("giotto-tda was not asked: give --giotto PYTHON, the interpreter of an environment that has it")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--new", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--giotto", metavar="PYTHON", help="an interpreter that has giotto-tda")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    postgrad.progress.quiet = True
    try:
        grown = growth(options.sizes)
        result = measure(options.images, options.new, options.repeats, options.giotto) | {"growth": grown}
    except UserError as error:
        sys.exit(f"mapper: {error}")
    if options.json is not None:
        write_atomic(options.json, json.dumps(result, indent=1))
    print(table(result))


if __name__ == "__main__":
    main()
