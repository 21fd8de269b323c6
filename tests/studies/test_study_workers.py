"""Studies on real workers that are killed, interrupted and spread over machines, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from disturbed import PATIENCE_SECONDS, probabilities_of, rows_of, wait_until

from postgrad.cli import main
from postgrad.reports.schema import read_results
from postgrad.studies.overhead import scheduling_overhead, trial_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its children's files open
]

GRADNET_STEPS, FINAL_STEPS = 200, 300


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of GradNet with one control, all of fixed steps, and long enough to be disturbed."""
    steps = {f"seed{seed}/control-finetune/training/trial-{number}": 5 for seed in (0, 1) for number in range(3)}
    steps |= {f"seed{seed}/control-finetune/training/final": FINAL_STEPS for seed in (0, 1)}
    content: dict[str, Any] = {
        "model": "mlp",
        "data": "digits",
        "limit": 400,
        "epochs": 1,
        "threads": 1,
        "seeds": 2,
        "steps": steps,
        "arms": {"gradnet": f"gradnet:hidden=4+8+4,steps={GRADNET_STEPS}"},
        "controls": ["control-finetune"],
    }
    file = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "undisturbed"
    assert main(["study", str(recipe), "--workers", "0", "--out", str(out), "--quiet"]) == 0
    return out


def started(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "postgrad.cli", "study", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for it; what it said on standard error."""
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return err


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes below a study that import torch, which workers alone do."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [each for each in below if "spawn_main" in " ".join(each.cmdline())]


def check_same(ours: Path, theirs: Path) -> None:
    """The same bits in every prediction, metric, verdict and step count."""
    a, b = probabilities_of(ours), probabilities_of(theirs)
    assert len(a) == 6
    assert a.keys() == b.keys()
    for arm in a:
        np.testing.assert_array_equal(a[arm], b[arm], err_msg=arm)
    first, second = (json.loads((run / "results.json").read_text()) for run in (ours, theirs))
    for key in ("verdicts", "recommended", "failures", "data", "seeds"):
        assert first[key] == second[key]
    for arm, other in zip(first["arms"], second["arms"], strict=True):
        assert (arm["name"], arm["metrics"]) == (other["name"], other["metrics"])
        assert arm["description"] == other["description"]
    steps = [yaml.safe_load((run / "config.yaml").read_text())["steps"] for run in (ours, theirs)]
    assert steps[0] == steps[1]


def events(run: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


def test_killed_worker_is_replaced_and_its_trial_made_again(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(recipe, "--workers", "1", "--out", run, "--quiet")
    wait_until(lambda: rows_of(run / "gradnet" / "training") >= 1, process)
    finished = {path: path.stat().st_mtime_ns for path in run.rglob("arm.json")}
    (worker,) = workers(process)
    worker.kill()
    ended(process)
    assert [event["arm"] for event in events(run, "worker dies")] == ["gradnet"]
    assert finished
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    check_same(run, undisturbed)


def test_ctrl_c_and_resume_end_in_the_same_results(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(recipe, "--workers", "1", "--out", run)
    wait_until(lambda: rows_of(run / "gradnet" / "training") >= 1, process)
    process.send_signal(signal.SIGINT)
    err = ended(process, 130)
    assert f"go on with: postgrad study --resume {run}" in err
    assert (run / "gradnet" / "training" / "checkpoint.pt").exists()
    assert not (run / "gradnet" / "arm.json").exists()
    assert not (run / "results.json").exists()
    done = {path: path.stat().st_mtime_ns for path in run.rglob("arm.json")}
    ended(started(recipe, "--resume", run, "--workers", "1"))
    assert {path: path.stat().st_mtime_ns for path in done} == done
    check_same(run, undisturbed)
    assert not list(run.rglob("checkpoint.pt"))


def test_sigterm_is_like_ctrl_c_and_a_killed_study_leaves_no_workers(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(recipe, "--workers", "1", "--out", run)
    wait_until(lambda: (run / "base" / "arm.json").exists(), process)
    process.terminate()
    assert "go on with: postgrad study --resume" in ended(process, 130)

    process = started("--resume", run, "--workers", "1")
    wait_until(lambda: rows_of(run / "gradnet" / "training") >= 2, process)
    left = workers(process)
    assert left
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive

    ended(started("--resume", run, "--workers", "1"))
    check_same(run, undisturbed)


def test_ray_makes_the_same_bits(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended(started(recipe, "--ray", "local", "--workers", "1", "--out", run, "--quiet"))
    check_same(run, undisturbed)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, with room for one worker each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        yield cluster, second
    finally:
        cluster.shutdown()


def test_a_cluster_of_two_nodes_that_loses_one(recipe: Path, undisturbed: Path, tmp_path: Path, two_nodes: Any) -> None:
    cluster, second = two_nodes
    run = tmp_path / "run"
    process = started(recipe, "--ray", cluster.address, "--out", run, "--quiet")
    wait_until(
        lambda: rows_of(run / "gradnet" / "training") and rows_of(run / "seed-1" / "gradnet" / "training"), process
    )
    assert {event["slot"] for event in events(run, "trial begins")} == {0, 1}
    cluster.remove_node(second, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    ended(process)
    assert len(events(run, "worker dies")) == 1
    check_same(run, undisturbed)


def test_two_workers_wait_little_for_their_scheduler(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended(started(recipe, "--workers", "2", "--out", run, "--quiet"))
    assert {event["slot"] for event in trial_events(run)} == {0, 1}
    overhead = scheduling_overhead(run)
    assert overhead is not None
    assert 0 <= overhead <= 0.05
    assert any("scheduling took" in note for note in read_results(run / "results.json").notes)
