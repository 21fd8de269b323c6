"""What one arm leaves for the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from postgrad.errors import UserError
from postgrad.studies.arms import Drawing, keep_drawing


@pytest.fixture
def run(tmp_path: Path) -> Any:
    warnings: list[str] = []
    return SimpleNamespace(directory=tmp_path, warnings=warnings, warn=warnings.append)


def test_a_drawing_is_kept(run: Any) -> None:
    keep_drawing(run, Drawing("blocks.json", lambda model: {"of": model}), "gradnet")
    assert json.loads((run.directory / "blocks.json").read_text()) == {"of": "gradnet"}
    assert run.warnings == []


def test_what_cannot_be_drawn_ends_no_arm(run: Any) -> None:
    def table(_model: Any) -> dict[str, Any]:
        raise UserError("coordinate 0 has 700 intervals, and a drawing shows 600")

    keep_drawing(run, Drawing("graph.json", table), None)
    assert run.warnings == ["not drawn: coordinate 0 has 700 intervals, and a drawing shows 600"]
    assert not list(run.directory.iterdir())
    with pytest.raises(ZeroDivisionError):
        keep_drawing(run, Drawing("graph.json", lambda _: {"share": 1 / 0}), None)
