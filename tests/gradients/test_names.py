"""Which parameters gradients are taken of: layers or parameters by name, tied weights once, nothing that is frozen."""

from __future__ import annotations

import pytest
import torch

from postgrad.errors import UserError
from postgrad.gradients import per_sample_gradients, weight_names


def test_choice_of_layers_and_parameters(build) -> None:
    case = build("norms")
    everything = per_sample_gradients(case.model, case.x, case.labels)
    layers = per_sample_gradients(case.model, case.x, case.labels, layers=["head", "conv"])
    assert list(layers) == ["conv.weight", "conv.bias", "head.weight", "head.bias"]
    weights = per_sample_gradients(case.model, case.x, case.labels, parameters=["head.weight", "conv.weight"])
    assert list(weights) == ["conv.weight", "head.weight"]
    for name, rows in (layers | weights).items():
        assert torch.allclose(rows, everything[name], rtol=1e-10, atol=1e-15)
    assert weight_names(case.model) == ["conv.weight", "layer.weight", "layer.bias", "head.weight"]


def test_only_parameters_that_require_grad_unless_named(build) -> None:
    case = build("small")
    case.model[0].requires_grad_(False)
    assert list(per_sample_gradients(case.model, case.x, case.labels)) == ["4.weight", "4.bias"]
    assert list(per_sample_gradients(case.model, case.x, case.labels, layers=["0"])) == ["0.weight", "0.bias"]
    case.model.requires_grad_(False)
    with pytest.raises(UserError, match="no parameter of the model requires grad"):
        per_sample_gradients(case.model, case.x, case.labels)


def test_a_tied_weight_goes_by_its_first_name(build) -> None:
    case = build("tied")
    found = per_sample_gradients(case.model, case.x, case.labels, layers=["head"])
    assert list(found) == ["embedding.weight"]
    assert torch.equal(
        found["embedding.weight"],
        per_sample_gradients(case.model, case.x, case.labels, parameters=["head.weight"])["embedding.weight"],
    )
