"""Progress: nothing for short jobs, a line now and then on a log, a bar on a terminal, silence when asked."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from postgrad import progress as module
from postgrad.progress import progress


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("gradients", total=100, unit="images", start=20) as advance:
        for second in range(1, 41):
            clock.now = 100.0 + second
            advance(2, note=f"loss {second}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "gradients: 80/100 images, 2.0 images/s, 10 s left, loss 30\n"


def test_a_short_job_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("steps", total=3) as advance:
        for _ in range(3):
            clock.now += 0.5
            advance()
    assert capsys.readouterr() == ("", "")


def test_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "quiet", True)
    with progress("steps", total=3) as advance:
        clock.now += 1000
        advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "shown"), [(1.9, False), (2.1, True)])
def test_a_terminal_gets_a_bar_after_two_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float, shown: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("training", total=10) as advance:
        clock.now += seconds
        advance(4, note="loss 0.31")
    assert ("training" in terminal.getvalue()) == shown


def test_an_error_inside_comes_out() -> None:
    with pytest.raises(KeyError), progress("steps", total=3):
        raise KeyError
