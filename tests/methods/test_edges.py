"""Important edges against autograd, one image at a time, and training that leaves every other weight as it was."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad import edge_importance, important_edges, training_only
from postgrad.errors import UserError
from postgrad.methods.edges import edge_names, load_masks, save_masks, top_edges

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (11, 1, 6, 6), generator=GENERATOR).to(torch.uint8)
CLASSES = 3
LABELS = torch.randint(0, CLASSES, (11,), generator=GENERATOR)
X = IMAGES.double() / 255


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, CLASSES)
    return nn.Sequential(*layers).double().eval()


def by_autograd(network: nn.Module, labels: Tensor, *, size: bool = True) -> dict[str, Tensor]:
    """The mean over images of each gradient's size (or of the gradient itself), one backward pass for each image."""
    names = ["0.weight", "4.weight", "5.weight"]
    weights = [network.get_parameter(name) for name in names]
    sums = [torch.zeros_like(weight) for weight in weights]
    for x, label in zip(X, labels, strict=True):
        loss = F.cross_entropy(network(x[None].float().double()), label[None])
        for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
            total += gradient.abs() if size else gradient
    return {name: total / len(X) for name, total in zip(names, sums, strict=True)}


def test_importance_is_the_mean_size_of_single_gradients(network: nn.Module) -> None:
    found = edge_importance(network, IMAGES, LABELS)
    expected = by_autograd(network, LABELS)
    assert list(found) == list(expected)
    for name, mean in expected.items():
        np.testing.assert_allclose(found[name].numpy(), mean.numpy(), rtol=1e-4, atol=1e-8)


def test_it_is_not_the_size_of_the_mean_gradient(network: nn.Module) -> None:
    """Negative control of the test above."""
    found = edge_importance(network, IMAGES, LABELS)["4.weight"].double()
    assert (found - by_autograd(network, LABELS, size=False)["4.weight"].abs()).abs().max() > 0.1 * found.max()


def test_chunks_do_not_change_the_result(network: nn.Module) -> None:
    whole = edge_importance(network, IMAGES, LABELS)
    tiny = edge_importance(network, IMAGES, LABELS, memory="24KB")
    for name in whole:
        torch.testing.assert_close(whole[name], tiny[name])


def test_predicted_and_random_labels(network: nn.Module) -> None:
    with torch.no_grad():
        answers = network(X.float().double()).argmax(1)
    predicted = edge_importance(network, IMAGES, "predicted")["5.weight"]
    torch.testing.assert_close(predicted, edge_importance(network, IMAGES, answers)["5.weight"])
    drawn = torch.randint(CLASSES, (11,), generator=torch.Generator().manual_seed(7))
    at_random = edge_importance(network, IMAGES, "random", seed=7)["5.weight"]
    torch.testing.assert_close(at_random, edge_importance(network, IMAGES, drawn)["5.weight"])
    assert not torch.equal(at_random, edge_importance(network, IMAGES, "random", seed=8)["5.weight"])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 3, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.own = Scaled()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(4, 4))


def test_edges_are_weights_of_layers() -> None:
    names = ["attention.in_proj_weight", "attention.out_proj.weight", "own.W"]
    assert edge_names(Attention()) == names


