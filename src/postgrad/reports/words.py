"""Numbers and names as people read them: percentages, points, p values, seconds, and the arms' plain names."""

from __future__ import annotations

import re

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
    "control-same-time": "plain training for the same time",
    "control-from-scratch": "the same architecture from scratch",
    "control-random": "random mutations",
    "control-stacking": "stacking",
}


def arm_name(arm: Arm) -> str:
    """The arm inside a sentence: "the base", "fine-tuning", "GradNet"."""
    if arm.method in METHODS:
        title = METHODS[arm.method].title.partition(":")[0]
        # A study may hold one method several times, with other options each: then their own names tell them apart.
        return title if arm.name == arm.method else f"{title} ({arm.name})"
    plain = arm.name.removesuffix(f"-{arm.control_for[0]}") if len(arm.control_for) == 1 else arm.name
    if plain in _ARM_NAMES:
        return _ARM_NAMES[plain] if plain == arm.name else f"{_ARM_NAMES[plain]} for {arm.control_for[0]}"
    return arm.title or arm.name


def arm_label(arm: Arm) -> str:
    """The arm as a label: its own title, or "Base", "Fine-tuning", "GradNet"."""
    name = arm_name(arm) if arm.kind == "method" or arm.title in (None, arm.name) else str(arm.title)
    name = name.removeprefix("the ").removeprefix("an ")
    return name[:1].upper() + name[1:]


def anchor(kind: str, name: str) -> str:
    """A stable id on the page: "arm-control-finetune"."""
    return f"{kind}-{re.sub('[^A-Za-z0-9_.-]+', '-', name).strip('-')}"


METRICS = {
    "accuracy": "Accuracy",
    "train_accuracy": "Accuracy on training images",
    "top5_accuracy": "Top-5 accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "ece_equal_mass": "ECE, equal mass",
    "brier": "Brier",
    "aurc": "AURC",
}


def metric_name(key: str) -> str:
    """A metric as a heading: "NLL", "ECE, scaled"."""
    plain = key.removesuffix("_scaled")
    name = METRICS.get(plain, plain.replace("_", " ").capitalize())
    return name if plain == key else f"{name}, scaled"


def is_share(metric: str) -> bool:
    """Whether a metric is written in per cent."""
    return metric.endswith("accuracy")


def difference(metric: str, value: float) -> str:
    """A difference of two arms: points for shares, a plain signed number for the rest."""
    return points(value, sign=True) if is_share(metric) else _signed_minus(f"{value:+.4f}")


def percent(share: float) -> str:
    """A share as a percentage with two decimals: 94.17 %."""
    return f"{100 * share:.2f}{_SPACE}%"


def share_interval(ends: tuple[float, float] | None) -> str:
    """Both ends of an interval of shares, without the sign of per cent: 91.90 to 96.39."""
    return interval(ends, scale=100)


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


def large(value: float | None) -> str:
    """A large count in three digits: 812, 24.1 thousand, 3.06 million, 1.2 billion."""
    if value is None:
        return MISSING
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{_SPACE}{unit}"
    return f"{value:,.0f}"


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
