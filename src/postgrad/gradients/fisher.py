"""The Fisher metric of a network's weights: its diagonal, its Kronecker factors and, where it is small, all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.gradients import capture, contract
from postgrad.gradients.engine import GradientEngine
from postgrad.gradients.plan import cross_entropy_cotangents, make_plan

DAMPING = 1e-2
"""What is added to the Fisher matrix of a block before it divides, as a share of its mean eigenvalue."""

_PATCH_BYTES = 32 << 20
_ROWS_AT_ONCE = 32
"""Rows whitened at a time: what a matrix product needs beside them then stays in the caches."""


def fisher_rows(engine: GradientEngine, images: Tensor, *, chunk: int | None = None) -> Iterator[tuple[str, Tensor]]:
    """Rows whose second moments are the Fisher matrix: √(C·p_k)·g_k for every image and every label k.

    >>> for name, rows in fisher_rows(engine, images):      # (n·C, numel) for `chunk` images n at a time
    ...     total[name] += rows.T @ rows                    # in the end, over (images × C): the Fisher matrix

    The labels are not drawn: each has the weight p_k that the network itself gives it, so that the mean over labels is
    exact, F = E_x Σ_k p_k g_k g_kᵀ. The rows are the engine's buffers, overwritten by the next.
    """
    for part in images.split(chunk or engine.images_per_chunk("all")):
        blocks = engine.gradients(part, "all")
        assert engine.logits is not None
        weights = (engine.logits.double().softmax(1) * engine.num_classes).sqrt().reshape(-1, 1)
        for name, rows in blocks:
            yield name, rows.mul_(weights.to(rows))


def exact_fisher(engine: GradientEngine, images: Tensor) -> Tensor:
    """The whole Fisher matrix (P, P), in float64, of the engine's P weights in the order of its blocks.

    >>> F = exact_fisher(GradientEngine(small_model, images[:3]), images)
    >>> g @ torch.linalg.solve(F + damping, h)              # the Fisher–Rao inner product of two gradients (covectors)

    Raises `UserError` where the matrix would not fit the engine's memory budget.
    """
    numbers = sum(block.numel for block in engine.blocks)
    if 8 * numbers**2 > engine.memory:
        raise UserError(
            f"the Fisher matrix of {numbers:,} weights takes {8 * numbers**2 / 2**30:.3g} GiB, more than the memory "
            f"budget of {engine.memory / 2**30:.3g} GiB; choose fewer layers, or the diagonal or Kronecker factors"
        )
    total = torch.zeros(numbers, numbers, dtype=torch.float64, device=images.device)
    for part in images.split(engine.images_per_chunk("all")):
        rows = torch.cat([rows for _, rows in fisher_rows(engine, part)], dim=1).double()
        total.addmm_(rows.T, rows)
    return total / (len(images) * engine.num_classes)


@dataclass
class _Factors:
    """Sums of Kronecker factors of one block, in float64: inputs (G, K, K) and what reaches the outputs (G, O, O)."""

    inputs: Tensor
    outputs: Tensor
    images: int = 0
    places: int = 0


class KroneckerFisher:
    """K-FAC: the Fisher matrix of each layer as a Kronecker product, and gradients whitened by it.

    >>> metric = KroneckerFisher(model, weight_names(model), images[:3])
    >>> for batch in batches:                                # (n, …) as the model takes them
    ...     metric.update(batch)
    >>> metric.finish()
    >>> metric.whiten_("c1.weight", rows)                    # (R, numel): B^(−1/2) G A^(−1/2), in place

    With inputs a and δ = ∂CE/∂output under a label drawn from the network's own probabilities (taken exactly, over all
    labels), the Fisher matrix of a linear layer is approximated by A ⊗ B, A = E[a aᵀ], B = E[δ δᵀ]. A convolution, or a
    linear layer at several places, sums over T places: A = E[Σ_t a_t a_tᵀ], B = E[Σ_t δ_t δ_tᵀ] / T; each group of a
    convolution has factors of its own. The damping is shared out as the factors are large: with a and b the mean
    eigenvalues of A and B, √damping·a is added to A and √damping·b to B, so that their product gains damping·a·b.

    Raises `UserError` for weights of layers that have no such factors, and where the factors exceed `memory` bytes.

    Sources: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature",
    arXiv 1503.05671; for convolutions Grosse and Martens, arXiv 1602.01407.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        example: Tensor,
        *,
        damping: float = DAMPING,
        memory: int = 2 << 30,
    ) -> None:
        self.damping = damping
        self._model = model
        self._plan = make_plan(model, names, example)
        self._parameters = [model.get_parameter(name) for name in names]
        self._shapes = self._factor_shapes()
        self._refuse(memory)
        self._gathered: dict[str, _Factors] = {}
        self._roots: dict[str, tuple[Tensor, Tensor]] = {}

    def update(self, images: Tensor) -> None:
        """Take some images (n, …) into the factors."""
        patch_bytes = self._plan.patch_numbers * self._parameters[0].element_size()
        for part in images.split(max(1, _PATCH_BYTES // max(1, patch_bytes))):
            self._add(part)

    def finish(self) -> KroneckerFisher:
        """Turn the sums into the inverse square roots of the damped factors."""
        for name, sums in self._gathered.items():
            inputs = _inverse_root(sums.inputs / sums.images, self.damping)
            outputs = _inverse_root(sums.outputs / sums.places, self.damping)
            self._roots[name] = (inputs.to(self._parameters[0]), outputs.to(self._parameters[0]))
        self._gathered.clear()
        return self

    def whiten_(self, name: str, rows: Tensor) -> Tensor:
        """B^(−1/2) G A^(−1/2) for each gradient of a block, rows (R, numel), in place."""
        if name in self._plan.unused:
            return rows
        if name not in self._roots:
            raise UserError(f"the Kronecker factors of '{name}' are not there yet; fit them first")
        inputs, outputs = (root.to(rows) for root in self._roots[name])
        groups, size, _ = inputs.shape
        for part in rows.view(len(rows), groups, -1, size).split(_ROWS_AT_ONCE):
            part.copy_(torch.einsum("gpo,rgol->rgpl", outputs, torch.einsum("rgok,gkl->rgol", part, inputs)))
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """The inverse roots: `NAME.inputs` (G, K, K) and `NAME.outputs` (G, O, O) for each block."""
        return {
            f"{name}.{part}": tensor
            for name, pair in self._roots.items()
            for part, tensor in zip(("inputs", "outputs"), pair, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> KroneckerFisher:
        """Take inverse roots that `state_dict` gave."""
        names = [key.removesuffix(".inputs") for key in state if key.endswith(".inputs")]
        self._roots = {name: (state[f"{name}.inputs"], state[f"{name}.outputs"]) for name in names}
        return self

    def _factor_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Groups G, outputs O and inputs K of each block that has factors."""
        shapes: dict[str, tuple[int, int, int]] = {}
        for layer, slots in self._plan.layers.values():
            form = contract.closed_form(layer)
            if form is None or isinstance(layer, nn.Embedding) or "weight" not in slots:
                continue
            numbers = self._model.get_parameter(slots["weight"]).numel()
            shapes[slots["weight"]] = (form.groups, form.features // form.groups, numbers // form.features)
        return shapes

    def _refuse(self, memory: int) -> None:
        """Refuse weights without Kronecker factors, and factors that are too large."""
        wanted = {block for _, slots in self._plan.layers.values() for block in slots.values()} | set(self._plan.slow)
        looked_up = {
            slots["weight"]
            for layer, slots in self._plan.layers.values()
            if isinstance(layer, nn.Embedding) and "weight" in slots
        }
        without = sorted((wanted - self._shapes.keys()) | looked_up)
        if without:
            raise UserError(
                f"kfac: {', '.join(without)} ha{'s' if len(without) == 1 else 've'} no Kronecker factors (only weights "
                "of linear and convolution layers have); choose other layers, or normalise='fisher'"
            )
        numbers = sum(groups * (outputs**2 + inputs**2) for groups, outputs, inputs in self._shapes.values())
        if 24 * numbers > memory:  # the sums in float64, and as much again twice while a factor is inverted
            raise UserError(
                f"kfac: the Kronecker factors take {24 * numbers / 2**30:.3g} GiB, more than the memory budget of "
                f"{memory / 2**30:.3g} GiB; raise it, choose fewer layers, or normalise='fisher'"
            )

    def _add(self, images: Tensor) -> None:
        with capture.evaluation_mode(self._model, self._parameters):
            logits, calls = capture.run(self._model, images, self._plan.layers)
            probabilities = logits.detach().double().softmax(1)
            labels = torch.arange(logits.shape[1], device=logits.device).expand(len(images), -1)
            cotangents = cross_entropy_cotangents(logits, labels) * probabilities.sqrt().to(logits)[:, :, None]
            for call in calls:
                self._add_inputs(call, len(images))
            for deltas in capture.deltas(logits, calls, cotangents.unbind(1)):
                for call, delta in zip(calls, deltas, strict=True):
                    if delta is not None:
                        self._add_outputs(call, delta, len(images))
        for name in {call.slots["weight"] for call in calls}:
            self._gathered[name].images += len(images)

    def _sums(self, name: str) -> _Factors:
        if name not in self._gathered:
            groups, outputs, inputs = self._shapes[name]
            like = self._parameters[0].new_zeros((), dtype=torch.float64)
            self._gathered[name] = _Factors(
                like.new_zeros((groups, inputs, inputs)), like.new_zeros((groups, outputs, outputs))
            )
        return self._gathered[name]

    def _add_inputs(self, call: capture.Call, images: int) -> None:
        form = contract.closed_form(call.layer)
        assert form is not None
        sums, (groups, outputs, size) = self._sums(call.slots["weight"]), self._shapes[call.slots["weight"]]
        seen = form.activation(call.input)
        vectors = seen.reshape(len(seen), groups, size, -1).permute(1, 2, 0, 3).flatten(2)
        sums.inputs += vectors @ vectors.mT
        sums.places += call.output_shape.numel() // (groups * outputs)

    def _add_outputs(self, call: capture.Call, delta: Tensor, images: int) -> None:
        form = contract.closed_form(call.layer)
        assert form is not None
        vectors = contract.arrange(form, delta, images).permute(1, 2, 0, 3).flatten(2)
        self._sums(call.slots["weight"]).outputs += vectors @ vectors.mT


def _inverse_root(factor: Tensor, damping: float) -> Tensor:
    """(M + √damping·m·1)^(−1/2) for each matrix M of a factor (G, n, n), m its mean eigenvalue; of nothing, one."""
    mean = factor.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    added = torch.where(mean > 0, math.sqrt(damping) * mean, torch.ones_like(mean))
    values, vectors = torch.linalg.eigh(factor + added[:, None, None] * identity)
    # Rounding can take an eigenvalue that should be the damping a little below it, and to zero without any damping.
    floor = torch.finfo(factor.dtype).eps * values[:, -1:]
    return vectors * values.clamp(min=floor).rsqrt()[:, None, :] @ vectors.mT
