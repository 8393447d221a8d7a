"""The machine around a run: folders that cannot be used, file systems that lack something, moved folders, modes, `-OO`, memory."""

import contextlib
import errno
import gc
import os
import sqlite3
import stat
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest

from kitchen.cli import cook
from kitchen.cli.parameters import make_request
from kitchen.session import driver
from kitchen.session.kitchen import Kitchen
from kitchen.store import files
from kitchen.store.events import PackedEvents
from kitchen.store.files import FolderMoved, make_folder, write_atomically
from kitchen.store.index import RunIndex
from kitchen.store.log import EventLog, RunBusy, has_writer
from kitchen.store.run import Run, runs_root
from kitchen.telemetry import event
from kitchen.types import InvalidValue

pytestmark = pytest.mark.whole_run

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"backend": "toy", "dataset": "builtin:sort[:32]", "batch_size": 4, "held_out": 4, "graded": 1, "max_tokens": 4}


def never(*values: object, **named: object) -> None:
    """In the place of what must not be begun."""
    raise AssertionError("a model was loaded, or a kernel started")


# -- places ------------------------------------------------------------------------------------


def below_a_file(folder: Path) -> Path:
    """A place under a file."""
    (folder / "file").write_text("mine")
    return folder / "file" / "runs"


def a_dangling_link(folder: Path) -> Path:
    """A link to nothing."""
    (folder / "link").symlink_to(folder / "gone")
    return folder / "link"


def a_circle(folder: Path) -> Path:
    """A link to itself."""
    (folder / "circle").symlink_to(folder / "circle")
    return folder / "circle" / "runs"