def test_the_network_is_left_as_it_was(network: nn.Module) -> None:
    network.train()
    network.get_parameter("5.bias").requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    edge_importance(network, IMAGES, LABELS)
    assert network.training
    assert [p.requires_grad for p in network.parameters()][-1] is False
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4),
    st.floats(0.01, 1.0),
    st.integers(0, 1000),
)
def test_top_edges_are_the_largest(shapes: list[list[int]], top: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = {str(i): torch.from_numpy(generator.integers(0, 5, shape)) for i, shape in enumerate(shapes)}
    for name, mask in top_edges(scores, top=top).items():
        check_largest(scores[name].numpy().ravel(), mask.numpy().ravel(), top)
    masks = top_edges(scores, top=top, scope="global")
    assert [mask.shape for mask in masks.values()] == [score.shape for score in scores.values()]
    flat = [np.concatenate([tensor.numpy().ravel() for tensor in named.values()]) for named in (scores, masks)]
    check_largest(flat[0], flat[1], top)


def check_largest(scores: np.ndarray, mask: np.ndarray, top: float) -> None:
    assert mask.sum() == max(1, round(top * len(scores)))
    chosen = np.argsort(-scores, kind="stable")[: mask.sum()]
    assert sorted(chosen) == list(np.flatnonzero(mask))


def test_important_edges_takes_the_top_of_the_importance(network: nn.Module) -> None:
    masks = important_edges(network, IMAGES, LABELS, top=0.2)
    expected = top_edges(by_autograd(network, LABELS), top=0.2)
    assert all(torch.equal(masks[name], expected[name]) for name in expected)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def take_steps(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(X), LABELS).backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_only_masked_edges_change(network: nn.Module, optimizer, scope) -> None:
    masks = important_edges(network, IMAGES, LABELS, top=0.1, scope=scope)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with training_only(network, masks) as masked:
        take_steps(masked, optimizer([p for p in masked.parameters() if p.requires_grad]))
    for name, value in network.state_dict().items():
        changed = value != before[name]
        assert torch.equal(changed, masks.get(name, torch.zeros_like(changed))), name


def test_zeroing_gradients_would_not_do(network: nn.Module) -> None:
    """Negative control: weight decay reaches weights whose gradient is set to zero."""
    masks = important_edges(network, IMAGES, LABELS, top=0.1)
    weight = network.get_parameter("4.weight")
    before = weight.detach().clone()

    def zero_the_others(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad *= masks["4.weight"]

    weight.register_post_accumulate_grad_hook(zero_the_others)
    take_steps(network, OPTIMIZERS["sgd"]([weight]))
    assert (weight != before)[~masks["4.weight"]].any()


def test_all_edges_masked_train_as_without_masks(network: nn.Module) -> None:
    """The steps on chosen entries are those of an ordinary optimizer."""
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in network.named_parameters()}
    plain = deepcopy(network)
    take_steps(plain, OPTIMIZERS["sgd"](plain.parameters()))
    with training_only(network, masks):
        take_steps(network, OPTIMIZERS["sgd"](network.parameters()))
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_parameters_are_the_same_objects_in_the_same_order_afterwards(network: nn.Module) -> None:
    network.get_parameter("5.bias").requires_grad_(False)
    before = [(name, id(p), p.requires_grad, p.shape) for name, p in network.named_parameters()]
    masks = important_edges(network, IMAGES, LABELS)
    with training_only(network, masks):
        trained = [p for p in network.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) == sum(int(mask.sum()) for mask in masks.values())
        take_steps(network, OPTIMIZERS["sgd"](trained))
    assert [(name, id(p), p.requires_grad, p.shape) for name, p in network.named_parameters()] == before
    assert all(p.grad is None for p in network.parameters())


def test_the_network_is_whole_again_after_an_error(network: nn.Module) -> None:
    names = list(network.state_dict())
    with pytest.raises(ZeroDivisionError), training_only(network, important_edges(network, IMAGES, LABELS)):
        raise ZeroDivisionError
    assert list(network.state_dict()) == names
    assert all(p.requires_grad for p in network.parameters())


def test_masks_are_read_as_they_were_written(network: nn.Module, tmp_path: Path) -> None:
    masks = important_edges(network, IMAGES, LABELS)
    save_masks(masks, tmp_path / "new", {"top": 0.1})
    read = load_masks(tmp_path / "new")
    assert read.keys() == masks.keys()
    assert all(torch.equal(read[name], masks[name]) for name in masks)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        load_masks(tmp_path)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_masks_that_do_not_fit_are_refused(network: nn.Module) -> None:
    def refused(masks: dict[str, Tensor], match: str, model: nn.Module = network) -> None:
        with pytest.raises(UserError, match=match), training_only(model, masks):
            pass

    good = torch.ones(8, 64, dtype=torch.bool)
    refused({"4.wieght": good}, r"did you mean '4\.weight'")
    refused({"4.weight": good[:, :3]}, r"expected bool \(8, 64\), got torch.bool \(8, 3\)")
    refused({"4.weight": good.float()}, "got torch.float32")
    refused({"4.weight": ~good}, "choose no edge")
    refused({}, "choose no edge")
    refused({"a.weight": torch.ones(4, 4, dtype=torch.bool)}, r"a\.weight is also b\.weight", Tied())


MISTAKES = {
    "no share": ({"top": 0.0}, "share above 0"),
    "too large a share": ({"top": 2.0}, r"10 % is 0\.1"),
    "not a number": ({"top": float("nan")}, "share above 0"),
    "unknown scope": ({"scope": "layers"}, "did you mean 'layer'"),
    "unknown labels": ({"labels": "randm"}, "did you mean 'random'"),
    "labels of other images": ({"labels": LABELS[:3]}, "11 class indices"),
    "label out of range": ({"labels": LABELS + 1}, "out of range"),
    "NaN pixels": ({"images": X.where(X > 0.5, torch.nan)}, "NaN"),
    "no images": ({"images": IMAGES[:0]}, "got none"),
    "images of another size": ({"images": IMAGES[:, :, :4]}, "cannot take these images"),
    "flat images": ({"images": IMAGES.flatten(1)}, "four axes"),
    "too little memory": ({"memory": "1KB"}, "memory"),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_told(network: nn.Module, case: tuple[dict, str]) -> None:
    changes, match = case
    with pytest.raises(UserError, match=match):
        important_edges(network, **{"images": IMAGES, "labels": LABELS, **changes})


def test_infinite_weights_are_told(network: nn.Module) -> None:
    with torch.no_grad():
        network.get_parameter("5.weight")[0, 0] = torch.inf
    with pytest.raises(UserError, match="finite"):
        important_edges(network, IMAGES, LABELS)


def test_a_network_without_edges_is_told() -> None:
    with pytest.raises(UserError, match="no layer whose weight"):
        edge_importance(nn.Flatten(), IMAGES, LABELS)
