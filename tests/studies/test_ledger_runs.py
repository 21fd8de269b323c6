"""The runs of a ledger: order, parts, what is gone on with, what is left alone, what is refused, and real kills."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from postgrad.cli import main
from postgrad.errors import UserError
from postgrad.files import locked
from postgrad.reports.schema import read_results
from postgrad.studies import ledger, ledger_runs
from postgrad.studies.config import ImproveConfig
from postgrad.studies.improve import improve
from postgrad.studies.ledger_runs import first_part, improve_process, is_done, is_finished, run_rows
from postgrad.studies.raw import keep_raw

FEATURES = ["control-finetune", "control-features"]


@pytest.fixture
def recipes(tmp_path: Path, few_steps: dict[str, int]) -> Callable[..., Path]:
    """Write recipes of a second or two into one folder, by name; returns the folder."""

    def write(**changes: dict[str, Any]) -> Path:
        folder = tmp_path / "recipes"
        folder.mkdir(exist_ok=True)
        for name, of_row in changes.items():
            settings = {"model": "mlp", "data": "digits", "limit": 100, "epochs": 3, "threads": 1, "steps": few_steps}
            settings |= {"methods": ["gradnet:epochs=1,hidden=2+4+3"], "controls": ["control-finetune"], **of_row}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        return folder

    return write


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run rows in this process, and keep the words that a process of their own would have got."""
    calls: list[list[str]] = []

    def call(words: list[str]) -> int:
        calls.append(list(words))
        return main(["improve", *words, "--quiet"])

    monkeypatch.setattr(ledger_runs, "improve_process", call)
    return calls


def test_row_named_twice_gets_its_first_part_first_and_the_rest_at_the_end(
    tmp_path: Path, recipes, here: list[list[str]], predictions
) -> None:
    folder = recipes(long={"seeds": [1, 0], "controls": FEATURES}, short={})
    seen = []

    def look(name: str) -> None:
        results = read_results(tmp_path / "runs" / name / "results.json")
        seen.append((name, results.seeds, [arm.name for arm in results.arms if arm.kind == "control"]))

    names = ["long", "short", "long"]
    assert run_rows(names, recipes=folder, runs=tmp_path / "runs", after_row=look) == []
    assert seen == [
        ("long", [1], ["control-finetune"]),
        ("short", [0], ["control-finetune"]),
        ("long", [1, 0], FEATURES),
    ]
    whole = tmp_path / "whole"
    assert run_rows(["long"], recipes=folder, runs=whole, after_row=lambda _: None) == []
    grown, at_once = predictions(tmp_path / "runs" / "long"), predictions(whole / "long")
    assert grown.keys() == at_once.keys()
    for arm, probabilities in at_once.items():
        np.testing.assert_array_equal(grown[arm], probabilities, err_msg=arm)
    assert not np.array_equal(grown["gradnet"], grown["seed-0/gradnet"]), "two seeds would not be told apart"


LADDER = {"model": "seed-cnn", "limit": 400, "epochs": 10, "base_validate_every": 2}
LADDER |= {"methods": ["gradnet:epochs=1,layers=[l1.weight],hidden=[2]"]}


def test_rows_share_the_training_of_their_base(
    tmp_path: Path, recipes, few_steps: dict[str, int], here: list[list[str]], predictions
) -> None:
    """Also with a row that runs later, and was only a recipe in the same folder when the base was trained."""
    rows = {name: {**LADDER, "base_accuracy": accuracy} for name, accuracy in (("low", 0.4), ("high", 0.85))}
    folder = recipes(**rows, other={**LADDER, "base_accuracy": 0.4, "seeds": [1]})
    for name in ("high", "low", "other"):
        assert run_rows([name], recipes=folder, runs=tmp_path / "runs", after_row=lambda _: None) == []
    trainings = list((tmp_path / "runs" / "bases").glob("*/training"))
    assert len(trainings) == 2, "one for each seed"
    alone = improve(ImproveConfig.load(folder / "low.yaml").model_copy(update={"out": tmp_path / "alone"}))
    ours, theirs = predictions(tmp_path / "runs" / "low"), predictions(alone)
    for arm, probabilities in theirs.items():
        np.testing.assert_array_equal(ours[arm], probabilities, err_msg=arm)
    arm = read_results(tmp_path / "runs" / "low" / "results.json").arm("base")
    assert (arm.description or "").endswith("rows of one base share its training")
    price = {
        name: read_results(tmp_path / "runs" / name / "results.json").arm("base").cost.train_cpu_seconds
        for name in ("low", "high")
    }
    assert 0 < (price["low"] or 0) < (price["high"] or 0)


