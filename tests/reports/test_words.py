"""Numbers as people read them."""

from __future__ import annotations

import pytest

from postgrad.reports import words
from postgrad.reports.schema import Arm


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.041, "4.1 points"), (-0.012, "1.2 points"), (0.01, "1.0 point"), (0.0004, "0.04 points"), (0.0, "0.0 points")],
)
def test_points(value: float, expected: str) -> None:
    assert words.points(value) == expected


def test_signed_points_have_a_real_minus() -> None:
    assert words.points(-0.041, sign=True) == "−4.1 points"
    assert words.points(0.003, sign=True) == "+0.3 points"


@pytest.mark.parametrize(
    ("p", "expected"), [(0.0, "p < 0.001"), (0.0034, "p = 0.003"), (0.0499, "p = 0.050"), (0.412, "p = 0.41")]
)
def test_p_values(p: float, expected: str) -> None:
    assert words.p_value(p) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(1331.2, "1,331 s"), (12.34, "12.3 s"), (0.42, "0.42 s"), (0.0213, "0.021 s"), (None, "–")]
)
def test_seconds(value: float | None, expected: str) -> None:
    assert words.seconds(value).replace("\u00a0", " ") == expected


def test_counts_passes_and_percentages() -> None:
    assert words.count(130240) == "130,240"
    assert words.passes(1) == "1 pass"
    assert words.passes(11.0) == "11 passes"
    assert words.percent(0.94166).replace("\u00a0", " ") == "94.17 %"
    assert words.interval((0.919, 0.9639), scale=100) == "91.90 to 96.39"
    assert words.interval(None) == "–"


def test_names_of_arms() -> None:
    def arm(name: str, kind: str, **extra: object) -> Arm:
        return Arm.model_validate({"name": name, "kind": kind, "metrics": {}, "cost": {}, **extra})

    assert words.arm_name(arm("gradnet", "method", method="gradnet")) == "GradNet"
    assert words.arm_name(arm("base", "base")) == "the base"
    assert words.arm_label(arm("base", "base")) == "Base"
    assert words.arm_label(arm("control-finetune", "control")) == "Fine-tuning"
    assert words.arm_label(arm("control-features", "control")) == "MLP on the features"
    assert words.arm_name(arm("mine", "control", title="my control")) == "my control"
    titled = arm("control-finetune", "control", title="Base, fine-tuned")
    assert (words.arm_name(titled), words.arm_label(titled)) == ("fine-tuning", "Base, fine-tuned")
    assert words.arm_name(arm("something", "control")) == "something"
    variant = arm("gradnet-wide", "method", method="gradnet", title="gradnet-wide")
    assert words.arm_label(variant) == "GradNet (gradnet-wide)"
    own = arm("control-finetune-gradnet-wide", "control", control_for=["gradnet-wide"])
    assert (words.arm_name(own), words.arm_label(own)) == (
        "fine-tuning for gradnet-wide",
        "Fine-tuning for gradnet-wide",
    )
    titled = own.model_copy(update={"title": own.name})
    assert words.arm_label(titled) == "Fine-tuning for gradnet-wide"


def test_anchors_are_plain_and_metrics_have_names() -> None:
    assert words.anchor("arm", "my arm (2)") == "arm-my-arm-2"
    assert words.metric_name("ece_scaled") == "ECE, scaled"
    assert words.metric_name("balanced_accuracy") == "Balanced accuracy"
    assert words.metric_name("something_new") == "Something new"
    assert (words.is_share("top5_accuracy"), words.is_share("nll")) == (True, False)
    assert words.difference("nll", -0.0312) == "−0.0312"
    assert words.difference("accuracy", 0.012) == "+1.2 points"


def test_large_counts_are_short() -> None:
    written = [words.large(value).replace("\u00a0", " ") for value in (None, 812.0, 24_100.0, 3.06e6, 1.2e9)]
    assert written == ["–", "812", "24.1 thousand", "3.06 million", "1.2 billion"]
