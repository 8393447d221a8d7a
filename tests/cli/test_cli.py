"""The command line: what is wrong is said before anything starts; what fails is marked as failed; what works leaves a report."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook
from waiting import LONGEST, until

from kitchen.cli.main import main
from kitchen.recipes.registry import get_recipe
from kitchen.recipes.reproduce import _RESULT_EVENTS
from kitchen.reports.build import read_manifest
from kitchen.reports.export import find_browser
from kitchen.session.kitchen import Kitchen
from kitchen.store.index import RunIndex
from kitchen.store.log import EventLog
from kitchen.store.run import Run
from kitchen.telemetry import event_content

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 1, "batch_size": 16,
    "held_out": 8, "graded": 4, "max_tokens": 8,
}  # fmt: skip
PAIRS = [word for name, value in TINY.items() for word in ("-p", name, str(value))]
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def kitchen(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def started(*words, **options):
    """`kitchen` as a process of its own, as a person starts it."""
    code = "from kitchen.cli.main import main; main(prog_name='kitchen')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def own_notebook(path, *sources):
    """A notebook of one's own; the first source is its parameters cell."""
    cells = [new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    return path


@pytest.fixture
def cooked(runs):
    """One real cook, in a kernel."""
    done = kitchen("cook", "sft", *PAIRS, "--learning-rate", "2e-3", "--out", runs / "one")
    assert done.exit_code == 0, done.output
    return runs / "one", done


def test_a_cook_leaves_a_whole_run(cooked):
    path, done = cooked
    assert {"spec.json", "events.jsonl", "artifacts", "report.ipynb", "report.html"} <= {
        item.name for item in path.iterdir()
    }
    assert not list(path.glob("*unfinished*")) and not (path / "kernel.log").exists()
    run = Run(path)
    assert (
        run.status == "completed"
        and run.verify() == []
        and EventLog.verify(path / "events.jsonl") == len(run.log.events)
    )
    assert run.spec.config["learning_rate"] == 2e-3 and run.spec.config["epochs"] == 1
    assert read_manifest(path / "report.ipynb")["spec"]["config"] == run.spec.config
    assert f"run       {path}" in done.output and "accuracy" in done.output and "held-out loss" in done.output
    assert re.search(r"✓ train\b", done.stderr) and "WARN" not in done.stderr and "Traceback" not in done.output
    page, notebook = (
        (path / "report.html").read_text(encoding="utf-8"),
        (path / "report.ipynb").read_text(encoding="utf-8"),
    )
    assert 'class="banner' not in page and page.count('class="figure"') == 3
    assert len(notebook) < 300_000 and str(ROOT) not in notebook.replace(str(path), "")
    run.close()

    assert kitchen("verify", path).exit_code == 0
    assert "completed" in kitchen("runs").output and RunIndex(path.parent).find("latest") == path
    again = kitchen("report", path, "--html", path.parent / "again.html")
    assert again.exit_code == 0 and (path.parent / "again.html").read_text(encoding="utf-8") == page
    (path / "report.ipynb").unlink()
    assert kitchen("report", "latest", "--hide-code").exit_code == 0, "from the log alone"
    wrong = kitchen("cook", "sft", *PAIRS, "--out", path)
    assert wrong.exit_code == 2 and "holds a run already" in wrong.output


def test_results_go_into_a_paper(runs, monkeypatch):
    for name, rate in (("a_b", 2e-3), ("c", 1e-3)):
        with Kitchen("sft", run_dir=runs / name, learning_rate=rate, **TINY) as k:
            k.run()
    alone = kitchen("report", "a_b", "--latex", "--caption", "50% & more")
    assert alone.exit_code == 0 and r"\caption{50\% \& more}" in alone.output and r"\toprule" in alone.output
    assert "exact\\_match" in alone.output and not (runs / "a_b" / "report.html").exists(), "only the table"
    both = kitchen("report", "a_b", "c", "--markdown")
    assert both.exit_code == 0 and r"| measure | a\_b | c |" in both.output and "**" in both.output
    assert kitchen("report", "a_b", "c").exit_code == 2
    assert "a_b" in kitchen("runs", "--find", "a_b").output and "c  " not in kitchen("runs", "--find", "a_b").output
    assert kitchen("runs", "--status", "complet").exit_code == 2
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("KITCHEN_CHROMIUM", raising=False)
    missing = kitchen("report", "c", "--pdf")
    assert missing.exit_code == 1 and "install Chromium" in missing.output and (runs / "c" / "report.html").is_file()


@pytest.mark.skipif(find_browser() is None, reason="no Chromium, Chrome or Edge here")
def test_a_report_is_printed(runs):
    with Kitchen("sft", run_dir=runs / "one", **TINY) as k:
        k.run()
    done = kitchen("report", "one", "--pdf")
    assert done.exit_code == 0, done.output
    printed = (runs / "one" / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and len(printed) > 20_000 and not list((runs / "one").glob(".*unfinished*"))


def test_the_lab_works_on_copies(tmp_path):
    process = started("lab", "--folder", tmp_path / "mine", "--no-browser", "--version")
    printed, said = process.communicate(timeout=LONGEST)
    assert process.returncode == 0 and re.match(r"\d+\.\d+", printed), said
    assert "sft.ipynb" in said and (tmp_path / "mine" / "sft.ipynb").is_file()
    (tmp_path / "mine" / "sft.ipynb").write_text("mine")
    without = (
        "import sys; sys.modules['jupyterlab'] = None; from kitchen.cli.main import main; main(prog_name='kitchen')"
    )
    done = subprocess.run(
        [sys.executable, "-c", without, "lab", "--folder", str(tmp_path / "mine")], capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert (
        done.returncode == 1
        and "pip install 'crucible-kitchen[lab]'" in done.stderr
        and "kept as you left it" in done.stderr
    )
    assert (tmp_path / "mine" / "sft.ipynb").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cok", "sft"), "did you mean 'cook'"),
        (("cook", "stf"), "unknown recipe 'stf'; did you mean 'sft'"),
        (("cook", "sft", "-p", "lerning_rate", "1"), "did you mean 'learning_rate'"),
        (("cook", "sft", "--lerning-rate", "1"), "--learning-rate"),
        (("cook", "sft", "-p", "epochs", "three"), "epochs = 'three'"),
        (("cook", "sft", "-p", "learning_rate", "0"), "learning_rate = "),
        (("cook", "sft", "-p", "learning_rate", "-1e-4"), "learning_rate = "),
        (("cook", "sft", "-p", "backend", "tory"), "did you mean 'toy'"),
        (("cook", "sft", "-p", "schedule", "consine"), "did you mean 'cosine'"),
        (("cook", "sft", "-f", "missing.yaml"), "there is no file missing.yaml"),
        (("cook", "missing.ipynb"), "there is no such notebook"),
        (("describe", "stf"), "did you mean 'sft'"),
        (("verify", "nothing"), "there are no runs"),
        (("report", "nothing"), "there are no runs"),
    ],
)
def test_a_wrong_request_starts_nothing(runs, words, message):
    done = kitchen(*words)
    assert done.exit_code == 2 and message in done.output and "Traceback" not in done.output
    assert not runs.exists(), "nothing was made"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"messages": ['], r"chats\.jsonl, row 1"),
        ([], "chats.jsonl"),
        ([{"messages": [{"role": "user", "content": "a"}]}], r"chats\.jsonl, row 1"),
    ],
)
def test_a_failing_cook_says_why_and_is_marked(runs, chats, rows, message):
    done = kitchen("cook", "sft", *PAIRS, "--dataset", f"file:{chats(rows)}", "--quiet", "--out", runs / "bad")
    assert done.exit_code == 1 and re.search(rf"kitchen: sft failed in stage 'load': .*{message}", done.output)
    assert "Traceback" not in done.output and len(done.output.splitlines()) <= 3
    run = Run(runs / "bad")
    assert run.status == "failed" and RunIndex(runs).rows()[0]["status"] == "failed" and run.artifacts() == []
    page = (runs / "bad" / "report.html").read_text(encoding="utf-8")
    assert page.index('class="banner failed"') < page.index("<h1")
    assert nbformat.read(runs / "bad" / "report.ipynb", 4).metadata.kitchen.status == "failed"
    run.close()


