"""The runs of a ledger, one row after another: each is begun, gone on with or left alone, as its directory says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from postgrad.errors import UserError
from postgrad.files import locked
from postgrad.reports.schema import read_results
from postgrad.studies.config import ImproveConfig
from postgrad.studies.run import EVENTS

OF_ONE_CALL = {"out", "resume", "steps", "data_dir", "weights", "threads", "bases", "base_targets"}
"""Settings that are filled in, or that each machine has its own of."""

GROWING = {"seeds", "controls"}
"""Settings that a run may get more of when it is finished."""

PATIENCE_SECONDS = 10.0
"""How long an interrupted run gets to end its step and to keep its state."""


def run_rows(
    names: Sequence[str],
    *,
    recipes: Path,
    runs: Path,
    after_row: Callable[[str], None],
    kept: Path | None = None,
    threads: int | None = None,
) -> list[str]:
    """Run the rows of these names in this order; returns those that are not finished, after saying why.

    >>> run_rows(["low", "high", "low"], recipes=Path("recipes"), runs=Path("runs"), after_row=print)
    []

    `recipes/NAME.yaml` is run into `runs/NAME`. A name that comes again later is run for the first seed and the first
    control of its recipe, and the last time for the rest. What is finished there is left alone, what was interrupted
    goes on, and a row that fails does not keep the next from beginning. `after_row` is called with each name whose run
    is finished. Rows whose raw results in `kept/NAME` hold all that is wanted are passed over.

    Rows whose bases differ only in where they stop share one training of it, in `runs/bases`.
    """
    recipe_of = {name: _sharing_bases(ImproveConfig.load(recipes / f"{name}.yaml"), recipes, runs) for name in names}
    unfinished: dict[str, None] = {}
    for position, name in enumerate(names):
        wanted = recipe_of[name] if name not in names[position + 1 :] else first_part(recipe_of[name])
        where = f"{name} ({position + 1} of {len(names)})"
        unfinished.pop(name, None)
        if kept is not None and is_done(kept / name, wanted):
            _say(f"{where}: its raw results are kept already")
            continue
        try:
            if is_done(runs / name, wanted):
                _say(f"{where}: finished before")
            else:
                _say(f"{where}: seeds {', '.join(map(str, wanted.seeds))}; {', '.join(wanted.controls)}")
                _run_row(runs / name, recipes / f"{name}.yaml", wanted, threads)
        except UserError as error:
            _say(f"{where}: {error}")
            unfinished[name] = None
        else:
            after_row(name)
    return list(unfinished)


def first_part(recipe: ImproveConfig) -> ImproveConfig:
    """The first seed of a recipe, with its first control."""
    return recipe.model_copy(update={"seeds": recipe.seeds[:1], "controls": recipe.controls[:1]})


def _sharing_bases(recipe: ImproveConfig, recipes: Path, runs: Path) -> ImproveConfig:
    """A recipe that shares its base with the others of its folder, which may be run later.

    That they have the same data and model is enough here: a target too many costs one file of weights.
    """
    others = [ImproveConfig.load(file) for file in sorted(recipes.glob("*.yaml"))]
    stops = {other.base_accuracy for other in others if (other.data, other.model) == (recipe.data, recipe.model)}
    targets = tuple(sorted(stop for stop in stops if stop is not None))
    return recipe.model_copy(update={"bases": runs / "bases", "base_targets": targets})


def is_done(directory: Path, wanted: ImproveConfig) -> bool:
    """Whether a run directory, or what is kept of one, is finished and holds these settings, seeds and controls."""
    if not is_finished(directory) or differences(directory, wanted):
        return False
    results = read_results(directory / "results.json")
    return {*wanted.seeds} <= {*results.seeds} and {*wanted.controls} <= {arm.name for arm in results.arms}


def is_finished(directory: Path) -> bool:
    """Whether a run came to its end; one that got more seeds or controls since then has to come there again."""
    if not (directory / "results.json").exists():
        return False
    last = (directory / EVENTS).read_text(encoding="utf-8").splitlines()[-1]
    return last.endswith("}") and json.loads(last)["event"] == "run ends"


def differences(directory: Path, wanted: ImproveConfig) -> list[str]:
    """The settings of a run that are not those wanted, in words."""
    left_out = OF_ONE_CALL | GROWING
    there = ImproveConfig.load(directory / "config.yaml").model_dump(mode="json", exclude=left_out)
    here = wanted.model_dump(mode="json", exclude=left_out)
    return [f"{name}: {there[name]} there, {here[name]} here" for name in here if here[name] != there[name]]


def _run_row(directory: Path, recipe: Path, wanted: ImproveConfig, threads: int | None) -> None:
    """Bring one run to its end in a process of its own, so that nothing of it burdens the next."""
    if (directory / "config.yaml").exists():
        _extend(directory, wanted, recipe)
        words = ["--resume", str(directory)]
    else:
        _clear(directory)
        settings = directory.parent / "recipes" / recipe.name
        wanted.save(settings)
        words = ["--recipe", str(settings), "--out", str(directory)]
        words += ["--threads", str(threads)] if threads is not None else []
    code = improve_process(words)
    if code:
        raise UserError(f"postgrad improve {' '.join(words)} ended with code {code}; what it said stands above")


def _extend(directory: Path, wanted: ImproveConfig, recipe: Path) -> None:
    """Ask a run for the seeds and controls that are wanted too; those that it has stay as they are."""
    if different := differences(directory, wanted):
        raise UserError(f"{directory} was not made by {recipe} ({'; '.join(different)}); move it away")
    with locked(directory):
        config = ImproveConfig.load(directory / "config.yaml")
        more = {name: list(dict.fromkeys([*getattr(config, name), *getattr(wanted, name)])) for name in GROWING}
        shared = {"bases": wanted.bases, "base_targets": wanted.base_targets}
        ImproveConfig.model_validate(config.model_dump() | more | shared).save(directory / "config.yaml")


def _clear(directory: Path) -> None:
    """Remove what a run left that was killed before it had written down its settings: it would be taken for another's.

    Such a run leaves its lock, and perhaps a half written file; anything else is not touched.
    """
    if not directory.exists():
        return
    with locked(directory):
        others = [path.name for path in directory.iterdir() if path.name != ".lock" and path.suffix != ".tmp"]
        if others:
            raise UserError(f"{directory} holds {', '.join(sorted(others))} and is no run; move it away")
        shutil.rmtree(directory)


def improve_process(words: Sequence[str]) -> int:
    """`postgrad improve` with these words in a process of its own; its exit code. Ctrl-C lets it keep its state."""
    process = subprocess.Popen([sys.executable, "-m", "postgrad.cli", "improve", *words])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise
    if code == 130:
        raise KeyboardInterrupt
    return code


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that Ctrl-C has reached as well; end it where only this one was told."""
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
