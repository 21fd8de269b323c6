"""Convolutions in many groups in float64: the same as torch's, and so are their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from postgrad.growth import _convolution
from postgrad.growth._convolution import ManyGroups

pair = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3)), st.tuples(st.integers(1, 3), st.integers(1, 3)))


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel:UserWarning")  # torch on itself
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    groups=st.sampled_from([1, 2, 8, 9]),
    each=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=pair,
    padding=st.one_of(st.sampled_from(["same", "valid"]), st.integers(0, 2), st.tuples(st.integers(0, 2))),
    dilation=pair,
    bias=st.booleans(),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_it_is_that_of_torch(
    batch: int,
    groups: int,
    each: tuple[int, int],
    kernel: tuple[int, int],
    stride: Any,
    padding: Any,
    dilation: Any,
    bias: bool,
    memory_format: torch.memory_format,
) -> None:
    stride = 1 if padding == "same" else stride
    images = torch.randn(batch, groups * each[0], 12, 11, dtype=torch.float64).to(memory_format=memory_format)
    weight = torch.randn(groups * each[1], each[0], *kernel, dtype=torch.float64)
    given_ = [images, weight, *([torch.randn(len(weight), dtype=torch.float64)] if bias else [])]
    inputs = [tensor.requires_grad_() for tensor in given_]
    settings_ = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    expected = F.conv2d(*inputs, **settings_)
    with ManyGroups():
        made = F.conv2d(*inputs, **settings_)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, direction)
    torch.testing.assert_close(torch.autograd.grad(made, inputs, direction), wanted, rtol=1e-12, atol=1e-12)


def test_it_takes_the_place_in_layers_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    real = _convolution.checkpoint
    monkeypatch.setattr(
        _convolution, "checkpoint", lambda *args, **options: (calls.append(args[1].shape), real(*args, **options))[1]
    )
    depthwise = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", groups=8, dtype=torch.float64)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    expected = depthwise(x)
    with ManyGroups():
        torch.testing.assert_close(depthwise(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(depthwise(x[0]), expected[0], rtol=1e-12, atol=1e-12)
        nn.Conv2d(8, 8, 3, dtype=torch.float64)(x)
        depthwise.float()(x.float())
    depthwise(x.float())
    assert calls == [(2, 8, 8, 8)]


def test_what_torch_refuses_is_refused() -> None:
    weight = torch.randn(8, 1, 3, 3, dtype=torch.float64)
    with ManyGroups(), pytest.raises(RuntimeError):
        F.conv2d(torch.randn(1, 9, 5, 5, dtype=torch.float64), weight, groups=8)
    with ManyGroups(), pytest.raises(RuntimeError):
        F.conv2d(torch.randn(1, 8, 2, 5, dtype=torch.float64), weight, groups=8)
