"""The page holds what results.json says, leaves out what the run lacks, and is one file without links."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from postgrad.errors import UserError
from postgrad.reports import html
from postgrad.reports.html import render
from postgrad.reports.schema import read_results

SECTIONS = [
    "arms",
    "verdicts",
    "seeds",
    "learning",
    "calibration",
    "outside",
    "corruptions",
    "attacks",
    "changed",
    "blocks",
    "cost",
    "data",
    "environment",
    "again",
]


class Text(HTMLParser):
    """The visible text of a page, and its tags with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(run: Path) -> Text:
    return Text(render(run).read_text(encoding="utf-8"))


def test_shows_the_numbers_of_results_json(make_run) -> None:
    run = make_run()
    page = page_of(run)
    results = read_results(run / "results.json")
    for arm in results.arms:
        accuracy = arm.metrics["accuracy"]
        assert f"{100 * accuracy.mean:.2f} %" in page.text
        assert accuracy.ci95 is not None
        assert f"{100 * accuracy.ci95[0]:.2f} to {100 * accuracy.ci95[1]:.2f}" in page.text
        for name in ("nll", "ece", "brier", "aurc"):
            assert f"{arm.metrics[name].mean:.3f}" in page.text
        assert f"{arm.cost.parameters:,}" in page.text
    assert results.data.fingerprint in page.text
    assert results.command in page.text
    assert "1,284,330" in page.text


def test_headings_are_in_order_and_every_picture_has_words(make_run) -> None:
    page = page_of(make_run())
    assert [attrs["id"] for tag, attrs in page.tags if tag == "h2"] == SECTIONS
    assert next(tag for tag, _ in page.tags if re.fullmatch("h[1-3]", tag)) == "h1"
    for tag, attrs in page.tags:
        if tag == "img":
            assert attrs["alt"]
        if tag == "svg":
            assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"


def test_is_one_file_without_links_to_elsewhere(make_run) -> None:
    page = page_of(make_run())
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            if name in attrs:
                assert str(attrs[name]).startswith(("data:", "#")), (tag, attrs)
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_flipped_images_are_shown_with_their_classes(make_run) -> None:
    run = make_run()
    page = page_of(run)
    alternatives = [str(attrs["alt"]) for tag, attrs in page.tags if tag == "img"]
    predictions = {name: np.load(run / name / "test_predictions.npz") for name in ("base", "gradnet")}
    labels = predictions["base"]["labels"]
    before, after = (predictions[name]["probabilities"].argmax(1) for name in ("base", "gradnet"))
    first = int(np.flatnonzero((before != labels) & (after == labels))[0])
    assert alternatives[0] == (
        f"Test image of class {labels[first]}; the base says {before[first]}, GradNet says {after[first]}"
    )
    gained, lost = (((before == labels) != (after == labels)) & (side == labels) for side in (after, before))
    assert f"{gained.sum()} test images of 360 became right and {lost.sum()} became wrong" in page.text


def test_a_run_of_results_alone_says_what_is_missing(make_run) -> None:
    page = page_of(make_run(files=False))
    for file in ("metrics.csv", "test_predictions.npz", "gradnet_blocks.json", "environment.json", "config.yaml"):
        assert file in page.text
    assert [attrs["id"] for tag, attrs in page.tags if tag == "h2"] == SECTIONS


def test_predictions_without_example_images(make_run) -> None:
    run = make_run()
    (run / "examples.npz").unlink()
    page = page_of(run)
    assert "became right" in page.text
    assert "examples.npz" in page.text


@pytest.mark.parametrize(("seeds", "says"), [(1, "One seed"), (3, "With seed 0"), (5, "5 seeds: these verdicts")])
def test_says_what_the_seeds_allow(make_run, seeds: int, says: str) -> None:
    page = page_of(make_run(seeds=seeds))
    assert says in page.text
    assert ("Accuracy of each seed" in page.text) == (seeds > 1)


def test_warnings_notes_and_names_are_escaped(make_run) -> None:
    run = make_run(warnings=["<script>alert(1)</script> & more"], notes=["a note"])
    render(run)
    source = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in source
    assert "a note" in source


