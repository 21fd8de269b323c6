"""postgrad's side: GradNet's own code, driven through its public methods."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradient_benchmark.setting import HIDDEN, LEARNING_RATE, SELECT, Batch, Setting
from gradient_benchmark.timing import exhaust
from postgrad.gradients.engine import Labels
from postgrad.gradients.space import GradientSpace
from postgrad.methods.gradnet import GradNet


class Postgrad:
    """The three kinds of work, by a fitted GradNet."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._trained: GradNet | None = None

    def bare(self, batch: Batch, labels: Labels) -> None:
        """Gradients alone, under one given label or "all"."""
        exhaust(bare_gradients(self.setting.gradnet.space_, batch.inputs, labels))

    def mean_logits(self, batch: Batch) -> Tensor:
        """GradNet's logits (N, C), averaged over all labels; takes the pixels as they are stored."""
        return torch.from_numpy(self.setting.gradnet.decision_function(batch.images))

    def train(self, batch: Batch, steps: int) -> float:
        """Seconds of one training step on the batch, by the training loop's own clock, preprocessing included."""
        self._trained = None
        gradnet = GradNet(
            self.setting.model,
            hidden=HIDDEN,
            select=SELECT,
            lr=LEARNING_RATE,
            batch_size=len(batch.images),
            steps=steps,
            preprocess=self.setting.gradnet.preprocess_,
            device=str(self.setting.device),
        )
        gradnet.fit(batch.images, batch.truth.cpu())
        gradnet.head_.zero_grad()
        self._trained = gradnet
        return gradnet.history_.wall_seconds / steps


def bare_gradients(space: GradientSpace, inputs: Tensor, labels: Labels) -> Iterator[list[Tensor]]:
    """The engine's gradients [(rows, numel), …], in the chunks that GradNet takes."""
    chunk = space.images_per_chunk(labels)
    for start in range(0, len(inputs), chunk):
        part = slice(start, start + chunk)
        yield [rows for _, rows in space.engine.gradients(inputs[part], labels if labels == "all" else labels[part])]
