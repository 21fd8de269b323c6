"""Calls of growth operators in words."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from postgrad.errors import UserError
from postgrad.growth.words import OPERATORS, is_multiple, parse_operation, parse_stage, parse_stages


@pytest.mark.parametrize(
    ("word", "options"),
    [
        ("widen:layer=layer*.conv1,to=1.5x", {"layer": "layer*.conv1", "to": "1.5x"}),
        ("widen:layer=*.1,to=96", {"layer": "*.1", "to": 96}),
        ("deepen:after=1.10", {"after": "1.10"}),
        ("widen:layer=0,to=96,seed=3", {"layer": "0", "to": 96, "seed": 3}),
        ("grow_kernel:layer=conv1,to=3+7", {"layer": "conv1", "to": (3, 7)}),
        ("insert_dropout:after=layer2,p=.1", {"after": "layer2", "p": 0.1}),
        ("add_skip:source=1,target=layer3", {"source": "1", "target": "layer3"}),
    ],
)
def test_a_word_is_read_and_written_again(word: str, options: dict[str, Any]) -> None:
    operation = parse_operation(word)
    assert operation.options == options
    assert parse_operation(str(operation)) == operation
    assert operation.checked().options == options


def test_every_operator_can_be_loaded_and_has_its_places() -> None:
    for name, operator in OPERATORS.items():
        function = operator.load()
        assert function.__name__ == name
        assert set(operator.places) < set(function.__annotations__)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("widn:layer=a,to=1", "unknown growth operator 'widn': did you mean 'widen'"),
        ("widen", "layer and to is missing; write widen:layer=…,to=…"),
        ("widen:to=9", "layer is missing"),
        ("widen:layer=a,too=9", "unknown option of widen 'too': did you mean 'to'"),
        ("widen:layer=a,to=x", "a multiple above 1 such as 1.5x, got 'x'"),
        ("widen:layer=a,to=1x", "a multiple above 1"),
        ("widen:layer=a,to=9,init=fanot", "widen:init: should be 'replicate'"),
        ("widen:layer=a,to=9,optimizer=sgd", "unknown option of widen 'optimizer'"),
        ("deepen:layer3", "expected key=value pairs"),
        ("group_layer:layer=a,groups=many", "group_layer:groups: should be a valid integer"),
    ],
)
def test_mistakes_are_told_in_one_line(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_operation(word).checked()


def test_stages_are_read_in_their_order() -> None:
    read = parse_stages({"5": "deepen:after=b", 3: ["widen:layer=a,to=9", "deepen:after=a"]})
    assert {epoch: [str(each) for each in calls] for epoch, calls in read.items()} == {
        3: ["widen:layer=a,to=9", "deepen:after=a"],
        5: ["deepen:after=b"],
    }
    assert list(read) == [3, 5]
    assert parse_stage("3:widen:layer=a,to=9") == (3, "widen:layer=a,to=9")
    with pytest.raises(UserError, match="begin with the epoch"):
        parse_stage("widen:layer=a,to=9")
    for epoch in (True, 0, -1, 1.5, "first"):
        with pytest.raises(UserError, match="expected a number of epochs, 1 or more"):
            parse_stages({epoch: ["deepen:after=a"]})


def test_sizes_that_are_multiples() -> None:
    assert [is_multiple(size) for size in (96, "96", None, "1.5x", "2×")] == [False, False, False, True, True]


def test_reading_words_imports_no_torch() -> None:
    code = "import sys, postgrad.growth.words; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
