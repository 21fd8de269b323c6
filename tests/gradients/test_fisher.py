"""The Fisher metric against autograd in float64: its diagonal, its Kronecker factors, and all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.gradients.engine import GradientEngine
from postgrad.gradients.fallback import GradientFallbackWarning
from postgrad.gradients.fisher import DAMPING, KroneckerFisher, exact_fisher, fisher_rows
from postgrad.gradients.names import weight_names
from postgrad.gradients.normalise import Normaliser
from postgrad.gradients.space import GradientSpace

CLASSES = 3


def mlp(seed: int = 0, sizes: tuple[int, ...] = (6, 5, CLASSES)) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, second, last = sizes
        return nn.Sequential(nn.Flatten(), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, last)).double()


def pictures(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_jacobian(model: nn.Module, x: Tensor, names: list[str]) -> Tensor:
    """The Fisher matrix from the Jacobian of the logits: E Jᵀ (diag p − p pᵀ) J, which knows no label and no loss."""
    parameters = [model.get_parameter(name) for name in names]
    total: Any = 0
    for image in x:
        logits = model(image[None])[0]
        rows = [torch.autograd.grad(z, parameters, retain_graph=True) for z in logits]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        p = logits.detach().softmax(0)
        total = total + jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    return total / len(x)


def inverse_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors / values.sqrt() @ vectors.T


def damped(factor: Tensor, damping: float) -> Tensor:
    return factor + damping**0.5 * factor.trace() / len(factor) * torch.eye(len(factor), dtype=factor.dtype)


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_whole_matrix_is_that_of_the_jacobians(chunk: int | None) -> None:
    model, x = mlp(), pictures(7, 6)
    engine = GradientEngine(model, x[:3], parameters=weight_names(model))
    expected = by_jacobian(model, x, weight_names(model))
    assert torch.allclose(exact_fisher(engine, x), expected, rtol=1e-9, atol=1e-12)
    diagonal = {block.name: torch.zeros(block.numel, dtype=torch.float64) for block in engine.blocks}
    for name, rows in fisher_rows(engine, x, chunk=chunk):
        diagonal[name] += rows.square().sum(0) / (7 * CLASSES)
    assert torch.allclose(torch.cat(list(diagonal.values())), expected.diagonal(), rtol=1e-9, atol=1e-12)


def test_gradients_under_true_labels_give_another_matrix() -> None:
    """Negative control: the "empirical Fisher" of labels that the network does not expect is not the Fisher matrix."""
    model, x = mlp(), pictures(7, 6)
    engine = GradientEngine(model, x[:3], parameters=weight_names(model))
    rows = torch.cat([rows for _, rows in engine.gradients(x, torch.zeros(7, dtype=torch.int64))], dim=1)
    assert not torch.allclose(rows.T @ rows / 7, by_jacobian(model, x, weight_names(model)), rtol=0.2)


def test_diagonal_normalises_a_gradient_space() -> None:
    model, x = mlp(), pictures(40, 6)
    space = GradientSpace(model, x[:3], select=0.5, normalise="fisher")
    assert space.needs_statistics
    space.fit([(x[:25], torch.zeros(25, dtype=torch.int64)), (x[25:], torch.ones(15, dtype=torch.int64))])
    plain = GradientSpace(model, x[:3], select=0.5, normalise="none")
    diagonal = by_jacobian(model, x, weight_names(model)).diagonal()
    start = 0
    for found, rows in zip(space(x[:4], "all"), plain(x[:4], "all"), strict=True):
        own = diagonal[start : start + rows.shape[1]]
        start += rows.shape[1]
        assert torch.allclose(found, rows / (own + DAMPING * own.mean()).sqrt(), rtol=1e-8)
        assert torch.equal(found == 0, rows == 0)


@given(places=st.integers(1, 3), outputs=st.integers(2, 4), inputs=st.integers(1, 4), images=st.integers(1, 9))
def test_factors_of_a_layer_at_several_places(places: int, outputs: int, inputs: int, images: int) -> None:
    """A = E Σ_t a aᵀ and B = E Σ_t δ δᵀ / T, by a loop over images, labels and places."""
    with torch.random.fork_rng():
        torch.manual_seed(outputs)
        layer, head = nn.Linear(inputs, outputs).double(), nn.Linear(places * outputs, CLASSES).double()
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), head)
    x = pictures(images, places, inputs)
    A, B = torch.zeros(inputs, inputs).double(), torch.zeros(outputs, outputs).double()
    for image in x:
        A += image.T @ image / images
        between = layer(image[None]).detach().requires_grad_()
        logits = head(between.tanh().flatten(1))
        for label, p in enumerate(logits.detach().softmax(1)[0]):
            loss = F.cross_entropy(logits, torch.tensor([label]))
            (delta,) = torch.autograd.grad(loss, between, retain_graph=True)
            B += p * delta[0].T @ delta[0] / (images * places)
    metric = KroneckerFisher(model, ["0.weight"], x[:3])
    metric.update(x)
    gradients = pictures(5, outputs * inputs, seed=3)
    expected = inverse_root(damped(B, DAMPING)) @ gradients.view(5, outputs, inputs) @ inverse_root(damped(A, DAMPING))
    found = metric.finish().whiten_("0.weight", gradients.clone())
    assert torch.allclose(found, expected.flatten(1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Conv2d(2, 4, (2, 3), padding="same", dilation=2, groups=2, padding_mode="circular", bias=False),
    ],
)
def test_factors_of_a_convolution_by_its_patches(layer: nn.Conv2d) -> None:
    """As above, with the patches read off the convolution's Jacobian: (O, K) gradients of each output pixel."""
    layer = layer.double()
    images, groups, outputs = 4, layer.groups, layer.out_channels // layer.groups
    x = pictures(images, 2, 5, 6)
    features = layer(x[:1]).flatten(1).shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(features, CLASSES).double()
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), head)
    size = layer.weight[0].numel()
    A = torch.zeros(groups, size, size).double()
    B = torch.zeros(groups, outputs, outputs).double()
    places = features // layer.out_channels
    for image in x:
        between = layer(image[None])
        for group in range(groups):
            for place in range(places):
                channel = between[0].flatten(1)[group * outputs, place]
                patch = torch.autograd.grad(channel, layer.weight, retain_graph=True)[0][group * outputs].flatten()
                A[group] += patch.outer(patch) / images
        logits = head(between.tanh().flatten(1))
        for label, p in enumerate(logits.detach().softmax(1)[0]):
            loss = F.cross_entropy(logits, torch.tensor([label]))
            (delta,) = torch.autograd.grad(loss, between, retain_graph=True)
            delta = delta[0].reshape(groups, outputs, places)
            B += p * delta @ delta.mT / (images * places)
    metric = KroneckerFisher(model, ["0.weight"], x[:3])
    for part in x.split([1, 3]):
        metric.update(part)
    gradients = pictures(3, layer.weight.numel(), seed=3)
    found = metric.finish().whiten_("0.weight", gradients.clone()).view(3, groups, outputs, size)
    for group in range(groups):
        rows = gradients.view(3, groups, outputs, size)[:, group]
        expected = inverse_root(damped(B[group], DAMPING)) @ rows @ inverse_root(damped(A[group], DAMPING))
        assert torch.allclose(found[:, group], expected, rtol=1e-6, atol=1e-9)


