"""`postgrad grow`: what is written and told, and what is refused; the grown network is one like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

from postgrad import create_model, load, save
from postgrad.cli import main
from postgrad.cli.grow import Options, operations
from postgrad.cli.parsing import parse
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError

NAMES = tuple("abcd")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seed-cnn for 4 classes of 8×8 pixels."""
    directory = tmp_path_factory.mktemp("saved") / "net"
    torch.manual_seed(0)
    network = create_model("seed-cnn", num_classes=4, in_channels=1, image_size=8)
    save(network, directory, preprocess=Preprocessing(per_image_standardise=True), class_names=NAMES)
    return directory


def grow(saved: Path, out: Path, *words: str) -> int:
    return main(["grow", "--model", str(saved), "--out", str(out), *words])


def test_a_grown_checkpoint_computes_the_same_and_holds_its_proof(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grown"
    assert grow(saved, out, "--widen", "c*=1.3x", "--kernel", "c1=7") == 0
    said = capsys.readouterr()
    assert {file.name for file in out.iterdir()} == {
        "model.safetensors", "manifest.json", "certificate.json", "network.svg",
    }  # fmt: skip
    before, after = load(saved), load(out)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-5)
    assert (after.c0.out_channels, after.c1.out_channels, after.c1.kernel_size) == (83, 83, (7, 7))
    assert (after.class_names, after.preprocess) == (NAMES, before.preprocess)
    proof = json.loads((out / "certificate.json").read_text())
    assert proof["exact"]
    assert proof["max_error"] < 1e-9
    assert [step["operation"].partition(":")[0] for step in proof["steps"]] == ["widen", "widen", "grow_kernel"]
    assert [entry["operator"] for entry in proof["journal"]] == ["widen", "widen", "grow_kernel"]
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (before, after)]
    assert list(proof["parameters"].values()) == counts
    assert f"{counts[0]:,} parameters before, {counts[1]:,} after" in said.out
    assert "64 → 83" in said.out
    assert "5×5 → 7×7" in said.out
    assert "c0: 1.3x of 64 channels would be 83.2; it gets 83" in said.err
    assert "checked on 2 random images of 1×8×8 (seed 0)" in said.err
    ElementTree.parse(out / "network.svg")
    assert str(tmp_path) not in (out / "certificate.json").read_text() + (out / "network.svg").read_text()


