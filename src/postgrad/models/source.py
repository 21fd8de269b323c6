"""Where a network came from: what its checkpoint needs to build it again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue
from torch import nn

from postgrad.models.names import BUILT_IN


class FactoryFile(BaseModel):
    """A factory's file: its name, relative to the working directory, and the hash of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str


class Source(BaseModel):
    """The arguments of `create_model`, without any path of this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    kwargs: dict[str, JsonValue] = {}
    factory_file: FactoryFile | None = None

    @property
    def runs_own_code(self) -> bool:
        """Whether the network is made by a function of the user's own."""
        return self.spec not in BUILT_IN and not self.spec.startswith(("torchvision:", "timm:"))


def source_of(model: nn.Module) -> Source | None:
    """The source of a network made by `create_model` or `load`, None for any other."""
    found: Any = getattr(model, "postgrad_source", None)
    return found if isinstance(found, Source) else None


def set_source(model: nn.Module, source: Source | None) -> None:
    """Note on the network itself where it came from."""
    object.__setattr__(model, "postgrad_source", source)
