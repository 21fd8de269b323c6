"""Published claims judged by our own results: one row each, a page for each study, and the index of them all.

>>> claim = Claim(claim="MNIST .92", source="arXiv 1807.06630, Table 1", arm="gradnet", published=0.98)
>>> judge(claim, read_results("runs/study/results.json"), raw="raw/gradnet").verdict
'partly'

A ledger `docs/ledger/NAME` is a page NAME.md, its rows in NAME.json, and the raw results in raw/NAME; index.md is made
from the rows of all ledgers that lie in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from postgrad.errors import UserError, unknown_name
from postgrad.evaluation.statistics import HIGHER_IS_BETTER, MIN_SEEDS
from postgrad.files import write_atomic
from postgrad.reports.schema import Interval, Results, Verdict, read_results
from postgrad.studies.raw import keep_raw
from postgrad.studies.study_config import Claim

Word = Literal["replicated", "partly", "not replicated", "not testable here", "preliminary"]

INDEX = "index.md"

WORDS: dict[Word, str] = {
    "replicated": "better than the base and than every fair control, over five seeds or more; or, where that was "
    "claimed, no difference to the base",
    "partly": "better than the base, but not than every fair control",
    "not replicated": "not better than the base; or, where no difference was claimed, a difference",
    "preliminary": "fewer than five seeds: what the runs show so far, no verdict on the method",
    "not testable here": "needs data or machines that are not at hand; the row says which",
}
"""What each verdict of a row means."""

HEADS = ("claim", "published", "ours", "best control", "ours against it", "seeds", "verdict")


class LedgerRow(BaseModel):
    """One claim with our figures beside the published ones; `interval` is that of ours against the best control."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    source: str
    metric: str
    published_base: float | None
    published: float | None
    base: float | None = None
    ours: float | None = None
    control: str | None = None
    control_figure: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    n_seeds: int = 0
    verdict: Word
    reason: str
    command: str
    raw: str


def judge(claim: Claim, results: Results, *, raw: str, command: str | None = None) -> LedgerRow:
    """One row of the ledger; a claim about an arm or a metric that the results do not have is a `UserError`."""
    published = {name: getattr(claim, name) for name in ("claim", "source", "metric", "published_base", "published")}
    made = {"command": command or results.command, "raw": raw}
    if claim.not_testable is not None:
        return LedgerRow(**published, **made, verdict="not testable here", reason=claim.not_testable)
    if claim.metric not in HIGHER_IS_BETTER:
        raise unknown_name(f"metric of the claim '{claim.claim}'", claim.metric, HIGHER_IS_BETTER)
    ours = results.arm(_arm_of(claim, results))
    against = [v for v in results.verdicts if (v.method, v.metric) == (ours.name, claim.metric)]
    compared = dict.fromkeys(verdict.control for verdict in against)
    reference = "base" if "base" in compared or not compared else next(iter(compared))
    controls = [
        arm
        for arm in results.arms
        if ours.name in arm.control_for and claim.metric in arm.metrics and arm.name != reference
    ]
    if not controls:
        raise UserError(f"claim '{claim.claim}': {ours.name} has no fair control in this study, so nothing is proved")
    best = max(controls, key=lambda arm: arm.metrics[claim.metric].mean * (1 if HIGHER_IS_BETTER[claim.metric] else -1))
    closest = next((v for v in _spoken(against) if v.control == best.name), None)
    if claim.expects == "gain":
        word, reason = _word(against, reference, controls=len(controls))
    else:
        word, reason = _word_on_none(against, reference)
    return LedgerRow(
        **published,
        **made,
        base=results.arm(reference).metrics[claim.metric].mean,
        ours=ours.metrics[claim.metric].mean,
        control=best.name,
        control_figure=best.metrics[claim.metric].mean,
        difference=closest.difference if closest else None,
        interval=closest.ci95 if closest else None,
        n_seeds=ours.metrics[claim.metric].n_seeds,
        verdict=word,
        reason=reason,
    )


def _arm_of(claim: Claim, results: Results) -> str:
    methods = [arm.name for arm in results.arms if arm.kind == "method"]
    if claim.arm is None and len(methods) == 1:
        return methods[0]
    if claim.arm not in methods:
        raise unknown_name(f"arm of the claim '{claim.claim}'", claim.arm or "", methods)
    return claim.arm


