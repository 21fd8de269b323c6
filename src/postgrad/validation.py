"""From settings that a user wrote (YAML, flags) to a checked pydantic model, with one plain line for each mistake."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from postgrad.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class _NamesOnce(yaml.SafeLoader):
    """YAML that refuses a name which stands twice in a mapping; plain YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands there twice", key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping of names to values; an empty file is an empty mapping."""
    file = Path(path).expanduser()
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _NamesOnce)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{file}: expected lines of the form 'name: value', got {type(content).__name__}")
    return content


def validated(model: type[Model], settings: Mapping[str, Any], *, source: str) -> Model:
    """Make `model` from `settings`; what is wrong with them becomes one `UserError` that names `source` and each field.

    >>> validated(Recipe, {"epoch": 3}, source="recipe.yaml")
    UserError: recipe.yaml: unknown setting 'epoch': did you mean 'epochs'?
    """
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise UserError(f"{source}: {mistakes(model, error)}") from error


def mistakes(model: type[BaseModel], error: ValidationError) -> str:
    """All that pydantic found wrong, in one plain line."""
    return "; ".join(_sentence(model, item) for item in error.errors())


def _sentence(model: type[BaseModel], item: Any) -> str:
    """One mistake in words: the field, what it should be, what it is."""
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden" and len(item["loc"]) > 1:
        return f"unknown setting '{field}'"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, model.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(model.model_fields))}"
        return f"unknown setting '{field}': {hint}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "value_error":
        return f"{field}: {message}" if field else message
    if item["type"] == "missing":
        return f"{field}: missing"
    return f"{field}: should be {message.partition(',')[0]}, got {item['input']!r}"
