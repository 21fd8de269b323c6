"""The verdict in a sentence, in every combination of better, worse and no difference."""

from __future__ import annotations

from typing import Any

import pytest

from postgrad.reports.schema import Results
from postgrad.reports.sentences import against, failed, headline, reach, recommendation, summary

METRIC = {"mean": 0.7, "ci95": None, "ci_over": "images", "n_seeds": 1, "values": [0.7]}
KINDS = {"base": "base", "gradnet": "method", "control-finetune": "control", "control-features": "control"}


Outcome = tuple[str, float, float | None, str]


def results(*outcomes: Outcome, seeds: int = 1, scope: str = "run", **extra: Any) -> Results:
    return Results.model_validate(
        {
            "command": "postgrad improve",
            "data": {"name": "digits", "n_train": 1, "n_validation": 1, "n_test": 360, "fingerprint": "0"},
            "seeds": list(range(seeds)),
            "arms": [
                {
                    "name": name,
                    "kind": kind,
                    "method": name if kind == "method" else None,
                    "metrics": {"accuracy": METRIC},
                    "cost": {},
                }
                for name, kind in KINDS.items()
            ],
            "verdicts": [
                {
                    "method": "gradnet",
                    "control": control,
                    "metric": "accuracy",
                    "difference": difference,
                    "ci95": None,
                    "p": p,
                    "test": "mcnemar" if scope == "run" else "paired-t",
                    "scope": scope,
                    "verdict": verdict,
                }
                for control, difference, p, verdict in outcomes
            ],
            **extra,
        }
    )


def sentence(*outcomes: Outcome, **extra: Any) -> str:
    made = results(*outcomes, **extra)
    return headline(made, made.arm("gradnet"))


BASE_BETTER = ("base", 0.041, 0.0001, "better")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (
            (BASE_BETTER, ("control-finetune", -0.012, 0.003, "worse"), ("control-features", 0.1, 0.0, "better")),
            "GradNet beats the base by 4.1 points (p < 0.001), but loses to fine-tuning by 1.2 points (p = 0.003).",
        ),
        (
            (BASE_BETTER, ("control-finetune", 0.012, 0.003, "better"), ("control-features", 0.1, 0.0, "better")),
            "GradNet beats the base by 4.1 points (p < 0.001), and beats each of its 2 controls, the nearest of them, "
            "fine-tuning, by 1.2 points (p = 0.003).",
        ),
        (
            (BASE_BETTER, ("control-finetune", 0.002, 0.61, "no difference"), ("control-features", 0.1, 0.0, "better")),
            "GradNet beats the base by 4.1 points (p < 0.001), but does not measurably differ from fine-tuning "
            "(+0.2 points, p = 0.61).",
        ),
        (
            (("base", -0.02, 0.01, "worse"), ("control-finetune", -0.05, 0.0, "worse")),
            "GradNet loses to the base by 2.0 points (p = 0.010), and loses to fine-tuning by 5.0 points (p < 0.001).",
        ),
        ((BASE_BETTER,), "GradNet beats the base by 4.1 points (p < 0.001)."),
        ((), "GradNet was not compared with another arm."),
    ],
)
def test_headline(outcomes: tuple[Any, ...], expected: str) -> None:
    assert sentence(*outcomes) == expected


def test_the_worst_of_two_losses_is_the_one_that_is_told() -> None:
    told = sentence(
        BASE_BETTER, ("control-finetune", -0.012, 0.003, "worse"), ("control-features", -0.03, 0.001, "worse")
    )
    assert told.endswith("but loses to an MLP on the features by 3.0 points (p = 0.001).")


def test_a_run_of_several_seeds_says_which_seed_it_is_about() -> None:
    assert sentence(BASE_BETTER, seeds=3).startswith("With seed 0, GradNet beats")
    assert sentence(BASE_BETTER, seeds=5, scope="method").startswith("GradNet beats")