def test_is_small(make_run) -> None:
    run = make_run()
    images = np.random.default_rng(0).integers(0, 256, (360, 3, 224, 224), dtype=np.uint8)
    np.savez(run / "examples.npz", images=images)
    assert render(run).stat().st_size < 6_000_000


@pytest.mark.parametrize(
    "name", ["base/test_predictions.npz", "examples.npz", "environment.json", "gradnet_blocks.json"]
)
def test_a_damaged_file_is_named(make_run, name: str) -> None:
    run = make_run()
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=re.escape(name)):
        render(run)


def test_a_damaged_curve_is_named(make_run) -> None:
    run = make_run()
    (run / "base/metrics.csv").write_text("step,loss\n1,abc\n")
    with pytest.raises(UserError, match=re.escape("base/metrics.csv")):
        render(run)


def test_the_same_run_gives_the_same_page(make_run) -> None:
    run = make_run()
    first = render(run).read_bytes()
    assert render(run).read_bytes() == first


def copy_of(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "copy"))


def test_a_study_of_many_arms_shows_everything(study: Path, tmp_path: Path) -> None:
    page = page_of(copy_of(study, tmp_path))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "h2"] == SECTIONS
    assert "1 trial did not come to its end" in page.text
    assert "control-more-data-gradnet-variant-2, seed 4: the loss became infinite at step 120" in page.text
    for said in ("left out: control-same-price", "made up, to look at", "8/255", "FPR95 40 %", "keeps 91 %"):
        assert said in page.text


def test_every_anchor_is_there_once_and_every_link_leads_to_one(study: Path, make_run, tmp_path: Path) -> None:
    for run in (copy_of(study, tmp_path), make_run(seeds=5)):
        page = page_of(run)
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(set(ids)) == len(ids)
        links = {str(attrs["href"])[1:] for tag, attrs in page.tags if tag == "a"}
        assert links <= set(ids)
        assert {f"arm-{arm.name}" for arm in read_results(run / "results.json").arms} <= links


def test_sections_keep_their_anchors_whatever_a_run_holds(study: Path, make_run, tmp_path: Path) -> None:
    for run in (copy_of(study, tmp_path), make_run(files=False)):
        assert set(SECTIONS) <= {attrs["id"] for _, attrs in page_of(run).tags if "id" in attrs}


def test_without_script_the_tables_are_plain(study: Path, tmp_path: Path) -> None:
    page = page_of(copy_of(study, tmp_path))
    tools = [attrs for _, attrs in page.tags if attrs.get("class") == "tools"]
    assert len(tools) == 1
    assert "hidden" in tools[0]
    assert not any(tag == "th" and "aria-sort" in attrs for tag, attrs in page.tags)


def test_a_page_that_grows_too_large_drops_its_images_first(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(study, tmp_path)
    whole = render(run).stat().st_size
    assert whole < html.LARGEST
    assert "Left out, so that" not in page_of(run).text
    monkeypatch.setattr(html, "LARGEST", whole - 1)
    page = page_of(run)
    assert "Left out, so that this page stays below 6 MB: example images." in page.text
    assert not [attrs for tag, attrs in page.tags if tag == "img"]
    assert any(str(attrs.get("id")).startswith("histogram-") for _, attrs in page.tags)
    monkeypatch.setattr(html, "LARGEST", 1)
    page = page_of(run)
    assert "example images, histograms, confusion maps" in page.text
    assert not any(str(attrs.get("id")).startswith("histogram-") for _, attrs in page.tags)


def test_a_score_alone_makes_a_page(make_run) -> None:
    run = make_run(arms={"base": ("base", 2.6, 1.7, 0.0)}, recommended=None, command="postgrad score --out scores")
    page = page_of(run)
    assert "Scores on digits" in page.text
    assert "the same again is" not in page.text
    assert "No verdicts: this run compares no method with another arm." in page.text
    assert not [attrs for _, attrs in page.tags if attrs.get("class") == "tools"]
