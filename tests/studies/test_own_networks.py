"""The main job on a network and on pictures of the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import postgrad
from postgrad._loading import load_classifier
from postgrad.cli import main
from postgrad.data.datasets import load_dataset
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.reports import schema
from postgrad.studies.improve import improve

ARMS = ["base", "gradnet", "control-finetune", "control-features", "control-more-data", "control-same-price"]
UNKNOWN = "nobody knows which images the given weights have seen"

MY_NET = """
import torch
from torch import nn


def build(num_classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, num_classes))
    net.preprocess = {"mean": (0.3,), "std": (0.4,)}
    return net
"""


@pytest.fixture
def run_improve(few_steps: dict[str, int], tmp_path: Path) -> Callable[..., Path]:
    """`postgrad improve` with few steps and these words, in this directory; returns its run directory."""

    def run(*words: str) -> Path:
        recipe = tmp_path / "few-steps.yaml"
        recipe.write_text(yaml.safe_dump({"steps": few_steps, "threads": 1}))
        out = tmp_path / "run"
        assert main(["improve", "--recipe", str(recipe), "--out", str(out), "--quiet", *words]) == 0
        return out

    return run


def check_arms(run: Path, test: torch.Tensor, predictions: Callable[[Path], dict[str, np.ndarray]]) -> None:
    """Every arm of a run is loadable and predicts what was stored."""
    stored = predictions(run)
    assert sorted(stored) == sorted(ARMS)
    for arm in ARMS:
        np.testing.assert_array_equal(load_classifier(run / arm).predict_proba(test), stored[arm], err_msg=arm)


def test_weights_by_name_are_the_base(tiny, finished: Path, tmp_path: Path, predictions) -> None:
    directory = improve(tiny(tmp_path / "run", weights=finished / "base" / "model.safetensors"))
    results = schema.read_results(directory / "results.json")
    assert [warning for warning in results.warnings if UNKNOWN in warning] == results.warnings != []
    assert not any("the base is trained on" in note for note in results.notes)
    np.testing.assert_array_equal(predictions(directory)["base"], predictions(finished)["base"])
    base = results.arm("base")
    assert (base.cost.train_cpu_seconds, base.description) == (0, "the network as given")
    # The half that the method is fitted on is the same as with a base of one's own, and so is the method.
    np.testing.assert_array_equal(predictions(directory)["gradnet"], predictions(finished)["gradnet"])
    # "More data" goes on from the weights that were given, for the method's time alone.
    more = results.arm("control-more-data").cost
    assert more.total_cpu_seconds == more.train_cpu_seconds


@pytest.mark.slow
def test_arm_of_an_earlier_run_is_the_base(tiny, finished: Path, tmp_path: Path, predictions) -> None:
    directory = improve(tiny(tmp_path / "run", model=str(finished / "control-finetune")))
    assert any(UNKNOWN in warning for warning in schema.read_results(directory / "results.json").warnings)
    np.testing.assert_array_equal(predictions(directory)["base"], predictions(finished)["control-finetune"])


def test_second_stage_classifier_is_no_base(tiny, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is itself a second-stage classifier; give the network it stands on"):
        improve(tiny(tmp_path / "run", model=str(finished / "gradnet")))
    assert not (tmp_path / "run").exists()


def test_function_in_a_file_makes_the_network(run_improve, tmp_path: Path, predictions, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_net.py").write_text(MY_NET)
    torch.manual_seed(0)
    network = postgrad.create_model("my_net.py:build", num_classes=10)
    save_file(network.state_dict(), "my.safetensors")
    run = run_improve(
        *["--model", "my_net.py:build", "--weights", "my.safetensors", "--data", "digits", "--limit", "100"],
        *["--method", "gradnet:epochs=1,hidden=3+2"],
    )
    test = load_dataset("digits", limit=100).test
    assert test is not None
    with torch.no_grad():
        expected = network(Preprocessing(mean=(0.3,), std=(0.4,))(test.images)).softmax(1).numpy()
    np.testing.assert_allclose(predictions(run)["base"], expected, atol=1e-6)
    results = schema.read_results(run / "results.json")
    assert any("the word of my_net.py:build itself" in note for note in results.notes)
    assert any(UNKNOWN in warning for warning in results.warnings)
    check_arms(run, test.images, predictions)

    # The code is never stored: it must be there, unchanged, or be given.
    Path("my_net.py").write_text(MY_NET + "\n")
    with pytest.raises(UserError, match=r"my_net\.py has changed since this network was saved"):
        postgrad.load(run / "gradnet")
    Path("my_net.py").unlink()
    with pytest.raises(UserError, match=r"the file my_net\.py that makes this network is not here"):
        postgrad.load(run / "control-features")
    namespace: dict[str, Any] = {}
    exec(MY_NET, namespace)
    loaded = postgrad.load(run / "gradnet", factory=namespace["build"])
    np.testing.assert_array_equal(loaded.predict_proba(test.images), predictions(run)["gradnet"])


@pytest.mark.slow
def test_chainer_snapshot_counts_the_first_half_as_seen(run_improve, tmp_path: Path, predictions) -> None:
    """A snapshot in the released form, for seed-cnn on images of 8×8."""
    rng = np.random.default_rng(0)
    shapes = {"c0/W": (64, 1, 5, 5), "c1/W": (64, 64, 5, 5), "l1/W": (10, 256), "c0/b": 64, "c1/b": 64, "l1/b": 10}
    weights = {key: rng.normal(0, 0.05, shape).astype(np.float32) for key, shape in shapes.items()}
    entries: dict[str, Any] = {f"updater/model:main/predictor/{key}": value for key, value in weights.items()}
    entries |= {f"updater/optimizer:main/predictor/{key}/v": 0 * value for key, value in weights.items()}
    snapshot = tmp_path / "snapshot_iter_100"
    with open(snapshot, "wb") as file:
        np.savez_compressed(file, **entries, **{"updater/iteration": np.array(100)})
    run = run_improve(
        *["--model", "seed-cnn", "--weights", str(snapshot), "--data", "digits", "--limit", "60"],
        *["--method", "gradnet:epochs=1,hidden=1+1+2"],
    )
    results = schema.read_results(run / "results.json")
    assert any(
        "Chainer snapshot of seed-cnn: the first half counts as what the base has seen" in n for n in results.notes
    )
    assert results.warnings == []
    network = postgrad.load(run / "base")
    np.testing.assert_array_equal(network.l1.weight.detach().numpy(), weights["l1/W"])
    test = load_dataset("digits", limit=60).test
    assert test is not None
    check_arms(run, test.images, predictions)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy pictures, each with a colour of its own: 14 to learn from and 4 to test."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 14), ("test", 4)):
        for channel, name in enumerate(("blue sky", "grass", "rust")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (24, 24, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    (folder / "train" / "rust" / ".DS_Store").write_text("x")
    (folder / "train" / "grass" / "cut off.png").write_bytes(b"\x89PNG\r\n")
    return folder


def test_folder_of_pictures_with_its_preprocessing(
    run_improve, pictures: Path, predictions, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = run_improve(
        *["--data", f"folder:{pictures}", "--model", "mlp", "--size", "8", "--epochs", "2"],
        *["--mean", ".4,.5,.6", "--std", ".2,.25,.3", "--method", "gradnet:epochs=1,hidden=2+2+2"],
    )
    results = schema.read_results(run / "results.json")
    assert results.data.class_names == ["blue sky", "grass", "rust"]
    assert results.data.shape == [3, 8, 8]
    assert results.data.preprocessing is not None
    assert "mean (0.4, 0.5, 0.6) and deviation (0.2, 0.25, 0.3)" in results.data.preprocessing
    assert any(".DS_Store" in note and "cut off.png" in note for note in results.notes)
    assert any("--size, --mean, --std" in note for note in results.notes)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["size"], settings["mean"], settings["std"]) == (8, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    for arm in ("base", "gradnet/base", "control-same-price/member-0"):
        kept = json.loads((run / arm / "manifest.json").read_text())["preprocess"]
        assert (kept["size"], kept["mean"], kept["std"]) == (8, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    test = load_dataset(f"folder:{pictures}", size=8).test
    assert test is not None
    check_arms(run, test.images, predictions)

    # What was learned is of use on new pictures of another size, and `score` finds what `improve` found.
    capsys.readouterr()
    assert main(["score", "--model", str(run / "gradnet"), "--data", f"folder:{pictures}", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["metrics"]["accuracy"]["mean"]
    assert scored == pytest.approx(results.arm("gradnet").metrics["accuracy"].mean)
    Image.new("RGB", (40, 30), (220, 10, 10)).save(tmp_path / "new.png")
    out = tmp_path / "predictions.csv"
    words = ["predict", "--model", str(run / "control-same-price"), "--data", f"folder:{tmp_path}", "--out", str(out)]
    assert main(words) == 0
    assert "new.png" in out.read_text()
