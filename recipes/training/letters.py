"""Writes notMNIST's images as runs/notmnist.npz, of which a fifth is set aside for testing: the data of a transfer.

python recipes/training/letters.py --data-dir DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from postgrad.data.datasets import load_dataset
from postgrad.files import atomic_path

OUT = Path("runs/notmnist.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where notMNIST lies")
    letters = load_dataset("notmnist", data_dir=parser.parse_args().data_dir).test
    assert letters is not None
    OUT.parent.mkdir(exist_ok=True)
    with atomic_path(OUT) as temporary, open(temporary, "wb") as file:
        np.savez(file, x_train=letters.images[:, 0].numpy(), y_train=letters.labels.numpy())


if __name__ == "__main__":
    main()
