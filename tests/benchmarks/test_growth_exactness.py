"""The comparison of ways to grow: what it measures, what it says of those that fail, and its page."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from growth_benchmark import networks, ways
from torch import Tensor, nn

from postgrad.errors import UserError

HAS_GROMO = importlib.util.find_spec("gromo") is not None
PEER = """
def wider(m1, m2, new_width, bnorm=None, **options):
    if options:
        raise ValueError("no options")
    m2.weight.data.mul_(1.5)

def deeper(m, nonlin, bnorm_flag=False, **options):
    return m
"""


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("growth_exactness")


def case(start: str) -> networks.Case:
    return next(each for each in networks.CASES if each.what.startswith(start))


def test_a_stand_in_for_a_peer_is_measured_and_its_failures_are_told(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net2net.py").write_text(PEER)
    monkeypatch.setattr(benchmark, "CASES", (case("widen linear"), case("deepen linear")))
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    files = {name: str(tmp_path / f"figures.{name}") for name in ("json", "page")}
    arguments = ["--seeds", "1", "--net2net", str(tmp_path / "net2net.py"), "--net2net-commit", "abc"]
    assert benchmark.main([*arguments, *(f"--{name}={file}" for name, file in files.items())]) == 0
    figures = json.loads(Path(files["json"]).read_text())
    assert figures["peers"]["Net2Net"]["commit"] == "abc"
    ours, theirs, failing, *deepened = figures["rows"]
    assert ours["float64 eval"]["median"] < 1e-14
    assert theirs["float64 eval"]["median"] > 0.1  # the control: half as much again is seen
    assert failing["fails"] == "ValueError: no options"
    assert [row["float64 train"]["median"] for row in deepened] == [0, 0, 0, 0]
    page = Path(files["page"]).read_text()
    assert "## Widen linear–ReLU–linear" in page
    assert "commit abc" in page
    assert capsys.readouterr().out.count("\n") == 2 + len(figures["rows"])
    assert benchmark.main(["--read", files["json"], "--page", str(tmp_path / "again.md")]) == 0
    assert (tmp_path / "again.md").read_text() == page


def test_the_error_is_measured_by_the_spread(benchmark: ModuleType) -> None:
    before = torch.tensor([-1.0, 1.0])
    assert benchmark.error(before, torch.tensor([-1.0, 1.5])) == 0.5
    assert benchmark.error(before, torch.tensor([-1.0, math.nan])) == math.inf
    assert benchmark.error(before, torch.zeros(3)) == math.inf


@pytest.mark.parametrize("start", [each.what for each in networks.CASES if "resnet18" not in each.what])
def test_networks_are_drawn_the_same_each_time_and_normalised_by_what_they_see(start: str) -> None:
    first, x = networks.prepared(case(start))
    second, y = networks.prepared(case(start))
    assert torch.equal(first(x), second(y))
    torch.testing.assert_close(first.train()(x), second.eval()(x), rtol=0, atol=0.5)


def test_what_is_no_net2net_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Python file"):
        ways.ways(tmp_path / "missing.py", gromo=False)
    (tmp_path / "other.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="no function 'wider'"):
        ways.ways(tmp_path / "other.py", gromo=False)


@pytest.mark.skipif(not HAS_GROMO, reason="gromo is not installed: pip install 'postgrad[bench]'")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["widen conv–BN–ReLU–conv", "widen conv–flatten", "widen inside", "put in"])
def test_gromo_is_exact_where_its_new_columns_are_zero(benchmark: ModuleType, start: str) -> None:
    found: dict[str, Any] = {way.setting: way for way in ways.ways(None, gromo=True) if way.implementation == "gromo"}
    assert benchmark.measure(case(start), found["new columns zero"], 0)["float64 eval"] < 1e-12
    assert benchmark.measure(case(start), found["as it comes"], 0)["float64 eval"] > 1e-2


def test_a_way_of_ours_that_fails_ends_the_run(benchmark: ModuleType) -> None:
    def fails(case: networks.Case, network: nn.Module, x: Tensor, seed: int) -> nn.Module:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        benchmark.row(case("widen linear"), ways.Way("postgrad", "as it comes", fails), 1)
    row = benchmark.row(case("widen linear"), ways.Way("gromo", "as it comes", fails), 1)
    assert row["fails"] == "RuntimeError: broken"
    assert torch.get_default_dtype() == torch.float32
