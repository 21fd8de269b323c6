"""Training-time methods and growth in a training by Lightning's Trainer: callbacks that call the same functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from postgrad._compat import prepare_torchvision
from postgrad.changes import Change, apply_changes, changes_of
from postgrad.errors import UserError
from postgrad.growth.operations import grow
from postgrad.growth.words import parse_stages
from postgrad.methods.at_work import MethodsAtWork
from postgrad.methods.registry import get_method, parse_method
from postgrad.models.network import evaluating
from postgrad.training.optimizers import names_in_order, put_in_order

prepare_torchvision()  # torchmetrics, which Lightning imports, imports torchvision

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging  # noqa: E402


class TrainingMethods(Callback):
    """Brings methods into a Lightning training, in the form that `--method` takes.

    >>> Trainer(callbacks=[TrainingMethods("frn", "powergrad:alpha=0.25", "ema:decay=0.99")]).fit(module, loader)

    Surgeries change the module's networks before its optimizers are made. A loss takes the place of every
    `nn.CrossEntropyLoss` that the module has as a submodule, with its label smoothing; in a module that calls
    `F.cross_entropy` write the method's own function in its place. Weights are averaged after each step of the
    optimizer, and their mean is what the module has when the training is over. Statistics of batch normalisation stay
    those of the training; `torch.optim.swa_utils.update_bn` makes them anew.

    Distillation learns from `teacher`, a network that sees the inputs as the module does: the first element of a batch.
    In validation the loss is then the cross-entropy.

    >>> TrainingMethods("distillation:kind=dkd,T=4", teacher=teacher)

    Raises `UserError` for unknown methods and options, for a module without such a loss, for more than one optimizer
    with an average of weights, for distillation without a teacher, and for its kinds that compare features.
    """

    def __init__(self, *methods: str, teacher: nn.Module | None = None) -> None:
        self._methods = [parse_method(word) for word in methods]
        self._teacher = [teacher] if teacher is not None else []
        self._word: list[Tensor] = []
        self._at_work: MethodsAtWork | None = None
        self._state: dict[str, Any] = {}
        self._step = 0

    @property
    def averages(self) -> bool:
        """Whether a mean of the weights is kept."""
        return any(get_method(name).shape == "weights" for name, _ in self._methods)

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
        if self._at_work.teacher_hint is not None:
            raise UserError(
                "distillation: features are compared by DistillationLoss in training_step, not by a callback"
            )
        if self._at_work.learns_from_teacher != bool(self._teacher):
            raise UserError('distillation and its teacher belong together: TrainingMethods("distillation", teacher=…)')
        for parent, name, _ in places if losses else []:
            setattr(parent, name, _Loss(self._at_work, self._word))

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

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask the teacher."""
        for teacher in self._teacher:
            with evaluating(teacher.to(pl_module.device)), trainer.precision_plugin.forward_context():
                self._word[:] = [teacher(_inputs(batch, "distillation"))]

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


