"""Pictures of samples: what they show, and that they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from postgrad.data.datasets import Images
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods._sgld import Langevin
from postgrad.methods.energy_samples import Chains
from postgrad.models.network import NetworkClassifier
from postgrad.studies.sampling import grid, write_samples


class Grey(nn.Module):
    """Class 0 is black, class 1 white; how steep the hills are is a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return self.factor * torch.stack([-(mean + 1).square(), -(mean - 1).square()], dim=1)


def classifier(factor: float = 1.0) -> NetworkClassifier:
    halves = Preprocessing(mean=(0.5,), std=(0.5,))
    return NetworkClassifier(Grey(factor), preprocess=halves, class_names=("black", "white"), device="cpu")


def chains(grey: int = 200) -> Chains:
    return Chains(torch.full((6, 1, 4, 4), grey, dtype=torch.uint8), Langevin(2, step_size=1.0, bounds=(-1.0, 1.0)))


def test_a_grid_shows_each_image_once_and_lines_between() -> None:
    picture = grid(torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 1, 24, 24), 3)
    assert picture.shape == (2 * 48 + 1, 3 * 48 + 2, 3)
    assert picture[0, [0, 49, 98], 0].tolist() == [0, 64, 128]
    assert picture[49, [0, 49, 98], 0].tolist() == [191, 255, 128]
    assert (picture[48] == 128).all()
    colours = grid(torch.tensor([1.0, 0.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 50, 50), 1)
    assert colours[7, 7].tolist() == [255, 0, 128]


def test_samples_strips_an_animation_and_the_nearest_images_are_written(tmp_path: Path) -> None:
    greys = torch.tensor([0, 90, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    known = Images(greys.expand(3, 1, 4, 4), torch.zeros(3).long())
    found = write_samples(classifier(), tmp_path, 5, label=1, chains=chains(), steps=50, training=known)
    assert sorted(found.files) == sorted(path.name for path in tmp_path.iterdir())
    assert (found.samples.mean() > 0.9).item()
    assert found.figures["taken_for_class"] == 1
    assert found.figures["steps"] == 50
    assert found.figures["distance_to_nearest"] < 1
    nearest = np.asarray(Image.open(tmp_path / "nearest.png"))
    assert nearest[5, 54, 0] == 255  # beside the first sample stands the white image
    assert nearest[5, 103, 0] == 90
    with Image.open(tmp_path / "chains.gif") as animation:
        assert animation.n_frames > 5
    strip = np.asarray(Image.open(tmp_path / "chains.png"))
    assert strip[:40, -40:].mean() > strip[:40, :40].mean() + 30  # from noise towards white


def test_other_seeds_draw_others_and_the_same_seed_the_same(tmp_path: Path) -> None:
    bytes_of = []
    for number, seed in enumerate((0, 0, 1)):
        place = tmp_path / str(number)
        write_samples(classifier(), place, 4, chains=chains(), seed=seed, steps=3)
        bytes_of.append((place / "chains.png").read_bytes())
        assert not (place / "nearest.png").exists()
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_networks_of_unknown_form_and_chains_that_run_away_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say what images it takes"):
        write_samples(classifier(), tmp_path, 2)
    away = Chains(chains().images, Langevin(3, step_size=1e30))
    with pytest.raises(UserError, match="the chains ran away"):
        write_samples(classifier(-1e30), tmp_path, 2, chains=away)
