"""`per_sample_gradients`: all gradients of a few images at once, in the parameters' own shapes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from postgrad.gradients.engine import GradientEngine, Labels


def per_sample_gradients(
    model: nn.Module,
    x: Tensor,
    labels: Labels,
    *,
    layers: Sequence[str] | None = None,
    parameters: Sequence[str] | None = None,
    memory: int = 2 << 30,
) -> dict[str, Tensor]:
    """The gradient of cross-entropy for each image alone, under its label or under every label.

    >>> per_sample_gradients(model, images, labels)["conv1.weight"].shape
    torch.Size([25, 64, 3, 5, 5])
    >>> per_sample_gradients(model, images, "all", layers=["conv1"])["conv1.weight"].shape
    torch.Size([25, 10, 64, 3, 5, 5])

    Args:
        model: a network from images (N, …) to logits (N, C), taken in eval mode and left as it was.
        x: images (N, …) as the model takes them.
        labels: (N,) integers below C, or "all".
        layers: names of modules; None is every parameter that requires grad. `parameters`: names of parameters instead.
        memory: bytes of working memory beside the result; the images are taken in chunks that fit.

    Returns:
        For each parameter (a tied one once, under its first name) (N, *shape), or (N, C, *shape) for "all".

    Raises:
        UserError: labels out of range, wrong shapes, unknown names, a model that mixes the images of a batch, one
            image's gradients beyond `memory`.
    """
    empty = isinstance(x, Tensor) and x.dim() > 0 and len(x) == 0
    example = x.new_zeros((1, *x.shape[1:])) if empty else x
    engine = GradientEngine(model, example, layers=layers, parameters=parameters, memory=memory)
    rows_each = engine.num_classes if isinstance(labels, str) else 1
    chunk = engine.images_per_chunk(labels)
    engine.check(x, labels)
    result = {
        block.name: x.new_empty((len(x) * rows_each, block.numel), dtype=model.get_parameter(block.name).dtype)
        for block in engine.blocks
    }
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        for name, rows in engine.gradients(x[part], labels if isinstance(labels, str) else labels[part]):
            result[name][start * rows_each : start * rows_each + len(rows)] = rows
    leading = (len(x), rows_each) if isinstance(labels, str) else (len(x),)
    return {block.name: result[block.name].view(*leading, *block.shape) for block in engine.blocks}