def a_pipe(folder: Path) -> Path:
    """A named pipe."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


WRONG_PLACES = {
    "below a file": (below_a_file, "file is no folder"),
    "a dangling link": (a_dangling_link, "is a link to .*gone, which is not there"),
    "below a circle": (a_circle, "circle"),
    "a pipe": (a_pipe, "pipe is no folder"),
    "a device": (lambda folder: Path("/dev/full"), "/dev/full is no folder"),
    "where the system makes none": (lambda folder: Path("/proc/runs"), "lets no folder be made"),
    "a long name": (lambda folder: folder / "new" / ("n" * 300), "its name is too long"),
    "a long path": (lambda folder: folder / "/".join(["n" * 100] * 45), "its name is too long"),
}


@pytest.fixture(params=WRONG_PLACES)
def wrong_place(request, tmp_path):
    """A place where no run can be, and what is to be said of it."""
    make, words = WRONG_PLACES[request.param]
    return make(tmp_path), words


def listing(folder: Path) -> list[str]:
    """All that is in a folder."""
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("how", ["KITCHEN_RUNS", "KITCHEN_RUN_DIR", "run_dir"])
def test_a_wrong_place_is_found_before_anything_is_loaded(wrong_place, how, tmp_path, monkeypatch):
    place, words = wrong_place
    monkeypatch.setattr(driver, "initial_values", never)
    monkeypatch.setattr("kitchen.recipes.plan.initial_values", never)
    if how != "run_dir":
        monkeypatch.setenv(how, str(place))
    before = listing(tmp_path)
    for ask in (lambda k: k.run(), lambda k: k.step(), lambda k: k.plan(), lambda k: k.run(wait=False)):
        k = Kitchen("sft", **SMALL, run_dir=place if how == "run_dir" else None)
        with pytest.raises(InvalidValue, match=words) as caught:
            ask(k)
        assert "name a folder that can be written" in str(caught.value) and str(place)[:40] in str(caught.value)
        assert k.status == "new"
    assert listing(tmp_path) == before, "nothing half-made stays"


@pytest.mark.parametrize("how", ["KITCHEN_RUNS", "--out"])
def test_cook_finds_a_wrong_place_before_a_kernel_is_started(wrong_place, how, tmp_path, monkeypatch):
    place, words = wrong_place
    monkeypatch.setattr(cook, "execute_notebook", never)
    if how == "KITCHEN_RUNS":
        monkeypatch.setenv(how, str(place))
    before = listing(tmp_path)
    with pytest.raises(InvalidValue, match=words):
        cook._cook(make_request("sft", {}), out=place if how == "--out" else None, quiet=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("number, words", [
    (errno.EACCES, "this user may not write there"), (errno.EROFS, "read only"), (errno.ENOSPC, "the disk is full"),
    (errno.EDQUOT, "quota"), (errno.EPERM, "may not write"), (errno.EIO, "Input/output error"),
])  # fmt: skip
def test_a_folder_that_is_there_and_cannot_be_written(number, words, tmp_path, monkeypatch):
    place, real = tmp_path / "runs", os.open
    place.mkdir()

    def refuse(path, flags, *values, **named):
        if flags & os.O_CREAT and str(path).startswith(str(place)):
            raise OSError(number, os.strerror(number))
        return real(path, flags, *values, **named)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(driver, "initial_values", never)
    monkeypatch.setenv("KITCHEN_RUNS", str(place))
    with pytest.raises(InvalidValue, match=words):
        Kitchen("sft", **SMALL).run()
    assert listing(place) == []


def test_reproduce_and_fork_find_a_wrong_place_before_anything_is_loaded(tmp_path, monkeypatch):
    from kitchen.recipes import reproduce

    with Kitchen("sft", **SMALL, run_dir=tmp_path / "run") as k:
        k.run()
        with pytest.raises(InvalidValue, match="no folder"):
            k.fork(run_dir=tmp_path / "run" / "spec.json" / "fork")
    recorded = reproduce.manifest(Run(tmp_path / "run"))
    monkeypatch.setattr(reproduce, "initial_values", never)
    with pytest.raises(InvalidValue, match="no folder"):
        reproduce.reproduce(recorded, tmp_path / "run" / "spec.json" / "again")


def test_a_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KITCHEN_RUNS", "~/runs")
    assert runs_root() == tmp_path / "runs"


# -- file systems ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_has_one_writer_all_the_same(number, tmp_path, monkeypatch):
    import fcntl

    def refuse(*values):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    files.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no locks") as said:
        k = Kitchen("sft", **SMALL, run_dir=tmp_path / "run")
        k.run(until=3)
    assert len([one for one in said if "no locks" in str(one.message)]) == 1, "said once"
    assert has_writer(tmp_path / "run")
    with pytest.raises(RunBusy):
        Run(tmp_path / "run").claim()
    k.fork(run_dir=tmp_path / "fork").run(until=4)
    k.close()
    assert not has_writer(tmp_path / "run") and not (tmp_path / "run" / "lock.owner").exists()
    with Kitchen.open(tmp_path / "run") as again:
        assert again.run().status == "completed"
    assert Run(tmp_path / "run").verify() == []


def test_without_locks_a_run_whose_writer_died_is_gone_on_with(tmp_path, monkeypatch):
    import fcntl

    code = f"""
