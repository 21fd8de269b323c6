"""The published settings of JEM, JEM++ and SADA-JEM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from postgrad.methods._sgld import Langevin

IMAGE_RANGE = (-1.0, 1.0)
"""What black and white are to the network; all settings are for this range."""

Variant = Literal["jem", "jem++", "sada-jem"]


@dataclass(frozen=True)
class Preset:
    """The published settings of one variant.

    data_noise : of the images in the loss. gaussian_starts : chains begin at a Gaussian of their class, not at noise.
    training_mode : the network is in it while chains are drawn, so that normalisation uses their own statistics.
    apart : p(x) has a batch of its own, without augmentation. sharpness : ρ of SAM.
    """

    chains: Langevin
    data_noise: float
    gaussian_starts: bool
    training_mode: bool
    apart: bool = False
    sharpness: float | None = None


PRESETS: dict[Variant, Preset] = {
    "jem": Preset(Langevin(20, step_size=1.0, noise=0.01), 0.03, gaussian_starts=False, training_mode=False),
    "jem++": Preset(
        Langevin(10, step_size=0.2, proximal=1.0, bounds=IMAGE_RANGE, inner_steps=5),
        data_noise=0.03,
        gaussian_starts=True,
        training_mode=True,
    ),
    "sada-jem": Preset(
        Langevin(5, step_size=1.0, proximal=1.0, bounds=IMAGE_RANGE),
        data_noise=0.0,
        gaussian_starts=True,
        training_mode=True,
        apart=True,
        sharpness=2.0,
    ),
}
