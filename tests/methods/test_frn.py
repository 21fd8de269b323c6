"""Filter response normalisation: its layers beside the formula, and its surgery beside networks written by hand."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import postgrad
from postgrad._compat import prepare_torchvision
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods import _frn_kernels, frn
from postgrad.methods.frn import FilterResponseNorm, FilterResponseNormTLU, ThresholdedLinearUnit, apply_frn

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
)


def formula(layer: FilterResponseNorm, x: Tensor) -> Tensor:
    """The paper's equations, as plainly as they can be written."""
    places = tuple(range(2, x.ndim))
    shape = (1, -1) + (1,) * len(places)
    square = (x * x).mean(places, keepdim=True) if places else x * x
    eps = layer.eps + (layer.eps_l.abs() if layer.eps_l is not None else 0)
    y = layer.weight.view(shape) * x / (square + eps).sqrt() + layer.bias.view(shape)
    return y if layer.tau is None else torch.maximum(y, layer.tau.view(shape))


def layer_of(channels: int, *, tlu: bool = True, learnable_eps: bool = False) -> FilterResponseNorm:
    layer = (FilterResponseNormTLU if tlu else FilterResponseNorm)(channels, learnable_eps=learnable_eps)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def in_layout(x: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "every other":
        return x.repeat_interleave(2, 0)[::2]
    return x


def check_against_formula(layer: FilterResponseNorm, x: Tensor, gradient: Tensor) -> None:
    """Output and all gradients of a layer beside float64 autograd of the formula, on the same rounded numbers."""
    exact, exact_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    expected = formula(exact, exact_x)
    wanted = torch.autograd.grad(expected, [exact_x, *exact.parameters()], gradient.double())
    x = x.detach().requires_grad_()
    out = layer(x)
    assert out.dtype == x.dtype
    assert out.is_contiguous() or not x.is_contiguous()
    assert out.movedim(1, -1).is_contiguous() or not x.movedim(1, -1).is_contiguous()
    found = torch.autograd.grad(out, [x, *layer.parameters()], gradient)
    tolerance = TOLERANCE[x.dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    places = tuple(range(2, x.ndim))
    steep = exact.weight.abs().max() / (((exact_x**2).mean(places) if places else exact_x**2) + 1e-6).sqrt().min()
    for one, other in zip(found, wanted, strict=True):
        # Over few places the two terms of the gradient of x cancel; what rounding leaves is measured by one of them.
        scale = float(steep.detach() * gradient.double().abs().max()) if one is found[0] else float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * (1 + scale))


@given(
    n=st.integers(1, 4),
    channels=st.integers(1, 5),
    places=SHAPES,
    dtype=st.sampled_from(list(TOLERANCE)),
    layout=st.sampled_from(["contiguous", "channels last", "every other"]),
    tlu=st.booleans(),
    learnable_eps=st.booleans(),
    in_kernels=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_output_and_gradients_are_the_formulas(
    n: int,
    channels: int,
    places: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    tlu: bool,
    learnable_eps: bool,
    in_kernels: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    layer = layer_of(channels, tlu=tlu, learnable_eps=learnable_eps).to(dtype)
    x, gradient = torch.randn(2, n, channels, *places, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        if not in_kernels:
            patch.setattr(frn, "_kernels_take", lambda *_: False)
        check_against_formula(layer, in_layout(x, layout), gradient)


@pytest.mark.parametrize("in_kernels", [True, False])
def test_a_wrong_gradient_would_be_noticed(in_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, name = (_frn_kernels, "backward") if in_kernels else (frn, "_backward")
    right: Callable[..., Any] = getattr(module, name)

    def without_the_norms_own_gradient(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        of_x, sums = right(grad, x, weight, *rest)
        return of_x + 1e-3 * x, sums

    monkeypatch.setattr(module, name, without_the_norms_own_gradient)
    if not in_kernels:
        monkeypatch.setattr(frn, "_kernels_take", lambda *_: False)
    with pytest.raises(AssertionError):
        check_against_formula(layer_of(3), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_computes_the_same(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = layer_of(8, learnable_eps=True).to(device, dtype)
    x = torch.randn(4, 8, 5, 5, device=device, dtype=dtype)
    check_against_formula(layer, x, torch.randn_like(x))


def test_output_and_gradients_are_timms() -> None:
    prepare_torchvision()
    from timm.layers import FilterResponseNormTlu2d

    torch.manual_seed(0)
    ours = layer_of(6)
    theirs = FilterResponseNormTlu2d(6, eps=1e-6)
    theirs.load_state_dict(ours.state_dict())
    x, gradient = torch.randn(4, 6, 7, 7, requires_grad=True), torch.randn(4, 6, 7, 7)
    found = torch.autograd.grad(ours(x), [x, ours.weight, ours.bias, ours.tau], gradient)
    wanted = torch.autograd.grad(theirs(x), [x, theirs.weight, theirs.bias, theirs.tau], gradient)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_large_tensors_on_two_threads_give_the_same_bits(threads: Callable[[int], None]) -> None:
    torch.manual_seed(0)
    layer, x = layer_of(16), torch.randn(8, 16, 32, 32)
    for layout in ("contiguous", "channels last"):
        results = []
        for number in (1, 2):
            threads(number)
            inputs = in_layout(x, layout).detach().requires_grad_()
            out = layer(inputs)
            results.append((out, *torch.autograd.grad(out.square().sum(), [inputs, *layer.parameters()])))
        assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
        check_against_formula(layer.double(), in_layout(x.double(), layout), torch.randn(x.shape).double())
        layer.float()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_maps_of_one_place_are_a_smooth_sign_with_a_learned_eps() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    layer = FilterResponseNorm(1, learnable_eps=True).double()
    torch.testing.assert_close(layer(x), x / (x**2 + 1e-6 + 1e-4).sqrt())
    torch.testing.assert_close(layer(x[:, :, None, None])[..., 0, 0], layer(x))
    layer.eps_l.data.neg_()  # its absolute value counts
    torch.testing.assert_close(layer(x), x / (x**2 + 1e-6 + 1e-4).sqrt())


def test_a_map_of_zeros_gives_the_shift_and_a_steep_gradient() -> None:
    layer = FilterResponseNormTLU(1)
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    out = layer(x)
    assert torch.equal(out, torch.zeros_like(x))
    out.sum().backward()
    # y = τ: the gradient is y's, and 1/√ε = 1000 times as large.
    torch.testing.assert_close(x.grad, torch.full_like(x, 1e3))
    assert layer.tau.grad.item() == 0
    assert layer.bias.grad.item() == 4


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_nan_and_infinity_stay(layout: str) -> None:
    x = torch.randn(3, 2, 4, 4)
    x[0, 0, 1, 1], x[1, 1, 2, 2] = torch.nan, torch.inf
    broken = in_layout(x, layout)
    expected = formula(FilterResponseNormTLU(2), x)
    torch.testing.assert_close(FilterResponseNormTLU(2)(broken), expected, equal_nan=True)
    assert FilterResponseNormTLU(2)(broken)[0, 0].isnan().all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4)])
def test_nothing_in_gives_nothing_out(shape: tuple[int, ...]) -> None:
    layer = FilterResponseNormTLU(3, learnable_eps=True)
    x = torch.randn(shape, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == shape
    assert all(parameter.grad.abs().sum() == 0 for parameter in layer.parameters())


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 4, 5), torch.zeros(3), torch.zeros(2, 3, 0), torch.zeros(2, 3, dtype=torch.int64)]
)
def test_wrong_inputs_are_refused(x: Tensor) -> None:
    with pytest.raises(UserError, match="3 channels: expected"):
        FilterResponseNorm(3)(x)


def test_an_image_is_alone_in_its_batch() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 6, 6)
    layer = layer_of(3).train()
    assert torch.equal(layer(x)[2:3], layer(x[2:3]))
    norm = nn.BatchNorm2d(3)
    assert not torch.allclose(norm(x)[2:3], norm(x[2:3]), atol=1e-2)  # as batch normalisation is not


def test_half_precision_squares_in_float32() -> None:
    x = torch.full((2, 3, 4, 4), 300.0, dtype=torch.float16)
    assert x.square().isinf().all()
    torch.testing.assert_close(FilterResponseNorm(3)(x), torch.ones_like(x))


def test_autocast_gives_the_dtype_of_its_input() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), layer_of(4), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        inner = net[0](x)
        assert net[1](inner).dtype == inner.dtype == torch.bfloat16
        net(x).float().sum().backward()
    assert net[1].weight.grad.dtype == torch.float32
    torch.testing.assert_close(net[1](inner).float(), formula(net[1], inner.float()), rtol=1e-2, atol=1e-2)


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    kept = {}
    ignored = {each.untyped_storage().data_ptr() for each in (*layer.parameters(), *layer.buffers())}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in ignored:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(x)
    del out
    return sum(kept.values())


def test_it_keeps_its_input_and_a_number_for_each_map() -> None:
    x = torch.randn(4, 8, 10, 10, requires_grad=True)
    ours = kept_bytes(FilterResponseNormTLU(8), x)
    assert ours == 4 * x.numel() + 4 * 4 * 8
    assert ours < kept_bytes(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), x)
    in_two = nn.Sequential(FilterResponseNorm(8), ThresholdedLinearUnit(8))
    assert ours < kept_bytes(in_two, x)  # what is measured is there


