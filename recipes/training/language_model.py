"""A fixed last layer where it is known to fail: a small language model, its words not equally far from each other.

    python recipes/training/language_model.py --out docs/ledger/raw/fixed-classifier-language.json

Predicts each word of Python's own documentation (which comes with Python) from the four before it, by an embedding, one
hidden layer, and a last layer that is learned, or fixed (Hadamard). Learning rates are chosen on validation words, on
the first seed. About five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad import apply_fixed_classifier
from postgrad.files import write_atomic
from postgrad.progress import progress

WORDS, CONTEXT, WIDTH, HIDDEN, BATCH, EPOCHS = 2000, 4, 64, 256, 256, 4
RATES = (0.0003, 0.001, 0.003, 0.01)
SEEDS = 5


def corpus() -> tuple[Tensor, int]:
    """The words of Python's documentation as numbers; those beyond the `WORDS` most frequent are all one."""
    from pydoc_data.topics import topics

    words = re.findall(r"[a-z]+|[^a-z\s]", " ".join(topics[key] for key in sorted(topics)).lower())
    number = {word: i for i, (word, _) in enumerate(Counter(words).most_common(WORDS - 1), start=1)}
    return torch.tensor([number.get(word, 0) for word in words]), len(words)


def windows(words: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts (n, CONTEXT) and the word that follows each (n,)."""
    every = words.unfold(0, CONTEXT + 1, 1)
    return every[:, :CONTEXT], every[:, CONTEXT]


def network(seed: int, *, fixed: bool) -> nn.Module:
    torch.manual_seed(seed)
    embedding = nn.Embedding(WORDS, WIDTH)
    hidden = nn.Linear(CONTEXT * WIDTH, HIDDEN)
    model = nn.Sequential(embedding, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(HIDDEN, WORDS))
    if fixed:
        apply_fixed_classifier(model, seed=seed)
    return model


def trained(part: dict[str, tuple[Tensor, Tensor]], seed: int, lr: float, *, fixed: bool) -> dict[str, float]:
    """Train with Adam and a cosine schedule; NLL and accuracy on the validation and the test words."""
    model, (x, y) = network(seed, fixed=fixed), part["train"]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for indices in torch.randperm(len(x), generator=generator)[: len(x) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[indices]), y[indices]).backward()
            optimizer.step()
            schedule.step()
    found = {}
    with torch.no_grad():
        for name in ("validation", "test"):
            logits, labels = torch.cat([model(some) for some in part[name][0].split(2000)]), part[name][1]
            found[f"{name}_nll"] = float(F.cross_entropy(logits, labels))
            found[f"{name}_accuracy"] = float((logits.argmax(1) == labels).double().mean())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    words, count = corpus()
    tenth = len(words) // 10
    cuts = {"train": words[: 8 * tenth], "validation": words[8 * tenth : 9 * tenth], "test": words[9 * tenth :]}
    part = {name: windows(some) for name, some in cuts.items()}
    runs: dict[str, list[dict[str, float]]] = {}
    rates: dict[str, float] = {}
    with progress("language models", 2 * (len(RATES) + SEEDS - 1), unit="trainings") as advance:
        for name, fixed in (("learned", False), ("fixed", True)):
            tried = {}
            for lr in RATES:
                tried[lr] = trained(part, 0, lr, fixed=fixed)
                advance()
            rates[name] = min(tried, key=lambda lr: tried[lr]["validation_nll"])
            runs[name] = [tried[rates[name]]]
            for seed in range(1, SEEDS):
                runs[name].append(trained(part, seed, rates[name], fixed=fixed))
                advance()
    print(f"{count:,} words, {WORDS} of them known; {len(part['train'][1]):,} to train on; {SEEDS} seeds")
    print("| last layer | learning rate | NLL | accuracy |\n|---|---:|---:|---:|")
    for name, of_seeds in runs.items():
        nll, accuracy = (statistics.fmean(run[f"test_{key}"] for run in of_seeds) for key in ("nll", "accuracy"))
        print(f"| {name} | {rates[name]:g} | {nll:.4f} | {accuracy:.4f} |")
    p = stats.ttest_rel(*([run["test_nll"] for run in of_seeds] for of_seeds in runs.values())).pvalue
    print(f"paired t test of the NLL over the seeds: p = {p:.2g}")
    if options.out is not None:
        content = {"words": count, "rates": rates, "runs": runs, "p_nll": float(p), "torch": torch.__version__}
        write_atomic(options.out, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
