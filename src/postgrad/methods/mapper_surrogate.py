"""A differentiable stand-in for a Mapper classifier, to attack it by gradients.

Idea. Which neighbours a new point has, and which intervals, changes in jumps. Between the jumps the weights of the
neighbours are smooth in the point, so the classifier has a gradient almost everywhere; with more neighbours and softer
weights it also points past the next jumps. What is found against the stand-in is then tried on the classifier itself.

Use. ``measure_attack(clf, images, labels, attack="autoattack", epsilon=.1, source=soft_mapper(clf, neighbours=100,
temperature=.5))``.

Cost. Each forward pass measures the distances to all training points, and keeps them for the backward pass.

Paper. None; "immune to any gradient based attack" is the claim of arXiv 1910.08103 that it tests.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods._mapper_latent import OF_A_NETWORK, Data
from postgrad.methods.mapper import MapperClassifier
from postgrad.models.network import NetworkClassifier


class SoftMapper(nn.Module):
    """The logits (N, C) of images (N, C, H, W) in [0, 1] as a `MapperClassifier` makes them, with a gradient.

    Args:
        classifier: a fitted one, on images, with `head="mlp"` and coordinates that need no network.
        neighbours: how many are averaged in each coordinate; None takes as many as the classifier.
        temperature: weights are softmax(−distance/temperature); None takes the classifier's 1/(distance + 1e-5), and
            with its number of neighbours the logits are the classifier's own.
    """

    points: Tensor
    first: Tensor
    last: Tensor
    membership: Tensor
    coordinate: Tensor

    def __init__(
        self, classifier: MapperClassifier, *, neighbours: int | None = None, temperature: float | None = None
    ) -> None:
        super().__init__()
        if not isinstance(classifier.head_, nn.Sequential) or classifier.image_shape_ is None:
            raise UserError("soft_mapper takes a MapperClassifier that was fitted on images with head='mlp'")
        if classifier.latent in OF_A_NETWORK or classifier.rows == "hard":
            raise UserError("soft_mapper takes coordinates that need no network, and rows that are not 'hard'")
        committee = classifier.transformer_.committee_
        self.transformer = classifier.transformer_
        self.head = classifier.head_
        self.neighbours = min(neighbours or classifier.n_neighbors, len(committee.points))
        self.temperature = temperature
        self.register_buffer("points", torch.from_numpy(committee.points.whole()).float())
        self.register_buffer("first", torch.from_numpy(committee.first.astype(np.int64)))
        self.register_buffer("last", torch.from_numpy(committee.last.astype(np.int64)))
        self.register_buffer("membership", torch.from_numpy(committee.membership().toarray()))
        self.register_buffer("coordinate", torch.from_numpy(committee.coordinate))

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        values = self.transformer.latent_(Data(rows.detach().cpu().numpy()))
        # A product is faster, and exact enough where weights are soft; equal weights need equal distances.
        how = "donot_use_mm_for_euclid_dist" if self.temperature is None else "use_mm_for_euclid_dist"
        distances = torch.cdist(rows, self.points, compute_mode=how)
        low, high = self.transformer.committee_.asked(values, self.transformer.margin)
        parts = [self._means(c, distances, low[:, c], high[:, c]) for c in range(values.shape[1])]
        return self.head(torch.cat(parts, dim=1))

    def _means(self, c: int, distances: Tensor, low: np.ndarray, high: np.ndarray) -> Tensor:
        """The mean rows (N, nodes) of one coordinate."""
        low_end, high_end = (torch.from_numpy(end).to(distances.device)[:, None] for end in (low, high))
        outside = (self.first[:, c] > high_end) | (self.last[:, c] < low_end)
        near, places = distances.masked_fill(outside, torch.inf).topk(self.neighbours, largest=False)
        if self.temperature is None:
            weights = 1 / (near + 1e-5)
            weights = weights / weights.sum(dim=1, keepdim=True)
        else:
            weights = (-near / self.temperature).softmax(dim=1)
        nodes = (self.coordinate == c).nonzero().squeeze(1)
        return torch.einsum("nk,nkm->nm", weights, self.membership[:, nodes][places])


def soft_mapper(
    classifier: MapperClassifier, *, neighbours: int | None = None, temperature: float | None = None
) -> NetworkClassifier:
    """The stand-in as a classifier that gradients go through; see `SoftMapper`.

    >>> source = soft_mapper(clf, neighbours=100, temperature=0.5)
    >>> measure_attack(clf, images, labels, attack="autoattack", epsilon=0.1, source=source)
    """
    network = SoftMapper(classifier, neighbours=neighbours, temperature=temperature)
    names = classifier.class_names or tuple(map(str, classifier.classes_))
    return NetworkClassifier(network, preprocess=Preprocessing(), class_names=names, device="cpu")
