"""How exactly networks are grown: ours beside erogol/Net2Net and gromo, on the same networks and the same growth.

    python benchmarks/growth_exactness.py [--net2net FILE --net2net-commit HASH] [--json FILE] [--page FILE]
    python benchmarks/growth_exactness.py --read FILE --page FILE

Net2Net is no package: give the path of its net2net.py. gromo comes with `pip install 'postgrad[bench]'`. What is shown
is the greatest difference of the outputs before and after, over the standard deviation of those before: 0 is exact,
1e-15 rounding, 1 another function. Every growth is done under several seeds; the table has the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import importlib.util
import json
import math
import statistics
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from growth_benchmark.networks import BATCH, CASES, Case, prepared
from growth_benchmark.page import print_table, write_page
from growth_benchmark.ways import NotApplicableError, NotThisCaseError, Way, ways
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.studies.environment import environment

MEASURES = ("float64 eval", "float64 train", "float32 eval")


def error(before: Tensor, after: Tensor) -> float:
    """The greatest difference over the spread of what was; without bound where there are numbers that are none."""
    if before.shape != after.shape or not bool(after.isfinite().all()):
        return math.inf
    return ((after - before).abs().max() / before.std(correction=0)).item()


def measure(case: Case, way: Way, seed: int) -> dict[str, float]:
    """The errors of one growth, and the seconds that it took in float64."""
    network, x = prepared(case)
    found: dict[str, float] = {}
    try:
        for dtype in (torch.float64, torch.float32):
            torch.set_default_dtype(dtype)  # what the peers make anew is of it
            found |= _measured(case, way, seed, network.to(dtype), x.to(dtype))
    finally:
        torch.set_default_dtype(torch.float32)
    return found


def _measured(case: Case, way: Way, seed: int, before: nn.Module, x: Tensor) -> dict[str, float]:
    torch.manual_seed(seed)
    np.random.seed(seed)
    before = copy.deepcopy(before)
    began = time.perf_counter()
    after = way.grow(case, copy.deepcopy(before), x, seed)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        in_eval = error(before.eval()(x), after.eval()(x))
        if x.dtype == torch.float32:
            return {"float32 eval": in_eval}
        return {
            "seconds": seconds,
            "float64 eval": in_eval,
            "float64 train": error(before.train()(x), after.train()(x)),
        }


def row(case: Case, way: Way, seeds: int) -> dict[str, Any]:
    """What one way makes of one case, over the seeds; or why it makes nothing."""
    shown = {"case": case.what, "implementation": way.implementation, "setting": way.setting}
    try:
        runs = [measure(case, way, seed) for seed in range(seeds)]
    except NotThisCaseError:
        raise
    except NotApplicableError as reason:
        return shown | {"not applicable": str(reason)}
    except Exception as failure:
        if way.implementation == "postgrad":
            raise
        reason = str(failure).strip().splitlines()
        return shown | {"fails": f"{type(failure).__name__}: {reason[0] if reason else ''}"}
    values = {name: [run[name] for run in runs] for name in (*MEASURES, "seconds")}
    return shown | {
        name: {"median": _number(statistics.median(each)), "values": [_number(value) for value in each]}
        for name, each in values.items()
    }


def _number(value: float) -> float | None:
    """JSON has no infinity: None is a network that gives numbers which are none."""
    return value if math.isfinite(value) else None


def figures(options: argparse.Namespace) -> dict[str, Any]:
    gromo = importlib.util.find_spec("gromo") is not None
    if not gromo:
        print("gromo is not installed and left out: pip install 'postgrad[bench]'", file=sys.stderr)
    if options.net2net is None:
        print("Net2Net is left out: give the path of its net2net.py by --net2net", file=sys.stderr)
    rows = []
    for case in CASES:
        for way in ways(options.net2net, gromo):
            print(f"{case.what}: {way.implementation}, {way.setting}", file=sys.stderr)
            with contextlib.suppress(NotThisCaseError):
                rows.append(row(case, way, 1 if "resnet18" in case.what else options.seeds))
    peers: dict[str, Any] = {"gromo": metadata.version("gromo") if gromo else None, "Net2Net": None}
    if options.net2net is not None:
        peers["Net2Net"] = {
            "commit": options.net2net_commit,
            "sha256": hashlib.sha256(options.net2net.read_bytes()).hexdigest(),
        }
    return {"rows": rows, "seeds": options.seeds, "batch": BATCH, "peers": peers, "environment": environment()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net2net", type=Path, metavar="FILE", help="erogol/Net2Net's net2net.py")
    parser.add_argument("--net2net-commit", metavar="HASH", help="the commit that it is of, for the record")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page of the ledger there")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing, take the figures from there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # gromo's, about sizes and scales
    try:
        found = json.loads(options.read.read_text()) if options.read else figures(options)
        print_table(found)
        if options.json is not None:
            write_atomic(options.json, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        if options.page is not None:
            write_page(found, options.page)
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
