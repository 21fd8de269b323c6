"""Fixed classifier: a last layer that is never trained, except for one scale and the biases.

Idea. The last layer of a classifier compares features with one vector for each class. Those vectors need not be
learned: where they are fixed and far from each other, the features learn to fit them. ``logits = s · Q x̂ + b`` with
``x̂ = x / ‖x‖₂``, Q fixed, s one learned number and b learned.

Q. Rows of a Hadamard matrix, which the fast Walsh–Hadamard transform multiplies in O(N log N) for a whole block of N
classes without ever being stored; orthonormal rows; or the corners of a simplex, which are as far apart as can be.

Use. ``apply_fixed_classifier(model)`` before training, or ``FixedClassifier(512, 1000)`` as the last layer of a network
of one's own.

Cost. Fewer parameters, by features × classes. With many classes it is faster than `nn.Linear`, too.

When it fails. The network must be trained (or trained on) with it: features learned for another last layer do not fit.
With many more classes than features the rows are only nearly orthogonal, which ``coherence()`` measures. In language
models a fixed random last layer does poorly.

Paper. E. Hoffer, I. Hubara, D. Soudry, "Fix your classifier: the marginal value of training the last weight layer",
ICLR 2018, arXiv 1801.04540. Simplex: T. Kasarla et al., "Maximum class separation as inductive bias in one matrix",
NeurIPS 2022, arXiv 2206.08704. Licence or patent note: none known.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from postgrad.changes import note_change
from postgrad.errors import UserError, unknown_name
from postgrad.methods._hadamard import hadamard_transform, power_of_two, shape_of_signs, stacked_product, sylvester
from postgrad.methods._last_layer import last_layer
from postgrad.methods._surgery import optimizer_follows, replace_modules

Kind = Literal["hadamard", "orthonormal", "simplex"]

_SURELY_DISTINCT = 63
"""From so many features on, random signs do not repeat; below, rows are compared (as bits of one integer)."""
_DRAWS = 100
_NOTHING = 1e-12
"""Features shorter than that count as zeros: their direction is rounding, and its gradient would be without bounds."""


def apply_fixed_classifier(
    model: nn.Module, *, kind: Kind = "hadamard", seed: int = 0, optimizer: Optimizer | None = None
) -> int:
    """Put a `FixedClassifier` in place of a network's last layer, in place; returns how many layers were changed.

    >>> apply_fixed_classifier(model, optimizer=optimizer)
    1

    The last layer is the `nn.Linear`, or the 1×1 `nn.Conv2d`, whose output is the network's without any other weights
    between; timm's networks are asked for it, others are traced from their output backwards in evaluation mode.
    Auxiliary heads (GoogLeNet's, Inception's) have no part in that, and stay as they are. `optimizer` trains the scale
    with the settings of the weights that are gone, and the biases with those of the old ones.

    Where the last layer is of another kind, or fixed already, nothing changes and a `UserWarning` says so. Raises
    `UserError` where two layers make the output together (distilled networks with two heads), where the end of the
    network cannot be traced, and where `kind` does not fit (see `FixedClassifier`); the network is then as it was.
    """
    old = last_layer(model)
    if not isinstance(old, nn.Linear | nn.Conv2d) or not _is_linear(old):
        reason = "is fixed already" if isinstance(old, FixedClassifier) else "is neither linear nor a 1×1 convolution"
        warnings.warn(f"nothing was changed: the last layer, {old}, {reason}", UserWarning, stacklevel=2)
        return 0
    if isinstance(old, nn.Linear):
        new = FixedClassifier(old.in_features, old.out_features, kind=kind, seed=seed)
    else:
        new = FixedClassifier(old.in_channels, old.out_channels, kind=kind, seed=seed, dim=-3)
    own = dict(old.named_parameters())
    weight = next(own[name] for name in own if name != "bias")  # of another name where it is parametrised
    with optimizer_follows(model, optimizer) as heir_of:
        replace_modules(model, {old: new})
        heir_of[new.scale] = weight
        heir_of[new.bias] = own.get("bias", weight)
    note_change(model, "fixed_classifier", kind=kind, seed=seed)
    return 1


class FixedClassifier(nn.Module):
    """A last layer with fixed weights: logits = s · Q x̂ + b, where x̂ = x / ‖x‖₂ (equations 3 and 4 of the paper).

    >>> layer = FixedClassifier(512, 1000)
    >>> layer(torch.rand(8, 512)).shape
    (8, 1000)
    >>> sum(p.numel() for p in layer.parameters())       # nn.Linear has 513,000
    1001

    Parameters
    ----------
    in_features : features N.
    num_classes : classes C.
    kind : "hadamard": rows of ±1, for any N and C. Blocks of 2^⌈log₂N⌉ rows of Sylvester's matrix, each with random
        signs of its own for its columns, so that no row comes twice and none is all ones (which positive features
        would always, or never, choose). Features are padded with zeros, and where C is larger than the largest power
        of two that divides N, are spread at random among them. "orthonormal": Q of the QR decomposition of normally
        distributed numbers, C ≤ N. "simplex": rows with cosine −1/(C−1) to each other, C ≤ N + 1, in a random
        subspace of the features.
    seed : of all that is random in Q; the global random numbers are left alone.
    dim : the dimension of the features: the last one, or −3 for maps (B, N, H, W).

    Rows of every kind have length √N, as those of ±1 have, and s begins at 1/√C as the authors' does; b begins at zero.
    Features of zeros (shorter than 1e-12) give the logits b, and no gradient. Lengths are taken in float32 at least.

    What Q is made of is kept in buffers: one byte for each class and feature block (signs) of "hadamard", Q itself of
    the others. Raises `UserError` for sizes that `kind` cannot have, and for features of another number.
    """

    signs: Tensor
    order: Tensor | None
    factors: Tensor
    weight: Tensor

    def __init__(
        self, in_features: int, num_classes: int, *, kind: Kind = "hadamard", seed: int = 0, dim: int = -1
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise unknown_name("kind of fixed classifier", kind, get_args(Kind))
        if in_features < 1 or num_classes < 1:
            raise UserError(f"a fixed classifier needs features and classes, got {in_features} and {num_classes}")
        self.in_features, self.num_classes = in_features, num_classes
        self.kind, self.seed, self.dim = kind, seed, dim
        self.scale = nn.Parameter(torch.full((1,), 1 / math.sqrt(num_classes)))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        for name, tensor in _BUFFERS[kind](in_features, num_classes, torch.Generator().manual_seed(seed)).items():
            self.register_buffer(name, None if tensor is None else tensor.to(self.bias.device))
        if kind == "hadamard":  # not kept with the weights: it is the same in all
            self.register_buffer("factors", sylvester().to(self.bias.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.dim, -1)
        if self.kind == "hadamard":
            logits = _hadamard_logits(x, self.in_features, self.scale, self.bias, self.signs, self.order, self.factors)
        else:
            logits = _dense_logits(x, self.in_features, self.scale, self.bias, self.weight)
        return logits.movedim(-1, self.dim)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """Q as a matrix (C, N), with rows of length √N."""
        if self.kind != "hadamard":
            return self.weight.clone()
        units = _spread(torch.eye(self.in_features).to(self.factors), self.signs.shape[1], self.order)
        return stacked_product(units, self.signs, torch.zeros_like(self.bias), self.factors).T.contiguous()

    @torch.no_grad()
    def coherence(self) -> float:
        """The largest |cosine| between the rows of two classes: 0 where all are orthogonal, 1 where two are parallel.

        Exact, and without the matrix: the product of two Hadamard rows is one again, so that one transform for each
        pair of blocks finds all cosines between them. A million classes over 512 features take seconds.
        """
        if self.num_classes == 1:
            return 0.0
        if self.kind != "hadamard":
            cosines = self.weight @ self.weight.T / self.in_features
            return float(cosines.fill_diagonal_(0).abs().max())
        return self._coherence_of_blocks()

    def _coherence_of_blocks(self) -> float:
        groups, size, lanes = self.signs.shape
        blocks = self.signs.movedim(2, 1).reshape(-1, size).to(self.factors)
        # Class c is row c // lanes % size of its block: how many rows each block has.
        whole = groups * lanes * size - size * lanes
        rows = [size] * (whole // size) + [-(-(self.num_classes - whole - lane) // lanes) for lane in range(lanes)]
        used = _spread(torch.ones(1, self.in_features).to(blocks), size, self.order)
        largest = self._products(used)[:, 1 : power_of_two(rows[0])].max().item() if rows[0] > 1 else 0.0
        for first, count in enumerate(rows[:-1]):
            others = blocks[first + 1 : sum(row > 0 for row in rows)]
            if len(others):  # rows a and b of two blocks meet in row a XOR b, which stays below that power of two
                products = self._products(used * blocks[first] * others)[:, : power_of_two(count)]
                largest = max(largest, products.max().item())
        return largest / self.in_features

    def _products(self, signs: Tensor) -> Tensor:
        return hadamard_transform(signs[:, :, None], self.factors)[:, :, 0].abs()

    def extra_repr(self) -> str:
        learned, linear = 1 + self.num_classes, (1 + self.in_features) * self.num_classes
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, kind={self.kind!r}, seed={self.seed}, "
            f"learned={learned:,} (nn.Linear: {linear:,})"
        )


# Tracers of torch.fx take these as one step: what they do with shapes and types is not for stand-ins of tensors.


@fx.wrap
def _hadamard_logits(
    x: Tensor, features: int, scale: Tensor, bias: Tensor, signs: Tensor, order: Tensor | None, factors: Tensor
) -> Tensor:
    dtype = _dtype(x, scale)
    rows = _spread(_scaled(x, features, scale).to(dtype).reshape(-1, features), signs.shape[1], order)
    return stacked_product(rows, signs, bias.to(dtype), factors).reshape(*x.shape[:-1], len(bias))


@fx.wrap
def _dense_logits(x: Tensor, features: int, scale: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    dtype = _dtype(x, scale)
    return F.linear(_scaled(x, features, scale).to(dtype), weight.to(dtype), bias.to(dtype))


def _scaled(x: Tensor, features: int, scale: Tensor) -> Tensor:
    """s · x / ‖x‖ along the last dimension, in float32 at least: squares of half precision overflow early."""
    if x.shape[-1] != features:
        raise UserError(f"the fixed classifier takes {features} features, got {x.shape[-1]} (shape {tuple(x.shape)})")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    squared = wide.square().sum(-1, keepdim=True)
    return wide * (scale * squared.masked_fill(squared < _NOTHING**2, math.inf).rsqrt())


def _dtype(x: Tensor, scale: Tensor) -> torch.dtype:
    """The type of the logits, as `nn.Linear` would have it under autocast."""
    kind = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(x.dtype, scale.dtype)


def _spread(rows: Tensor, size: int, order: Tensor | None) -> Tensor:
    """Features (B, N) padded with zeros to `size`, at the places where the layer has them."""
    padded = F.pad(rows, (0, size - rows.shape[1])) if rows.shape[1] < size else rows
    return padded if order is None else padded.index_select(1, order)


def _hadamard_buffers(features: int, classes: int, generator: torch.Generator) -> dict[str, Tensor | None]:
    """The signs (G, N, L) of all blocks, and the order of the padded features."""
    shape = shape_of_signs(features, classes)
    order = None
    if classes > features & -features:  # up to the largest power of two in N, the rows are orthogonal as they are
        order = _order(features, shape[1], generator)
    for _ in range(_DRAWS):
        signs = _random_signs(shape, generator)
        if features >= _SURELY_DISTINCT or _all_differ(features, classes, signs, order):
            return {"signs": signs, "order": order}
    raise UserError(
        f"{features} features are too few for {classes} rows of ±1 that all differ; use more features or fewer classes"
    )


def _order(features: int, size: int, generator: torch.Generator) -> Tensor | None:
    return None if features == size else torch.randperm(size, generator=generator, device="cpu")


def _random_signs(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator, dtype=torch.int8, device="cpu") * 2 - 1


def _all_differ(features: int, classes: int, signs: Tensor, order: Tensor | None) -> bool:
    size = signs.shape[1]
    units = _spread(torch.eye(features, device="cpu"), size, order)
    rows = stacked_product(units, signs, torch.zeros(classes, device="cpu"), sylvester()).T > 0
    bits = rows.long() << torch.arange(features, device="cpu")
    return len(bits.sum(1).unique()) == classes


def _orthonormal_buffers(features: int, classes: int, generator: torch.Generator) -> dict[str, Tensor | None]:
    if classes > features:
        raise UserError(
            f"{features} features hold no more than {features} orthonormal rows, not {classes}; use kind='hadamard'"
        )
    return {"weight": (math.sqrt(features) * _orthonormal(features, classes, generator)).float()}


def _simplex_buffers(features: int, classes: int, generator: torch.Generator) -> dict[str, Tensor | None]:
    if classes < 2 or classes > features + 1:
        raise UserError(
            f"{features} features hold a simplex of 2 to {features + 1} corners, not of {classes}; use kind='hadamard'"
        )
    basis = _orthonormal(features, classes - 1, generator)
    return {"weight": (math.sqrt(features) * (_simplex(classes) @ basis)).float()}


def _orthonormal(features: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` orthonormal rows (count, N) in a uniformly random position, float64."""
    normal = torch.randn(features, count, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(normal)
    return (q * r.diagonal().sign()).T  # which signs of R a library takes would otherwise be its own choice


def _simplex(classes: int) -> Tensor:
    """The corners (C, C−1) of a simplex around zero, of length 1: the recursion of Kasarla et al. (equation 3)."""
    corners = torch.tensor([[1.0], [-1.0]], dtype=torch.float64, device="cpu")
    for k in range(2, classes):
        rest = torch.cat((torch.full((k, 1), -1 / k).to(corners), math.sqrt(1 - 1 / k**2) * corners), 1)
        corners = torch.cat((F.pad(corners.new_ones(1, 1), (0, k - 1)), rest))
    return corners


_BUFFERS = {"hadamard": _hadamard_buffers, "orthonormal": _orthonormal_buffers, "simplex": _simplex_buffers}


def _is_linear(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether a layer maps the features of each place for itself."""
    if isinstance(layer, nn.Linear):
        return True
    once = layer.stride == (1, 1) and layer.padding in ((0, 0), "same", "valid")
    return layer.kernel_size == (1, 1) and once and layer.groups == 1
