"""A small network that has learnt digits, and the digits that it has not seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from postgrad.data.datasets import Dataset, load_dataset
from postgrad.data.preprocessing import Preprocessing
from postgrad.models.network import NetworkClassifier


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def classifier(digits: Dataset) -> NetworkClassifier:
    assert digits.train is not None
    preprocess = Preprocessing(per_image_standardise=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    inputs = preprocess(digits.train.images)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), digits.train.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return NetworkClassifier(model.eval(), preprocess=preprocess, class_names=digits.class_names, device="cpu")
