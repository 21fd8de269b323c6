"""`postgrad edges`: the important edges of a network, as a picture, as masks and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postgrad.cli.console import prepared, print_json, table
from postgrad.cli.options import (
    DataOptions,
    Folder,
    MachineOptions,
    ModelOptions,
    Name,
    PreprocessOptions,
    Text,
    preprocess_flags,
    required,
)
from postgrad.errors import UserError, unknown_name
from postgrad.files import fresh_directory, write_atomic

SCOPES = ("layer", "global")
LABELS = {
    "true": "their true labels",
    "predicted": "the network's own answers",
    "random": "random labels",
}
LISTED = 10_000


@dataclass(frozen=True)
class RankingOptions:
    """How edges are ranked, and where the result goes."""

    top: Text = None
    """The share of the edges that is kept, such as 10% or 0.1. Default: 10%."""
    scope: Name = None
    """Of each layer, or of all edges together: layer | global. Default: layer."""
    labels: Name = None
    """Under which labels gradients are taken: true | predicted | random. Default: true."""
    out: Folder = None
    """Where it goes; one that holds something is left alone, and DIR-2, ... is used. Default: runs/edges."""


@dataclass(frozen=True)
class Options:
    """Rank the edges (weights, not biases) of a network by the mean size of their gradients over the training images.

    postgrad edges --model runs/demo/base --data digits --top 10% --out runs/edges
    """

    ranking: RankingOptions = field(default_factory=RankingOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def run(options: Options) -> int:
    """Rank, write, summarise."""
    required(options.model.model, "--model")
    required(options.data.data, "--data")
    choice = Choice.of(options.ranking)
    with prepared(options.machine):
        document, summary = _edges(options, choice)
    if options.machine.json:
        print_json(document)
    else:
        print(summary, end="")
    return 0


@dataclass(frozen=True)
class Choice:
    """Which edges are kept, checked."""

    top: float
    scope: str
    labels: str

    @classmethod
    def of(cls, options: RankingOptions) -> Choice:
        scope, labels = options.scope or "layer", options.labels or "true"
        if scope not in SCOPES:
            raise unknown_name("--scope", scope, SCOPES)
        if labels not in LABELS:
            raise unknown_name("--labels", labels, LABELS)
        return cls(parse_share(options.top or "10%"), scope, labels)

    def describe(self, images: int) -> str:
        """In words, with the number of images."""
        of = "each layer" if self.scope == "layer" else "all edges"
        return (
            f"kept: {100 * self.top:g} % of {of}, by mean |gradient| over {images:,} images under {LABELS[self.labels]}"
        )


def parse_share(text: str) -> float:
    """A share of the edges: "10%" and "0.1" are both 0.1."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"--top: expected a share above 0 and at most 100%, such as 10% or 0.1, got '{text}'")
    return share


def _edges(options: Options, choice: Choice) -> tuple[dict[str, Any], str]:
    from postgrad.cli.labelled import class_numbers
    from postgrad.methods.edges import MASKS_FILE, edge_importance, save_masks, top_edges
    from postgrad.models.factories import portable_name
    from postgrad.models.source import source_of
    from postgrad.reports.edge_drawing import by_layer, draw_edges, write_picture

    model = str(options.model.model)
    classifier, dataset = _network_and_data(options)
    network, preprocess = classifier.model, classifier.preprocess
    images = dataset.train.images
    labels: Any = choice.labels
    if labels == "true":
        hint = ", or rank with --labels predicted"
        labels = class_numbers(dataset, classifier.class_names, otherwise=hint)[dataset.train.labels]
    importance = edge_importance(network, images, labels, preprocess=preprocess, memory=options.data.memory or "2GB")
    masks = top_edges(importance, top=choice.top, scope=choice.scope)  # type: ignore[arg-type]
    source = source_of(network)
    name = portable_name(model) if Path(model).expanduser().exists() or source is None else source.spec
    facts: dict[str, Any] = {
        "model": name,
        "data": dataset.name,
        "fingerprint": dataset.fingerprint,
        "images": len(images),
        "labels": choice.labels,
        "top": choice.top,
        "scope": choice.scope,
        "edges": sum(mask.numel() for mask in masks.values()),
        "kept": sum(int(mask.sum()) for mask in masks.values()),
        "layers": [_layer(layer, importance[layer], masks[layer]) for layer in importance],
    }
    title = f"Important edges: {name} on {dataset.name}"
    figure = draw_edges(
        by_layer(importance, masks),
        title=title,
        remark=choice.describe(len(images)),
        input_shape=preprocess(images[:1]).shape[1:],
        class_names=classifier.class_names,
    )
    directory = fresh_directory(options.ranking.out or Path("runs/edges"))
    files = write_picture(figure, directory)
    write_atomic(directory / "edges.csv", as_csv(network, importance, masks))
    summary = summary_text(title, choice.describe(len(images)), facts, directory)
    write_atomic(directory / "summary.txt", summary)
    save_masks(masks, directory, facts)
    names = [*(file.name for file in files), "edges.csv", "summary.txt", MASKS_FILE, "manifest.json"]
    return {"out": directory, **facts, "files": names}, summary


