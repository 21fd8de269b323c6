"""The public names: all there, each importable, none imported before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import postgrad


@pytest.mark.parametrize("name", postgrad.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(postgrad, name).__name__ == name
    assert name in dir(postgrad)


def test_the_list_is_complete() -> None:
    assert set(postgrad.__all__) == set(postgrad._PUBLIC)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'postgrad' has no attribute 'gradnut'"):
        postgrad.gradnut  # noqa: B018, the access is the test


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, postgrad; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
