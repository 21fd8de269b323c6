"""What growing a network costs: seconds of reading its graph, of one widening and of the certificate, and memory.

    python benchmarks/growth_speed.py [--models resnet50] [--threads 1 2] [--no-certificate] [--json FILE] [--page FILE]

Images are (2, 3, 224, 224). Each network and number of threads has a process of its own, in which another network has
been grown before, so that imports and first calls do not count. The parts of one call of `widen` are timed apart:

- export: `torch.export`, all of whose calls are counted;
- analysis: what is made of the graph;
- widening: all that is done inside the transaction but the certificate. The layers are one inside a block and what
  residual blocks add to, half as wide again (a transformer's: twice as wide, with its heads);
- certificate: in a further call, what the certificate itself says that it took.

Memory is the kernel's high-water mark of resident memory while the transaction is open, the certificate left out, above
what was resident when it was opened (sampled where there is no such mark), as a multiple of the bytes of the network's
parameters and buffers. The new weights alone, which stay, are given beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from postgrad._compat import prepare_torchvision
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.growth import axes, width
from postgrad.growth.certificate import Certificate
from postgrad.memory import peak_memory, return_freed_memory
from postgrad.studies.environment import environment

LAYERS = {
    "resnet18": ("layer4.0.conv1", "layer4.0.conv2"),
    "resnet50": ("layer4.0.conv1", "layer4.0.conv3"),
    "resnet152": ("layer4.0.conv1", "layer4.0.conv3"),
    "vit_b_32": ("encoder.layers.encoder_layer_0.mlp.0", "conv_proj"),
}
"""Model -> a layer inside a block, and one that makes what residual blocks add to."""
TARGET_SECONDS = 5.0
TARGET_MEMORY = 2.5
_MARK = Path("/proc/self/clear_refs")
"""Writing 5 there makes the kernel's mark begin again."""


class Parts:
    """The seconds of the parts of a call of `widen`, and the memory that its change took."""

    def __init__(self) -> None:
        self.export = self.analysis = self.widening = 0.0
        self.peak = 0.0

    @contextlib.contextmanager
    def watched(self, *, certificate: bool) -> Iterator[None]:
        """Time the parts of each call inside the block; without `certificate`, none is made."""
        real = {"export": torch.export.export, "analyse": width.analyse, "transaction": width.transaction}

        def export(*args: Any, **options: Any) -> Any:
            return self._timed("export", real["export"], *args, **options)

        def analyse(*args: Any) -> Any:
            before = self.export
            graph = self._timed("analysis", real["analyse"], *args)
            self.analysis -= self.export - before
            return graph

        @contextlib.contextmanager
        def transaction(*args: Any) -> Iterator[None]:
            with real["transaction"](*args), self._memory():
                began = time.perf_counter()
                yield
                self.widening += time.perf_counter() - began

        with contextlib.ExitStack() as stack:
            for place, function in ((torch.export, export), (width, analyse)):
                stack.enter_context(mock.patch.object(place, function.__name__, function))
            if not certificate:
                stack.enter_context(mock.patch.object(width, "transaction", transaction))
                stack.enter_context(mock.patch.object(width, "Witness", Nobody))
            yield

    def _timed(self, part: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **options)
        setattr(self, part, getattr(self, part) + time.perf_counter() - began)
        return result

    @contextlib.contextmanager
    def _memory(self) -> Iterator[None]:
        return_freed_memory()
        if not _MARK.exists():
            with peak_memory(every=0.002) as peak:
                yield
            self.peak = peak.megabytes * 1e6
            return
        before = _kept("RssAnon")
        _MARK.write_text("5")
        yield
        # The mark counts pages of files too, which the kernel drops and reads again as it likes.
        self.peak = max(0, _kept("VmHWM") - _kept("RssFile") - _kept("RssShmem") - before)


class Nobody:
    """In the place of a witness: sees nothing, and says so."""

    @classmethod
    def of(cls, *_args: Any, **_options: Any) -> Nobody:
        return cls()

    def certify(self, *_args: Any, **_options: Any) -> Certificate:
        return Certificate(0.0, {}, True, "eval", (), 0.0)


