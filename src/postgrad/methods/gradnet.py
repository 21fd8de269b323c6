"""GradNet: classify an image by the gradients that a trained network has for it.

Idea. For an image x and an assumed label k, g_k = ∂CE(f(x), k)/∂W is a vector in the tangent space of the trained
network f. A small network over g_k, whose hidden layer has one block for each layer of f, can classify better than f.

Use. ``GradNet(model).fit(images, labels).predict_proba(new_images)``; on the command line ``--method gradnet``.

Training. One uniformly random label for each image; the input is the gradient under that label, the target the true
label. Prediction: the logits under all C labels are averaged.

Cost. At inference one forward and C backward passes of the base network for each image, and for each of these the
hidden layer: as many weights as (base weights × hidden units).

When it fails. On images that the base network has already fitted, whose gradients are unlike those of new images: hold
data back. On the published bases, fine-tuning on the same data is the control to beat; see the ledger.

Paper. Daróczy, Aleksziew, Benczúr, "Expressive power of outer product manifolds on feed-forward neural networks",
arXiv 1807.06630; poster and code of Aleksziew, "Improving neural networks using gradient space".

Licence or patent note. None known; written from the paper's formulas.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.artifacts import read_manifest, read_tensors, save_tensors, write_manifest
from postgrad.data.inputs import image_tensor, label_tensor
from postgrad.data.preprocessing import Augmentation, Preprocessing, augment
from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.gradients.engine import Labels
from postgrad.gradients.low_rank import FactorSpace
from postgrad.gradients.space import GradientSpace
from postgrad.methods._gradnet_head import GradNetHead, LowRankHead, auto_hidden, hidden_groups
from postgrad.methods._over_network import STATISTICS_BATCH, OverNetwork, bytes_of
from postgrad.methods._settings import check_settings
from postgrad.models import checkpoints
from postgrad.progress import progress
from postgrad.training import History, Recipe, Stopwatch, optimizer_copies, train
from postgrad.training.optimizers import takes_factors
from postgrad.units import format_memory, parse_memory

VALIDATION_IMAGES = 500

_NEED_ENTRIES = ("select", "scope", "normalise", "exponent", "weight_decay", "project", "coordinates")
"""Settings that act on single entries of gradients."""


class GradNet(OverNetwork, ClassifierMixin, BaseEstimator):
    """A second-stage classifier on the per-sample gradients of a trained network, as a scikit-learn estimator.

    >>> clf = GradNet(model, hidden=(5, 100, 25)).fit(x_half, y_half)
    >>> clf.predict_proba(x_new).shape
    (N, 10)

    `x` are images as the model's preprocessing takes them: uint8 (N, C, H, W), or float. Fit it on images that the
    model has not been trained on.

    Parameters
    ----------
    model : nn.Module giving logits (N, C). It is copied and never changed.
    hidden : sizes of the hidden blocks in layer order, or "auto" (see `auto_hidden`).
    labels : "random" (one label for each image and step, as published) or "all" (every label, C gradients an image).
    select : share of each layer's gradient entries kept, those of the largest magnitude; None keeps all.
    scope : "layer" takes that share of each layer (as published), "global" of all layers together.
    normalise : "scale+power", "scale", "power", "std", "std+l2", "mask" or "none".
    exponent : of the power normalisation, sign(n)·|n|^exponent.
    neighbours : let each hidden block read two neighbouring layers.
    steps, budget : a number of steps, or training time such as "10m", in place of `epochs`.
    epochs, batch_size, optimizer, lr, optimizer_options, schedule : the training, as in `postgrad.training.Recipe`.
    dropout : before the output layer.
    weight_decay : adds weight_decay·W to every gradient, as the authors' code did (5e-4); 0 is the plain gradient.
    augment : `Augmentation` of the training images; None adds nothing.
    preprocess : `Preprocessing`; None takes the model's own (`model.preprocess`), or pixels in [0, 1].
    layers : names of the weights to use; None is every weight of two or more dimensions.
    rank : hidden units that read each layer's gradient matrix G by Σ_r aᵀ G b, r = 1 … rank, without making G. Learnt
        by its factors, so that `select`, `scope`, `normalise`, `exponent` and `weight_decay` have no part in it: a
        scale for each layer takes their place. Adam ("adam", lr .001) suits it better than plain SGD.
    project : about so many numbers of each layer's gradient, by a random projection that never makes the whole.
    coordinates : so many entries of all layers together, those largest on average, computed alone.
    class_names : names of the C classes, saved with the classifier.
    device, memory : where to compute, and the most memory that it may take beside the process and the given model.
    directory : where checkpoints are kept during `fit`, so that an interrupted one goes on; None keeps none.

    Raises
    ------
    UserError : settings of the wrong type, wrong shapes, labels out of range, what does not fit into `memory`; for
        `rank`, `project` and `coordinates`, a layer that is neither linear nor a convolution.

    Source: arXiv 1807.06630.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden: Sequence[int] | Literal["auto"] = "auto",
        labels: Literal["random", "all"] = "random",
        select: float | None = 0.15,
        scope: Literal["layer", "global"] = "layer",
        normalise: str = "scale+power",
        exponent: float = 0.5,
        neighbours: bool = False,
        epochs: float = 10,
        steps: int | None = None,
        budget: str | None = None,
        batch_size: int = 25,
        optimizer: str = "sgd",
        lr: float = 0.01,
        optimizer_options: Mapping[str, Any] | None = None,
        schedule: str = "constant",
        dropout: float = 0.0,
        weight_decay: float = 0.0,
        augment: Augmentation | None = None,
        preprocess: Preprocessing | None = None,
        layers: Sequence[str] | None = None,
        rank: int | None = None,
        project: int | None = None,
        coordinates: int | None = None,
        class_names: Sequence[str] | None = None,
        random_state: int = 0,
        device: str | torch.device = "auto",
        memory: str = "2GB",
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self.model = model
        self.hidden = hidden
        self.labels = labels
        self.select = select
        self.scope = scope
        self.normalise = normalise
        self.exponent = exponent
        self.neighbours = neighbours
        self.epochs = epochs
        self.steps = steps
        self.budget = budget
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.optimizer_options = optimizer_options
        self.schedule = schedule
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.augment = augment
        self.preprocess = preprocess
        self.layers = layers
        self.rank = rank
        self.project = project
        self.coordinates = coordinates
        self.class_names = class_names
        self.random_state = random_state
        self.device = device
        self.memory = memory
        self.directory = directory

    def fit(self, x: Any, y: Any, *, validation: tuple[Any, Any] | None = None) -> GradNet:
        """Fit on images `x` (N, C, H, W) and class indices `y` (N,); `validation` (x, y) only draws the learning curve.

        With `directory` an interrupted fit goes on from its last checkpoint and ends with the same bits.
        """
        self._check_settings()
        images = image_tensor(x)
        targets = label_tensor(y, len(images))
        space = self._prepare(images[:3])
        if int(targets.max()) >= self.n_classes_:
            raise UserError(f"y: label {int(targets.max())} is out of range; the network has {self.n_classes_} classes")
        directory = None if self.directory is None else Path(self.directory)
        if directory is not None:
            self._claim(directory, images, targets)
        self.statistics_seconds_ = self._fit_statistics(space, images, directory)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self.head_ = self._new_head(space).to(self.device_)
        recipe = self._recipe()
        factored = isinstance(self.head_, GradNetHead) and takes_factors(recipe.optimizer, recipe.optimizer_options)
        self.head_.factored = factored
        self.history_: History = train(
            self.head_,
            n=len(images),
            make_batch=lambda indices, generator: self._training_batch(space, images, targets, indices, generator),
            loss=lambda head, batch: F.cross_entropy(head(batch[0]), batch[1]),
            recipe=recipe,
            seed=self.random_state,
            validate=None if validation is None else self._validator(*validation),
            directory=directory,
            resume=directory is not None,
            label="gradnet",
        )
        self.head_.factored = False
        self.fit_cpu_seconds_ = self.statistics_seconds_ + self.history_.cpu_seconds
        return self

    def decision_function(self, x: Any) -> np.ndarray:
        """Logits (N, C): the mean of GradNet's logits under the gradients of all C assumed labels."""
        check_is_fitted(self, "head_")
        images = image_tensor(x, allow_empty=True)
        self._check_shape(images)
        return self._mean_logits(images, show_progress=True).cpu().numpy()

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities (N, C): the softmax of `decision_function`."""
        logits = torch.from_numpy(self.decision_function(x))
        return logits.softmax(dim=1).numpy()

    def predict(self, x: Any) -> np.ndarray:
        """The class index (N,) of the largest logit."""
        winners = self.decision_function(x).argmax(axis=1)
        return self.classes_[winners]

    @property
    def inference_passes(self) -> int:
        """Gradients read for each image: one for each class."""
        return self.n_classes_

    @property
    def num_parameters(self) -> int:
        """Parameters of the base network and of GradNet's own layers."""
        check_is_fitted(self, "head_")
        return sum(p.numel() for module in (self.model_, self.head_) for p in module.parameters())

    def block_table(self) -> dict[str, Any]:
        """The hidden blocks over the base network's layers, for a drawing: names, shapes, inputs, hidden sizes."""
        check_is_fitted(self, "head_")
        groups = [
            {"reads": list(group), "hidden": size}
            for group, size in zip(self.head_.groups, self.head_.sizes, strict=True)
        ]
        blocks = [{"name": b.name, "shape": list(b.shape), "inputs": b.numel} for b in self.space_.blocks]
        for block, group in zip(blocks, groups, strict=False):
            block["hidden"] = group["hidden"]
        return {"blocks": blocks, "groups": groups, "outputs": self.n_classes_}

    # fitting, part by part

    def _check_settings(self) -> None:
        check_settings(self)
        self._recipe()
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout: expected a share from 0 to below 1, got {self.dropout:g}")
        if self.rank is None:
            return
        if self.rank < 1:
            raise UserError(f"rank: expected 1 or more, or None, got {self.rank}")
        acting = [name for name in _NEED_ENTRIES if getattr(self, name) not in _without_effect(name)]
        if acting:
            given = " and ".join(f"{name}={getattr(self, name)!r}" for name in acting)
            raise UserError(f"{given} needs the entries of gradients, which rank= never makes; leave one of them out")

    def _prepare(self, example: Tensor) -> GradientSpace | FactorSpace:
        self.space_ = self._open_space(example, factors=self.rank is not None)
        names = self.class_names or getattr(self.model, "class_names", None)
        self.class_names_ = None if names is None else tuple(names)
        self.n_classes_ = self.space_.num_classes
        self.classes_ = np.arange(self.n_classes_)
        return self.space_

    def _new_head(self, space: GradientSpace | FactorSpace) -> GradNetHead | LowRankHead:
        """The hidden layer over the space's blocks, whose share of the memory budget is no longer the space's."""
        with torch.device("meta"):  # shapes only, to be weighed before they are made
            self._share_memory(space, self._build_head(space))
        return self._build_head(space).to(self.dtype_)

    def _build_head(self, space: GradientSpace | FactorSpace) -> GradNetHead | LowRankHead:
        groups = hidden_groups(len(space.blocks), self.neighbours)
        hidden = auto_hidden(len(groups)) if isinstance(self.hidden, str) else tuple(self.hidden)
        common: dict[str, Any] = {"neighbours": self.neighbours, "dropout": self.dropout}
        if isinstance(space, GradientSpace):
            return GradNetHead([block.numel for block in space.blocks], hidden, self.n_classes_, **common)
        assert self.rank is not None
        sides = [(block.shape[0], block.numel // block.shape[0]) for block in space.blocks]
        return LowRankHead(sides, hidden, self.n_classes_, rank=self.rank, scales=space.scales(), **common)

    def _share_memory(self, space: GradientSpace | FactorSpace, head: GradNetHead | LowRankHead) -> None:
        """Refuse a head whose training would not fit the memory budget; leave the space the rest of it."""
        if isinstance(head, LowRankHead) and isinstance(space, FactorSpace):
            space.functionals = head.functionals([block.name for block in space.blocks])
        sizes = [parameter.numel() for parameter in head.parameters()]
        copies = 2 + optimizer_copies(self.optimizer, self.optimizer_options or {})
        weights = self.dtype_.itemsize * (sum(sizes) * copies + max(sizes))  # the optimizer works on one at a time
        step = space.step_bytes(self.batch_size, self.n_classes_ if self.labels == "all" else 1)
        needed, budget = bytes_of(self.model_) + weights + step, parse_memory(self.memory)
        if needed > budget:
            raise UserError(
                f"GradNet's blocks need {format_memory(needed)} (hidden sizes {head.sizes} over "
                f"{sum(block.numel for block in space.blocks):,} gradient entries, {self.batch_size} images a step), "
                f"more than memory={self.memory!r}: raise memory, make hidden smaller, choose fewer layers with "
                "layers=[...], take a smaller batch_size, or read less with rank=, project= or coordinates="
            )
        space.engine.memory = budget - bytes_of(self.model_) - weights

    def _recipe(self) -> Recipe:
        return Recipe(
            epochs=None if self.steps or self.budget else self.epochs,
            steps=self.steps,
            budget=self.budget if self.steps is None else None,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            optimizer_options=dict(self.optimizer_options or {}),
            lr=self.lr,
            schedule=self.schedule,
        )

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.augment is None:
            return self._inputs(images)
        return augment(images.to(self.device_), self.preprocess_, self.augment, generator).to(self.dtype_)

    def _training_batch(
        self, space: GradientSpace | FactorSpace, images: Tensor, targets: Tensor, indices: Tensor, generator: Any
    ) -> tuple[Any, Tensor]:
        """Gradient blocks (or factors) under random (or all) labels, and the true label of each row."""
        inputs = self._augmented(images[indices], generator)
        truth = targets[indices].to(self.device_)
        if self.labels == "all":
            return self._blocks(space, inputs, "all"), truth.repeat_interleave(self.n_classes_)
        return self._blocks(space, inputs, self._random_labels(len(indices), generator)), truth

    def _blocks(self, space: GradientSpace | FactorSpace, inputs: Tensor, labels: Labels) -> Any:
        if isinstance(space, GradientSpace) and space.selects_rows:
            return space.selected(inputs, labels)
        return space(inputs, labels)

    def _random_labels(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.n_classes_, (count,), generator=generator).to(self.device_)

    def _fit_statistics(self, space: GradientSpace | FactorSpace, images: Tensor, directory: Path | None) -> float:
        """One pass over the images under random labels, in file order, kept on disk for a fit that goes on later."""
        stored = None if directory is None else directory / "statistics.safetensors"
        if stored is not None and stored.exists():
            space.load_statistics(read_tensors(stored))
            return float(json.loads((directory / "statistics.json").read_text())["cpu_seconds"])  # type: ignore[operator]
        watch = Stopwatch(self.device_)
        with watch:
            if isinstance(space, GradientSpace) and space.needs_locating:
                space.locate(self._statistics_batches(images))
            if space.needs_statistics:
                space.fit(self._statistics_batches(images))
        if stored is not None:
            write_atomic(stored.with_suffix(".json"), json.dumps({"cpu_seconds": watch.cpu_seconds}))
            save_tensors(space.statistics(), stored)
        return watch.cpu_seconds

    def _statistics_batches(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.random_state)
        with progress("gradient statistics", len(images), unit="images") as advance:
            for start in range(0, len(images), STATISTICS_BATCH):
                chunk = images[start : start + STATISTICS_BATCH]
                yield self._augmented(chunk, generator), self._random_labels(len(chunk), generator)
                advance(len(chunk))

    def _claim(self, directory: Path, images: Tensor, targets: Tensor) -> None:
        """Make `directory` this fit's own: its checkpoints may only be continued with the same settings and data."""
        digest = hashlib.sha256(images.cpu().contiguous().view(-1).numpy().data)
        digest.update(targets.numpy().tobytes())
        for tensor in self.model_.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        mine = {"settings": self._settings(), "data_and_model": digest.hexdigest()}
        claim = directory / "fit.json"
        if claim.exists() and json.loads(claim.read_text()) != mine:
            raise UserError(
                f"{directory} holds the checkpoint of a fit with other settings, data or model; choose another one"
            )
        write_atomic(claim, json.dumps(mine, indent=1))

    # predicting

    def _mean_logits(self, images: Tensor, *, show_progress: bool) -> Tensor:
        self.head_.eval()
        chunk = self.space_.images_per_chunk("all")
        parts = [torch.empty(0, self.n_classes_, dtype=self.dtype_)]
        with torch.no_grad(), progress("predicting", len(images) if show_progress else 0, unit="images") as advance:
            for start in range(0, len(images), chunk):
                inputs = self._inputs(images[start : start + chunk])
                logits = self.head_(self._blocks(self.space_, inputs, "all"))
                parts.append(logits.view(len(inputs), self.n_classes_, -1).mean(dim=1).cpu())
                advance(len(inputs))
        return torch.cat(parts)

    def _validator(self, x: Any, y: Any) -> Callable[[nn.Module], dict[str, float]]:
        """A learning curve's points: accuracy and NLL on at most 500 images, spread evenly over those given."""
        images = image_tensor(x)
        targets = label_tensor(y, len(images), self.n_classes_)
        spread = torch.linspace(0, len(images) - 1, min(VALIDATION_IMAGES, len(images))).long()

        def validate(_: nn.Module) -> dict[str, float]:
            logits = self._mean_logits(images[spread], show_progress=False)
            right = (logits.argmax(dim=1) == targets[spread]).double().mean()
            return {"accuracy": float(right), "nll": float(F.cross_entropy(logits, targets[spread]))}

        return validate

    # saving

    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments that are plain values, as JSON takes them."""
        skipped = {"model", "augment", "preprocess", "directory", "device"}
        settings = {key: value for key, value in self.get_params(deep=False).items() if key not in skipped}
        settings["augment"] = None if self.augment is None else self.augment.model_dump()
        return json.loads(json.dumps(settings, default=list))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a directory that `GradNet.load` reads: the base network, GradNet's weights, preprocessing, names."""
        check_is_fitted(self, "head_")
        directory = Path(path)
        checkpoints.save(
            self.model_, directory / "base", preprocess=self.preprocess_, class_names=self.class_names_ or ()
        )
        tensors = {f"head.{key}": value for key, value in self.head_.state_dict().items()}
        tensors |= {f"statistics.{key}": value for key, value in self.space_.statistics().items()}
        save_tensors(tensors, directory / "gradnet.safetensors")
        manifest = {
            "settings": self._settings(),
            "image_shape": self.image_shape_,
            "hidden": self.head_.sizes,
            "class_names": self.class_names_,
            "fit_cpu_seconds": self.fit_cpu_seconds_,
        }
        write_manifest(directory, "gradnet", manifest)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, factory: Any = None, device: str = "auto") -> GradNet:
        """Read what `save` wrote; `factory` builds a base network whose code is the user's own. No pickle is read."""
        directory = Path(path)
        manifest = read_manifest(directory, "gradnet")
        base: Any = checkpoints.load(directory / "base", factory=factory)
        settings = manifest["settings"]
        settings["augment"] = None if settings["augment"] is None else Augmentation(**settings["augment"])
        settings["hidden"] = tuple(manifest["hidden"])
        gradnet = cls(base, **settings, preprocess=base.preprocess, device=device)
        tensors = read_tensors(directory / "gradnet.safetensors")
        space = gradnet._prepare(torch.zeros(3, *manifest["image_shape"], dtype=torch.uint8))
        space.load_statistics(
            {key.removeprefix("statistics."): value for key, value in tensors.items() if key.startswith("statistics.")}
        )
        gradnet.head_ = gradnet._new_head(space).to(gradnet.device_)
        gradnet.head_.load_state_dict(
            {key.removeprefix("head."): value for key, value in tensors.items() if key.startswith("head.")}
        )
        gradnet.fit_cpu_seconds_ = manifest["fit_cpu_seconds"]
        return gradnet


def _without_effect(setting: str) -> tuple[Any, ...]:
    """The values of a setting on entries that ask for nothing: its default, and the one that leaves entries alone."""
    default = inspect.signature(GradNet).parameters[setting].default
    return {"select": (None, default), "normalise": ("none", default)}.get(setting, (default,))
