"""The table of benchmarks/growth_exactness.py, and its page of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from postgrad.files import write_atomic

EXACT = 1e-9
HEADINGS = ("implementation", "setting", "float64", "float64, training mode", "float32", "seconds")
_MEASURES = ("float64 eval", "float64 train", "float32 eval")

_BEGINNING = """# How exactly networks are grown

Source: the papers say that growth keeps what a network computes (Net2Net, arXiv 1511.05641; Network Morphism, arXiv
1603.01670). The question: do the implementations that one can install?

`{command}`

The same networks, weights and batch for all. A figure is the greatest difference of the outputs before and after, over
the standard deviation of those before: 1e-15 is rounding, 1 another function; in evaluation and in training mode,
where normalisation takes the statistics of the batch. Medians of {seeds} seeds (one for resnet18). Seconds are those of
the whole call; ours reads the graph, and proves and journals the change, theirs do not. {machine}

- **postgrad** `widen` and `deepen` as they come, and `deepen(kind="identity")`.
- **Net2Net**: {net2net}
- **gromo** {gromo}: its modules are put in the place of the network's, with the same weights, and extended by
  `create_layer_extensions`. (Its other way, along the gradient, is to change the function and is not measured.)
"""

_FAULTS = """## What is wrong, and what cannot be done

**Net2Net.**

- `deeper` puts the 1 of the identity kernel at index k // 2 + 1, one pixel off the centre: the new layer shifts the
  image. A 1×1 kernel would be out of range.
- `wider` gives the statistics, factor and shift of normalisation to the last new channel only (the assignment stands
  behind the loop); the others hold whatever the memory held: the result differs from run to run and may be no number.
- With `weight_norm`, the default, replicas are copied from filters divided by their norms while the old ones keep them,
  and nothing makes up for it; `deeper` divides the filters that are there. With `random_init`, the default, new units
  lead into the next layer by random weights. With `noise`, the default, incoming weights are disturbed, which no
  outgoing share can undo.
- Layers without bias, as before most normalisations, end in an AttributeError; so do linear layers with the defaults.
- One following layer is rescaled. Where several read the channels, or a sum adds to them, the network no longer runs.
- Nothing is checked, and an optimizer is not carried over.

**gromo.**

- Exact where new columns are zero, or units come in pairs of opposite sign without noise; as it comes it is not, and
  does not claim to be.
- A network has to be written in its modules (or be one of its own ResNets, VGGs and MLPs). What residual blocks add to
  has the size that it was made with; identity layers and larger kernels are not there.

**postgrad.**

- An identity layer with a normalisation of its own is exact in evaluation mode only, as its certificate says; the
  residual block, the default, is exact in both.
- It takes longer: most of it is the certificate.
"""


def print_table(figures: Mapping[str, Any]) -> None:
    """The table on the terminal."""
    print(_table(figures["rows"], with_case=True))


def write_page(figures: Mapping[str, Any], page: Path) -> None:
    """The whole page, its text and a table for each case."""
    parts = [_BEGINNING.format(**_said(figures))]
    for case, rows in groupby(figures["rows"], key=lambda row: row["case"]):
        parts.append(f"## {case[0].upper()}{case[1:]}\n\n{_table(list(rows), with_case=False)}\n")
    write_atomic(page, "\n".join([*parts, _FAULTS]))


def _said(figures: Mapping[str, Any]) -> dict[str, str]:
    environment, peers = figures["environment"], figures["peers"]
    net2net = peers["Net2Net"]
    command = "python benchmarks/growth_exactness.py --json docs/ledger/raw/growth-exactness.json"
    return {
        "command": command + (" --net2net net2net.py" if net2net else ""),
        "seeds": str(figures["seeds"]),
        "machine": f"{environment['processor']}, one thread, torch {environment['versions']['torch']}.",
        "net2net": (
            "github.com/erogol/Net2Net, the usual reference in PyTorch, "
            f"commit {net2net['commit'] or 'not given'}, with its defaults and with all that is random in them off."
            if net2net
            else "did not run."
        ),
        "gromo": peers["gromo"] or "(did not run)",
    }


def _table(rows: list[Mapping[str, Any]], *, with_case: bool) -> str:
    headings = ("case", *HEADINGS) if with_case else HEADINGS
    rule = "|".join(["---"] * (len(headings) - 4) + ["---:"] * 4)
    lines = [f"| {' | '.join(headings)} |", f"|{rule}|"]
    for (case, implementation, reason), group in groupby(rows, key=_refusal):
        if reason is None:
            cells = [[row["case"], implementation, row["setting"], *_cells(row)] for row in group]
        else:
            settings = [row["setting"] for row in group]
            cells = [[case, implementation, settings[0] if len(settings) == 1 else "any", reason, "–", "–", "–"]]
        lines += [f"| {' | '.join(each if with_case else each[1:])} |" for each in cells]
    return "\n".join(lines)


def _refusal(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    return row["case"], row["implementation"], row.get("not applicable") or row.get("fails")


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [*(_figure(row[name]["median"], name) for name in _MEASURES), f"{row['seconds']['median']:.2g}"]


def _figure(value: float | None, name: str) -> str:
    if value is None:
        return "no number"
    limit = EXACT if name.startswith("float64") else 1e-4
    return f"{value:.1e}" if value > limit else f"**{value:.1e}**" if value else "**0**"
