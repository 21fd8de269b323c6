"""What is installed, whether it fits together, and what this machine can do."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, Literal

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TORCH_TO_TORCHVISION = 15  # torchvision 0.(n + 15) belongs to torch 2.n


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is well, what was found, and what to do about it."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def examine() -> dict[str, Any]:
    """Everything `postgrad doctor` tells: versions of dependencies by extra, facts of the machine, checks."""
    return {"versions": versions(), "machine": machine(), "checks": [vars(check) for check in checks()]}


def versions() -> dict[str, dict[str, str | None]]:
    """The installed version of each dependency, grouped by extra (`core` for what is always needed); None if absent."""
    groups: dict[str, dict[str, str | None]] = {"core": {"python": platform.python_version()}}
    for requirement in requires("postgrad") or ():
        found = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", requirement)
        if found:
            groups.setdefault(extra[1] if extra else "core", {})[found[0]] = installed(found[0])
    return groups


def installed(package: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, memory and accelerators, and what they can compute."""
    import psutil
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "processor_instructions": torch.backends.cpu.get_cpu_capability(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "mps": torch.backends.mps.is_available(),
        "torch_cuda": torch.version.cuda,
    }


def checks() -> list[Check]:
    """What fits together and what does not."""
    return [_pair(), _torchvision(), _gpu_driver(), _bf16(), _browser(), _data_folder()]


def _bf16_slowdown() -> float:
    """How many times longer a convolution takes in bfloat16 than in float32 on this processor, measured."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        images = torch.ones(32, 64, 16, 16, dtype=dtype)
        filters = torch.ones(64, 64, 3, 3, dtype=dtype)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            torch.nn.functional.conv2d(images, filters, padding=1)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "bf16": properties.major >= 8,
    }


def _pair() -> Check:
    ours, beside = installed("torch"), installed("torchvision")
    found = f"torch {ours}, torchvision {beside}"
    if ours is None or beside is None:
        return Check("torch and torchvision", "problem", found, "pip install torch torchvision")
    wanted = f"0.{int(ours.split('.')[1]) + _TORCH_TO_TORCHVISION}"
    if ours.startswith("2.") and not beside.startswith(f"{wanted}."):
        return Check(
            "torch and torchvision", "problem", found, f"they are no pair: pip install 'torchvision=={wanted}.*'"
        )
    return Check("torch and torchvision", "ok", found)


def _torchvision() -> Check:
    """Import torchvision in a process of its own, as a user's script would, without any help."""
    command = [sys.executable, "-c", "import torchvision"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode == 0:
        return Check("import torchvision", "ok", "works by itself")
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    if "torchvision::" not in last:
        return Check("import torchvision", "problem", last, "install torchvision again")
    return Check(
        "import torchvision",
        "note",
        f"fails by itself ({last}): this torchvision was built for CUDA and this torch for the processor. postgrad "
        "declares what is missing before it imports torchvision, so its own commands work",
        "in your own script let postgrad make a model before you import torchvision, timm or lightning, or install "
        "the matching build: pip install --force-reinstall --no-deps torchvision "
        "--index-url https://download.pytorch.org/whl/cpu",
    )


def _gpu_driver() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check(
            "GPU", "ok", f"{torch.cuda.device_count()} CUDA device(s), torch built for CUDA {torch.version.cuda}"
        )
    if torch.backends.mps.is_available():
        return Check("GPU", "ok", "Apple's, through mps")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        return Check("GPU", "problem", "an NVIDIA driver, but a torch without CUDA", "install torch's CUDA build")
    return Check("GPU", "note", "none that torch can use; everything runs on the processor")


def _bf16() -> Check:
    name, ratio = "bfloat16 on the processor", _bf16_slowdown()
    if ratio < 1:
        return Check(name, "ok", f"a convolution takes {ratio:.2f} of float32's time")
    return Check(name, "note", f"a convolution takes {ratio:.1f} times as long as in float32; leave it off here")


def _browser() -> Check:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found:
        return Check("browser for the report's tests", "ok", os.path.basename(found))
    advice = "apt-get install chromium (only the project's own slow tests need it)"
    return Check("browser for the report's tests", "note", "none", advice)


def _data_folder() -> Check:
    folder = os.environ.get("POSTGRAD_DATA")
    if not folder:
        return Check("data folder", "note", "POSTGRAD_DATA is not set: --data-dir, else a cache folder, is used")
    if not os.path.isdir(os.path.expanduser(folder)):
        return Check("data folder", "problem", f"POSTGRAD_DATA={folder} is not a folder", "correct or unset it")
    return Check("data folder", "ok", folder)