def test_a_notebook_of_ones_own(tmp_path):
    path = own_notebook(
        tmp_path / "own.ipynb",
        "count: int = 1\nrate: float = 0.1\nwords: list = []\nflag: bool = True\nday = ''",
        "import json; print(json.dumps([count, rate, words, flag, day]))",
    )
    words = [
        "-f",
        tmp_path / "given.yaml",
        "-p",
        "count",
        "6",
        "-p",
        "flag",
        "false",
        "--words",
        "[a, 1]",
        "--count",
        "7",
    ]
    (tmp_path / "given.yaml").write_text("day: 2024-02-03\ncount: 5\nrate: 1e-3\n")
    done = kitchen("cook", path, *words, "--out", tmp_path / "run")
    assert done.exit_code == 2 and "day" in done.output, "YAML's date is not text"
    (tmp_path / "given.yaml").write_text("day: '2024-02-03'\ncount: 5\nrate: 1e-3\n")
    done = kitchen("cook", path, *words, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    printed = nbformat.read(tmp_path / "run" / "report.ipynb", 4).cells[-1].outputs[0].text
    assert json.loads(printed) == [7, 1e-3, ["a", 1], False, "2024-02-03"]
    for words, message in [
        (("-p", "cuont", "1"), "did you mean 'count'"),
        (("--count", "1.5"), "must be of type integer"),
    ]:
        wrong = kitchen("validate", path, *words)
        assert wrong.exit_code == 2 and message in wrong.output


def test_a_kernel_that_dies_is_not_a_success(tmp_path):
    path = own_notebook(
        tmp_path / "own.ipynb", "a = 1", "import os, sys; sys.__stderr__.write('Killed here\\n'); os._exit(9)"
    )
    done = kitchen("cook", path, "--out", tmp_path / "run")
    assert done.exit_code == 1 and "the kernel died" in done.output and "Killed here" in done.output
    assert 'class="banner failed' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_failing_cell_is_named(tmp_path):
    path = own_notebook(tmp_path / "own.ipynb", "a = 1", "print('before')", "raise KeyError('<b>')")
    done = kitchen("cook", path, "--out", tmp_path / "run")
    assert done.exit_code == 1 and "own failed in cell 3: KeyError: '<b>'" in done.output
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "before" in page and "&lt;b&gt;" in page


def test_ctrl_c_stops_the_kernel_and_marks_the_run(tmp_path):
    settings = {**TINY, "epochs": 100_000}
    pairs = [word for name, value in settings.items() for word in ("-p", name, value)]
    process = started("cook", "sft", *pairs, "--out", tmp_path / "run")
    log = tmp_path / "run" / "events.jsonl"
    until(lambda: log.exists() and '"train.step"' in log.read_text(), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LONGEST)
    assert process.returncode == 130 and "sft was stopped" in said and "Traceback" not in said, said
    run = Run(tmp_path / "run")
    assert run.status == "stopped" and run.verify() == [] and RunIndex(tmp_path).rows()[0]["status"] == "stopped"
    assert 'class="banner stopped' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not run.log.has_writer, "nobody is training any more"
    run.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = kitchen("cook", "sft", *PAIRS, "--out", tmp_path / "file" / "run")
    assert done.exit_code == 2 and str(tmp_path / "file") in done.output and "Traceback" not in done.output


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path):
    import resource

    limit = 1_000_000  # bytes a file may have: the log fits, the report does not
    process = started(
        "cook", "sft", *PAIRS, "--out", tmp_path / "run",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    printed, said = process.communicate(timeout=LONGEST)
    assert process.returncode == 1 and "writing this down" in said and "Traceback" not in said, said
    assert "report" not in printed and not list((tmp_path / "run").glob("*report.html*"))


def test_help_is_instant():
    code = "import sys; from kitchen.cli.main import main; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    heavy = {"numpy", "pydantic", "yaml", "torch", "papermill", "nbconvert", "plotly", "rich"}
    assert not heavy & set(loaded)


def test_describe_shows_the_settings_that_a_run_begins_with():
    begun = get_recipe("sft").config()
    settings = kitchen("describe", "sft").output.partition("\nsettings\n")[2]
    rows = {name: default for name, _, default, *_ in map(str.split, settings.splitlines())}
    for name in ("learning_rate", "lora_rank", "lora_alpha"):  # the embedded model has its own
        assert rows[name] == repr(getattr(begun, name))


def test_debug_shows_the_traceback():
    for words in (("--debug", "describe", "stf"), ("cook", "sft", "-p", "epochs", "0", "--debug")):
        done = kitchen(*words)
        assert done.exception is not None and not isinstance(done.exception, SystemExit)


def standing(run_dir):
    return [event_content(item) for item in Run(run_dir).log.active_events if item.name in _RESULT_EVENTS]


def test_a_killed_cook_goes_on_where_it_stopped(tmp_path):
    settings = {**TINY, "epochs": 60, "snapshot_every": 5}
    pairs = [str(word) for name, value in settings.items() for word in ("-p", name, value)]
    process = started("cook", "sft", *pairs, "--out", tmp_path / "run", start_new_session=True)
    log = tmp_path / "run" / "events.jsonl"
    until(lambda: log.exists() and log.read_text().count('"snapshot.save"') > 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LONGEST)
    killed_at = len(Run(tmp_path / "run").log.events)
    until(lambda: not Run(tmp_path / "run").log.has_writer)  # the kernel notices that its parent is gone
    assert Run(tmp_path / "run").status == "interrupted"
    done = kitchen("cook", "sft", "--resume", tmp_path / "run", "--quiet")
    assert done.exit_code == 0, done.output
    run = Run(tmp_path / "run")
    loads = [item for item in run.log.events if item.name == "stage.start" and item["stage"] == "load"]
    assert len(loads) == 1 and run.status == "completed" and run.verify() == [], "what was done is not done again"
    assert len(run.log.events) > killed_at and (tmp_path / "run" / "report.html").is_file()
    whole = kitchen("cook", "sft", *pairs, "--out", tmp_path / "whole", "--quiet")
    assert whole.exit_code == 0 and standing(tmp_path / "run") == standing(tmp_path / "whole")
    again = kitchen("reproduce", tmp_path / "run" / "report.ipynb", "--quiet", "--out", tmp_path / "again")
    assert again.exit_code == 0 and "bit for bit" in again.output, again.output


def test_a_resumed_cook_runs_only_what_a_new_setting_concerns(tmp_path):
    assert kitchen("cook", "sft", *PAIRS, "--out", tmp_path / "run", "--quiet").exit_code == 0
    before = len(Run(tmp_path / "run").log.events)
    done = kitchen("cook", "sft", "--resume", tmp_path / "run", "--metric", "contains", "--quiet")
    assert done.exit_code == 0, done.output
    later = Run(tmp_path / "run").log.events[before:]
    begun = [item["stage"] for item in later if item.name == "stage.start"]
    assert begun[0] == "baseline" and "load" not in begun and "open" not in begun and begun[-1] == "report"
    nothing = kitchen("cook", "sft", "--resume", tmp_path / "run", "--quiet")
    assert nothing.exit_code == 0
    assert not [
        item for item in Run(tmp_path / "run").log.events[before + len(later) :] if item.name == "stage.start"
    ]


def test_a_run_that_is_being_written_is_not_resumed(tmp_path):
    with Kitchen("sft", run_dir=tmp_path / "run", **TINY) as k:
        k.run(until=2)
        for words in (("resume", k.run_dir), ("cook", "sft", "--resume", k.run_dir)):
            done = kitchen(*words)
            assert done.exit_code == 2, done.output
        assert "is being written by another session" in kitchen("resume", k.run_dir).output
        (k.run_dir / "order.json").write_text('{"name": "sft", "notebook": "", "values": {}}')
        done = kitchen("cook", "sft", "--resume", k.run_dir)
        assert done.exit_code == 2 and "is being written by another session" in done.output


def test_a_drifted_run_is_not_reproduced(tmp_path):
    assert kitchen("cook", "sft", *PAIRS, "--out", tmp_path / "run", "--quiet").exit_code == 0
    path = tmp_path / "run" / "report.ipynb"
    text = path.read_text(encoding="utf-8")
    loss = json.loads(text)  # a number in the manifest is another than was measured
    for cell in loss["cells"]:
        for output in cell.get("outputs", []):
            found = output.get("data", {}).get("application/vnd.kitchen.manifest+json")
            if found:
                found["curves"]["train.step.loss"][-1] += 1e-9
    path.write_text(json.dumps(loss), encoding="utf-8")
    done = kitchen("reproduce", path, "--quiet", "--out", tmp_path / "again")
    assert done.exit_code == 1 and "DIFFERS" in done.output and "is not reproduced: 1 lines differ" in done.output


def test_verify_names_a_damaged_snapshot(tmp_path):
    assert kitchen("cook", "sft", *PAIRS, "--out", tmp_path / "run", "--quiet").exit_code == 0
    assert kitchen("verify", tmp_path / "run").exit_code == 0
    objects = (tmp_path / "run" / "snapshots" / "objects").glob("*/*")
    damaged = max(objects, key=lambda path: path.stat().st_size)
    content_before = damaged.read_bytes()
    damaged.write_bytes(content_before[:-1] + bytes([content_before[-1] ^ 1]))
    done = kitchen("verify", tmp_path / "run")
    assert done.exit_code == 1 and damaged.name in done.output and "snapshot" in done.output
