"""One resumable training loop on Lightning Fabric, used by everything that takes steps."""

from postgrad.training.clock import Stopwatch, parse_duration
from postgrad.training.fabric import make_fabric
from postgrad.training.loop import DivergedError, train
from postgrad.training.optimizers import optimizer_copies
from postgrad.training.recipe import Recipe
from postgrad.training.state import History

__all__ = [
    "DivergedError",
    "History",
    "Recipe",
    "Stopwatch",
    "make_fabric",
    "optimizer_copies",
    "parse_duration",
    "train",
]
