"""The kinds of work, done once by any implementation, and the check that all of them do the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gradient_benchmark.ours import Postgrad, bare_gradients
from gradient_benchmark.peers import Peer, make_peer
from gradient_benchmark.plain import THRESHOLDS, PlainGradNet
from gradient_benchmark.setting import CLASSES, Batch, Setting
from gradient_benchmark.timing import exhaust, seconds_of
from postgrad.errors import UserError
from postgrad.gradients.engine import Labels

Which = Literal["one", "all"]
PEER_NAMES = ("vmap", "loop", "backpack", "opacus")
IMPLEMENTATIONS = ("postgrad", *PEER_NAMES)
WORKS: tuple[tuple[str, Which], ...] = (
    ("all_labels", "all"),
    ("random_label_training", "one"),
    ("bare", "all"),
    ("bare", "one"),
)
"""Kinds of work, and whether an image's gradients are taken under all labels or under one at random."""

TOLERANCE = 1e-4
CLEARLY = 0.9
"""A share of the other's time that is no accident."""
_CHECKED_IMAGES = 6


@dataclass(frozen=True)
class Case:
    """One kind of work by one implementation on a batch."""

    work: str
    labels: Which
    implementation: str
    batch: int

    @property
    def gradients(self) -> int:
        """An image under all ten labels counts as ten."""
        return self.batch * (CLASSES if self.labels == "all" else 1)