import fcntl, os, errno
def refuse(*values): raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = refuse
from kitchen.session.kitchen import Kitchen
k = Kitchen("sft", **{SMALL!r}, run_dir={str(tmp_path / "run")!r})
k.run(until=3)
k.snapshot()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert (tmp_path / "run" / "lock.owner").exists() and not has_writer(tmp_path / "run")

    def refuse(*values):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Kitchen.open(tmp_path / "run") as again:
            assert again.driver.last_step.step == 3 and again.run().status == "completed"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_without_fsync_runs_go_on_and_it_is_said_once(number, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    files.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no fsync") as said:
        with Kitchen("sft", **SMALL, run_dir=tmp_path / "run") as k:
            k.run(until=3)
        with Kitchen.open(tmp_path / "run") as again:
            assert again.run().status == "completed"
    assert len([one for one in said if "no fsync" in str(one.message)]) == 1
    assert Run(tmp_path / "run").verify() == []


def test_an_fsync_that_fails_is_no_missing_fsync(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "file", lambda path: path.write_text("x"))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK])
def test_without_hard_links_a_fork_has_copies(number, tmp_path, monkeypatch):
    def refuse(*values, **named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with Kitchen("sft", **SMALL, run_dir=tmp_path / "run") as k:
        k.run(until=3)
        k.fork(run_dir=tmp_path / "fork").run().close()
    assert Run(tmp_path / "fork").verify() == []


class WithoutWal(sqlite3.Connection):
    """A database on a file system without shared memory."""

    def execute(self, words, *values):
        if "WAL" in words:
            raise sqlite3.OperationalError("locking protocol")
        return super().execute(words, *values)


def test_without_shared_memory_the_index_has_another_journal(tmp_path, monkeypatch):
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *values, **named: real(*values, **named, factory=WithoutWal))
    with Kitchen("sft", **SMALL, run_dir=tmp_path / "run") as k:
        k.run()
    assert [row["status"] for row in RunIndex(tmp_path).rows()] == ["completed"]


def test_a_run_in_a_folder_that_cannot_be_written_is_looked_at(tmp_path, monkeypatch):
    with Kitchen("sft", **SMALL, run_dir=tmp_path / "run") as k:
        k.run(until=3)
    real = os.open

    def refuse(path, flags, *values, **named):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *values, **named)

    monkeypatch.setattr(os, "open", refuse)
    run = Run(tmp_path / "run")
    assert run.status == "stopped" and run.verify() == []
    with pytest.raises(InvalidValue, match="read only"):
        run.claim()


# -- moved while it runs -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["the run", "its parent"])
def test_a_run_that_is_moved_stops_once_and_goes_on_from_there(what, tmp_path):
    home, away = tmp_path / "runs", tmp_path / "moved"
    old = home / "run"
    k = Kitchen("sft", **SMALL, epochs=2, snapshot_every=2, run_dir=old)

    def move(item):
        if item.name == "train.step" and item.step == 5:
            os.rename(old if what == "the run" else home, away)

    k.driver.listeners.append(move)
    with pytest.raises(FolderMoved, match="was moved or removed while its run went on"):
        k.run()
    for ask in (k.snapshot, k.run, k.close, k.close):
        with contextlib.suppress(InvalidValue):  # of kitchen's own, whatever is asked of it now
            ask()
    assert not old.exists() and (what == "the run") == home.exists(), "nothing is made at the old path"
    new = away if what == "the run" else away / "run"
    told = EventLog(new / "events.jsonl")
    assert told.events == k.run_record.log.events, "no event is lost"
    assert [item.step for item in told.events.named("train.step")] == [1, 2, 3, 4, 5]
    assert [item["status"] for item in told.events.named("run.stop")] == ["failed"]
    with Kitchen.open(new) as again:
        assert again.driver.last_step.step in (2, 4), "the snapshot of step 4 may be under way when the folder goes"
        assert again.run().status == "completed"
    assert Run(new).verify() == []


def test_a_file_is_not_written_where_the_folder_was(tmp_path):
    run = tmp_path / "run"
    log = EventLog(run / "events.jsonl").claim()
    os.rename(run, tmp_path / "away")
    for place in ("report.html", "snapshots/objects/ab/cd"):
        with pytest.raises(FolderMoved):
            write_atomically(run / place, lambda path: path.write_text("x"))
    run.mkdir()  # somebody else's
    with pytest.raises(FolderMoved):
        write_atomically(run / "report.html", lambda path: path.write_text("x"))
    assert listing(run) == []
    log.close()
    assert write_atomically(run / "report.html", lambda path: path.write_text("x")).is_file(), "nobody holds it any more"


