"""A weight's gradient as its two factors: what a layer read, and what came back to it; their product is not made."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.gradients import contract

_CONVOLVE = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class Factor(NamedTuple):
    """One call's share of a weight's gradient, which is the (O, K) matrix Σ over places of δ xᵀ.

    >>> factor.read(filters).shape           # (J, K) filters, such as rows of a projection
    torch.Size([N, G, J, P])

    `delta` (N, L, G, O/G, P) is what came back to the layer's output for N images, L labels, G groups of channels and
    P places; `input` is the layer's input, the same for all labels. K is the numbers that one output reads at a place.
    """

    layer: nn.Module
    input: Tensor
    delta: Tensor

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether the gradient of this layer's weight is such a matrix."""
        return isinstance(layer, (nn.Linear, *_CONVOLVE))

    def split(self, images: int) -> list[Factor]:
        """The same, at most so many images (at least one) at a time."""
        each = max(1, images)
        windows = len(self.input) // len(self.delta)
        inputs = self.input.split(each * windows)
        return [Factor(self.layer, some, delta) for some, delta in zip(inputs, self.delta.split(each), strict=True)]

    def copied(self) -> Factor:
        """The same with a delta of its own."""
        return self._replace(delta=self.delta.clone())

    def read(self, filters: Tensor) -> Tensor:
        """What each of the filters (J, K) gives at each place of each group: (N, G, J, P), differentiable in them.

        A convolution with the layer's own geometry: patches are never copied out, and no label takes part.
        """
        layer: Any = self.layer
        if isinstance(layer, nn.Linear):
            at_places = F.linear(self.input, filters)
            found = at_places.reshape(len(self.input), 1, -1, len(filters)).transpose(2, 3)
        else:
            padded = contract._padded(layer, self.input)
            grouped = padded.reshape(-1, padded.shape[1] // layer.groups, *padded.shape[2:])
            kernels = filters.view(len(filters), -1, *layer.kernel_size)
            convolve = next(function for kind, function in _CONVOLVE.items() if isinstance(layer, kind))
            convolved = convolve(grouped, kernels, stride=layer.stride, dilation=layer.dilation)
            found = convolved.reshape(len(self.input), layer.groups, len(filters), -1)
        return self._per_image(found)

    def send(self, directions: Tensor) -> Tensor:
        """What comes back along each of the directions (J, O) of the output's channels: (N, L, G, J, P).

        A direction is cut into the groups' channels; each group's part is taken with its own channels alone.
        """
        images, labels, groups, outputs, places = self.delta.shape
        kernels = directions.view(-1, groups, outputs).transpose(0, 1).reshape(-1, outputs, 1)
        flat = self.delta.reshape(images * labels, groups * outputs, places)
        return F.conv1d(flat, kernels, groups=groups).view(images, labels, groups, -1, places)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The gradient's entries at (rows[i], columns[i]), as (N, L, entries), and nothing else of it."""
        images, labels, groups, outputs, places = self.delta.shape
        chosen = self.delta.reshape(images, labels, groups * outputs, places)[:, :, rows]
        return torch.einsum("nljp,njp->nlj", chosen, self.patches(rows // outputs, columns))

    def submatrix(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The entries at all pairs of the rows (I,) and columns (J,) of a layer of one group: (N, L, I, J)."""
        images, labels, _, _, places = self.delta.shape
        chosen = self.delta[:, :, 0, rows].reshape(images, -1, places)
        read = self.patches(torch.zeros_like(columns), columns)
        return torch.bmm(chosen, read.transpose(1, 2)).view(images, labels, len(rows), len(columns))

    def patches(self, groups: Tensor, columns: Tensor) -> Tensor:
        """What the weight's columns read in these groups, at each place: (N, entries, P)."""
        form = contract.closed_form(self.layer)
        assert form is not None
        patches = form.activation(self.input)
        kernel = getattr(self.layer, "kernel_size", ())
        where: Any = torch.unravel_index(columns, patches.shape[2 : 3 + len(kernel)])
        read = patches[(slice(None), groups, *where)].flatten(2)
        return self._per_image(read.unsqueeze(1)).squeeze(1)

    def _per_image(self, found: Tensor) -> Tensor:
        """Windows of one image become places of it: (B, G, J, P) to (N, G, J, windows·P)."""
        windows = len(found) // len(self.delta)
        if windows == 1:
            return found
        return found.unflatten(0, (-1, windows)).permute(0, 2, 3, 1, 4).flatten(3)


Part = dict[str, list[Factor]]
"""For each block its factors, one for each call of a layer, of some images under some labels."""
