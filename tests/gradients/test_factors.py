"""Factors of gradients, and all that is read off them, against the whole gradients."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.gradients import GradientEngine, engine, per_sample_gradients, weight_names
from postgrad.gradients.coordinates import CoordinateGradients
from postgrad.gradients.low_rank import FactorSpace, functionals, summed
from postgrad.gradients.project import ProjectedGradients, sketch_shape
from postgrad.gradients.space import GradientSpace

NAMES = ["small", "seed-cnn", "mlp", "grouped", "volumes", "signals", "used-twice", "windows", "in-place", "residual"]
CASES = [(name, labels) for name in NAMES for labels in ("given", "all")]
RESNET18 = pytest.param("resnet18", "all", marks=pytest.mark.slow)


def whole(case, labels) -> dict[str, Tensor]:
    """The gradients of the weights as (N·L, O, K)."""
    found = per_sample_gradients(case.model, case.x, labels, parameters=weight_names(case.model))
    leading = 2 if labels == "all" else 1
    return {name: rows.flatten(0, leading - 1).flatten(2) for name, rows in found.items()}


def made(case, **options) -> GradientEngine:
    return GradientEngine(case.model, case.x[:3], parameters=weight_names(case.model), **options)


def rows_of(gradients, case, labels) -> dict[str, Tensor]:
    return {name: rows.clone() for name, rows in gradients.gradients(case.x, labels)}


@pytest.mark.parametrize(("name", "labels"), [*CASES, RESNET18])
def test_functionals_are_those_of_the_whole_gradient(name, labels, build) -> None:
    case = build(name)
    labels = case.labels if labels == "given" else "all"
    expected, generator = whole(case, labels), torch.Generator().manual_seed(1)
    for rows, part in made(case).factors(case.x, labels):
        assert rows == len(next(iter(expected.values())))
        for block, factors in part.items():
            outputs, inputs = expected[block].shape[1:]
            a, b = (torch.randn(3, 2, side, generator=generator).double() for side in (outputs, inputs))
            values = torch.einsum("nok,hro,hrk->nh", expected[block], a, b)
            torch.testing.assert_close(summed(factors, a, b, rows=rows), values, rtol=1e-8, atol=1e-12)
            assert not torch.allclose(summed(factors, a.roll(1, -1), b, rows=rows), values, rtol=1e-3) or outputs == 1


def test_functionals_are_differentiable_in_both_sides(build) -> None:
    case = build("grouped")
    _, part = next(made(case).factors(case.x[:2], "all"))
    (factor,) = part["0.weight"]
    a = torch.randn(2, 2, 8, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 2, 18, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: functionals(factor, a, b), (a, b))


@pytest.mark.parametrize("room", [1, 5000])
@pytest.mark.parametrize("name", ["small", "used-twice", "windows"])
def test_tiles_of_images_and_labels_follow_each_other(name, room, build, monkeypatch) -> None:
    case = build(name)
    expected = whole(case, "all")
    monkeypatch.setattr(engine, "_TILE_BYTES", room)
    parts = list(made(case).factors(case.x, "all"))
    assert len(parts) > 1
    assert sum(rows for rows, _ in parts) == len(case.x) * case.classes
    found = rows_of(CoordinateGradients(made(case), 10**6).locate([(case.x, case.labels)]), case, "all")
    for block, rows in found.items():
        torch.testing.assert_close(rows, expected[block].flatten(1), rtol=1e-8, atol=1e-12)


# --- projections -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "labels"), [*CASES, RESNET18])
def test_projected_rows_are_the_projected_gradients(name, labels, build) -> None:
    """`project` projects any matrix as the gradients are, with plain products: the oracle, and linear."""
    case = build(name)
    labels = case.labels if labels == "given" else "all"
    projected = ProjectedGradients(made(case), 40)
    expected = whole(case, labels)
    for block, rows in rows_of(projected, case, labels).items():
        shape = dict(case.model.named_parameters())[block].shape
        wanted = torch.cat([projected.project(block, row.view(shape)) for row in expected[block]])
        torch.testing.assert_close(rows, wanted, rtol=1e-8, atol=1e-12)


def test_small_layers_stay_as_they_are(build) -> None:
    case = build("small")
    rows = rows_of(ProjectedGradients(made(case), 150), case, case.labels)
    assert rows["4.weight"].shape[1] < 180
    torch.testing.assert_close(rows["0.weight"], whole(case, case.labels)["0.weight"].flatten(1), rtol=1e-9, atol=0)


@settings(max_examples=50)
@given(st.integers(1, 600), st.integers(1, 5000), st.integers(1, 9000))
def test_sketches_are_about_as_large_as_asked(outputs, inputs, size) -> None:
    rows, columns = sketch_shape(outputs, inputs, size)
    assert 1 <= rows <= outputs
    assert 1 <= columns <= inputs
    if outputs * inputs > size:
        assert size / 2 <= rows * columns <= size


def test_inner_products_are_kept_on_average_and_the_better_the_larger_the_sketch(build) -> None:
    case = build("seed-cnn")
    engine_of_it, shape = made(case), (64, 64, 5, 5)
    g, h = whole(case, case.labels)["3.weight"][:2].flatten(1)
    errors = {}
    for size in (64, 1024):
        sketches = [ProjectedGradients(engine_of_it, size, seed=seed) for seed in range(200)]
        pairs = [[sketch.project("3.weight", row.view(shape)) for row in (g, h)] for sketch in sketches]
        found = np.array([float((pg * ph).sum()) for pg, ph in pairs])
        assert abs(found.mean() - float(g @ h)) < 4 * found.std() / math.sqrt(len(found))
        errors[size] = found.std() / float(g.norm() * h.norm())
    # Johnson–Lindenstrauss: the deviation falls as one over the root of the sketch's shorter side, here √8 to √32.
    assert errors[1024] < errors[64] / 1.6
    assert errors[1024] < 0.5


def test_a_projection_depends_on_the_seed_alone(build) -> None:
    case = build("small")
    first, again, other = (
        rows_of(ProjectedGradients(made(case), 20, seed=seed), case, case.labels)["4.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


# --- coordinates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [30, 400])
@pytest.mark.parametrize(("name", "labels"), [*CASES, RESNET18])
def test_coordinates_are_the_entries_of_the_whole_gradient(name, labels, count, build) -> None:
    case = build(name)
    labels = case.labels if labels == "given" else "all"
    coordinates = CoordinateGradients(made(case), count).locate([(case.x, case.labels)])
    expected = whole(case, labels)
    places = coordinates.state_dict()
    for block, rows in rows_of(coordinates, case, labels).items():
        wanted = expected[block].flatten(1)
        torch.testing.assert_close(rows, wanted[:, places[f"{block}.places"]], rtol=1e-8, atol=1e-12)
        assert rows.shape[1] == 1 or not torch.allclose(rows, wanted[:, places[f"{block}.places"].roll(1)])


def test_the_chosen_coordinates_have_the_largest_mean(build) -> None:
    case = build("seed-cnn")
    coordinates = CoordinateGradients(made(case), 500)
    coordinates.locate([(case.x[:2], case.labels[:2]), (case.x[2:], case.labels[2:])])
    means = torch.cat([rows.flatten(1).abs().mean(0) for rows in whole(case, case.labels).values()])
    chosen = torch.zeros(len(means), dtype=torch.bool)
    offset = 0
    for block in coordinates.engine.blocks:
        places = coordinates.state_dict().get(f"{block.name}.places", torch.empty(0, dtype=torch.int64))
        chosen[offset + places] = True
        offset += block.numel
    assert int(chosen.sum()) == 500 == sum(block.numel for block in coordinates.blocks)
    assert means[chosen].min() >= means[~chosen].max()


def test_both_ways_to_the_entries_agree(build, monkeypatch) -> None:
    case = build("seed-cnn")
    monkeypatch.setattr("postgrad.gradients.coordinates._DENSE_SHARE", 2.0)
    coordinates = CoordinateGradients(made(case), 3000).locate([(case.x, case.labels)])
    gathered = rows_of(coordinates, case, "all")
    monkeypatch.setattr("postgrad.gradients.coordinates._DENSE_SHARE", 0.0)
    multiplied = rows_of(coordinates, case, "all")
    monkeypatch.setattr("postgrad.gradients.coordinates._NUMBERS_AT_ONCE", 100_000)
    piecewise = rows_of(coordinates, case, "all")
    for block, rows in gathered.items():
        torch.testing.assert_close(rows, multiplied[block], rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(rows, piecewise[block], rtol=1e-8, atol=1e-14)


def test_coordinates_before_locate_are_refused(build) -> None:
    case = build("small")
    with pytest.raises(UserError, match="not chosen yet"):
        CoordinateGradients(made(case), 5).gradients(case.x, case.labels)


# --- scales of functionals, and layers that have no factors ----------------------------------------------------------


def test_scales_are_the_root_mean_square_lengths(build) -> None:
    case = build("seed-cnn")
    model, x = case.model.float(), case.x.float()
    space = FactorSpace(model, x[:3])
    space.fit([(x, case.labels)])
    lengths = [rows.flatten(1).square().sum(1).mean().sqrt() for rows in whole(build("seed-cnn"), case.labels).values()]
    for scale, length in zip(space.scales(), lengths, strict=True):
        assert float(scale) == pytest.approx(float(length), rel=0.35)
    with pytest.raises(UserError, match="fit them first"):
        FactorSpace(model, x[:3]).scales()


@pytest.mark.parametrize(
    "open_space",
    [
        lambda engine: ProjectedGradients(engine, 5),
        lambda engine: CoordinateGradients(engine, 5),
        lambda engine: engine.refuse_unfactored("rank="),
    ],
)
def test_layers_without_factors_are_named(open_space, build) -> None:
    case = build("transformer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made_of_all = GradientEngine(case.model, case.x, parameters=weight_names(case.model))
    with pytest.raises(UserError, match=r"not with .*in_proj_weight.*layers=") as raised:
        open_space(made_of_all)
    assert "linear1" not in str(raised.value)
    open_space(GradientEngine(case.model, case.x, parameters=["encoder.linear1.weight", "head.weight"]))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    axes = draw(st.integers(1, 3))
    groups, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    stride, dilation, padding = (tuple(draw(st.integers(low, 2)) for _ in range(axes)) for low in (1, 1, 0))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    sizes = [draw(st.integers(step * (size - 1) + 3, 8)) for size, step in zip(kernel, dilation, strict=True)]
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](
        groups * inputs, groups * outputs, kernel, stride, padding, dilation, groups, False, mode
    )
    return layer, torch.randn(2, groups * inputs, *sizes, dtype=torch.float64)


@settings(max_examples=40)
@given(convolutions(), st.integers(1, 40))
def test_any_convolution(drawn, size) -> None:
    layer, x = drawn
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    with torch.no_grad():
        model(x)
    labels = torch.tensor([0, 2])
    made_of_it = GradientEngine(model, x, parameters=["0.weight"])
    gradient = per_sample_gradients(model, x, labels, parameters=["0.weight"])["0.weight"].flatten(2)
    projected = ProjectedGradients(made_of_it, size)
    rows = dict(projected.gradients(x, labels))["0.weight"]
    wanted = torch.cat([projected.project("0.weight", row.view(layer.weight.shape)) for row in gradient])
    torch.testing.assert_close(rows, wanted, rtol=1e-7, atol=1e-10)
    coordinates = CoordinateGradients(made_of_it, size).locate([(x, labels)])
    places = coordinates.state_dict()["0.weight.places"]
    entries = dict(coordinates.gradients(x, labels))["0.weight"]
    torch.testing.assert_close(entries, gradient.flatten(1)[:, places], rtol=1e-7, atol=1e-10)
    a, b = torch.randn(2, 2, gradient.shape[1]).double(), torch.randn(2, 2, gradient.shape[2]).double()
    _, part = next(made_of_it.factors(x, labels))
    values = torch.einsum("nok,hro,hrk->nh", gradient, a, b)
    torch.testing.assert_close(functionals(part["0.weight"][0], a, b), values, rtol=1e-7, atol=1e-10)


def test_the_fisher_metric_needs_whole_gradients(build) -> None:
    case = build("small")
    with pytest.raises(UserError, match="measures whole gradients"):
        GradientSpace(case.model, case.x, project=5, normalise="kfac")
