"""Controls of a search: as much compute as the winner's lineage, nothing that is not theirs, the same bits again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from postgrad._loading import load
from postgrad.errors import UserError
from postgrad.growth.blocks import Layer
from postgrad.search.context import PASSES, Context
from postgrad.search.controls import CONTROLS, Control, ancestors, control_jobs
from postgrad.search.curves import joined
from postgrad.search.fresh import drawn_anew
from postgrad.search.individual import Individual
from postgrad.search.jobs import Child
from postgrad.search.stacking import grow_evenly


def control(bred: Any, name: str) -> Individual:
    found = Individual.read(bred.context.directory / name)
    assert found is not None
    return found


def network(bred: Any, name: str) -> nn.Module:
    return load(bred.context.directory / name)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", CONTROLS)
def test_each_takes_the_multiply_adds_of_the_winners_lineage(bred: Any, name: str) -> None:
    made, generations = control(bred, name), len(bred.path) - 1
    wanted = bred.winner.lineage_multiply_adds
    trainings = generations if name == "control-random" else 1
    half_a_step = PASSES * bred.batch * made.multiply_adds / 2
    assert abs(made.lineage_multiply_adds - wanted) <= trainings * half_a_step
    assert wanted > 4 * half_a_step  # else anything would do
    begins = 0 if name == "control-from-scratch" else bred.path[0].training_multiply_adds
    assert made.lineage_multiply_adds == begins + made.training_multiply_adds


def test_the_ancestor_that_is_trained_on_is_the_ancestor(bred: Any) -> None:
    base = bred.path[0]
    assert shapes(network(bred, "control-finetune")) == shapes(bred.context.network(base.name))
    assert control(bred, "control-finetune").parent == base.name
    curve = (bred.context.directory / "control-finetune/metrics.csv").read_text().splitlines()
    assert curve[0].endswith("parameters,growths")
    assert {line.rpartition(",")[2] for line in curve[1:]} == {"0"}  # it never grew


def test_from_scratch_is_the_winners_architecture_and_genes_and_none_of_its_weights(bred: Any) -> None:
    winner = bred.context.network(bred.winner.name)
    made = network(bred, "control-from-scratch")
    assert shapes(made) == shapes(winner)
    assert control(bred, "control-from-scratch").genes == bred.winner.genes
    assert control(bred, "control-from-scratch").parent is None
    for name, weight in made.named_parameters():
        if weight.ndim > 1:
            alike = torch.nn.functional.cosine_similarity(weight.flatten(), winner.get_parameter(name).flatten(), dim=0)
            assert abs(alike) < 0.5, name


def test_random_mutations_are_as_many_as_led_to_the_winner_and_leave_no_population(bred: Any) -> None:
    made = control(bred, "control-random")
    assert len(made.operations) == len(bred.path) - 1
    assert made.parameters == sum(p.numel() for p in network(bred, "control-random").parameters())
    assert not (bred.context.directory / "control-random/population").exists()


def test_stacking_is_as_deep_as_the_winner_and_not_larger(bred: Any) -> None:
    made = control(bred, "control-stacking")
    assert made.architecture.depth == bred.winner.architecture.depth
    assert 0.8 * bred.winner.parameters < made.parameters <= bred.winner.parameters


@pytest.mark.slow
def test_an_interrupted_random_lineage_goes_on_to_the_same_bits(bred: Any, monkeypatch, tmp_path: Path) -> None:
    directory = tmp_path / "search"
    shutil.copytree(bred.context.directory / "population", directory / "population")
    context = replace(bred.context, directory=directory)
    makes, make = [], Child.make

    def interrupted(job: Child, of: Context) -> str:
        makes.append(job)
        if len(makes) == 2:
            raise KeyboardInterrupt
        return make(job, of)

    monkeypatch.setattr(Child, "make", interrupted)
    job = Control("control-random", bred.winner.name)
    with pytest.raises(KeyboardInterrupt):
        job.make(context)
    assert Individual.read(directory / job.folder) is None
    job.make(context)
    again = load(directory / "control-random").state_dict()
    for name, tensor in network(bred, "control-random").state_dict().items():
        assert torch.equal(tensor, again[name]), name


def test_a_finished_control_is_left_and_one_of_another_winner_made_anew(bred: Any, monkeypatch) -> None:
    made: list[str] = []
    monkeypatch.setitem(CONTROLS, "control-finetune", lambda setting: made.append(setting.winner.name))
    job = Control("control-finetune", bred.winner.name)
    assert job.make(bred.context) == "control-finetune"
    assert made == []
    monkeypatch.setattr("postgrad.search.controls._keep", lambda *_: None)
    kept = bred.context.directory / "kept"
    shutil.copytree(bred.context.directory / "control-finetune", kept)
    Control("control-finetune", bred.path[1].name).make(bred.context)
    assert made == [bred.path[1].name]
    assert not (bred.context.directory / "control-finetune").exists()
    kept.rename(bred.context.directory / "control-finetune")


def test_a_base_that_nothing_beats_has_no_controls(bred: Any) -> None:
    assert control_jobs(bred.path[0]) == []
    assert [job.folder for job in control_jobs(bred.winner)] == list(CONTROLS)
    assert ancestors(bred.context, bred.winner.name) == list(bred.path)


def test_steps_are_those_that_fit(bred: Any) -> None:
    context, base = bred.context, bred.path[0]
    model = context.network(base.name)
    n, per_image = len(context.images), PASSES * base.multiply_adds
    whole = -(-n // bred.batch)
    for epochs in (1, 2, 5):
        assert context.steps_for(model, epochs * n * per_image, base.genes) == epochs * whole
    assert context.steps_for(model, 3.4 * bred.batch * per_image, base.genes) == 3
    assert context.steps_for(model, 1, base.genes) == 1


@pytest.fixture
def grown_net() -> nn.Module:
    """A residual layer with a gate and a normalisation, its gate trained away from where it began."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Layer(4, form="gated"), nn.Flatten(), nn.Linear(144, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3)
    return net.eval()


