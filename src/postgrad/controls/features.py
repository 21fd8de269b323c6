"""control-features: an MLP with as many parameters as the method, on the base's penultimate activations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from postgrad.artifacts import read_manifest, read_tensors, save_tensors, write_manifest
from postgrad.controls.setting import Setting
from postgrad.controls.tuning import Fitted, Task, accuracy_and_nll, tuned
from postgrad.data.inputs import image_tensor
from postgrad.data.preprocessing import Preprocessing
from postgrad.devices import pick_device
from postgrad.errors import UserError
from postgrad.models import checkpoints
from postgrad.models.network import taking

RATES = (0.005, 0.02, 0.08)
VALIDATION_IMAGES = 1000
BATCH = 250


def last_layer(network: nn.Module, example: Tensor) -> str:
    """The name of the last layer with weights that a forward pass runs through: the one that makes the logits."""
    called: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, layer in network.named_modules()
        if is_parametrized(layer)
        or (next(layer.children(), None) is None and next(layer.parameters(recurse=False), None) is not None)
    ]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise UserError("control-features reads what goes into the network's last layer; this network has no layers")
    return called[-1]


def penultimate(network: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """What goes into the last layer, flattened: (N, features)."""
    caught: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        hook.remove()
    return caught[0].flatten(1)


def hidden_size(parameters: int, features: int, classes: int) -> int:
    """The hidden size at which an MLP features → hidden → classes has as close to `parameters` as it gets."""
    return max(1, round((parameters - classes) / (features + 1 + classes)))


def make_mlp(features: int, hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


class FeaturesMLP:
    """A classifier: the base network up to its last layer, then an MLP.

    >>> FeaturesMLP.load("runs/demo/control-features").predict_proba(images).shape
    (N, C)
    """

    inference_passes = 1

    def __init__(
        self, base: nn.Module, mlp: nn.Module, *, layer: str, preprocess: Preprocessing, class_names: Sequence[str]
    ) -> None:
        self.base = base.eval()
        self.mlp = mlp.eval()
        self.layer = layer
        self.preprocess = preprocess
        self.class_names = tuple(class_names)
        self.classes_ = np.arange(mlp[-1].out_features)  # type: ignore[index]

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for module in (self.base, self.mlp) for p in module.parameters())

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities (N, C) of images (N, C, H, W)."""
        images = image_tensor(x, allow_empty=True)
        parts = [torch.empty(0, len(self.classes_))]
        device = next(self.base.parameters()).device
        with torch.no_grad():
            for part in images.split(BATCH) if len(images) else ():
                x = self.preprocess(part.to(device))
                with taking(self.base, x, part):
                    features = penultimate(self.base, self.layer, x)
                parts.append(self.mlp(features).softmax(dim=1).cpu())
        return torch.cat(parts).numpy()

    def predict(self, x: Any) -> np.ndarray:
        """Class indices (N,)."""
        return self.predict_proba(x).argmax(axis=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a directory that `load` reads."""
        directory = Path(path)
        checkpoints.save(self.base, directory / "base", preprocess=self.preprocess, class_names=self.class_names)
        save_tensors(self.mlp.state_dict(), directory / "mlp.safetensors")
        write_manifest(directory, "features-mlp", {"layer": self.layer, "class_names": self.class_names})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, factory: Any = None, device: str = "auto") -> FeaturesMLP:
        """Read what `save` wrote."""
        directory = Path(path)
        manifest = read_manifest(directory, "features-mlp")
        base: Any = checkpoints.load(directory / "base", factory=factory)
        tensors = read_tensors(directory / "mlp.safetensors")
        hidden, features = tensors["0.weight"].shape
        mlp = make_mlp(features, hidden, len(tensors["2.bias"]))
        mlp.load_state_dict(tensors)
        return cls(
            base.to(pick_device(device)),
            mlp.to(pick_device(device)),
            layer=manifest["layer"],
            preprocess=base.preprocess,
            class_names=manifest["class_names"],
        )


def control_features(setting: Setting) -> Fitted:
    """Fit the MLP on the images of the method, for the method's time, its learning rate chosen on validation data."""
    base = deepcopy(setting.base).eval()
    images, validation = setting.tuning_images, setting.validation
    layer = last_layer(base, setting.preprocess(images.images[:1].to(setting.device)))
    chosen = validation.subset(torch.arange(min(VALIDATION_IMAGES, len(validation))))
    held_out = torch.cat(
        [penultimate(base, layer, setting.preprocess(part.to(setting.device))) for part in chosen.images.split(BATCH)]
    )
    classes = setting.dataset.num_classes
    hidden = hidden_size(setting.method_parameters, held_out.shape[1], classes)

    def make_batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, labels = setting.training_batch(images, indices, generator)
        return penultimate(base, layer, inputs), labels

    def validate(mlp: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return accuracy_and_nll(mlp(held_out).cpu(), chosen.labels)

    fitted = tuned(
        Task(
            lambda: make_mlp(held_out.shape[1], hidden, classes).to(setting.device), len(images), make_batch, validate
        ),
        rates=RATES,
        seconds=setting.method_seconds,
        seed=setting.seed,
        directory=setting.directory / "training",
        steps=setting.steps,
        key=setting.key("training"),
    )
    classifier = FeaturesMLP(
        base, fitted.model, layer=layer, preprocess=setting.preprocess, class_names=setting.dataset.class_names
    )
    return Fitted(classifier, fitted.cpu_seconds, f"{hidden} hidden units, {fitted.description}", fitted.trials)