def test_other_verbs_take_what_was_grown(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grown"
    assert grow(saved, out, "--deepen", "c1", "--quiet") == 0
    assert grow(out, tmp_path / "again", "--widen", "c0=70", "--quiet") == 0
    assert main(["export", "--model", str(tmp_path / "again"), "--out", str(tmp_path / "net.pt2")]) == 0
    again = load(tmp_path / "again")
    assert (again.c0.out_channels, hasattr(again.c1, "grown")) == (70, True)
    journal = json.loads((tmp_path / "again" / "certificate.json").read_text())["journal"]
    assert [entry["operator"] for entry in journal] == ["deepen", "widen"]


def test_the_network_is_explained_without_being_grown(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grow(saved, tmp_path / "e", "--explain") == 0
    printed = capsys.readouterr().out
    assert "axis" in printed.splitlines()[0]
    assert any(line.startswith("c0 ") and line.endswith(" 1") for line in printed.splitlines())
    assert "fixed: it is what the network returns" in printed
    assert [file.name for file in (tmp_path / "e").iterdir()] == ["network.svg"]


def test_one_json_document(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grow(saved, tmp_path / "j", "--widen", "c1=66", "--explain", "--json", "--seed", "3") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["out"] == str(tmp_path / "j")
    assert [step["change"] for step in document["steps"]] == ["64 → 66"]
    assert document["steps"][0]["operation"] == "widen:layer=c1,to=66"
    assert {width["axis"] for width in document["widths"] if width["step"]} == {"c0", "c1"}
    assert document["example"].endswith("(seed 3)")


def test_what_is_there_is_left_alone(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert grow(saved, tmp_path / "out", "--explain") == 0
    assert f"{tmp_path}/out-2: network.svg" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_network_by_name_has_the_classes_of_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_file(create_model("resnet20", num_classes=7).state_dict(), tmp_path / "w.safetensors")
    words = [
        "grow",
        "--model",
        "resnet20",
        "--weights",
        str(tmp_path / "w.safetensors"),
        "--widen",
        "layer1.0.conv1=20",
    ]
    assert main([*words, "--example-size", "3x8x8", "--out", str(tmp_path / "out")]) == 0
    assert "7 classes, as the weights have them" in capsys.readouterr().err
    assert len(load(tmp_path / "out").class_names) == 7


def test_examples_come_from_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["grow", "--model", "mlp", "--data", "digits", "--explain", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "checked on 64 images of digits" in capsys.readouterr().err


def test_operators_stand_in_the_order_of_the_command_line() -> None:
    words = ["--skip", "a:b", "--widen=a=9", "--deepen", "a", "--widen", "b=2x", "--kernel", "k=3x7", "--branch", "m=3"]
    words += ["--group", "g=4", "--deepen", "a=identity", "--init", "fanout_zero", "--branch", "n"]
    options = parse(Options, words, verb="grow")
    assert [str(call) for call in operations(options.growth, options.words)] == [
        "add_skip:source=a,target=b",
        "widen:layer=a,to=9,init=fanout_zero",
        "deepen:after=a",
        "widen:layer=b,to=2x,init=fanout_zero",
        "grow_kernel:layer=k,to=3+7",
        "branch:layer=m,ways=3",
        "insert_group:after=g,groups=4",
        "deepen:after=a,kind=identity",
        "branch:layer=n",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to grow; give --widen"),
        (["--widen", "c9*=2x"], "no layer matches 'c9*'; the nearest are c"),
        (["--widen", "c9=70"], "unknown layer 'c9': did you mean 'c"),
        (["--widen", "c0"], "--widen: cannot read 'c0'; write it as conv1=96"),
        (["--widen", "c0=1.5y"], "'1.5y' is no whole number"),
        (["--widen", "c0=0.9x"], "a multiple above 1 such as 1.5x"),
        (["--widen", "c0=9"], "it has 64 channels; give a greater number, not 9"),
        (["--widen", "l1=9"], "l1: cannot be widened: it is what the network returns"),
        (["--widen", "c0=70", "--init", "fanot"], "widen:init: should be 'replicate'"),
        (["--deepen", "c0=identiti"], "deepen:kind: should be"),
        (["--skip", "c0"], "--skip: cannot read 'c0'; write it as layer1:layer3"),
        (["--group", "c0=many"], "'many' is no whole number"),
        (["--kernel", "c0=4"], "grows only; give a size above it"),
        (["--wden", "c0=9"], "unknown option --wden: did you mean --widen?"),
        (["--explain", "--example-size", "8x8"], "--example-size: expected channels, height and width"),
        (["--explain", "--example-size", "1x8x8", "--data", "digits"], "leave out it or --data"),
        (["--explain", "--weights", "w.pt"], "has weights of its own"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert grow(saved, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("postgrad: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torchvision:resnet18", "has no trained weights; add --weights"),
        ("net.pt2", "an exported program, whose layers cannot be grown"),
    ],
)
def test_networks_that_cannot_be_grown(model: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grow", "--model", model, "--widen", "conv1=70"]) == 2
    assert message in capsys.readouterr().err


def test_a_refused_growth_writes_nothing_at_all(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a second operator that would change what is computed."""
    import postgrad.growth.width as width

    real = width.Witness.certify
    calls: list[Any] = []

    def refuses(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(options)
        if len(calls) == 2:
            raise UserError("the network would no longer compute the same")
        return real(self, *args, **options)

    monkeypatch.setattr(width.Witness, "certify", refuses)
    assert grow(saved, tmp_path / "out", "--widen", "c0=70", "--widen", "c1=70") == 2
    assert not (tmp_path / "out").exists()
