"""What every test shares: a quiet machine, no network, no state left over."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import signal

import pytest
from hypothesis import settings

# Numerical libraries read these once, when they are first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("NO_COLOR", "1")

# Lightning reads what every installed package registers each time a training begins.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)

# A shell starts its background jobs with Ctrl-C ignored, and whatever they start inherits that; tests send Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure, and a failure is to come again at the next run.
settings.register_profile("postgrad", deadline=None, derandomize=True)
settings.load_profile("postgrad")


@pytest.fixture(autouse=True)
def _own_places(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's data folder and caches out of the tests."""
    monkeypatch.delenv("POSTGRAD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _progress_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo a `--quiet` that an earlier test left set."""
    monkeypatch.setattr("postgrad.progress.quiet", False)
