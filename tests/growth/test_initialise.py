"""New units whose gradient is greatest: against the singular values of the gradient, written out as a matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.growth import initialise
from postgrad.growth._algebra import Axis
from postgrad.growth.axes import WidthAxis
from postgrad.growth.certificate import Certificate
from postgrad.growth.initialise import replicated
from postgrad.growth.width import widen

Loss = Callable[[nn.Module], Tensor]


def task(x: Tensor, classes: int = 10, seed: int = 5) -> Loss:
    labels = torch.randint(0, classes, (len(x),), generator=torch.Generator().manual_seed(seed))
    return lambda net: F.cross_entropy(net(x), labels)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def line(bias: bool = False) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 8, bias=bias), nn.Linear(8, 10)), draw(64, 20)


def rectified() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 10)), draw(64, 20)


def normalised() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    head = [nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 10)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), *head)
    return net, draw(16, 3, 10, 10)


class Sum(nn.Module):
    """A stream that two layers make and two read, one of them flat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.inner = nn.Conv2d(5, 7, 3, padding=1)
        self.second = nn.Conv2d(7, 5, 1)
        self.head = nn.Linear(5 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.second(F.silu(self.inner(x)))
        return self.head(torch.tanh(x).flatten(1))


def outgoing(net: nn.Module, loss: Loss, consumers: dict[str, slice]) -> float:
    """The length of the gradient of what leads out of new units."""
    net = copy.deepcopy(net)
    wanted = [net.get_parameter(name) for name in consumers]
    found = torch.autograd.grad(loss(net), wanted)
    parts = zip(found, consumers.values(), strict=True)
    return torch.cat([gradient[:, where].flatten() for gradient, where in parts]).norm().item()


def grown(
    made: tuple[nn.Module, Tensor], to: int, *, layer: str = "0", init: str = "gradmax", seed: int = 0
) -> tuple[nn.Module, Certificate]:
    net, x = copy.deepcopy(made[0]), made[1]
    more = {"loss": task(x)} if init == "gradmax" else {}
    return net, widen(net, layer, to=to, example=x[:2], init=init, seed=seed, **more)  # type: ignore[arg-type]


def bound(matrix: Tensor, weight: Tensor, units: int) -> float:
    """What the singular values allow, for incoming weights as long as the old ones on average."""
    length = weight.square().sum().div(len(weight)).sqrt()
    return (torch.linalg.svdvals(matrix)[:units].square().sum().sqrt() * length).item()


def test_linear_units_reach_the_singular_values() -> None:
    net, x = line()
    residual = net(x).softmax(-1) - F.one_hot(
        torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(5)), 10
    )
    most = bound(residual.T @ x / len(x), net.get_parameter("0.weight").detach(), 4)
    found = []
    for seed in range(6):
        wide, certificate = grown((net, x), 12, seed=seed)
        assert certificate.exact
        assert certificate.max_error < 1e-15
        found.append(outgoing(wide, task(x), {"1.weight": slice(8, None)}))
    assert max(found) == pytest.approx(most, rel=1e-3)
    assert all(0.98 * most < each < most * (1 + 1e-5) for each in found)
    drawn = [
        outgoing(grown((net, x), 12, init="fanout_zero", seed=seed)[0], task(x), {"1.weight": slice(8, None)})
        for seed in range(20)
    ]
    assert max(drawn) < 0.8 * most  # what is drawn falls short: the bound is one


def test_convolutions_reach_the_singular_values_of_their_patches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.Flatten(), nn.Linear(6 * 16, 10))
    x = draw(16, 3, 8, 8)
    labels = torch.randint(0, 10, (16,), generator=torch.Generator().manual_seed(5))
    residual = (net(x).softmax(-1) - F.one_hot(labels, 10)) / 16
    patches = F.unfold(x, 3, stride=2, padding=1)
    matrix = torch.einsum("no,nip->opi", residual, patches).reshape(-1, 27)
    most = bound(matrix.detach(), net.get_parameter("0.weight").detach(), 2)
    for seed in range(3):
        wide, _ = grown((net, x), 8, seed=seed)
        assert 0.98 * most < outgoing(wide, task(x), {"2.weight": slice(96, None)}) < most * (1 + 1e-5)


