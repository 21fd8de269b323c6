"""Real interruptions of real processes: a run that goes on ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from disturbed import PATIENCE_SECONDS, probabilities_of, rows_of, wait_until

from postgrad.cli import main

pytestmark = pytest.mark.slow

GRADNET_STEPS, FINAL_STEPS = 150, 1000

SAVES_OFTEN = "import sys, postgrad.training.loop as loop; loop.SAVE_EVERY_SECONDS = 0.1; "
"""Checkpoints come every half minute; a test that kills in the middle of a training cannot wait that long."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, few_steps: dict[str, int]) -> Path:
    """A config.yaml that holds step counts, as that of a finished run does; method and one control are long."""
    steps = few_steps | {"seed0/gradnet/training": GRADNET_STEPS, "seed0/control-finetune/training/final": FINAL_STEPS}
    content: dict[str, Any] = {
        "model": "mlp",
        "data": "digits",
        "limit": 200,
        "epochs": 1,
        "threads": 1,
        "steps": steps,
    }
    content["methods"] = ["gradnet:hidden=4+8+4,budget=10s"]
    file = tmp_path_factory.mktemp("settings") / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def undisturbed(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert main(["improve", "--quiet", "--recipe", str(settings), "--out", str(out)]) == 0
    return out


def command(*, often: bool) -> list[str]:
    """`postgrad improve`, as it is or with a checkpoint every tenth of a second."""
    if not often:
        return [sys.executable, "-m", "postgrad.cli", "improve", "--quiet"]
    return [sys.executable, "-c", f"{SAVES_OFTEN}from postgrad.cli import main; sys.exit(main())", "improve", "--quiet"]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def started(*words: str | Path, often: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command(often=often), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def killed(process: subprocess.Popen[str]) -> None:
    """`kill -9`, and close what the process wrote to."""
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def step_of(training: Path) -> int:
    """How far a training is, by its checkpoint; 0 before there is one. (A checkpoint is never half written.)"""
    try:
        saved = torch.load(training / "checkpoint.pt", weights_only=True)
    except FileNotFoundError:
        return 0
    return int(saved["position"]["step"]) if saved["history"] is None else -1


def check_same(ours: Path, theirs: Path) -> None:
    """The same bits in every prediction, metric and verdict."""
    a, b = probabilities_of(ours), probabilities_of(theirs)
    assert len(a) == 6
    assert a.keys() == b.keys()
    for arm in a:
        np.testing.assert_array_equal(a[arm], b[arm], err_msg=arm)
    results = [json.loads((run / "results.json").read_text()) for run in (ours, theirs)]
    for arm, other in zip(results[0]["arms"], results[1]["arms"], strict=True):
        assert (arm["name"], arm["metrics"], arm["description"]) == (
            other["name"],
            other["metrics"],
            other["description"],
        )
    for key in ("verdicts", "recommended", "notes", "warnings", "data"):
        assert results[0][key] == results[1][key]
    steps = [yaml.safe_load((run / "config.yaml").read_text())["steps"] for run in (ours, theirs)]
    assert steps[0] == steps[1]


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]


def test_ctrl_c_keeps_everything_and_says_how_to_go_on(settings: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "interrupted"
    training = run / "gradnet" / "training"
    process = started("--recipe", settings, "--out", run, often=False)
    wait_until(lambda: rows_of(training) >= 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert out == ""
    assert f"go on with: postgrad improve --resume {run}" in err
    assert err.splitlines()[-1] == "postgrad: interrupted"
    assert "Traceback" not in err
    assert 0 < step_of(training) < GRADNET_STEPS
    assert not (run / "results.json").exists()

    resumed = started("--resume", run, often=False)
    out, err = resumed.communicate(timeout=PATIENCE_SECONDS)
    assert resumed.returncode == 0, err
    check_same(run, undisturbed)
    assert events(run).count("run resumes") == 1


def test_kill_in_the_method_and_again_in_a_control(settings: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    method, control = run / "gradnet" / "training", run / "control-finetune" / "training" / "final"

    first = started("--recipe", settings, "--out", run, often=True)
    wait_until(lambda: step_of(method) > 0, first)
    killed(first)
    assert 0 < step_of(method) < GRADNET_STEPS
    assert not (run / "gradnet" / "arm.json").exists()

    second = started("--resume", run, often=True)
    wait_until(lambda: step_of(control) > 0, second)
    killed(second)
    assert (run / "gradnet" / "arm.json").exists()
    assert 0 < step_of(control) < FINAL_STEPS
    assert not (run / "control-finetune" / "arm.json").exists()

    third = started("--resume", run, often=False)
    _, err = third.communicate(timeout=PATIENCE_SECONDS)
    assert third.returncode == 0, err
    check_same(run, undisturbed)
    assert events(run).count("run resumes") == 2
    assert not list(run.rglob("*.tmp"))


def test_a_lost_checkpoint_would_be_seen(settings: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Negative control: with another checkpoint in its place the bits differ."""
    run = tmp_path / "tampered"
    method = run / "gradnet" / "training"
    process = started("--recipe", settings, "--out", run, often=True)
    wait_until(lambda: step_of(method) > 0, process)
    killed(process)
    saved = torch.load(method / "checkpoint.pt", weights_only=True)
    saved["position"]["step"] += 1
    torch.save(saved, method / "checkpoint.pt")
    resumed = started("--resume", run, often=False)
    _, err = resumed.communicate(timeout=PATIENCE_SECONDS)
    assert resumed.returncode == 0, err
    assert not np.array_equal(probabilities_of(run)["gradnet"], probabilities_of(undisturbed)["gradnet"])
