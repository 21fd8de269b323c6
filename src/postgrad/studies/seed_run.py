"""One seed of a run: its networks, its arms' directories, and what the controls of its methods are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from postgrad._loading import load
from postgrad.controls import Setting
from postgrad.models.network import NetworkClassifier
from postgrad.models.registry import create_model
from postgrad.studies.run import ArmRecord, Run


@dataclass(frozen=True)
class SeedRun:
    """One seed of a run; whatever an arm needs of others is loaded from their directories.

    >>> seed_run = SeedRun(run, seed=3)
    >>> seed_run.network("base"), seed_run.record("base").cpu_seconds
    """

    run: Run
    seed: int

    def directory(self, arm: str) -> Path:
        """Where the arm lies."""
        return self.run.arm_directory(self.seed, arm)

    def fresh(self, model: str | None = None) -> nn.Module:
        """The run's architecture, or another, with new weights: the same for every arm of a seed that starts so."""
        channels, height, width = self.run.dataset.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return create_model(
                model or self.run.config.model,
                num_classes=self.run.dataset.num_classes,
                in_channels=channels,
                image_size=(height, width),
            ).to(self.run.device)

    def network(self, arm: str) -> nn.Module:
        """The network of a finished arm."""
        if arm == "base" and self.run.own is not None:
            return self.run.own
        network: nn.Module = load(self.directory(arm))
        return network.to(self.run.device)

    def record(self, arm: str) -> ArmRecord:
        """What is remembered of a finished arm."""
        record = ArmRecord.read(self.directory(arm))
        assert record is not None, f"{arm} of seed {self.seed} is not finished"
        return record

    def classifier(self, model: Any) -> Any:
        """A network as a classifier; what classifies already is left as it is."""
        if not isinstance(model, nn.Module):
            return model
        run = self.run
        return NetworkClassifier(
            model, preprocess=run.preprocess, class_names=run.dataset.class_names, device=str(run.device)
        )

    def setting(self, base: nn.Module, directory: Path, **of_method: Any) -> Setting:
        """What a training of this seed is given; `of_method` is what a control must match."""
        run = self.run
        return Setting(
            dataset=run.dataset,
            halves=run.halves,
            base=base,
            preprocess=run.preprocess,
            augmentation=run.augmentation,
            seed=self.seed,
            directory=directory,
            steps=run.steps,
            **of_method,
        )