def test_weights_drawn_anew_keep_nothing_and_gates_begin_where_they_did(grown_net: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in grown_net.state_dict().items()}
    made = drawn_anew(grown_net, seed=1)
    assert torch.equal(made.get_parameter("2.gate"), torch.ones(1))
    assert torch.equal(made.get_parameter("1.weight"), torch.ones(4))
    for name, weight in made.named_parameters():
        assert not torch.equal(weight, before[name]), name
    fan_in = 9 * 4
    assert made.get_parameter("2.layer.weight").std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.3)  # He's
    assert all(torch.equal(tensor, before[name]) for name, tensor in grown_net.state_dict().items())
    same, other = drawn_anew(grown_net, seed=1), drawn_anew(grown_net, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), same.parameters(), strict=True))
    assert not torch.equal(made.get_parameter("0.weight"), other.get_parameter("0.weight"))


class Scaled(nn.Module):
    """A layer with weights of its own that says not how they begin."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def test_a_layer_whose_weights_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match=r"1: Scaled .* reset_parameters"):
        drawn_anew(nn.Sequential(nn.Linear(3, 3), Scaled()), seed=0)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class Staged(nn.Module):
    """Two stages of blocks, each of which can follow itself, and a head that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.stages = nn.ModuleList(nn.Sequential(self.block(), self.block()) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def block(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "operator"), [(plain, "deepen"), pytest.param(Staged, "stack", marks=pytest.mark.slow)]
)
def test_even_growth_takes_turns_and_then_widens(make: Callable[[], nn.Module], operator: str) -> None:
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(2, 1, 8, 8)
    before = sum(isinstance(each, nn.Conv2d | nn.Linear) for each in model.modules())
    grown = grow_evenly(model, images, depth=before + 2, parameters=9_000, seed=0)
    deeper = [each for each in grown if each.operation.name != "widen"]
    assert [each.operation.name for each in deeper] == [operator] * 2
    assert len({each.place for each in deeper}) > 1
    assert sum(isinstance(each, nn.Conv2d | nn.Linear) for each in model.modules()) == before + 2
    assert 7_000 < sum(parameter.numel() for parameter in model.parameters()) <= 9_000


def test_a_network_that_is_large_enough_is_left_alone() -> None:
    model = plain().eval()
    assert grow_evenly(model, torch.randn(2, 1, 8, 8), depth=3, parameters=100, seed=0) == []


def test_curves_go_on_where_the_last_ended(tmp_path: Path) -> None:
    first, second, absent = (tmp_path / name for name in ("a.csv", "b.csv", "c.csv"))
    first.write_text("step,epoch,loss,seconds\n5,0.5,2.0,1.5\n10,1.0,1.0,3.0\n")
    second.write_text("step,epoch,loss,seconds\n4,0.4,0.5,2.0\n")
    text = joined([first, absent, second], [100, 100, 140])
    assert text is not None
    assert text.splitlines() == [
        "step,epoch,loss,seconds,parameters,growths",
        "5.0,0.5,2.0,1.5,100,0",
        "10.0,1.0,1.0,3.0,100,0",
        "14.0,1.4,0.5,5.0,140,1",
    ]
    assert joined([absent], [100]) is None


def test_networks_are_read_in_whatever_folder_the_search_goes_on(bred: Any, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not here"):
        load(bred.context.folder(bred.winner.name))
    assert shapes(bred.context.network(bred.winner.name)) == shapes(
        bred.context.loaded(bred.context.directory / "control-from-scratch")
    )
