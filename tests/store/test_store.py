"""Faults of the disk and of processes: what is on it is whole or absent, and an alteration is found."""

import json
import multiprocessing
import os
import signal
import time
from functools import partial

import pytest

from kitchen.config import ExperimentSpec
from kitchen.reports.build import write_report
from kitchen.reports.export import find_browser, to_pdf
from kitchen.store.files import is_sealed, write_atomically
from kitchen.store.index import RunIndex
from kitchen.store.log import EventLog
from kitchen.store.run import Run
from kitchen.telemetry import event
from kitchen.types import DamagedData, InvalidValue


def write_for_ever(path):
    log = EventLog(path)
    for step in range(10**9):
        log.append(event("train.step", step=step, loss=1.0))


@pytest.mark.parametrize("wait", [0.02, 0.05, 0.1])
def test_a_killed_writer_leaves_a_valid_chain(tmp_path, wait):
    path = tmp_path / "events.jsonl"
    writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(path,))
    writer.start()
    while not path.exists() or path.stat().st_size == 0:
        time.sleep(0.005)
    time.sleep(wait)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    with path.open("ab") as file:
        file.write(b'{"sequence":99')  # as a kill in the middle of a write leaves it
    log = EventLog(path)
    count = len(log.events)
    assert count and [item.step for item in log.events] == list(range(count))
    log.append(event("train.stop", steps=count))
    log.close()
    assert EventLog.verify(path) == count + 2 and log.events[count].name == "log.repair"


@pytest.mark.parametrize("change", ["edit", "remove", "swap", "insert", "cut"])
def test_every_alteration_of_the_log_is_found(tmp_path, change):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for step in range(5):
        log.append(event("train.step", step=step, loss=step / 2))
    log.close()
    lines = path.read_text().splitlines(keepends=True)
    altered = {
        "edit": [*lines[:2], lines[2].replace('"loss":1.0', '"loss":0.9'), *lines[3:]],
        "remove": [*lines[:2], *lines[3:]],
        "swap": [lines[0], lines[2], lines[1], *lines[3:]],
        "insert": [*lines[:3], lines[1], *lines[3:]],
        "cut": [*lines[:4], lines[4][:-10]],
    }[change]
    assert altered != lines
    path.write_text("".join(altered))
    with pytest.raises(DamagedData, match="line [2-5]"):
        EventLog.verify(path)


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path):
    run = Run.create(ExperimentSpec(recipe="sft"), tmp_path / "run")

    def no_space(path):
        path.mkdir()
        (path / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run.save_artifact("adapter", "adapter", no_space)
    assert (
        list((tmp_path / "run" / "artifacts").iterdir()) == []
        and run.artifacts() == []
        and run.verify() == []
    )


def test_what_was_there_survives_a_failed_rewrite(tmp_path):
    path = write_atomically(tmp_path / "results.json", lambda file: file.write_text("[1]"))
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, lambda file: file.write_text(str(1 / 0)))
    assert path.read_text() == "[1]" and list(tmp_path.iterdir()) == [path]


def test_the_index_can_be_thrown_away(tmp_path):
    for number in range(3):
        run = Run.create(ExperimentSpec(recipe="sft", config={"n": number}), tmp_path / f"run-{number}")
        RunIndex(tmp_path).put(run)
        run.close()
    rows = RunIndex(tmp_path).rows()
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    index = RunIndex(tmp_path)
    assert index.rebuild() == 3 and {row["run_id"]: json.loads(row["config"]) for row in index.rows()} == {
        row["run_id"]: json.loads(row["config"]) for row in rows
    }


def test_a_missing_artifact_is_named(tmp_path):
    run = Run.create(ExperimentSpec(recipe="sft"), tmp_path / "run")
    made = run.save_artifact("a.json", "table", lambda path: path.write_text("1"))
    made.path.unlink()
    assert run.verify() == [f"{made.path}: missing"]


@pytest.mark.parametrize("kind", ["folder", "empty folder", "link to a file", "link to a folder", "link to nothing"])
def test_what_kitchen_did_not_make_is_never_replaced(tmp_path, kind):
    mine, path = tmp_path / "mine", tmp_path / "thesis"
    (mine / "chapters").mkdir(parents=True)
    (mine / "chapters" / "one.txt").write_text("years of work")
    if kind == "folder":
        mine.rename(path)
    elif kind == "empty folder":
        path.mkdir()
    else:
        path.symlink_to({"file": mine / "chapters" / "one.txt", "folder": mine, "nothing": tmp_path / "no"}[kind.split()[-1]])
    with pytest.raises(InvalidValue, match="is a (folder|link)"):
        write_atomically(path, lambda file: pytest.fail("refused before any work"))
    assert path.is_dir() if "folder" in kind else path.is_symlink()
    assert [item.read_text() for item in tmp_path.rglob("one.txt")] == ["years of work"]


def test_a_report_written_onto_a_folder_leaves_the_folder(tmp_path):
    from kitchen import Kitchen

    with Kitchen("sft", backend="toy", dataset="builtin:sort[:32]", batch_size=8, held_out=2, graded=2, max_tokens=4) as k:
        k.step()
        (folder := tmp_path / "thesis").mkdir()
        (folder / "one.txt").write_text("years of work")
        with pytest.raises(InvalidValue, match="is a folder"):
            k.report(folder)
    assert (folder / "one.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["report.html", "report.ipynb", "report.pdf"])
@pytest.mark.parametrize("whose", ["somebody's", "kitchen's, with notes", "kitchen's"])
def test_only_a_report_that_nobody_changed_is_replaced(tmp_path, name, whose):
    if name.endswith(".pdf") and find_browser() is None:
        pytest.skip("no browser to print with")
    made = Run.create(ExperimentSpec(recipe="sft"), tmp_path / "run")
    write = partial(write_report, made)
    if name.endswith(".pdf"):
        page = write(tmp_path / "page.html")
        write = partial(to_pdf, page)
    path = tmp_path / name
    if whose == "somebody's":
        path.write_bytes(b"years of work")
    else:
        write(path)
        assert is_sealed(path)
    if whose == "kitchen's, with notes":
        path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
    before = path.read_bytes()
    if whose == "kitchen's":
        made.log.append(event("run.stop", status="completed", seconds=1.0))
        write(path)
        assert is_sealed(path)
    else:
        with pytest.raises(InvalidValue, match="is there already, and is not as kitchen wrote it; it is left alone"):
            write(path)
        assert path.read_bytes() == before
    assert not [item.name for item in tmp_path.iterdir() if "unfinished" in item.name]


def test_a_run_whose_process_died_between_log_and_spec_is_gone_on_with(tmp_path):
    """The log knows the new spec, the file holds the one before: whoever writes next writes the file first, and is found in order."""
    run = Run.create(ExperimentSpec(recipe="sft", config={"a": 1}), tmp_path / "r")
    before = (run.path / "spec.json").read_bytes()
    run.update_spec(datasets={"d#train": "0"})
    run.log.close()
    (run.path / "spec.json").write_bytes(before)
    taken = Run(run.path).claim()
    taken.log.append(event("run.stop", status="stopped"))
    taken.log.close()
    assert Run(run.path).spec.datasets == {"d#train": "0"}
    assert json.loads((run.path / "spec.json").read_text())["datasets"] == {"d#train": "0"}
