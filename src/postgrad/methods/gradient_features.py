"""GradientFeatures: the gradient space of a trained network as input for any scikit-learn classifier.

Idea. The same gradients that GradNet reads, selected and normalised in the same way, as rows of a sparse matrix.

Use. ``make_pipeline(GradientFeatures(model), SGDClassifier()).fit(images, labels)``.

Cost. One forward and one backward pass for each image and label read; at the published selection 15 % of the network's
weights are stored for each row.

When it fails. The label of an image is not known at prediction, so the gradient under its true label is not either:
features are made under the network's own prediction, or under all labels.

Paper. arXiv 1807.06630, as for GradNet. Licence or patent note: none known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from postgrad.data.inputs import image_tensor
from postgrad.data.preprocessing import Preprocessing
from postgrad.gradients.space import GradientSpace
from postgrad.methods._over_network import STATISTICS_BATCH, OverNetwork
from postgrad.methods._settings import check_settings
from postgrad.progress import progress


class GradientFeatures(OverNetwork, TransformerMixin, BaseEstimator):
    """Per-sample gradients of a trained network as a scikit-learn transformer: images in, a sparse matrix out.

    >>> features = GradientFeatures(model).fit(x)
    >>> features.transform(x_new).shape              # (N, numbers in the weights)
    (N, 130240)

    Parameters
    ----------
    model : nn.Module giving logits (N, C). It is copied and never changed.
    labels : "predicted" (one row of the network's weights for each image) or "all" (the C gradients side by side).
    select, scope, normalise, exponent, weight_decay, layers, project, coordinates, preprocess, device, memory : as for
        `GradNet`.

    `fit` takes images (N, C, H, W) only to gather the normalisation's statistics, under random labels as GradNet does.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        labels: Literal["predicted", "all"] = "predicted",
        select: float | None = 0.15,
        scope: Literal["layer", "global"] = "layer",
        normalise: str = "scale+power",
        exponent: float = 0.5,
        weight_decay: float = 0.0,
        layers: Sequence[str] | None = None,
        project: int | None = None,
        coordinates: int | None = None,
        preprocess: Preprocessing | None = None,
        random_state: int = 0,
        device: str | torch.device = "auto",
        memory: str = "2GB",
    ) -> None:
        self.model = model
        self.labels = labels
        self.select = select
        self.scope = scope
        self.normalise = normalise
        self.exponent = exponent
        self.weight_decay = weight_decay
        self.layers = layers
        self.project = project
        self.coordinates = coordinates
        self.preprocess = preprocess
        self.random_state = random_state
        self.device = device
        self.memory = memory

    def fit(self, x: Any, y: Any = None) -> GradientFeatures:
        """Gather the statistics of the normalisation over images (N, C, H, W)."""
        check_settings(self)
        images = image_tensor(x)
        space = self._open_space(images[:3])
        assert isinstance(space, GradientSpace)
        if space.needs_locating:
            space.locate(self._statistics_batches(images, space.num_classes))
        if space.needs_statistics:
            space.fit(self._statistics_batches(images, space.num_classes))
        self.space_ = space
        rows = self.space_.num_classes if self.labels == "all" else 1
        self.n_features_out_ = rows * sum(block.numel for block in self.space_.blocks)
        return self

    def transform(self, x: Any) -> sparse.csr_matrix:
        """The features (N, D) of images (N, C, H, W) as a sparse matrix."""
        check_is_fitted(self, "space_")
        images = image_tensor(x, allow_empty=True)
        self._check_shape(images)
        chunk = self.space_.images_per_chunk("all")
        parts = [sparse.csr_matrix((0, self.n_features_out_), dtype=np.float32)]
        with progress("gradient features", len(images), unit="images") as advance:
            for part in images.split(chunk) if len(images) else ():
                blocks = self.space_(self._inputs(part), self._labels(part))
                rows = torch.cat(blocks, dim=1).reshape(len(part), -1)
                parts.append(sparse.csr_matrix(rows.cpu().numpy()))
                advance(len(part))
        return sparse.vstack(parts, format="csr")

    def _labels(self, images: Tensor) -> Any:
        if self.labels == "all":
            return "all"
        with torch.no_grad():
            return self.model_(self._inputs(images)).argmax(dim=1)

    def _statistics_batches(self, images: Tensor, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.random_state)
        for part in images.split(STATISTICS_BATCH):
            yield self._inputs(part), torch.randint(classes, (len(part),), generator=generator).to(self.device_)
