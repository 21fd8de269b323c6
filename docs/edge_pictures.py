"""Draw the pictures of docs/edges.md: a perceptron on MNIST and seed-cnn on CIFAR-10, each trained for a short time.

python docs/edge_pictures.py --data-dir DIR
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from postgrad.cli import main

IMAGES = Path(__file__).resolve().parent / "images"
PICTURES = {
    "edges-mlp-mnist": ("mlp", "mnist", "10000", "3"),
    "edges-seed-cnn-cifar10": ("seed-cnn", "cifar10", "5000", "5"),
}
"""Name of the picture -> model, data, number of images, passes."""


def draw(name: str, data_dir: str, folder: Path) -> None:
    """Train a network, rank its edges and keep the picture as docs/images/NAME.svg."""
    model, data, limit, epochs = PICTURES[name]
    images = ["--data", data, "--data-dir", data_dir, "--limit", limit]
    run("train", "--model", model, *images, "--epochs", epochs, "--out", str(folder / model))
    run("edges", "--model", str(folder / model), *images, "--out", str(folder / name))
    shutil.copyfile(folder / name / "edges.svg", IMAGES / f"{name}.svg")


def run(*words: str) -> None:
    """Run one line of postgrad, and stop where it fails."""
    code = main(words)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="where MNIST and CIFAR-10 lie")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for picture in PICTURES:
            draw(picture, options.data_dir, Path(temporary))
