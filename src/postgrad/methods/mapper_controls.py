"""What Mapper must beat: its neighbours without its nodes, and its coordinates and network without its nodes.

Idea. Mapper averages rows of nodes over 20 nearest neighbours and gives them to a network. ``NearestNeighbours``
averages the neighbours' classes instead; ``CoordinatesMLP`` gives the network the latent coordinates themselves. Where
Mapper is no better than these, its gain is that of neighbours or of coordinates, not of topology.

Use. ``NearestNeighbours().fit(images, labels).predict_proba(new_images)``; ``--method knn``, ``--method pca_mlp``.

Cost. As Mapper's without the clustering: distances to all training images, or a product with 20 axes.

When it fails. Both see an image as its pixels, as Mapper does.

Paper. They are controls of arXiv 1910.08103. Licence or patent note: none known.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn

from postgrad.artifacts import read_manifest, read_tensors, save_tensors, write_manifest
from postgrad.data.preprocessing import Preprocessing
from postgrad.devices import pick_device
from postgrad.methods._mapper_committee import Committee
from postgrad.methods._mapper_cover import Cover
from postgrad.methods._mapper_head import fit_mlp, make_mlp, mlp_probabilities
from postgrad.methods._mapper_inputs import outputs_of, places_among, read_labels, read_points
from postgrad.methods._mapper_latent import Data, Kind, Settings, fit_latent, load_latent
from postgrad.methods._nearest import Points
from postgrad.methods.mapper_transformer import check_mapper, from_plain, plain_settings
from postgrad.models.preprocessing import own_preprocessing
from postgrad.training import History, Recipe, Stopwatch


class NearestNeighbours(ClassifierMixin, BaseEstimator):
    """The classes of the nearest training points in pixel space, each with weight 1/(d + 1e-5).

    >>> NearestNeighbours().fit(images, labels).predict_proba(new_images).shape
    (N, 10)

    Parameters
    ----------
    model : a network whose classes are taken; nothing else of it is used.
    n_neighbors : as many neighbours are asked.
    preprocess, class_names : kept and saved; pixels are compared as they are.

    Points are rows (N, d), or images (N, C, H, W). Raises `UserError` as `MapperClassifier` does.
    """

    inference_passes = 1
    history_: History | None = None

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        n_neighbors: int = 20,
        preprocess: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.n_neighbors = n_neighbors
        self.preprocess = preprocess
        self.class_names = class_names
        self.random_state = random_state

    def fit(self, x: Any, y: Any, *, validation: tuple[Any, Any] | None = None) -> NearestNeighbours:
        """Keep points (N, d) or images (N, C, H, W) and their classes (N,); `validation` has no part in it."""
        check_mapper(self)
        watch = Stopwatch()
        with watch:
            data = read_points(self, x, fitting=True)
            self.classes_, targets = read_labels(y, len(data), _classes_of(self, data))
            self.committee_ = _classes_as_nodes(Points(data.rows), targets)
        self.fit_cpu_seconds_ = watch.cpu_seconds
        return self

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        """Probabilities (N, C), in the order of `classes_`."""
        check_is_fitted(self, "committee_")
        data = read_points(self, x, fitting=False)
        values = np.zeros((len(data), 1))
        rows = self.committee_.rows(data.rows, values, k=self.n_neighbors, margin=0, kind="published")
        probabilities = np.zeros((len(data), len(self.classes_)))
        probabilities[:, : rows.shape[1]] = rows.toarray()
        return probabilities

    def predict(self, x: Any) -> NDArray[Any]:
        """The most probable class (N,)."""
        winners = self.predict_proba(x).argmax(axis=1)
        return self.classes_[winners]

    @property
    def num_parameters(self) -> int:
        """The numbers of the training points, which are all that it has."""
        check_is_fitted(self, "committee_")
        return len(self.committee_.points) * self.n_features_in_

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a directory that `NearestNeighbours.load` reads."""
        check_is_fitted(self, "committee_")
        directory = Path(path)
        tensors = {"points": torch.from_numpy(self.committee_.points.whole())}
        tensors["targets"] = torch.from_numpy(self.committee_.nodes)
        save_tensors(tensors, directory / "points.safetensors")
        write_manifest(directory, "nearest-neighbours", _fitted(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, factory: Any = None, device: Any = "auto") -> NearestNeighbours:
        """Read what `save` wrote."""
        directory = Path(path)
        neighbours = _restored(cls, read_manifest(directory, "nearest-neighbours"))
        tensors = read_tensors(directory / "points.safetensors")
        neighbours.committee_ = _classes_as_nodes(Points(tensors["points"].numpy()), tensors["targets"].numpy())
        return neighbours


class CoordinatesMLP(ClassifierMixin, BaseEstimator):
    """Mapper's network on its latent coordinates themselves, each divided by its standard deviation.

    >>> CoordinatesMLP(n_components=20).fit(images, labels).predict_proba(new_images).shape
    (N, 10)

    Parameters
    ----------
    model : a network whose classes are taken; nothing else of it is used.
    latent, n_components, latent_epochs, hidden, dropout, epochs … directory : as for `MapperClassifier`; the latent is
        "pca", "autoencoder", "vae" or "vae-sampled".

    Points are rows (N, d), or images (N, C, H, W). Raises `UserError` as `MapperClassifier` does.
    """

    inference_passes = 1

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        latent: Kind = "pca",
        n_components: int = 20,
        latent_epochs: float = 100,
        hidden: Sequence[int] = (1000, 500),
        dropout: float = 0.25,
        epochs: float = 100,
        steps: int | None = None,
        budget: str | None = None,
        batch_size: int = 100,
        optimizer: str = "sgd",
        lr: float = 0.01,
        optimizer_options: Mapping[str, Any] | None = None,
        preprocess: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        random_state: int = 0,
        device: str | torch.device = "auto",
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self.model = model
        self.latent = latent
        self.n_components = n_components
        self.latent_epochs = latent_epochs
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.steps = steps
        self.budget = budget
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.optimizer_options = optimizer_options
        self.preprocess = preprocess
        self.class_names = class_names
        self.random_state = random_state
        self.device = device
        self.directory = directory

    def fit(self, x: Any, y: Any, *, validation: tuple[Any, Any] | None = None) -> CoordinatesMLP:
        """Fit on points (N, d) or images (N, C, H, W) and classes (N,); `validation` only draws the learning curve."""
        check_mapper(self)
        recipe = Recipe(
            epochs=None if self.steps or self.budget else self.epochs,
            steps=self.steps,
            budget=self.budget if self.steps is None else None,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            optimizer_options=dict({"momentum": 0.9} if self.optimizer_options is None else self.optimizer_options),
            lr=self.lr,
        )
        watch = Stopwatch()
        with watch:
            data = read_points(self, x, fitting=True)
            self.classes_, targets = read_labels(y, len(data), _classes_of(self, data))
            self.latent_ = fit_latent(data, self._latent_settings())
            coordinates = self.latent_(data)
            widths = coordinates.std(axis=0)
            self.widths_ = np.where(widths > 0, widths, 1.0)
        self.mlp_ = self._new_mlp()
        self.history_: History = fit_mlp(
            self.mlp_,
            self._rows(coordinates),
            targets,
            recipe=recipe,
            seed=self.random_state,
            device=pick_device(self.device),
            validation=None if validation is None else self._validation(*validation),
            directory=None if self.directory is None else Path(self.directory),
        )
        self.fit_cpu_seconds_ = watch.cpu_seconds + self.history_.cpu_seconds
        return self

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        """Probabilities (N, C), in the order of `classes_`."""
        check_is_fitted(self, "mlp_")
        return mlp_probabilities(self.mlp_, self._rows(self.latent_(read_points(self, x, fitting=False))))

    def predict(self, x: Any) -> NDArray[Any]:
        """The most probable class (N,)."""
        winners = self.predict_proba(x).argmax(axis=1)
        return self.classes_[winners]

    @property
    def num_parameters(self) -> int:
        """Numbers of the latent coordinates and of the network."""
        check_is_fitted(self, "mlp_")
        return self.latent_.num_parameters + sum(p.numel() for p in self.mlp_.parameters())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a directory that `CoordinatesMLP.load` reads."""
        check_is_fitted(self, "mlp_")
        directory = Path(path)
        tensors = {f"latent.{name}": value for name, value in self.latent_.tensors().items()}
        tensors |= {f"mlp.{name}": value for name, value in self.mlp_.state_dict().items()}
        save_tensors({**tensors, "widths": torch.from_numpy(self.widths_)}, directory / "coordinates.safetensors")
        write_manifest(directory, "coordinates-mlp", _fitted(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, factory: Any = None, device: Any = "auto") -> CoordinatesMLP:
        """Read what `save` wrote."""
        directory = Path(path)
        mlp = _restored(cls, read_manifest(directory, "coordinates-mlp"), device=device)
        tensors = read_tensors(directory / "coordinates.safetensors")
        mlp.widths_ = tensors["widths"].numpy()
        parts: dict[str, dict[str, Any]] = {"latent": {}, "mlp": {}, "widths": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        example = Data(np.zeros((1, mlp.n_features_in_), dtype=np.float32))
        mlp.latent_ = load_latent(parts["latent"], mlp._latent_settings(), example)
        mlp.mlp_ = mlp._new_mlp()
        mlp.mlp_.load_state_dict(parts["mlp"])
        mlp.mlp_.eval()
        return mlp

    def _latent_settings(self) -> Settings:
        return Settings(
            kind=self.latent,
            count=self.n_components,
            model=None,
            preprocess=None,
            epochs=self.latent_epochs,
            seed=self.random_state,
            device=self.device,
            memory="2GB",
            directory=None if self.directory is None else Path(self.directory),
        )

    def _new_mlp(self) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            mlp = make_mlp(len(self.widths_), self.hidden, len(self.classes_), self.dropout)
        return mlp.to(pick_device(self.device))

    def _rows(self, coordinates: NDArray[np.float64]) -> sparse.csr_matrix:
        return sparse.csr_matrix((coordinates / self.widths_).astype(np.float32))

    def _validation(self, x: Any, y: Any) -> tuple[sparse.csr_matrix, NDArray[np.int64]]:
        return self._rows(self.latent_(read_points(self, x, fitting=False))), places_among(y, self.classes_)


def _classes_of(estimator: Any, data: Data) -> int | None:
    """How many classes the estimator's network has; None without one."""
    if estimator.model is None:
        return None
    preprocess = estimator.preprocess or own_preprocessing(estimator.model) or Preprocessing()
    return outputs_of(estimator.model, preprocess, data.images)


def _classes_as_nodes(points: Points, targets: NDArray[Any]) -> Committee:
    """One interval that holds all points, whose nodes are the classes."""
    committee = Committee(points, np.zeros((len(points), 1)), [Cover(np.zeros(1), np.zeros(1), 0.0)])
    committee.nodes = targets.astype(np.int32)
    committee.describe_nodes()
    return committee


def _fitted(estimator: Any) -> dict[str, Any]:
    return {
        "settings": plain_settings(estimator),
        "image_shape": estimator.image_shape_,
        "n_features": estimator.n_features_in_,
        "classes": estimator.classes_.tolist(),
        "fit_cpu_seconds": estimator.fit_cpu_seconds_,
    }


def _restored(cls: Any, manifest: dict[str, Any], **more: Any) -> Any:
    estimator = cls(**from_plain(manifest["settings"]), **more)
    estimator.image_shape_ = None if manifest["image_shape"] is None else tuple(manifest["image_shape"])
    estimator.n_features_in_, estimator.classes_ = manifest["n_features"], np.asarray(manifest["classes"])
    estimator.fit_cpu_seconds_ = manifest["fit_cpu_seconds"]
    estimator.preprocess = estimator.preprocess or Preprocessing()
    estimator.class_names = estimator.class_names or tuple(map(str, estimator.classes_))
    return estimator
