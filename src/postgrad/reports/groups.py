"""Which arms share a chart, with which colours and dashes: all while they are few, else one method's at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from postgrad.reports.schema import Arm
from postgrad.reports.words import anchor, arm_label

TOGETHER = 8
"""As many lines as an eye can follow in one chart."""

_HUES = 6
_METHOD_DASHES = (0, 1, 2, 6, 7, 3, 4)
_CONTROL_DASHES = (3, 4, 5, 6, 7, 1, 2)


@dataclass(frozen=True)
class Group:
    """Arms that share a chart; `styles` are classes of the style sheet by arm."""

    label: str
    anchor: str
    arms: tuple[Arm, ...]
    styles: dict[str, str]


def groups(arms: Sequence[Arm]) -> list[Group]:
    """Up to eight arms together; of more, each method with the base and its controls, then what is left over."""
    if len(arms) <= TOGETHER:
        return [_group("All arms", arms)]
    return [_group(label, members) for label, members in _families(arms)]


def _families(arms: Sequence[Arm]) -> Iterator[tuple[str, list[Arm]]]:
    base = [arm for arm in arms if arm.kind == "base"][:1]
    shown = {arm.name for arm in base}
    for method in (arm for arm in arms if arm.kind == "method"):
        controls = [arm for arm in arms if method.name in arm.control_for]
        shown |= {arm.name for arm in (method, *controls)}
        yield from _chunks(arm_label(method), [*base, method], controls)
    if left := [arm for arm in arms if arm.name not in shown]:
        yield from _chunks("Other arms", base, left)


def _chunks(label: str, always: list[Arm], arms: list[Arm]) -> Iterator[tuple[str, list[Arm]]]:
    room = TOGETHER - len(always)
    parts = [arms[i : i + room] for i in range(0, len(arms), room)] or [[]]
    for number, part in enumerate(parts, start=1):
        yield (label if len(parts) == 1 else f"{label}, {number} of {len(parts)}"), [*always, *part]


def _group(label: str, arms: Sequence[Arm]) -> Group:
    return Group(label, anchor("group", label), tuple(arms), styles(arms))


def styles(arms: Sequence[Arm]) -> dict[str, str]:
    """A class for each arm: its kind, which sets the weight of its line, a hue and a dash, which no other arm shares.

    The base is black; methods come first and so take the first hue and no dash.
    """
    result = {arm.name: "base" for arm in arms if arm.kind == "base"}
    hue = 0
    for kind, dashes in (("method", _METHOD_DASHES), ("control", _CONTROL_DASHES)):
        for i, arm in enumerate(arm for arm in arms if arm.kind == kind):
            result[arm.name] = f"{kind} hue-{hue % _HUES} dash-{dashes[i % len(dashes)]}"
            hue += 1
    return result


def shown_alone(arms: Sequence[Arm], names: Sequence[str], *, methods: int = 5) -> list[Arm]:
    """The few arms that get a diagram of their own, of those with these names: the base, the first methods, a control.

    The control is the most accurate one.
    """
    known = [arm for arm in arms if arm.name in names]
    controls = [arm for arm in known if arm.kind == "control"]
    best = max(controls, key=lambda arm: arm.metrics["accuracy"].mean, default=None)
    of_kind = [arm for arm in known if arm.kind == "base"][:1] + [arm for arm in known if arm.kind == "method"][
        :methods
    ]
    return [*of_kind, *([best] if best else [])]
