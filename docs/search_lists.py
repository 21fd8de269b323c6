"""Random lists of commands on three small networks: each is grown, proved, and trains a step, or was refused before.

    python docs/search_lists.py --lists 500 --json docs/ledger/raw/search-lists.json --page docs/ledger/search-lists.md

Goes on where it was. Anything that is neither of the two is a failure, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from postgrad.errors import UserError
from postgrad.files import write_atomic
from postgrad.growth.operations import grow
from postgrad.models.registry import create_model
from postgrad.search.commands import draw_commands
from postgrad.search.mutations import Infeasible, Parent, architecture_of

BASES = ("small3", "vgg8_narrow", "ResNet8")
"""Of recipes/networks.py."""
IMAGES = torch.linspace(-1, 1, 8 * 3 * 16 * 16).reshape(8, 3, 16, 16).mul(40).sin()
LABELS = torch.arange(8) % 10
EXACT = 1e-9
SAVE_EVERY = 10


def parent_of(base: str) -> Parent:
    """A base after a few steps, so that no weight is what it was drawn as and batches have been seen."""
    torch.manual_seed(0)
    networks = Path(__file__).resolve().parents[1] / "recipes" / "networks.py"
    model = create_model(f"{networks}:{base}", num_classes=10, in_channels=3, image_size=(16, 16))
    for _ in range(3):
        step(model)
    model.eval()
    return Parent(model, IMAGES, architecture_of(model, IMAGES))


def step(model: nn.Module) -> float:
    """Train one step; the loss before it."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9)
    loss = F.cross_entropy(model(IMAGES), LABELS)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def tried(parent: Parent, base: str, seed: int) -> dict[str, Any]:
    """Draw a list, grow a copy of the base by it and train a step; what came of it."""
    began, record = time.process_time(), {"base": base, "seed": seed}
    try:
        commands = draw_commands(parent, np.random.default_rng(seed))
        record["commands"] = list(map(str, commands))
        model = copy.deepcopy(parent.model)
        grown = grow(model, commands, example=IMAGES, seed=seed)
        error, loss = max(each.certificate.max_error for each in grown), step(model)
        fine = error <= EXACT and np.isfinite(loss) and all(each.isfinite().all() for each in model.parameters())
        outcome = {"outcome": "trained" if fine else "failed", "error": error, "loss": loss}
    except (Infeasible, UserError) as error:
        outcome = {"outcome": "refused", "reason": str(error)}
    except Exception:
        outcome = {"outcome": "failed", "reason": traceback.format_exc()}
    return {**record, **outcome, "seconds": round(time.process_time() - began, 2)}


def table(records: list[dict[str, Any]]) -> str:
    """By base: how many lists, what came of them, the worst error, and the reasons of refusals."""
    lines = [f"{'base':12s} {'lists':>6s} {'trained':>8s} {'refused':>8s} {'failed':>7s} {'worst error':>12s}"]
    for base in BASES:
        mine = [record for record in records if record["base"] == base]
        by = collections.Counter(record["outcome"] for record in mine)
        worst = max((record["error"] for record in mine if record["outcome"] == "trained"), default=0.0)
        lines.append(f"{base:12s} {len(mine):6d} {by['trained']:8d} {by['refused']:8d} {by['failed']:7d} {worst:12.1e}")
    failed = [record for record in records if record["outcome"] == "failed"]
    reasons = collections.Counter(record["reason"] for record in records if record["outcome"] == "refused")
    lines += ["", *(f"{count:5d} × {reason}" for reason, count in reasons.most_common(10))]
    return "\n".join([*lines, *(f"\nFAILED {json.dumps(each, indent=1)}" for each in failed)]).rstrip()


def page(records: list[dict[str, Any]]) -> str:
    """What came of it, as a page of the ledger."""
    by = collections.Counter(record["outcome"] for record in records)
    return f"""# Random lists of commands

Lists of 3 to 7 commands as the seed drew them (60 % deeper, 40 % wider by a factor of 1.2 to 2.4), on three networks of
recipes/networks.py with images of 16 pixels:

`python docs/search_lists.py --lists {len(records)} --json docs/ledger/raw/search-lists.json`

**{len(records)} lists: {by["trained"]} grown, proved and trained a step, {by["refused"]} refused before, {by["failed"]} failed.**
The error is the greatest of a list's certificates, in float64 over the spread of the output; above 1e-9 a list counts as
failed, as it does with a loss or a weight that is not finite.

```text
{table(records)}
```

Raw: [search-lists.json](raw/search-lists.json), every list with its outcome.
"""  # noqa: E501


def main() -> int:
    """Go on until there are so many lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=30)
    parser.add_argument("--json", type=Path, help="read where it exists, and written on the way")
    parser.add_argument("--page", type=Path, help="the page of the ledger, written at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        records = json.loads(options.json.read_text(encoding="utf-8"))
    parents = {base: parent_of(base) for base in BASES}
    for number in range(len(records), options.lists):
        base = BASES[number % len(BASES)]
        records.append(tried(parents[base], base, number))
        print(f"{len(records):5d} {base:12s} {records[-1]['outcome']} in {records[-1]['seconds']} s", flush=True)
        if options.json and (len(records) % SAVE_EVERY == 0 or len(records) == options.lists):
            write_atomic(options.json, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    print(table(records))
    if options.page:
        write_atomic(options.page, page(records))
    return int(any(record["outcome"] == "failed" for record in records))


if __name__ == "__main__":
    raise SystemExit(main())