@dataclass(frozen=True)
class Choices:
    """What the peers have several ways for: the faster one, found before anything is timed."""

    vmap_shares_forward: bool
    threshold: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """Implementations by name, ready to do any kind of work.

    postgrad's training is timed over as many steps as make `training_gradients`, but two at least.
    """

    def __init__(
        self,
        setting: Setting,
        choices: Choices,
        names: Sequence[str] = IMPLEMENTATIONS,
        *,
        training_gradients: int = 500,
    ) -> None:
        self.training_gradients = training_gradients
        self.setting = setting
        self.ours = Postgrad(setting)
        peers = [name for name in names if name != "postgrad"]
        self.peers: dict[str, Peer] = {
            name: make_peer(name, setting.model, share_forward=choices.vmap_shares_forward) for name in peers
        }
        self.plain = PlainGradNet(setting.gradnet, choices.threshold) if peers else None

    def seconds(self, case: Case) -> float:
        """Do the work once; how long a batch took (the mean of a few steps for postgrad's training)."""
        batch = self.setting.batch(case.batch)
        if case.implementation == "postgrad":
            return self._ours(case, batch)
        return seconds_of(lambda: self._peer(case, self.peers[case.implementation], batch), self.setting.device)

    def _ours(self, case: Case, batch: Batch) -> float:
        if case.work == "random_label_training":
            return self.ours.train(batch, steps=max(2, self.training_gradients // case.gradients))
        if case.work == "all_labels":
            return seconds_of(lambda: self.ours.mean_logits(batch), self.setting.device)
        labels: Labels = "all" if case.labels == "all" else batch.labels
        return seconds_of(lambda: self.ours.bare(batch, labels), self.setting.device)

    def _peer(self, case: Case, peer: Peer, batch: Batch) -> None:
        if case.work == "random_label_training":
            assert self.plain is not None
            self.plain.train_step(peer.one_label(batch.inputs, batch.labels), batch.truth)
        elif case.work == "all_labels":
            assert self.plain is not None
            self.plain.mean_logits(peer.all_labels(batch.inputs), case.batch)
        elif case.labels == "all":
            _exhaust_all_labels(peer, batch.inputs)
        else:
            peer.one_label(batch.inputs, batch.labels)


def choose(setting: Setting, batch_size: int) -> Choices:
    """Time the peers' several ways on a batch, three times each, and take the faster.

    Sharing the forward pass takes `vmap` several times the memory, so it must be clearly faster.
    """
    batch = setting.batch(batch_size)

    def best(work: Callable[[], object]) -> float:
        return min(seconds_of(work, setting.device) for _ in range(3))

    sharing = {}
    for share in (False, True):
        vmap = make_peer("vmap", setting.model, share_forward=share)
        sharing[share] = best(partial(_exhaust_all_labels, vmap, batch.inputs))
    rows = vmap.one_label(batch.inputs, batch.labels)
    thresholds = {name: best(partial(PlainGradNet(setting.gradnet, name).features, rows)) for name in THRESHOLDS}
    shares = sharing[True] < CLEARLY * sharing[False]
    return Choices(shares, min(thresholds, key=thresholds.__getitem__))


def _exhaust_all_labels(peer: Peer, inputs: Tensor) -> None:
    exhaust(peer.all_labels(inputs))


# --- checks --------------------------------------------------------------------------------------------------------


def check(bench: Bench) -> None:
    """Refuse to time anything that is not right.

    Every implementation's gradients are compared with a float64 autograd loop, under one label and under all, and each
    peer's logits after the whole work with postgrad's.
    """
    batch = bench.setting.batch(_CHECKED_IMAGES)
    for labels in ("one", "all"):
        reference = exact_gradients(bench.setting, batch, labels)
        _compare("postgrad", labels, _our_gradients(bench, batch, labels), reference)
        for name, peer in bench.peers.items():
            _compare(name, labels, peer_gradients(peer, batch, labels), reference)
    assert bench.plain is not None
    expected = bench.ours.mean_logits(batch)
    for name, peer in bench.peers.items():
        found = bench.plain.mean_logits(peer.all_labels(batch.inputs), len(batch.inputs)).cpu()
        if (found - expected).abs().max() > 1e-3 * expected.abs().max():
            raise UserError(f"{name}: its logits after the whole work are not postgrad's; nothing was timed")


def exact_gradients(setting: Setting, batch: Batch, labels: str) -> list[Tensor]:
    """Gradients [(N, L, numel), …] of the weights, in float64, one autograd call for each."""
    model = copy.deepcopy(setting.model).double()
    weights = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    candidates = torch.arange(CLASSES).expand(len(batch.inputs), -1) if labels == "all" else batch.labels[:, None]
    rows = []
    for image, wanted in zip(batch.inputs.double(), candidates.to(batch.inputs.device), strict=True):
        logits = model(image[None])
        for label in wanted:
            loss = F.cross_entropy(logits, label[None])
            rows.append([g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True)])
    shape = (len(batch.inputs), -1)
    return [torch.stack(gradients).unflatten(0, shape) for gradients in zip(*rows, strict=True)]


def peer_gradients(peer: Peer, batch: Batch, labels: str) -> list[Tensor]:
    """A peer's gradients [(N, L, numel), …], its parts put together again."""
    if labels == "one":
        return [rows.unsqueeze(1) for rows in peer.one_label(batch.inputs, batch.labels)]
    by_images: dict[tuple[int | None, int | None], list[list[Tensor]]] = {}
    for part, gradients in peer.all_labels(batch.inputs):
        by_images.setdefault((part.start, part.stop), []).append(gradients)
    joined = [[torch.cat(blocks, dim=1) for blocks in zip(*parts, strict=True)] for parts in by_images.values()]
    return [torch.cat(blocks) for blocks in zip(*joined, strict=True)]


def _our_gradients(bench: Bench, batch: Batch, labels: str) -> list[Tensor]:
    chunks = bare_gradients(bench.setting.gradnet.space_, batch.inputs, "all" if labels == "all" else batch.labels)
    copies = [[rows.clone() for rows in chunk] for chunk in chunks]
    return [torch.cat(blocks).unflatten(0, (len(batch.inputs), -1)) for blocks in zip(*copies, strict=True)]


def _compare(name: str, labels: str, found: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Each gradient's error against its own length; one that is nearly zero against the longest."""
    for layer, (rows, exact) in enumerate(zip(found, reference, strict=True)):
        lengths = exact.norm(dim=-1)
        errors = (
            (rows.double() - exact).norm(dim=-1) if rows.shape == exact.shape else torch.full_like(lengths, torch.inf)
        )
        if not bool((errors <= TOLERANCE * lengths + 1e-6 * lengths.max()).all()):
            raise UserError(
                f"{name}: its gradients ({labels} label, layer {layer}) are not autograd's in float64, "
                f"off by {float((errors / lengths).max()):.2g} of their length; nothing was timed"
            )
