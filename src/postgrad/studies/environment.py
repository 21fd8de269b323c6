"""What a run ran on: versions, threads and hardware, without any path or user name."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import psutil
import torch

PACKAGES = (
    "postgrad",
    "torch",
    "torchvision",
    "lightning",
    "numpy",
    "scipy",
    "scikit-learn",
    "numba",
    "safetensors",
    "pydantic",
)


def environment() -> dict[str, Any]:
    """Versions, threads and hardware as plain values for environment.json.

    >>> environment()["versions"]["torch"]
    '2.13.0'
    """
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
