"""Which arms share a chart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from postgrad.reports.groups import TOGETHER, groups, shown_alone
from postgrad.reports.schema import Arm


def arms(methods: int, controls: int, strays: int = 0) -> list[Arm]:
    metric = {"mean": 0.5, "ci95": None, "ci_over": "images", "n_seeds": 1, "values": [0.5]}

    def arm(name: str, kind: str, control_for: list[str] | None = None) -> Arm:
        content = {"name": name, "kind": kind, "control_for": control_for or [], "metrics": {"accuracy": metric}}
        return Arm.model_validate(content | {"cost": {}})

    of_methods = [
        one
        for i in range(methods)
        for one in (arm(f"m{i}", "method"), *(arm(f"c{i}-{j}", "control", [f"m{i}"]) for j in range(controls)))
    ]
    return [arm("base", "base"), *of_methods, *(arm(f"stray{i}", "control") for i in range(strays))]


@given(methods=st.integers(0, 10), controls=st.integers(0, 12), strays=st.integers(0, 12))
def test_every_arm_is_shown_and_no_chart_has_too_many_or_two_alike(methods: int, controls: int, strays: int) -> None:
    made = arms(methods, controls, strays)
    found = groups(made)
    assert {arm.name for group in found for arm in group.arms} >= {arm.name for arm in made} - {"base"}
    assert len({group.anchor for group in found}) == len(found)
    for group in found:
        assert len(group.arms) <= TOGETHER
        assert len(set(group.styles.values())) == len(group.arms)


def test_few_arms_are_together_and_many_are_by_method() -> None:
    assert [group.label for group in groups(arms(1, 4))] == ["All arms"]
    found = groups(arms(3, 3))
    assert [group.label for group in found] == ["M0", "M1", "M2"]
    assert [arm.name for arm in found[1].arms] == ["base", "m1", "c1-0", "c1-1", "c1-2"]


def test_the_few_that_stand_alone_are_base_methods_and_one_control() -> None:
    made = arms(7, 2)
    assert [arm.name for arm in shown_alone(made, [arm.name for arm in made], methods=2)] == [
        "base",
        "m0",
        "m1",
        "c0-0",
    ]
    assert [arm.name for arm in shown_alone(made, ["m3"])] == ["m3"]
