"""Programs in .pt2 archives: ours are opened, those that could run code are not."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch

from postgrad import create_model
from postgrad.errors import UserError
from postgrad.models.programs import read_program

Edit = Callable[[str, bytes], bytes]


@pytest.fixture(scope="module")
def archive() -> bytes:
    network = create_model("mlp", num_classes=3, in_channels=1, image_size=4).eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(network, (torch.rand(2, 1, 4, 4),), dynamic_shapes=shapes, strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def rewritten(archive: bytes, edit: Edit = lambda name, content: content, **added: bytes) -> bytes:
    """The archive with its entries edited, and with others added."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, edit(name, source.read(name)))
        for name, content in added.items():
            target.writestr(name, content)
    return buffer.getvalue()


def in_json(key: str, value: Any) -> Edit:
    """Set every such key of the archive's JSON entries."""

    def change(node: Any) -> Any:
        if isinstance(node, list):
            return [change(child) for child in node]
        if isinstance(node, dict):
            return {k: value if k == key else change(child) for k, child in node.items()}
        return node

    return lambda name, content: json.dumps(change(json.loads(content))).encode() if name.endswith(".json") else content


def test_a_program_is_opened(archive: bytes) -> None:
    program, _ = read_program(rewritten(archive), "net.pt2")
    assert program.module()(torch.rand(5, 1, 4, 4)).shape == (5, 3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target", "torch.os.system", "a call of torch.os.system"),
        ("target", "torch.load", "a call of torch.load"),
        ("target", "torch.ops.aten.from_file.default", "a call of torch.ops.aten.from_file.default"),
        ("target", "_operator.__class__", "a call of _operator.__class__"),
        ("use_pickle", True, "a pickled object"),
        ("path_name", "opaque_obj_0", "the payload opaque_obj_0"),
        ("guards_code", ["__import__('os').system('true')"], "guards written as code"),
        ("expr_str", "__import__('os').system('true')", "the expression __import__"),
        ("expr_str", "Symbol('s0').free_symbols", "the expression Symbol"),
        ("expr_str", "Lambda(Symbol('s0'))", "the expression Lambda"),
    ],
)
def test_what_could_run_code_is_refused(archive: bytes, key: str, value: Any, message: str) -> None:
    edited = rewritten(archive, in_json(key, value))
    assert edited != rewritten(archive)
    with pytest.raises(UserError, match=f"not opened, since {message.replace('.', '[.]')}.* could run code"):
        read_program(edited, "net.pt2")


@pytest.mark.parametrize(
    "entry",
    [
        "archive/data/aotinductor/model/code.so",
        "archive/data/weights/model.pt",
        "archive/data/constants/opaque_obj_0",
        "archive/models/other",
        "archive/models/MODEL.json",
        "elsewhere/models/model.json",
    ],
)
def test_entries_that_do_not_belong_are_refused(archive: bytes, entry: str) -> None:
    with pytest.raises(UserError, match=f"since the entry {entry} in it could run code"):
        read_program(rewritten(archive, **{entry: b"{}"}), "net.pt2")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_entry_that_is_there_twice_is_refused(archive: bytes) -> None:
    with pytest.raises(UserError, match="an entry that is there twice"):
        read_program(rewritten(archive, **{"archive/models/model.json": b"{}"}), "net.pt2")


class Payload:
    def __reduce__(self) -> Any:
        return pytest.fail, ("the program ran code",)


def test_pickled_sample_inputs_are_refused(archive: bytes) -> None:
    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    edited = rewritten(archive, lambda name, content: buffer.getvalue() if "sample_inputs" in name else content)
    with pytest.raises(UserError, match=r"^net\.pt2: "):
        read_program(edited, "net.pt2")


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive"])
def test_what_is_no_archive(content: bytes) -> None:
    with pytest.raises(UserError, match=r"damaged, cut off or no torch\.export program"):
        read_program(content, "net.pt2")
