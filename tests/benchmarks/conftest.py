"""The benchmark's own modules on the path, and a setting so small that everything can be tried on it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gradient_benchmark.growth import WideSeedCNN  # noqa: E402
from gradient_benchmark.setting import CLASSES, HIDDEN, SELECT, Setting, generated_images  # noqa: E402
from gradient_benchmark.works import Bench, Choices  # noqa: E402

from postgrad.methods.gradnet import GradNet  # noqa: E402


@pytest.fixture(autouse=True)
def _quiet_hooks() -> Iterator[None]:
    import warnings

    from gradient_benchmark.peers import quieten

    with warnings.catch_warnings():
        quieten()
        yield


@pytest.fixture(scope="session")
def setting() -> Setting:
    """A seed-cnn of four filters with a GradNet on twelve generated images."""
    images, truth = generated_images(12)
    torch.manual_seed(0)
    model = WideSeedCNN(4, CLASSES)
    gradnet = GradNet(model, hidden=HIDDEN, select=SELECT, steps=1, batch_size=4, device="cpu").fit(images, truth)
    labels = torch.randint(CLASSES, (12,), generator=torch.Generator().manual_seed(1))
    return Setting(gradnet, images, labels, truth, "generated")


@pytest.fixture(scope="session")
def bench(setting: Setting) -> Bench:
    return Bench(setting, Choices(vmap_shares_forward=False, threshold="topk"), training_gradients=1)


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[[str], ModuleType]:
    """A file of benchmarks/ as a module, by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_of_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def script(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("gradients")
