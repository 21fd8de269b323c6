"""The command line as users meet it: help, versions, exit codes, and one line for each mistake."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import postgrad.cli
from postgrad.cli import VERBS, main

MISTAKES = {
    "unknown verb": (["imrpove"], "did you mean 'improve'?"),
    "unknown option before the verb": (["--verson"], "unknown option '--verson'"),
    "unknown option": (["improve", "--datta", "digits"], "unknown option --datta: did you mean --data?"),
    "unknown option with a value": (["improve", "--epoch=3"], "did you mean --epochs?"),
    "nothing like it": (["improve", "--zzzzzz"], "see postgrad improve --help"),
    "stray word": (["improve", "digits"], "unexpected word 'digits'"),
    "value for a flag": (["improve", "--json=3"], "unexpected word '3'"),
    "no value": (["improve", "--limit"], "--limit"),
    "empty value": (["improve", "--data="], "--data: expected a value, got nothing"),
    "a word for a count": (["improve", "--limit", "many"], "--limit: expected a whole number, got 'many'"),
    "a fraction for a count": (["improve", "--size", "2.5"], "--size: expected a whole number"),
    "no images": (["improve", "--limit", "0"], "--limit: expected a number of 1 or more, got 0"),
    "no threads": (["improve", "--threads", "-1"], "--threads: expected a number of 1 or more, got -1"),
    "negative seed": (["improve", "--seed", "-1"], "--seed: expected a whole number of 0 or more"),
    "both seeds": (["improve", "--seed", "1", "--seeds", "3"], "give one of the two"),
    "not a number": (["improve", "--epochs", "nan"], "--epochs: expected a finite number"),
    "negative epochs": (["improve", "--epochs", "-1"], "epochs: should be greater than 0, got -1"),
    "accuracy in percent": (["improve", "--base-accuracy", "72"], "72 % is 0.72"),
    "time without unit": (["improve", "--budget", "10"], "a time such as 90s"),
    "unreadable memory": (["improve", "--memory", "lots"], "an amount such as 8GB"),
    "bad mean": (["improve", "--mean", ".5,x", "--std", ".5,.5"], "--mean: expected a number, got 'x'"),
    "mean alone": (["improve", "--mean", ".5"], "mean and std belong together"),
    "zero std": (["improve", "--mean", "0", "--std", "0"], "std: expected numbers above 0"),
    "unknown part": (["improve", "--preprocess", "sze=3"], "did you mean 'size'?"),
    "unknown method": (["improve", "--method", "gradnut"], "did you mean 'gradnet'?"),
    "method option without value": (["improve", "--method", "gradnet:epochs"], "expected key=value"),
    "no recipe there": (["improve", "--recipe", "nowhere.yaml"], "cannot read nowhere.yaml"),
    "resume nowhere": (["improve", "--resume", "nowhere"], "no config.yaml"),
    "resume with settings": (["improve", "--resume", "x", "--limit", "9"], "leave out --limit"),
    "report of nothing": (["report"], "at least one run directory"),
    "report of no run": (["report", "nowhere"], "nowhere holds no results.json"),
    "unknown list": (["list", "method"], "method"),
}


@pytest.mark.parametrize("words_and_hint", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_one_line_and_exit_code_2(
    words_and_hint: tuple[list[str], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    words, hint = words_and_hint
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("postgrad: ")
    assert hint in err
    assert "Traceback" not in err
    assert "----" not in err, "tyro's frame"
    assert "helptext" not in err
    assert list(tmp_path.iterdir()) == []


def test_wrong_line_in_a_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: digits\nepoch: 3\n")
    assert main(["improve", "--recipe", str(recipe)]) == 2
    assert "mine.yaml: unknown setting 'epoch': did you mean 'epochs'?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: postgrad {verb}")
    assert "None" not in out


def test_help_imports_nothing_heavy() -> None:
    """Of every verb, one after the other in a process that has imported nothing else."""
    code = (
        "import sys; from postgrad.cli import main\n"
        "for words in (['--help'], *([verb, '--help'] for verb in sys.argv[1:])):\n"
        "    code = main(words)\n"
        "    heavy = {'torch', 'numpy', 'sklearn', 'lightning', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "    if code or heavy: sys.exit(f'{words} {code} {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", code, *VERBS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: postgrad {verb}" in done.stdout for verb in VERBS)


@pytest.mark.slow
def test_help_answers_in_a_third_of_the_time_that_torch_takes_to_import() -> None:
    """Half a second where torch takes one and a half; machines differ more than any bound in seconds allows for."""
    commands = {verb: ["-m", "postgrad.cli", *([verb] if verb else []), "--help"] for verb in ("", *VERBS)}
    commands["import torch"] = ["-c", "import torch"]
    seconds: dict[str, float] = dict.fromkeys(commands, math.inf)
    for _ in range(2):
        for name, words in commands.items():
            began = _seconds_of_children()
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            seconds[name] = min(seconds[name], _seconds_of_children() - began)
    allowed = seconds.pop("import torch") / 3
    assert {name: each for name, each in seconds.items() if each >= allowed} == {}, allowed


def _seconds_of_children() -> float:
    """Processor time, which other programs on a busy machine do not lengthen; a help text waits for nothing else."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("postgrad 0.")


def test_interruption_is_130_and_a_bug_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(error: BaseException) -> None:
        def dispatch(words: list[str]) -> int:
            raise error

        monkeypatch.setattr(postgrad.cli, "_dispatch", dispatch)

    raising(KeyboardInterrupt())
    assert main(["improve"]) == 130
    assert capsys.readouterr().err == "postgrad: interrupted\n"
    raising(ZeroDivisionError("inner"))
    assert main(["improve"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "this is a bug" in error


def test_reader_of_a_pipe_may_leave_early() -> None:
    command = f"{sys.executable} -m postgrad.cli list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("methods:")
    assert done.stderr == ""


def test_list_prints_the_three_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("methods:", "gradnet", "1807.06630", "models:", "seed-cnn", "data:", "digits"))
    assert main(["list", "models"]) == 0
    assert "methods:" not in capsys.readouterr().out


def test_list_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"methods", "models", "data"}
    assert document["methods"]["gradnet"]["paper"] == "arXiv:1807.06630"


def test_doctor_tells_versions_machine_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["versions"]["core"]["torch"].startswith("2.")
    assert document["machine"]["cores"] >= 1
    assert {check["state"] for check in document["checks"]} <= {"ok", "note", "problem"}
    assert main(["doctor"]) == 0
    assert "torch and torchvision" in capsys.readouterr().out
