"""Make torchvision import beside a CPU build of torch.

torchvision's plain wheel is compiled against CUDA; beside a CPU torch its C++ operators do not load, and its own import
then fails with "operator torchvision::nms does not exist" (pytorch/vision#9077). Declaring the two schemas first makes
data sets, transforms and models work. torchmetrics (hence Lightning) and timm import torchvision as well, so this runs
before any of them.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def prepare_torchvision() -> Any:
    """Declare torchvision's operators where its compiled part does not load; the library object must stay alive."""
    import torch

    if "torchvision" in sys.modules or hasattr(torch.ops.torchvision, "nms") or _compiled_part_loads():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        library.define(schema)
    return library


def _compiled_part_loads() -> bool:
    """Whether torchvision's C++ extension loads beside this torch, tried without importing torchvision itself."""
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return True
    details = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    extension = importlib.machinery.FileFinder(next(iter(found.submodule_search_locations)), details).find_spec("_C")
    if extension is None or extension.origin is None:
        return True
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return False
    return True
