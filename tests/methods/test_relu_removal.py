"""Which ReLUs are taken out of a network, which have to stay, and what the network computes then."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.methods._relu_removal import Removal, relus_after
from postgrad.methods._surgery import replace_modules
from postgrad.methods.frn import apply_frn


class Net(nn.Module):
    """Layers a, b (linear) and one ReLU, for forwards of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.relu = nn.ReLU()


class Functions(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(F.relu(self.b(self.a(x).relu()), inplace=True) + 1)

    def bare(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)) + 1)


class Shared(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.relu(self.a(x))) + x)

    def bare(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)) + x)


class OneForTwo(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.relu(self.a(x))))

    def bare(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Helper(Net):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self._run(x) * scale

    def _run(self, x: Tensor) -> Tensor:
        return self.b(F.relu_(self.a(x)))

    def bare(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * 2


class WithAux(Net):
    """b and the functional ReLU behind it are run in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Functions()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        return self.part(x) if self.training else x

    def bare(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.part.bare(x) if self.training else x


def linears(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def take_out(model: nn.Module) -> Removal:
    removal = relus_after(model, linears(model))
    replace_modules(model, {module: nn.Identity() for module in removal.modules})
    removal.rewrite()
    return removal


@pytest.mark.parametrize("kind", [Functions, Shared, OneForTwo, Helper, WithAux])
@pytest.mark.parametrize("training", [True, False])
def test_the_network_computes_the_same_without(kind: type[Net], training: bool) -> None:
    model = kind().train(training)
    x = torch.randn(5, 3)
    assert not torch.allclose(model(x), model.bare(x), atol=1e-3)
    modes = [module.training for module in model.modules()]
    removal = take_out(model)
    assert removal.kept == ()
    assert isinstance(model, kind)
    assert [module.training for module in model.modules()] == modes
    for net in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(net(x), net.bare(x))
        net.train(not training)
        assert torch.equal(net(x), net.bare(x))
        net.train(training)
    assert model.state_dict().keys() == kind().state_dict().keys()


def test_a_copy_has_its_own_weights() -> None:
    model = Shared()
    take_out(model)
    twin, x = copy.deepcopy(model), torch.randn(5, 3)
    twin.a.weight.data.zero_()
    assert not torch.equal(model(x), twin(x))
    assert torch.equal(model(x), model.bare(x))


def test_which_modules_are_called_no_more() -> None:
    model = OneForTwo()
    assert relus_after(model, linears(model)).modules == {model.relu}
    model = Shared()
    assert relus_after(model, linears(model)).modules == set()
    assert relus_after(model, linears(model)).layers == {model.a}


class ReadTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(self.relu(y)) + y


class ReadTwiceInPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        F.relu_(y)
        return y


class InTrainingOnly(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(self.relu(x)) if self.training else self.b(x)


class Unused(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x)


@pytest.mark.parametrize("kind", [ReadTwice, ReadTwiceInPlace, InTrainingOnly, Unused])
def test_what_something_else_reads_keeps_its_relu(kind: type[Net]) -> None:
    model = kind()
    x = torch.randn(5, 3)
    expected = model(x)
    removal = take_out(model)
    assert removal.layers == set()
    assert removal.kept == ()
    assert torch.equal(model(x), expected)


class Dropout(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(torch.relu(self.a(x)), 0.5, self.training)


class LooksAtTypes(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = x if isinstance(x, Tensor) else x[0]
        return torch.relu(self.a(x))


class Twice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.part = Helper()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.part(x))


class Constant(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x)) * torch.tensor([1.0, 2.0, 3.0])


class TakesAList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.part = Sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.part([x, x])


class Sum(Net):
    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.relu(self.a(x[0])) + x[1]


class OfAList(Net):
    """The ReLU that the sum still needs is one of a Sequential's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(self.a, self.relu)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.layers(x) + x)


@pytest.mark.parametrize("kind", [Dropout, LooksAtTypes, Twice, Constant, TakesAList, OfAList])
def test_a_relu_that_cannot_be_taken_out_safely_is_named_and_stays(kind: type[Net]) -> None:
    model = kind().eval()
    attributes, x = set(vars(model)), torch.randn(5, 3)
    expected = model(x)
    removal = take_out(model)
    assert len(removal.kept) == 1
    assert removal.kept[0].endswith("a")
    assert removal.layers == set()
    assert type(model) is kind
    assert set(vars(model)) == attributes
    assert torch.equal(model(x), expected)


def test_a_module_that_stays_for_one_layer_stays_for_both() -> None:
    class Mixed(Dropout):
        def __init__(self) -> None:
            super().__init__()
            self.part = OneForTwo()

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.relu(self.a(x)), 0.5, self.training) + self.relu(x) + self.part(x)

    model = Mixed()
    model.part.relu = model.relu
    removal = relus_after(model, linears(model))
    assert removal.kept == ("a",)
    assert removal.modules == set()
    assert removal.layers == {model.part.a, model.part.b}
    removal.rewrite()
    x = torch.randn(5, 3)
    assert torch.equal(model.part(x), model.part.bare(x))


def test_a_network_that_cannot_be_followed_is_refused() -> None:
    class Looks(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.a(x)) if x.sum() > 0 else x

    with pytest.raises(UserError, match="cannot follow the forward of Looks"):
        relus_after(Looks(), {})


class WithShortcut(nn.Module):
    """A block that adds what it is given, or its own input, as timm's DLA does."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        shortcut = x if shortcut is None else shortcut
        return self.relu(self.relu(self.bn(x)) + shortcut)


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = WithShortcut(), WithShortcut()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x, 2 * x))


def test_a_forward_with_an_option_is_left_as_it_is() -> None:
    model = TwoWays()
    x = torch.randn(2, 3, 4, 4)
    with pytest.warns(UserWarning, match=r"a\.bn, b\.bn"):
        assert apply_frn(model) == 2
    assert type(model.b) is WithShortcut
    y = (model.a.bn(x).relu() + 2 * x).relu()
    torch.testing.assert_close(model(x), (model.b.bn(y).relu() + y).relu())
