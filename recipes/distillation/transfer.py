"""Writes runs/cifar10-transfer.npz: CIFAR-10 training images that a study of the first 5,000 leaves out, unlabelled.

python recipes/distillation/transfer.py --data-dir DIR
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from torch import Tensor

from postgrad.data.datasets import load_dataset
from postgrad.studies.run import write_arrays


def digests(images: Tensor) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image.numpy()).tobytes()).digest() for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--limit", type=int, default=5000, help="of the study; its images are left out")
    parser.add_argument("--count", type=int, default=10000, help="images that are written")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-transfer.npz"))
    options = parser.parse_args()
    whole = load_dataset("cifar10", data_dir=options.data_dir)
    studied = load_dataset("cifar10", data_dir=options.data_dir, limit=options.limit)
    assert whole.train is not None
    assert whole.test is not None
    assert studied.train is not None
    # No copy of a test image either, wherever it stands.
    known = {*digests(studied.train.images), *digests(whole.test.images)}
    chosen = [number for number, digest in enumerate(digests(whole.train.images)) if digest not in known]
    images = whole.train.images[chosen[: options.count]]
    write_arrays(options.out, x_train=images.permute(0, 2, 3, 1).contiguous())
    print(f"{options.out}: {len(images)} images without labels")


if __name__ == "__main__":
    main()
