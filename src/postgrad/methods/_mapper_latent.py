"""Latent coordinates of points for Mapper: principal components, a code, or what a trained network makes of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor, nn

from postgrad.data.preprocessing import Preprocessing
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.methods._last_layer import last_layer
from postgrad.methods._mapper_encoders import ENCODERS, encoded, trained_encoder
from postgrad.methods.gradient_features import GradientFeatures
from postgrad.models.network import evaluating

Kind = Literal["pca", "autoencoder", "vae", "vae-sampled", "penultimate", "gradients"]
OF_A_NETWORK = ("penultimate", "gradients")

_PROJECTED = 256
"""Numbers that are made of each layer's gradient."""
_AT_ONCE = 2048
_IMAGES_AT_ONCE = 250


@dataclass(frozen=True)
class Data:
    """Points as rows (n, d), and as the images (n, C, H, W) that they were, or None."""

    rows: NDArray[Any]
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Settings:
    """What the latent coordinates need to know of the estimator's settings."""

    kind: Kind
    count: int
    model: nn.Module | None
    preprocess: Preprocessing | None
    epochs: float
    seed: int
    device: Any
    memory: str
    directory: Path | None = None


class Latent(ABC):
    """From points to `count` coordinates each, float64.

    >>> latent = fit_latent(data, Settings("pca", 20, …))
    >>> latent(data).shape
    (n, 20)
    """

    num_parameters: int

    @abstractmethod
    def __call__(self, data: Data) -> NDArray[np.float64]:
        """The coordinates (n, count)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that was fitted, by name."""


class Principal(Latent):
    """Unwhitened principal components of the points' numbers, or of what a network makes of them."""

    def __init__(self, features: Features, mean: NDArray[np.float64], axes: NDArray[np.float64]) -> None:
        self.features, self.mean, self.axes = features, mean, axes
        self.num_parameters = mean.size + axes.size + features.num_parameters

    def __call__(self, data: Data) -> NDArray[np.float64]:
        rows = self.features(data)
        parts = [np.empty((0, len(self.axes)))]
        parts += [(rows[at : at + _AT_ONCE] - self.mean) @ self.axes.T for at in range(0, len(rows), _AT_ONCE)]
        return np.concatenate(parts)

    def tensors(self) -> dict[str, Tensor]:
        own = {"mean": torch.from_numpy(self.mean), "axes": torch.from_numpy(self.axes)}
        return own | {f"features.{name}": value for name, value in self.features.tensors().items()}


class Code(Latent):
    """The code of an autoencoder; of a variational one its mean, or samples that depend on the seed alone."""

    def __init__(self, network: nn.Module, noise_seed: int | None) -> None:
        self.network, self.noise_seed = network.eval(), noise_seed
        self.num_parameters = sum(p.numel() for p in network.parameters())

    def __call__(self, data: Data) -> NDArray[np.float64]:
        return encoded(self.network, data.rows, noise_seed=self.noise_seed)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())


class Features:
    """The points' own numbers."""

    num_parameters = 0

    def __call__(self, data: Data) -> NDArray[Any]:
        return data.rows

    def tensors(self) -> dict[str, Tensor]:
        return {}


class PenultimateFeatures(Features):
    """What goes into the last layer of a network."""

    def __init__(self, settings: Settings) -> None:
        assert settings.model is not None
        self.model = deepcopy(settings.model).to(pick_device(settings.device)).eval().requires_grad_(False)
        self.preprocess = settings.preprocess or getattr(settings.model, "preprocess", None) or Preprocessing()
        self.last = last_layer(self.model)
        self.num_parameters = sum(p.numel() for p in self.model.parameters())

    def __call__(self, data: Data) -> NDArray[Any]:
        assert data.images is not None
        parameter = next(self.model.parameters())
        caught: list[Tensor] = []
        hook = self.last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].flatten(1).cpu()))
        try:
            with torch.no_grad(), evaluating(self.model):
                for part in data.images.split(_IMAGES_AT_ONCE):
                    self.model(self.preprocess(part.to(parameter.device)).to(parameter.dtype))
        finally:
            hook.remove()
        return torch.cat(caught).float().numpy()


class GradientSpaceFeatures(Features):
    """Random projections of a network's gradients under its own predictions, scaled as GradNet scales them."""

    def __init__(self, settings: Settings) -> None:
        assert settings.model is not None
        self.features = GradientFeatures(
            settings.model,
            select=None,
            project=_PROJECTED,
            preprocess=settings.preprocess,
            random_state=settings.seed,
            device=settings.device,
            memory=settings.memory,
        )
        self.num_parameters = sum(p.numel() for p in settings.model.parameters())

    def fit(self, data: Data) -> GradientSpaceFeatures:
        self.features.fit(data.images)
        return self

    def __call__(self, data: Data) -> NDArray[Any]:
        return self.features.transform(data.images).toarray()

    def tensors(self) -> dict[str, Tensor]:
        return self.features.space_.statistics()


def fit_latent(data: Data, settings: Settings) -> Latent:
    """The coordinates of that kind, fitted on the points; never more than there are points, or numbers in each."""
    if settings.kind in OF_A_NETWORK and (settings.model is None or data.images is None):
        raise UserError(f"latent='{settings.kind}' needs a network, model=, and images (N, C, H, W)")
    base = settings.kind.removesuffix("-sampled")
    if base in ENCODERS:
        count = min(settings.count, data.rows.shape[1])
        directory = None if settings.directory is None else settings.directory / "latent"
        device = pick_device(settings.device)
        network = trained_encoder(
            base, data.rows, count, epochs=settings.epochs, seed=settings.seed, device=device, directory=directory
        )
        return Code(network, _noise_seed(settings))
    features = _FEATURES[settings.kind](settings)
    if isinstance(features, GradientSpaceFeatures):
        features.fit(data)
    rows = features(data)
    return Principal(features, *_principal(rows, min(settings.count, *rows.shape), settings.seed))


def load_latent(tensors: dict[str, Tensor], settings: Settings, example: Data) -> Latent:
    """What was fitted, from its tensors; `example` is any few points of the same shape."""
    base = settings.kind.removesuffix("-sampled")
    if base in ENCODERS:
        encoder, code = tensors["encoder.weight"], tensors["mean.weight" if base == "vae" else "encoder.weight"]
        network = ENCODERS[base](encoder.shape[1], len(code)).to(pick_device(settings.device))
        network.load_state_dict(tensors)
        return Code(network, _noise_seed(settings))
    features = _FEATURES[settings.kind](settings)
    if isinstance(features, GradientSpaceFeatures):
        statistics = {name.removeprefix("features."): t for name, t in tensors.items() if name.startswith("features.")}
        features.fit(example).features.space_.load_statistics(statistics)
    return Principal(features, tensors["mean"].numpy(), tensors["axes"].numpy())


def _noise_seed(settings: Settings) -> int | None:
    return settings.seed if settings.kind == "vae-sampled" else None


_FEATURES: dict[str, Callable[[Settings], Features]] = {
    "pca": lambda settings: Features(),
    "penultimate": PenultimateFeatures,
    "gradients": GradientSpaceFeatures,
}


def _principal(rows: NDArray[Any], count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the first principal axes."""
    if len(rows) == 1:  # which has no variance to divide
        return rows[0].astype(np.float64), np.eye(1, rows.shape[1])
    with np.errstate(invalid="ignore"):  # points that are all alike have no variance to be explained
        pca = PCA(count, random_state=seed).fit(rows)
    return pca.mean_.astype(np.float64), pca.components_.astype(np.float64)
