"""Random growth of networks of every family: each mutation is proved, or refused without a trace.

A hundred of them; `python docs/growth_fuzz.py` makes a thousand.
"""

from __future__ import annotations

import collections
import copy
import importlib.util
import itertools
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from networks_to_grow import CASES, awake
from torch import nn

from postgrad.errors import UserError
from postgrad.growth import width

DOCS = Path(__file__).resolve().parents[2] / "docs"
OWN = ["squeezed", "layer norm", "heads", "torch's stream", "tied", "within groups, in", "several", "windows"]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    return script("growth_fuzz")


def shaken(example: Any) -> Any:
    """Another example of the same form."""
    if isinstance(example, tuple):
        return tuple(map(shaken, example))
    return example + torch.randn_like(example)


def failures(records: list[dict[str, Any]]) -> str:
    return json.dumps([record for record in records if record["outcome"] == "failed"], indent=1)


def test_networks_are_those_of_at_least_twenty_families(fuzz: ModuleType) -> None:
    assert len(fuzz.NETWORKS) >= 20
    for make, example in (fuzz.NETWORKS[name] for name in ("seed-cnn", "vit", "shufflenet")):
        model = fuzz.awake(make(), example())
        assert sum(each.numel() for each in model.parameters()) < fuzz.MOST_PARAMETERS
        assert model(example()).std() > 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if n % 3 else []) for n, name in enumerate(OWN)]
)
def test_random_growth_of_networks_of_our_own(fuzz: ModuleType, name: str) -> None:
    case = CASES[name]
    network = lambda: awake(case.make()), lambda: shaken(case.example)
    records = list(fuzz.sequence(OWN.index(name), name, network, 4))
    assert failures(records) == "[]"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_random_mutations(fuzz: ModuleType) -> None:
    records: list[dict[str, Any]] = []
    for number, name in enumerate(itertools.cycle(fuzz.NETWORKS)):
        if len(records) >= 100:
            break
        records += fuzz.sequence(1000 + number, name, fuzz.NETWORKS[name], 5)
    assert failures(records) == "[]"
    outcomes = collections.Counter(record["outcome"] for record in records)
    assert outcomes["certified"] > outcomes["refused"] > 0


def test_negative_control_an_inexact_operator_is_seen(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes the network in secret, a refusal that leaves traces, and an error that is not the user's."""
    case = CASES["mlp"]
    model = awake(case.make())
    monkeypatch.setattr(fuzz, "drawn_call", lambda model, dice: ("widen", {"layer": "0", "to": 9}))
    real = width.widen

    def secretly(model: nn.Module, layer: str, **options: Any) -> Any:
        certificate = real(model, layer, **options)
        with torch.no_grad():
            model.get_submodule(layer).weight.mul_(1.001)
        return certificate

    def traces(model: nn.Module, layer: str, **options: Any) -> Any:
        model.get_submodule(layer).bias = nn.Parameter(model.get_submodule(layer).bias.detach().clone())
        raise UserError("refused")

    def crash(*args: Any, **options: Any) -> Any:
        raise KeyError("a bug")

    for broken in (secretly, traces, crash):
        monkeypatch.setattr(width, "widen", broken)
        record = fuzz.mutated(copy.deepcopy(model), case.example, shaken(case.example), random.Random(0))
        assert record["outcome"] == "failed"
    monkeypatch.setattr(width, "widen", real)
    record = fuzz.mutated(copy.deepcopy(model), case.example, shaken(case.example), random.Random(0))
    assert record["outcome"] == "certified"


def test_the_summary_counts_and_names(fuzz: ModuleType) -> None:
    records = [
        {"operator": "widen", "outcome": "certified", "exact": True, "max_error": 1e-15},
        {"operator": "widen", "outcome": "refused", "reason": "layer3.0: cannot be widened: 10 (and 2 more)"},
        {"operator": "widen", "outcome": "refused", "reason": "layer4.1: cannot be widened: 12 (and 1 more)"},
        {"operator": "deepen", "outcome": "failed", "reason": "KeyError"},
    ]
    text = fuzz.summary(records)
    assert "widen                3          1        2       0      1.0e-15" in text
    assert "2 × …: cannot be widened: … (and … more)" in text
    assert "FAILED" in text


@pytest.mark.slow
def test_the_table_of_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted, tried and said of a network: here of three small ones, one of which cannot be read."""
    table = script("growth_table")
    named = {"a:grouped": "within groups, in", "a:tokens": "torch's stream"}
    networks = {name: (awake(CASES[case].make()), CASES[case].example) for name, case in named.items()}
    networks["a:hopeless"] = (nn.Sequential(nn.Linear(3, 2)), torch.ones(2, 5))
    monkeypatch.setattr(table, "fresh", networks.__getitem__)
    records = {name: table.measured(name) for name in networks}
    grouped, tokens, hopeless = records.values()
    assert (grouped["widths"], grouped["free"], grouped["even"]) == (4, 4, 0)
    assert (tokens["widths"], tokens["free"], tokens["even"]) == (4, 4, 1)
    assert grouped["others"]["deepen"]["mode"] == "train"
    assert "refused" in grouped["others"]["branch"] or grouped["others"]["branch"]["max_error"] < 1e-9
    assert all(each["max_error"] < 1e-9 for each in grouped["widened"])
    widened = {each["layer"]: each.get("max_error", each.get("refused")) for each in tokens["widened"]}
    assert max(widened["embed"], widened["block.linear1"]) < 1e-9
    assert "widen that layer, to=12, and they follow" in widened["block.self_attn#1"]
    assert "torch.export cannot trace it" in hopeless["refused"]
    page = table.page(records)
    assert "| a:grouped | 4 | 4 (100%) | 0 |" in page
    assert "Of all 8 widths 8 can grow (100%)" in page
    assert page.count("| a:hopeless | — |") == 1


def test_the_table_has_every_family_and_thirty_of_timm() -> None:
    names = script("growth_table").networks(every=True)
    assert len(names) == len(set(names)) == 110
    assert set(script("growth_table").networks(every=False)) <= set(names)