def _spoken(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those about the method, and where its seeds are too few those about the first run."""
    of_control: dict[str, Verdict] = {}
    for verdict in verdicts:
        if verdict.p is not None and (verdict.scope == "method" or verdict.control not in of_control):
            of_control[verdict.control] = verdict
    return list(of_control.values())


def _word(verdicts: Sequence[Verdict], reference: str, *, controls: int) -> tuple[Word, str]:
    """The verdict on a claim of a gain over the reference, and what it rests on."""
    about_method = _about_method(verdicts)
    spoken = {v.control: v for v in _spoken(verdicts)}
    fair = {name: v for name, v in spoken.items() if name != reference}
    better = [name for name, v in fair.items() if v.verdict == "better"]
    beats_base = reference in spoken and spoken[reference].verdict == "better"
    called = "the base" if reference == "base" else reference
    reason = f"{'' if beats_base else 'not '}better than {called}, better than {len(better)} of {controls} controls"
    if not {reference, *fair} <= about_method.keys():
        return "preliminary", f"{reason}, in fewer than {MIN_SEEDS} seeds"
    if not beats_base:
        return "not replicated", reason
    return ("replicated" if len(better) == controls else "partly"), reason


def _word_on_none(verdicts: Sequence[Verdict], reference: str) -> tuple[Word, str]:
    """The verdict on a claim that there is no difference to the reference."""
    verdict = _about_method(verdicts).get(reference)
    if verdict is None:
        return "preliminary", f"fewer than {MIN_SEEDS} seeds say nothing of a difference that is not there"
    said = verdict.verdict if verdict.verdict == "no difference" else f"{verdict.verdict} than {reference}"
    seen = "" if verdict.detectable is None else f"; a difference of {verdict.detectable:.4f} would have been found"
    return ("replicated" if verdict.verdict == "no difference" else "not replicated"), f"{said}{seen}"


def _about_method(verdicts: Sequence[Verdict]) -> dict[str, Verdict]:
    return {v.control: v for v in verdicts if v.scope == "method" and v.p is not None}


def ledger_of_run(path: Path, claims: Sequence[Claim], run: Path, command: str) -> None:
    """Judge the claims of a finished study or search, and keep its raw results beside the page."""
    results, kept = read_results(run / "results.json"), raw_of(path)
    rows = [judge(claim, results, raw=str(kept.relative_to(path.parent)), command=command) for claim in claims]
    keep_raw(run, kept)
    write_ledger(path, f"Replication ledger: {path.name}", rows)


def raw_of(path: Path) -> Path:
    """Where the raw results of a ledger's page lie, config.yaml among them.

    >>> raw_of(Path("docs/ledger/powergrad"))
    PosixPath('docs/ledger/raw/powergrad')
    """
    return path.parent / "raw" / path.name


def check_ledger(path: Path, claims: Sequence[Claim]) -> None:
    """Refuse, before anything is trained, a ledger that could not be written."""
    if not claims:
        raise UserError(f"--ledger {path}: the recipe makes no claims that could be judged; add some (claims:)")
    if path.suffix:
        raise UserError(f"--ledger {path}: give the name of a page without its ending, such as docs/ledger/powergrad")
    if path.with_suffix(".yaml").exists():
        raise UserError(f"--ledger {path}: that page is made from {path.name}.yaml; give another name")


def write_ledger(path: Path, title: str, rows: Sequence[LedgerRow]) -> None:
    """Write NAME.md and NAME.json for `path` = FOLDER/NAME, and the folder's index."""
    write_rows(path, title, rows)
    write_atomic(path.with_suffix(".md"), page(title, rows))


def write_rows(path: Path, title: str, rows: Sequence[LedgerRow]) -> None:
    """Write the rows of a page that is made elsewhere, and the folder's index."""
    content = {"title": title, "rows": [row.model_dump(mode="json") for row in rows]}
    write_atomic(path.with_suffix(".json"), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_index(path.parent)


def page(title: str, rows: Sequence[LedgerRow]) -> str:
    """The page of one study as Markdown."""
    parts = [f"# {title}", _table([_cells(row) for row in rows]), _meanings(rows)]
    parts += [_section(row) for row in rows]
    return "\n\n".join(parts) + "\n"


def write_index(folder: Path) -> None:
    """Write the table of all ledgers in a folder, each claim linked to its page."""
    parts = [
        "# Replication ledger",
        "Every published claim that was tested here, with its fair controls: the same data, the same time, the same "
        "price at prediction. The pages tell how, and link to the raw results.",
    ]
    rows: list[LedgerRow] = []
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        of_page = [LedgerRow.model_validate(row) for row in content["rows"]]
        parts += [f"## [{content['title']}]({file.stem}.md)", _table([_cells(row) for row in of_page])]
        rows += of_page
    write_atomic(folder / INDEX, "\n\n".join([*parts, "## What the verdicts mean", _meanings(rows)]) + "\n")


def _cells(row: LedgerRow) -> list[str]:
    return [
        row.claim,
        _before_after(row.published_base, row.published),
        _before_after(row.base, row.ours),
        f"{row.control} {row.control_figure:.4f}" if row.control_figure is not None else "–",
        _against(row),
        str(row.n_seeds) if row.n_seeds else "–",
        row.verdict,
    ]


def _before_after(before: float | None, after: float | None) -> str:
    written = ["?" if figure is None else f"{figure:.4g}" for figure in (before, after)]
    return "–" if before is None and after is None else " → ".join(written)


def _against(row: LedgerRow) -> str:
    if row.difference is None:
        return "–"
    interval = f" ({row.interval[0]:+.4f} to {row.interval[1]:+.4f})" if row.interval else ""
    return f"{row.difference:+.4f}{interval}"


def _section(row: LedgerRow) -> str:
    parts = [f"## {row.claim}", f"Source: {row.source}", f"**{row.verdict}**: {row.reason}."]
    if row.ours is not None:
        parts.append(f"`{row.command}`")
        parts.append(f"Raw results: [{row.raw}]({row.raw}).")
    return "\n\n".join(parts)


def _meanings(rows: Sequence[LedgerRow]) -> str:
    used = {row.verdict for row in rows}
    return "\n".join(f"- **{word}**: {meaning}." for word, meaning in WORDS.items() if word in used)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [HEADS, ["---"] * len(HEADS), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
