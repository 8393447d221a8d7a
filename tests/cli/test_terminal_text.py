"""Text of others through every door of the command: nothing that steers a terminal, or a reader's eye, comes out."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import click
import nbformat
import pytest
from click.testing import CliRunner
from injection_texts import steers
from nbformat.v4 import new_code_cell, new_notebook

from kitchen.cli.errors import KitchenGroup
from kitchen.cli.main import main
from kitchen.config import ExperimentSpec
from kitchen.data.references import Stream, Table
from kitchen.display.progress import _PlainDisplay
from kitchen.formatting import View, align_columns
from kitchen.session.kitchen import Kitchen
from kitchen.store.index import RunIndex
from kitchen.store.run import Run
from kitchen.telemetry import event
from kitchen.terminal import TerminalStream, terminal_text, visible_text
from kitchen.types import InvalidValue, RowError, UnknownName

pytestmark = pytest.mark.whole_run

ROOT = Path(__file__).resolve().parents[2]
INVISIBLE = "\u200b\u2060\ufeff\u2028\u2029\U000e0001\U000e0041"
STEERING = {
    "screen": "a\x1b[2J\x1b[31mred\x07b",
    "link": "a\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\b",
    "C1": "a\x9b31m\x85b",
    "override": "abc\u202egpj.exe\u2066\u2069",
    "marks": "a\u200f\u061c\u200e\u202a\u202db",
    "overwritten": "secure\r\x08\x08not\x0b\x0c",
    "delete": "a\x7fb",
    "nothing to see": f"a{INVISIBLE}b",
    "half": "a\ud800b",
}
NAMES = [name for name in STEERING if name != "half"]  # what a file system and a command line can hold


def acts(letter):
    """Whether a character acts on a terminal, or cannot be seen there; a line break is kitchen's own."""
    return letter != "\n" and (steers(letter) or letter == "\t" or letter in INVISIBLE)


def spoken(*words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    return done.stdout + done.stderr


def planned(dataset):
    return spoken("plan", "sft", "--no-measure", "-p", "backend", "toy", "-p", "dataset", dataset)


def run_with(folder, name="one", **values):
    run = Run.create(ExperimentSpec(recipe="sft", config=values), folder / name)
    RunIndex(folder).put(run)
    run.close()
    return run


def notebook_with(path, *sources, **metadata):
    nbformat.write(new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]} if not place else {})
                                       for place, source in enumerate(sources)], metadata=metadata), path)  # fmt: skip
    return path


def log_of_others(folder, text):
    """A run whose log says the text wherever a log can."""
    run = run_with(folder)
    run.log.claim()
    for item in (event("run.start", recipe=text, run_id=text), event("stage.start", stage=text), event("train.start", loss=text, steps=2),
                 event("train.step", step=1, loss=1.0, seconds=1.0), event("stage.error", stage=text, error=text, seconds=1.0),
                 event("artifact.save", artifact=text, kind=text, path="../" + text.encode("utf-8", "replace").decode(), sha256=text, bytes=1),
                 event("run.stop", status="failed", reason=text, seconds=1.0)):  # fmt: skip
        run.log.append(item)
    RunIndex(folder).put(run)
    run.close()
    return run.path


