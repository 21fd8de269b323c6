"""The base and children as workers make them: what is left of each, and what is refused before any training."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from postgrad import load
from postgrad.growth.journal import journal_of
from postgrad.search.config import SearchConfig
from postgrad.search.context import Context
from postgrad.search.individual import Genes, Individual
from postgrad.search.jobs import Base, Child, finished, individuals, name_of
from postgrad.studies.worker import Refused


@pytest.fixture(scope="module")
def base(context: Context) -> Individual:
    return context.individual(Base().make(context))


@pytest.fixture(scope="module")
def child(context: Context, base: Individual) -> Individual:
    return context.individual(Child(1, base.name, "wider", Genes(dropout=0.1), seed=5).make(context))


def files(context: Context, individual: Individual) -> set[str]:
    return {path.name for path in context.folder(individual.name).iterdir()}


def test_the_base_is_trained_and_kept_under_its_name(context: Context, base: Individual) -> None:
    assert files(context, base) == {
        "model.safetensors", "manifest.json", "individual.json", "certificates.json", "metrics.csv"
    }  # fmt: skip
    model = context.network(base.name)
    assert base.name == name_of(model, base.genes)
    assert context.validate(model) == {"accuracy": base.accuracy, "nll": pytest.approx(base.nll)}
    assert (base.number, base.parent, base.mutation, base.max_error, base.exact) == (0, None, "", None, True)
    assert base.training_multiply_adds == base.lineage_multiply_adds == 3 * base.multiply_adds * len(context.images)
    assert base.epochs == 1.0


def test_a_child_is_its_parent_grown_and_trained(context: Context, base: Individual, child: Individual) -> None:
    assert files(context, child) == files(context, base)
    assert child.parent == base.name
    assert child.parameters > base.parameters
    assert child.max_error is not None
    assert child.max_error <= 1e-9
    assert child.lineage_multiply_adds == base.lineage_multiply_adds + child.training_multiply_adds
    (certificate,) = json.loads((context.folder(child.name) / "certificates.json").read_text())
    assert certificate["max_error"] == child.max_error
    (entry,) = journal_of(load(context.folder(child.name)))
    assert child.operations == (f"widen:layer={entry['arguments']['layer']},to={entry['arguments']['to']}",)
    assert [each.number for each in individuals(context.directory)] == [0, 1]


def test_before_it_is_trained_a_child_computes_what_its_parent_does(
    context: Context, base: Individual, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.Tensor] = []

    def stopped(self: Context, model: torch.nn.Module, **_: object) -> None:
        given.append(model(context.example))
        raise KeyboardInterrupt

    monkeypatch.setattr(Context, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        Child(2, base.name, "deeper", Genes(), seed=0).make(context)
    torch.testing.assert_close(given[0], context.network(base.name)(context.example))


def test_what_is_finished_is_not_made_again(
    context: Context, child: Individual, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "train", lambda *_, **__: pytest.fail("it was trained again"))
    assert child.parent is not None
    again = Child(1, child.parent, "deeper", Genes(), seed=9).make(context)
    assert again == child.name
    found = finished(context.directory, 1)
    assert found == child
    assert finished(context.directory, 77) is None


@pytest.mark.parametrize(("mutation", "said"), [("wider", "parameters"), ("pool", "pool")])
def test_what_cannot_be_is_refused_before_any_training(
    mutation: str,
    said: str,
    context: Context,
    base: Individual,
    tiny: Callable[..., SearchConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit stands in the way of one; images of 8 pixels, which are halved twice already, of the other."""
    monkeypatch.setattr(Context, "train", lambda *_, **__: pytest.fail("it was trained"))
    monkeypatch.setattr("postgrad.search.jobs.grow", lambda *_, **__: pytest.fail("it was grown"))
    limited = replace(context, config=tiny(max_parameters=base.parameters + 1))
    with pytest.raises(Refused, match=said) as refused:
        Child(3, base.name, mutation, Genes(), seed=0).make(limited)
    assert "\n" not in str(refused.value)
    assert not (context.directory / "population" / ".task-3").exists()


def test_what_takes_too_much_for_an_image_is_refused_before_any_training(
    context: Context, base: Individual, tiny: Callable[..., SearchConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "train", lambda *_, **__: pytest.fail("it was trained"))
    limited = replace(context, config=tiny(max_multiply_adds=base.multiply_adds + 1))
    with pytest.raises(Refused, match=rf"multiply-adds for an image; the limit is {base.multiply_adds + 1}"):
        Child(3, base.name, "wider", Genes(), seed=0).make(limited)
    assert not (context.directory / "population" / ".task-3").exists()


def test_the_name_says_weights_genes_and_growth(context: Context, base: Individual, child: Individual) -> None:
    model = context.network(base.name)
    assert name_of(model, replace(base.genes, dropout=0.5)) != base.name
    next(model.parameters()).data.add_(1e-7)
    assert name_of(model, base.genes) != base.name
    assert child.name == name_of(context.network(child.name), child.genes)


def test_the_users_own_network_is_taken_as_it_is(
    context: Context, base: Individual, tiny: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    config = tiny(model=str(context.folder(base.name)))
    ours = Context.of(config, tmp_path)
    given = ours.individual(Base().make(ours))
    assert given.name == base.name
    assert (given.epochs, given.training_multiply_adds, given.lineage_multiply_adds) == (0.0, 0, 0)
    assert given.accuracy == base.accuracy


def test_a_child_of_so_many_multiply_adds_takes_them(context: Context, base: Individual) -> None:
    wanted = 0.4 * base.training_multiply_adds
    made = context.individual(Child(4, base.name, "deeper", Genes(), seed=1, multiply_adds=wanted).make(context))
    one_step = 3 * made.multiply_adds * 64
    assert abs(made.training_multiply_adds - wanted) <= one_step


def test_jobs_survive_pickling() -> None:
    for job in (Base(), Child(3, "abc", "wider", Genes(), 7)):
        assert pickle.loads(pickle.dumps(job)) == job
