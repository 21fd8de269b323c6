"""What users do with a network goes on after it was grown: copies, files, exports, compilation, several processes.

The operators that put blocks in have tests of their own for most of this; here are widening and larger kernels, all of
them together, and data-parallel training for each.
"""

from __future__ import annotations

import copy
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import difference, images, net
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.data.preprocessing import Preprocessing
from postgrad.growth.depth import deepen
from postgrad.growth.kernels import grow_kernel
from postgrad.growth.topology import add_skip, branch, insert_group
from postgrad.growth.width import widen
from postgrad.models.checkpoints import load, save
from postgrad.models.export import export, load_exported
from postgrad.models.registry import create_model

Step = tuple[Callable[..., Any], str, dict[str, Any]]
STEPS: dict[str, Step] = {
    "widen": (widen, "plain", {"layer": "c1", "to": 12}),
    "widen tokens": (widen, "tokens", {"layer": "patches", "to": 16}),
    "deepen": (deepen, "plain", {"after": "act"}),
    "deepen by the identity": (deepen, "plain", {"after": "act", "kind": "identity"}),
    "kernel": (grow_kernel, "plain", {"layer": "c0", "to": 5}),
    "branch": (branch, "plain", {"layer": "c1"}),
    "skip": (add_skip, "plain", {"source": "c0", "target": "act"}),
    "group": (insert_group, "plain", {"after": "act", "groups": 4, "init": "random"}),
}
RESIZED = ("widen", "widen tokens", "kernel", "all")
GRAPH = "aot_eager"
"""Takes the graph, forwards and backwards, and compiles no C++, which is torch's part and ten times as long."""


def start(step: str) -> nn.Module:
    return net("plain" if step == "all" else STEPS[step][1])


def grow(model: nn.Module, step: str, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """Grow in place by one step, or by six, one upon another."""
    names = [step] if step != "all" else ["widen", "deepen", "kernel", "branch", "skip", "group"]
    example = images().to(next(model.parameters()).dtype)
    for name in names:
        operator, _, options = STEPS[name]
        operator(model, **options, example=example, optimizer=optimizer)
    return model


@functools.cache
def grown(step: str) -> nn.Module:
    """Not to be changed."""
    return grow(start(step), step)


def shaken(model: nn.Module) -> nn.Module:
    """Parameters that leave no gate closed, and no replica its twin."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.2, generator=generator)
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("step", RESIZED)
def test_it_is_copied_pickled_and_its_weights_are_loaded(step: str) -> None:
    blank = copy.deepcopy(grown(step))
    model = shaken(copy.deepcopy(blank))
    assert difference(model, blank) > 1e-3  # the control: other weights are another function
    blank.load_state_dict(model.state_dict())
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), blank):
        assert difference(model, same) == 0
        assert not {id(each) for each in same.parameters()} & {id(each) for each in model.parameters()}


@pytest.mark.parametrize(("step", "to"), [("widen", 24), ("kernel", 7)])
def test_a_copy_grows_by_itself(step: str, to: int) -> None:
    model = copy.deepcopy(grown("all"))
    shapes = {name: each.shape for name, each in model.named_parameters()}
    operator, _, options = STEPS[step]
    larger = copy.deepcopy(model)
    operator(larger, **options | {"to": to}, example=images())
    assert difference(model, larger) <= 1e-9
    assert {name: each.shape for name, each in model.named_parameters()} == shapes
    assert {name: each.shape for name, each in larger.named_parameters()} != shapes


def test_it_is_saved_and_built_again(tmp_path: Path) -> None:
    model = create_model("seed-cnn", num_classes=4, image_size=12)
    x = images(2, 12)
    before = copy.deepcopy(model)
    widen(model, "c0", to=80, example=x)
    grow_kernel(model, "c1", to=7, example=x)
    shaken(model)
    save(model, tmp_path / "grown", preprocess=Preprocessing(), class_names=list("abcd"))
    again = load(tmp_path / "grown")
    assert torch.equal(again(x), model(x))
    assert not torch.allclose(before(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("step", RESIZED)
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_it_is_exported(step: str, format: str, tmp_path: Path) -> None:
    model = shaken(copy.deepcopy(grown(step)))
    file = tmp_path / f"grown.{format}"
    export(model, file, format=format, example=images())
    torch.testing.assert_close(load_exported(file)(images(3)), model(images(3)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself does
@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize(("step", "backend"), [("widen", GRAPH), ("kernel", GRAPH), ("all", "inductor")])
def test_it_is_compiled_as_one_graph(step: str, backend: str) -> None:
    model = shaken(copy.deepcopy(grown(step)))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("step", [*STEPS, "all"])
def test_one_that_was_compiled_before_is_compiled_again(step: str) -> None:
    model = start(step)
    compiled = torch.compile(model, backend=GRAPH)
    compiled(images())
    shaken(grow(model, step))
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-4)


DISTRIBUTED = """
import copy, sys, torch
import torch.distributed as dist
from test_after_growth import STEPS, grow, optimizer_of, start, train
from torch.nn.parallel import DistributedDataParallel

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(rank)  # nothing may hang on the random state of a process
whole = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
labels = torch.arange(8) % 4
half = slice(4 * rank, 4 * rank + 4)
for step in [*STEPS, "all"]:
    model = start(step).double()
    alone, together = copy.deepcopy(model), copy.deepcopy(model)
    for network in (model, alone):
        optimizer = optimizer_of(network)
        wrapped = DistributedDataParallel(network) if network is model else network
        train(wrapped, optimizer, whole[half], labels[half])
        grow(network, step, optimizer)
        wrapped = DistributedDataParallel(network) if network is model else network
        train(wrapped, optimizer, whole[half], labels[half])
    optimizer = optimizer_of(together)
    train(together, optimizer, whole, labels)
    grow(together, step, optimizer)
    train(together, optimizer, whole, labels)
    pairs = [*zip(model.parameters(), together.parameters(), strict=True)]
    worst = max((one - other).abs().max().item() for one, other in pairs)
    # Behind a ReLU, an identity layer gives zero but for rounding, and rounding decides whether its own ReLU is open.
    assert worst < (1e-2 if step == "deepen by the identity" else 1e-10), (step, worst)
    for parameter in model.parameters():
        first = parameter.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, parameter), step
    assert any(not torch.allclose(one, other) for one, other in zip(alone.parameters(), together.parameters())), step
print("all the same")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_a_network_that_grows_as_one_does(tmp_path: Path) -> None:
    here = Path(__file__).resolve().parent
    paths = [str(here), str(here.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=280) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (output, errors) in zip(ranks, said, strict=True):
        assert rank.returncode == 0, errors
        assert output == "all the same\n"
