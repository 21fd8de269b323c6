"""Mapper graph: the nodes of each latent coordinate with their classes, and images of their members."""

from __future__ import annotations

from typing import Any

from postgrad.methods import mapper_page
from postgrad.reports.rundir import Run


def mapper_graph(run: Run, *, images: bool) -> dict[str, Any] | None:
    """What the section shows; None for a run without Mapper."""
    table = run.mapper
    if table is None:
        return None
    if not images:
        table = {**table, "members": {**table["members"], "sprite": None}}
    return {"part": mapper_page.part(table), "style": mapper_page.style(table), "script": mapper_page.script()}
