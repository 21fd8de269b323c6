"""Reading `torch.export` programs (.pt2) from anybody: only tensors and arithmetic on tensors are let in."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from postgrad.errors import UserError

# What torch.export.load does with an archive is not safe by itself: it unpickles payloads marked so, evaluates the
# expressions of symbolic sizes, resolves targets from the whole of `torch` and runs compiled libraries.
_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|extra/.*|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_TARGET = re.compile(r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|_operator\.[a-z]+|torch\.sym_[a-z]+|math\.[a-z]+")
_EXPRESSION = re.compile(r"(?:Symbol|positive|integer|True|False|Integer|[A-Z][A-Za-z]+|[su]\d+|[\s\d'+*/(),=<>-])*")
_CALLS = {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Min", "Max", "Mod", "PythonMod", "FloorDiv"}
_CALLS |= {"CeilDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "ModularIndexing", "Eq", "Ne", "Lt", "Le", "Gt", "Ge"}
_CALLS |= {"True", "False", "And", "Or", "Not", "Identity", "StrictLessThan", "LessThan", "GreaterThan"}


def read_program(content: bytes, where: str) -> tuple[ExportedProgram, dict[str, str]]:
    """The program in a .pt2 archive and its extra files, after a check that loading it can run nothing else."""
    extra = {"postgrad.json": ""}
    try:
        _check(content, where)
        return torch.export.load(io.BytesIO(content), extra_files=extra), extra
    except UserError:
        raise
    except Exception as error:  # the reader raises whatever a damaged archive leads it to
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{where}: damaged, cut off or no torch.export program ({reason})") from error


def _check(content: bytes, where: str) -> None:
    """Refuse an archive with anything in it but tensors and known operators."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise _refusal(where, "an entry that is there twice")
        for name in names:
            folder, _, entry = name.partition("/")
            if folder != names[0].partition("/")[0] or not _ENTRY.fullmatch(entry):
                raise _refusal(where, f"the entry {name}")
            if entry.startswith("data/sample_inputs/") and archive.getinfo(name).file_size:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            if entry.endswith(".json") and not entry.startswith("extra/"):
                for key, value in _walk(json.loads(archive.read(name))):
                    _check_item(key, value, where)


def _check_item(key: str, value: Any, where: str) -> None:
    if key == "use_pickle" and value:
        raise _refusal(where, "a pickled object")
    if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
        raise _refusal(where, f"the payload {value}")
    if key == "target" and isinstance(value, str) and not _TARGET.fullmatch(value):
        raise _refusal(where, f"a call of {value}")
    if key == "guards_code" and value:
        raise _refusal(where, "guards written as code")
    if key == "expr_str" and not _is_arithmetic(str(value)):
        raise _refusal(where, f"the expression {str(value)[:80]}")


def _is_arithmetic(expression: str) -> bool:
    names = set(re.findall(r"[A-Z][A-Za-z]+", expression))
    return _EXPRESSION.fullmatch(expression) is not None and names <= _CALLS


def _walk(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    if isinstance(node, dict):
        yield from node.items()
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _walk(child)


def _refusal(where: str, what: str) -> UserError:
    return UserError(f"{where}: not opened, since {what} in it could run code; export the network again with postgrad")
