"""Every setting of a mutation search, checked, and written to and read from YAML. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from postgrad.studies.arm_config import Names
from postgrad.studies.config import Duration, RunConfig, UserPath
from postgrad.studies.study_config import Claim

BUDGETS = ("budget", "individuals", "multiply_adds")
"""What a search ends by, of which it has one."""

BEST = "best"
"""The arm of a search that is compared with its controls: the winner."""

DEFAULT_BUDGET = "10m"


def _paths(value: Any) -> Any:
    """Take one file as well as a list of files."""
    return value if isinstance(value, (list, tuple)) else (value,)


class SearchConfig(RunConfig):
    """What `postgrad search` is told.

    >>> config = SearchConfig(data="cifar10", model="recipes/networks.py:small3", budget="15m")
    >>> config.save("config.yaml")
    >>> SearchConfig.load("config.yaml") == config
    True

    One of `budget` (wall-clock time of the search, as in 90s, 10m or 1.5h; the controls come after it), `individuals`
    (how many are trained, the base aside) and `multiply_adds` (of all training together) says how long; 10 minutes
    where none is given. What is being trained when the budget is used up is still finished.

    `training` holds fields of `postgrad.training.Recipe` for each child, by default one epoch of SGD with momentum at
    .01; `base_epochs` is how long a base without weights of its own is trained in the same way. `preset` says how
    probable each mutation is, `mutations` which there are (default: the preset's), `mutation_files` are Python files
    that register further ones. With `genes` the regularisation of children mutates too. `max_parameters` bounds their
    size, `max_multiply_adds` what one of them takes for an image. `claims` are judged on a page of the ledger.
    """

    out: UserPath = Path("runs/search")
    seed: Annotated[int, Field(ge=0)] = 0
    preset: str = "seed"
    mutations: Names | None = None
    mutation_files: Annotated[tuple[UserPath, ...], BeforeValidator(_paths)] = ()
    population: PositiveInt = 8
    tournament: PositiveInt = 2
    objective: Literal["accuracy", "pareto"] = "accuracy"
    budget: Duration | None = None
    individuals: PositiveInt | None = None
    multiply_adds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    training: dict[str, Any] = Field(default={})
    base_epochs: float = Field(default=3, gt=0, allow_inf_nan=False)
    genes: bool = True
    max_parameters: PositiveInt | None = None
    max_multiply_adds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _ten_minutes(cls, settings: Any) -> Any:
        if isinstance(settings, Mapping) and all(settings.get(name) is None for name in BUDGETS):
            return {**settings, "budget": DEFAULT_BUDGET}
        return settings

    @field_validator("training")
    @classmethod
    def _of_fixed_length(cls, training: dict[str, Any]) -> dict[str, Any]:
        for name in ("budget", "stop_accuracy"):
            if training.get(name) is not None:
                raise ValueError(f"{name}: a child is trained for a fixed length; give epochs or steps")
        return training

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(BUDGETS)}, got {' and '.join(given)}")
        return self

    @field_validator("claims")
    @classmethod
    def _of_the_best(cls, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        for claim in claims:
            if claim.arm not in (None, BEST):
                raise ValueError(f"claim '{claim.claim}': a search proves its arm {BEST} alone, not {claim.arm}")
        return claims

    def command(self) -> str:
        """The command line that asks for this."""
        return "postgrad search --recipe config.yaml"
