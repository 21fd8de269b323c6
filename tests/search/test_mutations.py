"""The mutations: what they draw can be grown and computes the same, within the bounds that are stated for each."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bred import BASES, IMAGES, parent_of, three
from bred import parent as shared
from networks_to_grow import mlp
from scipy.stats import kstest
from torch import nn

from postgrad.errors import UserError
from postgrad.growth.operations import Grown, grow
from postgrad.growth.words import Operation
from postgrad.models.registry import create_model
from postgrad.search.feasible import check_feasible
from postgrad.search.mutations import (
    MUTATIONS,
    Infeasible,
    Parent,
    architecture_of,
    load_mutations,
    mutation,
    mutation_named,
)

APPROXIMATE = {"pool"}


@pytest.fixture(scope="module")
def parents() -> dict[str, Parent]:
    return {name: shared(name) for name in BASES}


@pytest.fixture
def no_more() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(MUTATIONS)
    yield
    MUTATIONS.clear()
    MUTATIONS.update(before)


def grown(parent: Parent, operations: list[Operation]) -> tuple[nn.Module, list[Grown]]:
    model = copy.deepcopy(parent.model)
    return model, grow(model, operations, example=parent.example)


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(IMAGES.double().flip(0))


def far(parent: Parent, model: nn.Module) -> float:
    before, after = outputs(parent.model), outputs(model)
    return ((after - before).abs().max() / before.std()).item()


@pytest.mark.parametrize("name", [name for name in MUTATIONS if name != "commands"])
def test_a_mutation_can_be_grown_and_computes_the_same(name: str, parents: dict[str, Parent]) -> None:
    parent = parents["three"]
    before = {key: tensor.clone() for key, tensor in parent.model.state_dict().items()}
    operations = MUTATIONS[name](parent, np.random.default_rng(3))
    plan = check_feasible(parent, operations)
    assert all(torch.equal(tensor, before[key]) for key, tensor in parent.model.state_dict().items())
    model, steps = grown(parent, operations)
    assert architecture_of(model, IMAGES).depth == plan.depth
    assert 0 <= plan.parameters() - steps[-1].parameters <= 1  # a gate that was not needed
    if name in APPROXIMATE:
        assert far(parent, model) > 1e-3
        assert architecture_of(model, IMAGES).pools == parent.architecture.pools + 1
    else:
        assert max(step.certificate.max_error for step in steps) <= 1e-9
        assert far(parent, model) <= 1e-9


def test_negative_control_another_weight_is_far(parents: dict[str, Parent]) -> None:
    model = copy.deepcopy(parents["three"].model)
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0, 0, 0] += 1e-3
    assert far(parents["three"], model) > 1e-6


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_drawn_is_feasible_and_hangs_on_the_generator_alone(
    name: str, base: str, parents: dict[str, Parent]
) -> None:
    drawn = set()
    for seed in range(4):
        operations = MUTATIONS[name](parents[base], np.random.default_rng(seed))
        assert operations == MUTATIONS[name](parents[base], np.random.default_rng(seed))
        check_feasible(parents[base], operations)
        drawn.add(str(operations))
    assert base != "three" or len(drawn) > 1


def test_a_width_is_drawn_evenly_up_to_what_its_depth_allows(parents: dict[str, Parent]) -> None:
    """128 channels the first of three layers, 1024 the last, so that the second may have 576."""
    draw = np.random.default_rng(0)
    widths: dict[str, list[int]] = {"0": [], "3": []}
    for _ in range(600):
        (operation,) = MUTATIONS["wider"](parents["three"], draw)
        widths[operation.options["layer"]].append(operation.options["to"])
    for layer, before, most in (("0", 6, 128), ("3", 8, 576)):
        assert len(widths[layer]) > 200
        assert before < min(widths[layer]) <= max(widths[layer]) <= most
        # Rounded down, so half a channel is added.
        drawn = (np.array(widths[layer]) + 0.5 - before) / (most - before)
        assert kstest(drawn, "uniform").pvalue > 0.01
        assert kstest(drawn**0.8, "uniform").pvalue < 0.01  # negative control


def test_no_width_is_drawn_above_the_limit() -> None:
    parent = parent_of(three(), width=10)
    draw = np.random.default_rng(0)
    assert {MUTATIONS["wider"](parent, draw)[0].options["to"] for _ in range(40)} <= {7, 8, 9, 10}


def test_groups_divide_the_channels(parents: dict[str, Parent]) -> None:
    draw = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        (operation,) = MUTATIONS["group"](parents["three"], draw)
        seen.add((operation.options["after"], operation.options["groups"]))
    assert seen == {("1", 2), ("1", 3), ("2", 2), ("2", 3), ("4", 2), ("4", 4)}


def test_a_skip_leads_past_a_layer_and_never_to_a_larger_image(parents: dict[str, Parent]) -> None:
    draw = np.random.default_rng(0)
    pairs = {tuple(MUTATIONS["skip"](parents["three"], draw)[0].options.values()) for _ in range(30)}
    assert pairs == {("1", "4"), ("2", "4")}


@pytest.mark.parametrize(
    ("name", "model", "images", "reason"),
    [
        ("group", nn.Sequential(nn.Flatten(), *list(mlp())), (2, 6, 1, 1), "no layer gives images of channels"),
        ("pool", nn.Sequential(nn.Flatten(), *list(mlp())), (2, 6, 1, 1), "no layer gives images that could be"),
        ("kernel", nn.Sequential(nn.Flatten(), *list(mlp())), (2, 6, 1, 1), "no convolution has a square kernel"),
        ("deeper", nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), (2, 6, 1, 1), "no layer can be put in anywhere"),
        ("wider", nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), (2, 6, 1, 1), "no layer can become wider"),
        ("skip", nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), (2, 6, 1, 1), "no two layers can be joined"),
        ("branch", nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), (2, 6, 1, 1), "no layer can be branched"),
        ("commands", nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), (2, 6, 1, 1), "no 3 commands can follow"),
        ("pool", create_model("seed-cnn", num_classes=4, image_size=16), (2, 3, 16, 16), "takes no smaller image"),
        ("pool", three(), (2, 3, 8, 8), "8 pixels a side are halved at most 1 times, not 2"),
    ],
)
def test_where_nothing_fits_the_reason_is_said(
    name: str, model: nn.Module, images: tuple[int, ...], reason: str
) -> None:
    parent = parent_of(copy.deepcopy(model), torch.zeros(images))
    with pytest.raises(Infeasible, match=reason) as refused:
        MUTATIONS[name](parent, np.random.default_rng(0))
    assert "\n" not in str(refused.value)


def test_an_unknown_mutation_is_told_with_the_nearest() -> None:
    assert mutation_named("deeper") is MUTATIONS["deeper"]
    with pytest.raises(UserError, match="unknown mutation 'deper': did you mean 'deeper'"):
        mutation_named("deper")


PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"


def example_of_the_page() -> str:
    section = PAGE.read_text(encoding="utf-8").partition("## Your own mutation\n")[2]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[0]


@pytest.mark.usefixtures("no_more")
def test_the_mutation_of_the_documentation_works(tmp_path: Path, parents: dict[str, Parent]) -> None:
    code = example_of_the_page()
    assert len(code.strip().splitlines()) <= 20
    file = tmp_path / "my_mutations.py"
    file.write_text(code, encoding="utf-8")
    assert load_mutations(file) == ["inception"]
    assert load_mutations(file) == ["inception"]  # as each worker does
    operations = mutation_named("inception")(parents["three"], np.random.default_rng(0))
    check_feasible(parents["three"], operations)
    model, steps = grown(parents["three"], operations)
    assert max(step.certificate.max_error for step in steps) <= 1e-9
    assert far(parents["three"], model) <= 1e-9
    with pytest.raises(Infeasible, match="no convolution to branch"):
        mutation_named("inception")(
            parent_of(nn.Sequential(nn.Flatten(), *list(mlp())), torch.zeros(2, 6, 1, 1)), np.random.default_rng(0)
        )


@pytest.mark.usefixtures("no_more")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "registers no mutation; put @mutation"),
        ("import postgrad.no_such_module", r"failed: ModuleNotFoundError: .* \(mine.py line 1\)"),
        ("def broken(:", r"failed: SyntaxError: .* \(mine.py line 1\)"),
        (
            'from postgrad.search.mutations import mutation\n@mutation("wider")\ndef mine(parent, draw): ...',
            "there is a mutation 'wider' already, in postgrad.search.mutations; give yours another name",
        ),
    ],
)
def test_a_file_that_is_no_good_is_told_in_one_line(code: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code, encoding="utf-8")
    before = dict(MUTATIONS)
    with pytest.raises(UserError, match=message) as told:
        load_mutations(file)
    assert "\n" not in str(told.value)
    assert before == MUTATIONS


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file of mutations"):
        load_mutations(tmp_path / "none.py")


@pytest.mark.usefixtures("no_more")
def test_a_name_is_taken_once() -> None:
    def first(parent: Parent, draw: np.random.Generator) -> list[Operation]:
        return []

    def second(parent: Parent, draw: np.random.Generator) -> list[Operation]:
        return []

    assert mutation("mine")(first) is first
    mutation("mine")(first)
    with pytest.raises(UserError, match="there is a mutation 'mine' already"):
        mutation("mine")(second)
