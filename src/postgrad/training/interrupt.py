"""Ctrl-C that waits for the end of the step, so that no half-updated weights are kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred_interrupt(wanted: bool = True) -> Iterator[Callable[[], bool]]:
    """Within the block a first Ctrl-C is only noted, and a second one interrupts at once.

    >>> with deferred_interrupt() as interrupted:
    ...     while not interrupted():
    ...         take_step()

    Where Ctrl-C is not Python's own (another handler, another thread than the main one) it is left as it is.
    """
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    ours = (
        wanted
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt
