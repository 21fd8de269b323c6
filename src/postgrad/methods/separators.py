"""Separators: explicit linear and quadratic classifiers on projected gradients, which GradNet is said to stand for.

Idea. "A quadratic separator on the gradient space can outperform the original network": a separator that is quadratic
by its very form, logit_c = w_cᵀz + Σ_r s_cr (u_crᵀz)² + b_c, and a linear one, on gradients z brought to fewer numbers
by a random projection; scikit-learn's own classifiers on the same numbers stand beside them.

Use. ``z = GradientProjection(GradientFeatures(model, labels="all")).fit_transform(images)``, then
``Separator("quadratic").fit(z, labels)``.

Training. As GradNet: for each image and step one random assumed label, the target the true one. Prediction: the mean of
the logits under all assumed labels.

Cost. C gradients for each image, once, since the projection learns nothing; then (1 + rank)·C numbers for each
projected coordinate.

When it fails. A random projection keeps lengths and angles, not single entries: what only few entries know is lost
where there are fewer numbers than such entries. Images that the network has already fitted have other gradients than
new ones.

Paper. Hypothesis: arXiv 1807.06630. Projection: Li, Hastie, Church, "Very sparse random projections", KDD 2006, as in
scikit-learn. Licence or patent note: none known.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import DataDimensionalityWarning
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import SparseRandomProjection
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.data.inputs import image_tensor
from postgrad.errors import UserError, unknown_name
from postgrad.methods.gradient_features import GradientFeatures
from postgrad.progress import progress
from postgrad.training import Recipe, Stopwatch, train

FORMS = ("linear", "quadratic")
PREDICT_ROWS = 8192


class SeparatorHead(nn.Module):
    """Logits (N, C) of vectors z (N, D): w_cᵀz + b_c, and for `rank` r > 0 + Σ_r s_cr (u_crᵀz)².

    >>> SeparatorHead(inputs=512, num_classes=10, rank=4)(z).shape
    torch.Size([N, 10])

    Each squared direction starts with length about 1 and with sign + or − in turn, so that both curvatures are there.
    """

    def __init__(self, inputs: int, num_classes: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.linear = nn.Linear(inputs, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if rank:
            self.directions = nn.Parameter(torch.randn(num_classes * rank, inputs) * inputs**-0.5)
            signs = torch.ones(num_classes, rank)
            signs[:, 1::2] = -1
            self.strengths = nn.Parameter(0.1 * signs)

    def forward(self, z: Tensor) -> Tensor:
        logits = self.linear(z)
        if not self.rank:
            return logits
        squares = F.linear(z, self.directions).square().unflatten(1, self.strengths.shape)
        return logits + (squares * self.strengths).sum(-1)

    def quadratic_form(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same as matrices Q (C, D, D), vectors w (C, D) and numbers b (C,): zᵀQ_c z + w_cᵀz + b_c."""
        classes, inputs = self.linear.weight.shape
        Q = self.linear.weight.new_zeros(classes, inputs, inputs)
        if self.rank:
            u = self.directions.unflatten(0, self.strengths.shape)
            Q = torch.einsum("cr,crd,cre->cde", self.strengths, u, u)
        return Q, self.linear.weight, self.linear.bias


