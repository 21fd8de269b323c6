"""Every implementation's gradients against float64 autograd, and what follows against numpy and against GradNet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gradient_benchmark.growth import WideSeedCNN
from gradient_benchmark.peers import Part, in_modules, make_peer
from gradient_benchmark.plain import THRESHOLDS, PlainGradNet
from gradient_benchmark.setting import SELECT, Setting
from gradient_benchmark.works import (
    IMPLEMENTATIONS,
    PEER_NAMES,
    WORKS,
    Bench,
    Case,
    Choices,
    check,
    choose,
    exact_gradients,
    peer_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from postgrad.errors import UserError
from postgrad.models.seed_cnn import SeedCNN


@pytest.mark.parametrize("labels", ["one", "all"])
@pytest.mark.parametrize(("name", "share_forward"), [*((name, False) for name in PEER_NAMES), ("vmap", True)])
def test_gradients_are_those_of_autograd(setting: Setting, name: str, labels: str, share_forward: bool) -> None:
    batch = setting.batch(7)  # no multiple of what the loop hands on
    found = peer_gradients(make_peer(name, setting.model, share_forward=share_forward), batch, labels)
    for rows, exact in zip(found, exact_gradients(setting, batch, labels), strict=True):
        torch.testing.assert_close(rows.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


def test_the_check_passes_and_leaves_the_model_as_it_was(bench: Bench) -> None:
    before = {name: tensor.clone() for name, tensor in bench.setting.model.state_dict().items()}
    check(bench)
    after = bench.setting.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Wrong:
    """A peer whose gradients are off by a thousandth."""

    def __init__(self, peer: object) -> None:
        self.peer = peer

    def one_label(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        return [rows * 1.001 for rows in self.peer.one_label(inputs, labels)]  # type: ignore[attr-defined]

    def all_labels(self, inputs: Tensor) -> Iterator[Part]:
        return self.peer.all_labels(inputs)  # type: ignore[attr-defined, no-any-return]


def test_the_check_refuses_wrong_gradients(setting: Setting) -> None:
    bench = Bench(setting, Choices(False, "topk"), ["vmap"])
    bench.peers["vmap"] = Wrong(bench.peers["vmap"])
    with pytest.raises(UserError, match=r"vmap: its gradients \(one label, layer 0\) are not autograd's"):
        check(bench)


def test_the_check_refuses_wrong_logits(setting: Setting) -> None:
    bench = Bench(setting, Choices(False, "topk"), ["loop"])
    assert bench.plain is not None
    bench.plain.offsets[2] = bench.plain.offsets[2] - 0.1
    with pytest.raises(UserError, match="logits after the whole work are not postgrad's"):
        check(bench)


@settings(max_examples=20)
@given(rows=st.integers(1, 4), numbers=st.integers(2, 60), seed=st.integers(0, 99))
def test_thresholds_are_numpy_percentiles(rows: int, numbers: int, seed: int) -> None:
    magnitudes = torch.rand(rows, numbers, generator=torch.Generator().manual_seed(seed))
    exact = np.percentile(magnitudes.numpy(), 100 * (1 - SELECT), axis=1, keepdims=True)
    rank = int((numbers - 1) * (100 * (1 - SELECT) / 100))
    for threshold in THRESHOLDS.values():
        kept = magnitudes > threshold(magnitudes, rank)
        assert np.array_equal(kept.numpy(), magnitudes.numpy() > exact)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_features_are_the_formula(setting: Setting, threshold: str) -> None:
    plain = PlainGradNet(setting.gradnet, threshold)
    batch = setting.batch(3)
    gradients = [rows.squeeze(1) for rows in exact_gradients(setting, batch, "one")]
    found = plain.features([rows.float() for rows in gradients])
    for rows, exact, offset, width in zip(found, gradients, plain.offsets, plain.widths, strict=True):
        g = exact.float().double().numpy()
        kept = np.abs(g) > np.percentile(np.abs(g), 85, axis=1, keepdims=True)
        n = (g - offset.double().numpy()) / width.double().numpy()
        expected = np.where(kept, np.sign(n) * np.sqrt(np.abs(n)), 0)
        np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-4, atol=2e-4)


def test_a_training_step_is_sgd(setting: Setting, bench: Bench) -> None:
    """The step that autograd in float64 gives on the same features."""
    plain = PlainGradNet(setting.gradnet, "topk")
    batch = setting.batch(4)
    gradients = bench.peers["loop"].one_label(batch.inputs, batch.labels)
    exact = PlainGradNet(setting.gradnet, "topk").double()
    features = [rows.double() for rows in plain.features(gradients)]
    torch.nn.functional.cross_entropy(exact(features), batch.truth).backward()
    expected = {name: p.detach() - 0.01 * p.grad for name, p in exact.named_parameters() if p.grad is not None}
    plain.train_step(gradients, batch.truth)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-4, atol=1e-7)
        assert parameter.grad is None


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(("work", "labels"), WORKS)
def test_every_work_runs(bench: Bench, work: str, labels: str, name: str) -> None:
    case = Case(work, "all" if labels == "all" else "one", name, 3)
    assert bench.seconds(case) > 0
    assert case.gradients == (30 if labels == "all" else 3)


def test_choices_are_made_from_what_there_is(setting: Setting) -> None:
    choices = choose(setting, 2)
    assert choices.threshold in THRESHOLDS
    assert set(choices.as_dict()) == {"vmap_shares_forward", "threshold"}


def test_the_wide_network_and_the_chain_are_the_seeds() -> None:
    seed, wide = SeedCNN(3, 10), WideSeedCNN(64, 10)
    wide.load_state_dict(seed.state_dict())
    images = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(wide(images), seed(images))
    torch.testing.assert_close(in_modules(seed)(images), seed(images))
