"""Numbers and names as people read them: percentages, points, p values, seconds, and the arms' plain names."""

from __future__ import annotations

from postgrad.methods.registry import METHODS
from postgrad.reports.schema import Arm

MISSING = "–"
_SPACE = "\u00a0"
"""Between a number and its unit, so that no line breaks there."""

_ARM_NAMES = {
    "base": "the base",
    "control-finetune": "fine-tuning",
    "control-features": "an MLP on the features",
    "control-more-data": "training on all the data",
    "control-same-price": "the best control at the same price",
}


def arm_name(arm: Arm) -> str:
    """The arm inside a sentence: "the base", "fine-tuning", "GradNet"."""
    if arm.method in METHODS:
        return METHODS[arm.method].title.partition(":")[0]
    return _ARM_NAMES.get(arm.name) or arm.title or arm.name


def arm_label(arm: Arm) -> str:
    """The arm as a label: its own title, or "Base", "Fine-tuning", "GradNet"."""
    name = arm.title or arm_name(arm).removeprefix("the ").removeprefix("an ")
    return name[:1].upper() + name[1:]


def percent(share: float) -> str:
    """A share as a percentage with two decimals: 94.17 %."""
    return f"{100 * share:.2f}{_SPACE}%"


def interval(ends: tuple[float, float] | None, *, scale: float = 1.0, decimals: int = 2) -> str:
    """Both ends of an interval: 91.9 to 96.4."""
    if ends is None:
        return MISSING
    return " to ".join(_signed_minus(f"{scale * end:.{decimals}f}") for end in ends)


def decimal(value: float, decimals: int = 3) -> str:
    """A plain decimal number."""
    return _signed_minus(f"{value:.{decimals}f}")


def points(difference: float, *, sign: bool = False) -> str:
    """A difference of shares in percentage points: 4.1 points; two decimals below a tenth of a point."""
    value = 100 * difference
    decimals = 1 if abs(value) >= 0.095 or value == 0 else 2
    number = f"{value:+.{decimals}f}" if sign else f"{abs(value):.{decimals}f}"
    return f"{_signed_minus(number)} {'point' if number.lstrip('+-') == '1.0' else 'points'}"


def p_value(p: float) -> str:
    """A p value: p < 0.001, p = 0.003, p = 0.41."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.{3 if p < 0.1 else 2}f}"


def count(number: float | None) -> str:
    """A whole number with separators: 130,240."""
    return MISSING if number is None else f"{number:,.0f}"


def seconds(value: float | None) -> str:
    """A time: 0.42 s, 12.3 s, 1,331 s."""
    return MISSING if value is None else f"{_three_digits(value)}{_SPACE}s"


def milliseconds(value: float | None) -> str:
    """A time per image: 0.021 ms, 16.4 ms."""
    return MISSING if value is None else f"{_three_digits(value)}{_SPACE}ms"


def megabytes(value: float | None) -> str:
    """An amount of memory: 212 MB."""
    return MISSING if value is None else f"{_three_digits(value)}{_SPACE}MB"


def passes(number: float | None) -> str:
    """How often a network runs for one image: 1 pass, 11 passes."""
    return MISSING if number is None else f"{number:,.4g} {'pass' if number == 1 else 'passes'}"


def plural(number: int, noun: str) -> str:
    """A number and its noun: 1 seed, 3 seeds."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _three_digits(value: float) -> str:
    """Three digits where that says enough, all of them before the point otherwise."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def _signed_minus(number: str) -> str:
    return number.replace("-", "−")
