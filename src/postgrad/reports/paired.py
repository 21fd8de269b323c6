"""Which seeds an arm has: failures may have taken some, and comparisons are over those that both arms have."""

from __future__ import annotations

from postgrad.reports.schema import Arm, Results, Verdict


def accuracy_by_seed(results: Results, arm: Arm) -> dict[int, float]:
    """The accuracy at each seed that the arm has; empty where the failures do not say which seeds it lacks."""
    values = arm.metrics["accuracy"].values
    failed = {failure.seed for failure in results.failures if failure.arm == arm.name}
    for seeds in (results.seeds, [seed for seed in results.seeds if seed not in failed]):
        if len(seeds) == len(values):
            return dict(zip(seeds, values, strict=True))
    return {}


def seed_of(results: Results, verdict: Verdict) -> int:
    """The seed that a verdict on one run is about: the first that both arms have."""
    method, control = (accuracy_by_seed(results, results.arm(name)) for name in (verdict.method, verdict.control))
    return next((seed for seed in method if seed in control), results.seeds[0])