def test_kronecker_factors_are_exact_where_inputs_say_nothing_of_deltas() -> None:
    """A linear softmax layer whose logits are all zero has the same δ for every input: F is A ⊗ B, and is inverted."""
    layer = nn.Linear(4, CLASSES, bias=False).double()
    nn.init.zeros_(layer.weight)
    x = pictures(30, 4)
    metric = KroneckerFisher(layer, ["weight"], x[:3], damping=1e-9)
    metric.update(x)
    fisher = by_jacobian(layer, x, ["weight"])
    (rows,) = (rows.clone() for _, rows in GradientEngine(layer, x[:3], parameters=["weight"]).gradients(x, "all"))
    whitened = metric.finish().whiten_("weight", rows.clone())
    inner = rows @ torch.linalg.pinv(fisher, rtol=1e-7) @ rows.T
    assert torch.allclose(whitened @ whitened.T, inner, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        layer.weight.copy_(3 * pictures(CLASSES, 4, seed=5))  # negative control: now δ depends on the input
    other = KroneckerFisher(layer, ["weight"], x[:3], damping=1e-9)
    other.update(x)
    (rows,) = (rows.clone() for _, rows in GradientEngine(layer, x[:3], parameters=["weight"]).gradients(x, "all"))
    whitened = other.finish().whiten_("weight", rows.clone())
    inner = rows @ torch.linalg.pinv(by_jacobian(layer, x, ["weight"]), rtol=1e-7) @ rows.T
    assert not torch.allclose(whitened @ whitened.T, inner, rtol=1e-1)


def test_whitened_gradients_know_no_linear_change_of_coordinates() -> None:
    """Invariance: inner products under the factors stay when a layer's inputs are mixed and its weight unmixed."""
    x, mixing = pictures(50, 6), pictures(6, 6, seed=9)
    plain = mlp()
    mixed = mlp()
    with torch.no_grad():
        mixed[1].weight.copy_(plain[1].weight @ torch.linalg.inv(mixing))
    inner, raw = [], []
    for model, inputs in ((plain, x), (mixed, x @ mixing.T)):
        metric = KroneckerFisher(model, ["1.weight"], inputs[:3], damping=1e-12)
        metric.update(inputs)
        engine = GradientEngine(model, inputs[:3], parameters=["1.weight"])
        (rows,) = (rows.clone() for _, rows in engine.gradients(inputs[:5], "all"))
        raw.append(rows @ rows.T)
        whitened = metric.finish().whiten_("1.weight", rows)
        inner.append(whitened @ whitened.T)
    assert torch.allclose(*inner, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*raw, rtol=1e-1)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_selection_comes_after_whitening(scope: Any) -> None:
    model, x = mlp(), pictures(20, 6)
    whole = GradientSpace(model, x[:3], select=None, normalise="kfac")
    chosen = GradientSpace(model, x[:3], select=0.2, normalise="kfac", scope=scope)
    assert whole.needs_statistics
    for space in (whole, chosen):
        space.fit([(x, torch.zeros(20, dtype=torch.int64))])
    again = GradientSpace(model, x[:3], select=0.2, normalise="kfac", scope=scope)
    again.load_statistics(chosen.statistics())
    entries = torch.cat([rows.clone() for rows in whole(x[:4], "all")], dim=1)
    kept = torch.cat([rows.clone() for rows in chosen(x[:4], "all")], dim=1)
    assert torch.equal(kept, torch.cat(again(x[:4], "all"), dim=1))
    assert torch.equal(kept, torch.where(kept != 0, entries, 0))
    share = (kept != 0).double().mean(1)
    assert ((share > 0.1) & (share < 0.3)).all()
    for row, full in zip(kept.abs(), entries.abs(), strict=True):
        if scope == "global":
            assert row[row > 0].min() >= full[row == 0].max()


def test_a_layer_that_nothing_reaches() -> None:
    """A dead ReLU leaves zeros in every factor and in the diagonal; they divide by one."""
    model = mlp()
    model[2] = nn.ReLU()
    nn.init.constant_(model[1].bias, -100.0)
    x = pictures(8, 6)
    for kind in ("fisher", "kfac"):
        space = GradientSpace(model, x[:3], select=None, normalise=kind)
        space.fit([(x, torch.zeros(8, dtype=torch.int64))])
        first, last = space(x, "all")
        assert torch.equal(first, torch.zeros_like(first))
        assert torch.isfinite(last).all()


def test_weights_without_factors_are_refused(build: Callable[..., Any]) -> None:
    case = build("transformer")
    with pytest.warns(GradientFallbackWarning), pytest.raises(UserError, match="have no Kronecker factors"):
        GradientSpace(case.model, case.x, normalise="kfac")
    tied = build("tied")
    with pytest.raises(UserError, match=r"embedding\.weight has no Kronecker factors"):
        KroneckerFisher(tied.model, ["embedding.weight"], tied.x)


def test_what_does_not_fit_is_refused() -> None:
    model, x = mlp(sizes=(300, 5, CLASSES)), pictures(4, 300)
    with pytest.raises(UserError, match=r"Kronecker factors take .* more than the memory budget"):
        KroneckerFisher(model, weight_names(model), x, memory=1 << 20)
    with pytest.raises(UserError, match=r"Fisher matrix of 1,515 weights takes"):
        exact_fisher(GradientEngine(model, x, parameters=weight_names(model), memory=1 << 20), x)
    with pytest.raises(UserError, match="not there yet"):
        KroneckerFisher(model, weight_names(model), x).whiten_("1.weight", torch.zeros(1, 1500).double())


def test_fisher_state_travels() -> None:
    rows = pictures(8, 30)
    normaliser = Normaliser("fisher")
    normaliser.update("block", rows)
    other = Normaliser("fisher").load_state_dict(normaliser.finish().state_dict())
    assert torch.equal(other.apply_("block", rows.clone()), normaliser.apply_("block", rows.clone()))
