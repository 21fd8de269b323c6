"""The data sets there are, each in one line; importable without torch."""

from __future__ import annotations

DATASETS = {
    "digits": "1,797 handwritten digits, 8×8 grey, 10 classes; comes with scikit-learn, needs no download",
    "mnist": "70,000 handwritten digits, 28×28 grey, 10 classes",
    "fashion-mnist": "70,000 pictures of clothing, 28×28 grey, 10 classes",
    "kmnist": "70,000 cursive Japanese characters, 28×28 grey, 10 classes",
    "notmnist": "letters A to J in many fonts, 28×28 grey, 10 classes (the conversion to MNIST's format)",
    "cifar10": "60,000 small photographs, 32×32 colour, 10 classes",
    "cifar100": "60,000 small photographs, 32×32 colour, 100 classes",
    "svhn": "99,289 house numbers, 32×32 colour, 10 classes",
    "folder:DIR": "pictures in DIR/train/CLASS/ and DIR/test/CLASS/, or in DIR/CLASS/ (a fifth becomes the test set)",
    "npz:FILE": "arrays x_train, y_train and, if wanted, x_test, y_test in one .npz file, as Keras stores them",
}
"""Name, as `--data` takes it -> one line."""
