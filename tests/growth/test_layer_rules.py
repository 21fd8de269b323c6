"""The rules of layers with weights, each against the operation itself with more units."""

from __future__ import annotations

import pytest
import torch
from following import NCHW, NTC, Case, check, followed
from torch import Tensor
from torch.nn import functional as F

from postgrad.growth._algebra import axes_of
from postgrad.growth.axes import _constraints

OF_ACTIVATIONS: dict[str, Case] = {
    "matmul": (lambda x, y: x @ y, 4, (NTC, (2, 4, 5))),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        6,
        ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    ),
    "its own scale": (lambda q: F.scaled_dot_product_attention(q, q, q, scale=0.3), 4, ((2, 3, 5, 4),)),
    "a mask": (lambda q, m: F.scaled_dot_product_attention(q, q, q, m), 3, ((2, 3, 5, 4), (5, 5))),
    "a mask for each head": (lambda q, m: F.scaled_dot_product_attention(q, q, q, m), 3, ((2, 3, 5, 4), (3, 5, 5))),
    "a mask for all": (lambda q, m: F.scaled_dot_product_attention(q, q, q, m), 3, ((2, 3, 5, 4), (2, 1, 5, 5))),
    "causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), 3, ((2, 5, 4),) * 3),
    "grouped queries": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        6,
        ((2, 6, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    ),
    "einsum": (lambda x, y: torch.einsum("btc,bcd->btd", x, y), 4, (NTC, (2, 4, 5))),
    "einsum of one unit": (lambda x, y: torch.einsum("btc,bcd->btd", x, y), 4, (NTC, (1, 4, 5))),
    "einsum of three": (lambda x: torch.einsum("tc,tc,tc->t", x, x, x), 1, ((3, 4),)),
    "trace": (lambda x: torch.einsum("ii->", x), 0, ((3, 3),)),
    "implicit einsum": (lambda x, y: torch.einsum("btc,bcd", x, y), 0, (NTC, (2, 4, 5))),
    "layer_norm": (lambda x: F.layer_norm(x, x.shape[-1:]), 3, (NTC,)),
    "layer_norm of two": (lambda x: F.layer_norm(x, x.shape[-2:]), 3, (NTC,)),
    "rms_norm": (lambda x: F.rms_norm(x, x.shape[-1:]), 3, (NTC,)),
    "instance_norm": (lambda x: F.instance_norm(x), 4, (NCHW,)),
}


@pytest.mark.parametrize("name", OF_ACTIVATIONS)
def test_sums_and_normalisations_of_activations(name: str) -> None:
    check(*OF_ACTIVATIONS[name])


WEIGHTS: dict[str, Case] = {
    "linear": (F.linear, 4, (NTC, (5, 4), (5,))),
    "linear without bias": (F.linear, 4, (NTC, (5, 4))),
    "linear of a vector": (F.linear, 2, ((4,), (5, 4))),
    "weight on the right": (lambda x, w: x @ w, 4, (NTC, (4, 5))),
    "weight on the left": (lambda x, w: w @ x, 4, (NTC, (5, 3))),
    "transposed weight": (lambda x, w: x @ w.t(), 4, (NTC, (5, 4))),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), 3, ((3, 4), (4, 5), (5,))),
    "mm": (lambda x, w: torch.mm(x, w.T), 3, ((3, 4), (5, 4))),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, 2, 1), 3, (NCHW, (5, 4, 3, 3), (5,))),
    "conv2d, same": (lambda x, w: F.conv2d(x, w, padding="same"), 3, (NCHW, (5, 4, 3, 3))),
    "conv2d without a batch": (F.conv2d, 2, ((4, 6, 6), (5, 4, 3, 3))),
    "conv1d": (F.conv1d, 3, ((2, 4, 6), (5, 4, 3))),
    "conv3d": (F.conv3d, 3, ((2, 2, 4, 4, 4), (3, 2, 2, 2, 2))),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=x.shape[1]), 2, (NCHW, (4, 1, 3, 3))),
    "depthwise, two each": (lambda x, w: F.conv2d(x, w, groups=x.shape[1]), 3, (NCHW, (8, 1, 3, 3))),
    "conv_transpose2d": (F.conv_transpose2d, 3, (NCHW, (4, 5, 3, 3), (5,))),
    "conv_transpose1d": (F.conv_transpose1d, 3, ((2, 4, 6), (4, 5, 3))),
    "transposed in groups": (lambda x, w: F.conv_transpose2d(x, w, groups=2), 0, (NCHW, (4, 3, 3, 3))),
    "prelu": (F.prelu, 4, (NCHW, (4,))),
    "one slope": (F.prelu, 4, (NCHW, (1,))),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), 3, (NTC, (4,), (4,))),
    "batch_norm": (lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), 4, (NCHW, *((4,),) * 4)),
    "batch_norm in training": (lambda x, w: F.batch_norm(x, None, None, w, training=True), 4, (NCHW, (4,))),
    "scale": (lambda x, s: x * s.view(1, -1, 1, 1), 4, (NCHW, (4,))),
    "unsqueezed scale": (lambda x, s: x * s[:, None, None], 4, (NCHW, (4, 1, 1)[:1])),
    "position": (lambda x, p: x + p, 3, (NTC, NTC)),
    "a word for each image": (lambda x, c: torch.cat([c.expand(x.shape[0], -1, -1), x], 1), 3, (NTC, (1, 2, 4))),
    "queries that are weights": (
        lambda x, q: F.scaled_dot_product_attention(q.expand(x.shape[0], -1, -1), x, x),
        3,
        (NTC, (1, 2, 4)),
    ),
    "computed weight": (lambda x, w: F.linear(x, w * 2), 3, (NTC, (5, 4))),
    "centred weight": (lambda x, w: F.linear(x, w - w.mean(1, keepdim=True)), 3, (NTC, (5, 4))),
    "normed weight": (lambda x, v, g: F.linear(x, torch._weight_norm(v, g)), 3, (NTC, (5, 4), (5, 1))),
    "wholly normed weight": (lambda x, v, g: F.linear(x, torch._weight_norm(v, g, -1)), 2, (NTC, (5, 4), ())),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_operations_with_weights(name: str) -> None:
    check(*WEIGHTS[name], activations=1)


def test_embeddings_grow_along_their_features() -> None:
    words = torch.tensor([[0, 2, 1], [3, 3, 0]])
    found = followed(lambda table: F.embedding(words, table), (4, 5), activations=0)
    assert [axis.size for axis in found.free] == [5]
    found.check()


def test_groups_grow_whole_or_within() -> None:
    """As its axes grow, a grouped convolution has other groups, which the function below asks of its weight."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, groups=x.shape[1] // w.shape[1])

    found = followed(function, NCHW, (6, 2, 3, 3), activations=1)
    assert sorted(axis.size for axis in found.free) == [2, 2, 2, 3]  # images, groups, channels in, channels out
    found.check()
    assert [name for name, _ in found.notes.grouped] == [""]


def test_groups_are_normalised_whole_or_within() -> None:
    """As above: the number of groups, and what is in one, are told apart by their sizes."""

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1] // 3 if x.shape[1] % 4 else 2, w, b)

    found = followed(function, (2, 6, 5), (6,), (6,), activations=1)
    assert sorted(axis.size for axis in found.free) == [2, 2, 3, 5]
    by_size = {axis.size: axis for axis in found.free[1:]}
    assert [axis in _constraints(found.notes.even) for axis in map(by_size.get, (2, 3, 5))] == [False, True, True]
    found.check()
    (groups,) = (dim for _, dim in found.notes.grouped)
    assert axes_of(groups) == [by_size[2]]
