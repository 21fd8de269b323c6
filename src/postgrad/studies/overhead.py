"""What scheduling costs a study: the share of its workers' time that went neither into trials nor into having none.

A trial is available from the moment when the arms that it needs are finished and its slot is free. From then until its
result has arrived the slot's time is held for it; what the trial itself took in its worker is its own. The overhead is
1 − Σ own / Σ held. The start of a worker (imports, data) comes before its slot is free; a slot that waits because no
trial is available holds nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from postgrad.studies.run import EVENTS


def trial_events(directory: Path) -> list[dict[str, Any]]:
    """The events of a study that say how long a trial took, in order."""
    lines = (directory / EVENTS).read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] in ("trial ends", "trial fails")]


def scheduling_overhead(directory: Path) -> float | None:
    """The share of the workers' time that scheduling took, from 0 to 1; None where no trial has ended.

    >>> scheduling_overhead(Path("runs/study"))
    0.004
    """
    events = trial_events(directory)
    held = sum(event["held"] for event in events)
    return 1 - sum(event["seconds"] for event in events) / held if held else None
