"""Changes noted on a network, and made again to another."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from postgrad import apply_norm, create_model
from postgrad.changes import Change, apply_changes, changes_of, note_change
from postgrad.errors import UserError


def test_changes_are_kept_in_their_order_and_by_copies() -> None:
    model = nn.Linear(2, 2)
    assert changes_of(model) == ()
    note_change(model, "frn", learnable_eps="auto")
    note_change(model, "norm", kind="group")
    expected = (Change(name="frn", options={"learnable_eps": "auto"}), Change(name="norm", options={"kind": "group"}))
    assert changes_of(model) == changes_of(copy.deepcopy(model)) == expected
    assert list(model.state_dict()) == ["weight", "bias"]


def test_the_same_changes_make_the_same_architecture() -> None:
    model, other = (create_model("resnet20", num_classes=3) for _ in range(2))
    apply_norm(model, kind="layer")
    apply_changes(other, changes_of(model))
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(x), model(x))
    assert changes_of(other) == changes_of(model)


def test_an_unknown_change_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'norm'"):
        apply_changes(nn.Linear(2, 2), [Change(name="nrm")])


def test_what_was_said_when_a_network_was_changed_is_not_said_again() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_changes(nn.Sequential(nn.Linear(2, 2)), [Change(name="norm", options={"kind": "group"})])
    with pytest.warns(UserWarning, match="no BatchNorm2d"):
        apply_norm(nn.Sequential(nn.Linear(2, 2)), kind="group")
