"""Images drawn from a network whose density is known, and images refined before they are classified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods._replay_buffer import ReplayBuffer
from postgrad.methods._sgld import Langevin
from postgrad.methods.energy_samples import Chains, PurifyingClassifier, draw_images
from postgrad.models.network import NetworkClassifier

HALVES = Preprocessing(mean=(0.5,), std=(0.5,))


class Hills(nn.Module):
    """The logit of class k is highest at images that are all `centres[k]` grey, from −1 to 1."""

    def __init__(self, centres: tuple[float, ...] = (-0.6, 0.0, 0.6)) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor(centres))

    def forward(self, x: Tensor) -> Tensor:
        far = (x.flatten(1)[:, :, None] - self.centres).square().sum(1)
        return -8 * far


def classifier(preprocess: Preprocessing = HALVES, **options: Any) -> NetworkClassifier:
    kind = PurifyingClassifier if "steps" in options else NetworkClassifier
    return kind(Hills(), preprocess=preprocess, class_names="abc", device="cpu", **options)


def drawn(**options: Any) -> Tensor:
    chains = Chains(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), Langevin(10, step_size=0.02, noise=0.02))
    *_, images = draw_images(classifier(), (1, 2, 2), 40, **{"chains": chains, **options})
    return images


@pytest.mark.parametrize(("label", "grey"), [(0, 0.2), (1, 0.5), (2, 0.8)])
def test_of_a_class_samples_lie_at_its_hill(label: int, grey: float) -> None:
    assert (drawn(label=label).flatten(1).mean(1) - grey).abs().max() < 0.1


def test_of_all_classes_samples_lie_at_all_hills() -> None:
    nearest = (drawn().mean((1, 2, 3))[:, None] - torch.tensor([0.2, 0.5, 0.8])).abs()
    assert nearest.min(1).values.max() < 0.1
    assert set(nearest.argmin(1).tolist()) == {0, 1, 2}


def test_seeds_give_the_same_images_and_others_others() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(drawn(seed=1), drawn(seed=1))
    assert not torch.equal(drawn(seed=1), drawn(seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_first_comes_the_start_and_then_each_step() -> None:
    path = list(draw_images(classifier(), (1, 2, 2), 3, steps=4))
    assert len(path) == 5
    assert path[0].std() > 0.2
    assert all(float(images.min()) >= 0 and float(images.max()) <= 1 for images in path)


def test_chains_of_the_training_go_on_those_of_the_class_first() -> None:
    greys = torch.tensor([51, 128, 204, 50], dtype=torch.uint8)
    chains = Chains(greys.view(4, 1, 1, 1).expand(4, 1, 2, 2), Langevin(1, step_size=1e-9))
    first, *_ = draw_images(classifier(), (1, 2, 2), 2, label=0, chains=chains, steps=1)
    assert sorted((255 * first[:, 0, 0, 0]).round().int().tolist()) == [50, 51]
    every, *_ = draw_images(classifier(), (1, 2, 2), 6, chains=chains, steps=1)
    assert set((255 * every[:, 0, 0, 0]).round().int().tolist()) == {50, 51, 128, 204}


def test_chains_are_stored_and_read(tmp_path: Path) -> None:
    buffer = ReplayBuffer(5, lambda labels: torch.zeros(len(labels), 1, 2, 2), classes=1)
    kept = Chains.of(buffer, Langevin(3, step_size=0.2, proximal=1.0, bounds=(-1.0, 1.0), inner_steps=2))
    kept.save(tmp_path)
    found = Chains.load(tmp_path)
    assert found is not None
    assert torch.equal(found.images, kept.images)
    assert found.langevin == kept.langevin
    assert Chains.load(tmp_path / "elsewhere") is None


def test_the_network_sees_samples_as_it_sees_images() -> None:
    """Draw for a network that sees images another way: the hill of its class lies elsewhere in pixels."""
    other = classifier(Preprocessing(mean=(0.25,), std=(0.25,)))
    short = Chains(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), Langevin(40, step_size=0.005))
    *_, images = draw_images(other, (1, 2, 2), 8, label=2, chains=short)
    assert (images.mean((1, 2, 3)) - 0.4).abs().max() < 0.1


def test_networks_that_standardise_each_image_are_refused() -> None:
    with pytest.raises(UserError, match="standardises each image"):
        next(draw_images(classifier(Preprocessing(per_image_standardise=True)), (1, 2, 2), 1))


def test_images_are_refined_towards_their_hill_before_they_are_classified() -> None:
    images = torch.full((6, 1, 2, 2), 0.74) + 0.02 * torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    langevin = Langevin(1, step_size=0.01, noise=0.0)
    plain, refining = classifier(), classifier(steps=20, langevin=langevin)
    seen = refining.inputs(images)
    by_hand = plain.inputs(images)
    for _ in range(20):
        x = by_hand.clone().requires_grad_()
        plain.model(x).logsumexp(1).sum().backward()
        by_hand = by_hand + 0.01 * x.grad
    torch.testing.assert_close(seen, by_hand.detach())
    assert (seen - 0.6).abs().max() < (plain.inputs(images) - 0.6).abs().max() / 5
    assert refining.inference_passes == 21
    np.testing.assert_array_equal(refining.predict_proba(images), refining.predict_proba(images))
    assert not np.allclose(refining.predict_proba(images), plain.predict_proba(images))
    assert all(parameter.requires_grad for parameter in refining.model.parameters())
