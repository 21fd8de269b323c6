"""What all jobs of a search share in one process, as its workers have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from postgrad.search.config import SearchConfig
from postgrad.search.context import Context
from postgrad.search.jobs import SearchJob
from postgrad.search.mutations import load_mutations


@dataclass(frozen=True)
class SearchBench:
    """A search's context, in whose directory its individuals are made.

    >>> SearchBench.at(Path("runs/search")).make(Base())
    '3f1c77a0be52'
    """

    context: Context

    @classmethod
    def at(cls, directory: Path) -> SearchBench:
        """That of a search whose settings lie there; the user's own mutations are loaded too."""
        config = SearchConfig.load(directory / "config.yaml")
        for file in config.mutation_files:
            load_mutations(file)
        return cls(Context.of(config, directory))

    def directory(self, job: SearchJob) -> Path:
        return self.context.directory / job.folder

    def make(self, job: SearchJob) -> str:
        return job.make(self.context)
