"""A run folder from somebody else is data: looking at it and going on with it executes nothing of it, and touches nothing outside.

Each attack leaves a canary if it succeeds: a file, or a word in what was written. What kitchen refuses in its own words is contained."""

import base64
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from forgery import resealed, rewritten

from kitchen.cli.main import main
from kitchen.engine.verification import verify_run
from kitchen.recipes.reproduce import manifest, reproduce
from kitchen.reports.build import read_manifest, write_report
from kitchen.reports.export import to_html
from kitchen.session.kitchen import Kitchen
from kitchen.store.index import RunIndex
from kitchen.store.log import EventLog
from kitchen.store.objects import decode_value
from kitchen.store.run import Run
from kitchen.store.trust import (
    NotTrusted,
    named_addresses,
    named_modules,
    named_variables,
    notebook_code_hash,
    require_trusted_settings,
)
from kitchen.telemetry import event
from kitchen.types import DamagedData, InvalidValue, KitchenError

pytestmark = pytest.mark.whole_run

SMALL = {
    "backend": "toy", "dataset": "builtin:sort[:32]", "batch_size": 8, "epochs": 1, "held_out": 4, "graded": 2, "max_tokens": 4,
    "snapshot_every": 2, "lora_rank": 2,
}  # fmt: skip
PLAYED = {
    "backend": "toy", "env": "nim", "problems": 4, "batch_size": 2, "group_size": 2, "graded": 2, "max_tokens": 4, "snapshot_every": 1,
    "lora_rank": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs as somebody else made them: stopped and completed, of sft and of rl_math."""
    root, found = tmp_path_factory.mktemp("made"), dict[str, Path]()
    for name, recipe, settings, until in (
        ("stopped", "sft", SMALL, 2), ("completed", "sft", SMALL, None), ("played", "rl_math", PLAYED, 1)
    ):  # fmt: skip
        k = Kitchen(recipe, run_dir=root / name, **settings)
        k.run(until=until)
        k.close()
        found[name] = root / name
    return found


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What an attack writes when it succeeds."""
    return tmp_path / "pwned"


@pytest.fixture
def foreign(made: dict[str, Path], runs: Path) -> Callable[[str], Path]:
    """A copy of such a run under the root of runs."""

    def copy(name: str = "stopped") -> Path:
        shutil.copytree(made[name], runs / name)
        return runs / name

    return copy


def evil(canary: Path) -> str:
    """Code that leaves the canary."""
    return f"open({str(canary)!r}, 'w').write('x')\n"


def cell(source: str) -> dict[str, Any]:
    """A code cell of a notebook."""
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None}


def notebook(path: Path, *sources: str, **more: Any) -> Path:
    """A notebook of code cells."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "P", "language": "python"}}
    path.write_text(json.dumps({"cells": [cell(one) for one in sources], "metadata": kernel, "nbformat": 4, "nbformat_minor": 4, **more}))
    return path


def cli(*words: object) -> tuple[int, str]:
    """Exit code and output of the command."""
    done = CliRunner().invoke(main, list(map(str, words)))
    return done.exit_code, done.output


def forged_setting(folder: Path, name: str, value: object) -> None:
    """Another setting in the spec, as if the run had begun with it."""

    def change(body: dict[str, Any]) -> None:
        if body["name"] == "run.spec":
            body["metadata"]["spec"]["config"][name] = value

    rewritten(folder, change)


def everything(folder: Path) -> list[str]:
    """Do with a run whatever can be done; what it was answered. Errors that are not kitchen's fail the test."""

    def go_on() -> None:
        k = Kitchen.open(folder)
        try:
            k.run()
        finally:
            k.close()

    said = list[str]()
    for act in (
        lambda: verify_run(folder), lambda: repr(Run(folder)), lambda: write_report(Run(folder), folder.parent / "out.html"),
        lambda: reproduce(manifest(Run(folder))), go_on,
    ):  # fmt: skip
        try:
            act()
        except (KitchenError, OSError) as error:
            said.append(str(error))
    for words in (("verify", folder), ("report", folder), ("resume", folder, "-q"), ("reproduce", folder, "-q"), ("runs",)):
        code, output = cli(*words)
        assert "unexpected" not in output and "Traceback" not in output, (words, output)
        said.append(f"{code} {output}")
    return said


