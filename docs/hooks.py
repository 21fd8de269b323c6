"""Fills the marked places of the documentation from the code, each time mkdocs builds it.

<!-- help: improve -->              what `postgrad improve --help` prints; `<!-- help -->` is the overview
<!-- api: postgrad.GradNet -->      the signature and the docstring of a public name
<!-- method: gradnet -->            what the registry says of a method
<!-- names: DATASETS -->            a table of the data sets (or BUILT_IN, FORMS: the models)
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

HELP_COLUMNS = "84"
MARKER = re.compile(r"^<!-- (help|api|method|names)(?:: ([\w.]+))? -->$", re.MULTILINE)
RAW_FOLDER = re.compile(r"\]\((raw/[\w.-]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls with the text of each page."""
    # A folder can be looked into where the repository is read, and not on a site.
    with_files = RAW_FOLDER.sub(r"](\1/results.json)", markdown)
    return MARKER.sub(lambda found: FILLERS[found[1]](found[2] or ""), with_files)


def help_text(verb: str) -> str:
    """The help of a verb as a block of plain text, without the frames that it has in a terminal."""
    words = [verb, "--help"] if verb else ["--help"]
    environment = {**os.environ, "COLUMNS": HELP_COLUMNS, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "postgrad.cli", *words], env=environment, capture_output=True, text=True, check=True
    )
    lines = [unframed(line) for line in done.stdout.strip().splitlines()]
    return "```text\n" + re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n```"


def unframed(line: str) -> str:
    """A line of a framed help without its frame: titles stay, rules become empty lines.

    >>> unframed("╭─ run options ───────╮")
    'run options'
    """
    if line.startswith("╭"):
        return line.strip("╭╮─ ")
    if line.startswith("╰") or re.fullmatch(r"│ ─+ │", line):
        return ""
    return line.removeprefix("│").removesuffix("│").rstrip() if line.startswith("│") else line


def api(name: str) -> str:
    """A public name: its signature, its docstring, and for a class its public methods."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    code = f"from {module} import {attribute}\n\n{signature(attribute, value)}"
    parts = [f"### `{attribute}`", f"```python\n{code}\n```", docstring(value)]
    if inspect.isclass(value):
        parts += [
            f"`{signature(key, method, inline=True)}`\n:   {first_paragraph(method)}" for key, method in own(value)
        ]
    return "\n\n".join(part for part in parts if part)


def own(cls: type) -> list[tuple[str, Any]]:
    """The public, documented functions that a class itself defines."""
    functions = [(key, value.__func__ if isinstance(value, classmethod) else value) for key, value in vars(cls).items()]
    return [
        (key, function)
        for key, function in functions
        if inspect.isfunction(function) and not key.startswith("_") and function.__doc__
    ]


def signature(name: str, value: Any, *, inline: bool = False) -> str:
    """`name(parameters)` with types as they are written in the source; one line each where that is long."""
    parameters = list(inspect.signature(value).parameters.values())
    words: list[str] = []
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        typed = "" if inline or parameter.annotation is parameter.empty else f": {parameter.annotation}"
        equals = "=" if not typed else " = "
        default = "" if parameter.default is parameter.empty else f"{equals}{parameter.default!r}"
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        words.append(f"{stars}{parameter.name}{typed}{default}")
    returned = inspect.signature(value).return_annotation
    arrow = "" if inline or inspect.isclass(value) or returned is inspect.Signature.empty else f" -> {returned}"
    line = f"{name}({', '.join(words)}){arrow}"
    if inline or len(line) <= 80:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){arrow}"


def first_paragraph(value: Any) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


def docstring(value: Any) -> str:
    """A docstring as Markdown: examples become code blocks, described names become lists."""
    parts = re.split(r"\n{2,}", inspect.getdoc(value) or "")
    return "\n\n".join(paragraph(part) for part in parts)


def paragraph(text: str) -> str:
    """One paragraph of a docstring as Markdown."""
    lines = text.splitlines()
    if lines[0].startswith(">>> "):
        return f"```pycon\n{text}\n```"
    if len(lines) > 1 and re.fullmatch(r"-+", lines[1]):
        return f"**{lines[0]}**\n\n{described(lines[2:])}"
    if re.fullmatch(r"(Args|Returns|Raises):", lines[0]):
        return f"**{lines[0].rstrip(':')}**\n\n{described(inspect.cleandoc(chr(10).join(lines[1:])).splitlines())}"
    return described(lines) if " : " in lines[0] else text


def described(lines: list[str]) -> str:
    """`name : what it is` (or `name: what it is`), with indented lines that go on, as a list."""
    result: list[str] = []
    for line in lines:
        found = re.fullmatch(r"([\w.*]+(?:, [\w.*]+)*) ?: (.+)", line)
        if found:
            result.append(f"- `{found[1]}`: {found[2]}")
        elif result:
            result[-1] += f" {line.strip()}"
        else:
            result.append(line)
    return "\n".join(result)


def method_facts(name: str) -> str:
    """What the registry says of a method, as a list."""
    from postgrad.methods.registry import get_method

    method = get_method(name)
    facts = {
        "Name on the command line": f"`--method {method.name}`",
        "Shape": method.shape.capitalize(),
        "Needs": _sentence(method.needs),
        "Costs": _sentence(method.costs),
        "Fails": _sentence(method.failures),
        "Paper": method.paper,
        "Licence and patents": method.licence,
    }
    return "\n".join(f"- **{key}:** {text}" for key, text in facts.items())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def names(which: str) -> str:
    """A table of the names that `postgrad list` shows: DATASETS, BUILT_IN or FORMS."""
    module = "postgrad.data.names" if which == "DATASETS" else "postgrad.models.names"
    entries: Mapping[str, str] = getattr(importlib.import_module(module), which)
    return "\n".join(
        ["| Name | What it is |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in entries.items())]
    )


FILLERS: dict[str, Callable[[str], str]] = {"help": help_text, "api": api, "method": method_facts, "names": names}
