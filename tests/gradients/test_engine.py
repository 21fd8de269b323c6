"""The engine's buffers, chunks, choice of parameters, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.gradients import GradientEngine, engine, per_sample_gradients, plan, weight_names


def test_blocks_and_rows(build, loop_gradients) -> None:
    case = build("small")
    made = GradientEngine(case.model, case.x[:1])
    assert [(block.name, block.shape, block.numel) for block in made.blocks] == [
        (name, tuple(parameter.shape), parameter.numel()) for name, parameter in case.model.named_parameters()
    ]
    assert made.num_classes == case.classes
    rows = dict(made.gradients(case.x, "all"))
    one = {name: block.clone() for name, block in made.gradients(case.x[2:3], torch.tensor([3]))}
    assert rows["0.weight"].shape == (len(case.x) * case.classes, 108)
    again = dict(made.gradients(case.x, "all"))
    assert torch.allclose(again["0.weight"][2 * case.classes + 3], one["0.weight"][0], rtol=1e-10)


def test_buffers_are_reused(build) -> None:
    case = build("small")
    made = GradientEngine(case.model, case.x)
    first = {name: rows.data_ptr() for name, rows in made.gradients(case.x, case.labels)}
    second = {name: rows.data_ptr() for name, rows in made.gradients(case.x[:2], case.labels[:2])}
    assert first == second


def test_logits_are_the_models(build) -> None:
    case = build("small")
    made = GradientEngine(case.model, case.x)
    assert made.logits is None
    made.gradients(case.x, case.labels)
    assert torch.allclose(made.logits, case.model.eval()(case.x), rtol=1e-12)
    assert not made.logits.requires_grad


@pytest.mark.parametrize("room", [1, 3000, 20_000])
@pytest.mark.parametrize("name", ["small", "used-twice", "windows", "tied"])
def test_tiles_of_any_size_give_the_same(name, room, build, monkeypatch) -> None:
    case = build(name)
    whole = per_sample_gradients(case.model, case.x, "all")
    monkeypatch.setattr(engine, "_TILE_BYTES", room)
    tiled = per_sample_gradients(case.model, case.x, "all")
    for key, rows in whole.items():
        assert torch.allclose(rows, tiled[key], rtol=1e-9, atol=1e-14)


def test_tiles_cover_many_labels() -> None:
    """A thousand classes: one image's labels are divided."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1000)).double(), torch.randn(2, 5).double()
    made = GradientEngine(model, x, memory=400 << 20)
    images, labels = made._tile(2, 1000)
    assert images >= 1
    assert labels == 1000
    made.memory = 1 << 20
    assert made._tile(2, 1000) == (1, 2**18 // 8 // 1004)
    rows = dict(made.gradients(x, "all"))["0.weight"].view(2, 1000, -1)
    for label in (0, 500, 999):
        expected = dict(GradientEngine(model, x).gradients(x, torch.full((2,), label)))["0.weight"]
        assert torch.allclose(rows[:, label], expected, rtol=1e-9, atol=1e-15)


def test_memory_bounds_the_chunk(build) -> None:
    case = build("small")
    total = sum(parameter.numel() for parameter in case.model.parameters())
    made = GradientEngine(case.model, case.x, memory=1 << 20)
    assert made.images_per_chunk(case.labels) == ((1 << 20) - made.working_bytes(1)) // (8 * total)
    assert made.images_per_chunk("all") == ((1 << 20) - made.working_bytes(5)) // (8 * total * case.classes)
    assert made.images_per_chunk(case.labels, numbers=7, beside=9) == ((1 << 20) - made.working_bytes(1) - 9) // 56
    tight = GradientEngine(case.model, case.x, memory=8 * total + 20_000)
    assert tight.images_per_chunk(case.labels) == (8 * total + 20_000 - tight.working_bytes(1)) // (8 * total) >= 1
    with pytest.raises(UserError, match=r"one image under 5 labels take .* GiB"):
        tight.images_per_chunk("all")


def test_the_networks_own_forward_pass_counts(build) -> None:
    """The input of each convolution and linear layer is kept, the ReLU's answer, and the pooling's places."""
    case = build("small")
    made = GradientEngine(case.model, case.x, parameters=weight_names(case.model))
    kept = 8 * (3 * 8 * 8) + 8 * (4 * 6 * 6) + 8 * (4 * 6 * 6) // 4 * 2 + 8 * 5
    assert made.working_bytes(1) // made.images_per_tile(1) >= 2 * (kept - 8 * 5)
    wide = nn.Sequential(nn.Conv2d(3, 4, 3), *[nn.Tanh() for _ in range(50)], *list(case.model)[1:]).double()
    deep = GradientEngine(wide, case.x, parameters=weight_names(wide))
    more = deep.working_bytes(1) / deep.images_per_tile(1) - made.working_bytes(1) / made.images_per_tile(1)
    assert more >= 2 * 50 * 8 * (4 * 6 * 6)


@pytest.mark.parametrize("name", ["small", "norms", "transformer", "tied"])
@pytest.mark.filterwarnings("ignore::postgrad.gradients.GradientFallbackWarning")
def test_the_trial_finds_the_same_a_few_parameters_at_a_time(name, build) -> None:
    case = build(name)
    names = [name for name, _ in case.model.named_parameters()]
    whole = plan.make_plan(case.model, names, case.x, memory=1 << 30)
    parts = plan.make_plan(case.model, names, case.x, memory=1)
    assert len(plan._groups(dict.fromkeys(names, 5), 1)) == len(names)
    assert parts == whole


def test_chunks_give_the_same(build) -> None:
    case = build("small")
    total = sum(parameter.numel() for parameter in case.model.parameters())
    whole = per_sample_gradients(case.model, case.x, case.labels)
    assert GradientEngine(case.model, case.x, memory=16 * total + 12_000).images_per_chunk(case.labels) < len(case.x)
    chunked = per_sample_gradients(case.model, case.x, case.labels, memory=16 * total + 12_000)
    for name, rows in whole.items():
        assert torch.allclose(rows, chunked[name], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["small", "norms", "used-twice"])
def test_the_model_is_left_as_it_was(name, build) -> None:
    case = build(name)
    case.model.train()
    next(case.model.children()).eval()
    next(case.model.parameters()).requires_grad_(False)
    modes = [module.training for module in case.model.modules()]
    flags = [parameter.requires_grad for parameter in case.model.parameters()]
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    per_sample_gradients(case.model, case.x, case.labels)
    with pytest.raises(UserError):
        per_sample_gradients(case.model, case.x * float("nan"), case.labels)
    assert [module.training for module in case.model.modules()] == modes
    assert [parameter.requires_grad for parameter in case.model.parameters()] == flags
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in case.model.state_dict().items())
    assert not any(module._forward_hooks for module in case.model.modules())