class Separator(ClassifierMixin, BaseEstimator):
    """A linear or a low-rank quadratic classifier, as a scikit-learn estimator.

    >>> separator = Separator("quadratic", rank=4).fit(z, y)         # z (N, D), or (N, L, D)
    >>> separator.predict(z_new)

    With several vectors for each sample, (N, L, D), such as the gradients under L assumed labels, each step of training
    takes one of them at random, and the logits of a prediction are the mean over all of them. Coordinates are
    standardised by their mean and deviation over what `fit` sees.

    Parameters
    ----------
    form : "quadratic" or "linear".
    rank : squared directions for each class, where the form is quadratic.
    epochs, batch_size, optimizer, lr, optimizer_options, schedule : the training, as in `postgrad.training.Recipe`.

    Raises
    ------
    UserError : an unknown form, a rank below 1, settings that no training takes.
    """

    def __init__(
        self,
        form: Literal["linear", "quadratic"] = "quadratic",
        *,
        rank: int = 4,
        epochs: float = 30,
        batch_size: int = 100,
        optimizer: str = "adam",
        lr: float = 0.002,
        optimizer_options: Mapping[str, Any] | None = None,
        schedule: str = "cosine",
        random_state: int = 0,
    ) -> None:
        self.form = form
        self.rank = rank
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.optimizer_options = optimizer_options
        self.schedule = schedule
        self.random_state = random_state

    def fit(self, z: Any, y: Any) -> Separator:
        """Fit on vectors `z` (N, D) or (N, L, D) and classes `y` (N,)."""
        if self.form not in FORMS:
            raise unknown_name("form", str(self.form), FORMS)
        if self.rank < 1:
            raise UserError(f"rank: expected 1 or more, got {self.rank}")
        vectors = self._vectors(z, y, reset=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(vectors, y)
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(f"y: there is one class only, {self.classes_[0]}; a separator needs two or more")
        labels = torch.from_numpy(targets)
        every = vectors.flatten(0, 1)
        self.mean_ = every.mean(0)
        deviation = every.std(0, correction=0)
        self.deviation_ = torch.where(deviation > 0, deviation, torch.ones_like(deviation))

        def make_batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            assumed = torch.randint(vectors.shape[1], (len(indices),), generator=generator)
            return self._standardised(vectors[indices, assumed]), labels[indices]

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            rank = self.rank if self.form == "quadratic" else 0
            self.head_ = SeparatorHead(vectors.shape[2], len(self.classes_), rank)
        self.history_ = train(
            self.head_,
            n=len(vectors),
            make_batch=make_batch,
            loss=lambda head, batch: F.cross_entropy(head(batch[0]), batch[1]),
            recipe=self._recipe(),
            seed=self.random_state,
            label=f"{self.form} separator",
        )
        return self

    def logits(self, z: Any) -> np.ndarray:
        """Logits (N, C): for several vectors of a sample, the mean of theirs."""
        check_is_fitted(self, "head_")
        vectors = self._vectors(z, reset=False)
        with torch.no_grad():
            parts = [self.head_(self._standardised(part)) for part in vectors.flatten(0, 1).split(PREDICT_ROWS)]
        return torch.cat(parts).view(*vectors.shape[:2], -1).mean(1).numpy()

    def predict_proba(self, z: Any) -> np.ndarray:
        """Probabilities (N, C): the softmax of `logits`."""
        return torch.from_numpy(self.logits(z)).double().softmax(1).numpy()

    def predict(self, z: Any) -> np.ndarray:
        """The class (N,) of the largest logit."""
        winners = self.logits(z).argmax(1)
        return self.classes_[winners]

    def _vectors(self, z: Any, y: Any = "no_validation", *, reset: bool) -> Tensor:
        """Checked vectors as (N, L, D); those of one vector for each sample get an L of 1."""
        if getattr(z, "ndim", 2) < 3:
            checked = validate_data(self, z, y, dtype=np.float32, reset=reset)
            return torch.from_numpy(checked[0] if isinstance(checked, tuple) else checked).unsqueeze(1)
        vectors = torch.from_numpy(check_array(z, dtype=np.float32, allow_nd=True))
        if vectors.dim() != 3:
            raise UserError(f"z: expected vectors (N, D) or (N, L, D), got {tuple(vectors.shape)}")
        if reset:
            self.n_features_in_ = vectors.shape[2]
        if vectors.shape[2] != self.n_features_in_:
            raise UserError(
                f"z: expected {self.n_features_in_} numbers in each vector as in fit, got {vectors.shape[2]}"
            )
        return vectors

    def _standardised(self, z: Tensor) -> Tensor:
        return (z - self.mean_) / self.deviation_

    def _recipe(self) -> Recipe:
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            optimizer_options=dict(self.optimizer_options or {}),
            lr=self.lr,
            schedule=self.schedule,
        )


