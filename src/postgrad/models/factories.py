"""Functions and classes of the user's own that make a network: `pkg.mod:factory` and `file.py:factory`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from postgrad.errors import UserError, unknown_name
from postgrad.files import sha256

Factory = Callable[..., nn.Module]


def is_file_factory(spec: str) -> bool:
    """Whether a specification names a Python file: `file.py:factory`."""
    return spec.rpartition(":")[0].endswith(".py")


def find_factory(spec: str) -> Factory:
    """The function or class behind `pkg.mod:factory` or `file.py:factory`.

    >>> build = find_factory("nets/mine.py:build")

    A file is run as a module of its own, with its folder importable while it runs. What it raises is told in one line
    with the place.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UserError(f"{spec!r} names no factory; write it as pkg.mod:factory or file.py:factory")
    module = module_of_file(Path(place).expanduser()) if is_file_factory(spec) else _module_by_name(place)
    factory = getattr(module, name, None)
    if factory is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown_name(f"factory in {place}", name, public)
    if not callable(factory):
        raise UserError(
            f"{spec} is an object of type {type(factory).__name__}, not a function or class that makes a network"
        )
    return factory


def call_factory(factory: Factory, spec: str, arguments: Mapping[str, Any], kwargs: Mapping[str, Any]) -> nn.Module:
    """Call a factory with those of `arguments` that it names, and all of `kwargs`; it must return an `nn.Module`."""
    parameters = _parameters(factory)
    accepted = {key: value for key, value in arguments.items() if key in parameters}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        accepted["num_classes"] = arguments["num_classes"]
    with _told(spec):
        model = factory(**{**accepted, **kwargs})
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{spec} returned an object of type {type(model).__name__}; a factory must return a torch.nn.Module"
        )
    return model


def portable_name(file: str | os.PathLike[str]) -> str:
    """The file's name relative to the working directory, or its bare name where it lies elsewhere."""
    path = Path(file).expanduser().resolve()
    here = Path.cwd().resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name


def _parameters(factory: Factory) -> Mapping[str, inspect.Parameter]:
    """The factory's parameters; none for what does not say, such as functions written in C."""
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}


def _module_by_name(name: str) -> ModuleType:
    with _told(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            raise UserError(
                f"no installed package has a module '{name}' (for a file, write file.py:factory)"
            ) from error


def module_of_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own, with its folder importable while it runs.

    >>> module_of_file(Path("nets/mine.py"))

    `UserError` where there is none, or where it raises, with the place in one line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of the Python file as file.py:factory")
    name = f"postgrad_factory_{path.stem}_{sha256(path)[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UserError(f"{path} cannot be read as a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # so that the classes of the file can be pickled in this process
    try:
        with _told(str(path)), _importable(path.resolve().parent):
            found.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, as Python does for a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _told(spec: str) -> Iterator[None]:
    """Turn what the user's own code raises into one line with its place."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name} line {place.lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{Path(error.filename).name} line {error.lineno}"
        raise UserError(f"{spec} failed: {type(error).__name__}: {error} ({where})") from error
