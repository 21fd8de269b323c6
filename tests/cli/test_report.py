"""`postgrad report`: one run's page, and two runs compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_study import write_study

from postgrad.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two small studies, a and b."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seeds in (("a", 2), ("b", 3)):
        write_study(folder / name, methods=1, seeds=seeds, n_test=100, side=8, steps=20)
    return folder


@pytest.fixture(autouse=True)
def there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


def test_one_run_gets_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "a"]) == 0
    assert capsys.readouterr().out == "a/report.html\n"
    assert "<!DOCTYPE html>" in Path("a/report.html").read_text(encoding="utf-8")


def test_two_runs_are_compared_and_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    first = Path("comparison.html").read_bytes()
    assert main(["report", "a", "b"]) == 0
    out, err = capsys.readouterr()
    assert out == "comparison-2.html\n"
    assert "comparison.html is there already" in err
    assert Path("comparison.html").read_bytes() == first


def test_out_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", "a", "b", "--out", str(tmp_path / "new" / "page.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reports": [str(tmp_path / "new" / "page.html")]}
    assert (tmp_path / "new" / "page.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "b", "a"], "one run, or two to compare; got 3"),
        (["a", "--out", "x.html"], "--out is for the comparison of two runs"),
        (["a", "a/"], "are the same run"),
        (["a", "nowhere"], "nowhere holds no results.json"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
