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

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from postgrad.data.inputs import image_tensor
from postgrad.data.preprocessing import Preprocessing
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.gradients.space import GradientSpace
from postgrad.progress import progress
from postgrad.units import parse_memory


class GradientFeatures(TransformerMixin, BaseEstimator):
    """Per-sample gradients of a trained network as a scikit-learn transformer: images in, a sparse matrix out.

    >>> features = GradientFeatures(model).fit(x)
    >>> features.transform(x_new).shape              # (N, numbers in the weights)
    (N, 130240)

    Parameters
    ----------
    model : nn.Module giving logits (N, C). It is copied and never changed.
    labels : "predicted" (one row of the network's weights for each image) or "all" (the C gradients side by side).
    select, scope, normalise, exponent, weight_decay, layers, preprocess, device, memory : as for `GradNet`.

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
        preprocess: Preprocessing | None = None,
        random_state: int = 0,
        device: str = "auto",
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
        self.preprocess = preprocess
        self.random_state = random_state
        self.device = device
        self.memory = memory

    def fit(self, x: Any, y: Any = None) -> GradientFeatures:
        """Gather the statistics of the normalisation over images (N, C, H, W)."""
        if self.labels not in ("predicted", "all"):
            raise UserError(f"labels: expected 'predicted' or 'all', got {self.labels!r}")
        images = image_tensor(x)
        self.image_shape_ = tuple(images.shape[1:])
        self.device_ = pick_device(self.device)
        self.model_ = deepcopy(self.model).to(self.device_).eval().requires_grad_(True)
        self.preprocess_ = self.preprocess or getattr(self.model, "preprocess", None) or Preprocessing()
        self.space_ = GradientSpace(
            self.model_,
            self._inputs(images[:3]),
            layers=self.layers,
            select=self.select,
            scope=self.scope,
            normalise=self.normalise,
            exponent=self.exponent,
            weight_decay=self.weight_decay,
            memory=parse_memory(self.memory),
        )
        if self.space_.needs_statistics:
            generator = torch.Generator().manual_seed(self.random_state)
            classes = self.space_.num_classes
            parts = images.split(100)
            self.space_.fit(
                (self._inputs(part), torch.randint(classes, (len(part),), generator=generator).to(self.device_))
                for part in parts
            )
        rows = self.space_.num_classes if self.labels == "all" else 1
        self.n_features_out_ = rows * sum(block.numel for block in self.space_.blocks)
        return self

    def transform(self, x: Any) -> sparse.csr_matrix:
        """The features (N, D) of images (N, C, H, W) as a sparse matrix."""
        check_is_fitted(self, "space_")
        images = image_tensor(x, allow_empty=True)
        if tuple(images.shape[1:]) != self.image_shape_:
            wanted = ", ".join(map(str, self.image_shape_))
            raise UserError(f"images: expected (N, {wanted}) as in fit, got {tuple(images.shape)}")
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

    def _inputs(self, images: Tensor) -> Tensor:
        return self.preprocess_(images.to(self.device_)).to(next(self.model_.parameters()).dtype)
