"""Searches on real workers that are killed, with their driver too, and spread over machines, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from disturbed import PATIENCE_SECONDS, rows_of, wait_until

from postgrad.search.config import SearchConfig
from postgrad.search.individual import Individual
from postgrad.search.jobs import individuals

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its children's files open
]

CHILDREN = 4

SAID_BY_A_FILE = """
import os
from pathlib import Path
from postgrad.growth.words import Operation
from postgrad.search.mutations import MUTATIONS, mutation

@mutation("greedy")
def greedy(parent, draw):
    # As a process that is killed for its memory, once, or that is always told there is no more.
    once = Path(__file__).with_name("once")
    if HOW == "memory" or not once.exists():
        once.touch()
        if HOW == "killed":
            os.kill(os.getpid(), 9)
        raise MemoryError("no more")
    return MUTATIONS["deeper"](parent, draw)
"""


@pytest.fixture(scope="module")
def recipe(tiny: Callable[..., SearchConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and some children, each long enough to be disturbed."""
    config = tiny(individuals=CHILDREN, base_epochs=4, training={"epochs": 20})
    return written(config, tmp_path_factory.mktemp("recipes") / "recipe.yaml")


def written(config: SearchConfig, file: Path) -> Path:
    settings = yaml.safe_load(config.to_yaml())
    file.write_text(yaml.safe_dump({name: settings[name] for name in settings if name != "out"}))
    return file


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searches") / "undisturbed"
    ended(started("--recipe", recipe, "--workers", "0", "--out", out))
    return out


def started(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "postgrad.cli", "search", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for it; what it said on standard error."""
    _, err = process.communicate(timeout=2 * PATIENCE_SECONDS)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return err


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    below = psutil.Process(process.pid).children(recursive=True)
    return [each for each in below if "spawn_main" in " ".join(each.cmdline())]


def events(run: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


def names(run: Path) -> list[str]:
    """Hashes of journals, genes and weights: the same names are the same bits."""
    return [each.name for each in individuals(run)]


def training(run: Path, number: int) -> Path:
    return run / "population" / f".task-{number}" / "training"


def finished_files(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (run / "population").glob("*/individual.json")}


def check_whole(run: Path, children: int = CHILDREN) -> list[Individual]:
    """Every individual is there once, told once, and the results are written."""
    found = individuals(run)
    assert len(found) == 1 + children
    assert sorted(event["name"] for event in events(run, "individual")) == sorted(each.name for each in found)
    assert {each.parent for each in found} - {None} <= {each.name for each in found}
    assert not list((run / "population").glob(".task-*"))
    assert (run / "results.json").exists()
    assert (run / "report.html").exists()
    return found


def test_a_killed_worker_is_replaced_and_its_child_goes_on(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started("--recipe", recipe, "--workers", "1", "--out", run, "--quiet")
    wait_until(lambda: rows_of(training(run, 2)) >= 1, process)
    done = finished_files(run)
    (worker,) = workers(process)
    worker.kill()
    ended(process)
    (died,) = events(run, "worker dies")
    assert died["number"] == 2
    assert finished_files(run).items() >= done.items()
    check_whole(run)
    assert names(run) == names(undisturbed)


def test_a_killed_driver_loses_nothing_that_was_finished(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started("--recipe", recipe, "--workers", "1", "--out", run)
    wait_until(lambda: rows_of(training(run, 3)) >= 1, process)
    left, done = workers(process), finished_files(run)
    assert len(done) == 3
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
    assert finished_files(run).items() >= done.items()
    ended(started("--resume", run, "--workers", "1"))
    assert finished_files(run).items() >= done.items()
    check_whole(run)
    assert names(run) == names(undisturbed)
    assert len(events(run, "search resumes")) == 1


def test_ctrl_c_and_resume_end_in_the_same_lineage(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started("--recipe", recipe, "--workers", "1", "--out", run)
    wait_until(lambda: rows_of(training(run, 1)) >= 1, process)
    process.send_signal(signal.SIGINT)
    assert f"go on with: postgrad search --resume {run}" in ended(process, 130)
    assert (training(run, 1) / "checkpoint.pt").exists()
    assert not (run / "results.json").exists()
    ended(started("--resume", run, "--workers", "1", "--quiet"))
    check_whole(run)
    assert names(run) == names(undisturbed)


def test_two_workers_share_the_work(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended(started("--recipe", recipe, "--workers", "2", "--out", run, "--quiet"))
    check_whole(run)
    assert {event["slot"] for event in events(run, "trial ends")} == {0, 1}


@pytest.mark.parametrize("how", ["killed", "memory"])
def test_a_child_that_is_out_of_memory(how: str, recipe: Path, tmp_path: Path) -> None:
    """Where it was so once the search goes on as if not; where it always is, children fail and are told."""
    file, run = tmp_path / "greedy.py", tmp_path / "run"
    file.write_text(SAID_BY_A_FILE.replace("HOW", repr(how)))
    words = ["--mutation-file", file, "--preset", "uniform", "--mutations", "deeper,greedy", "--individuals", "3"]
    ended(started("--recipe", recipe, *words, "--workers", "1", "--out", run, "--quiet"))
    found = check_whole(run, children=3)
    if how == "killed":
        assert len(events(run, "worker dies")) == 1
        assert not events(run, "failed")
        assert "greedy" in {each.mutation for each in found}
    else:
        failed = events(run, "failed")
        assert failed
        of_children = [event for event in events(run, "out of memory") if event["job"] == "child"]
        assert len(of_children) == 3 * len(failed)
        assert {event["mutation"] for event in failed} == {"greedy"}
        assert all("MemoryError: no more, 3 times" in event["reason"] for event in failed)


def test_ray_makes_the_same_bits(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended(started("--recipe", recipe, "--ray", "local", "--workers", "1", "--out", run, "--quiet"))
    check_whole(run)
    assert names(run) == names(undisturbed)


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


def test_a_cluster_of_two_nodes_that_loses_one(
    tiny: Callable[..., SearchConfig], tmp_path: Path, two_nodes: Any
) -> None:
    """Its trainings are long enough for both to be at work when it does."""
    cluster, second = two_nodes
    run = tmp_path / "run"
    recipe = written(tiny(individuals=CHILDREN, training={"epochs": 400}), tmp_path / "recipe.yaml")
    process = started("--recipe", recipe, "--ray", cluster.address, "--out", run, "--quiet")
    at_work = [training(run, number) for number in (1, 2)]
    wait_until(lambda: all((place / "metrics.csv").exists() for place in at_work), process)
    cluster.remove_node(second, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    ended(process)
    assert len(events(run, "worker dies")) == 1
    check_whole(run)
