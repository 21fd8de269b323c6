"""Images of a search, and its trainings: their length in multiply-adds, their seeds, their genes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from postgrad.data.datasets import load_dataset
from postgrad.errors import UserError
from postgrad.search.config import SearchConfig
from postgrad.search.context import Context, images_seen
from postgrad.search.individual import Genes
from postgrad.training.batches import Batches

SMALL3_ON_DIGITS = 16 * 9 * 8 * 8 + 32 * 16 * 9 * 4 * 4 + 10 * 32 * 4 * 4
"""Multiply-adds of its three layers: outputs × inputs of each, with 4×4 pixels in front of the last."""


def trained(context: Context, **changes: Any) -> tuple[nn.Module, Any]:
    model = context.fresh(0)
    settings: dict[str, Any] = {"genes": Genes(), "seed": 0, "label": "a network"}
    return model, context.train(model, **{**settings, **changes})


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_validation_images_are_no_training_images_and_test_images_are_absent(context: Context) -> None:
    dataset = load_dataset("digits", limit=200)
    assert dataset.train is not None
    assert dataset.test is not None
    assert len(context.images) + len(context.held_back) == len(dataset.train)
    ours = {
        part: sorted(image.numpy().tobytes() for image in getattr(context, part).images)
        for part in ("images", "held_back")
    }
    assert sorted(ours["images"] + ours["held_back"]) == sorted(
        image.numpy().tobytes() for image in dataset.train.images
    )
    assert not {image.numpy().tobytes() for image in dataset.test.images} & {*ours["images"], *ours["held_back"]}
    assert len(context.held_back) >= 0.08 * len(dataset.train)


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), steps=st.integers(0, 30))
def test_images_seen_are_those_of_the_batches(n: int, batch_size: int, steps: int) -> None:
    batches = Batches(n, batch_size, 0)
    assert images_seen(steps, n, batch_size) == sum(len(batches(step)[0]) for step in range(steps))


def test_multiply_adds_of_a_prediction_and_of_a_training(context: Context) -> None:
    model, result = trained(context, steps=4)
    assert context.multiply_adds(model) == SMALL3_ON_DIGITS
    n = len(context.images)
    seen = n + 64 if n <= 192 else 256  # three batches to an epoch
    assert result.multiply_adds == 3 * SMALL3_ON_DIGITS * seen
    assert context.measure(model).parameters == sum(each.numel() for each in model.parameters())
    assert context.measure(model).latency_ms > 0


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_steps_for_so_many_multiply_adds_take_them(context: Context, steps: int) -> None:
    model, result = trained(context, steps=steps)
    assert context.steps_for(model, result.multiply_adds, Genes()) == steps


def test_the_same_seed_trains_to_the_same_bits(context: Context) -> None:
    genes = Genes(dropout=0.3, output_penalty=1e-3)
    (first, a), (second, b) = (trained(context, genes=genes) for _ in range(2))
    assert same(first, second)
    assert (a.accuracy, a.nll, a.loss, a.epochs) == (b.accuracy, b.nll, b.loss, 1.0)
    assert not same(first, trained(context, genes=genes, seed=1)[0])


@pytest.mark.parametrize("genes", [Genes(weight_decay=0.1), Genes(dropout=0.3), Genes(output_penalty=0.1)])
def test_each_gene_makes_a_difference_and_leaves_no_trace(context: Context, genes: Genes) -> None:
    plain, model = (trained(context, genes=each)[0] for each in (Genes(), genes))
    assert not same(plain, model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_interrupted_training_goes_on_to_the_same_bits(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genes = Genes(dropout=0.3)
    whole, _ = trained(context, genes=genes, epochs=3)
    real, calls = Context._batch, iter(range(5))

    def interrupted(self: Context, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(self, indices, generator)

    monkeypatch.setattr(Context, "_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(context, genes=genes, epochs=3, directory=tmp_path)
    monkeypatch.undo()
    ours, _ = trained(context, genes=genes, epochs=3, directory=tmp_path)
    assert same(ours, whole)


def test_the_settings_say_how_it_is_trained(context: Context, tiny: Callable[..., SearchConfig]) -> None:
    def recipe(training: dict[str, Any], **length: Any) -> Any:
        return replace(context, config=tiny(training=training)).recipe(Genes(weight_decay=0.25), **length)

    plain = recipe({})
    assert (plain.epochs, plain.optimizer_options) == (1.0, {"momentum": 0.9, "weight_decay": 0.25})
    assert recipe({"steps": 7}).steps == 7
    assert recipe({"steps": 7}, epochs=2.0).epochs == 2.0
    assert recipe({"optimizer": "adamw"}).optimizer_options == {"weight_decay": 0.25}
    with pytest.raises(UserError, match="unknown setting 'batchsize'"):
        recipe({"batchsize": 3})


def test_the_first_genes_have_the_weight_decay_of_the_settings(
    context: Context, tiny: Callable[..., SearchConfig]
) -> None:
    assert context.first_genes() == Genes()
    config = tiny(training={"optimizer_options": {"momentum": 0.5, "weight_decay": 0.01}})
    assert replace(context, config=config).first_genes() == Genes(weight_decay=0.01)
