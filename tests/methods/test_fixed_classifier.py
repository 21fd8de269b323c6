"""The fixed classifier: its matrices, its layer, and its place in any network."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard
from torch import Tensor, fx, nn
from torch.nn import functional as F

from postgrad import create_model, load, per_sample_gradients, save
from postgrad._compat import prepare_torchvision
from postgrad.changes import changes_of
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.gradients.fallback import GradientFallbackWarning
from postgrad.methods.fixed_classifier import FixedClassifier, apply_fixed_classifier
from postgrad.models.export import export, load_exported

prepare_torchvision()

KINDS = ("hadamard", "orthonormal", "simplex")
SIZES = [(64, 10), (64, 64), (96, 70), (64, 200), (80, 2100)]
"""Features and classes: part of a block, a whole one, padded, several in turn, and side by side."""


def cases() -> list[tuple[str, int, int]]:
    fit = {"hadamard": lambda n, c: True, "orthonormal": lambda n, c: c <= n, "simplex": lambda n, c: c <= n + 1}
    return [(kind, n, c) for kind in KINDS for n, c in SIZES if fit[kind](n, c)]


def made(kind: str, features: int, classes: int, **options: int) -> FixedClassifier:
    """A layer that has learned something."""
    layer = FixedClassifier(features, classes, kind=kind, **options)
    with torch.no_grad():
        layer.scale.fill_(0.7)
        layer.bias.normal_()
    return layer


def by_definition(layer: FixedClassifier, x: Tensor) -> Tensor:
    unit = x.double() / x.double().norm(dim=-1, keepdim=True)
    return layer.scale.double() * unit @ layer.matrix().double().T + layer.bias.double()


# The matrices


@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_rows_have_the_same_length_and_all_differ(kind: str, features: int, classes: int) -> None:
    rows = FixedClassifier(features, classes, kind=kind).matrix()
    assert rows.shape == (classes, features)
    assert torch.allclose(rows.norm(dim=1), torch.tensor(features**0.5))
    assert len(rows.unique(dim=0)) == classes


@given(features=st.integers(1, 150), classes=st.integers(1, 700), seed=st.integers(0, 3))
def test_rows_of_one_and_minus_one(features: int, classes: int, seed: int) -> None:
    if classes > 2 ** (features - 1):
        return
    layer = FixedClassifier(features, classes, seed=seed)
    rows = layer.matrix()
    assert rows.abs().eq(1).all()
    assert len(rows.unique(dim=0)) == classes
    cosines = (rows @ rows.T / features).fill_diagonal_(0).abs()
    assert layer.coherence() == pytest.approx(cosines.max().item(), abs=1e-6)


def test_a_truncated_matrix_of_the_authors_has_rows_twice() -> None:
    rows = torch.from_numpy(hadamard(256))[:200, :64]
    assert len(rows.unique(dim=0)) == 64  # why blocks with signs of their own
    near = torch.from_numpy(hadamard(1024))[:600, :513].double()
    assert (near @ near.T / 513).fill_diagonal_(0).max() > 0.99  # why features are spread
    assert FixedClassifier(513, 600).coherence() < 0.2


@pytest.mark.parametrize(("features", "classes"), [(64, 10), (512, 512), (1280, 256), (96, 32)])
def test_as_many_rows_as_can_are_orthogonal(features: int, classes: int) -> None:
    rows = FixedClassifier(features, classes).matrix()
    assert torch.equal(rows @ rows.T, features * torch.eye(classes))
    assert FixedClassifier(features, classes).coherence() == 0


@pytest.mark.parametrize("seed", range(5))
def test_positive_features_do_not_all_choose_one_class(seed: int) -> None:
    """A row of ones has the largest product with any features after a ReLU."""
    x = torch.rand(200, 64, generator=torch.Generator().manual_seed(9))
    ones = torch.from_numpy(hadamard(64)).float()
    assert (x @ ones.T).argmax(1).eq(0).all()
    layer = FixedClassifier(64, 64, seed=seed)
    assert layer.matrix().mean(1).abs().max() < 0.6
    assert len(layer(x).argmax(1).unique()) > 1


@pytest.mark.parametrize(("features", "classes"), [(64, 10), (64, 64)])
def test_orthonormal_rows(features: int, classes: int) -> None:
    layer = FixedClassifier(features, classes, kind="orthonormal")
    assert torch.allclose(layer.matrix() @ layer.matrix().T, features * torch.eye(classes), atol=1e-4)
    assert layer.coherence() < 1e-6


@pytest.mark.parametrize(("features", "classes"), [(64, 2), (64, 10), (9, 10), (3, 2)])
def test_the_corners_of_a_simplex(features: int, classes: int) -> None:
    layer = FixedClassifier(features, classes, kind="simplex")
    expected = torch.full((classes, classes), -1 / (classes - 1)).fill_diagonal_(1)
    assert torch.allclose(layer.matrix() @ layer.matrix().T / features, expected, atol=1e-5)
    assert layer.coherence() == pytest.approx(1 / (classes - 1), abs=1e-5)
    assert layer.matrix().sum(0).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_says_all_and_the_global_random_numbers_are_left_alone(kind: str) -> None:
    before = torch.get_rng_state()
    layer = FixedClassifier(48, 40, kind=kind, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(FixedClassifier(48, 40, kind=kind, seed=3).matrix(), layer.matrix())
    assert not torch.equal(FixedClassifier(48, 40, kind=kind, seed=4).matrix(), layer.matrix())


@pytest.mark.parametrize(
    ("kind", "features", "classes", "reason"),
    [
        ("orthonormal", 8, 9, "no more than 8 orthonormal rows, not 9; use kind='hadamard'"),
        ("simplex", 8, 10, "a simplex of 2 to 9 corners, not of 10; use kind='hadamard'"),
        ("simplex", 8, 1, "a simplex of 2 to 9 corners, not of 1"),
        ("hadamard", 3, 9, "3 features are too few for 9 rows"),
        ("hadamard", 0, 9, "needs features and classes, got 0 and 9"),
        ("hadamrad", 8, 9, "did you mean 'hadamard'"),
    ],
)
def test_sizes_that_cannot_be(kind: str, features: int, classes: int, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        FixedClassifier(features, classes, kind=kind)


# The layer


@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_logits_are_those_of_the_formula(kind: str, features: int, classes: int) -> None:
    layer = made(kind, features, classes).double()
    x = torch.randn(7, features, dtype=torch.float64) * 100
    assert torch.allclose(layer(x), by_definition(layer, x), atol=1e-5 if kind != "hadamard" else 1e-11)
    assert torch.allclose(layer.float()(x.float()).double(), by_definition(layer, x), atol=1e-4)


@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_gradients_are_those_of_the_formula(kind: str, features: int, classes: int) -> None:
    layer = made(kind, features, classes).double()
    x, targets = torch.randn(5, features, dtype=torch.float64, requires_grad=True), torch.randint(classes, (5,))
    learned = [x, layer.scale, layer.bias]
    found = torch.autograd.grad(F.cross_entropy(layer(x), targets), learned)
    expected = torch.autograd.grad(F.cross_entropy(by_definition(layer, x), targets), learned)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    assert not torch.allclose(found[0], 1.01 * expected[0], atol=1e-10)


def test_only_the_scale_and_the_biases_are_learned() -> None:
    layer = FixedClassifier(512, 1000)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 1001
    assert layer.scale.item() == pytest.approx(1000**-0.5)
    assert repr(layer) == (
        "FixedClassifier(in_features=512, num_classes=1000, kind='hadamard', seed=0, learned=1,001 "
        "(nn.Linear: 513,000))"
    )


@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_features_that_are_all_zero(kind: str, features: int, classes: int) -> None:
    layer = made(kind, features, classes)
    x = torch.stack((torch.zeros(features), torch.randn(features), torch.full((features,), 1e-30)))
    x.requires_grad_()
    logits = layer(x)
    assert torch.equal(logits[0], layer.bias)
    gradients = torch.autograd.grad(logits.square().sum(), [x, *layer.parameters()], create_graph=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][0].any()
    assert torch.autograd.grad(gradients[0].square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("classes", [10, 2100])
def test_the_length_of_half_precision_features_does_not_overflow(classes: int) -> None:
    layer = made("hadamard", 64, classes).half()
    x = torch.full((2, 64), 30000.0, dtype=torch.float16)
    assert x.norm().isinf()
    assert torch.allclose(layer(x).double(), by_definition(layer, x), atol=0.05)


@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_autocast_gives_what_a_linear_layer_would(kind: str, features: int, classes: int) -> None:
    layer, linear = made(kind, features, classes), nn.Linear(features, classes)
    x = torch.randn(3, features, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x)
        assert logits.dtype == linear(x).dtype == torch.bfloat16
        F.cross_entropy(logits, torch.zeros(3, dtype=torch.long)).backward()
    assert torch.allclose(logits.double(), by_definition(layer, x), atol=0.15)
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert layer.scale.grad is not None
    assert layer.scale.grad.dtype == torch.float32


@given(
    case=st.sampled_from(cases()),
    lead=st.lists(st.integers(0, 3), max_size=3),
    strided=st.booleans(),
)
def test_any_number_of_dimensions(case: tuple[str, int, int], lead: list[int], strided: bool) -> None:
    kind, features, classes = case
    layer = made(kind, features, classes)
    x = torch.randn(*lead, 2 * features)[..., ::2] if strided else torch.randn(*lead, features)
    assert layer(x).shape == (*lead, classes)
    assert torch.allclose(layer(x).double(), by_definition(layer, x), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maps_are_classified_at_each_place(kind: str, memory_format: torch.memory_format) -> None:
    layer = made(kind, 16, 10, dim=-3)
    x = torch.randn(2, 16, 3, 4).to(memory_format=memory_format)
    found = layer(x)
    assert found.shape == (2, 10, 3, 4)
    assert torch.allclose(found[1, :, 2, 3].double(), by_definition(layer, x[1, :, 2, 3]), atol=1e-5)
    assert torch.allclose(layer(x[1]), found[1], atol=1e-6)


def test_features_of_another_number_are_refused() -> None:
    with pytest.raises(UserError, match=r"takes 48 features, got 40 \(shape \(2, 40\)\)"):
        FixedClassifier(48, 10)(torch.rand(2, 40))


@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_copies_and_stored_ones_are_the_same(kind: str, features: int, classes: int) -> None:
    layer, x = made(kind, features, classes), torch.randn(3, features)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = FixedClassifier(features, classes, kind=kind, seed=77)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(other(x), expected)


def test_moving_it_moves_all_of_it() -> None:
    with torch.device("meta"):
        layer = FixedClassifier(96, 70)
    assert all(tensor.is_meta for tensor in [*layer.parameters(), *layer.buffers()])
    assert layer(torch.rand(2, 96, device="meta")).shape == (2, 70)
    assert FixedClassifier(96, 70).half().signs.dtype == torch.int8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_a_gpu_gives_the_same(kind: str, features: int, classes: int) -> None:
    layer, x = made(kind, features, classes), torch.randn(3, features)
    expected = by_definition(layer, x)
    assert torch.allclose(layer.cuda()(x.cuda()).cpu().double(), expected, atol=1e-4)


@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_it_is_one_step_for_torch_fx(kind: str, features: int, classes: int) -> None:
    model = nn.Sequential(nn.ReLU(), made(kind, features, classes))
    traced, x = fx.symbolic_trace(model), torch.randn(3, features)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_it_can_be_exported_for_any_batch(kind: str, features: int, classes: int) -> None:
    layer = made(kind, features, classes)
    program = torch.export.export(layer, (torch.randn(2, features),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for batch in (1, 2, 5):
        x = torch.randn(batch, features)
        assert torch.allclose(program.module()(x), layer(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch's own use of it
@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_it_can_be_compiled(kind: str, features: int, classes: int) -> None:
    layer, x = made(kind, features, classes), torch.randn(3, features, requires_grad=True)
    torch._dynamo.reset()  # each size is one more version of the same code
    compiled = torch.compile(layer, fullgraph=True, backend="inductor" if features == 96 else "aot_eager")
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)
    found, expected = (torch.autograd.grad(each(x).square().sum(), x)[0] for each in (compiled, layer))
    assert torch.allclose(found, expected, atol=1e-4)


# In networks


class Net(nn.Sequential):
    def __init__(self, num_classes: int = 10, bias: bool = True) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, num_classes, bias=bias))


def test_the_optimizer_goes_on_with_what_is_learned() -> None:
    model = Net()
    head = model[3]
    optimizer = torch.optim.SGD(
        [{"params": model[1].parameters()}, {"params": [head.bias], "weight_decay": 0.0}, {"params": [head.weight]}],
        lr=0.1,
        weight_decay=0.01,
    )
    assert apply_fixed_classifier(model, optimizer=optimizer) == 1
    groups = [group["params"] for group in optimizer.param_groups]
    assert [len(group) for group in groups] == [2, 1, 1]
    assert groups[1][0] is model[3].bias
    assert groups[2][0] is model[3].scale
    signs = model[3].signs.clone()
    x, y = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 10
    losses = []
    for _ in range(100):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(model[3].signs, signs)


def test_a_layer_without_biases_and_one_that_is_parametrised() -> None:
    model = Net(bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert apply_fixed_classifier(model, optimizer=optimizer) == 1
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    model = Net()
    torch.nn.utils.parametrizations.weight_norm(model[3])
    assert apply_fixed_classifier(model) == 1
    assert isinstance(model[3], FixedClassifier)


def test_convolutions_of_one_place_are_replaced() -> None:
    import torchvision

    model = torchvision.models.squeezenet1_1(num_classes=10).eval()
    assert apply_fixed_classifier(model) == 1
    assert model.classifier[1].dim == -3
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 10)


def test_auxiliary_heads_stay() -> None:
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.googlenet(init_weights=False)
    assert apply_fixed_classifier(model) == 1
    assert isinstance(model.fc, FixedClassifier)
    assert isinstance(model.aux1.fc2, nn.Linear)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (FixedClassifier(32, 10), "is fixed already"),
        (nn.Bilinear(1, 1, 1), "is neither linear nor a 1×1 convolution"),
        (nn.Conv2d(32, 10, 3), "is neither linear nor a 1×1 convolution"),
        (nn.Conv2d(32, 32, 1, groups=2), "is neither linear nor a 1×1 convolution"),
        (nn.Conv2d(32, 10, 1, stride=2), "is neither linear nor a 1×1 convolution"),
    ],
)
def test_what_cannot_be_replaced_is_left_and_said(last: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32), last)
    with pytest.warns(UserWarning, match=reason):
        assert apply_fixed_classifier(model) == 0
    assert model[1] is last
    assert changes_of(model) == ()


def test_a_refusal_leaves_the_network_as_it_was() -> None:
    model = Net(num_classes=40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, head = copy.deepcopy(model.state_dict()), model[3]
    with pytest.raises(UserError, match="32 features"):
        apply_fixed_classifier(model, kind="orthonormal", optimizer=optimizer)
    with pytest.raises(UserError, match=r"nn\.Sequential"):
        apply_fixed_classifier(head)
    assert model[3] is head
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert changes_of(model) == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", ["seed-cnn", "timm:resnet10t"])
def test_a_saved_network_comes_back(tmp_path: Path, kind: str, spec: str) -> None:
    model = create_model(spec, num_classes=10).eval()
    assert apply_fixed_classifier(model, kind=kind, seed=5) == 1
    save(model, tmp_path / "net", preprocess=Preprocessing(), class_names="abcdefghij")
    again, x = load(tmp_path / "net"), torch.rand(2, 3, 24, 24)
    assert torch.equal(again(x), model(x))
    assert changes_of(again) == changes_of(model)
    assert changes_of(model)[0].options == {"kind": kind, "seed": 5}


@pytest.mark.parametrize("kind", ["hadamard", "simplex"])
def test_a_network_with_it_is_exported_for_others(tmp_path: Path, kind: str) -> None:
    model = create_model("seed-cnn", num_classes=10, in_channels=1, image_size=8)
    apply_fixed_classifier(model, kind=kind)
    x = torch.rand(2, 1, 8, 8)
    assert export(model, tmp_path / "net.pt2", format="pt2", example=x) < 1e-4
    assert torch.allclose(load_exported(tmp_path / "net.pt2")(x), model.eval()(x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "features", "classes"), cases())
def test_onnx(tmp_path: Path, kind: str, features: int, classes: int) -> None:
    model = nn.Sequential(nn.Flatten(), made(kind, features, classes))
    x = torch.rand(2, features, 1, 1)
    assert export(model, tmp_path / "net.onnx", format="onnx", example=x) < 1e-3
    assert torch.allclose(load_exported(tmp_path / "net.onnx")(x), model(x), atol=1e-3)


def test_per_sample_gradients_pass_through() -> None:
    model = create_model("seed-cnn", num_classes=10, in_channels=1, image_size=8)
    apply_fixed_classifier(model)
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 4, 9])
    with pytest.warns(GradientFallbackWarning, match=r"scale.*torch\.func"):
        found = per_sample_gradients(model, x, y)
    for i in range(3):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
            assert torch.allclose(found[name][i], gradient, atol=1e-5), name


@pytest.mark.slow
def test_it_learns_digits_as_well_as_a_linear_layer() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.from_numpy(np.float32(data.data / 16)), torch.from_numpy(data.target)
    scores = {}
    for fixed in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Net()
            if fixed:
                apply_fixed_classifier(model)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(150):
                optimizer.zero_grad()
                F.cross_entropy(model(x[:1200]), y[:1200]).backward()
                optimizer.step()
            scores[fixed] = (model(x[1200:]).argmax(1) == y[1200:]).float().mean().item()
    assert scores[True] > scores[False] - 0.03
    assert scores[False] > 0.85
