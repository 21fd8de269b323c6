"""The rules of operations that arrange elements, each against the operation itself with more units."""

from __future__ import annotations

import pytest
import torch
from following import NTC, Case, check
from torch import Tensor


def zeroed(x: Tensor) -> Tensor:
    """As Swin V2 has no bias for its keys."""
    third = x.shape[1] // 3
    x = x.clone()
    x[:, third : 2 * third].zero_()
    return x


def written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 2.0
    return x


CASES: dict[str, Case] = {
    "flatten": (lambda x: x.flatten(1), 3, (NTC,)),
    "flatten all": (lambda x: x.flatten(), 3, (NTC,)),
    "unflatten": (lambda x: x.unflatten(-1, (-1, 1)).unflatten(1, (1, -1)), 3, (NTC,)),
    "reshape": (lambda x: x.reshape(*x.shape[:2], -1).transpose(1, 2).reshape(len(x), -1), 3, (NTC,)),
    "ones at both ends": (lambda x: x.reshape(1, len(x), 1, -1, 1).squeeze(0).squeeze(-1), 3, (NTC,)),
    "another cut": (lambda x: x.reshape(4, 6), 0, (NTC,)),
    "permute": (lambda x: x.permute(2, 0, 1).mT.transpose(0, -1).movedim(0, 2), 3, (NTC,)),
    "numpy's T": (lambda x: x.flatten(1).t(), 3, (NTC,)),
    "unsqueeze, expand": (lambda x: x.unsqueeze(1).expand(-1, 5, -1, -1), 3, (NTC,)),
    "expand as another": (lambda x, y: x.expand_as(y) + y, 3, ((1, 4), NTC)),
    "expand a unit": (lambda x: x.expand(2, -1, -1), 2, ((1, 3, 4),)),
    "squeeze": (lambda x: x.squeeze(), 2, ((1, 3, 4),)),
    "squeeze two": (lambda x: x.squeeze((0, 1)), 2, ((1, 3, 4),)),
    "select": (lambda x: x[:, 0], 2, (NTC,)),
    "slice": (lambda x: x[:, 1:], 2, (NTC,)),
    "second half": (lambda x: x[..., x.shape[-1] // 2 :], 3, (NTC,)),
    "last third": (lambda x: x[:, -(x.shape[1] // 3) :], 3, ((2, 6, 4),)),
    "zeros in the middle": (lambda x: zeroed(x), 3, ((2, 6, 4),)),
    "a half across thirds": (lambda x: torch.cat([x, x, x], 1)[:, 2:], 2, (NTC,)),
    "whole slice": (lambda x: x[:, :, :], 3, (NTC,)),
    "strided slice": (lambda x: x[..., ::2], 2, (NTC,)),
    "written slice": (lambda x: written(x), 2, (NTC,)),
    "unbind": (lambda x: x.unbind(1), 2, (NTC,)),
    "chunk": (lambda x: x.chunk(2, -1), 3, (NTC,)),
    "uneven chunk": (lambda x: x.chunk(2, 1), 2, (NTC,)),
    "split": (lambda x: x.split(x.shape[-1] // 2, -1), 3, (NTC,)),
    "split by sizes": (lambda x: x.split([1, 3], -1), 2, (NTC,)),
    "tensor_split": (lambda x: x.tensor_split(2, -1), 3, (NTC,)),
    "cat": (lambda x, y: torch.cat([x, y], -1), 4, (NTC, (2, 3, 5))),
    "cat of empty": (lambda x: torch.cat([x.new_zeros(0), x], -1), 3, (NTC,)),
    "cat and chunk": (lambda x, y: torch.cat([x, y], -1).chunk(3, -1), 4, (NTC, (2, 3, 5))),
    "stack": (lambda x, y: torch.stack([x, y], 1), 3, (NTC, NTC)),
    "index": (lambda x: x[torch.tensor([1, 0, 1])], 2, (NTC,)),
    "index by two": (lambda x: x[torch.tensor([1, 0]), torch.tensor([0, 2])], 1, (NTC,)),
    "inner index": (lambda x: x[:, torch.tensor([1, 0])], 0, (NTC,)),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_that_arrange(name: str) -> None:
    check(*CASES[name])
