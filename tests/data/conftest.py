"""Small files in the formats in which image data comes, and the place of the real ones."""

from __future__ import annotations

import gzip
import http.server
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_FOLDERS = [
    Path(folder)
    for folder in (os.environ.get("POSTGRAD_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data")
    if folder
]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the published data sets, as they were downloaded."""
    found = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if found is None:
        pytest.skip(f"no published data: neither of {[str(folder) for folder in _FOLDERS]} exists; set POSTGRAD_DATA")
    return found


@pytest.fixture(scope="session")
def write_idx() -> Callable[[Path, np.ndarray], None]:
    """Write unsigned bytes as IDX, gzipped if the name says so."""

    def write(path: Path, array: np.ndarray) -> None:
        header = bytes([0, 0, 8, array.ndim]) + b"".join(int(side).to_bytes(4, "big") for side in array.shape)
        content = header + array.astype(np.uint8).tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return write


@pytest.fixture(scope="session")
def write_cifar() -> Callable[..., None]:
    """Write a batch as CIFAR has them: rows of 3,072 bytes, red then green then blue."""

    def write(path: Path, images: np.ndarray, labels: Sequence[int], key: str = "labels") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = images.reshape(len(images), 3072)
        batch = {"data": rows, key: [int(label) for label in labels], "batch_label": "one"}
        path.write_bytes(pickle.dumps(batch, protocol=4))

    return write


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def picture_folder(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Path]:
    """Make a folder of random PNG pictures: `picture_folder({"cat": 5, "dog": 5}, shape=(10, 12, 3))`."""

    def make(classes: dict[str, int], shape: tuple[int, ...] = (10, 12, 3), root: str = "pictures") -> Path:
        for name, count in classes.items():
            (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / root / name / f"{number:03}.png")
        return tmp_path / root

    return make


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """The address of a file below `tmp_path`, on a web server of this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield lambda file: f"http://127.0.0.1:{server.server_port}/{file.relative_to(tmp_path).as_posix()}"
        server.shutdown()
        thread.join()
