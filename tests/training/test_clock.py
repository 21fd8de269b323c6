"""Durations as people write them, and the two clocks."""

from __future__ import annotations

import time

import pytest

from postgrad.errors import UserError
from postgrad.training import Stopwatch, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (" .5 s ", 0.5), ("0.100s", 0.1)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "m", "-1s", "10 minutes", "0s", "1e3s", "nan s", "1m30s"])
def test_what_is_no_duration(text):
    with pytest.raises(UserError, match=r"cannot read the time .*; write one such as 90s, 10m or 1\.5h"):
        parse_duration(text)


def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_cpu_time_counts_work_and_not_waiting():
    watch = Stopwatch()
    with watch:
        burn(0.1)
        time.sleep(0.2)
    assert 0.1 <= watch.cpu_seconds < 0.2
    assert watch.wall_seconds >= 0.3


def test_several_blocks_add_up_and_the_time_between_them_does_not_count():
    watch = Stopwatch()
    with watch:
        burn(0.05)
        assert watch.cpu_seconds >= 0.05
    burn(0.2)
    before = watch.cpu_seconds
    with watch:
        burn(0.05)
    assert before == pytest.approx(0.05, abs=0.04)
    assert 0.1 <= watch.cpu_seconds < 0.2


def test_goes_on_from_a_state():
    watch = Stopwatch()
    with watch:
        burn(0.1)
        watch.load_state_dict({"cpu_seconds": 100.0, "wall_seconds": 200.0})
        burn(0.05)
    assert 100.05 <= watch.cpu_seconds < 100.1
    assert watch.wall_seconds >= 200.05
    assert watch.state_dict() == {"cpu_seconds": watch.cpu_seconds, "wall_seconds": watch.wall_seconds}


def test_is_stopped_when_the_block_fails():
    watch = Stopwatch()
    with pytest.raises(RuntimeError, match="inside"), watch:
        raise RuntimeError("inside")
    seconds = watch.wall_seconds
    time.sleep(0.01)
    assert watch.wall_seconds == seconds
