"""Run compiled kernels on ranges of rows, and whole tasks side by side, on as many threads as torch has."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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


def side_by_side(tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks on as many threads as torch has, each of which then has one thread for torch's own operations.

    A batch in two halves on two threads is faster than each of its operations on both: between operations torch's idle
    threads keep their cores busy, and small operations do not divide well. Modes of torch (grad, autocast, inference)
    belong to a thread and are the task's to set.
    """
    threads = min(torch.get_num_threads(), len(tasks))
    if threads <= 1:
        for task in tasks:
            task()
        return
    started = [_workers(threads, os.getpid()).submit(task) for task in tasks]
    try:
        wait(started)
    except BaseException:  # Ctrl-C: what has begun still writes to the caller's buffers
        wait([future for future in started if not future.cancel()])
        raise
    for future in started:
        future.result()


@functools.lru_cache(maxsize=2)
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "postgrad-worker", initializer=torch.set_num_threads, initargs=(1,))
    mine, together = torch.get_num_threads(), threading.Barrier(threads)
    wait([pool.submit(together.wait) for _ in range(threads)])
    torch.set_num_threads(mine)  # the workers' setting is also the default of threads that begin later
    return pool
