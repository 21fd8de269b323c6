"""The most memory that a piece of work takes above what its process held before, each in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import torch

import postgrad.progress
from gradient_benchmark.peers import quieten
from gradient_benchmark.setting import Setting
from gradient_benchmark.works import Bench, Case, Choices
from postgrad.memory import peak_memory

WARM_UP_IMAGES = 2
_PRELOADED = ["torch", "postgrad.methods.gradnet", "postgrad.data.datasets", "backpack", "opacus.grad_sample"]


def method(device: torch.device) -> str:
    """How the peak is found, for the record."""
    if device.type != "cpu":
        return "the allocator's own peak on the device"
    return "the kernel's high-water mark of resident memory" if _MARK.exists() else "resident memory, sampled"


def peaks(
    folder: Path, cases: Sequence[Case], choices: Choices, *, device: str, threads: int
) -> Iterator[tuple[Case, float]]:
    """The peak of each case in megabytes (10⁶ bytes), in a fresh process that reads the setting from `folder`.

    Before the baseline is taken the work is done once on two images, which loads and compiles what it needs.
    """
    context = multiprocessing.get_context("forkserver")
    # What the server has imported, its children have; they are still fresh, since it never computes anything.
    context.set_forkserver_preload(_PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for case in cases:
            yield case, pool.submit(_peak, folder, case, choices, device, threads).result()


def _peak(folder: Path, case: Case, choices: Choices, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    postgrad.progress.quiet = True
    quieten()
    bench = Bench(Setting.load(folder, device), choices, [case.implementation], training_gradients=1)
    bench.seconds(Case(case.work, case.labels, case.implementation, WARM_UP_IMAGES))
    gc.collect()
    if bench.setting.device.type != "cpu":
        return _peak_on_device(bench, case)
    _give_back_free_memory()
    if not _MARK.exists():
        with peak_memory() as peak:
            bench.seconds(case)
        return peak.megabytes
    before = psutil.Process().memory_info().rss
    _MARK.write_text("5")  # the mark begins again at what is resident now
    bench.seconds(case)
    return max(0.0, (_high_water_mark() - before) / 1e6)


_MARK = Path("/proc/self/clear_refs")


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no line VmHWM")


def _give_back_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _peak_on_device(bench: Bench, case: Case) -> float:
    device = bench.setting.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    bench.seconds(case)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6
