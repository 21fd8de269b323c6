"""The most memory that a block of work took above what the process held before it."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

import psutil

INTERVAL_SECONDS = 0.05


class Peak:
    """Filled in while the block runs: the peak in megabytes above the beginning."""

    megabytes: float = 0.0


@contextlib.contextmanager
def peak_memory(every: float = INTERVAL_SECONDS) -> Iterator[Peak]:
    """Watch the resident memory of this process, every so many seconds: by default twenty times a second.

    >>> with peak_memory() as peak:
    ...     classifier.fit(x, y)
    >>> peak.megabytes
    812.4
    """
    process = psutil.Process()
    before = process.memory_info().rss
    peak, done = Peak(), threading.Event()

    def look() -> None:
        peak.megabytes = max(peak.megabytes, (process.memory_info().rss - before) / 1e6)

    def watch() -> None:
        while not done.wait(every):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        look()


def return_freed_memory() -> None:
    """Hand freed memory back to the system where the C library can, so that the next peak is seen as it is taken."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library has it
    if trim is not None:
        trim(0)
