"""Run a compiled kernel on ranges of rows, on as many threads as torch has."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_RANGES_PER_THREAD = 8


def in_ranges(kernel: Callable[..., None], total: int, *arguments: Any) -> None:
    """Run a kernel on ranges of rows or coordinates, with as many threads as torch has.

    Plain threads, since the kernels release the interpreter's lock: numba's own threading layers either abort when two
    threads call them at once or break in forked processes. The ranges are small and go to whichever thread is free,
    because torch's own idle threads keep a core busy for milliseconds after each of its operations.
    """
    threads = min(torch.get_num_threads(), total)
    if threads == 1:
        kernel(*arguments, 0, total)
        return
    size = -(-total // (_RANGES_PER_THREAD * threads))
    starts = iter(range(0, total, size))

    def work() -> None:
        for start in starts:
            kernel(*arguments, start, min(start + size, total))

    pool = _pool(threads - 1, os.getpid())
    others = [pool.submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        if not other.cancel():
            other.result()


@functools.lru_cache(maxsize=2)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="postgrad-gradients")
