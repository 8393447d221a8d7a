"""No secret leaves the process: a table of shapes through every way out, and a table of texts that must stay as they are."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook, new_output
from secret_texts import HARMLESS, LONG, SECRETS, WORD

from kitchen.adapters.files.registry import FileRegistry
from kitchen.adapters.huggingface import HuggingFaceHub
from kitchen.cli.cook import _merge_request, cook_group
from kitchen.cli.errors import KitchenGroup
from kitchen.cli.parameters import CookRequest
from kitchen.config import (
    Config,
    ConfigError,
    ExperimentSpec,
    config_fields,
    restore_secrets,
    settings_in_use,
)
from kitchen.ports.spans import observe
from kitchen.recipes.registry import RECIPES, get_recipe
from kitchen.recipes.reproduce import manifest, reproduce
from kitchen.reports.build import write_report
from kitchen.reports.export import to_html, write_notebook
from kitchen.secrets import MASK, mask_secrets, mask_values, secret_certainty, secret_findings
from kitchen.session.kitchen import Kitchen
from kitchen.store.index import RunIndex
from kitchen.store.log import EventLog
from kitchen.store.run import Run
from kitchen.telemetry import EVENTS, MemoryLog, event
from kitchen.types import InvalidValue

pytestmark = pytest.mark.whole_run

TEXTS = [text for text, _ in SECRETS]
assert len(TEXTS) >= 60 and len(HARMLESS) >= 60


class BrokenPort:
    """A port whose errors quote what it was given."""

    def load(self, text):
        raise OSError(f"refused: {text}")


@click.command("fetch")
def fetch():
    for text in TEXTS:
        print(f"about to ask {text}")
        print(f"asking {text}", file=sys.stderr)
    raise InvalidValue("\n".join(TEXTS))


@click.command("break")
def break_command():
    raise RuntimeError("\n".join(TEXTS))


def spoken(*words):
    done = CliRunner().invoke(KitchenGroup("kitchen", commands=[fetch, break_command]), list(words))
    return done.stdout + done.stderr


def settings_of(values):
    return type("Settings", (Config,), {"__annotations__": dict.fromkeys(values, str), **dict.fromkeys(values, "")})(**values)


@pytest.fixture(scope="module")
def sinks(tmp_path_factory):
    """What is written and said while every secret passes every way out: sink -> text."""
    folder = tmp_path_factory.mktemp("secrets")
    numbered = {f"setting_{place}": text for place, text in enumerate(TEXTS)}
    run = Run.create(ExperimentSpec(recipe="sft", config=numbered, datasets=dict.fromkeys(TEXTS, "0" * 64)), folder / "runs" / "one")
    run.log.append(event("run.start", recipe="sft", run_id=run.run_id))
    port = observe(BrokenPort(), "datasets", "broken", run.log)
    memory, found = MemoryLog(), {}
    for text in TEXTS:
        with pytest.raises(OSError, match="refused") as caught:
            port.load(text)
        said = event("stage.error", stage="train", error=f"{type(caught.value).__name__}: {caught.value}", seconds=1.0)
        run.log.append(said)
        memory.append(said)
        run.log.append(event("data.set_aside", source=text, row=3, field="messages", reason=text))
        run.log.append(event("config.edit", setting="setting_0", before=text, after={"nested": [text, {"deeper": text}]}))
    run.log.append(event("run.stop", status="failed", reason=TEXTS[0], seconds=1.0))
    RunIndex(folder / "runs").put(run)
    write_report(run)
    write_report(run, folder / "report.ipynb")
    traced = new_output("error", ename="OSError", evalue=TEXTS[0], traceback=[*TEXTS, *(text.replace("=", "\x1b[39m=\x1b[33m") for text in TEXTS)])
    outputs = [new_output("stream", text="\n".join(TEXTS)), new_output("display_data", {"text/plain": "\n".join(TEXTS)}), traced]
    told = new_notebook(cells=[new_code_cell("\n".join(map(repr, TEXTS)), outputs=outputs)], metadata={"papermill": {"parameters": numbered}})
    write_notebook(told, folder / "told.ipynb")
    to_html(told, folder / "told.html")
    (folder / "order").mkdir()
    values = _merge_request(CookRequest("own", Path("own.ipynb"), numbered), folder / "order").values
    assert values == numbered, "the process itself works with what it was given"
    FileRegistry(folder / "registry").register("model", {"notes": TEXTS, "settings": numbered})
    with closing(sqlite3.connect(folder / "runs" / "index.sqlite")) as database:
        found["index.sqlite"] = "\n".join(row[0] for row in database.execute("SELECT config FROM runs"))
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        print(settings_of(numbered), repr(InvalidValue("\n".join(TEXTS))), InvalidValue("\n".join(TEXTS)), repr(run.spec))
    found |= {"log": run.log.path.read_text(), "memory": str(memory.events), "events": str(run.log.events)}
    found["spec.json"] = (run.path / "spec.json").read_text()
    found |= {"report.html": (run.path / "report.html").read_text(), "report.ipynb": (folder / "report.ipynb").read_text()}
    found |= {"told.html": (folder / "told.html").read_text(), "told.ipynb": (folder / "told.ipynb").read_text()}
    found |= {"order.json": (folder / "order" / "order.json").read_text(), "terminal": spoken("fetch"), "unforeseen": spoken("break")}
    found |= {"registry": next((folder / "registry").rglob("entry.json")).read_text()}
    found |= {"manifest": json.dumps(manifest(run)), "displays": out.getvalue()}
    EventLog.verify(run.log.path)
    assert Run(run.path).log.events == run.log.events, "what is remembered is what was written"
    assert secret_findings(folder) == []
    run.close()
    return found


@pytest.mark.parametrize("place", range(len(SECRETS)))
def test_no_secret_leaves_the_process(sinks, place):
    text, secret = SECRETS[place]
    shown = mask_secrets(text)
    assert secret not in shown and MASK.search(shown) and mask_secrets(shown) == shown
    assert {name for name, said in sinks.items() if secret in said} == set()


@pytest.mark.parametrize("sink", ["log", "spec.json", "index.sqlite", "report.html", "told.ipynb", "order.json", "terminal", "registry"])
def test_what_stood_there_is_said(sinks, sink):
    assert len(MASK.findall(sinks[sink])) >= 30
    assert WORD not in sinks[sink] and LONG not in sinks[sink]


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays_as_it_is(text, tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    for one in (text, json.dumps(text), json.dumps({"a": [text]}), f"line 1\n{text}\nline 3", repr(text)):
        assert mask_secrets(one) == one
    kept = log.append(event("stage.error", stage="train", error=text, seconds=1.0))
    log.close()
    assert kept["error"] == text and secret_findings(tmp_path) == [] and str(InvalidValue(f"a {text}")) == f"a {text}"


def test_no_name_of_the_library_is_a_secrets():
    names = {name for kind in EVENTS.values() for name in (*kind.measurements, *kind.metadata)}
    for recipe in RECIPES:
        config = get_recipe(recipe).config
        names |= {item.name for item in config_fields(config)}
        assert mask_values(config().model_dump()) == config().model_dump()
    assert len(names) > 100 and not [name for name in names if secret_certainty(name)]


SECRET_NAMES = "password passwd db_password secret client_secret api_key apiKey API-KEY x-api-key aws_secret_access_key accessKey privateKey hf_token"
NO_SECRET_NAMES = "max_tokens token_ids eos_token pad_token EOS_TOKEN tokens tokenizer token_count password_length sort_key public_key key author PWD"


@pytest.mark.parametrize("name", SECRET_NAMES.split())
@pytest.mark.parametrize("value", ["hunter2", 1234567, ["hunter2"], {"value": "hunter2"}, ("hunter2",)])
def test_values_under_a_secrets_name_are_masked_whatever_they_are(name, value):
    assert "hunter2" not in str(mask_values({"a": [{name: value}]})) and "1234567" not in str(mask_values({name: value}))


@pytest.mark.parametrize("name", NO_SECRET_NAMES.split())
def test_values_under_other_names_stay(name):
    for value in ("hunter2", 1234567, ["a81f00c2d9"], {"value": "hunter2"}, None, True):
        assert mask_values({name: value}) == {name: value}


VARIABLES = ["HF_TOKEN", "OPENAI_API_KEY", "MY_SERVICE_TOKEN", "DB_PASSWORD", "CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY"]


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", ["correct horse", "quoted\"it's\\done", "a/b+c=d&e f", "ünïcode-wörds"])
def test_what_the_environment_holds_is_referred_to_by_name(name, value, monkeypatch, tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.append(event("stage.error", stage="a", error=f"before {value}", seconds=1.0))  # not known yet
    monkeypatch.setenv(name, value)
    for text in (f"server said {value}!", json.dumps({"said": value}), repr(value), f"{value}{value}"):
        assert value not in mask_secrets(text) and f"${name}" in mask_secrets(text)
    kept = log.append(event("stage.error", stage="a", error=f"after {value}", seconds=1.0))
    assert kept["error"] == f"after ${name}" and json.loads(log.path.read_text().splitlines()[-1])["metadata"]["error"] == f"after ${name}"
    log.close()
    assert any(name in one or "environment" in one for one in secret_findings(tmp_path))
    monkeypatch.delenv(name)
    assert mask_secrets(f"server said {value}!") == f"server said {value}!"


OTHERS = {"HF_TOKEN": "short", "HOME_FOLDER": "a-long-value", "EOS_TOKEN": "<|im_end|>", "DB_PASSWORD": "password"}


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_other_variables_are_no_secrets(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert mask_secrets(f"it is {value} here") == f"it is {value} here"


class Service(Config):
    password: str = ""
    base_url: str = ""
    steps: int = 1


def test_a_secret_setting_works_is_masked_outside_and_must_be_given_again():
    known = Service(password=WORD, base_url=f"https://ann:{WORD}@example.org")
    assert known.password == WORD and known.replace(steps=2).password == WORD and WORD not in f"{known!r}{known._repr_html_()}"
    written = mask_values(known.model_dump())
    with pytest.raises(ConfigError, match="password, base_url: a secret was masked here.*give the setting again"):
        Service(**written)
    assert Service(**restore_secrets(written, known)) == known
    assert restore_secrets({**written, "steps": 9}, known)["steps"] == 9
    assert restore_secrets(written, known.replace(password="another")) == {**known.model_dump(), "password": "another"}


@pytest.mark.parametrize("spelling", ["$LESSON_API_KEY", "${LESSON_API_KEY}", "env:LESSON_API_KEY", "https://a:$LESSON_API_KEY@b.org/?key=${LESSON_API_KEY}"])
def test_a_setting_may_name_a_variable(spelling, monkeypatch):
    with pytest.raises(InvalidValue, match="there is no environment variable LESSON_API_KEY"):
        settings_in_use({"base_url": spelling})
    monkeypatch.setenv("LESSON_API_KEY", LONG)
    held = settings_in_use({"base_url": spelling})["base_url"]
    assert LONG in held and "LESSON" not in held
    assert Service(base_url=spelling).base_url == spelling, "the setting itself never holds the secret"
    assert settings_in_use({"prompt": "I pay $LESSON_API_KEY, $x^2$ and $HOME"}) == {"prompt": "I pay $LESSON_API_KEY, $x^2$ and $HOME"}


def files_with(folder, secret):
    return [path.name for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_session_with_a_secret_setting_leaves_none_and_goes_on_when_it_is_given_again(tmp_path, capfd):
    place = tmp_path / f"data-password={WORD}"
    place.mkdir()
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]} for n in range(12)]
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"backend": "toy", "dataset": f"file:{place}/chats.jsonl", "batch_size": 4, "held_out": 4, "snapshot_every": 1}
    k = Kitchen("sft", run_dir=tmp_path / "run", **small)
    k.run(until="train", wait=True)
    k.rewind(step=1)
    other = k.fork(tmp_path / "fork", learning_rate=1e-4)
    other.run().close()
    k.step("batch")
    print(k, repr(k), k.run_record, k.config, k._repr_html_(), k.state)
    assert k.config.dataset == small["dataset"]
    k.close()
    with pytest.raises(ConfigError, match="dataset: a secret was masked here"):
        Kitchen.open(tmp_path / "run")
    again = Kitchen.open(tmp_path / "run", dataset=small["dataset"])
    steps = len([item for item in again.log if item.name == "train.step"])
    again.run().close()
    assert again.status == "completed" and steps >= 1 and not [item for item in again.log if item.name == "config.edit"]
    assert files_with(tmp_path / "run", WORD) == files_with(tmp_path / "fork", WORD) == []
    assert secret_findings(tmp_path / "run") == [] and WORD not in "".join(capfd.readouterr())


def test_publishing_is_refused(tmp_path):
    (tmp_path / "README.md").write_text(f"a model\n\nmade with api_key='{WORD}'\n")
    with pytest.raises(InvalidValue, match=r"is not published.*\nREADME.md, line 3: api_key") as refused:
        HuggingFaceHub().upload(tmp_path, "org/name", "first")
    assert WORD not in str(refused.value)


def test_reproducing_asks_for_what_was_masked(tmp_path):
    run = Run.create(ExperimentSpec(recipe="sft", config={"model": f"https://a:{WORD}@b.org/m"}), tmp_path / "run")
    run.log.append(event("run.stop", status="completed", seconds=1.0))
    recorded = manifest(run)
    with pytest.raises(ConfigError, match="model: a secret was masked here"):
        reproduce(recorded, tmp_path / "again")
    with pytest.raises(InvalidValue, match="only settings that are masked"):
        reproduce(recorded, tmp_path / "again", given={"epochs": 2})
    assert not (tmp_path / "again").exists()
    run.close()


def test_a_port_of_a_process_of_its_own_tells_nothing(tmp_path):
    code = f"from kitchen.types import BackendError; raise BackendError('refused: https://ann:{WORD}@example.org')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "***(password)" in done.stderr.splitlines()[-1]


def test_a_cooked_notebook_leaves_no_secret(tmp_path, monkeypatch):
    """Parameters, code, prints, a kernel's own words, a traceback: every secret of the table, and one more by name."""
    monkeypatch.setenv("LESSON_API_KEY", f"by-name-{LONG}")
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    source = f"""import json, os, sys
texts = json.load(open({str(tmp_path / "texts.json")!r}))
assert password == {"-".join(WORD)!r}.replace("-", "") and key == os.environ["LESSON_API_KEY"]
print(*texts, key, sep=chr(10))
print(*texts, key, sep=chr(10), file=sys.stderr)
os.write(2, chr(10).join([*texts, key, '']).encode())
os.system(f"echo password={{password}} >&2")
from kitchen.types import InvalidValue
raise RuntimeError(f"refused password={{password}} {{key}} " + chr(10).join(texts)) from InvalidValue(key)"""
    cells = [new_code_cell("password = ''\nkey = ''", metadata={"tags": ["parameters"]}), new_code_cell(source)]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    notebook = tmp_path / "own.ipynb"
    notebook.write_text(json.dumps(new_notebook(cells=cells, metadata=about)))
    words = ["cook", str(notebook), "-p", "password", WORD, "-p", "key", "$LESSON_API_KEY", "--out", str(tmp_path / "run")]
    code = "from kitchen.cli.main import main; main(prog_name='kitchen')"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "$LESSON_API_KEY" in done.stderr and "***(password)" in done.stderr, done.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"report.ipynb", "report.html", "order.json", "kernel.log"}
    assert json.loads((tmp_path / "run" / "order.json").read_text())["values"] == {"password": "***(password)", "key": "$LESSON_API_KEY"}
    for text, secret in [*SECRETS, (WORD, WORD), (LONG, LONG)]:
        assert files_with(tmp_path / "run", secret) == [] and secret not in done.stdout + done.stderr, text
    assert secret_findings(tmp_path / "run") == []
    again = CliRunner().invoke(KitchenGroup("kitchen", commands=[cook_group]), ["cook", str(notebook), "--resume", str(tmp_path / "run")])
    assert again.exit_code == 2 and "password held a secret, which was masked" in again.stderr and "-p password" in again.stderr