def test_copy_of_the_raw_results_does_not_say_where_bases_lie(tmp_path: Path, recipes, here: list[list[str]]) -> None:
    run_rows(["row"], recipes=recipes(row={}), runs=tmp_path / "runs", after_row=lambda _: None)
    assert ImproveConfig.load(tmp_path / "runs" / "row" / "config.yaml").bases == tmp_path / "runs" / "bases"
    keep_raw(tmp_path / "runs" / "row", tmp_path / "raw")
    assert "bases" not in (tmp_path / "raw" / "config.yaml").read_text()
    assert str(tmp_path) not in (tmp_path / "raw" / "config.yaml").read_text()


def test_finished_rows_are_left_alone(tmp_path: Path, recipes, here: list[list[str]]) -> None:
    folder, kept = recipes(row={}), []
    run_rows(["row"], recipes=folder, runs=tmp_path / "runs", after_row=kept.append)
    before = (tmp_path / "runs" / "row" / "results.json").stat().st_mtime_ns
    assert run_rows(["row"], recipes=folder, runs=tmp_path / "runs", after_row=kept.append, threads=2) == []
    assert len(here) == 1
    assert (tmp_path / "runs" / "row" / "results.json").stat().st_mtime_ns == before
    assert kept == ["row", "row"], "a kill between the end of a run and its copy would lose the copy"


def test_rows_whose_raw_results_are_kept_are_passed_over(tmp_path: Path, recipes, here: list[list[str]]) -> None:
    folder = recipes(row={})
    run_rows(["row"], recipes=folder, runs=tmp_path / "kept", after_row=lambda _: None)
    again: dict[str, Any] = {"runs": tmp_path / "runs", "kept": tmp_path / "kept", "after_row": lambda _: None}
    assert run_rows(["row"], recipes=folder, **again) == []
    assert len(here) == 1
    recipes(row={"epochs": 4})
    assert run_rows(["row"], recipes=folder, **again) == []
    assert len(here) == 2, "what other settings gave is no result of this recipe"


