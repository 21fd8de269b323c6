"""JEM: a classifier that is also an energy model, and its successors JEM++ and SADA-JEM.

Idea. The logits f(x) of a classifier define an energy E(x) = −logsumexp_y f(x)[y], so log p(x) = −E(x) + constant, and
p(y|x) stays softmax(f(x)). Training both makes a classifier that knows what its images look like.

How it trains. Cross-entropy + mean E(images) − mean E(samples). The samples are chains that climb −E by noisy gradient
steps on the image and go on from a replay buffer. Images lie in [−1, 1]. Prediction stays as it is.

Cost. Each step of a chain is a forward and a backward pass: 20 for JEM, 10 for JEM++, 5 (and two passes for the
weights) for SADA-JEM, in each step of the training.

When it fails. It diverges often. The energy gap, the samples and the gradient are watched; training goes back to a good
state with half the learning rate and half the chains' step, at most three times. Accuracy is a point or more below the
plain network's; the robustness first claimed fell under AutoAttack.

Paper. W. Grathwohl et al., "Your classifier is secretly an energy based model", arXiv 1912.03263; JEM++ 2109.09032;
SADA-JEM 2209.08739. Licence or patent note: Apache-2.0; none known.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.errors import UserError, unknown_name
from postgrad.methods._jem_presets import IMAGE_RANGE, PRESETS, Variant
from postgrad.methods._replay_buffer import ClassGaussians, ReplayBuffer, Starts, Storage, UniformStarts
from postgrad.methods._sam import sharpness_aware
from postgrad.methods._sgld import Langevin, LogDensity, bare, batch_norms, check_first_layer, statistics_stay
from postgrad.methods._stability import Stability, gradient_norm
from postgrad.models.network import evaluating

_LOOKED_AT = 256
_ROUNDING = 1e-3


def energy(logits: Tensor) -> Tensor:
    """E(x) = −logsumexp_y f(x)[y] of logits (n, C), as (n,); at least float32. arXiv 1912.03263, equation 4.

    >>> energy(torch.tensor([[0.0, 0.0]]))
    tensor([-0.6931])
    """
    return -logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(dim=1)


def jem_loss(
    logits: Tensor,
    labels: Tensor,
    sample_logits: Tensor,
    *,
    data_logits: Tensor | None = None,
    weight: float = 1.0,
    energy_l2: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy plus weight × (mean E(images) − mean E(samples)); arXiv 1912.03263, equations 1 and 6.

    >>> loss = jem_loss(model(images), labels, model(samples))
    >>> loss.backward()

    Args:
        logits: of images (n, C).
        labels: class numbers (n,); −1 where there is none: such an image is part of the energy alone.
        sample_logits: of samples (m, C), which must be drawn from the model as it is.
        data_logits: of the images (k, C) whose energy is lowered; default: `logits`.
        weight: of the energy's part.
        energy_l2: times the mean square of the energies of images and of samples, which keeps them near 0.
        label_smoothing: of the cross-entropy.

    Where no image has a label, there is no cross-entropy.
    """
    known = labels >= 0
    of_data, of_samples = energy(logits if data_logits is None else data_logits), energy(sample_logits)
    loss = weight * (of_data.mean() - of_samples.mean())
    if energy_l2:
        loss = loss + energy_l2 * (of_data.square().mean() + of_samples.square().mean())
    count = known.sum().clamp(min=1)
    summed = F.cross_entropy(
        logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits,
        labels,
        ignore_index=-1,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return loss + summed / count


def to_range(images: Tensor) -> Tensor:
    """uint8 images as floats from −1 to 1; floats, which must lie there already, as they are."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images


class JEM:
    """The loss of a network that is to be an energy model too, in place of cross-entropy.

    >>> jem = JEM(model, images, labels)                     # once; all training images
    >>> jem.loss(x, y).backward()                            # in place of F.cross_entropy(model(x), y).backward()
    >>> optimizer.step(); jem.after_step()

    After `jem.begin(optimizer)` a training that diverges goes back to a good state by itself.

    Parameters
    ----------
    model : an `nn.Module` giving logits (n, C) for inputs from −1 to 1.
    images, labels : the training set: images (N, …) as uint8, or as floats from −1 to 1, and class numbers (N,), −1
        where there is none. Where some have none, those that have one are drawn apart for the cross-entropy, as many as
        a batch has images, and the batch itself is part of the energy alone.
    variant : "jem", "jem++" or "sada-jem": the published settings, which the other options replace.
    labels_per_class : keep the label of the first so many images of each class, and forget the others.
    weight : of the energy's part; 0 draws no samples, which is the control with the same labels.
    energy_l2 : times the mean square of all energies; 0.1 steadies a training that diverges.
    steps, inner_steps, step_size, noise : of the chains, as `Langevin` has them.
    data_noise : standard deviation of the noise on the images in the loss.
    buffer_size : chains that are kept.
    storage : "float16", or "uint8", half of it.
    per_class : each chain climbs the logit of a class of its own, log p(x|y), and not log p(x).
    label_smoothing : of the cross-entropy.
    prepare, augmented : what the network sees of training images, without and with augmentation; default: `to_range`.
    told : is called with what happened where the training went back.

    Random numbers are torch's own. Raises `UserError` for options that do not fit, and `DivergedError`.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        variant: Variant = "jem",
        labels_per_class: int | None = None,
        weight: float = 1.0,
        energy_l2: float = 0.0,
        steps: int | None = None,
        inner_steps: int | None = None,
        step_size: float | None = None,
        noise: float | None = None,
        data_noise: float | None = None,
        buffer_size: int = 10_000,
        storage: Storage = "float16",
        per_class: bool = False,
        label_smoothing: float = 0.0,
        prepare: Callable[[Tensor], Tensor] = to_range,
        augmented: Callable[[Tensor], Tensor] | None = None,
        told: Callable[..., None] = lambda **_: None,
    ) -> None:
        if variant not in PRESETS:
            raise unknown_name("variant of jem", str(variant), PRESETS)
        preset = PRESETS[variant]
        given: dict[str, Any] = {"steps": steps, "inner_steps": inner_steps, "step_size": step_size, "noise": noise}
        chains = replace(preset.chains, **{name: value for name, value in given.items() if value is not None})
        _check(chains, weight, energy_l2, labels_per_class)
        self.model = model
        self.labels = labels if labels_per_class is None else first_labels(labels, labels_per_class)
        self.chains = chains
        if weight and not preset.training_mode and batch_norms(model):
            warnings.warn(
                f"variant {variant} was made for networks without batch normalisation, and this one has it: take it "
                "out (--method norm:kind=none), or take another variant",
                UserWarning,
                stacklevel=2,
            )
        self._preset = preset if data_noise is None else replace(preset, data_noise=data_noise)
        self._images, self._prepare, self._augmented = images, prepare, augmented or prepare
        self._weight, self._energy_l2, self._label_smoothing = weight, energy_l2, label_smoothing
        self._per_class = per_class
        self._labelled = torch.nonzero(self.labels >= 0).flatten()
        _check_range(prepare(images[:_LOOKED_AT]))
        example = self._to_model(prepare(images[:1]))
        with evaluating(model):
            self._classes = model(example).shape[1]
        if chains.inner_steps > 1 and weight:
            check_first_layer(model, example)
        if len(self._labelled) == 0 or int(self.labels.max()) >= self._classes:
            raise UserError(f"labels: expected some, from 0 to {self._classes - 1}, and −1 where there is none")
        self.buffer = self._make_buffer(buffer_size, storage, example.shape[1:]) if weight else None
        self._stability = Stability(model, told=told)
        self._pending: str | None = None
        self._sums: dict[str, tuple[float, int]] = {}
        self._random = torch.get_rng_state()

    def loss(self, inputs: Tensor, labels: Tensor, network: nn.Module | None = None) -> Tensor:
        """The loss of a batch (n, …) with labels (n,), −1 where there is none; draws samples.

        `network` computes what the model computes, as a wrapper of it does.
        """
        network = self.model if network is None else network
        reason, self._pending = self._pending, None
        while True:
            if reason is not None:
                self._go_back(reason)
            batch = self._batch(network, inputs, labels)
            value, figures = self._value(network, batch)
            reason = self._stability.trouble(figures)
            if reason is None:
                break
        self._note({name: value for name, value in figures.items() if name != "loss"})
        if self._preset.sharpness is None:
            return value
        return sharpness_aware(network, lambda run: self._value(run, batch)[0], value, rho=self._preset.sharpness)

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch a training with this optimizer, and go back to a good state where it diverges.

        Chains begin anew, and as they would have done had this been called at once.
        """
        self._pending, self._sums = None, {}
        self._stability.begin(optimizer)
        if self.buffer is not None:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self._random)
                self.buffer.renew()

    def after_step(self) -> None:
        """To be called after each step of the optimizer, before gradients are set to zero."""
        figures = {"gradient_norm": gradient_norm(self.model)}
        self._pending = self._stability.trouble(figures)
        self._stability.after_step()
        if self._pending is None:
            self._note(figures)

    @property
    def steps_taken(self) -> int:
        """How many steps the training has taken since `begin`, or in all."""
        return self._stability.step

    def looked(self, accuracy: float) -> None:
        """Remember the weights as they are if this validation accuracy is the best so far."""
        self._stability.looked(accuracy)

    def figures(self) -> dict[str, float]:
        """Means since the last call of what is watched, and how often the training went back.

        energy_gap : mean E(samples) − mean E(images). sample_reach : the largest |pixel| of the samples.
        sample_spread : their standard deviation. gradient_norm : of all weights.
        """
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return {**means, "returns": float(self._stability.returns)}

    def state_dict(self) -> dict[str, Any]:
        """What a training needs to go on to the same bits: the chains, the good state, what was watched."""
        return {
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
            "stability": self._stability.state_dict(),
            "pending": self._pending,
            "sums": {name: list(pair) for name, pair in self._sums.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.buffer is not None:
            self.buffer.load_state_dict(state["buffer"])
        self._stability.load_state_dict(state["stability"])
        self._pending = state["pending"]
        self._sums = {name: (pair[0], pair[1]) for name, pair in state["sums"].items()}

    def _make_buffer(self, size: int, storage: Storage, shape: torch.Size) -> ReplayBuffer:
        starts: Starts = UniformStarts(tuple(shape), bounds=IMAGE_RANGE)
        if self._preset.gaussian_starts:
            starts = ClassGaussians(
                self._images, self.labels, classes=self._classes, bounds=IMAGE_RANGE, prepare=self._prepare
            )
        return ReplayBuffer(
            size, starts, classes=self._classes, per_class=self._per_class, storage=storage, bounds=IMAGE_RANGE
        )

    def _batch(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> _Batch:
        data = inputs if len(self._labelled) < len(self.labels) else None
        if data is not None:
            chosen = self._labelled[torch.randint(len(self._labelled), (len(inputs),))]
            inputs = self._to_model(self._augmented(self._images[chosen]))
            labels = self.labels[chosen].to(labels.device)
        if self._preset.apart and self.buffer is not None:
            chosen = torch.randint(len(self._images), (len(inputs),))
            data = self._to_model(self._prepare(self._images[chosen]))
        samples = None if self.buffer is None else self._drawn(network, len(inputs), self.buffer)
        return _Batch(self._noisy(inputs), labels, None if data is None else self._noisy(data), samples)

    def _value(self, run: Callable[[Tensor], Tensor], batch: _Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss, and what is watched of it."""
        logits = run(batch.inputs)
        options: dict[str, Any] = {"label_smoothing": self._label_smoothing}
        if batch.samples is None:
            loss = jem_loss(logits, batch.labels, logits, weight=0.0, **options)
            return loss, {"loss": float(loss.detach())}
        data_logits = logits if batch.data is None else run(batch.data)
        with statistics_stay(self.model):
            sample_logits = run(batch.samples)
        options |= {"data_logits": data_logits, "weight": self._weight, "energy_l2": self._energy_l2}
        loss = jem_loss(logits, batch.labels, sample_logits, **options)
        with torch.no_grad():
            gap = energy(sample_logits).mean() - energy(data_logits).mean()
            watched = [loss, gap, batch.samples.abs().amax(), batch.samples.std()]
            values = torch.stack([each.float() for each in watched]).tolist()
        return loss, dict(zip(("loss", "energy_gap", "sample_reach", "sample_spread"), values, strict=True))

    def _drawn(self, network: nn.Module, count: int, buffer: ReplayBuffer) -> Tensor:
        """Samples (count, …): the chains of the buffer, taken on and put back."""
        labels = torch.randint(self._classes, (count,))
        start, where = buffer.draw(labels)
        own = labels.to(self._device) if self._per_class else None
        chains = replace(self.chains, step_size=self.chains.step_size * self._stability.step_factor)
        with bare(self.model, training=self._preset.training_mode):
            samples = chains(log_density(network, own), self._to_model(start))
        buffer.put(where, samples)
        return samples

    def _go_back(self, reason: str) -> None:
        self._stability.go_back(reason)
        if self.buffer is not None:
            self.buffer.renew()

    def _note(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def _noisy(self, images: Tensor) -> Tensor:
        noise = self._preset.data_noise
        return images + noise * torch.randn_like(images) if noise else images

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _to_model(self, images: Tensor) -> Tensor:
        return images.to(self._device, next(self.model.parameters()).dtype)


@dataclass(frozen=True)
class _Batch:
    """One step's images for the cross-entropy with their labels, those for the energy if others, and samples."""

    inputs: Tensor
    labels: Tensor
    data: Tensor | None
    samples: Tensor | None


def log_density(network: Callable[[Tensor], Tensor], labels: Tensor | None = None) -> LogDensity:
    """log p(x) up to a constant, or log p(x | y) for labels (n,): −E(x), or the logit of that class.

    >>> Langevin(steps=20)(log_density(model, labels), start)
    """
    if labels is None:
        return lambda x: -energy(network(x))
    return lambda x: network(x).gather(1, labels[:, None]).squeeze(1)


def first_labels(labels: Tensor, per_class: int) -> Tensor:
    """The labels (N,) with −1 in place of all but the first so many of each class.

    >>> first_labels(torch.tensor([0, 0, 1, 0]), 1)
    tensor([ 0, -1,  1, -1])
    """
    kept = torch.full_like(labels, -1)
    for label in labels[labels >= 0].unique():
        chosen = torch.nonzero(labels == label).flatten()[:per_class]
        kept[chosen] = label
    return kept


def _check_range(images: Tensor) -> None:
    low, high = (float(value) for value in torch.aminmax(images))
    if not (IMAGE_RANGE[0] - _ROUNDING <= low and high <= IMAGE_RANGE[1] + _ROUNDING):
        raise UserError(f"images: expected values from −1 to 1, got {low:g} to {high:g}; scale them, or give uint8")


def _check(chains: Langevin, weight: float, energy_l2: float, labels_per_class: int | None) -> None:
    for name, value, least in (
        ("steps", chains.steps, 1),
        ("inner_steps", chains.inner_steps, 1),
        ("step_size", chains.step_size, 0),
        ("noise", chains.noise, 0),
        ("weight", weight, 0),
        ("energy_l2", energy_l2, 0),
        ("labels_per_class", 1 if labels_per_class is None else labels_per_class, 1),
    ):
        if not least <= value < math.inf:
            raise UserError(f"{name}: expected a number of {least} or more, got {value}")
    if chains.inner_steps > 1 and chains.bounds is None:
        raise UserError("inner_steps: those of variant jem have no bounds; leave them out, or take variant=jem++")
