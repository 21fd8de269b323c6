"""How `--method` is read, and what the registry says of names it does not know."""

from __future__ import annotations

import subprocess
import sys

import pytest

from postgrad.errors import UserError
from postgrad.methods.registry import METHODS, check_options, get_method, parse_method, parse_settings


def test_name_alone_has_no_options() -> None:
    assert parse_method("gradnet") == ("gradnet", {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("-2", -2),
        ("5+100+25", (5, 100, 25)),
        ("1e+2", 100.0),
        ("scale+power", "scale+power"),
        ("auto", "auto"),
        ("true", True),
        ("null", None),
        ("[1,2]", [1, 2]),
        ("{momentum: 0.9, nesterov: true}", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_values_are_yaml_and_numbers_joined_by_plus_are_tuples(text: str, value: object) -> None:
    settings = parse_settings(f"first=1,key={text},last=x", source="test")
    assert settings == {"first": 1, "key": value, "last": "x"}
    assert type(settings["key"]) is type(value)


@pytest.mark.parametrize(
    "text", ["gradnet:epochs", "gradnet:=3", "gradnet:epochs=", "gradnet:a b=1", "gradnet:a=1,,b=2"]
)
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="key=value"):
        parse_method(text)


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="'epochs' is given twice"):
        parse_method("gradnet:epochs=1,epochs=2")


def test_value_that_yaml_cannot_read_is_refused() -> None:
    with pytest.raises(UserError, match="YAML"):
        parse_method("gradnet:hidden=[1")


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'gradnet'"):
        parse_method("gradnut:epochs=1")


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_can_be_loaded_and_is_complete(name: str) -> None:
    method = get_method(name)
    assert method.load().__name__ == method.target.partition(":")[2]
    assert all(vars(method).values())


def test_options_are_compared_with_what_the_class_takes() -> None:
    check_options("gradnet", {"epochs": 3, "hidden": (5, 100, 25)})
    with pytest.raises(UserError, match="unknown option of gradnet 'epoch': did you mean 'epochs'"):
        check_options("gradnet", {"epoch": 3})
    with pytest.raises(UserError, match="'model'"):
        check_options("gradnet", {"model": None})


def test_importing_the_registry_does_not_import_torch() -> None:
    code = "import sys, postgrad.methods.registry, postgrad.studies.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
