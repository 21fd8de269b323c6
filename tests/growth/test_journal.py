"""Journals: a grown network is built again from its entries, in a new process too, and no entry can do any harm."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from growing import NETWORKS, ConvNet, halves, widen_first
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from postgrad import create_model, load, save
from postgrad.changes import Change, apply_changes, changes_of, note_change
from postgrad.errors import UserError
from postgrad.growth import journal as module
from postgrad.growth.certificate import Certificate, Witness
from postgrad.growth.journal import journal_of, regrow, replay
from postgrad.growth.transaction import transaction
from postgrad.growth.words import OPERATORS, Operator

IMAGES = NETWORKS["images"][1][0]


def toy_widen(model: Any, layer: str, *, to: int, example: Tensor, seed: int = 0) -> Certificate:
    """Widen the first convolution of a `ConvNet`, whatever its name."""
    if to <= model.conv1.out_channels:
        raise UserError(f"{layer}: it has {model.conv1.out_channels} units; ask for more")
    old = model.conv1.out_channels
    more = torch.randint(old, (to - old,), generator=torch.Generator().manual_seed(seed))
    index = torch.cat((torch.arange(old), more))
    witness = Witness.of(model, example)
    with transaction(model):
        made = widen_first(model, index, halves(index))
        made.entry["arguments"] = {"layer": layer, "to": to, "seed": seed}
        certificate = witness.certify(model, **made.options())
        note_change(model, "growth", **made.entry)
    return certificate


def put(model: nn.Module, into: str, block: str, options: dict[str, Any]) -> None:
    model.get_submodule(into).add_module("grown", {"linear": nn.Linear}[block](**options))


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(OPERATORS, "widen", Operator(f"{__name__}:toy_widen", ("layer",)))
    monkeypatch.setattr(module, "_INSERT", f"{__name__}:put")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _here())


def _here() -> Any:
    """This file as a module that can be imported by name, however pytest has loaded it."""
    made = type(sys)(__name__)
    vars(made).update(globals())
    return made


def grown(*sizes: int) -> ConvNet:
    model = ConvNet()
    for size in sizes:
        toy_widen(model, "conv1", to=size, example=IMAGES, seed=size)
    return model


@settings(max_examples=8)
@given(st.sets(st.integers(7, 20), max_size=3), st.sampled_from([torch.float32, torch.float64]))
def test_a_grown_network_is_built_again(sizes: set[int], dtype: torch.dtype) -> None:
    model = grown(*sorted(sizes)).to(dtype)
    again = ConvNet().to(dtype)
    apply_changes(again, json_round_trip(changes_of(model)))
    again.load_state_dict(model.state_dict())
    assert repr(again) == repr(model)
    assert torch.equal(again.eval()(IMAGES.to(dtype)), model.eval()(IMAGES.to(dtype)))
    assert journal_of(again) == journal_of(model)
    assert len(journal_of(model)) == len(sizes)
    state = torch.optim.SGD(again.parameters(), lr=0.1)
    again(IMAGES.to(dtype)).sum().backward()
    state.step()


def json_round_trip(changes: tuple[Change, ...]) -> list[Change]:
    return [Change.model_validate_json(change.model_dump_json()) for change in changes]


def test_the_journal_is_the_growth_among_all_changes() -> None:
    model = ConvNet()
    assert journal_of(model) == ()
    note_change(model, "norm", kind="layer")
    toy_widen(model, "conv1", to=8, example=IMAGES)
    assert [entry["operator"] for entry in journal_of(model)] == ["widen"]
    assert journal_of(copy.deepcopy(model)) == journal_of(model)


def test_tied_and_frozen_parameters_stay_so() -> None:
    first, second = nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)
    second.weight = first.weight
    first.weight.requires_grad_(False)
    model = nn.Sequential(first, second)
    regrow(model, operator="widen", shapes={"0.weight": [4, 6]}, attributes={"0": {"in_features": 6}})
    assert model[0].weight is model[1].weight
    assert tuple(model[1].weight.shape) == (4, 6)
    assert (model[0].weight.requires_grad, model[0].weight.dtype, model[0].in_features) == (False, torch.float64, 6)


def test_attributes_keep_their_kind() -> None:
    conv = nn.Conv2d(2, 2, 3, padding="valid")
    entry = {"kernel_size": [5, 5], "padding": [1, 1]}
    regrow(nn.Sequential(conv), operator="grow_kernel", shapes={"0.weight": [2, 2, 5, 5]}, attributes={"0": entry})
    assert (conv.kernel_size, conv.padding) == ((5, 5), (1, 1))
    assert conv(torch.zeros(1, 2, 4, 4)).shape == (1, 2, 2, 2)


def test_blocks_are_put_in_before_they_are_resized() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    options = {"in_features": 2, "out_features": 2}
    insertion = {"into": "0", "block": "linear", "options": options}
    regrow(model, operator="deepen", insertions=[insertion], shapes={"0.grown.weight": [2, 5]})
    assert tuple(model.get_parameter("0.grown.weight").shape) == (2, 5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "operator: missing"),
        ({"operator": "widn"}, "unknown growth operator 'widn': did you mean 'widen'"),
        ({"operator": "os:system"}, "unknown growth operator 'os:system'"),
        ({"operator": 3}, "operator: should be a valid string"),
        ({"operator": "widen", "code": "x"}, "unknown setting 'code'"),
        ({"operator": "widen", "model": "x"}, "unknown setting 'model'"),
        ({"operator": "widen", "shapes": {"conv9.weight": [1]}}, "no tensor 'conv9.weight'"),
        ({"operator": "widen", "shapes": {"conv1.weight": [6, 3, 3]}}, r"\(6, 3, 3, 3\) cannot become \(6, 3, 3\)"),
        ({"operator": "widen", "shapes": {"conv1.bias": [0]}}, r"conv1.bias of shape \(6,\) cannot become \(0,\)"),
        ({"operator": "widen", "shapes": {"conv1.bias": [-1]}}, "cannot become"),
        ({"operator": "widen", "shapes": {"conv1.bias": [2**62]}}, "are more than 2³¹"),
        ({"operator": "widen", "shapes": {"conv1.bias": [2**31], "bn1.bias": [1]}}, "2147483649 elements"),
        ({"operator": "widen", "shapes": {"conv1.bias": [10**400]}}, "are more than 2³¹"),
        ({"operator": "widen", "shapes": {"conv1.bias": ["many"]}}, "shapes.conv1.bias.0: should be a valid integer"),
        ({"operator": "widen", "attributes": {"conv9": {"out_channels": 1}}}, "no module 'conv9'"),
        ({"operator": "widen", "attributes": {"conv1": {"out_channel": 1}}}, "conv1.out_channel cannot become 1"),
        ({"operator": "widen", "attributes": {"conv1": {"out_channels": "6"}}}, "conv1.out_channels cannot become '6'"),
        ({"operator": "widen", "attributes": {"conv1": {"forward": 1}}}, "conv1.forward cannot become"),
        ({"operator": "widen", "attributes": {"conv1": {"_parameters": {}}}}, "conv1._parameters cannot become"),
        ({"operator": "widen", "attributes": {"conv1": {"training": False}}}, "conv1.training cannot become"),
        ({"operator": "widen", "attributes": {"conv1": {"padding": ["a"]}}}, "conv1.padding cannot become"),
        ({"operator": "deepen", "insertions": [{"into": "x", "block": "linear"}]}, "no module 'x'"),
        ({"operator": "deepen", "insertions": [{"block": "linear"}]}, "insertions.0.into: missing"),
    ],
)
def test_a_bad_entry_is_refused_in_one_line_and_changes_nothing(entry: dict[str, Any], message: str) -> None:
    model = ConvNet()
    before, tensors = repr(model), [id(each) for each in (*model.parameters(), *model.buffers())]
    good = {"attributes": {"bn1": {"num_features": 6}}} if "attributes" not in entry else {}
    with pytest.raises(UserError, match=message) as caught:
        apply_changes(model, [Change(name="growth", options=entry | good)])
    assert "\n" not in str(caught.value)
    assert (repr(model), [id(each) for each in (*model.parameters(), *model.buffers())]) == (before, tensors)
    assert journal_of(model) == ()


def test_an_entry_that_fails_at_its_end_leaves_the_network_as_it_was() -> None:
    model = grown(8)
    before, tensors = repr(model), [id(each) for each in model.parameters()]
    entry = dict(journal_of(model)[0]) | {"attributes": {"conv1": {"out_channels": 9}, "head": {"nothing": 1}}}
    entry["insertions"] = [{"into": "relu", "block": "linear", "options": {"in_features": 1, "out_features": 1}}]
    with pytest.raises(UserError, match=r"head\.nothing"):
        regrow(model, **entry)
    assert (repr(model), [id(each) for each in model.parameters()]) == (before, tensors)
    assert len(journal_of(model)) == 1


def test_a_journal_is_replayed_on_a_network_with_other_weights() -> None:
    model, other = grown(8, 11), ConvNet()
    nn.init.normal_(other.conv1.weight)
    function = copy.deepcopy(other).eval()(IMAGES)
    certificates = replay(other, journal_of(model), example=IMAGES)
    assert [certificate.mode for certificate in certificates] == ["train", "train"]
    assert max(certificate.max_error for certificate in certificates) < 1e-9
    torch.testing.assert_close(other.eval()(IMAGES), function, rtol=0, atol=1e-4)
    assert journal_of(other) == journal_of(model) == certificates[-1].journal
    assert other.conv1.out_channels == 11
    assert not torch.equal(other.conv1.weight, model.conv1.weight)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"operator": "widen", "arguments": {"layer": "conv1", "to": 5}}, "conv1: it has 8 units; ask for more"),
        ({"operator": "widen", "arguments": {"layer": "conv1", "units": 9}}, "widen conv1: .*'to'"),
        ({"operator": "widen", "arguments": {"layer": "conv1", "to": 9, "example": 1}}, "example"),
        ({"operator": "wide"}, "did you mean 'widen'"),
    ],
)
def test_a_replay_is_made_as_a_whole_or_not_at_all(entry: dict[str, Any], message: str) -> None:
    journal = [*journal_of(grown(8)), entry]
    model = ConvNet()
    tensors = [id(each) for each in model.parameters()]
    with pytest.raises(UserError, match=message):
        replay(model, journal, example=IMAGES)
    assert [id(each) for each in model.parameters()] == tensors
    assert (journal_of(model), model.conv1.out_channels) == ((), 6)


def test_every_operator_of_the_table_is_one_of_growth() -> None:
    tables = [operator.target for name, operator in OPERATORS.items() if name != "widen"]
    assert all(path.startswith("postgrad.growth.") for path in tables)


def widen_seed_cnn() -> nn.Module:
    model = create_model("seed-cnn", num_classes=3)
    entry = {"operator": "widen", "arguments": {"layer": "c0", "to": 80}}
    entry["shapes"] = {"c0.weight": [80, 3, 5, 5], "c0.bias": [80], "c1.weight": [64, 80, 5, 5]}
    entry["attributes"] = {"c0": {"out_channels": 80}, "c1": {"in_channels": 80}}
    regrow(model, **entry)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


IN_A_NEW_PROCESS = """
import sys, torch
from postgrad import load
torch.set_num_threads(1)
model = load(sys.argv[1])
torch.save([model(torch.load(sys.argv[2])), model.postgrad_changes[0].options], sys.argv[2])
"""


def test_a_grown_network_is_loaded_in_a_new_process(tmp_path: Path) -> None:
    model, images = widen_seed_cnn(), torch.rand(2, 3, 24, 24)
    save(model, tmp_path / "net", class_names=("a", "b", "c"))
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path / "net"), str(tmp_path / "images.pt")]
    subprocess.run(command, check=True, timeout=120)
    output, entry = torch.load(tmp_path / "images.pt")
    assert torch.equal(output, model.eval()(images))
    assert entry == journal_of(model)[0]


def test_a_manifest_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    save(widen_seed_cnn(), tmp_path / "net", class_names=("a", "b", "c"))
    file = tmp_path / "net" / "manifest.json"
    content = json.loads(file.read_text())
    content["changes"][0]["options"]["shapes"]["c0.bias"] = [81]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not fit the network: shape: c0\.bias is \(80,\)"):
        load(tmp_path / "net")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_rebuilt_network_is_exported(tmp_path: Path, format: str) -> None:
    from postgrad.models.export import export

    model = widen_seed_cnn()
    save(model, tmp_path / "net", class_names=("a", "b", "c"))
    example = torch.rand(2, 3, 24, 24)
    assert export(load(tmp_path / "net"), tmp_path / f"net.{format}", format=format, example=example) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_rebuilt_network_is_compiled() -> None:
    model, again = grown(8, 11), ConvNet()
    apply_changes(again, changes_of(model))
    again.load_state_dict(model.state_dict())
    compiled = torch.compile(again.eval())
    torch.testing.assert_close(compiled(IMAGES), model.eval()(IMAGES))