class GrowAt(Callback):
    """Grows the network of a Lightning training at the beginning of some epochs, its optimizer carried over.

    >>> Trainer(callbacks=[GrowAt({3: ["widen:layer=conv1,to=96"], 6: ["deepen:after=layer3"]})]).fit(module, loader)

    Epochs are counted as Lightning counts them: 3 is when three are over. Operations are in the words of `postgrad
    train --grow`, and layers are named as in the network: the attribute `network` of the module, by default the only
    one that has parameters. It is called with the first element of a batch (or the batch, where that is a tensor), on
    which the growth is certified. The optimizer stays the same object, and so do schedules.

    What was grown is kept in Lightning's checkpoints, and done again where `fit`, `validate` or `test` is given one: on
    a fresh module, as it was made for the training.

    Raises `UserError` for words that cannot be read; a module in which the network is not found; more than one
    optimizer, or process; a checkpoint of a network that was grown in another way; whatever the operators refuse.
    """

    _KEY = "postgrad.growth"

    def __init__(self, stages: Mapping[int, str | Sequence[str]], *, network: str | None = None, seed: int = 0) -> None:
        read = parse_stages(stages)
        self._stages = {epoch: [each.checked() for each in calls] for epoch, calls in read.items()}
        self._network = network
        self._seed = seed
        self._grown: set[int] = set()
        self._order: list[list[str]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Be told of the checkpoint before the weights in it are loaded, which the callback's own hooks are not."""
        self._find(pl_module)
        own = pl_module.on_load_checkpoint

        def regrown(checkpoint: dict[str, Any]) -> None:
            self._grow_again(pl_module, checkpoint.get(self._KEY, {}))
            own(checkpoint)

        pl_module.on_load_checkpoint = regrown  # type: ignore[method-assign]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizer is there, its state is not yet: let its parameters stand as they did."""
        if trainer.world_size > 1:
            raise UserError("growth: a network grows in a training of one process; grow it between two trainings")
        if len(trainer.optimizers) != 1:
            raise UserError(f"growth: expected one optimizer, got {len(trainer.optimizers)}")
        if any(_averages(callback) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "growth: a mean of the weights is not carried over the growth of its network; leave one out"
            )
        if self._order is not None:
            put_in_order(trainer.optimizers[0], pl_module, self._order)
            self._order = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Grow before the first step of an epoch."""
        epoch = trainer.current_epoch
        if epoch not in self._stages or epoch in self._grown:
            return
        grow(
            self._find(pl_module),
            self._stages[epoch],
            example=_inputs(batch, "growth"),
            optimizer=trainer.optimizers[0],
            seed=self._seed,
        )
        self._grown.add(epoch)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what was grown, and the order of the optimizer's parameters."""
        checkpoint[self._KEY] = {
            "epochs": sorted(self._grown),
            "changes": [each.model_dump(mode="json") for each in changes_of(self._find(pl_module))],
            "order": [names_in_order(each, pl_module) for each in trainer.optimizers],
        }

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its own hook back."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def _grow_again(self, pl_module: LightningModule, kept: Mapping[str, Any]) -> None:
        network = self._find(pl_module)
        changes = tuple(Change(**each) for each in kept.get("changes", []))
        there = changes_of(network)
        if there != changes[: len(there)]:
            raise UserError(
                "growth: the network was grown in another way than the checkpoint's; load it into a module made anew"
            )
        apply_changes(network, changes[len(there) :])
        self._grown = set(kept.get("epochs", []))
        self._order = next(iter(kept.get("order", [])), None)

    def _find(self, pl_module: LightningModule) -> nn.Module:
        """The network in the module."""
        children = {name: child for name, child in pl_module.named_children() if any(True for _ in child.parameters())}
        name = self._network if self._network is not None else next(iter(children), "") if len(children) == 1 else ""
        if name not in children:
            known = f"GrowAt(…, network=…) names one of {', '.join(children)}" if children else "it has none"
            raise UserError(f"growth: expected the network as an attribute of {type(pl_module).__name__}; {known}")
        return children[name]


def _inputs(batch: Any, who: str) -> Tensor:
    """A batch that is a tensor, or the first element of one."""
    first = batch if isinstance(batch, Tensor) else next(iter(batch)) if isinstance(batch, (list, tuple)) else None
    if not isinstance(first, Tensor):
        raise UserError(f"{who}: expected batches that are, or begin with, a tensor; got a {type(batch).__name__}")
    return first


def _averages(callback: Callback) -> bool:
    """Whether a callback keeps a mean of the weights."""
    if isinstance(callback, TrainingMethods):
        return callback.averages
    return isinstance(callback, (StochasticWeightAveraging, WeightAveraging))


class _Loss(nn.Module):
    """Stands where the module had its cross-entropy."""

    def __init__(self, at_work: MethodsAtWork, word: list[Tensor]) -> None:
        super().__init__()
        self._at_work = [at_work]  # in a list, so that it is no part of the module
        self._word = word

    def forward(self, logits: Any, target: Any) -> Any:
        if self._at_work[0].learns_from_teacher and not self.training:
            return nn.functional.cross_entropy(logits, target)  # of a validation, of which no teacher is asked
        return self._at_work[0].cross_entropy(logits, target, *self._word)
