"""A whole search in one process, its interruption, and every mistake of its user."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from postgrad.cli import main
from postgrad.errors import UserError
from postgrad.search.config import SearchConfig
from postgrad.search.context import Context
from postgrad.search.individual import Genes, Individual
from postgrad.search.jobs import Base, Child
from postgrad.search.search import Search, search

Tiny = Callable[..., SearchConfig]


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No controls here; what the search gave to what makes them."""
    given: list[Any] = []
    monkeypatch.setattr("postgrad.search.search.close_search", lambda *arguments: given.append(arguments))
    return given


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Search:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("postgrad.search.search.close_search", lambda *_: None)
        return search(tiny(out=tmp_path_factory.mktemp("runs") / "whole", individuals=2), workers=0)


def lineage(individuals: Sequence[Individual]) -> list[dict[str, Any]]:
    """All that must be the same again, bit for bit: names are hashes of weights."""
    measured = {"latency_ms": 0.0, "cpu_seconds": 0.0, "seconds": 0.0}
    return [dataclasses.asdict(dataclasses.replace(each, **measured)) for each in individuals]


def test_what_a_search_leaves(whole: Search) -> None:
    assert [each.number for each in whole.individuals] == [0, 1, 2]
    assert whole.best.accuracy == max(each.accuracy for each in whole.individuals)
    assert {path.name for path in (whole.directory / "population").iterdir()} == {
        each.name for each in whole.individuals
    }
    names = {path.name for path in whole.directory.iterdir()}
    assert {"config.yaml", "environment.json", "events.jsonl", "individuals.csv"} <= names
    events = [json.loads(line) for line in (whole.directory / "events.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "search begins"
    assert events[-1]["event"] == "search ends"
    told = [event for event in events if event["event"] == "individual"]
    assert [event["accuracy"] for event in told] == [each.accuracy for each in whole.individuals]
    assert all("elapsed" in event for event in events)


def test_the_same_seed_in_another_call_gives_the_same_bits(whole: Search, tiny: Tiny, tmp_path: Path) -> None:
    """Interrupted in the middle of a child's training, and gone on with."""
    real, calls = Context._batch, iter(range(8))

    def interrupted(self: Context, indices: Any, generator: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(self, indices, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Context, "_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(tiny(out=tmp_path / "run", individuals=2), workers=0)
    (task,) = (tmp_path / "run" / "population").glob(".task-*")
    assert (task / "training" / "checkpoint.pt").exists()
    config = SearchConfig.load(tmp_path / "run" / "config.yaml")
    again = search(config.model_copy(update={"resume": tmp_path / "run"}), workers=0)
    assert lineage(again.individuals) == lineage(whole.individuals)
    assert not list((tmp_path / "run" / "population").glob(".task-*"))
    assert not list((tmp_path / "run").rglob("checkpoint.pt"))


def test_a_finished_search_is_only_closed_again(
    whole: Search, closed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "train", lambda *_, **__: pytest.fail("something was trained"))
    config = SearchConfig.load(whole.directory / "config.yaml").model_copy(update={"resume": whole.directory})
    assert search(config, workers=0).individuals == whole.individuals
    ((context, finished, make),) = closed
    assert (context.directory, tuple(finished)) == (whole.directory, whole.individuals)
    assert make([]) == {}


def test_children_inherit_weights(tiny: Tiny, tmp_path: Path) -> None:
    """With a rate next to nothing a child still computes what its parent does; new weights would not."""
    context = Context.of(tiny(training={"lr": 1e-9, "steps": 1}), tmp_path)
    base = Base().make(context)
    child = Child(1, base, "deeper", Genes(), seed=1).make(context)
    parent, inherited = (context.network(name) for name in (base, child))
    x = torch.linspace(-1, 1, 64 * 8 * 8).reshape(64, 1, 8, 8).mul(40).sin()
    assert len(list(inherited.parameters())) > len(list(parent.parameters()))
    assert torch.allclose(inherited(x), parent(x), atol=1e-4)
    assert not torch.allclose(context.fresh(7)(x), parent(x), atol=0.1)


def test_the_package_can_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    from postgrad import search as package

    monkeypatch.setattr("postgrad.search.search.search", lambda config, **options: (config, options))
    assert package("settings", workers=3) == ("settings", {"workers": 3, "ray": None})  # type: ignore[arg-type]


def test_mutations_of_ones_own(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from postgrad.growth.words import Operation\n"
        "from postgrad.search.mutations import mutation\n"
        "@mutation('shake')\n"
        "def shake(parent, draw):\n"
        "    return [Operation('insert_dropout', {'after': parent.sites[0].name, 'p': 0.1})]\n"
    )
    config = tiny(out=tmp_path / "run", individuals=1, mutation_files=file, mutations="shake", preset="uniform")
    (_, child) = search(config, workers=0).individuals
    assert child.mutation == "shake"
    assert child.operations == ("insert_dropout:after=conv1,p=0.1",)


BAD = [
    (["--budget", "soon"], "a time such as 90s"),
    (["--individuals", "3", "--budget", "1m"], "give one of budget, individuals, multiply_adds"),
    (["--individuals", "0"], "expected a number of 1 or more"),
    (["--multiply-adds", "many"], "expected a number, got 'many'"),
    (["--preset", "seeds"], "unknown preset 'seeds': did you mean 'seed'?"),
    (["--mutations", "deper"], "unknown mutation 'deper': did you mean 'deeper'?"),
    (["--mutations", "branch"], "preset seed has no formula for branch"),
    (["--mutation-file", "nowhere.py"], "nowhere.py: no such file of mutations"),
    (["--objective", "speed"], "objective: should be 'accuracy' or 'pareto'"),
    (["--workers", "0", "--ray", "local"], "give one of the two"),
    (["--ray", "nonsense"], "expected local, auto, or HOST:PORT"),
    (["--data", "digit"], "unknown data set 'digit'"),
    (["--model", "seed-cmm"], "unknown model 'seed-cmm'"),
    (["--model", "net.onnx"], "exported program"),
    (["--resume", "nowhere"], "holds no config.yaml"),
    (["--resume", "nowhere", "--preset", "seed"], "leave out --preset"),
    (["--resume", "nowhere", "--recipe", "a.yaml"], "leave out --recipe"),
    (["--recipe", "nowhere.yaml"], "cannot read nowhere.yaml"),
    (["--populaton", "3"], "did you mean --population?"),
    (["--size", "999", "--crop", "1000"], "crop"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda each: " ".join(each) if isinstance(each, list) else "")
def test_mistakes_are_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"individuals": 1, "training": {"epoch": 3}}, "unknown setting 'epoch': did you mean 'epochs'?"),
        ({"training": {"optimizer": "sgdd"}}, "sgdd"),
        ({"budgets": "1m"}, "unknown setting 'budgets': did you mean 'budget'?"),
        ({"resume": "runs/search"}, "resume belongs on the command line"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(
    recipe: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["search", "--recipe", "recipe.yaml", "--limit", "40", "--workers", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("runs").exists()


def test_other_data_than_it_began_with_are_refused(whole: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Context.of
    monkeypatch.setattr(
        Context, "of", lambda config, directory: dataclasses.replace(real(config, directory), fingerprint="0" * 16)
    )
    config = SearchConfig.load(whole.directory / "config.yaml").model_copy(update={"resume": whole.directory})
    with pytest.raises(UserError, match=r"digits has changed since .* began"):
        search(config, workers=0)


def test_a_network_that_cannot_grow_is_refused_at_once(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def one_layer(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size ** 2, num_classes))\n"
    )
    with pytest.raises(UserError, match="no place at which a layer could be put in"):
        search(tiny(model=f"{file}:one_layer", out=tmp_path / "run"), workers=0)
    assert not (tmp_path / "run").exists()


def test_options_stand_above_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from postgrad.cli.parsing import parse
    from postgrad.cli.search import Options, configured

    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"budget": "15m", "preset": "uniform", "population": 5, "training": {"epochs": 2}}))
    words = ["--recipe", str(file), "--individuals", "9", "--population", "3", "--mutation-file", "a.py"]
    config = configured(parse(Options, words, verb="search"))
    assert (config.individuals, config.budget, config.population, config.preset) == (9, None, 3, "uniform")
    assert config.training == {"epochs": 2}
    assert config.mutation_files == (Path("a.py"),)