@pytest.mark.parametrize("learnable_eps", [True, False])
def test_gradients_of_gradients(learnable_eps: bool) -> None:
    torch.manual_seed(0)
    layer = layer_of(2, learnable_eps=learnable_eps).double()
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_many_gradients_at_once() -> None:
    torch.manual_seed(0)
    layer, x = layer_of(3), torch.randn(4, 3, 5, 5)
    weights = torch.randn(6, *x.shape)
    out = layer(x)
    found = torch.autograd.grad(out, layer.weight, weights, is_grads_batched=True, retain_graph=True)[0]
    wanted = torch.stack([torch.autograd.grad(out, layer.weight, each, retain_graph=True)[0] for each in weights])
    torch.testing.assert_close(found, wanted)


def test_gradients_of_each_sample() -> None:
    torch.manual_seed(0)
    layer, x = layer_of(3, learnable_eps=True), torch.randn(4, 3, 5, 5)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (one[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(len(x)):
        wanted = torch.autograd.grad(layer(x[i : i + 1]).square().sum(), list(parameters.values()))
        for one, other in zip(found.values(), wanted, strict=True):
            torch.testing.assert_close(one[i], other, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_says_that_it_does_not_work() -> None:
    from torch.autograd import forward_ad

    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        FilterResponseNorm(2)(forward_ad.make_dual(torch.randn(2, 2, 3), torch.randn(2, 2, 3)))


@pytest.mark.parametrize("x", [torch.linspace(-1, 1, 6).view(3, 2), torch.linspace(-1, 1, 96).view(3, 2, 4, 4)])
def test_thresholded_linear_unit(x: Tensor) -> None:
    layer = ThresholdedLinearUnit(2)
    assert torch.equal(layer(x), x.relu())
    layer.tau.data.copy_(torch.tensor([-0.5, 0.25]))
    threshold = layer.tau.view(1, 2, *(1,) * (x.ndim - 2))
    assert torch.equal(layer(x), torch.maximum(x, threshold))
    assert not torch.equal(layer(x), layer(x).relu())
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    exact = x.double().requires_grad_()
    assert torch.autograd.gradcheck(layer.double(), (exact,))
    with pytest.raises(UserError, match="ThresholdedLinearUnit of 2 channels"):
        layer(torch.zeros(2, 3))


LAYERS = [FilterResponseNorm(3), FilterResponseNormTLU(3, learnable_eps=True), ThresholdedLinearUnit(3)]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_are_copied_pickled_saved_and_traced(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.data.normal_()
    x = torch.randn(2, 3, 4, 4)
    fresh = type(layer)(3, **({"learnable_eps": True} if getattr(layer, "eps_l", None) is not None else {}))
    fresh.load_state_dict(layer.state_dict())
    traced = torch.fx.symbolic_trace(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh, traced, copy.deepcopy(traced)):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("strict", [True, False])
def test_layers_are_exported_in_operations_of_torch(layer: nn.Module, strict: bool) -> None:
    x = torch.randn(2, 3, 4, 4)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=strict)
    assert all("aten" in str(node.target) for node in program.graph.nodes if node.op == "call_function")
    more = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(program.module()(more), layer(more))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # Inductor imports what is deprecated
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_compiled_layers_are_the_same(layer: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).to(dtype)
    compiled = torch.compile(layer, fullgraph=True)
    for n in (2, 3):
        x, gradient = torch.randn(2, n, 3, 4, 4, dtype=dtype)
        x.requires_grad_()
        found = torch.autograd.grad(compiled(x), [x, *layer.parameters()], gradient)
        wanted = torch.autograd.grad(layer(x), [x, *layer.parameters()], gradient)
        torch.testing.assert_close(found, wanted, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])


class Block(nn.Module):
    """A residual block with one ReLU for two places; `norm` makes its two normalisations."""

    def __init__(self, norm1: nn.Module, norm2: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = norm1, norm2
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


class BlockByHand(Block):
    """The block as `apply_frn` is to leave it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm2(self.conv2(self.norm1(self.conv1(x)))) + x)


def networks() -> tuple[nn.Module, nn.Module]:
    """One with batch normalisation, and one with FRN by hand, of the same weights once the first is changed."""
    torch.manual_seed(0)
    head = nn.Conv2d(1, 4, 3), nn.Linear(4, 5)
    net = nn.Sequential(
        head[0],
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
        Block(nn.BatchNorm2d(4), nn.BatchNorm2d(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        head[1],
        nn.BatchNorm1d(5),
    )
    by_hand = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Sequential(FilterResponseNormTLU(4), nn.Identity()),
        BlockByHand(FilterResponseNormTLU(4), FilterResponseNorm(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
        FilterResponseNorm(5, learnable_eps=True),
    )
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return net, by_hand


def test_a_network_becomes_the_one_written_by_hand() -> None:
    net, by_hand = networks()
    block = net[2]
    weight, bias = net[2].norm1.weight.clone(), net[2].norm1.bias.clone()
    assert apply_frn(net) == 4
    assert net[2] is block
    assert isinstance(block, Block)
    assert torch.equal(net[2].norm1.weight, weight)
    assert torch.equal(net[2].norm1.bias, bias)
    for name, parameter in net.named_parameters():
        if name.endswith("tau"):
            nn.init.normal_(parameter, -0.5, 0.3)  # where a ReLU behind it would show
    by_hand.load_state_dict(net.state_dict())
    x = torch.randn(3, 1, 7, 7)
    assert torch.equal(net(x), by_hand(x))
    wrong = copy.deepcopy(by_hand)
    wrong[2].forward = lambda x: Block.forward(wrong[2], x)  # with the ReLU that is to go
    assert not torch.allclose(wrong(x), by_hand(x), atol=1e-3)


def test_a_changed_network_is_copied_pickled_and_exported() -> None:
    net, _ = networks()
    apply_frn(net)
    x = torch.randn(3, 1, 7, 7)
    net[2].norm1.tau.data.fill_(-0.4)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(copy.deepcopy(net))):
        assert torch.equal(other(x), net(x))
        assert isinstance(other[2], Block)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # Inductor imports what is deprecated
def test_a_changed_network_compiles() -> None:
    net, by_hand = networks()
    apply_frn(net)
    by_hand.load_state_dict(net.state_dict())
    x = torch.randn(3, 1, 7, 7)
    torch.testing.assert_close(torch.compile(net, fullgraph=True)(x), by_hand(x))


def test_a_changed_network_is_saved_and_loaded(tmp_path: Any) -> None:
    torch.manual_seed(0)
    net = postgrad.create_model("resnet20", num_classes=4, in_channels=1, image_size=8)
    assert apply_frn(net, learnable_eps=True) == 19
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    names = tuple("abcd")
    postgrad.save(net, tmp_path / "net", preprocess=Preprocessing(), class_names=names)
    loaded = postgrad.load(tmp_path / "net")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(x), net(x))
    assert sum(isinstance(module, FilterResponseNormTLU) for module in loaded.modules()) == 10


def test_the_optimizer_trains_what_is_new() -> None:
    net, _ = networks()
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    own = {id(each) for norm in norms for each in norm.parameters()}
    rest = [each for each in net.parameters() if id(each) not in own]
    optimizer = torch.optim.SGD(
        [{"params": rest}, {"params": [each for norm in norms for each in norm.parameters()], "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
    )
    net[1][0].bias.requires_grad_(False)
    apply_frn(net, optimizer=optimizer)
    new = {
        id(each) for module in net.modules() if isinstance(module, FilterResponseNorm) for each in module.parameters()
    }
    second = {id(each) for each in optimizer.param_groups[1]["params"]}
    assert second == new - {id(net[1][0].bias), id(net[1][0].tau)}
    assert not net[1][0].tau.requires_grad
    assert net[1][0].weight.requires_grad
    before = {name: value.clone() for name, value in net.named_parameters()}
    loss = nn.functional.cross_entropy(net(torch.randn(6, 1, 7, 7)), torch.arange(6) % 5)
    loss.backward()
    optimizer.step()
    still = {name for name, value in net.named_parameters() if torch.equal(value, before[name])}
    assert still == {"1.0.bias", "1.0.tau"}


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(3, affine=False), nn.BatchNorm3d(3, track_running_stats=False), nn.SyncBatchNorm(3)]
)
def test_every_kind_of_batch_norm(norm: Any) -> None:
    net = nn.Sequential(norm.double(), nn.ReLU()).eval()
    assert apply_frn(net) == 1
    assert type(net[0]) is FilterResponseNormTLU
    assert net[0].eps_l is None
    assert net[0].weight.dtype == torch.float64
    assert net[0].tau.requires_grad
    assert not net[0].training
    again = nn.Sequential(nn.BatchNorm2d(3))
    apply_frn(again, learnable_eps=True)
    assert again[0].eps_l is not None


def accuracy_on_digits(net: nn.Module) -> float:
    """After 100 steps with warm-up."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 20))
    for step in range(100):
        rows = torch.arange(step * 25, step * 25 + 25) % 1000
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        warm_up.step()
    return float((net.eval()(x[1000:]).argmax(1) == y[1000:]).float().mean())


def test_it_learns_digits() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )
    apply_frn(net)
    assert accuracy_on_digits(net) > 0.85
    assert torch.cat([net[0][1].tau, net[2][1].tau]).abs().median() > 1e-3


@pytest.mark.slow
def test_two_layers_of_one_place_in_a_row_do_not_learn_as_the_card_says() -> None:
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        one, two = (nn.Sequential(nn.Linear(*io), nn.BatchNorm1d(io[1]), nn.ReLU()) for io in ((64, 32), (32, 32)))
        return nn.Sequential(nn.Flatten(), one, two, nn.Linear(32, 10))

    changed = net()
    apply_frn(changed)
    assert accuracy_on_digits(net()) > 0.85
    assert accuracy_on_digits(changed) < 0.2


def test_nothing_to_replace_is_a_warning() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.warns(UserWarning, match="no batch normalisation"):
        assert apply_frn(net) == 0
    assert isinstance(net[1], nn.ReLU)


class MoreThanBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Looks(nn.Module):
    """What torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (nn.Sequential(MoreThanBatchNorm(3)), {}, "0 is a MoreThanBatchNorm"),
        (nn.Sequential(nn.LazyBatchNorm2d()), {}, "run one batch"),
        (Looks(), {}, "torch.fx cannot follow the forward of Looks"),
        (nn.BatchNorm2d(3), {}, r"nn\.Sequential"),
        (nn.Sequential(nn.BatchNorm2d(3)), {"learnable_eps": "yes"}, "learnable_eps"),
    ],
)
def test_what_is_refused_stays_as_it_was(net: nn.Module, options: dict[str, Any], message: str) -> None:
    before = {name: id(module) for name, module in net.named_modules()}
    attributes = set(vars(net))
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(UserError, match=message):
        apply_frn(net, optimizer=optimizer, **options)
    assert {name: id(module) for name, module in net.named_modules()} == before
    assert set(vars(net)) == attributes
    assert len(optimizer.param_groups[0]["params"]) == 1


class Noisy(nn.Module):
    """A ReLU that cannot be taken out of this forward, which is another in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(torch.relu(self.norm(x)), 0.5, self.training)


def test_a_relu_that_stays_is_named() -> None:
    net = nn.Sequential(Noisy())
    with pytest.raises(UserWarning, match=r"0\.norm"):
        apply_frn(net)  # warnings are errors here: nothing was changed
    assert type(net[0].norm) is nn.BatchNorm2d
    with pytest.warns(UserWarning, match=r"0\.norm: the ReLU behind it cannot be taken out"):
        assert apply_frn(net) == 1
    x = torch.randn(2, 3, 4, 4)
    assert type(net[0].norm) is FilterResponseNorm
    assert torch.equal(net.eval()(x), FilterResponseNorm(3)(x).relu())


def torchvision_model(name: str) -> nn.Module:
    prepare_torchvision()
    import torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GoogLeNet speaks of its initialisation
        return torchvision.models.get_model(name, weights=None)


FAMILIES = {  # batch normalisations, of which a ReLU follows directly
    "resnet18": (20, 9),
    "resnet50": (53, 33),
    "vgg11_bn": (8, 8),
    "mobilenet_v2": (52, 0),
    "densenet121": (121, 121),
    "efficientnet_b0": (49, 0),
    "googlenet": (59, 59),
    "shufflenet_v2_x0_5": (56, 37),
}


@pytest.mark.parametrize(
    "name", [name if name == "resnet18" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_no_batch_norm_is_left_in_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    net = torchvision_model(name).eval()
    norms, with_relu = FAMILIES[name]
    kind = type(net)
    assert apply_frn(net) == norms
    assert type(net).__name__ == kind.__name__
    assert isinstance(net, kind)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    assert sum(isinstance(module, FilterResponseNormTLU) for module in net.modules()) == with_relu
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        out = net(x)
        assert out.isfinite().all()
        assert torch.equal(copy.deepcopy(net)(x), out)
    net.train()(torch.randn(2, 3, 64, 64))


def resnet_by_hand(net: Any, x: Tensor) -> Tensor:
    """torchvision's ResNet-18 without the ReLUs that directly follow a normalisation."""
    x = net.maxpool(net.bn1(net.conv1(x)))
    for block in [*net.layer1, *net.layer2, *net.layer3, *net.layer4]:
        shortcut = x if block.downsample is None else block.downsample(x)
        x = torch.relu(block.bn2(block.conv2(block.bn1(block.conv1(x)))) + shortcut)
    return net.fc(net.avgpool(x).flatten(1))


def test_torchvisions_resnet_computes_what_it_should() -> None:
    torch.manual_seed(0)
    net = torchvision_model("resnet18").eval()
    apply_frn(net)
    for name, parameter in net.named_parameters():
        if name.endswith("tau"):
            nn.init.constant_(parameter, -0.3)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), resnet_by_hand(net, x))
        net.layer1[0].bn1.tau.fill_(0.3)
        torch.testing.assert_close(net(x), resnet_by_hand(net, x))