def _kept(name: str) -> int:
    """Bytes that the kernel counts for this process under a name of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no line {name}")


def size_of(network: nn.Module) -> int:
    """Bytes of its parameters and buffers."""
    return sum(each.numel() * each.element_size() for each in (*network.parameters(), *network.buffers()))


def changed_bytes(before: nn.Module, after: nn.Module) -> int:
    """Bytes of the tensors of a grown network that have another shape than before."""
    old = {name: each.shape for name, each in before.state_dict().items()}
    new = after.state_dict().items()
    return sum(each.numel() * each.element_size() for name, each in new if each.shape != old.get(name))


def widened(graph: axes.AxisGraph, layer: str) -> int:
    """How wide a layer shall become: half as wide again, or twice where all of its units must become equally more."""
    (axis,) = [axis for axis in graph.made_by(layer) if not axis.fixed]
    return axis.size * 2 if axis.even else axis.size * 3 // 2


def measure(model: str, threads: int, repetitions: int, image: int, certificate: bool) -> list[dict[str, Any]]:
    """One row for each layer; run in a process of its own."""
    prepare_torchvision()
    from torchvision import models

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = models.get_model(model).eval()
    x = torch.randn(2, 3, image, image)
    _warm_up(models.get_model("resnet18").eval(), x)
    graph = axes.analyse(network, x)
    rows = []
    for place, layer in zip(("inside a block", "what blocks add to"), LAYERS[model], strict=True):
        to = widened(graph, layer)
        shown = {"model": model, "threads": threads, "image": image, "place": place, "layer": layer, "to": to}
        rows.append(shown | _costs(network, layer, to, x, repetitions, certificate))
    return rows


def _warm_up(network: nn.Module, x: Tensor) -> None:
    with Parts().watched(certificate=False):
        width.widen(network, "layer1.0.conv1", to=96, example=x)


def _costs(network: nn.Module, layer: str, to: int, x: Tensor, repetitions: int, certificate: bool) -> dict[str, Any]:
    runs = []
    for _ in range(repetitions):
        grown, parts = copy.deepcopy(network), Parts()
        with parts.watched(certificate=False):
            width.widen(grown, layer, to=to, example=x)
        runs.append(parts)
    size = size_of(network)
    found: dict[str, Any] = {
        "model_bytes": size,
        "new_bytes": changed_bytes(network, grown),
        "peak_bytes": statistics.median(run.peak for run in runs),
    }
    for part in ("export", "analysis", "widening"):
        found[f"{part}_seconds"] = statistics.median(getattr(run, part) for run in runs)
    found["seconds"] = sum(found[f"{part}_seconds"] for part in ("export", "analysis", "widening"))
    found["certificate_seconds"] = None
    if certificate:
        found["certificate_seconds"] = width.widen(copy.deepcopy(network), layer, to=to, example=x).seconds
    return found


def in_a_process_of_its_own(*arguments: Any) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


HEADINGS = (
    "model | threads | widened | export, s | analysis, s | widening, s | in all, s | certificate, s | new weights, "
    "× model | peak, × model"
)
BEGIN = "[//]: # (figures written by benchmarks/growth_speed.py)"
END = "[//]: # (end of the figures)"


def lines_of(figures: dict[str, Any]) -> Iterator[str]:
    """The table, and what is above the targets."""
    machine, rows = figures["environment"], figures["rows"]
    yield f"{machine['processor']}, torch {machine['versions']['torch']}; medians of {figures['repetitions']}."
    yield f"\n| {HEADINGS} |\n|{'|'.join(['---'] * 3 + ['---:'] * 7)}|"
    yield from (line_of(row) for row in rows)
    slow = [row for row in rows if row["seconds"] > TARGET_SECONDS]
    large = [row for row in rows if row["peak_bytes"] > TARGET_MEMORY * row["model_bytes"]]
    yield f"\nAbove {TARGET_SECONDS:.0f} s: {_named(slow)}. Above {TARGET_MEMORY} × the model: {_named(large)}."


def line_of(row: dict[str, Any]) -> str:
    size, certificate = row["model_bytes"], row["certificate_seconds"]
    cells = [row["model"], str(row["threads"]), row["place"]]
    cells += [f"{row[f'{part}_seconds']:.2f}" for part in ("export", "analysis", "widening")]
    cells += [f"{row['seconds']:.2f}", "–" if certificate is None else f"{certificate:.1f}"]
    cells += [f"{row['new_bytes'] / size:.2f}", f"{row['peak_bytes'] / size:.2f}"]
    return f"| {' | '.join(cells)} |"


def _named(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['model']} ({row['place']}, {row['threads']} threads)" for row in rows) or "none"


def write_page(text: str, page: Path) -> None:
    """Put the table between the page's two markers."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page}: the lines '{BEGIN}' and '{END}' are not there; put them where the table shall be")
    write_atomic(page, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--image", type=int, default=224, help="side of the images")
    parser.add_argument("--no-certificate", action="store_true", help="certificates take the longest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table into that page")
    options = parser.parse_args(arguments)
    rows = []
    for model in options.models:
        for threads in options.threads:
            print(f"{model}, {threads} threads", file=sys.stderr)
            setting = (model, threads, options.repetitions, options.image, not options.no_certificate)
            rows += in_a_process_of_its_own(*setting)
    figures = {"rows": rows, "repetitions": options.repetitions, "environment": environment()}
    text = "\n".join(lines_of(figures))
    print(text)
    if options.json is not None:
        write_atomic(options.json, json.dumps(figures, indent=1) + "\n")
    if options.page is not None:
        write_page(text, options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