class GradientProjection(TransformerMixin, BaseEstimator):
    """Gradients of a trained network, each brought to `size` numbers by a sparse random projection.

    >>> projection = GradientProjection(GradientFeatures(model, labels="all"), size=512).fit(x)
    >>> projection.transform(x_new).shape                            # float32; C assumed labels for each image
    (N, C, 512)

    What is projected is what `features` gives, selected and normalised; with labels="predicted" there is one gradient
    for each image, (N, 1, size). The projection keeps lengths and angles on average (Johnson and Lindenstrauss); it
    depends on `random_state` and on no data. Images are taken a few at a time, so that no large matrix of gradients is
    ever held.
    """

    def __init__(self, features: GradientFeatures, *, size: int = 512, random_state: int = 0) -> None:
        self.features = features
        self.size = size
        self.random_state = random_state

    def fit(self, x: Any, y: Any = None) -> GradientProjection:
        """Gather the statistics of the features' normalisation over images (N, C, H, W)."""
        if self.size < 1:
            raise UserError(f"size: expected 1 or more, got {self.size}")
        self.features_ = clone(self.features).fit(x)
        numbers = sum(block.numel for block in self.features_.space_.blocks)
        self.labels_each_ = self.features_.n_features_out_ // numbers
        self.projection_ = SparseRandomProjection(self.size, random_state=self.random_state, dense_output=True)
        with warnings.catch_warnings():  # it warns where numbers do not become fewer, which keeps everything
            warnings.simplefilter("ignore", DataDimensionalityWarning)
            self.projection_.fit(np.zeros((1, numbers), dtype=np.float32))
        return self

    def transform(self, x: Any) -> np.ndarray:
        """Projected gradients (N, L, size) of images (N, C, H, W), L the labels that the features read."""
        check_is_fitted(self, "projection_")
        images = image_tensor(x, allow_empty=True)
        parts = [np.zeros((0, self.labels_each_, self.size), dtype=np.float32)]
        with progress("projected gradients", len(images), unit="images") as advance:
            for part in images.split(self.features_.space_.images_per_chunk("all")) if len(images) else ():
                rows = self.features_.transform(part).reshape(len(part) * self.labels_each_, -1).tocsr()
                projected = self.projection_.transform(rows).astype(np.float32)
                parts.append(projected.reshape(len(part), self.labels_each_, self.size))
                advance(len(part))
        return np.concatenate(parts)


SEPARATORS: dict[str, Callable[[int], Any]] = {
    "linear": lambda seed: Separator("linear", random_state=seed),
    "quadratic": lambda seed: Separator("quadratic", random_state=seed),
    "logistic regression": lambda seed: _scaled(SGDClassifier(loss="log_loss", random_state=seed)),
    "linear SVM": lambda seed: _scaled(SGDClassifier(loss="hinge", random_state=seed)),
    "random forest": lambda seed: RandomForestClassifier(100, max_samples=0.2, random_state=seed),
    "boosted trees": lambda seed: HistGradientBoostingClassifier(max_iter=30, random_state=seed),
}
"""Separators by name, each made from a seed: the two explicit forms, and scikit-learn's own classifiers."""


def score_separator(
    name: str, z: np.ndarray, y: np.ndarray, held_out: Mapping[str, tuple[np.ndarray, np.ndarray]], *, seed: int = 0
) -> dict[str, Any]:
    """Fit one of `SEPARATORS` on gradients z (N, L, D) under L assumed labels and true labels y; its accuracies.

    >>> score_separator("quadratic", z, y, {"test": (z_test, y_test)})
    {"accuracy": {"train": 0.93, "test": 0.71}, "cpu_seconds": 4.2}

    scikit-learn's classifiers see each image under all its assumed labels, as samples of their own with the true label;
    their scores (decision function, or log-probabilities) under all labels are averaged.
    """
    if name not in SEPARATORS:
        raise unknown_name("separator", name, SEPARATORS)
    separator = SEPARATORS[name](seed)
    watch = Stopwatch()
    with watch:
        if isinstance(separator, Separator):
            separator.fit(z, y)
        else:
            separator.fit(z.reshape(-1, z.shape[2]), np.repeat(y, z.shape[1]))
    accuracy = {part: _accuracy(separator, *pair) for part, pair in {"train": (z, y), **held_out}.items()}
    return {"accuracy": accuracy, "cpu_seconds": watch.cpu_seconds}


def _accuracy(separator: Any, z: np.ndarray, y: np.ndarray) -> float:
    winners = separator.classes_[mean_scores(separator, z).argmax(1)]
    return float((winners == y).mean())


def mean_scores(separator: Any, z: np.ndarray) -> np.ndarray:
    """Scores (N, C) of a fitted classifier for z (N, L, D): decision function or log-probabilities, averaged."""
    if isinstance(separator, Separator):
        return separator.logits(z)
    rows = z.reshape(-1, z.shape[2])
    if hasattr(separator, "decision_function"):
        scores = separator.decision_function(rows)
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], axis=1)
    else:
        # A tree that never saw a class in a leaf gives it no probability at all.
        scores = np.log(np.maximum(separator.predict_proba(rows), 1e-6))
    return scores.reshape(len(z), z.shape[1], -1).mean(1)


def _scaled(classifier: Any) -> Any:
    return make_pipeline(StandardScaler(), classifier)