def test_two_convolutions_reach_the_singular_values_of_the_pair() -> None:
    torch.manual_seed(0)
    parts = [nn.AvgPool2d(2), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 10)]
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), *parts).double()
    x = draw(12, 2, 8, 8).double()
    middle = net[1](net[0](x)).requires_grad_()
    (delta,) = torch.autograd.grad(F.cross_entropy(net[3:](answer := net[2](middle)), _labels(12)), answer)
    columns = []
    for basis in torch.eye(18, dtype=torch.float64):  # each filter by itself, as the one new unit
        unit = net[1](F.conv2d(x, basis.reshape(1, 2, 3, 3), padding=1))
        kernel = torch.zeros(5, 1, 3, 3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(F.conv2d(unit, kernel), kernel, delta)
        columns.append(gradient.flatten())
    most = bound(torch.stack(columns, 1), net.get_parameter("0.weight").detach(), 3)
    wide, _ = grown((net, x), 7)
    found = outgoing(wide, task(x), {"2.weight": slice(4, None)})
    assert 0.98 * most < found < most * (1 + 1e-9)


def _labels(count: int) -> Tensor:
    return torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("made", "layer", "old", "consumers"),
    [
        (rectified, "0", 8, {"2.weight": slice(8, None)}),
        (normalised, "0", 8, {"4.weight": slice(8, None)}),
        (
            lambda: (Sum(), draw(16, 3, 6, 6)),
            "first",
            5,
            {"inner.weight": slice(5, None), "head.weight": slice(45, None)},
        ),
    ],
    ids=["ReLU", "BatchNorm", "sum"],
)
def test_no_drawn_units_have_a_greater_gradient(
    made: Callable[[], tuple[nn.Module, Tensor]], layer: str, old: int, consumers: dict[str, slice]
) -> None:
    net, x = made()

    def lengths(init: str, seeds: int) -> list[float]:
        nets = (grown((net, x), old + 4, layer=layer, init=init, seed=seed)[0] for seed in range(seeds))
        return [outgoing(each, task(x), consumers) for each in nets]

    drawn, greatest = lengths("fanout_zero", 12), lengths("gradmax", 3)
    assert all(best >= same * (1 - 1e-6) for best, same in zip(greatest, drawn[:3], strict=True))
    assert sum(greatest) / 3 > max(drawn)


def test_a_search_that_forgets_what_it_found_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = line()
    best = outgoing(grown(made, 12)[0], task(made[1]), {"1.weight": slice(8, None)})
    monkeypatch.setattr(initialise, "_orthogonal", lambda rows: F.normalize(torch.ones_like(rows)))
    worse = outgoing(grown(made, 12)[0], task(made[1]), {"1.weight": slice(8, None)})
    assert worse < 0.8 * best


def test_new_units_learn_where_the_papers_would_not_under_relu() -> None:
    net, x = rectified()
    wide, _ = grown((net, x), 12)
    with torch.no_grad():
        paper = copy.deepcopy(wide)
        paper.get_parameter("0.weight")[8:] = 0
        paper.get_parameter("0.bias")[8:] = 0
        paper.get_parameter("2.weight")[:, 8:] = draw(10, 4)
    for each, learns in ((wide, True), (paper, False)):
        rows, columns = torch.autograd.grad(
            task(x)(each), [each.get_parameter(name) for name in ("0.weight", "2.weight")]
        )
        assert bool(rows[8:].any() or columns[:, 8:].any()) is learns


