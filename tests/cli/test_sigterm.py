"""SIGTERM and Ctrl-C end a process on a step boundary: in scripts, in the background, in commands; nothing here waits by the clock."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from kitchen.engine.checkpoints import SnapshotFolder
from kitchen.session.kitchen import Kitchen
from kitchen.store.run import Run

pytestmark = pytest.mark.whole_run

ROOT = Path(__file__).resolve().parents[2]
LONG = {
    "backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 1_000_000, "batch_size": 16, "held_out": 8, "graded": 2,
    "max_tokens": 4, "evaluate_every": 10**6, "snapshot_every": 10**6, "lora_rank": 2,
}  # fmt: skip
BEGIN = """
import json, os, signal, sys, threading, time
from kitchen.session.kitchen import Kitchen
k = Kitchen("sft", run_dir=sys.argv[1], **json.loads(sys.argv[2]))
def say(item):
    if item.name == "train.step" and item.step == 3:
        print("here", flush=True)
k.driver.listeners.append(say)
"""


def script(text, path, settings=LONG):
    """A process that runs a script with a session `k` in it."""
    words = [sys.executable, "-W", "ignore", "-c", BEGIN + text, str(path / "run"), json.dumps(settings)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=path, env={**os.environ, "PYTHONPATH": str(ROOT)})


def heard(process, word):
    """Wait until the process has said a word on a line of its own."""
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"{word!r} was never said: {process.stderr.read()}")


def ended(process):
    """The exit code of a process, and what it said on both streams."""
    said = "".join(process.communicate(timeout=600))
    return process.returncode, said


def said_until_sigterm(text, path):
    """What a script says that gets SIGTERM while its run goes on: it ends by that, with no word from after the run."""
    process = script(text, path)
    heard(process, "here")
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 143 and "not reached" not in said and "Traceback" not in said, said
    return said


def assert_stopped(path):
    """The run was stopped on a boundary, with a snapshot of its last step, and can be gone on with."""
    run = Run(path / "run")
    assert run.status == "stopped" and run.verify() == []
    last = max(item.step for item in run.log.active_events if item.name == "train.step")
    newest = max(SnapshotFolder(run).paths(), key=lambda one: int(one.stem))
    assert json.loads(newest.read_text())["step"] == last
    with Kitchen.open(path / "run") as k:
        assert k.step("batch").step == last + 1


def test_a_script_that_runs_in_the_foreground(tmp_path):
    said_until_sigterm("k.run(); print('not reached')", tmp_path)
    assert_stopped(tmp_path)


def test_a_script_that_waits_for_the_background(tmp_path):
    said_until_sigterm("k.run(wait=False); k.wait(); print('not reached')", tmp_path)
    assert_stopped(tmp_path)


def test_a_script_that_does_something_else_meanwhile(tmp_path):
    said = said_until_sigterm("k.run(wait=False); threading.Event().wait(); print('not reached')", tmp_path)
    assert "stops after this step" in said
    assert_stopped(tmp_path)


def test_a_run_that_another_thread_began(tmp_path):
    text = "t = threading.Thread(target=lambda: k.run(wait=False)); t.start(); t.join(); threading.Event().wait()"
    process = script(text, tmp_path)
    heard(process, "here")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert_stopped(tmp_path)


def test_a_script_that_ends_while_its_run_goes_on(tmp_path):
    text = "seen = threading.Event(); k.driver.listeners.append(lambda item: item.step == 5 and seen.set()); k.run(wait=False); seen.wait()"
    code, said = ended(script(text, tmp_path))
    assert code == 0 and "stops after this step, wait() lets it finish" in said and "Traceback" not in said, said
    assert_stopped(tmp_path)


def test_a_script_whose_run_has_ended_says_nothing(tmp_path):
    code, said = ended(script("k.run(wait=False).wait(); print(k.status)", tmp_path, {**LONG, "epochs": 1}))
    assert code == 0 and said.split() == ["here", "completed"], said


def test_ctrl_c_leaves_the_session_paused(tmp_path):
    text = """
try:
    k.run()
except KeyboardInterrupt as error:
    print(k.status, k.driver.runner.flow.at_boundary, error)
"""
    process = script(text, tmp_path)
    heard(process, "here")
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 0 and "running True stopped on a step boundary" in said, said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_the_second_signal_ends_at_once(tmp_path, number, code):
    text = """
