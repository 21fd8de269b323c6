"""The work that follows the gradients, in plain torch: what a user of the peers would write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradient_benchmark.peers import Part
from gradient_benchmark.setting import LEARNING_RATE, SELECT
from postgrad.gradients.select import percentile_rank
from postgrad.methods.gradnet import GradNet

Threshold = Callable[[Tensor, int], Tensor]


def by_topk(magnitudes: Tensor, rank: int) -> Tensor:
    """The `rank`-th smallest (from 0) of each row (R, P), as (R, 1)."""
    return magnitudes.topk(magnitudes.shape[1] - rank, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def by_kthvalue(magnitudes: Tensor, rank: int) -> Tensor:
    """The same by selection."""
    return magnitudes.kthvalue(rank + 1, dim=1, keepdim=True).values


THRESHOLDS: dict[str, Threshold] = {"topk": by_topk, "kthvalue": by_kthvalue}


class PlainGradNet(nn.Module):
    """Selection of the top 15 % of each row and layer, scale+power, and dense layers, with a GradNet's numbers."""

    def __init__(self, gradnet: GradNet, threshold: str) -> None:
        super().__init__()
        head = gradnet.head_.state_dict()
        statistics = gradnet.space_.statistics()
        names = [block.name for block in gradnet.space_.blocks]
        self.threshold = THRESHOLDS[threshold]
        self.offsets = [statistics[f"{name}.offset"] for name in names]
        self.widths = [statistics[f"{name}.width"] for name in names]
        self.hidden = nn.ModuleList(_linear(head, f"hidden.{number}.0") for number in range(len(names)))
        self.output = _linear(head, "output")
        self.optimizer = torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        """Logits (R, C) of selected and normalised gradients [(R, P), …]."""
        activations = [F.relu(layer(rows)) for layer, rows in zip(self.hidden, gradients, strict=True)]
        return self.output(torch.cat(activations, dim=1))

    @torch.no_grad()
    def features(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Selection and scale+power of gradients [(R, P), …]."""
        return [
            self._select_and_normalise(rows, offset, width)
            for rows, offset, width in zip(gradients, self.offsets, self.widths, strict=True)
        ]

    def _select_and_normalise(self, rows: Tensor, offset: Tensor, width: Tensor) -> Tensor:
        magnitudes = rows.abs()
        kept = magnitudes > self.threshold(magnitudes, percentile_rank(rows.shape[1], SELECT))
        scaled = (rows - offset).div_(width)
        return scaled.abs().sqrt_().copysign_(scaled).mul_(kept)

    def mean_logits(self, parts: Iterable[Part], images: int) -> Tensor:
        """Logits (N, C), averaged over the labels of all parts of a batch."""
        classes = self.output.out_features
        total = self.output.weight.new_zeros(images, classes)
        for part, gradients in parts:
            rows = self.features([block.flatten(0, 1) for block in gradients])
            with torch.no_grad():  # not around the loop: the parts are made in it, by autograd
                total[part] += self(rows).view(-1, gradients[0].shape[1], classes).sum(dim=1)
        return total / classes

    def train_step(self, gradients: Sequence[Tensor], truth: Tensor) -> None:
        """One step of SGD on gradients under one label each; the true labels are the targets."""
        F.cross_entropy(self(self.features(gradients)), truth).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _linear(state: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
