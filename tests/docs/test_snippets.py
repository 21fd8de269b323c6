"""Every Python block of the documentation runs, and every command line in it is one that postgrad takes."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from postgrad.cli import VERBS
from postgrad.cli.improve import Options, configured
from postgrad.cli.parsing import parse
from postgrad.errors import UserError
from postgrad.methods.registry import check_options, parse_method
from postgrad.search import mutations
from postgrad.studies.config import ImproveConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNS = {"run-directory.md"}
"""Pages whose blocks read the run that `make demo` leaves."""
LONG = {"growth.md"}
"""Pages whose blocks take long; the README shows some of the same."""


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks of these languages, in order."""
    return [content for language, content in FENCE.findall(text) if language in languages]


def commands(text: str) -> list[str]:
    """The command lines of a page: those of its console and bash blocks, whole and without prompt and comment."""
    lines: list[str] = []
    for block in blocks(text, "console", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").partition(" # ")[0].strip()
            if command:
                lines.append(command)
    return lines


def check_command(command: str) -> None:
    """Parse a line as the shell and postgrad would; what is neither postgrad nor make is left alone."""
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        for word in words[1:]:
            assert "=" in word or word in targets, f"{command}: the Makefile has no {word}"
        return
    if words[0] != "postgrad" or len(words) == 1:
        return
    if words[1].startswith("-"):
        assert words[1] in ("--help", "--version")
        return
    options = parse(importlib.import_module(VERBS[words[1]][0]).Options, words[2:], verb=words[1])
    if isinstance(options, Options):
        for method in options.run.method:
            check_options(*parse_method(method))
        recipe = options.run.recipe
        if options.run.resume is None and (recipe is None or (ROOT / recipe).exists()):
            configured(options)


def named(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


WITH_PYTHON = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"), "python")]
WITH_COMMANDS = [page for page in PAGES if commands(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="session")
def demo_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results.json where `make demo` would leave one."""
    from postgrad.reports.schema import Arm, Cost, Data, Metric, Results, write_results

    metric = Metric(mean=0.9, ci95=(0.88, 0.92), ci_over="images", n_seeds=1, values=[0.9])
    arm = Arm(name="gradnet", kind="method", metrics={"accuracy": metric}, cost=Cost())
    data = Data(name="digits", n_train=1294, n_validation=144, n_test=359, fingerprint="0" * 16)
    results = Results(
        command="improve", data=data, seeds=[0], arms=[arm], verdicts=[], recommended="gradnet", notes=[], warnings=[]
    )
    path = tmp_path_factory.mktemp("demo") / "results.json"
    write_results(results, path)
    return path


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in LONG else []) for page in WITH_PYTHON],
    ids=named(WITH_PYTHON),
)
def test_python_blocks_of_a_page_run_one_after_the_other(
    page: Path, prepared: dict, demo_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mutations, "MUTATIONS", dict(mutations.MUTATIONS))  # a page registers one
    if page.name in RUNS:
        (tmp_path / "runs" / "demo").mkdir(parents=True)
        shutil.copy(demo_results, tmp_path / "runs" / "demo")
    namespace = dict(prepared)
    for number, code in enumerate(blocks(page.read_text(encoding="utf-8"), "python"), start=1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named(WITH_COMMANDS))
def test_every_command_line_is_one_that_postgrad_takes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(page.read_text(encoding="utf-8")):
        check_command(command)


def test_recipes_shown_in_the_documentation_are_settings_of_a_run() -> None:
    shown = blocks((ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8"), "yaml")
    assert shown
    for recipe in shown:
        ImproveConfig(**yaml.safe_load(recipe))


def test_the_readme_shows_every_part_of_the_interface() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    python = "\n".join(blocks(text, "python"))
    for name in ("GradNet", "GradientFeatures", "per_sample_gradients", "load", "save"):
        assert name in python
    lines = "\n".join(commands(text))
    for verb in ("improve", "score", "predict"):
        assert f"postgrad {verb}" in lines


def test_links_of_pages_outside_the_site_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        targets = {target.partition("#")[0] for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text)}
        missing = [target for target in sorted(targets) if not (ROOT / target).exists()]
        assert not missing, f"{page.name} links to {', '.join(missing)}"


@pytest.mark.parametrize(
    "command",
    [
        "postgrad improve --bse-accuracy 0.7",
        "postgrad improve --method gradnet:epoch=3",
        "postgrad improve --base-accuracy 72",
        "postgrad score --model runs/demo/gradnet --data",
    ],
)
def test_a_wrong_command_line_would_be_noticed(command: str) -> None:
    with pytest.raises(UserError):
        check_command(command)


def test_a_wrong_target_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        check_command("make demonstration")


def test_blocks_and_commands_are_found() -> None:
    page = "```python\na = 1\n```\n\n```console\n$ postgrad list   # all\n$ postgrad improve \\\n    --seed 1\n```\n"
    assert blocks(page, "python") == ["a = 1\n"]
    assert [shlex.split(command) for command in commands(page)] == [
        ["postgrad", "list"],
        ["postgrad", "improve", "--seed", "1"],
    ]