@pytest.mark.parametrize("labels", [torch.zeros(0, dtype=torch.int64), "all"])
def test_no_images(labels, build) -> None:
    case = build("small")
    found = per_sample_gradients(case.model, case.x[:0], labels)
    leading = (0, case.classes) if isinstance(labels, str) else (0,)
    assert found["0.weight"].shape == (*leading, 4, 3, 3, 3)
    made = GradientEngine(case.model, case.x)
    assert [rows.shape for _, rows in made.gradients(case.x[:0], labels)] == [(0, block.numel) for block in made.blocks]
    assert made.logits.shape == (0, case.classes)


def test_one_image(build, loop_gradients, relative_error) -> None:
    case = build("small")
    found = per_sample_gradients(case.model, case.x[:1], case.labels[:1])
    assert relative_error(found, loop_gradients(case.model, case.x[:1], case.labels[:1])) <= 1e-9


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(mode, build, loop_gradients, relative_error) -> None:
    case = build("small")
    expected = loop_gradients(case.model, case.x, case.labels)
    with mode():
        found = per_sample_gradients(case.model, case.x.clone(), case.labels)
    assert relative_error(found, expected) <= 1e-9
    assert not any(rows.requires_grad for rows in found.values())


def test_under_autocast_the_precision_is_the_models(build, loop_gradients, relative_error) -> None:
    case = build("small")
    expected = loop_gradients(case.model, case.x, case.labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = per_sample_gradients(case.model.float(), case.x.float(), case.labels)
    assert relative_error(found, expected) <= 1e-5


# --- what is refused ---------------------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


IMAGES = torch.linspace(-1, 1, 64).reshape(4, 1, 4, 4)
LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 3]), "expected 0 to 2, got 0 to 3"),
        (torch.tensor([0, -1, 2, 0]), "expected 0 to 2, got -1 to 2"),
        (torch.tensor([0, 1]), r"expected shape \(4,\), one for each image, got \(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), "expected a tensor of 4 integers"),
        (torch.tensor([True, False, True, False]), "expected a tensor of 4 integers"),
        ([0, 1, 2, 0], "expected a tensor of 4 integers"),
        ("each", "got 'each'"),
    ],
)
def test_labels_that_do_not_fit(labels, message) -> None:
    with pytest.raises(UserError, match=message):
        per_sample_gradients(small(), IMAGES, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["33"]}, "unknown layer '33'"),
        ({"layers": ["1"]}, "hold no parameters"),
        ({"parameters": ["0.wieght"]}, r"did you mean '0\.weight'"),
        ({"layers": ["0"], "parameters": ["0.weight"]}, "either layers or parameters"),
        ({"layers": []}, "hold no parameters"),
    ],
)
def test_names_that_do_not_fit(options, message) -> None:
    with pytest.raises(UserError, match=message):
        per_sample_gradients(small(), IMAGES, LABELS, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (IMAGES.double(), "the images are torch.float64, the model is torch.float32"),
        (IMAGES * float("nan"), "logits are not finite"),
        (IMAGES.numpy(), "expected a tensor of one image or more"),
        (torch.tensor(1.0), "expected a tensor of one image or more"),
    ],
)
def test_images_that_do_not_fit(x, message) -> None:
    with pytest.raises(UserError, match=message):
        per_sample_gradients(small(), x, LABELS)


