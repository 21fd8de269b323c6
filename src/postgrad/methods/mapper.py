"""The Mapper classifier: topology that predicts on new points.

Idea. Mapper draws the shape of data: a latent coordinate is covered by overlapping intervals, the points of each
interval are clustered, clusters are nodes, and nodes that share points are joined. With one Mapper for each latent
coordinate, the nodes that a point is in are its features, and a small network classifies by them.

Use. ``MapperClassifier().fit(images, labels).predict_proba(new_images)``; on the command line ``--method mapper``.

Training. 20 principal components; for each 10 equal intervals that share .33 of their length; in each interval single
linkage in pixel space, cut at the first empty bin of a 10-bin histogram of merge heights. A point's row is 1 for each
node that it is in. The network is 1000–500 ReLU, dropout .25, momentum SGD at .01, batches of 100, 100 epochs.

Prediction. A new point looks, in each coordinate, among the training points of its interval (and of the neighbour,
where the neighbour is near): the rows of the 20 nearest are averaged with weights 1/(d + 1e-5). So rows are binary in
training and not at prediction; ``rows="soft"`` or ``"hard"`` makes them alike.

Cost. n²/2 distances for n training points, made once for all coordinates; n distances for each new point. All training
points are kept: a saved classifier holds them.

When it fails. On images that differ much within a class pixel by pixel (photographs), since it compares pixels; on a
plain test set a convolutional network is better. It has no gradient, which only hides from attacks that need one.
Plain nearest neighbours, and the network on the coordinates themselves, are the controls to beat.

Paper. Cyranka, Georges, Meyer, "Mapper Based Classifier", arXiv 1910.08103; details that it leaves open (the margin at
the ends of intervals, the network's training, the autoencoders) are those of the authors' published scripts.

Licence or patent note. None known; written from the paper's and the scripts' description.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted
from torch import nn

from postgrad.artifacts import read_manifest, read_tensors, save_tensors, write_manifest
from postgrad.data.preprocessing import Preprocessing
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.methods._mapper_committee import Rows
from postgrad.methods._mapper_graph import MapperGraph
from postgrad.methods._mapper_head import fit_mlp, make_mlp, mlp_probabilities
from postgrad.methods._mapper_inputs import outputs_of, places_among, read_labels, read_points
from postgrad.methods._mapper_latent import Kind
from postgrad.methods._single_linkage import Cut
from postgrad.methods.mapper_table import graph_table
from postgrad.methods.mapper_transformer import MapperTransformer, check_mapper, from_plain, plain_settings
from postgrad.models.preprocessing import own_preprocessing
from postgrad.training import History, Recipe, Stopwatch

_VALIDATION_POINTS = 500


class MapperClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of points by the Mapper nodes that they are in, as a scikit-learn estimator.

    >>> clf = MapperClassifier(latent="pca", n_components=20, n_intervals=10, overlap=0.33).fit(images, labels)
    >>> clf.predict_proba(new_images).shape
    (N, 10)
    >>> clf.graph(0).to_json()

    Parameters
    ----------
    model … memory : as for `MapperTransformer`. Where a network is given, its classes are the classifier's.
    head : what classifies the rows: "mlp", or any scikit-learn classifier with `predict_proba` (it is cloned; such a
        classifier cannot be saved).
    hidden, dropout : of the "mlp".
    epochs, batch_size, optimizer, lr, optimizer_options, schedule : its training, as in `postgrad.training.Recipe`;
        None for `optimizer_options` is a momentum of .9 for "sgd".
    steps, budget : a number of steps, or training time of the "mlp" such as "10m", in place of `epochs`.
    class_names : names of the classes, saved with the classifier.
    directory : where checkpoints are kept during `fit`, so that an interrupted training goes on; None keeps none.

    Raises
    ------
    UserError : as for `MapperTransformer`; labels that do not fit; `save` with a head that only pickling could store.

    Source: arXiv 1910.08103.
    """

    inference_passes = 1

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
        head: Any = "mlp",
        hidden: Sequence[int] = (1000, 500),
        dropout: float = 0.25,
        epochs: float = 100,
        steps: int | None = None,
        budget: str | None = None,
        batch_size: int = 100,
        optimizer: str = "sgd",
        lr: float = 0.01,
        optimizer_options: Mapping[str, Any] | None = None,
        schedule: str = "constant",
        preprocess: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        random_state: int = 0,
        device: str | torch.device = "auto",
        memory: str = "2GB",
        directory: str | os.PathLike[str] | None = None,
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
        self.head = head
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.steps = steps
        self.budget = budget
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.optimizer_options = optimizer_options
        self.schedule = schedule
        self.preprocess = preprocess
        self.class_names = class_names
        self.random_state = random_state
        self.device = device
        self.memory = memory
        self.directory = directory

    def fit(self, x: Any, y: Any, *, validation: tuple[Any, Any] | None = None) -> MapperClassifier:
        """Fit on points (N, d) or images (N, C, H, W) and classes (N,); `validation` only draws the learning curve."""
        _check(self)
        recipe = self._recipe()
        watch = Stopwatch(pick_device(self.device))
        with watch:
            data = read_points(self, x, fitting=True)
            classes = None
            if self.model is not None:
                preprocess = self.preprocess or own_preprocessing(self.model) or Preprocessing()
                classes = outputs_of(self.model, preprocess, data.images)
            self.classes_, self.targets_ = read_labels(y, len(data), classes)
            shared = inspect.signature(MapperTransformer).parameters.keys() & self.get_params(deep=False).keys()
            self.transformer_ = MapperTransformer(**{name: getattr(self, name) for name in shared})
            self.transformer_.image_shape_, self.transformer_.n_features_in_ = self.image_shape_, self.n_features_in_
            self.transformer_.fit_points(data)
            rows = self.transformer_.training_rows()
        self._fit_head(rows, recipe, validation, watch)
        self.fit_cpu_seconds_ = watch.cpu_seconds + (0.0 if self.history_ is None else self.history_.cpu_seconds)
        return self

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        """Probabilities (N, C), in the order of `classes_`."""
        check_is_fitted(self, "head_")
        rows = self.transformer_.rows_of(read_points(self, x, fitting=False))
        if isinstance(self.head_, nn.Sequential):
            return mlp_probabilities(self.head_, rows)
        probabilities = np.zeros((rows.shape[0], len(self.classes_)))
        if rows.shape[0]:
            probabilities[:, self.head_.classes_] = self.head_.predict_proba(_accepted(self.head_, rows))
        return probabilities

    def predict(self, x: Any) -> NDArray[Any]:
        """The most probable class (N,)."""
        winners = self.predict_proba(x).argmax(axis=1)
        return self.classes_[winners]

    def graph(self, coordinate: int) -> MapperGraph:
        """The nodes of one coordinate, from 0, with the classes of their members by name, and the edges."""
        check_is_fitted(self, "head_")
        names = [str(name) for name in (self.class_names or self.classes_)]
        return self.transformer_.graph(coordinate, [names[target] for target in self.targets_])

    def graph_table(self) -> dict[str, Any]:
        """The graphs of all coordinates as `postgrad.methods.mapper_table.graph_table` has them, for a report."""
        check_is_fitted(self, "head_")
        return graph_table([self.graph(c) for c in range(len(self.transformer_.committee_.covers))])

    @property
    def num_parameters(self) -> int:
        """Numbers of the latent coordinates (and the network that they need), and of the "mlp"; not the points."""
        check_is_fitted(self, "head_")
        own = self.head_.parameters() if isinstance(self.head_, nn.Module) else ()
        return self.transformer_.num_parameters + sum(p.numel() for p in own)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a directory that `MapperClassifier.load` reads; the training points are in it."""
        check_is_fitted(self, "head_")
        if not isinstance(self.head_, nn.Module):
            raise UserError(
                f"a {type(self.head_).__name__} can only be stored by pickling, which postgrad does not do; fit with "
                "head='mlp' to save the classifier"
            )
        directory = Path(path)
        self.transformer_.save(directory / "transformer")
        tensors = {f"head.{name}": value for name, value in self.head_.state_dict().items()}
        save_tensors({**tensors, "targets": torch.from_numpy(self.targets_)}, directory / "head.safetensors")
        fitted = {"classes": self.classes_.tolist(), "fit_cpu_seconds": self.fit_cpu_seconds_}
        write_manifest(directory, "mapper", {"settings": plain_settings(self), **fitted})

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, factory: Any = None, device: str | torch.device = "auto"
    ) -> MapperClassifier:
        """Read what `save` wrote; `factory` builds a network whose code is the user's own. No pickle is read."""
        directory = Path(path)
        manifest = read_manifest(directory, "mapper")
        transformer = MapperTransformer.load(directory / "transformer", factory=factory, device=device)
        mapper = cls(transformer.model, **from_plain(manifest["settings"]), device=device)
        mapper.transformer_, mapper.classes_ = transformer, np.asarray(manifest["classes"])
        mapper.image_shape_, mapper.n_features_in_ = transformer.image_shape_, transformer.n_features_in_
        mapper.preprocess = mapper.preprocess or Preprocessing()
        mapper.class_names = mapper.class_names or tuple(map(str, mapper.classes_))
        tensors = read_tensors(directory / "head.safetensors")
        mapper.targets_ = tensors.pop("targets").numpy()
        mapper.head_ = mapper._new_mlp(transformer.committee_.n_nodes)
        mapper.head_.load_state_dict({name.removeprefix("head."): value for name, value in tensors.items()})
        mapper.head_.eval()
        mapper.fit_cpu_seconds_ = manifest["fit_cpu_seconds"]
        return mapper

    def _recipe(self) -> Recipe:
        options = self.optimizer_options
        if options is None:
            options = {"momentum": 0.9} if self.optimizer == "sgd" else {}
        return Recipe(
            epochs=None if self.steps or self.budget else self.epochs,
            steps=self.steps,
            budget=self.budget if self.steps is None else None,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            optimizer_options=dict(options),
            lr=self.lr,
            schedule=self.schedule,
        )

    def _new_mlp(self, inputs: int) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            return make_mlp(inputs, self.hidden, len(self.classes_), self.dropout).to(pick_device(self.device))

    def _fit_head(
        self, rows: sparse.csr_matrix, recipe: Recipe, validation: tuple[Any, Any] | None, watch: Stopwatch
    ) -> None:
        self.history_: History | None = None
        if self.head != "mlp":
            with watch:
                head = clone(self.head)
                self.head_: Any = head.fit(_accepted(head, rows), self.targets_)
            return
        held_out = None
        if validation is not None:
            spread = np.linspace(0, len(validation[1]) - 1, min(_VALIDATION_POINTS, len(validation[1]))).astype(int)
            points = read_points(self, validation[0][spread], fitting=False)
            held_out = self.transformer_.rows_of(points), places_among(validation[1][spread], self.classes_)
        self.head_ = self._new_mlp(rows.shape[1])
        self.history_ = fit_mlp(
            self.head_,
            rows,
            self.targets_,
            recipe=recipe,
            seed=self.random_state,
            device=pick_device(self.device),
            validation=held_out,
            directory=None if self.directory is None else Path(self.directory),
        )


def _check(estimator: MapperClassifier) -> None:
    """Refuse settings of the wrong type or out of range."""
    check_mapper(estimator)
    if isinstance(estimator.head, str) and estimator.head != "mlp":
        raise UserError(f"head: expected 'mlp' or a scikit-learn classifier, got '{estimator.head}'")
    if not isinstance(estimator.head, str) and not hasattr(estimator.head, "predict_proba"):
        raise UserError(f"head: {type(estimator.head).__name__} has no predict_proba; CalibratedClassifierCV adds one")
    if any(size < 1 for size in estimator.hidden):
        raise UserError(f"hidden: expected sizes of 1 or more, got {tuple(estimator.hidden)}")


def _accepted(head: Any, rows: sparse.csr_matrix) -> Any:
    """The rows as a scikit-learn classifier takes them: sparse, or dense where it takes no others."""
    return rows if get_tags(head).input_tags.sparse else rows.toarray()
