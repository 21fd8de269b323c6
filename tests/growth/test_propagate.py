"""Which rule an operation has, what becomes of one without, and whether a wrong rule would be seen."""

from __future__ import annotations

import pytest
import torch
from following import NTC, Case, Function, check, followed

from postgrad.growth import _element_rules, _layer_rules, _propagate, _shape_rules
from postgrad.growth._algebra import axes_of
from postgrad.growth._operation import Step, Value, Values

CASES: dict[str, Case] = {
    "greatest": (lambda x: x.max(-1), 0, (NTC,)),
    "topk": (lambda x: x.topk(2, -1), 0, (NTC,)),
    "fft": (lambda x: torch.fft.rfft(x).abs(), 0, (NTC,)),
    "cdist": (lambda x: torch.cdist(x, x), 0, (NTC,)),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_without_a_rule(name: str) -> None:
    check(*CASES[name])


def test_what_is_not_known_is_fixed_with_its_name() -> None:
    found = followed(lambda x: torch.fft.fft(x).real, NTC)
    (reason,) = {reason for dim in found.inputs[0].dims for axis in axes_of(dim) for reason in axis.reasons}
    assert reason == "fft_fft is not among the operations that growth can follow"


def test_no_operation_has_two_rules() -> None:
    parts = (_element_rules.RULES, _layer_rules.RULES, _shape_rules.RULES)
    assert sum(map(len, parts)) == len(_propagate.RULES)


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        ("softmax", lambda x: x.softmax(-1)),
        ("sum", lambda x: x.sum(-1)),
        ("roll", lambda x: x.roll(1, -1)),
        ("slice", lambda x: x[..., 1:]),
    ],
)
def test_negative_control_a_rule_too_generous_is_seen(
    operation: str, function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generous(step: Step) -> Values:
        return Value(step.read[0].dims[: len(step.shape)])

    followed(function, NTC).check()
    monkeypatch.setitem(_propagate.RULES, operation, generous)
    with pytest.raises((AssertionError, RuntimeError)):
        followed(function, NTC).check()
