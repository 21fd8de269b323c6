"""Training-time methods in a training by Lightning's Trainer: one callback that calls the same functions."""

from __future__ import annotations

from typing import Any

from torch import nn

from postgrad._compat import prepare_torchvision
from postgrad.errors import UserError
from postgrad.methods.at_work import MethodsAtWork
from postgrad.methods.registry import get_method, parse_method

prepare_torchvision()  # torchmetrics, which Lightning imports, imports torchvision

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402


class TrainingMethods(Callback):
    """Brings methods into a Lightning training, in the form that `--method` takes.

    >>> Trainer(callbacks=[TrainingMethods("frn", "powergrad:alpha=0.25", "ema:decay=0.99")]).fit(module, loader)

    Surgeries change the module's networks before its optimizers are made. A loss takes the place of every
    `nn.CrossEntropyLoss` that the module has as a submodule, with its label smoothing; in a module that calls
    `F.cross_entropy` write the method's own function in its place. Weights are averaged after each step of the
    optimizer, and their mean is what the module has when the training is over. Statistics of batch normalisation stay
    those of the training; `torch.optim.swa_utils.update_bn` makes them anew.

    Raises `UserError` for unknown methods and options, for a module without such a loss, and for more than one
    optimizer with an average of weights.
    """

    def __init__(self, *methods: str) -> None:
        self._methods = [parse_method(word) for word in methods]
        self._at_work: MethodsAtWork | None = None
        self._state: dict[str, Any] = {}
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Change the network, once, before there are optimizers."""
        if stage != "fit" or self._at_work is not None:
            return
        losses = [name for name, _ in self._methods if get_method(name).shape == "loss"]
        places = [
            (parent, name, child)
            for parent in pl_module.modules()
            for name, child in parent.named_children()
            if type(child) is nn.CrossEntropyLoss
        ]
        if losses and not places:
            raise UserError(
                f"{losses[0]}: the module has no nn.CrossEntropyLoss to take the place of; call the method's own "
                "function in training_step instead"
            )
        smoothing = places[0][2].label_smoothing if places else 0.0
        self._at_work = MethodsAtWork(pl_module, self._methods, steps_per_epoch=1, label_smoothing=smoothing)
        for parent, name, _ in places if losses else []:
            setattr(parent, name, _Loss(self._at_work))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin averages, and go on with what a checkpoint held."""
        assert self._at_work is not None
        if len(trainer.optimizers) != 1:
            raise UserError(f"expected one optimizer, got {len(trainer.optimizers)}")
        batches = int(trainer.num_training_batches)
        self._at_work.steps_per_epoch = max(1, batches // trainer.accumulate_grad_batches)
        self._at_work.begin(trainer.optimizers[0], int(trainer.estimated_stepping_batches))
        if self._state:
            self._at_work.load_state_dict(self._state)
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """After a step of the optimizer, which with accumulation not every batch is."""
        assert self._at_work is not None
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._at_work.after_step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the mean in the network."""
        assert self._at_work is not None
        self._at_work.finish()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._at_work is None else self._at_work.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict


class _Loss(nn.Module):
    """Stands where the module had its cross-entropy."""

    def __init__(self, at_work: MethodsAtWork) -> None:
        super().__init__()
        self._at_work = [at_work]  # in a list, so that it is no part of the module

    def forward(self, logits: Any, target: Any) -> Any:
        return self._at_work[0].cross_entropy(logits, target)
