"""The list of data sets costs nothing to read."""

from __future__ import annotations

import subprocess
import sys

from postgrad.data.names import DATASETS


def test_importable_without_torch_or_numpy() -> None:
    code = "import sys, postgrad.data.names; print(sorted({'torch', 'numpy', 'PIL', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_each_is_one_line() -> None:
    assert all("\n" not in line and len(line) < 110 for line in DATASETS.values())
