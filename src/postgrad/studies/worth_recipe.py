"""The recipe of the study of what GradNet is worth, checked. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageConfig(_Checked):
    """A second-stage classifier: what it reads of the network below it, and how it is trained.

    >>> StageConfig()                                                       # GradNet as published
    >>> StageConfig(batch_size=250, optimizer_options={"momentum": 0.9}, schedule="cosine", rates=(0.01, 0.05))

    reads : "gradients", or "features": the activations before the last layer, with as many parameters as GradNet.
    labels : "random" (one assumed label for each image) or "all".
    hidden : sizes of the hidden blocks; None is `auto_hidden`'s 5, 100, 25 for three layers.
    select, normalise, exponent, layers : as for `GradientSpace`.
    statistics_images : how many images the normalisation is fitted to; None is all, as published.
    centred : the gradient under each label minus their mean over all labels.
    offset : the network's own log-probabilities are added to the logits, in training and prediction.
    batch_size : images in a step.
    rates : learning rates to try; of more than one, the best on validation images in short runs, within the time.
    """

    reads: Literal["gradients", "features"] = "gradients"
    labels: Literal["random", "all"] = "random"
    hidden: tuple[PositiveInt, ...] | None = None
    select: float | None = 0.15
    normalise: str = "scale+power"
    exponent: float = 0.5
    layers: tuple[str, ...] | None = None
    statistics_images: PositiveInt | None = None
    centred: bool = False
    offset: bool = False
    batch_size: PositiveInt = 25
    optimizer: str = "sgd"
    optimizer_options: dict[str, Any] = {}
    schedule: str = "constant"
    rates: tuple[PositiveFloat, ...] = Field(default=(0.01,), min_length=1)


class DistilConfig(_Checked):
    """How GradNet's answers train the network itself: a student that costs one pass an image.

    teacher_share : the part of the time in which GradNet is fitted; labelling and student have the rest.
    images : how many images GradNet labels; the others keep their own label alone.
    weight : of GradNet's probabilities in the target of an image that it labelled.
    """

    teacher_share: Share = 0.4
    images: PositiveInt = 5000
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5


class SettingConfig(_Checked):
    """One thing that the search tries.

    network : "base", or "finetuned": the base is fine-tuned on the method's images first, and GradNet fitted on
        gradients of networks that were fine-tuned without the image in question, and applied to those of the one that
        saw all.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    network: Literal["base", "finetuned"] = "base"
    distil: DistilConfig | None = None
    stage: StageConfig = StageConfig()


class CurveConfig(_Checked):
    """Accuracy against total CPU time. Times are process CPU seconds in all, tuning included.

    totals : budgets of training alone, on all the data at once, and on one half for half the time, then on the other.
    switches : pairs of (seconds of training on one half, seconds in all with GradNet on the other).
    """

    totals: tuple[PositiveFloat, ...]
    switches: tuple[tuple[PositiveFloat, PositiveFloat], ...]
    stage: StageConfig = StageConfig()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        late = [pair for pair in self.switches if pair[0] >= pair[1]]
        if late:
            raise ValueError(f"switches: the first of a pair must be the smaller, got {[list(pair) for pair in late]}")
        return self


class ConvergedConfig(_Checked):
    """What gradient space adds to a network trained to convergence on all the data.

    epochs, lr : of every network here: momentum .9, weight decay 5e-4, batches of 128, a cosine to zero.
    folds : networks trained without a fold each, for cross-fitting.
    held_back : the share of the data that is held back for the second stage.
    seconds : process CPU seconds of each second stage and of each control beside it.
    weights : of the second stage's log-probabilities in its sum with the network's; 0 is the network alone.
    """

    epochs: PositiveFloat = 50
    lr: PositiveFloat = 0.02
    folds: Annotated[int, Field(ge=2)] = 2
    held_back: Share = 0.1
    seconds: PositiveFloat = 240
    weights: tuple[Annotated[float, Field(ge=0)], ...] = (0, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2)
    stage: StageConfig = StageConfig()


class BeyondConfig(_Checked):
    """The search for a gradient-space classifier that beats every fair control.

    base_seconds : process CPU seconds of the base, on the first half.
    seconds : of each setting, with everything that it needs beside the base.
    finetune_seconds : of the network of settings with network "finetuned"; its cross-fit networks take as long again.
    """

    base_seconds: PositiveFloat
    seconds: PositiveFloat
    finetune_seconds: PositiveFloat
    settings: tuple[SettingConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        names = [setting.name for setting in self.settings]
        if len(set(names)) != len(names):
            raise ValueError(f"settings: each name may be there once, got {names}")
        if 2 * self.finetune_seconds >= self.seconds:
            raise ValueError(
                f"finetune_seconds: twice {self.finetune_seconds:g} must leave something of seconds, {self.seconds:g}"
            )
        return self


class WorthRecipe(_Checked):
    """All settings of the study; a part that is None cannot be asked for.

    validation_images : how many validation images choose between settings, spread evenly; None is all there are.
    """

    data: str = "cifar10"
    model: str = "seed-cnn"
    limit: PositiveInt | None = None
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    threads: PositiveInt = 1
    memory: str = "4GB"
    device: str = "auto"
    validation_images: PositiveInt | None = None
    curve: CurveConfig | None = None
    converged: ConvergedConfig | None = None
    beyond: BeyondConfig | None = None
