"""The notebook runs from beginning to end in an empty folder, and with a run that is already there."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebooks" / "gradnet.ipynb"


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook after its cells have run with `folder` as working directory."""
    from nbclient import NotebookClient

    # The kernel is this very Python, whatever kernels the user may have installed.
    kernels = folder / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": start, "display_name": "here", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has its own, which puts figures into the notebook
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute()


def printed(notebook: Any) -> str:
    """Everything that its cells wrote."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_it_is_valid_and_holds_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_it_runs_where_there_is_no_run_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(tmp_path, monkeypatch)
    text = printed(notebook)
    assert text.count("gradnet      accuracy") == 2
    assert "fine-tuned   accuracy" in text
    assert "control-finetune" in text
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    assert (tmp_path / "runs" / "my-gradnet" / "manifest.json").is_file()
