"""What a `--model` can be, told without importing torch."""

from __future__ import annotations

BUILT_IN = {
    "seed-cnn": "two 5×5 convolutions of 64 filters and a linear layer; crops images of 24 pixels or more to 24×24",
    "mlp": "two hidden layers of 256 and 128 units on the flattened image",
    "resnet20": "the 20-layer residual network for small images (He et al., 2015)",
}
"""The networks of this package: name -> one line."""

FORMS = {
    "torchvision:NAME": "a classifier of torchvision.models, such as torchvision:resnet18",
    "timm:NAME": "a classifier of timm (pip install 'postgrad[timm]'), such as timm:resnet18",
    "pkg.mod:factory": "a function or class of an installed package that returns an nn.Module",
    "file.py:factory": "a function or class of a Python file that returns an nn.Module",
}
"""The other forms of a specification: form -> one line."""