# -- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_that_leave_have_the_modes_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        with Kitchen("sft", **SMALL, run_dir=tmp_path / "run") as k:
            k.run()
            k.report(tmp_path / "report.html")

        def as_tempfile(path):
            path.mkdir(0o700)
            os.close(os.open(path / "secret", os.O_CREAT | os.O_WRONLY, 0o600))

        write_atomically(tmp_path / "exported", as_tempfile)
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if "pymp" not in path.name]
    wrong = {
        str(path.relative_to(tmp_path)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in made
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert len(made) > 10 and not {name: mode for name, mode in wrong.items() if "index.sqlite" not in name}


# -- python -OO ----------------------------------------------------------------------------------

COMMANDS = [
    ["list"], ["describe", "sft"], ["plan", "sft", "--backend", "toy"], ["verify", "runs/one"], ["report", "runs/one"], ["runs"], ["--help"],
    ["cook", "--help"],
]  # fmt: skip
WITHOUT_DOCSTRINGS = """
import contextlib, io, sys
from click.testing import CliRunner
from kitchen.cli.main import main
from kitchen.session.kitchen import Kitchen
assert False, "assertions are not carried out here"
from kitchen.envs.base import multiply
if multiply.description != "Multiply two whole numbers.":
    sys.exit("a tool is described otherwise")
with Kitchen("sft", **SETTINGS, run_dir="runs/one") as k:
    if k.plan(measure=False).recipe != "sft" or not repr(k):
        sys.exit("no plan")
    k.run()
for words in WORDS:
    done = CliRunner().invoke(main, words)
    if done.exit_code or not done.output.strip():
        sys.exit(f"{words}: {done.output} {done.exception!r}")
    if words == ["--help"] and "Recipes and adapters" not in done.output:
        sys.exit("the help says nothing: " + done.output)
"""


def test_without_assertions_and_docstrings(tmp_path):
    code = WITHOUT_DOCSTRINGS.replace("SETTINGS", repr(SMALL)).replace("in WORDS", f"in {COMMANDS!r}")
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "KITCHEN_RUNS": str(tmp_path / "runs")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# -- memory --------------------------------------------------------------------------------------


def test_a_long_log_takes_little_memory(tmp_path):
    log = EventLog(tmp_path / "events.jsonl").claim()

    def steps(first: int, last: int) -> None:
        for step in range(first, last):
            log.append(event("port.call", port="training", adapter="toy", verb="optim_step", status="ok", seconds=1 / (step + 1)))
            log.append(event("train.step", step=step, loss=1 / (step + 1), learning_rate=1e-3, grad_norm=0.5, examples=4, tokens=9))

    steps(0, 200)
    tracemalloc.start()
    steps(200, 2200)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    log.close()
    # two hashes, two places and shapes, ten numbers: 2 · (32 + 12) + 10 · 8 = 168 bytes a step, and what arrays keep in reserve; as objects 1,600
    assert held < 2000 * 300
    again = EventLog(tmp_path / "events.jsonl")
    assert again.events == log.events and list(again.heads) == list(log.heads)


def test_packed_events_are_what_came_in():
    odd = [
        event("train.step", step=1, loss=float("inf"), tokens=2**60, examples=True),
        event("train.step", step=None, loss=-0.0),
        event("config.edit", setting="a", before=1, after=True),
        event("config.edit", setting="a", before=1.0, after=1),
        event("config.edit", setting="a", before=1, after=True),
        event("state.edit", value="x", object="y", position=[1, 2]),
        event("data.set_aside", source="s", row="1", field="f", reason="r" * 1000),
    ]
    packed = PackedEvents(odd * 3)
    for place, item in enumerate(odd * 3):
        found = packed[place]
        assert (found.name, found.step, found.time) == (item.name, item.step, item.time)
        assert repr(found.measurements) == repr(item.measurements) and repr(found.metadata) == repr(item.metadata)


def test_folders_are_made_by_two_at_once(tmp_path, monkeypatch):
    real = os.mkdir

    def late(path, *values):
        real(path, *values)
        raise FileExistsError(errno.EEXIST, "somebody else was first")

    monkeypatch.setattr(os, "mkdir", late)
    assert make_folder(tmp_path / "a" / "b").is_dir()
