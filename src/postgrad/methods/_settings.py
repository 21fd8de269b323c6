"""The settings of an estimator checked against the types that its constructor declares."""

from __future__ import annotations

import typing
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from sklearn.base import BaseEstimator

from postgrad.errors import UserError, unknown_name


def check_settings(estimator: BaseEstimator) -> None:
    """Refuse a setting of the wrong type in one line; the estimator keeps its settings as they are.

    >>> check_settings(GradNet(model, select="a"))
    UserError: select: should be a valid number or None, got 'a'

    A number in quotes is no number here. numpy's numbers and arrays count as Python's numbers and lists.
    """
    hints = typing.get_type_hints(type(estimator).__init__)
    for name, value in estimator.get_params(deep=False).items():
        if name != "model":
            _check(name, hints[name], value.tolist() if isinstance(value, np.generic | np.ndarray) else value)


def _check(name: str, kind: Any, value: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        if typing.get_origin(kind) is typing.Literal and isinstance(value, str):
            raise unknown_name(name, value, typing.get_args(kind)) from error
        wanted = [each["msg"].removeprefix("Input should be ").partition(",")[0] for each in error.errors()]
        wanted = ["a list" if "Sequence" in each or "iterable" in each else each for each in wanted]
        if type(None) in typing.get_args(kind):
            wanted.append("None")
        raise UserError(f"{name}: should be {' or '.join(dict.fromkeys(wanted))}, got {value!r}") from error
