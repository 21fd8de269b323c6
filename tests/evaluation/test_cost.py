"""The cost of a prediction against counts by hand and calls of known length."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from postgrad.data.preprocessing import Preprocessing
from postgrad.evaluation.cost import file_bytes, inference_cost, measure_cost, multiply_adds
from postgrad.memory import peak_memory
from postgrad.models.network import NetworkClassifier


class Sleeper:
    inference_passes = 11
    num_parameters = 1234

    def __init__(self) -> None:
        self.calls = 0

    def predict_proba(self, images: Any) -> None:
        self.calls += 1
        time.sleep(0.2 if self.calls in (1, 3) else 0.02)


def test_cost_is_the_median_of_warm_calls() -> None:
    cost = measure_cost(Sleeper(), range(10))
    assert 2.0 <= cost["inference_ms_per_image"] < 10.0
    assert (cost["inference_passes"], cost["parameters"]) == (11, 1234)


def network() -> NetworkClassifier:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3))
    return NetworkClassifier(layers, preprocess=Preprocessing(), class_names="abc", device="cpu")


IMAGES = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)


def test_multiply_adds_by_hand() -> None:
    assert multiply_adds(network(), IMAGES) == 8 * 8 * 4 * 9 + 256 * 3


def test_what_torch_does_not_see_is_not_counted() -> None:
    assert multiply_adds(Sleeper(), range(2)) is None


def test_every_field_of_the_cost_of_a_prediction() -> None:
    classifier = network()
    cost = inference_cost(classifier, IMAGES)
    assert cost["parameters"] == classifier.num_parameters == 4 * 9 + 4 + 256 * 3 + 3
    assert cost["inference_ms_per_image"] == pytest.approx(cost["latency_ms_256"] / 256)
    assert 0 < cost["latency_ms_1"] < cost["latency_ms_256"]
    assert cost["inference_memory_mb"] >= 0


def test_file_bytes_are_those_on_disk(tmp_path: Path) -> None:
    classifier = network()
    classifier.save(tmp_path)
    assert file_bytes(classifier) == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert file_bytes(Sleeper()) is None


def test_peak_memory_sees_what_is_gone_again() -> None:
    with peak_memory(every=0.002) as peak:
        held = np.ones(40_000_000)
        time.sleep(0.05)
        del held
    assert 300 < peak.megabytes < 400
