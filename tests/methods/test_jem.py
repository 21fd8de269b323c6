"""The loss against exact enumeration and plain autograd; the three variants in trainings of a few steps."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.methods.jem import JEM, energy, first_labels, jem_loss, to_range
from postgrad.models.registry import create_model
from postgrad.training import DivergedError

VARIANTS = ("jem", "jem++", "sada-jem")

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (40, 1, 6, 6), generator=GENERATOR).to(torch.uint8)
LABELS = torch.arange(40) % 4
X = to_range(IMAGES)

POINTS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
"""Everything there is in a world of four binary pixels."""


def over_points() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[2].weight.mul_(4)
    return model


def network(**kinds: Any) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6) if kinds.get("norm") else nn.Identity()
    bend = nn.LeakyReLU(0.2)
    return nn.Sequential(nn.Conv2d(1, 6, 3), norm, bend, nn.Conv2d(6, 6, 3), bend, nn.Flatten(), nn.Linear(24, 4))


def jem(model: nn.Module, variant: str = "jem", labels: Tensor = LABELS, **options: Any) -> JEM:
    settings = {"buffer_size": 40, "steps": 2} | options
    return JEM(model, IMAGES, labels, variant=variant, **settings)  # type: ignore[arg-type]


def warned_of_normalisation(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    return pytest.warns(UserWarning, match="without batch normalisation") if wanted else contextlib.nullcontext()


def gradient(model: nn.Module, value: Tensor) -> Tensor:
    return torch.cat(
        [each.flatten() for each in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)]
    )


def test_energies_are_the_exact_log_probabilities_but_for_one_constant() -> None:
    logits = over_points()(POINTS).detach()
    joint = logits.exp() / logits.exp().sum()
    constants = joint.sum(1).log() + energy(logits)
    torch.testing.assert_close(constants, constants[:1].expand(16))
    torch.testing.assert_close(joint / joint.sum(1, keepdim=True), logits.softmax(1))
    assert (joint.sum(1).log() + logits.max(1).values).std() > 0.01


def test_the_gradient_with_exact_samples_is_that_of_the_exact_likelihood() -> None:
    model, generator = over_points(), torch.Generator().manual_seed(1)
    data, labels = POINTS[[3, 5, 12]], torch.tensor([0, 2, 1])
    logits = model(POINTS)
    log_joint = logits - logits.flatten().logsumexp(0)
    exact = gradient(model, -log_joint[[3, 5, 12], labels].mean())
    likely = torch.multinomial(logits.detach().logsumexp(1).softmax(0), 100_000, replacement=True, generator=generator)
    uniform = torch.randint(16, (100_000,), generator=generator)

    def error(samples: Tensor) -> float:
        ours = gradient(model, jem_loss(model(data), labels, model(POINTS[samples])))
        return float((ours - exact).norm() / exact.norm())

    assert error(likely) < 0.02
    assert error(uniform) > 0.1


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 0.1]), st.floats(0, 2), st.integers(0, 99))
def test_the_loss_is_its_formula(n: int, m: int, smoothing: float, weight: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, samples = (torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in (n, m))
    labels = torch.randint(-1, 3, (n,), generator=generator)
    of_data, of_samples = -logits.exp().sum(1).log(), -samples.exp().sum(1).log()
    expected = weight * (of_data.mean() - of_samples.mean())
    expected = expected + 0.1 * ((of_data**2).mean() + (of_samples**2).mean())
    if (known := labels >= 0).any():
        expected = expected + F.cross_entropy(logits[known], labels[known], label_smoothing=smoothing)
    found = jem_loss(logits, labels, samples, weight=weight, energy_l2=0.1, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_images_without_a_label_are_part_of_the_energy_alone() -> None:
    logits, samples = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    (found,) = torch.autograd.grad(jem_loss(logits, torch.tensor([-1, 2, -1]), samples), logits)
    of_energy = -logits.detach().softmax(1) / 3
    torch.testing.assert_close(found[[0, 2]], of_energy[[0, 2]])
    assert not torch.allclose(found[1], of_energy[1])
    assert jem_loss(logits, torch.full((3,), -1), samples).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    logits = torch.tensor([[50000.0, 50000.0]]).to(dtype)
    value = jem_loss(logits, torch.tensor([0]), logits)
    assert value.dtype == torch.float32
    assert energy(logits).isfinite().all()
    torch.testing.assert_close(value, torch.tensor(2.0).log())


def test_labels_are_kept_of_the_first_images_of_each_class() -> None:
    labels = torch.tensor([2, 2, 0, 2, 0, -1, 1])
    assert first_labels(labels, 1).tolist() == [2, -1, 0, -1, -1, -1, 1]
    assert first_labels(labels, 9).tolist() == labels.tolist()


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_few_steps_of_each_variant(variant: str, norm: bool) -> None:
    model = network(norm=norm)
    with warned_of_normalisation(norm and variant == "jem"):
        loss = jem(model, variant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss.begin(optimizer)
    chains = loss.buffer.state_dict()["chains"]  # type: ignore[union-attr]
    for _ in range(5):
        value = loss.loss(X[:8], LABELS[:8])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        loss.after_step()
    figures = loss.figures()
    assert set(figures) == {"energy_gap", "sample_reach", "sample_spread", "gradient_norm", "returns"}
    assert all(torch.tensor(list(figures.values())).isfinite())
    moved = (loss.buffer.state_dict()["chains"] != chains).flatten(1).any(1)  # type: ignore[union-attr]
    assert 8 <= int(moved.sum()) <= 40
    assert figures["sample_reach"] <= 1 or variant == "jem"
    assert model.training
    if norm:
        passes = {"jem": 1, "jem++": 1, "sada-jem": 2}[variant]
        assert model[1].num_batches_tracked == 5 * passes


def test_running_statistics_are_those_of_images_and_not_of_samples() -> None:
    model, alone = network(norm=True), network(norm=True)
    jem(model, "jem++", data_noise=0.0).loss(X[:8], LABELS[:8])
    alone(X[:8])
    torch.testing.assert_close(model[1].running_mean, alone[1].running_mean)
    assert not torch.equal(alone[1].running_mean, torch.zeros(6))


def test_the_gradient_is_that_of_cross_entropy_and_energies_at_the_samples() -> None:
    model = network()
    loss = jem(model, data_noise=0.0, energy_l2=0.1, buffer_size=8)
    value = loss.loss(X[:8], LABELS[:8])
    assert loss.buffer is not None
    samples = loss.buffer.draw(torch.zeros(8, dtype=torch.int64))[0]  # all there are, in half precision
    data, drawn = (-model(x).logsumexp(1) for x in (X[:8], samples))
    expected = F.cross_entropy(model(X[:8]), LABELS[:8]) + data.mean() - drawn.mean()
    expected = expected + 0.1 * (data.square().mean() + drawn.square().mean())
    torch.testing.assert_close(gradient(model, value), gradient(model, expected), rtol=0.02, atol=2e-3)
    plain = gradient(model, F.cross_entropy(model(X[:8]), LABELS[:8]))
    assert not torch.allclose(gradient(model, value), plain, rtol=0.02, atol=2e-3)


def test_with_few_labels_those_are_drawn_apart() -> None:
    model, seen = network(), []
    labels = torch.full((40,), -1)
    labels[[3, 11]] = torch.tensor([3, 1])
    loss = jem(model, labels=labels, weight=0.0, data_noise=0.0)
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    value = loss.loss(X[:8], labels[:8])
    rows = {tuple(row.tolist()) for row in seen[0].flatten(1)}
    assert rows <= {tuple(X[number].flatten().tolist()) for number in (3, 11)}
    assert len(seen) == 1
    assert value.isfinite()
    assert jem(model, labels_per_class=2).labels[:12].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, -1, -1, -1, -1]


def test_the_energy_sees_images_without_a_label_and_the_cross_entropy_none() -> None:
    model, seen = network(), []
    labels = first_labels(LABELS, 1)
    loss = jem(model, labels=labels, data_noise=0.0)
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]) if module.training else None)
    loss.loss(X[20:28], torch.full((8,), -1))
    known = {tuple(X[number].flatten().tolist()) for number in range(4)}
    assert {tuple(row.tolist()) for row in seen[0].flatten(1)} <= known
    assert torch.equal(seen[1], X[20:28])


def test_p_of_x_has_images_without_augmentation_in_sada_jem() -> None:
    model, seen = network(), []
    loss = JEM(model, IMAGES, LABELS, variant="sada-jem", steps=1, buffer_size=40, augmented=lambda images: X[:1] * 0)
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    loss.loss(torch.zeros_like(X[:8]), LABELS[:8])
    chain, labelled, of_data, samples, *second_pass = seen
    assert not labelled.any()
    assert {tuple(row.tolist()) for row in of_data.flatten(1)} <= {tuple(row.flatten().tolist()) for row in X}
    assert not torch.equal(chain, samples)
    assert [bool(torch.equal(a, b)) for a, b in zip(second_pass, seen[1:4], strict=True)] == [True] * 3


def test_with_classes_of_their_own_chains_climb_their_logit() -> None:
    torch.manual_seed(0)
    model = network()
    loss = jem(model, "sada-jem", per_class=True, steps=30, step_size=0.3)
    for _ in range(4):
        loss.loss(X[:8], LABELS[:8])
    assert loss.buffer is not None
    chains = to_range(loss.buffer.kept(8))
    every = to_range(loss.buffer._chains.float().add(1).mul(127.5).round().to(torch.uint8))
    logits = model.eval()(every).detach()
    own = logits[range(40), torch.arange(40) // 10] - logits.mean(1)
    visited = loss.buffer._visits > 0
    assert own[visited].mean() > own[~visited].mean() + 0.1
    assert len(chains) == 8


@pytest.mark.parametrize("variant", ["jem", "sada-jem"])
def test_under_autocast_the_loss_is_single_precision(variant: str) -> None:
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        value = jem(model, variant).loss(X[:8], LABELS[:8])
    assert value.dtype == torch.float32
    value.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("spec", ["mlp", "seed-cnn", "resnet20"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_of_the_registry(variant: str, spec: str) -> None:
    model = create_model(spec, num_classes=4, in_channels=1, image_size=6).train()
    with warned_of_normalisation(spec == "resnet20" and variant == "jem"):
        value = jem(model, variant, steps=1).loss(X[:4], LABELS[:4])
    value.backward()
    assert value.isfinite()


def test_single_images_and_other_layouts() -> None:
    for x in (X[:1], X[:8].to(memory_format=torch.channels_last), X[:16:2]):
        assert jem(network()).loss(x, LABELS[: len(x)]).isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "jam"}, "unknown variant of jem 'jam'"),
        ({"steps": 0}, "steps: expected a number of 1 or more"),
        ({"noise": -1.0}, "noise: expected"),
        ({"step_size": float("nan")}, "step_size: expected"),
        ({"inner_steps": 3}, "inner_steps: those of variant jem have no bounds"),
        ({"labels_per_class": 0}, "labels_per_class: expected"),
        ({"labels": torch.full((40,), -1)}, "labels: expected some, from 0 to 3"),
        ({"labels": torch.full((40,), 4)}, "labels: expected some, from 0 to 3"),
        ({"buffer_size": 42, "per_class": True}, "do not divide into 4 classes"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jem(network(), **options)


def test_images_of_another_range_are_refused() -> None:
    for images in (X * 3, X - 1, torch.full_like(X, torch.nan)):
        with pytest.raises(UserError, match="images: expected values from −1 to 1"):
            JEM(network(), images, LABELS, buffer_size=40)


def test_a_loss_that_runs_away_is_an_error_without_a_way_back() -> None:
    model = network()
    loss = jem(model)
    with torch.no_grad():
        model[-1].weight.mul_(1e6)
    with pytest.raises(DivergedError, match="energy model diverged"):
        loss.loss(X[:8], LABELS[:8])


def test_with_a_way_back_the_step_is_taken_from_the_good_state() -> None:
    events: list[dict[str, Any]] = []
    model = network()
    good = model[-1].weight.detach().clone()
    loss = jem(model, told=lambda **what: events.append(what))
    loss.begin(torch.optim.SGD(model.parameters(), lr=0.05))
    with torch.no_grad():
        model[-1].weight.mul_(1e6)
    assert loss.loss(X[:8], LABELS[:8]).isfinite()
    assert torch.equal(model[-1].weight, good)
    assert [event["retry"] for event in events] == [1]
    assert loss.figures()["returns"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_the_loss_is_the_same() -> None:
    logits, samples, labels = torch.randn(8, 5), torch.randn(6, 5), torch.tensor([0, -1, 2, 3, 4, 0, 1, -1])
    torch.testing.assert_close(torch.compile(jem_loss)(logits, labels, samples), jem_loss(logits, labels, samples))
