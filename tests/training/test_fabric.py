"""Devices by name, quiet Fabric, and two processes that train as one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from postgrad.errors import UserError
from postgrad.training import make_fabric
from postgrad.training.batches import Batches


def test_strategies_that_split_weights_are_refused():
    with pytest.raises(UserError, match="unknown strategy 'fsdp'; it is one of auto, ddp"):
        make_fabric("cpu", strategy="fsdp")


def test_fabric_is_quiet_even_where_warnings_are_errors():
    script = """
        from postgrad.training import make_fabric
        import sys
        assert "lightning" not in sys.modules, "only make_fabric needs it"
        fabric = make_fabric("cpu")
        print(fabric.device, fabric.world_size)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("cpu 1\n", "", 0)


def test_slices_of_all_processes_are_the_batch():
    alone = Batches(50, 8, seed=3)
    together = [Batches(50, 8, seed=3, rank=rank, world=3) for rank in range(3)]
    for step in range(15):
        expected, _, weight = alone(step)
        assert weight == 1.0
        parts = [batches(step) for batches in together]
        weighed = [indices for indices, _, weight in parts if weight > 0]
        assert torch.equal(torch.cat(weighed), expected)
        assert sum(weight for _, _, weight in parts) == pytest.approx(3)


def test_each_process_draws_other_numbers():
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for rank in range(2):
            _, generator, _ = Batches(50, 8, seed=3, rank=rank, world=2)(step=4)
            drawn += [torch.rand(5), torch.rand(5, generator=generator)]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 4


TWO_PROCESSES = """
    import json, sys, torch
    from pathlib import Path
    from torch import nn
    from torch.nn import functional as F
    from postgrad.training import Recipe, make_fabric, train

    directory, devices = Path(sys.argv[1]), int(sys.argv[2])
    fabric = make_fabric("cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    torch.manual_seed(0)
    x = torch.randn(61, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))

    def validate(network):
        return {"accuracy": float((network(x).argmax(1) == y).double().mean())}

    history = train(
        model, n=61, seed=0, directory=directory, resume=True, validate=validate, fabric=fabric,
        make_batch=lambda i, g: (x[i], y[i]),
        loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        recipe=Recipe(
            **json.loads(sys.argv[3]), batch_size=12, lr=0.1, optimizer_options={"momentum": 0.9}, keep="best"
        ),
    )
    result = {
        "rank": fabric.global_rank,
        "world": fabric.world_size,
        "steps": history.steps,
        "losses": [row["loss"] for row in history.rows],
        "best": history.best_metrics,
        "weights": torch.cat([p.flatten() for p in model.parameters()]).tolist(),
    }
    (directory / f"{fabric.global_rank}.json").write_text(json.dumps(result))
"""


def run_script(tmp_path, directory, devices, length):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    command = [sys.executable, str(script), str(tmp_path / directory), str(devices), json.dumps(length)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((tmp_path / directory / f"{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """61 images in batches of 12: the last batch has a single image, so one process has nothing that counts."""
    (one,) = run_script(tmp_path, "one", 1, {"epochs": 4})
    two = run_script(tmp_path, "two", 2, {"epochs": 4})
    assert [result["rank"] for result in two] == [0, 1]
    for result in two:
        assert result["world"] == 2
        assert result["steps"] == one["steps"] == 24
        assert result["weights"] == pytest.approx(one["weights"], abs=1e-6)
        assert result["losses"] == pytest.approx(one["losses"], abs=1e-6)
        assert result["best"] == one["best"]
    assert two[0]["weights"] == two[1]["weights"]
    assert (tmp_path / "two" / "checkpoint.pt").exists()
    assert len(list((tmp_path / "two").glob("metrics.csv"))) == 1


@pytest.mark.slow
def test_two_processes_agree_on_the_length_of_a_budget(tmp_path):
    first, second = run_script(tmp_path, "budget", 2, {"budget": "4s"})
    assert first["steps"] == second["steps"] > 1
    assert first["weights"] == second["weights"]
    again = run_script(tmp_path, "budget", 2, {"budget": "4s"})
    assert [result["weights"] for result in again] == [first["weights"]] * 2
