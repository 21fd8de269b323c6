"""MapperTransformer: the Mapper nodes that points are in, as features for any scikit-learn classifier.

The method's card is `postgrad.methods.mapper`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn

from postgrad.artifacts import read_manifest, read_tensors, save_tensors, write_manifest
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods._mapper_committee import Committee, Rows, fit_committee
from postgrad.methods._mapper_graph import MapperGraph, Training
from postgrad.methods._mapper_inputs import read_points
from postgrad.methods._mapper_latent import OF_A_NETWORK, Data, Kind, Settings, fit_latent, load_latent
from postgrad.methods._settings import check_settings
from postgrad.methods._single_linkage import Cut
from postgrad.models import checkpoints
from postgrad.models.preprocessing import own_preprocessing


class MapperTransformer(TransformerMixin, BaseEstimator):
    """The Mapper nodes that points are in, as a scikit-learn transformer.

    >>> mapper = MapperTransformer().fit(images)
    >>> mapper.transform(new_images).shape              # (N, nodes)
    (100, 591)
    >>> mapper.graph(0).nodes[3].members

    `fit_transform` gives the rows of the training points, `transform` those of new ones.

    Parameters
    ----------
    model : a trained network, for the latents that need one. It is copied and never changed.
    latent : the coordinates: "pca" (unwhitened), "autoencoder" (a contractive one), "vae" (the mean of its code),
        "vae-sampled" (a sample), "penultimate" and "gradients" (principal components of what goes into the last layer
        of `model`, or of its gradients).
    n_components : how many coordinates; at most as many as points and as numbers in each.
    n_intervals, overlap : intervals of each coordinate, and the share of its length that each has in common with the
        next, from 0 to below 1. A coordinate with (nearly) one value gets one interval.
    intervals : "uniform" (of one length) or "balanced" (of about as many points).
    cut : where clusters end: "histogram" (the first empty of 10 bins of the merge heights) or "gap" (the first step of
        at least .3 of the largest height, as giotto-tda's FirstSimpleGap has it).
    rows : "published" (training points have 1 for each node they are in, new points means over neighbours), "soft"
        (means for both, with each training point left out of its own row) or "hard" (1 for both: new points are in the
        node, of each interval that they are in, that weighs most).
    n_neighbors : neighbours whose rows are averaged.
    margin : how far before the overlap a new point is also compared with the neighbouring interval: 0 at its
        beginning, 1 already in the middle. The authors' scripts have .2.
    latent_epochs : length of the training of "autoencoder" and "vae".
    preprocess : `Preprocessing` before `model`; None takes the model's own.
    random_state, device : of what is trained or drawn.
    memory : the most that it may take, about.
    directory : where the checkpoints of "autoencoder" and "vae" are kept during `fit`; None keeps none.
    sparse_output : rows as a scipy.sparse matrix (CSR) in place of an array.

    Points are rows (N, d), or images (N, C, H, W), uint8 or floats in [0, 1]. Distances are Euclidean, between pixels
    in [0, 1] for images, whatever the latent. Equal distances are taken in the order of the training points.

    Raises
    ------
    UserError : settings of the wrong type or range, points of another shape, NaN, what does not fit into `memory`.

    Source: arXiv 1910.08103.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        latent: Kind = "pca",
        n_components: int = 20,
        n_intervals: int = 10,
        overlap: float = 0.33,
        intervals: Literal["uniform", "balanced"] = "uniform",
        cut: Cut = "histogram",
        rows: Rows = "published",
        n_neighbors: int = 20,
        margin: float = 0.2,
        latent_epochs: float = 100,
        preprocess: Preprocessing | None = None,
        random_state: int = 0,
        device: str | torch.device = "auto",
        memory: str = "2GB",
        directory: str | os.PathLike[str] | None = None,
        sparse_output: bool = False,
    ) -> None:
        self.model = model
        self.latent = latent
        self.n_components = n_components
        self.n_intervals = n_intervals
        self.overlap = overlap
        self.intervals = intervals
        self.cut = cut
        self.rows = rows
        self.n_neighbors = n_neighbors
        self.margin = margin
        self.latent_epochs = latent_epochs
        self.preprocess = preprocess
        self.random_state = random_state
        self.device = device
        self.memory = memory
        self.directory = directory
        self.sparse_output = sparse_output

    def fit(self, x: Any, y: Any = None) -> MapperTransformer:
        """Find the nodes of points (N, d) or images (N, C, H, W); `y` has no part in it."""
        check_mapper(self)
        return self.fit_points(read_points(self, x, fitting=True))

    def fit_transform(self, x: Any, y: Any = None) -> Any:
        """The rows (N, nodes) of the training points themselves, as `rows` says."""
        self.fit(x)
        return self._given(self.training_rows())

    def transform(self, x: Any) -> Any:
        """The rows (N, nodes) of new points, float32."""
        check_is_fitted(self, "committee_")
        return self._given(self.rows_of(read_points(self, x, fitting=False)))

    def graph(self, coordinate: int, labels: Sequence[Any] | None = None) -> MapperGraph:
        """The nodes and edges of one coordinate, from 0; `labels` of the training points are counted in each node."""
        check_is_fitted(self, "committee_")
        if labels is not None and len(labels) != len(self.committee_.points):
            raise UserError(f"labels: expected one for each of the {len(self.committee_.points)} training points")
        names = None if labels is None else tuple(map(str, labels))
        training = Training(self.committee_.points, self.image_shape_, names)
        return replace(self.committee_.graph(coordinate, names), training=training)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns: mapper-COORDINATE-INTERVAL-NODE."""
        check_is_fitted(self, "committee_")
        places = zip(self.committee_.coordinate, self.committee_.interval, strict=True)
        names = [f"mapper-{coordinate}-{interval}-{node}" for node, (coordinate, interval) in enumerate(places)]
        return np.asarray(names, dtype=object)

    @property
    def num_parameters(self) -> int:
        """Numbers that make the latent coordinates, those of the network among them; the points are not counted."""
        check_is_fitted(self, "committee_")
        return self.latent_.num_parameters

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a directory that `MapperTransformer.load` reads; the training points are in it."""
        check_is_fitted(self, "committee_")
        directory = Path(path)
        if self.latent in OF_A_NETWORK:
            assert self.model is not None
            preprocess = self.preprocess or own_preprocessing(self.model) or Preprocessing()
            names = getattr(self.model, "class_names", None) or ()
            checkpoints.save(self.model, directory / "base", preprocess=preprocess, class_names=names)
        tensors = self.committee_.tensors()
        if self.pixels_:  # a quarter of the bytes, and the same numbers
            tensors["points"] = (tensors["points"] * 255).round().to(torch.uint8)
        tensors |= {f"latent.{name}": value for name, value in self.latent_.tensors().items()}
        save_tensors(tensors, directory / "mapper.safetensors")
        fitted = {"image_shape": self.image_shape_, "n_features": self.n_features_in_, "pixels": self.pixels_}
        write_manifest(directory, "mapper-transformer", {"settings": plain_settings(self), **fitted})

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, factory: Any = None, device: str | torch.device = "auto"
    ) -> MapperTransformer:
        """Read what `save` wrote; `factory` builds a network whose code is the user's own. No pickle is read."""
        directory = Path(path)
        manifest = read_manifest(directory, "mapper-transformer")
        settings = from_plain(manifest["settings"])
        model = checkpoints.load(directory / "base", factory=factory) if settings["latent"] in OF_A_NETWORK else None
        mapper = cls(model, **settings, device=device)
        mapper.n_features_in_, mapper.pixels_ = manifest["n_features"], manifest["pixels"]
        mapper.image_shape_ = None if manifest["image_shape"] is None else tuple(manifest["image_shape"])
        tensors = read_tensors(directory / "mapper.safetensors")
        points = tensors["points"]
        rows = points.float().div_(255).numpy() if mapper.pixels_ else points.numpy()
        images = None if mapper.image_shape_ is None else torch.from_numpy(rows[:3]).view(-1, *mapper.image_shape_)
        latent = {name.removeprefix("latent."): value for name, value in tensors.items() if name.startswith("latent.")}
        mapper.latent_ = load_latent(latent, mapper._latent_settings(), Data(rows[:3], images))
        mapper.committee_ = Committee.from_tensors(tensors, rows, mapper.overlap)
        return mapper

    def fit_points(self, data: Data) -> MapperTransformer:
        """Find the nodes of points whose shape was noted."""
        self.pixels_ = data.images is not None and data.images.dtype == torch.uint8
        self.latent_ = fit_latent(data, self._latent_settings())
        self.committee_ = fit_committee(
            data.rows,
            self.latent_(data),
            n_intervals=self.n_intervals,
            overlap=self.overlap,
            intervals=self.intervals,
            cut=self.cut,
            memory=self.memory,
        )
        return self

    def _latent_settings(self) -> Settings:
        return Settings(
            kind=self.latent,
            count=self.n_components,
            model=self.model,
            preprocess=self.preprocess,
            epochs=self.latent_epochs,
            seed=self.random_state,
            device=self.device,
            memory=self.memory,
            directory=None if self.directory is None else Path(self.directory),
        )

    def rows_of(self, data: Data) -> sparse.csr_matrix:
        """The rows of new points, sparse."""
        how: Any = {"k": self.n_neighbors, "margin": self.margin, "kind": self.rows}
        return self.committee_.rows(data.rows, self.latent_(data), **how)

    def _given(self, rows: sparse.csr_matrix) -> Any:
        return rows if self.sparse_output else rows.toarray()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def training_rows(self) -> sparse.csr_matrix:
        """The rows of the training points, sparse."""
        return self.committee_.training_rows(k=self.n_neighbors, margin=self.margin, kind=self.rows)


def check_mapper(estimator: Any) -> None:
    """Refuse settings of the wrong type or out of range."""
    check_settings(estimator)
    for name in ("n_components", "n_intervals", "n_neighbors"):
        if getattr(estimator, name, 1) < 1:
            raise UserError(f"{name}: expected 1 or more, got {getattr(estimator, name)}")
    for name, top in (("overlap", "below 1"), ("margin", "1"), ("dropout", "below 1")):
        value = getattr(estimator, name, 0.0)
        if not (0 <= value < 1 or (value == 1 and top == "1")):
            raise UserError(f"{name}: expected a share from 0 to {top}, got {value:g}")


def plain_settings(estimator: Any) -> dict[str, Any]:
    """The constructor's arguments that are plain values, as JSON takes them."""
    skipped = ("model", "preprocess", "device", "directory")
    settings = {key: value for key, value in estimator.get_params(deep=False).items() if key not in skipped}
    settings["preprocess"] = None if estimator.preprocess is None else estimator.preprocess.model_dump()
    return json.loads(json.dumps(settings, default=list))


def from_plain(settings: dict[str, Any]) -> dict[str, Any]:
    preprocess = settings["preprocess"]
    return {**settings, "preprocess": None if preprocess is None else Preprocessing(**preprocess)}
