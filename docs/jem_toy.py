"""Draws what a classifier of points in the plane takes for likely, with JEM and without: the picture of its page.

    python docs/jem_toy.py

The density is exp(−E) over the square, normalised on a grid. Prints the mean log-likelihood of new points.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.files import atomic_path
from postgrad.methods.jem import JEM, energy

matplotlib.use("Agg")

from matplotlib import pyplot as plt

PICTURE = Path(__file__).parent / "images" / "jem-toy.png"
ARMS, SIDE, STEPS, BATCH = 3, 121, 600, 200
# Noise of √(2 · step_size) draws from the density itself, where JEM's own settings draw from a sharper one.
CHAINS = {"steps": 30, "step_size": 0.00125, "noise": 0.05, "data_noise": 0.0, "buffer_size": 5000, "energy_l2": 0.003}


def pinwheel(count: int) -> tuple[Tensor, Tensor]:
    """Points (count, 2) on three bent arms, and the arm of each."""
    labels = torch.randint(ARMS, (count,))
    along = 0.5 + 0.16 * torch.randn(count)
    across = 0.05 * torch.randn(count)
    angle = 2 * math.pi * labels / ARMS + 1.3 * along
    turned = torch.stack([along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()], 1)
    return turned.clamp(-1, 1), labels


def trained(points: Tensor, labels: Tensor, *, weight: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, ARMS))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    jem = JEM(model, points, labels, weight=weight, **CHAINS)  # type: ignore[arg-type]
    jem.begin(optimizer)
    for _ in range(STEPS):
        chosen = torch.randint(len(points), (BATCH,))
        loss = jem.loss(points[chosen], labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        jem.after_step()
    return model.eval()


@torch.no_grad()
def log_density(model: nn.Module, places: Tensor) -> Tensor:
    """log p at some places (n, 2), normalised over the square."""
    line = torch.linspace(-1, 1, SIDE)
    grid = torch.cartesian_prod(line, line)
    constant = (-energy(model(grid))).logsumexp(0) + 2 * math.log(2 / SIDE)
    return -energy(model(places)) - constant


def main() -> None:
    torch.manual_seed(0)
    points, labels = pinwheel(5000)
    new, new_labels = pinwheel(5000)
    line = torch.linspace(-1, 1, SIDE)
    grid = torch.cartesian_prod(line, line)
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), sharey=True, layout="constrained")
    axes[0].scatter(*points[:1500].T, c=labels[:1500], s=2, cmap="brg")
    axes[0].set_title("points of three classes")
    for axis, (title, weight) in zip(axes[1:], {"cross-entropy alone": 0.0, "JEM": 1.0}.items(), strict=True):
        model = trained(points, labels, weight=weight)
        density = log_density(model, grid).exp().view(SIDE, SIDE).T
        axis.imshow(density, extent=(-1, 1, -1, 1), origin="lower", cmap="magma")
        axis.set_title(f"p(x), {title}")
        with torch.no_grad():
            right = (model(new).argmax(1) == new_labels).float().mean()
            loss = F.cross_entropy(model(new), new_labels)
        likelihood = log_density(model, new).mean()
        print(f"{title}: accuracy {right:.4f}, NLL of labels {loss:.4f}, mean log p(x) {likelihood:.2f}")
    print(f"uniform over the square: mean log p(x) {-math.log(4):.2f}")
    for axis in axes:
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
    with atomic_path(PICTURE) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")


if __name__ == "__main__":
    main()
