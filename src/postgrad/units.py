"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from postgrad.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_memory(text: str) -> int:
    """Bytes of an amount such as "8GB", "500 MB" or "2GiB".

    >>> parse_memory("1.5GB")
    1500000000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    amount = float(match[1]) * _UNITS.get(match[2], 0) if match else 0
    if amount <= 0:
        raise UserError(f"memory: cannot read {text!r}; write an amount such as 8GB or 500MB")
    return int(amount)


def format_memory(amount: float) -> str:
    """Bytes in words: `format_memory(1_500_000_000)` is "1.5 GB"."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount:.0f} bytes"