def test_what_the_seeds_allow() -> None:
    assert reach(results()).startswith(
        "One seed: the p values speak for this run alone, by McNemar's exact test on its 360"
    )
    assert reach(results(seeds=3)).startswith("3 seeds: the p values speak for the first run alone")
    assert "five seeds" in reach(results(seeds=4))
    assert reach(results(seeds=5)).startswith("5 seeds: these verdicts are about the method")


def test_recommendation() -> None:
    assert recommendation(results()) is None
    assert recommendation(results(recommended="control-finetune")) == (
        "The arm that the validation images recommend is fine-tuning."
    )


def test_against_gives_the_mean_over_seeds_beside_the_first_seeds_verdict() -> None:
    made = results(BASE_BETTER, seeds=3)
    over_seeds = results(("base", 0.03, None, "too few seeds"), seeds=3, scope="method")
    both = made.model_copy(update={"verdicts": made.verdicts + over_seeds.verdicts})
    assert against(both, both.arm("base")) == [
        ("GradNet", "better", ["seed 0: +4.1 points, p < 0.001", "3 seeds: +3.0 points"])
    ]
    assert against(both, both.arm("control-finetune")) == []


def of_methods(*outcomes: dict[str, str], scope: str = "method") -> Results:
    """Methods m0, m1, … with the word of each comparison."""
    methods = [f"m{i}" for i in range(len(outcomes))]
    made = results(seeds=5).model_dump(by_alias=True)
    arm = made["arms"][1]
    made["arms"] = [a for a in made["arms"] if a["kind"] != "method"]
    made["arms"] += [arm | {"name": name, "method": None} for name in methods]
    made["verdicts"] = [
        {
            "method": method,
            "control": control,
            "metric": "accuracy",
            "difference": 0.02,
            "ci95": None,
            "p": None if word == "too few seeds" else 0.01,
            "test": "paired-t",
            "scope": scope,
            "verdict": word,
        }
        for method, words in zip(methods, outcomes, strict=True)
        for control, word in words.items()
    ]
    return Results.model_validate(made)


WON = {"base": "better", "control-finetune": "better"}


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([WON] * 3, "Of 3 methods, all beat the base and each of their controls."),
        ([WON, WON | {"control-finetune": "worse"}, {"base": "worse"}],
         "Of 3 methods, 2 beat the base, and of these 1 each of their controls as well."),
        ([WON | {"control-finetune": "too few seeds"}, {"base": "worse"}],
         "Of 2 methods, 1 beats the base, but none beats each of its controls as well."),
        ([{"base": "no difference"}, {"base": "too few seeds"}], "Of 2 methods, none measurably beats the base."),
    ],
)  # fmt: skip
def test_several_methods_in_one_sentence(outcomes: list[dict[str, str]], expected: str) -> None:
    assert summary(of_methods(*outcomes)) == expected


def test_too_few_seeds_are_said_and_are_no_gain() -> None:
    made = of_methods(WON | {"control-finetune": "too few seeds"})
    assert headline(made, made.arm("m0")) == (
        "m0 beats the base by 2.0 points (p = 0.010), "
        "but cannot be told from fine-tuning with so few seeds (+2.0 points, p not known)."
    )


def test_failures_of_one_reason_are_one_line() -> None:
    failures = [{"arm": "gradnet", "seed": seed, "reason": "diverged"} for seed in (3, 1)]
    failures.append({"arm": "base", "seed": 0, "reason": "killed"})
    assert failed(results(failures=failures)) == ["gradnet, seeds 1, 3: diverged", "base, seed 0: killed"]


def test_a_verdict_on_one_run_names_the_first_seed_that_both_have() -> None:
    made = results(BASE_BETTER, seeds=3, failures=[{"arm": "gradnet", "seed": 0, "reason": "diverged"}])
    values = made.arm("gradnet").metrics["accuracy"].model_copy(update={"values": [0.7, 0.7]})
    complete = values.model_copy(update={"values": [0.7, 0.7, 0.7]})
    arms = [
        arm.model_copy(update={"metrics": {"accuracy": values if arm.name == "gradnet" else complete}})
        for arm in made.arms
    ]
    made = made.model_copy(update={"arms": arms})
    assert headline(made, made.arm("gradnet")).startswith("With seed 1, GradNet beats the base")
