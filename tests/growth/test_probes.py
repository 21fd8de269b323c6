"""What networks are tried with: made from any example, and run without leaving a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from growing import NETWORKS, Both, ConvNet, Wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad._compat import prepare_torchvision
from postgrad.growth._probes import BATCH, SINGLE, TRAIN, answer, copy_of, leaves, observe, perturb, probes, quiet

DROPOUTS = {
    "Dropout": (nn.Dropout, (4, 3, 8, 8)),
    "Dropout1d": (nn.Dropout1d, (4, 3, 8)),
    "Dropout2d": (nn.Dropout2d, (4, 3, 8, 8)),
    "Dropout3d": (nn.Dropout3d, (4, 3, 4, 4, 4)),
    "AlphaDropout": (nn.AlphaDropout, (4, 3, 8)),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout, (4, 3, 8)),
    "in place": (lambda p: nn.Dropout(p, inplace=True), (4, 3, 8)),
}


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.booleans(),
)
def test_batches_begin_with_the_example(
    size: int, channels: int, height: int, width: int, dtype: torch.dtype, last: bool
) -> None:
    example = torch.randn(size, channels, height, width, dtype=torch.float64).to(dtype)
    if last:
        example = example.to(memory_format=torch.channels_last)
    made = probes(example)
    for n, name in ((1, "float64 eval, batch 1"), (2, BATCH), (3, "float64 eval, batch 3"), (3, TRAIN), (2, SINGLE)):
        (images,) = made[name]
        assert images.shape == (n, channels, height, width)
        assert images.isfinite().all()
        if example.numel() > size and example.double().std() > 0:
            assert torch.equal(images[:size], example[:n].double())
        if n > size:
            assert not torch.equal(images[size], images[0])
    others = {name: each[0].shape for name, each in made.items() if "×" in name}
    expected = {(max(1, height * q // 4), max(1, width * q // 4)) for q in (3, 5)} - {(height, width)}
    assert others == {f"float64 eval, {h}×{w}": (1, channels, h, w) for h, w in expected}


def test_an_example_that_shows_nothing_gets_noise() -> None:
    (images,) = probes(torch.zeros(4, 3, 32, 32))[BATCH]
    assert images.std().item() == pytest.approx(1, abs=0.05)


def test_only_what_has_a_batch_dimension_is_repeated() -> None:
    tokens, mask, bias = torch.arange(4).reshape(1, 4), torch.tensor([[True, False, False, False]]), torch.eye(4)
    made = probes((tokens, mask, bias, None, 3))[BATCH]
    assert made[0].tolist() == [[0, 1, 2, 3], [3, 0, 1, 2]]
    assert made[1].tolist() == [[True, False, False, False], [False, True, False, False]]
    assert made[2] is bias
    assert made[3:] == (None, 3)
    assert not any("×" in name for name in probes(tokens))


def test_leaves_of_every_structure() -> None:
    x = torch.ones(2)
    output = {"a": x, "b": [x + 1, None, (x + 2,)], "c": Both(x + 3, x + 4), "d": Wrapped(x + 5), "e": "text"}
    assert [leaf[0].item() for leaf in leaves(output)] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(leaves(torch.complex(x, 2 * x))[0], torch.tensor([[1.0, 2.0]] * 2))


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_training_mode_is_without_dropout(name: str, p: float) -> None:
    make, shape = DROPOUTS[name]
    x = torch.rand(shape, dtype=torch.float64)
    torch.testing.assert_close(answer(TRAIN, make(p), (x,)), [x])
    assert not torch.equal(make(p).train()(x.clone()), x)  # it is one that would show


def _attention(x: Tensor, training: bool) -> Tensor:
    p = 0.5 if training else 0.0
    return F.scaled_dot_product_attention(x, x, x, None, p) + F.scaled_dot_product_attention(x, x, x, dropout_p=p)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x)[0] + _attention(x, self.training) + F.dropout(x, 0.3, self.training)


def test_dropout_in_functions_and_in_attention_is_off_too() -> None:
    model, x = Attention(), torch.rand(2, 3, 8, dtype=torch.float64)
    expected = model.eval()(x)
    torch.testing.assert_close(answer(TRAIN, model, (x,)), [expected], rtol=1e-12, atol=1e-12)
    assert not model.training
    assert (model.train()(x) - expected).abs().max() > 0.1


def test_stochastic_depth_is_off() -> None:
    prepare_torchvision()
    from torchvision.ops import StochasticDepth

    x = torch.rand(8, 3, dtype=torch.float64)
    assert torch.equal(answer(TRAIN, nn.Sequential(StochasticDepth(0.5, "row")), (x,))[0], x)


def test_training_mode_is_that_of_torch_and_leaves_the_statistics() -> None:
    """Oracle: torch's own training mode of the network without its dropout."""
    example = NETWORKS["images"][1]
    model = copy_of(ConvNet(), torch.float64)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    (given_,) = answer(TRAIN, model, example)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model.train()
    model.dropout = nn.Identity()
    x = model.relu(model.bn1(model.conv1(example[0].double())))
    assert torch.allclose(given_, model.head(F.relu(model.bn2(model.conv2(x))).mean((2, 3))), rtol=1e-12, atol=0)


def test_gradients_are_those_of_one_projection() -> None:
    """Oracle: finite differences of the projection, whose weights the gradient of the bias gives away."""
    model = nn.Linear(3, 2, dtype=torch.float64)
    x = torch.rand(4, 3, dtype=torch.float64)
    calls: list[Any] = []
    (output,), gradients = observe(model, (x,), lambda name, tensors: calls.append((name, tensors)))
    assert torch.equal(output, model(x))
    assert [name for name, _ in calls] == [""]
    weights = torch.linalg.lstsq(x.T, gradients["weight"].T).solution
    torch.testing.assert_close(x.T @ weights, gradients["weight"].T)
    again = observe(model, (x,), lambda _name, _tensors: None)[1]
    assert all(torch.equal(again[name], gradients[name]) for name in gradients)
    assert not model._forward_hooks
    assert observe(nn.Identity(), (x,), lambda _name, _tensors: None)[1] == {}


def test_noise_is_one_percent_of_the_spread() -> None:
    wide, constant = torch.randn(20000) * 7, torch.full((20000,), 3.0)
    noisy = [wide.clone(), constant.clone()]
    perturb([*noisy, torch.zeros(0)])
    assert (noisy[0] - wide).std().item() == pytest.approx(0.07, rel=0.05)
    assert (noisy[1] - constant).std().item() == pytest.approx(0.01, rel=0.05)


def test_quiet_leaves_the_random_state_and_autocast() -> None:
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        with quiet():
            torch.rand(3)
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert not torch.ones(1).is_inference()
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), state)