def test_images_that_the_model_cannot_take() -> None:
    with pytest.raises(UserError, match=r"the model does not take images \(3, 2, 4, 4\): .*expected input"):
        GradientEngine(small(), torch.zeros(1, 2, 4, 4))


def test_images_unlike_the_example() -> None:
    made = GradientEngine(small(), IMAGES)
    with pytest.raises(UserError, match=r"expected \(N, 1, 4, 4\), got \(4, 1, 5, 5\)"):
        made.gradients(torch.zeros(4, 1, 5, 5), LABELS)
    with pytest.raises(UserError, match="expected a tensor of one image or more"):
        GradientEngine(small(), IMAGES[:0])


class Answering(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(4, 3), answer

    def forward(self, x: Tensor) -> object:
        return self.answer(self.layer(x))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda y: (y, y), "returned a tuple"),
        (lambda y: y[:, 0], r"returned \(3,\) for 3 images"),
        (lambda y: y[:, :1], "at least two"),
        (lambda y: y - y.mean(0), "depends on the other images"),
        (lambda y: y + torch.rand(()), "differently each time"),
        (lambda y: y / 0, "not finite"),
    ],
)
def test_answers_that_do_not_fit(answer, message) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=message):
        per_sample_gradients(Answering(answer), torch.randn(4, 4), LABELS)


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(8, 3)
    )
    with pytest.raises(UserError, match=r"layer '1' \(BatchNorm2d\) has no running statistics"):
        per_sample_gradients(model, IMAGES, LABELS)


def test_a_model_without_parameters() -> None:
    with pytest.raises(UserError, match="no parameters"):
        per_sample_gradients(nn.Flatten(), IMAGES, LABELS)


class Routed(nn.Module):
    """Images with a positive mean go through an expert that others never use."""

    def __init__(self) -> None:
        super().__init__()
        self.expert, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.expert(x) if float(x.mean()) > 0 else x)


def test_an_unused_parameter_has_zero_gradients_until_it_is_used() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4) - 5
    made = GradientEngine(Routed(), x)
    assert not dict(made.gradients(x, LABELS))["expert.weight"].any()
    with pytest.raises(UserError, match="no image of the example"):
        made.gradients(-x, LABELS)


# --- any geometry of convolution ---------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    axes = draw(st.integers(1, 3))
    groups, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding: str | tuple[int, ...] = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1,) * axes if padding == "same" else tuple(draw(st.integers(1, 3)) for _ in range(axes))
    if padding == "numbers":
        padding = tuple(draw(st.integers(0, 2)) for _ in range(axes))
    sizes = [draw(st.integers(step * (size - 1) + 3, 8)) for size, step in zip(kernel, dilation, strict=True)]
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](
        groups * inputs, groups * outputs, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode
    )
    return layer, torch.randn(2, groups * inputs, *sizes, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_any_convolution(loop_gradients, relative_error, drawn) -> None:
    torch.manual_seed(0)
    layer, x = drawn
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    with torch.no_grad():
        model(x)
    found = per_sample_gradients(model, x, torch.tensor([0, 2]))
    assert relative_error(found, loop_gradients(model, x, torch.tensor([0, 2]))) <= 1e-9


class Remembering(nn.Module):
    """A network that writes to itself when it runs, as some do; two threads must not run it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.first(x).relu()
        return self.last(self.seen)


def test_a_network_that_changes_when_it_runs_has_one_thread() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    assert not GradientEngine(Remembering(), x)._plan.stateless
    assert GradientEngine(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), x)._plan.stateless


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_gradients(threads: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)).double()
    x = torch.randn(7, 1, 8, 8).double()
    engine = GradientEngine(model, x)
    before = torch.get_num_threads()
    found = []
    for count in (1, threads):
        torch.set_num_threads(count)
        found.append({name: rows.clone() for name, rows in engine.gradients(x, "all")})
    torch.set_num_threads(before)
    for name, rows in found[0].items():
        assert torch.allclose(rows, found[1][name], rtol=1e-12, atol=1e-12)
    assert torch.get_num_threads() == before


def test_a_mistake_in_a_thread_is_the_callers() -> None:
    def fail(rows: slice, blocks: dict[str, Tensor]) -> None:
        raise RuntimeError("in a thread")

    engine = GradientEngine(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.randn(6, 1, 2, 2))
    with pytest.raises(RuntimeError, match="in a thread"):
        engine.pieces(torch.randn(6, 1, 2, 2), "all", fail)