def hang(item):
    if item.name == "train.step" and item.step == 4:
        print("inside", flush=True)  # a signal before this would end the run on an earlier step
        while not k.driver.control.pause_wanted:
            time.sleep(0.001)
        print("asked", flush=True)
        threading.Event().wait()
k.driver.listeners.append(hang)
signal.signal(signal.SIGINT, signal.default_int_handler)
k.run()
"""
    process = script(text, tmp_path)
    heard(process, "inside")
    process.send_signal(number)
    heard(process, "asked")
    process.send_signal(number)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:  # Python drops what a handler raises while a destructor runs: one presses again
        process.send_signal(number)
    assert ended(process)[0] == code
    assert Run(tmp_path / "run").status == "interrupted", "broken off inside a step"


def test_the_second_sigterm_ends_at_once_in_the_background_too(tmp_path):
    text = """
def hang(item):
    if item.name == "train.step" and item.step == 4:
        print("inside", flush=True)  # a signal before this would end the run on an earlier step
        while not k.driver.control.pause_wanted:
            time.sleep(0.001)
        print("asked", flush=True)
        threading.Event().wait()
k.driver.listeners.append(hang)
k.run(wait=False)
threading.Event().wait()
"""
    process = script(text, tmp_path)
    heard(process, "inside")
    process.send_signal(signal.SIGTERM)
    heard(process, "asked")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert Run(tmp_path / "run").status == "interrupted"


def test_sigterm_where_nothing_runs_is_the_systems(tmp_path):
    process = script("k.run(until=3); print('stands', flush=True); threading.Event().wait()", tmp_path)
    heard(process, "stands")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == -signal.SIGTERM


def test_a_handler_of_ones_own_is_kept(tmp_path):
    text = "signal.signal(signal.SIGTERM, lambda *_: os._exit(7)); k.run()"
    process = script(text, tmp_path)
    heard(process, "here")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 7


# -- commands ----------------------------------------------------------------------------------------


def command(*words, **about):
    """A command of kitchen in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", "from kitchen.cli.main import main; main(prog_name='kitchen')", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **about,
    )  # fmt: skip


def logged(process, log, start=0):
    """Wait until a process has written an optimizer step to a log, after so many bytes; fails if it ends before."""
    words = ["tail", "-F", "-c", f"+{start + 1}", f"--pid={process.pid}", str(log)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as tail:
        found = any('"train.step"' in line for line in tail.stdout)
        tail.terminate()
    assert found, ended(process)


@pytest.mark.parametrize(("number", "code", "reason"), [(signal.SIGTERM, 143, "SIGTERM")])
def test_cook_ends_with_a_snapshot_and_a_report(tmp_path, number, code, reason):
    cells = [
        "from kitchen.session.kitchen import Kitchen",
        f"k = Kitchen('sft', **{LONG})\nprint('what there is')",
        "k.run()",
        "print('not reached')",
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata=kernel), tmp_path / "own.ipynb")
    process = command("cook", tmp_path / "own.ipynb", "-q", "--out", tmp_path / "run")
    logged(process, tmp_path / "run" / "events.jsonl")
    process.send_signal(number)
    found, said = ended(process)
    assert found == code and "own was stopped" in said and "kitchen resume" in said and "Traceback" not in said, said
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'class="banner stopped' in page and "what there is" in page and reason in page
    assert_stopped(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130)])
def test_resume_and_reproduce_end_on_a_boundary(tmp_path, number, code):
    settings = {**LONG, "epochs": 500}
    with Kitchen("sft", run_dir=tmp_path / "first", **settings) as k:
        k.run(until=2)
    size = (tmp_path / "first" / "events.jsonl").stat().st_size
    process = command("resume", tmp_path / "first", "-q")
    logged(process, tmp_path / "first" / "events.jsonl", size)
    process.send_signal(number)
    found, said = ended(process)
    assert found == code and "was stopped" in said and "kitchen resume" in said and "Traceback" not in said, said
    assert Run(tmp_path / "first").status == "stopped"
    with Kitchen.open(tmp_path / "first") as k:
        k.run()
    again = command("reproduce", tmp_path / "first", "-q", "--out", tmp_path / "run")
    logged(again, tmp_path / "run" / "events.jsonl")
    again.send_signal(number)
    found, said = ended(again)
    assert found == code and "was stopped on a step boundary" in said and "Traceback" not in said, said
    run = Run(tmp_path / "run")
    assert run.status == "stopped" and SnapshotFolder(run).paths()