# -- code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["absolute", "inside", "parent", "name"])
def test_a_notebook_that_an_order_names_is_not_executed(named, foreign, canary, tmp_path, monkeypatch):
    folder = foreign()
    there = notebook({"parent": folder.parent}.get(named, folder) / "evil.ipynb", evil(canary))
    place = {"absolute": str(there), "inside": "evil.ipynb", "parent": "../evil.ipynb", "name": ""}[named]
    (folder / "order.json").write_text(json.dumps({"name": str(there) if named == "name" else "evil", "notebook": place, "values": {}}))
    monkeypatch.chdir(folder)
    code, output = cli("resume", folder, "-q")
    assert code != 0 and not canary.exists(), output
    everything(folder)
    assert not canary.exists()


def test_a_parameter_that_carries_code_is_refused(foreign, canary):
    folder = foreign()
    values = {f"seed = 1\n{evil(canary)}\nx": 1, "dataset": "'; " + evil(canary)}
    (folder / "order.json").write_text(json.dumps({"name": "sft", "notebook": "", "values": values}))
    everything(folder)
    assert not canary.exists()


def test_a_notebook_is_trusted_as_it_is_executed(tmp_path, canary):
    plain = notebook(tmp_path / "mine.ipynb", "print(1)")
    older = tmp_path / "older.ipynb"
    cells = json.loads(plain.read_text())["cells"]
    worksheet = {"cells": [{"cell_type": "code", "input": evil(canary), "outputs": [], "language": "python", "collapsed": False}], "metadata": {}}
    older.write_text(json.dumps({"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "cells": cells, "worksheets": [worksheet]}))
    assert notebook_code_hash(older) != notebook_code_hash(plain)


WORLDS = ("module:evil:f", "module:evil", "nim+module:evil:f", "module:evil+nim", "module:evil::f")


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("where", ["spec", "snapshot", "edit"])
def test_a_module_that_a_run_names_is_not_imported(world, where, foreign, canary, tmp_path, monkeypatch):
    folder, modules = foreign("played"), tmp_path / "modules"
    modules.mkdir()
    (modules / "evil.py").write_text(evil(canary))
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.chdir(folder)
    named = list(named_modules([{"deep": [world]}]))
    assert bool(named) == (":" in world.rpartition("module:")[2]), "without a function nothing is imported"
    if where == "spec":
        forged_setting(folder, "env", world)
    elif where == "snapshot":
        rewritten(folder, lambda body: None)
        for path in (folder / "snapshots").glob("*.json"):
            if path.stem.isdigit():
                plain = json.loads(path.read_text())
                plain["config"]["env"] = world
                resealed(path, plain)
    else:
        log = EventLog(folder / "events.jsonl")
        log.append(event("config.edit", setting="env", before="nim", after=world))
        log.close()
    with pytest.raises((NotTrusted, DamagedData)) if named == ["evil"] else suppress(KitchenError):
        Kitchen.open(folder).close()
    everything(folder)
    assert not canary.exists()


def test_ones_own_modules_are_trusted_without_a_word_and_changed_ones_are_not(tmp_path, monkeypatch):
    modules = tmp_path / "modules"
    modules.mkdir()
    world = "from kitchen.envs.registry import get_problems\n\n\ndef games(*about):\n    return get_problems('task:sort', *about)\n"
    (modules / "my_games.py").write_text(world)
    monkeypatch.syspath_prepend(str(modules))
    k = Kitchen("rl_math", run_dir=tmp_path / "mine", **{**PLAYED, "env": "module:my_games:games"})
    k.run(until=1)
    k.close()
    Kitchen.open(tmp_path / "mine").close()
    (modules / "my_games.py").write_text(world + "# changed\n")
    with pytest.raises(NotTrusted, match="my_games"):
        Kitchen.open(tmp_path / "mine")
    Kitchen.open(tmp_path / "mine", trust=["my_games"]).close()


def test_a_module_beside_a_notebook_is_looked_for_where_its_kernel_finds_it(tmp_path):
    (tmp_path / "games_of_mine.py").write_text("X = 1\n")
    settings = {"env": "module:games_of_mine:games"}
    with pytest.raises(InvalidValue, match="is not there"):
        require_trusted_settings(settings, "run-1")
    with pytest.raises(NotTrusted, match="games_of_mine"):
        require_trusted_settings(settings, "run-1", folders=[str(tmp_path)])
    require_trusted_settings(settings, "run-1", ["games_of_mine"], [str(tmp_path)])
    require_trusted_settings(settings, "run-1", folders=[str(tmp_path)])


def test_values_of_a_snapshot_name_only_data(tmp_path, canary):
    for name in (
        "os:system", "kitchen.nothing:There", "kitchen.store.run:Run", "kitchen.cli.main:main", "subprocess:Popen",
        "kitchen.types:KitchenError", ":", "",
    ):  # fmt: skip
        with pytest.raises((DamagedData, InvalidValue)):
            decode_value({"~": name, "of": {"path": str(canary)}})
    with pytest.raises(DamagedData):
        decode_value({"~": "array", "dtype": "|O", "shape": [1], "of": ""})
    for outside in ("../x", "/etc/passwd", "a/../../x", "C:\\x"):
        with pytest.raises(DamagedData):
            decode_value({"~": "inside", "of": outside}, tmp_path)


def test_a_snapshot_cannot_put_its_own_ports_and_settings_in(foreign):
    folder = foreign()
    rewritten(folder, lambda body: None)
    for path in (folder / "snapshots").glob("*.json"):
        if path.stem.isdigit():
            plain = json.loads(path.read_text())
            plain["values"]["service"] = next(iter(plain["values"].values()))
            resealed(path, plain)
    with pytest.raises(DamagedData):
        Kitchen.open(folder)


@pytest.mark.parametrize("place", ["here", "above"])
def test_nothing_is_imported_from_where_a_run_lies(place, foreign, canary, monkeypatch):
    folder = foreign()
    names = "sitecustomize usercustomize conftest numpy ipykernel_launcher ipykernel json kitchen torch IPython jupyter_config ipython_config"
    for name in names.split():
        ((folder if place == "here" else folder.parent) / f"{name}.py").write_text(evil(canary))
    (folder / ".env").write_text("PYTHONSTARTUP=numpy.py\nPYTHONPATH=.\n")
    (folder / "settings.ini").write_text("[DEFAULT]\nlib_name=x\n")
    (folder / "kernel.json").write_text(json.dumps({"argv": ["touch", str(canary)], "display_name": "x", "language": "python"}))
    profile = folder / ".ipython" / "profile_default" / "startup"
    profile.mkdir(parents=True)
    (profile / "00.py").write_text(evil(canary))
    (folder / "order.json").write_text(json.dumps({"name": "sft", "notebook": "", "values": SMALL}))
    repository = Path(__file__).parents[2]
    words = "from kitchen.cli.main import main; main(prog_name='kitchen')"
    for command in (("verify", "."), ("report", "."), ("resume", ".", "-q")):
        start = [sys.executable, "-P", "-c", words, *command]
        subprocess.run(start, cwd=folder, env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, timeout=300, check=False)
        assert not canary.exists(), command


TEMPLATES = (
    "basic/basic/index.html.j2", "basic/base/base.html.j2", "basic/index.html.j2", "templates/basic/index.html.j2", "base/base.html.j2",
    "basic/conf.json",
)  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_report_uses_no_template_of_the_working_directory(template, foreign, canary, tmp_path, monkeypatch):
    folder = foreign("completed")
    (folder / template).parent.mkdir(parents=True, exist_ok=True)
    code = f"{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}"
    (folder / template).write_text('{"base_template": "/"}' if template.endswith(".json") else code)
    monkeypatch.chdir(folder)
    to_html(notebook(tmp_path / "x.ipynb", "1"), tmp_path / "x.html")
    write_report(Run(folder), tmp_path / "y.html")
    assert not canary.exists()


# -- what a report shows -------------------------------------------------------------------------------


def test_a_foreign_report_takes_in_no_file_and_leads_nowhere(foreign, tmp_path, monkeypatch):
    folder = foreign("completed")
    (folder / "secret.png").write_text("precious words")
    (tmp_path / "near.png").write_text("precious words")
    monkeypatch.chdir(folder)
    page = """![](/etc/passwd) ![](secret.png) ![](../near.png) <img src="secret.png"> <img src="file:///etc/passwd">
<meta http-equiv="refresh" content="0;url=https://evil.example"> <base href="https://evil.example"> <link rel=preload href=//evil.example>
<iframe src="/etc/passwd"></iframe> <object data="/etc/passwd"></object> <form action="https://evil.example"><input></form>
<a href="javascript:alert(1)">x</a> ![](attachment:nothing.png)"""
    document = json.loads(notebook(folder / "report.ipynb", "1").read_text())
    document["cells"].insert(0, {"cell_type": "markdown", "metadata": {}, "source": page})
    svg = "<svg xmlns='http://www.w3.org/2000/svg'><script>1</script><foreignObject><meta http-equiv=refresh></foreignObject></svg>"
    leads = "<script>alert(1)</script><meta http-equiv=refresh content='0;url=//evil.example'><MeTa http-equiv=refresh>"
    document["cells"][1]["outputs"] = [
        {"output_type": "display_data", "data": data, "metadata": {}} for data in ({"text/html": leads}, {"image/svg+xml": svg})
    ]
    (folder / "report.ipynb").write_text(json.dumps(document))
    code, output = cli("report", folder)
    assert code == 0, output
    text = Path(output.split()[-1]).read_text()
    assert "precious words" not in text and base64.b64encode(b"precious").decode()[:8] not in text and "root:x" not in text
    body = text[text.index("<main>") :].lower()
    assert not [tag for tag in ("<meta", "<base", "<link", "<iframe", "<object", "<form", "<embed") if tag in body]
    assert "script-src 'none'" in text


def test_a_notebook_without_end_is_not_read(tmp_path):
    path = tmp_path / "huge.ipynb"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InvalidValue, match="huge.ipynb"):
        to_html(path, tmp_path / "x.html")
    os.mkfifo(tmp_path / "pipe.ipynb")
    with pytest.raises(InvalidValue, match="pipe"):
        read_manifest(tmp_path / "pipe.ipynb")


# -- the folder ----------------------------------------------------------------------------------------

PLACES = (
    "kernel.log", "order.json", "seal.json", "lock", "report.html", "report.ipynb", "report.unfinished.ipynb", "artifacts",
    "artifacts/adapter", "snapshots", "snapshots/objects", "rollouts", "blobs", "x/y",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "file link", "pipe", "socket", "hole"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_plain_file_is_neither_followed_nor_written_through(kind, place, foreign, tmp_path, monkeypatch):
    folder, home = foreign(), tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    (home / "deep" / "thesis.txt").write_text("precious")
    (home / "notes.txt").write_text("precious")
    path = folder / place
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)
        socket.socket(socket.AF_UNIX).bind(path.name)
        monkeypatch.chdir(tmp_path)
    elif kind == "hole":
        with path.open("wb") as file:
            file.truncate(2**42)
    else:
        path.symlink_to(home if kind == "link" else home / "notes.txt")
    assert not verify_run(folder).sound
    with pytest.raises(DamagedData):
        Kitchen.open(folder)
    for words in (("verify", folder), ("resume", folder, "-q"), ("resume", folder, "-q", "--recover"), ("report", folder)):
        code, output = cli(*words)
        assert code != 0 and "unexpected" not in output, (words, output)
    assert {one.relative_to(home).as_posix(): one.read_text() for one in home.rglob("*") if one.is_file()} == {
        "deep/thesis.txt": "precious", "notes.txt": "precious"
    }  # fmt: skip


@pytest.mark.parametrize("place", ["lock", "kernel.log", "report.unfinished.ipynb", "snapshots/1.json", "seal.json.sig"])
def test_a_file_with_another_name_elsewhere_is_not_written(place, foreign, tmp_path):
    folder, thesis = foreign(), tmp_path / "thesis.txt"
    thesis.write_text("precious")
    (folder / place).unlink(missing_ok=True)
    os.link(thesis, folder / place)
    everything(folder)
    assert thesis.read_text() == "precious"


def test_a_log_that_a_backup_shares_is_copied_before_it_grows(foreign, tmp_path):
    folder = foreign()
    os.link(folder / "events.jsonl", tmp_path / "backup.jsonl")
    before = (tmp_path / "backup.jsonl").read_bytes()
    k = Kitchen.open(folder)
    k.run()
    k.close()
    assert (tmp_path / "backup.jsonl").read_bytes() == before and k.status == "completed" and verify_run(folder).sound


def test_ten_thousand_files_and_a_hundred_folders_deep_end_in_time(foreign):
    folder = foreign()
    for number in range(100):
        (folder / "many" / str(number)).mkdir(parents=True)
        for one in range(100):
            (folder / "many" / str(number) / str(one)).touch()
    assert verify_run(folder).problems is not None
    deep = folder / "deep"
    for _ in range(100):
        deep = deep / "d"
    deep.mkdir(parents=True)
    assert "nested" in verify_run(folder).problems[0]


# -- paths in what it says -----------------------------------------------------------------------------


@pytest.mark.parametrize("outside", ["/etc/passwd", "../thesis.txt", "artifacts/../../thesis.txt", "C:\\x", "", "."])
@pytest.mark.parametrize("event_name", ["artifact.save", "run.file"])
def test_paths_that_a_log_names_lead_nowhere(outside, event_name, foreign, tmp_path):
    folder = foreign("completed")
    thesis = folder.parent / "thesis.txt"
    thesis.write_text("precious")

    def change(body: dict[str, Any]) -> None:
        if body["name"] == event_name:
            body["metadata"]["path"] = outside

    rewritten(folder, change)
    everything(folder)
    assert thesis.read_text() == "precious"


@pytest.mark.parametrize("state", ["/etc/passwd", "../x.json", "a/../../x.json", "x\0.json", 7, None, ["x.json"]])
def test_states_that_a_snapshot_names_lead_nowhere(state, foreign):
    folder = foreign()
    rewritten(folder, lambda body: None)
    for path in (folder / "snapshots").glob("*.json"):
        if path.stem.isdigit():
            plain = json.loads(path.read_text())
            for entry in plain["values"].values():
                if entry["kind"] == "client":
                    entry["state"] = state
            resealed(path, plain)
    assert not verify_run(folder).sound
    everything(folder)


def test_an_index_leads_only_to_runs_beside_it(foreign, runs, tmp_path):
    folder = foreign()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    RunIndex().rebuild()
    with sqlite3.connect(runs / "index.sqlite") as database:
        database.execute("UPDATE runs SET path = ?", (str(elsewhere),))
        database.execute("INSERT INTO runs VALUES ('../elsewhere', 'sft', 'running', 9e9, '{}', ?)", (str(elsewhere),))
    assert RunIndex().find("latest") == folder and [row["path"] for row in RunIndex().rows()] == [str(folder)]
    with sqlite3.connect(runs / "index.sqlite") as database:
        database.execute("DROP TABLE runs")
        database.execute("CREATE VIEW runs AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS run_id FROM n")
    assert RunIndex().find("latest") == folder and list(runs.glob("index.sqlite.damaged-*"))


# -- the network ---------------------------------------------------------------------------------------


def test_addresses_and_variables_of_a_run_need_trust_by_name(runs):
    settings = {"base_url": "https://good@evil.example:8000/v1", "more": [{"key": "$OPENAI_API_KEY"}], "prose": "see https://example.org for more"}
    assert list(named_addresses(settings)) == ["https://evil.example:8000"] and list(named_variables(settings)) == ["$OPENAI_API_KEY"]
    assert not list(named_addresses({"model": "hf://a/b", "dataset": "builtin:sort", "path": "file:///x"}))
    with pytest.raises(NotTrusted, match="https://evil.example:8000"):
        require_trusted_settings(settings, "run-1", ["$OPENAI_API_KEY"])
    with pytest.raises(NotTrusted, match="OPENAI_API_KEY"):
        require_trusted_settings({"more": "$OPENAI_API_KEY"}, "run-1")
    require_trusted_settings(settings, "run-1", ["https://evil.example:8000", "$OPENAI_API_KEY"])
    require_trusted_settings(settings, "run-1")