def _network_and_data(options: Options) -> tuple[Any, Any]:
    """A network as a classifier, and a data set with training images."""
    from postgrad.cli.classifiers import EXPORTED, is_saved, named_classifier, saved_classifier
    from postgrad.models.network import NetworkClassifier

    model = str(options.model.model)
    flags = preprocess_flags(options.preprocess)
    device = options.machine.device or "auto"
    if Path(model).suffix in EXPORTED:
        raise UserError(f"{model} is an exported program, which has no gradients; give the network it came from")
    if not is_saved(model):
        dataset = _dataset(options, flags.get("size"))
        return named_classifier(model, options.model, flags, device, dataset), dataset
    classifier = saved_classifier(model, options.model, flags, device)
    if not isinstance(classifier, NetworkClassifier):
        raise UserError(f"{model} is a second-stage classifier, not one network; give the network it stands on")
    return classifier, _dataset(options, classifier.preprocess.size)


def _dataset(options: Options, size: int | None) -> Any:
    from postgrad.cli.labelled import loaded

    dataset = loaded(options.data, size=size)
    if dataset.train is None:
        raise UserError(f"{options.data.data} has no training images to rank edges on; test images must not choose any")
    return dataset


def _layer(name: str, importance: Any, mask: Any) -> dict[str, Any]:
    kept = importance[mask]
    total = float(importance.double().sum())
    return {
        "name": name,
        "shape": list(importance.shape),
        "edges": mask.numel(),
        "kept": int(mask.sum()),
        "share_of_gradient": float(kept.double().sum()) / total if total else 0.0,
        "mean": float(importance.double().mean()),
        "largest": float(importance.max()),
        "without_gradient": int((importance == 0).sum()),
    }


def summary_text(title: str, remark: str, facts: Mapping[str, Any], directory: Path) -> str:
    """What was found in a few lines: a row for each layer, and where the rest lies."""
    headings = ("layer", "edges", "kept", "share of gradient", "mean |gradient|", "largest", "zero gradient")
    rows = [
        (
            layer["name"].removesuffix(".weight"),
            f"{layer['edges']:,}",
            f"{layer['kept']:,}",
            f"{100 * layer['share_of_gradient']:.1f} %",
            f"{layer['mean']:.3g}",
            f"{layer['largest']:.3g}",
            f"{layer['without_gradient']:,}",
        )
        for layer in facts["layers"]
    ]
    where = f"{directory}: edges.svg, edges.png, edges.csv ({min(LISTED, facts['kept']):,} edges), masks.safetensors"
    return f"{title}\n{remark}\n\n{table(headings, rows)}\n\n{where}\n"


def as_csv(network: Any, importance: Mapping[str, Any], masks: Mapping[str, Any]) -> str:
    """The kept edges, the most important first, at most 10,000: layer, from, to, kernel, importance, weight.

    `from` and `to` count channels or units from 0; `kernel` is the place inside a convolution's kernel, such as 2 0.
    """
    import torch

    kept = {name: mask.flatten().nonzero().squeeze(1) for name, mask in masks.items()}
    values = torch.cat([importance[name].flatten()[places] for name, places in kept.items()])
    layers = [name for name, places in kept.items() for _ in range(len(places))]
    places = torch.cat(list(kept.values()))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "from", "to", "kernel", "importance", "weight"])
    for number in values.sort(descending=True, stable=True).indices[:LISTED].tolist():
        layer = layers[number]
        weight = network.get_parameter(layer)
        source, target, kernel = _ends(network, layer, weight.shape, int(places[number]))
        value = float(weight.detach().flatten()[places[number]])
        writer.writerow([layer, source, target, kernel, f"{float(values[number]):.6g}", f"{value:.6g}"])
    return text.getvalue()


def _ends(network: Any, layer: str, shape: Any, place: int) -> tuple[int, int, str]:
    """Where an edge begins and ends, and its place in the kernel; a grouped convolution counts inputs by group."""
    import numpy as np

    target, source, *kernel = (int(axis) for axis in np.unravel_index(place, tuple(shape)))
    groups = getattr(network.get_submodule(layer.rpartition(".")[0]), "groups", 1)
    group = target // (shape[0] // groups)
    return source + group * shape[1], target, " ".join(map(str, kernel))
