"""How long something took: process CPU time (time of the device on a GPU) and wall time."""

from __future__ import annotations

import re
import time
from types import TracebackType

import torch

from postgrad.errors import UserError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of a time such as "90s", "10m" or "1.5h"; anything else, and zero, is a `UserError`.

    >>> parse_duration("1.5h")
    5400.0
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smh])\s*", text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise UserError(f"cannot read the time '{text}'; write one such as 90s, 10m or 1.5h")
    return seconds


class Stopwatch:
    """Time used so far, over any number of `with` blocks, in seconds.

    >>> watch = Stopwatch()
    >>> with watch:
    ...     work()
    >>> watch.cpu_seconds, watch.wall_seconds
    (1.93, 1.01)

    `cpu_seconds` is the CPU time of this process, all its threads together, so that other work on the machine does not
    count. With an accelerator as `device` it is the time between moments when the device had finished all it was given.
    Both figures can be read while the watch runs. `state_dict` and `load_state_dict` carry them over an interruption.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._cpu = 0.0
        self._wall = 0.0
        self._started: tuple[float, float] | None = None

    @property
    def cpu_seconds(self) -> float:
        return self._cpu + self._running()[0]

    @property
    def wall_seconds(self) -> float:
        return self._wall + self._running()[1]

    def __enter__(self) -> Stopwatch:
        self._started = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cpu, wall = self._running()
        self._cpu += cpu
        self._wall += wall
        self._started = None

    def state_dict(self) -> dict[str, float]:
        cpu, wall = self._running()
        return {"cpu_seconds": self._cpu + cpu, "wall_seconds": self._wall + wall}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from the times in `state`; a running watch counts from now."""
        self._cpu, self._wall = state["cpu_seconds"], state["wall_seconds"]
        if self._started is not None:
            self._started = self._now()

    def _running(self) -> tuple[float, float]:
        if self._started is None:
            return 0.0, 0.0
        cpu, wall = self._now()
        return cpu - self._started[0], wall - self._started[1]

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cpu":
            return time.process_time(), time.perf_counter()
        torch.accelerator.synchronize(self.device)
        wall = time.perf_counter()
        return wall, wall
