"""FRN with TLU beside timm's, and beside batch normalisation with ReLU, eager and compiled: forward and backward pass.

    python benchmarks/frn.py [--threads N] [--repetitions N] [--json FILE]

All implementations take turns in one process. Times are medians over the repetitions, of process CPU time on one thread
and of wall time on more. In brackets: what autograd holds between the passes, parameters aside, as a multiple of the
input; for a ReLU that includes its output, which in a network is the next layer's input too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from postgrad._compat import prepare_torchvision
from postgrad.files import write_atomic
from postgrad.methods.frn import FilterResponseNormTLU

CASES = [
    ((32, 64, 56, 56), "contiguous"),
    ((128, 32, 32, 32), "contiguous"),
    ((64, 256, 14, 14), "contiguous"),
    ((64, 512, 7, 7), "contiguous"),
    ((64, 256, 14, 14), "channels last"),
]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
RATIOS = {
    "timm / ours": ("timm", "ours"),
    "BN+ReLU / ours": ("BN+ReLU", "ours"),
    "BN+ReLU compiled / ours": ("BN+ReLU compiled", "ours"),
    "BN+ReLU compiled / ours compiled": ("BN+ReLU compiled", "ours compiled"),
}


def layers(channels: int) -> dict[str, nn.Module]:
    prepare_torchvision()  # timm imports torchvision
    from timm.layers import FilterResponseNormTlu2d

    def batch_norm() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())

    return {
        "ours": FilterResponseNormTLU(channels),
        "timm": FilterResponseNormTlu2d(channels, eps=1e-6),
        "BN+ReLU": batch_norm(),
        "ours compiled": torch.compile(FilterResponseNormTLU(channels), dynamic=False),
        "BN+ReLU compiled": torch.compile(batch_norm(), dynamic=False),
    }


def step(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """One forward and backward pass; gradients are new each time, as after `zero_grad`."""
    layer.zero_grad()
    x.grad = None
    layer(x).backward(gradient)


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """What autograd keeps between the passes: each storage once, parameters left out."""
    parameters = {each.untyped_storage().data_ptr() for each in (*layer.parameters(), *layer.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    return sum(kept.values())


def seconds(run: Callable[[], None], times: int, clock: Callable[[], float]) -> float:
    began = clock()
    for _ in range(times):
        run()
    return (clock() - began) / times


def measure(
    shape: tuple[int, ...], repetitions: int, memory_format: torch.memory_format
) -> dict[str, dict[str, float]]:
    """Milliseconds and kept bytes as a multiple of the input's, of each implementation."""
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
    gradient = torch.randn_like(x)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found = layers(shape[1])
    runs = {name: lambda layer=layer: step(layer, x, gradient) for name, layer in found.items()}
    for run in runs.values():  # compiles
        run()
    times = {name: max(1, int(0.02 / seconds(run, 2, time.perf_counter))) for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            taken[name].append(seconds(run, times[name], clock))
    size = x.untyped_storage().nbytes()
    return {
        name: {"ms": 1e3 * statistics.median(taken[name]), "kept": kept_bytes(found[name], x) / size} for name in runs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), float32, ms (kept)")
    rows = []
    for shape, layout in CASES:
        cells = measure(shape, options.repetitions, LAYOUTS[layout])
        ratios = {name: cells[above]["ms"] / cells[below]["ms"] for name, (above, below) in RATIOS.items()}
        if not rows:
            print("| shape | layout | " + " | ".join((*cells, *ratios)) + " |")
            print("|---|---|" + "---:|" * (len(cells) + len(ratios)))
        figures = [f"{cell['ms']:.2f} ({cell['kept']:.2f})" for cell in cells.values()]
        figures += [f"{ratio:.2f}" for ratio in ratios.values()]
        print(f"| {'×'.join(map(str, shape))} | {layout} | " + " | ".join(figures) + " |", flush=True)
        rows.append({"shape": shape, "layout": layout, "implementations": cells, "ratios": ratios})
    if options.json is not None:
        content = {"torch": torch.__version__, "threads": options.threads, "rows": rows}
        write_atomic(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
