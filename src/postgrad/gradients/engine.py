"""The gradient engine: chunks of images in, rows of per-sample gradients out, block by block."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from postgrad.errors import UserError
from postgrad.gradients import capture, contract, fallback
from postgrad.gradients._threads import side_by_side
from postgrad.gradients.factors import Factor, Part
from postgrad.gradients.names import select_parameters
from postgrad.gradients.plan import check_logits, cross_entropy_cotangents, make_plan
from postgrad.gradients.scratch import Scratch

Labels = Tensor | Literal["all"]

_TILE_BYTES = 36 << 20
_TILE_IMAGES = 32
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Block:
    """One parameter's share of a gradient: its name, its shape and how many numbers that is."""

    name: str
    shape: tuple[int, ...]
    numel: int


@dataclass(frozen=True)
class _Reached:
    """What a tile's backward passes brought to the calls, (N, L, G, O, P) each, and gradients made in slower ways."""

    images: slice
    labels: slice
    calls: list[capture.Call]
    deltas: list[Tensor | None]
    slow: dict[str, Tensor]
    logits: Tensor


class GradientEngine:
    """Per-sample gradients of cross-entropy for any classifier, in eval mode, under given labels or under all.

    >>> engine = GradientEngine(model, images[:3], parameters=weight_names(model))
    >>> for name, rows in engine.gradients(images[:25], labels[:25]):
    ...     print(name, rows.shape)          # (25, numel), the engine's own buffer

    Args:
        model: a network from images (N, …) to logits (N, C); its mode, flags and weights are left as they are.
        example: one image or more (n, …), as the model takes them; three are tried on construction.
        layers: names of modules whose parameters are wanted; None is every parameter that requires grad.
        parameters: names of parameters instead, as in `model.named_parameters()`.
        memory: bytes that the engine's buffers may take.

    Raises:
        UserError: an unknown name, a model whose answers for one image depend on others, logits of another form.

    Linear and convolution layers, embeddings and the affine parts of normalisation layers are contracted in closed
    form; the closed forms are tried on the example and whatever disagrees goes through `torch.func`, with a
    `GradientFallbackWarning` on construction.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        layers: Sequence[str] | None = None,
        parameters: Sequence[str] | None = None,
        memory: int = 2 << 30,
    ) -> None:
        if not isinstance(example, Tensor) or example.dim() < 2 or len(example) == 0:
            raise UserError("example: expected a tensor of one image or more, (n, …) as the model takes them")
        names = select_parameters(model, layers=layers, parameters=parameters)
        tensors = dict(model.named_parameters())
        self.model = model
        self.memory = memory
        self.blocks = tuple(Block(name, tuple(tensors[name].shape), tensors[name].numel()) for name in names)
        self.logits: Tensor | None = None
        self._parameters = [tensors[name] for name in names]
        self._check_images(example)
        self._image_shape = example.shape[1:]
        with torch.inference_mode(False):
            self._plan = make_plan(model, names, _ordinary(example), memory=memory)
        self.num_classes = self._plan.num_classes
        self._unused = [tensors[name] for name in self._plan.unused]
        self._scratch = Scratch()

    @property
    def like(self) -> Tensor:
        """A tensor of the gradients' number type and device."""
        return self._parameters[0]

    def row_numbers(self) -> int:
        """How many numbers the gradient of one image and label has."""
        return sum(block.numel for block in self.blocks)

    def images_per_chunk(self, labels: Labels, *, numbers: int | None = None, beside: int = 0) -> int:
        """How many images at a time keep the engine inside `memory`: their rows, and what making them takes.

        `numbers` is the length of a row where something shorter is made of the gradients; `beside` are bytes that
        something else needs meanwhile.
        """
        rows = self.num_classes if isinstance(labels, str) else 1
        needed = rows * (self.row_numbers() if numbers is None else numbers) * self.like.element_size()
        working = self.working_bytes(rows) + beside
        if working + needed > self.memory:
            raise UserError(
                f"the gradients of one image under {rows} label{'s' * (rows > 1)} take {needed / 2**30:.3g} GiB and "
                f"the work on them {working / 2**30:.3g} GiB, more than the memory budget of "
                f"{self.memory / 2**30:.3g} GiB allows; raise it, or choose fewer layers"
            )
        return (self.memory - working) // needed

    def project(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the shape of a block's weight as a row: (1, numel)."""
        return weight.detach().reshape(1, -1)

    @property
    def delta_numbers(self) -> int:
        """How many numbers come back to the layers' outputs, for one image and label."""
        return self._plan.delta_numbers

    def images_per_tile(self, labels: int) -> int:
        """How many images are worked on at a time, in one thread, under so many labels."""
        return self._fitting(labels)[0]

    def release(self) -> None:
        """Give back the buffers; the next call makes its own."""
        self._scratch = Scratch()

    def working_bytes(self, labels: int) -> int:
        """What the work on tiles of images takes beside their rows: forward passes, deltas and patches."""
        images, labels_per_tile = self._fitting(labels)
        return self._threads() * images * self._working_numbers(labels_per_tile) * self.like.element_size()

    def _working_numbers(self, labels: int) -> int:
        """The same for one image, in numbers: a backward pass holds at most what the forward pass kept again."""
        plan = self._plan
        return 2 * plan.forward_numbers + (labels + 1) * plan.delta_numbers + plan.patch_numbers

    def _threads(self) -> int:
        """How many tiles are worked on side by side."""
        return torch.get_num_threads() if self._plan.stateless else 1

    def refuse_unfactored(self, purpose: str) -> None:
        """Raise a `UserError` unless every block's gradient is a product of what a layer read and what came back."""
        factored = {
            slots["weight"] for layer, slots in self._plan.layers.values() if Factor.fits(layer) and "weight" in slots
        }
        factored |= set(self._plan.unused)
        others = [block.name for block in self.blocks if block.name not in factored]
        if others:
            shown = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
            raise UserError(
                f"{purpose} works with the weights of linear and convolution layers, not with {shown}; "
                "name the other layers with layers=[...]"
            )

    @torch.inference_mode(False)
    def factors(self, x: Tensor, labels: Labels) -> Iterator[tuple[int, Part]]:
        """Yield (rows, factors): the same gradients unmultiplied, for layers that `refuse_unfactored` lets pass.

        Some images or some labels of one image at a time, so that their rows follow each other in (image, label) order.
        The factors are valid until the next are asked for.
        """
        candidates, x = self.check(x, labels), _ordinary(x)
        images, labels_per_tile = self._fitting(candidates.shape[1])
        answers = [self.like.new_zeros((0, self.num_classes))]
        for start in range(0, len(x), images):
            part = slice(start, min(start + images, len(x)))
            for reached in self._reached(x, candidates, part, labels_per_tile, self._run_alone, self._quiet):
                found: Part = {block.name: [] for block in self.blocks}
                for call, delta in zip(reached.calls, reached.deltas, strict=True):
                    if delta is not None and "weight" in call.slots:
                        found[call.slots["weight"]].append(Factor(call.layer, call.input, delta))
                yield candidates[reached.images, reached.labels].numel(), found
            answers.append(reached.logits)
        self.logits = torch.cat(answers)

    @torch.inference_mode(False)
    def gradients(self, x: Tensor, labels: Labels) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, rows (R, numel)) for each block; R = N for given labels, N·C in (image, label) order for "all".

        The rows are the engine's buffers, overwritten by the next call. `logits` (N, C) is set on return.
        """
        candidates, x = self.check(x, labels), _ordinary(x)
        images, each = candidates.shape
        blocks = self._buffers("rows", images * each)
        whole = {name: rows.unflatten(0, (images, each)) for name, rows in blocks.items()}

        def write(reached: _Reached) -> None:
            out = {name: rows[reached.images, reached.labels] for name, rows in whole.items()}
            self._contract(reached, slice(None), out)

        self._run(x, candidates, write)
        return iter(blocks.items())

    @torch.inference_mode(False)
    def pieces(self, x: Tensor, labels: Labels, use: Callable[[slice, Mapping[str, Tensor]], None]) -> None:
        """Call `use(rows, {name: those rows (r, numel)})` for a few rows at a time, which then still are in the caches.

        The numbers are those of `gradients`, and so is `logits`. The buffers are overwritten by the next piece. `use`
        is called from several threads, for different rows.
        """
        candidates, x = self.check(x, labels), _ordinary(x)
        each = candidates.shape[1]
        row_bytes = sum(block.numel for block in self.blocks) * self._parameters[0].element_size()

        def write(reached: _Reached) -> None:
            images, labels_now = _length(reached.images), _length(reached.labels)
            group = max(torch.get_num_threads(), min(_PIECE_BYTES, self.memory // 16) // (row_bytes * labels_now))
            for start in range(0, images, group):
                some = slice(start, min(start + group, images))
                blocks = self._buffers("piece", _length(some) * labels_now)
                out = {name: rows.unflatten(0, (-1, labels_now)) for name, rows in blocks.items()}
                self._contract(reached, some, out)
                first = (reached.images.start + start) * each + reached.labels.start
                use(slice(first, first + _length(some) * labels_now), blocks)

        self._run(x, candidates, write)

    def _buffers(self, key: str, rows: int) -> dict[str, Tensor]:
        like = self._parameters[0]
        return {block.name: self._scratch((key, block.name), (rows, block.numel), like=like) for block in self.blocks}

    def _run(self, x: Tensor, candidates: Tensor, write: Callable[[_Reached], None]) -> None:
        """Run the network forwards and backwards, a tile of images (N, …) and labels (N, L) at a time."""
        images, each = candidates.shape
        tile, labels_per_tile = self._tile(images, each)
        tiles = [slice(start, min(start + tile, images)) for start in range(0, images, tile)]
        answers: list[Tensor] = [self.like.new_zeros((0, self.num_classes))] * max(1, len(tiles))

        def work(number: int) -> None:
            for reached in self._reached(x, candidates, tiles[number], labels_per_tile, run, contextlib.nullcontext):
                write(reached)
                answers[number] = reached.logits

        tasks = [functools.partial(work, number) for number in range(len(tiles))]
        with self._quiet(), capture.recording(self._plan.layers, sparse=self._plan.sparse) as recorded:
            run = functools.partial(recorded, self.model)
            if self._plan.stateless:
                side_by_side(tasks)
            else:
                for task in tasks:
                    task()
        self.logits = torch.cat(answers)

    def _quiet(self) -> contextlib.AbstractContextManager[None]:
        return capture.evaluation_mode(self.model, self._parameters)

    def _run_alone(self, x: Tensor) -> tuple[Tensor, list[capture.Call]]:
        with capture.recording(self._plan.layers, sparse=self._plan.sparse) as run:
            return run(self.model, x)

    def _reached(
        self,
        x: Tensor,
        candidates: Tensor,
        part: slice,
        labels_per_tile: int,
        run: Callable[[Tensor], tuple[Tensor, list[capture.Call]]],
        quiet: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> Iterator[_Reached]:
        """One tile: `run` it forwards, then backwards some labels at a time; `quiet` is the model's mode meanwhile."""
        device, each = x.device.type, candidates.shape[1]
        with quiet(), capture.differentiable(device):
            logits, calls = run(self._laid_out(x[part], each))
            check_logits(logits, _length(part))
            for call in calls:
                _check_call(call, _length(part))
            cotangents = cross_entropy_cotangents(logits, candidates[part])
            slow = self._slow_gradients(x[part], cotangents)
        for first in range(0, each, labels_per_tile):
            some = slice(first, min(first + labels_per_tile, each))
            with quiet(), capture.differentiable(device):
                deltas = self._deltas(logits, calls, cotangents[:, some], retain=some.stop < each)
            parts = {name: rows[:, some] for name, rows in slow.items()}
            yield _Reached(part, some, calls, deltas, parts, logits.detach())

    def _laid_out(self, x: Tensor, labels: int) -> Tensor:
        """The images with their channels together where the forward pass, which gains by it, is most of the work."""
        if self._plan.channels_last and labels == 1 and x.dtype == torch.float32:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def _contract(self, reached: _Reached, images: slice, out: dict[str, Tensor]) -> None:
        """Write the gradients of some images of a tile into `out` (N, L, numel)."""
        written: set[str] = set()
        tile = _length(reached.images)
        for call, delta in zip(reached.calls, reached.deltas, strict=True):
            if delta is not None:
                inputs = call.input.unflatten(0, (tile, -1))[images].flatten(0, 1)
                sparse = call.name in self._plan.sparse
                contract.contract(
                    call.layer, inputs, delta[images], call.slots, out, written, self._scratch, sparse=sparse
                )
        for name, rows in reached.slow.items():
            out[name].copy_(rows[images])
        for name in out.keys() - written - reached.slow.keys():
            out[name].zero_()

    def _deltas(
        self, logits: Tensor, calls: list[capture.Call], cotangents: Tensor, *, retain: bool
    ) -> list[Tensor | None]:
        """What reaches each call's output, as (N, L, G, O, P), gathered over the labels of cotangents (N, L, C)."""
        images, labels, _ = cotangents.shape
        gathered: list[Tensor | None] = [None] * len(calls)
        forms = [contract.closed_form(call.layer) for call in calls]
        reached = capture.deltas(logits, calls, cotangents.unbind(1), unused=self._unused, retain=retain)
        for label, deltas in enumerate(reached):
            for number, (form, delta) in enumerate(zip(forms, deltas, strict=True)):
                if delta is None or form is None:
                    continue
                arranged = contract.arrange(form, delta, images)
                if labels == 1:
                    gathered[number] = arranged.unsqueeze(1)
                    continue
                if label == 0:
                    shape = (images, labels, *arranged.shape[1:])
                    gathered[number] = self._scratch(number, shape, like=arranged)
                whole = gathered[number]
                assert whole is not None
                whole[:, label] = arranged
        return gathered

    def _fitting(self, labels: int) -> tuple[int, int]:
        """How many images, and how many labels of an image, one thread works on at a time, at most.

        So few that memory is reused rather than fetched anew. The labels of an image are divided only where they alone
        are too many; then one image makes a tile.
        """
        plan, itemsize = self._plan, self.like.element_size()
        room = min(_TILE_BYTES, self.memory // (4 * self._threads())) // itemsize
        labels_per_tile = min(labels, max(1, room // max(1, plan.delta_numbers)))
        if labels_per_tile < labels:
            return 1, labels_per_tile
        return max(1, min(_TILE_IMAGES, room // max(1, self._working_numbers(labels)))), labels

    def _tile(self, images: int, labels: int) -> tuple[int, int]:
        """The same for so many images, so that every thread has its share of them."""
        fitting, labels_per_tile = self._fitting(labels)
        if labels_per_tile < labels:
            return 1, labels_per_tile
        threads = self._threads()
        rounds = max(1, -(-images // (threads * fitting)))
        return max(1, -(-images // (threads * rounds))), labels

    def _slow_gradients(self, x: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        plan = self._plan
        if not plan.slow:
            return {}
        if plan.vectorised:
            with capture.evaluation_mode(self.model, ()):
                return fallback.vectorised(self.model, plan.slow, x, cotangents)
        with capture.evaluation_mode(self.model, self._parameters):
            found = fallback.looped(self.model, plan.slow, x, cotangents)
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    def _check_images(self, x: Tensor) -> None:
        weight = self._parameters[0]
        if x.device != weight.device:
            raise UserError(f"the images are on {x.device}, the model on {weight.device}; bring them together")
        if x.is_floating_point() and x.dtype != weight.dtype:
            raise UserError(f"the images are {x.dtype}, the model is {weight.dtype}; convert the images")
        shape = getattr(self, "_image_shape", x.shape[1:])
        if x.shape[1:] != shape:
            raise UserError(f"images: expected (N, {', '.join(map(str, shape))}), got {tuple(x.shape)}")

    def check(self, x: Tensor, labels: Labels) -> Tensor:
        """Refuse images and labels that do not fit; return the labels (N, L) under which gradients are taken."""
        self._check_images(x)
        if isinstance(labels, str):
            if labels != "all":
                raise UserError(f"labels: expected a tensor of {len(x)} integers or 'all', got '{labels}'")
            return torch.arange(self.num_classes, device=x.device).expand(len(x), -1)
        if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_floating_point():
            raise UserError(f"labels: expected a tensor of {len(x)} integers or 'all'")
        if labels.shape != (len(x),):
            raise UserError(f"labels: expected shape ({len(x)},), one for each image, got {tuple(labels.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise UserError(
                f"labels: expected 0 to {self.num_classes - 1}, got {int(labels.min())} to {int(labels.max())}"
            )
        return labels.to(x.device, torch.int64)[:, None]


def _length(part: slice) -> int:
    return part.stop - part.start


def _ordinary(x: Tensor) -> Tensor:
    """Images that autograd may keep, also where they were made under `torch.inference_mode()`."""
    return x.clone() if x.is_inference() else x.detach()


def _check_call(call: capture.Call, images: int) -> None:
    if not contract.fits(call.layer, call.input, call.output_shape, images):
        raise UserError(
            f"layer '{call.name}' got {tuple(call.input.shape)} for {images} images, which is no multiple of them; "
            "give the engine an example of the same form as the images"
        )
