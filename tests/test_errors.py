"""The user's mistake in one line, and the hint for a misspelt name."""

from __future__ import annotations

import pytest

from postgrad.errors import UserError, unknown_name


def test_a_message_is_one_line() -> None:
    assert str(UserError("no such\n   file\t here ")) == "no such file here"


def test_it_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^wrong$"):
        raise UserError("wrong")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gradnut", "unknown method 'gradnut': did you mean 'gradnet'? Known: gradnet, mapper"),
        ("zzz", "unknown method 'zzz'. Known: gradnet, mapper"),
        ("", "unknown method ''. Known: gradnet, mapper"),
    ],
)
def test_unknown_names_come_with_the_nearest_known_one(name: str, expected: str) -> None:
    assert str(unknown_name("method", name, ["mapper", "gradnet"])) == expected
