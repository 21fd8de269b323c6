"""The pages of the site: what is filled in from the code, where links lead, and that no page is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import postgrad
from postgrad.cli import VERBS
from postgrad.methods.registry import METHODS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS)) for page in PAGES])
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    targets = {target.partition("#")[0] for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text_of(page))}
    missing = [target for target in sorted(targets) if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {', '.join(missing)}"


def test_every_page_has_its_place_in_the_navigation() -> None:
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        children = entry.values() if isinstance(entry, dict) else entry
        return [page for child in children for page in pages(child)]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == [str(page.relative_to(DOCS)) for page in PAGES]


def test_every_method_has_a_card() -> None:
    cards = {page.stem: text_of(page) for page in (DOCS / "methods").glob("*.md")}
    for name in METHODS:
        on = [page for page, text in cards.items() if f"<!-- method: {name} -->" in text]
        assert len(on) == 1, f"{name}: a method has one card, found {on}"
        assert on == [name] or name not in cards


def test_every_marker_is_filled(script, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = script("hooks")
    monkeypatch.setattr(hooks, "FILLERS", {**hooks.FILLERS, "help": lambda verb: f"help of {verb}"})
    for page in PAGES:
        filled = hooks.on_page_markdown(text_of(page))
        assert not re.search(r"^<!--", filled, re.MULTILINE), page


def test_the_command_line_page_has_every_verb() -> None:
    markers = re.findall(r"<!-- help(?:: (\w+))? -->", text_of(DOCS / "command-line.md"))
    assert markers == ["", *VERBS]


def test_help_is_that_of_the_verb_without_frames(script) -> None:
    text = script("hooks").on_page_markdown("Before\n\n<!-- help: score -->\n\nAfter\n")
    assert text.startswith("Before\n\n```text\nusage: postgrad score")
    for option in ("--model MODEL", "--data NAME", "--per-image-standardise", "--json"):
        assert option in text
    assert not set("╭╮╰╯│─") & set(text)


def test_the_python_page_has_every_public_name_and_its_parameters(script) -> None:
    page = text_of(DOCS / "python.md")
    for name in postgrad.__all__:
        if name != "UserError":
            assert f"<!-- api: postgrad.{name} -->" in page
    gradnet = script("hooks").api("postgrad.GradNet")
    for part in (
        "hidden: Sequence[int]",
        "- `exponent`: of the power",
        "`fit(x, y, *, validation=None)`",
        "```pycon\n>>> clf",
    ):
        assert part in gradnet


def test_docstrings_become_markdown(script) -> None:
    def example() -> None:
        """Do it.

        >>> example()
        1

        Args:
            first: what comes first, and
                goes on.
            second: another.

        Parameters
        ----------
        a, b : two of them.
        """

    assert script("hooks").docstring(example) == (
        "Do it.\n\n```pycon\n>>> example()\n1\n```\n\n**Args**\n\n"
        "- `first`: what comes first, and goes on.\n- `second`: another.\n\n**Parameters**\n\n- `a, b`: two of them."
    )


def test_links_to_raw_results_lead_to_a_file_on_the_site(script) -> None:
    assert script("hooks").on_page_markdown("[raw/a-1](raw/a-1)") == "[raw/a-1](raw/a-1/results.json)"


def test_tables_of_names_come_from_the_code(script) -> None:
    hooks = script("hooks")
    assert "| `cifar10` | 60,000 small photographs" in hooks.names("DATASETS")
    assert "| `seed-cnn` |" in hooks.names("BUILT_IN")
    assert "arXiv:1807.06630" in hooks.method_facts("gradnet")