DOORS = {
    "command": lambda text, at: spoken(text),
    "recipe": lambda text, at: spoken("validate", text),
    "recipe to describe": lambda text, at: spoken("describe", text),
    "option": lambda text, at: spoken("runs", f"--{text}"),
    "option's value": lambda text, at: spoken("runs", "-n", text),
    "parameter's name": lambda text, at: spoken("validate", "sft", "-p", text, "1"),
    "parameter's value": lambda text, at: spoken("validate", "sft", "-p", "epochs", text),
    "flag's value": lambda text, at: spoken("validate", "sft", "--learning-rate", text),
    "model": lambda text, at: spoken("plan", "sft", "--no-measure", "-p", "dataset", "builtin:sort[:8]", "-p", "model", text),
    "dataset": lambda text, at: planned(f"file:{at}/{text}.jsonl"),
    "dataset scheme": lambda text, at: planned(f"{text}:rows"),
    "backend": lambda text, at: spoken("validate", "sft", "-p", "backend", text),
    "run": lambda text, at: spoken("verify", text),
    "run to report": lambda text, at: spoken("report", at / text),
    "runs to find": lambda text, at: (run_with(at / "runs"), spoken("runs", "--find", text))[1],
    "run's folder": lambda text, at: (run_with(at / "runs", text), spoken("runs"), spoken("verify", at / "runs" / text)),
    "settings of a run": lambda text, at: (
        run_with(at / "runs", model=text, dataset=text), spoken("runs"), spoken("report", "latest", "--markdown")),
    "file of settings": lambda text, at: spoken("validate", "sft", "-f", at / text),
    "name in a file": lambda text, at: ((at / "s.json").write_text(json.dumps({text: 1})), spoken("validate", "sft", "-f", at / "s.json")),
    "words of a broken file": lambda text, at: (
        (at / "s.yaml").write_text("a: [" + text, "utf-8", "replace"), spoken("validate", "sft", "-f", at / "s.yaml")),
    "notebook": lambda text, at: spoken("describe", f"{at}/{text}.ipynb"),
    "notebook's parameter": lambda text, at: spoken("describe", notebook_with(at / "n.ipynb", f"a = {text!r}  # {text}".replace("\r", ""))),
    "parameter of a notebook": lambda text, at: spoken("cook", notebook_with(at / "n.ipynb", "a = 1"), "-p", text, "1"),
    "log of others": lambda text, at: (
        log_of_others(at / "runs", text), spoken("runs"), spoken("verify", "latest"), spoken("report", "latest", "--latex")),
    "column": lambda text, at: ((at / "rows.jsonl").write_text(json.dumps({text: 1}) + "\n"),
                                    planned(f"file:{at}/rows.jsonl")),
    "adapter": lambda text, at: spoken("resume", run_with(at / "runs", backend=text).path),
    "traceback": lambda text, at: spoken("--debug", "describe", text),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("door", DOORS)
def test_nothing_that_steers_comes_out_of_the_command(door, kind, tmp_path):
    found = DOORS[door](STEERING[kind], tmp_path)
    said = "".join(one for one in found if isinstance(one, str)) if isinstance(found, tuple) else found
    assert not list(filter(acts, said)), repr(said)
    assert said or door == "traceback"  # Python prints it when the process ends, see below


FAILURES = {
    "user's exception": "raise ValueError(TEXT)",
    "kitchen's error": "from kitchen.types import InvalidValue; raise InvalidValue(TEXT)",
    "error of the system": "open('/nowhere/' + TEXT.replace('\\ud800', ''))",
    "chained": "\n    try:\n        raise KeyError(TEXT)\n    except KeyError as error:\n        raise RuntimeError(TEXT) from error",
    "warning": "import warnings; warnings.warn(TEXT)",
    "print": "print(TEXT)",
    "usage": "raise click.UsageError(TEXT)",
    "bad parameter": "raise click.BadParameter(TEXT)",
    "file": "raise click.FileError(TEXT.replace('\\ud800', ''), TEXT)",
    "abort": "print(TEXT, file=sys.stderr); raise click.Abort",
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_process_says_no_such_thing_either(failure, debug, tmp_path):
    text = "".join(STEERING.values()) + "\t"
    script = tmp_path / "script.py"
    script.write_text(f"""import sys, click
from kitchen.cli.errors import KitchenGroup, debug_option
TEXT = {text!r}
def act():
    {FAILURES[failure]}
KitchenGroup("kitchen", commands=[click.Command("act", callback=act, params=[debug_option()])]).main(["act", *sys.argv[1:]])
""")
    words = [sys.executable, str(script), *(["--debug"] if debug else [])]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    said = (done.stdout + done.stderr).decode()
    assert not list(filter(acts, said)), repr(said)
    if failure not in ("error of the system", "abort"):
        assert r"\x1b[2J" in said or r"\\x1b[2J" in said
    assert ("Traceback" in said) == (debug and failure in ("user's exception", "kitchen's error", "error of the system", "chained"))


@pytest.mark.parametrize("kind", STEERING)
def test_errors_displays_and_progress_show_the_text(kind, capsys):
    text = STEERING[kind]
    errors = [InvalidValue(text), RowError(text, text, 1, text), UnknownName(text, text, [text], text)]
    shown = [f"{one} {one!r}" for one in errors] + [repr(Table([{text: 1}], text)), repr(Stream(list, text)), repr(View("", text))]
    shown += [align_columns([[text, text]]), visible_text(text), terminal_text(text + "\t")]
    if kind != "half":  # of a surrogate pair: no setting may hold one
        shown += [repr(Kitchen("sft", backend="toy", dataset=text, model=text))]
    display = _PlainDisplay(sys.stdout)
    for item in (event("stage.start", stage=text), event("train.start", loss=text, steps=2), event("train.step", step=1, loss=1.0, seconds=1.0),
                 event("artifact.save", artifact=text, kind="a", path="a", sha256="a", bytes=1), event("stage.stop", stage=text, seconds=1.0),
                 event("stage.retry", stage=text, error=text, attempt=1, pause=1), event("config.edit", setting=text, after=text)):  # fmt: skip
        display.show(item)
    shown += capsys.readouterr().out.splitlines()
    assert not [one for one in shown if any(map(acts, one))]


def test_line_breaks_of_messages_and_letters_that_scripts_join_stay():
    for text in ("one\ntwo", "👩\u200d🍳 सम\u200dझ می\u200cخواهم", "naïve — “quoted” ✓ ○ │ 東京", ""):
        assert str(InvalidValue(text)) == terminal_text(text) == visible_text(text) == text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_without_the_letters_gets_them_written_out(encoding, tmp_path):
    with (tmp_path / "screen").open("w", encoding=encoding) as file:
        print("✓ done \ud800 é", file=TerminalStream(file))
    assert "done" in (tmp_path / "screen").read_text(encoding)


def test_the_streams_are_as_before_when_the_command_is_over():
    before = sys.stdout, sys.stderr
    for words in (["--version"], ["describe", "stf"], ["nonsense"]):
        with pytest.raises(SystemExit):
            main(words)
    assert (sys.stdout, sys.stderr) == before
    with warnings.catch_warnings(record=True):
        KitchenGroup("kitchen", commands=[click.Command("a", callback=lambda: None)]).main(["a"], standalone_mode=False)
    assert (sys.stdout, sys.stderr) == before