def test_the_network_the_chance_and_the_statistics_are_left_alone() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(96, 10))
    x = draw(8, 3, 6, 6)
    before, chance = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    widen(net, "0", to=9, example=x, init="gradmax", loss=task(x))
    assert torch.equal(torch.get_rng_state(), chance)
    assert net.training
    assert torch.equal(net.get_buffer("1.running_mean")[:6], before["1.running_mean"])
    assert all(parameter.grad is None for parameter in net.parameters())
    again = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(96, 10)
    )
    again.load_state_dict(before)
    torch.set_rng_state(chance)
    widen(again, "0", to=9, example=x, init="gradmax", loss=task(x))
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), again.parameters(), strict=True))


def test_frozen_weights_other_layouts_precisions_and_autocast() -> None:
    for change in (
        lambda net: net.requires_grad_(False),
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.double(),
        lambda net: net.bfloat16(),
    ):
        net, x = normalised()
        net = change(net)
        x = x.to(net[0].weight.dtype)
        wanted = [parameter.requires_grad for parameter in net.parameters()]

        def loss(network: nn.Module, x: Tensor = x) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
                return F.cross_entropy(network(x).float(), _labels(16))

        widen(net, "0", to=10, example=x[:2], init="gradmax", loss=loss)
        assert [parameter.requires_grad for parameter in net.parameters()] == wanted
        assert net[4].weight[:, 8:].count_nonzero() == 0
        assert net[0].weight[8:].count_nonzero() == 54


def test_more_units_than_dimensions() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 10)), draw(32, 3)
    widen(net, "0", to=12, example=x, init="gradmax", loss=task(x))
    assert torch.isfinite(net[0].weight).all()


def wrong_loss(kind: str, net: nn.Module, x: Tensor) -> Loss:
    return {
        "several": lambda network: network(x),
        "number": lambda _: 1.0,  # type: ignore[dict-item, return-value]
        "other": lambda _: task(x)(net),
        "constant": lambda network: network(x).sum() * 0,
        "infinite": lambda network: network(x).sum() * torch.inf,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("several", "a tensor of one number"),
        ("number", "a tensor of one number"),
        ("other", "no gradient"),
        ("constant", "no gradient"),
        ("infinite", "not finite"),
    ],
)
def test_wrong_losses(kind: str, message: str) -> None:
    net, x = rectified()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=message):
        widen(net, "0", to=10, example=x, init="gradmax", loss=wrong_loss(kind, net, x))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_loss_goes_with_gradmax_alone() -> None:
    net, x = rectified()
    for arguments in ({"init": "gradmax"}, {"loss": task(x)}):
        with pytest.raises(UserError, match="loss="):
            widen(net, "0", to=10, example=x, **arguments)


def test_where_units_are_looked_at_together_or_are_no_layers() -> None:
    torch.manual_seed(0)
    x = draw(4, 6)
    net: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 10))
    with pytest.raises(UserError, match="layer_norm in 1 looks at all its units"):
        widen(net, "0", to=10, example=x, init="gradmax", loss=task(x))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(x + torch.relu(self.inner(x)))

    with pytest.raises(UserError, match=r"inner\.weight leads both into its units and out of them"):
        widen(Own(), "first", to=7, example=x, init="gradmax", loss=task(x))


@given(old=st.integers(1, 9), more=st.integers(1, 30), seed=st.integers(0, 1000))
def test_replicas_are_spread_evenly_and_share_everything(old: int, more: int, seed: int) -> None:
    axis = WidthAxis("x", Axis(old), (), (), (), (), ())
    made = replicated(axis, old + more, torch.Generator().manual_seed(seed))
    counts = torch.bincount(made.index, minlength=old)
    assert counts.max() - counts.min() <= 1
    assert made.index[:old].tolist() == list(range(old))
    whole = torch.zeros(old, dtype=torch.float64).index_add_(0, made.index, made.share)
    torch.testing.assert_close(whole, torch.ones(old, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((made.share > 0).all())
