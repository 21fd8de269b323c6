"""control-same-price: what ordinary networks give for as many passes an image as the method takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from postgrad.artifacts import read_manifest, write_manifest
from postgrad.controls.finetune import finetune
from postgrad.controls.setting import Setting
from postgrad.controls.tuning import Fitted
from postgrad.data.inputs import image_tensor
from postgrad.data.preprocessing import Augmentation, Preprocessing, views
from postgrad.devices import pick_device
from postgrad.models import checkpoints
from postgrad.models.network import taking

MEMBERS = 3


class Ensemble:
    """A classifier: the mean probabilities of some networks, each over some views (shifted, mirrored) of the image.

    >>> Ensemble([network], views=10, augmentation=augmentation, preprocess=preprocess, class_names=names)

    One network with several views is test-time augmentation.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        views: int,
        augmentation: Augmentation,
        preprocess: Preprocessing,
        class_names: Sequence[str],
    ) -> None:
        self.members = [member.eval() for member in members]
        self.views = views
        self.augmentation = augmentation
        self.preprocess = preprocess
        self.class_names = tuple(class_names)
        self.classes_ = np.arange(len(self.class_names))

    @property
    def inference_passes(self) -> int:
        return len(self.members) * self.views

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for member in self.members for p in member.parameters())

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities (N, C) of images (N, C, H, W)."""
        images = image_tensor(x, allow_empty=True)
        parts = [torch.empty(0, len(self.classes_))]
        with torch.no_grad():
            parts += [self._mean(part) for part in images.split(250) if len(part)]
        return torch.cat(parts).numpy()

    def predict(self, x: Any) -> np.ndarray:
        """Class indices (N,)."""
        return self.predict_proba(x).argmax(axis=1)

    def _mean(self, images: Tensor) -> Tensor:
        device = next(self.members[0].parameters()).device
        total = torch.zeros(len(images), len(self.classes_), device=device)
        for view in views(images.to(device), self.preprocess, self.views, augmentation=self.augmentation):
            for member in self.members:
                with taking(member, view, images):
                    total += member(view).softmax(dim=1)
        return (total / self.inference_passes).cpu()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a directory that `load` reads."""
        directory = Path(path)
        for number, member in enumerate(self.members):
            name = f"member-{number}"
            checkpoints.save(member, directory / name, preprocess=self.preprocess, class_names=self.class_names)
        content = {
            "members": len(self.members),
            "views": self.views,
            "augmentation": self.augmentation.model_dump(),
            "class_names": self.class_names,
        }
        write_manifest(directory, "ensemble", content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, factory: Any = None, device: str = "auto") -> Ensemble:
        """Read what `save` wrote."""
        directory = Path(path)
        manifest = read_manifest(directory, "ensemble")
        members: list[Any] = [
            checkpoints.load(directory / f"member-{number}", factory=factory).to(pick_device(device))
            for number in range(manifest["members"])
        ]
        return cls(
            members,
            views=manifest["views"],
            augmentation=Augmentation(**manifest["augmentation"]),
            preprocess=members[0].preprocess,
            class_names=manifest["class_names"],
        )


def control_same_price(setting: Setting, finetuned: nn.Module, more_data: nn.Module) -> Fitted:
    """The best, on validation data, of test-time augmentation of either control and an ensemble of fine-tuned bases.

    The members of the ensemble share the method's time; augmentation at test time needs no training. The ensemble is
    tried without augmentation too, since on images that fill their frame a shift does more harm than good.
    """
    count = min(MEMBERS, setting.passes)
    share = setting.passes // count
    members = [
        finetune(setting, setting.method_seconds / count, f"training-{number}", setting.seed + 1000 * (number + 1))
        for number in range(count)
    ]
    candidates = {
        f"control-finetune under {setting.passes} views": _ensemble(setting, [finetuned], setting.passes),
        f"control-more-data under {setting.passes} views": _ensemble(setting, [more_data], setting.passes),
        f"{count} networks fine-tuned from the base, each under {share} views": _ensemble(
            setting, [member.model for member in members], share
        ),
        f"{count} networks fine-tuned from the base": _ensemble(setting, [m.model for m in members], 1),
    }
    validation = setting.validation
    scores = {name: _accuracy(candidate, validation) for name, candidate in candidates.items()}
    best = max(scores, key=lambda name: scores[name])
    trials = [{"candidate": name, "accuracy": score} for name, score in scores.items()]
    return Fitted(candidates[best], sum(m.cpu_seconds for m in members), f"the best on validation: {best}", trials)


def _ensemble(setting: Setting, members: Sequence[nn.Module], count: int) -> Ensemble:
    return Ensemble(
        members,
        views=count,
        augmentation=setting.augmentation,
        preprocess=setting.preprocess,
        class_names=setting.dataset.class_names,
    )


def _accuracy(classifier: Ensemble, images: Any) -> float:
    return float((classifier.predict(images.images) == images.labels.numpy()).mean())
