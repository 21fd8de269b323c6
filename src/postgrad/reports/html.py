"""One self-contained web page from a run directory.

>>> render("runs/demo")
PosixPath('runs/demo/report.html')

The page needs no network and no script to be read. A section whose file is absent says so in a sentence.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import postgrad.reports.words as words
from postgrad.files import write_atomic
from postgrad.reports import charts, drawing, sentences
from postgrad.reports.groups import TOGETHER, groups
from postgrad.reports.rundir import Run, read_run
from postgrad.reports.sections.calibration import calibration
from postgrad.reports.sections.changes import changes
from postgrad.reports.sections.cost import cost
from postgrad.reports.sections.leaderboard import leaderboard
from postgrad.reports.sections.learning import learning
from postgrad.reports.sections.lineage import lineage
from postgrad.reports.sections.mapper import mapper_graph
from postgrad.reports.sections.outside import outside
from postgrad.reports.sections.robustness import attacks, corruptions
from postgrad.reports.sections.seeds import seed_by_seed
from postgrad.reports.sections.verdicts import verdict_table

LARGEST = 6_000_000
"""Bytes of a page that still opens at once and fits into a mail."""

_IMAGES_OF_NODES = "images of Mapper's nodes"
_LEAVES_OUT = ("example images", "histograms", "confusion maps")
"""What a page that would be larger goes without, in this order; before these the images of Mapper's nodes."""

_TEMPLATES = Path(__file__).parent / "templates"


def render(directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run directory and return its path.

    A page of over 6 MB is made again without the images of Mapper's nodes, then without its example images, histograms
    and confusion maps, and says so. Raises `UserError` when results.json is missing or not of this version, or another
    file is damaged.
    """
    folder = Path(directory).expanduser()
    run = read_run(folder)
    template = environment().get_template("report.html.j2")
    leaves_out = _LEAVES_OUT if run.mapper is None else (_IMAGES_OF_NODES, *_LEAVES_OUT)
    for kept in range(len(leaves_out) + 1):
        page = template.render(_context(run, leaves_out[:kept]))
        if len(page.encode()) <= LARGEST:
            break
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


@functools.cache
def environment() -> Environment:
    """The templates, compiled once, with the style sheet and the script that pages carry in themselves."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "style_sheet": Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "script": Markup((_TEMPLATES / "script.js").read_text(encoding="utf-8")),
        "words": words,
        "swatch": charts.swatch,
    }
    return made


def _context(run: Run, left_out: tuple[str, ...]) -> dict[str, Any]:
    results = run.results
    in_groups = groups(results.arms)
    methods = sentences.methods(results)
    overview = in_groups[0].styles if len(results.arms) <= TOGETHER else _plain_styles(run)
    return {
        "results": results,
        "started": results.started.replace("T", " ")[:16] if results.started else None,
        "headlines": [sentences.headline(results, method) for method in methods],
        "summary": sentences.summary(results) if len(methods) > 2 else None,
        "reach": sentences.reach(results) if methods else None,
        "recommendation": sentences.recommendation(results),
        "failed": sentences.failed(results),
        "left_out": left_out,
        "method_names": " and ".join(words.arm_name(method) for method in methods),
        "groups": in_groups,
        "labels": {arm.name: words.arm_label(arm) for arm in results.arms},
        "board": leaderboard(run, overview),
        "verdicts": verdict_table(run),
        "lineage": lineage(run),
        "mapper": mapper_graph(run, images=_IMAGES_OF_NODES not in left_out),
        "seeds": seed_by_seed(run),
        "learning": learning(run, in_groups),
        "calibration": calibration(run, in_groups),
        "outside": outside(run, histograms="histograms" not in left_out),
        "corruptions": corruptions(run, in_groups),
        "attacks": attacks(run),
        "changes": changes(run, images="example images" not in left_out, maps="confusion maps" not in left_out),
        "blocks": drawing.draw_blocks(run.blocks) if run.blocks else None,
        "cost": cost(run, overview),
        "environment": {name: _setting(value) for name, value in (run.environment or {}).items()},
        "config": run.config,
        "repeat": _repeat(results.command),
        "notes": list(dict.fromkeys(results.notes + results.data.notes)),
    }


def _plain_styles(run: Run) -> dict[str, str]:
    """Where there are more arms than colours, a dot shows only the kind of its arm."""
    styles_of_kind = {"base": "base", "method": "method hue-0 dash-0", "control": "control dash-0"}
    return {arm.name: styles_of_kind[arm.kind] for arm in run.results.arms}


def _repeat(command: str) -> str:
    """The command that makes a run again from its config.yaml; of a verb that takes no recipe, the command itself."""
    verb = command.removeprefix("postgrad ").split()[0]
    if verb == "study":
        return "postgrad study config.yaml"
    return f"postgrad {verb} --recipe config.yaml" if verb in ("improve", "search", "train") else command


def _setting(value: Any) -> str:
    """One value of environment.json as text; nested ones as a list of names and values."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return words.MISSING if value is None else str(value)
