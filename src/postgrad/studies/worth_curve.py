"""Accuracy against total CPU time: training alone, and training until a switch, then GradNet."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from postgrad.studies.worth_pieces import Piece, Study, finetuned_network, stage_piece, timed_network
from postgrad.studies.worth_rows import Row, network_row, row, stage_answers
from postgrad.studies.worth_stage import Source

ALONE = "all the data at once"
FINETUNED = "one half, then the other"
HALF = "one half alone"
SWITCHED = "half, then GradNet"


def curve(study: Study) -> Iterator[Row]:
    """A row for each budget of training alone, and for each switch to GradNet; each is a run tuned for its budget."""
    config = study.recipe.curve
    assert config is not None
    for total in config.totals:
        network, piece = timed_network(study, f"all-{total:g}s", study.everything, total)
        yield network_row(study, network, piece, ALONE)
        half, below = half_network(study, total / 2)
        name = f"{below.name}-finetuned-{total:g}s"
        network, piece = finetuned_network(study, name, half, study.second, total - below.cpu_seconds, below)
        yield network_row(study, network, piece, FINETUNED)
    for until in dict.fromkeys(until for until, _ in config.switches):
        half, below = half_network(study, until)
        yield network_row(study, half, below, HALF)
        for total in [total for other, total in config.switches if other == until]:
            yield _switched(study, half, below, until, total)


def half_network(study: Study, seconds: float) -> tuple[nn.Module, Piece]:
    """A network trained on the first half for some seconds."""
    return timed_network(study, f"half-{seconds:g}s", study.first, seconds)


def _switched(study: Study, half: nn.Module, below: Piece, until: float, total: float) -> Row:
    config = study.recipe.curve
    assert config is not None
    stage, piece = stage_piece(
        study,
        f"{below.name}-gradnet-{total:g}s",
        config.stage,
        [Source(half, study.images(study.second))],
        total - below.cpu_seconds,
        judge=half,
        stands_on=[below],
    )
    kind = f"{SWITCHED} from {until:g} s"
    alone = (f"all-{total:g}s", f"half-{total / 2:g}s-finetuned-{total:g}s") if total in config.totals else ()
    return row(study, piece, stage_answers(stage, half), kind, passes=stage.inference_passes, against=alone)