def test_failed_row_is_reported_and_the_next_begun(
    tmp_path: Path, recipes, here: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, finished = recipes(bad={"data": "folder:nowhere"}, good={}), []
    assert run_rows(["bad", "good"], recipes=folder, runs=tmp_path / "runs", after_row=finished.append) == ["bad"]
    assert finished == ["good"]
    assert "bad (1 of 2): postgrad improve --recipe" in (err := capsys.readouterr().err)
    assert "ended with code 2" in err


def test_run_of_other_settings_is_not_touched(
    tmp_path: Path, recipes, here: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run_rows(["row"], recipes=recipes(row={}), runs=tmp_path / "runs", after_row=lambda _: None)
    before = (tmp_path / "runs" / "row" / "config.yaml").read_bytes()
    folder, finished = recipes(row={"epochs": 4}), []
    assert run_rows(["row"], recipes=folder, runs=tmp_path / "runs", after_row=finished.append) == ["row"]
    assert "epochs: 3.0 there, 4.0 here" in capsys.readouterr().err
    assert (tmp_path / "runs" / "row" / "config.yaml").read_bytes() == before
    assert finished == []


def test_run_that_another_process_writes_is_left_to_it(tmp_path: Path, recipes, here: list[list[str]]) -> None:
    folder = recipes(row={})
    run_rows(["row"], recipes=folder, runs=tmp_path / "runs", after_row=lambda _: None)
    (tmp_path / "runs" / "row" / "results.json").unlink()
    with locked(tmp_path / "runs" / "row"):
        assert run_rows(["row"], recipes=folder, runs=tmp_path / "runs", after_row=lambda _: None) == ["row"]
    assert len(here) == 1


def test_run_killed_before_its_settings_were_written_begins_anew(
    tmp_path: Path, recipes, here: list[list[str]]
) -> None:
    folder, run = recipes(row={}), tmp_path / "runs" / "row"
    run.mkdir(parents=True)
    (run / ".lock").touch()
    (run / ".config.yaml.12.tmp").touch()
    assert run_rows(["row"], recipes=folder, runs=tmp_path / "runs", after_row=lambda _: None) == []
    assert is_finished(run)
    assert sorted(path.name for path in run.parent.iterdir()) == ["bases", "recipes", "row"]


def test_folder_that_is_no_run_is_not_touched(tmp_path: Path, recipes, here, capsys) -> None:
    folder, run = recipes(row={}), tmp_path / "runs" / "row"
    run.mkdir(parents=True)
    (run / "thesis.tex").write_text("mine")
    assert run_rows(["row"], recipes=folder, runs=tmp_path / "runs", after_row=lambda _: None) == ["row"]
    assert "holds thesis.tex and is no run" in capsys.readouterr().err
    assert (run / "thesis.tex").read_text() == "mine"


def test_run_is_not_finished_before_its_last_event(finished: Path, tmp_path: Path) -> None:
    """Killed while it wrote its report, or gone on with for more seeds: it has results.json, but not the end."""
    config = ImproveConfig.load(finished / "config.yaml")
    assert is_done(finished, config)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "results.json", "events.jsonl"):
        (copy / name).write_bytes((finished / name).read_bytes())
    assert is_done(copy, config)
    assert is_done(copy, first_part(config))
    assert not is_done(copy, config.model_copy(update={"seeds": (0, 1)}))
    text = (copy / "events.jsonl").read_text()
    for tail in ('{"event": "run resumes"}\n', '{"event": "run en'):
        (copy / "events.jsonl").write_text(text + tail)
        assert not is_finished(copy)


def test_missing_recipe_is_said_before_anything_runs(tmp_path: Path, recipes, here: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"missing\.yaml"):
        run_rows(["row", "missing"], recipes=recipes(row={}), runs=tmp_path / "runs", after_row=lambda _: None)
    assert here == []


def test_interrupted_child_gets_time_and_is_ended_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def __init__(self, seconds_needed: float) -> None:
            self.needed, self.told = seconds_needed, False

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None and self.needed > timeout:
                raise subprocess.TimeoutExpired("improve", timeout)
            return -signal.SIGTERM

        def terminate(self) -> None:
            self.told = True

    quick, deaf = Process(1.0), Process(100.0)
    for process in (quick, deaf):
        ledger_runs._end(process)  # type: ignore[arg-type]
    assert (quick.told, deaf.told) == (False, True)


# real processes

PATIENCE_SECONDS = 240.0
RUNNER = "import sys; from postgrad.studies.ledger import main; sys.exit(main())"
SAVES_OFTEN = "import postgrad.training.loop as loop; loop.SAVE_EVERY_SECONDS = 0.1; "
CHILD = f"import sys; {SAVES_OFTEN}from postgrad.cli import main; sys.exit(main())"
PATCHED = (
    "import sys, subprocess; real = subprocess.Popen; "
    f"subprocess.Popen = lambda words, **k: real([words[0], '-c', {CHILD!r}, *words[3:]], **k); "
)
"""Lets the runner start children that keep a checkpoint every tenth of a second; a test cannot wait half a minute."""


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command that makes a page's runs, saving often or as it is; none outlives the test."""
    processes = []

    def begin(page: Path, runs: Path, recipes: Path, *, often: bool) -> subprocess.Popen[str]:
        words = [str(page), "--runs", str(runs), "--recipes", str(recipes), "--run"]
        process = subprocess.Popen(
            [sys.executable, "-c", (PATCHED if often else "") + RUNNER, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        kill_all(process)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, f"the rows were over too soon: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "the moment to interrupt never came"
        time.sleep(0.01)


def kill_all(process: subprocess.Popen[str]) -> None:
    """`kill -9` for the runner and the run that it started, which share a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None and not process.stdout.closed:
        process.communicate()


def step_of(training: Path) -> int:
    try:
        saved = torch.load(training / "checkpoint.pt", weights_only=True)
    except FileNotFoundError:
        return 0
    return int(saved["position"]["step"]) if saved["history"] is None else -1


def write_page(folder: Path, order: list[str]) -> Path:
    folder.mkdir()
    content: dict[str, Any] = {"title": "T", "source": "S", "introduction": "I", "method": "gradnet", "order": order}
    content["rows"] = [{"claim": name, "run": name} for name in dict.fromkeys(order)]
    (folder / "page.yaml").write_text(yaml.safe_dump(content))
    return folder / "page.yaml"


@pytest.mark.slow
def test_killed_inside_and_between_rows_the_table_ends_as_if_it_had_not_been(
    tmp_path: Path, recipes, few_steps: dict[str, int], predictions, start: Start, here: list[list[str]]
) -> None:
    steps = few_steps | {"seed0/control-finetune/training/final": 600}
    folder = recipes(first={"steps": steps}, second={"seeds": [0, 1], "controls": FEATURES})
    page, runs = write_page(tmp_path / "disturbed", ["second", "first", "second"]), tmp_path / "runs"

    inside = start(page, runs, folder, often=True)
    wait_until(lambda: step_of(runs / "first" / "control-finetune" / "training" / "final") > 0, inside)
    kill_all(inside)
    assert is_finished(runs / "second")
    assert not is_finished(runs / "first")
    assert "| second | – | – | – | – |" in page.with_suffix(".md").read_text()
    assert "| first | – | – | – | not run |" in page.with_suffix(".md").read_text()

    growing = start(page, runs, folder, often=False)
    wait_until(lambda: (runs / "second" / "seed-1" / "base" / "arm.json").exists(), growing)
    kill_all(growing)
    assert is_finished(runs / "first")
    assert not is_finished(runs / "second")

    last = start(page, runs, folder, often=False)
    _, err = last.communicate(timeout=PATIENCE_SECONDS)
    assert last.returncode == 0, err
    other_page, others = write_page(tmp_path / "undisturbed", ["second", "first", "second"]), tmp_path / "others"
    assert ledger.main([str(other_page), "--runs", str(others), "--recipes", str(folder), "--run"]) == 0
    for name in ("first", "second"):
        ours, theirs = predictions(runs / name), predictions(others / name)
        assert ours.keys() == theirs.keys()
        for arm, probabilities in theirs.items():
            np.testing.assert_array_equal(ours[arm], probabilities, err_msg=f"{name}/{arm}")
        kept = [json.loads((of.parent / "raw" / name / "results.json").read_text()) for of in (page, other_page)]
        assert kept[0]["verdicts"] == kept[1]["verdicts"]
    assert not list(runs.rglob("*.tmp"))


@pytest.mark.slow
def test_killed_in_a_shared_base_the_rows_end_as_if_it_had_not_been(
    tmp_path: Path, recipes, predictions, start: Start, here: list[list[str]]
) -> None:
    ladder = {**LADDER, "epochs": 100, "base_validate_every": 100}
    folder = recipes(low={**ladder, "base_accuracy": 0.4}, high=ladder)
    page, runs = write_page(tmp_path / "disturbed", ["low", "high"]), tmp_path / "runs"

    def step() -> int:
        return max([step_of(training) for training in runs.glob("bases/*/training")], default=0)

    for moment in (0, 100):
        process = start(page, runs, folder, often=True)
        wait_until(lambda moment=moment: step() > moment, process)  # type: ignore[misc]
        kill_all(process)
    last = start(page, runs, folder, often=False)
    _, err = last.communicate(timeout=PATIENCE_SECONDS)
    assert last.returncode == 0, err
    assert len(list(runs.glob("bases/*/training"))) == 1
    for name in ("low", "high"):
        alone = improve(ImproveConfig.load(folder / f"{name}.yaml").model_copy(update={"out": tmp_path / name}))
        ours, theirs = predictions(runs / name), predictions(alone)
        for arm, probabilities in theirs.items():
            np.testing.assert_array_equal(ours[arm], probabilities, err_msg=f"{name}/{arm}")


@pytest.mark.slow
def test_sigterm_ends_the_run_in_progress_too(tmp_path: Path, recipes, few_steps: dict[str, int], start: Start) -> None:
    folder = recipes(row={"steps": few_steps | {"seed0/control-finetune/training/final": 100_000}})
    page, runs = write_page(tmp_path / "page", ["row"]), tmp_path / "runs"
    process = start(page, runs, folder, often=True)
    wait_until(lambda: step_of(runs / "row" / "control-finetune" / "training" / "final") > 0, process)
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    with locked(runs / "row"):
        pass  # nobody holds it any more
    assert not is_finished(runs / "row")


@pytest.mark.slow
def test_child_that_fails_gives_its_code(tmp_path: Path) -> None:
    assert improve_process(["--recipe", str(tmp_path / "missing.yaml"), "--quiet"]) == 2
