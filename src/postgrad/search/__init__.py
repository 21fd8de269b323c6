"""Mutation search: larger networks bred from a small trained one, with inherited weights.

The package can be called, as `from postgrad import search` gives it: `search(SearchConfig(…), workers=2)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postgrad.search.config import SearchConfig
    from postgrad.search.search import Search


class _CallablePackage(ModuleType):
    """`search` is a verb and the package of its parts; a name in `postgrad` can only be one of them."""

    def __call__(self, config: SearchConfig, *, workers: int | None = None, ray: str | None = None) -> Search:
        """See `postgrad.search.search.search`."""
        from postgrad.search.search import search

        return search(config, workers=workers, ray=ray)


sys.modules[__name__].__class__ = _CallablePackage
