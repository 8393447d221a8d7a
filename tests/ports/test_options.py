"""Options of an adapter, adapters by address, trackers: what is given is checked before any work, and used."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kitchen import Kitchen
from kitchen.adapters.toy.client import ToyService
from kitchen.cli.main import main
from kitchen.cli.parameters import make_request
from kitchen.config import ConfigError
from kitchen.ports.options import AdapterOptions
from kitchen.ports.registry import ADAPTERS, checked_options
from kitchen.store.trust import NotTrusted, named_modules, named_variables
from kitchen.types import InvalidValue, MissingCapability, UnknownName

SMALL = {"model": "toy", "dataset": "builtin:sort[:60]", "epochs": 1, "graded": 2, "held_out": 8, "max_tokens": 4, "batch_size": 20}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


# --- options ---


def test_an_option_reaches_the_adapter_and_the_spec():
    k = Kitchen("sft", backend="toy", backend_options={"latency": 0.0001}, **SMALL)
    k.run(until=1)
    assert k.driver.runner.base["service"].wrapped.latency == 0.0001
    assert k.run_record.spec.config["backend_options"] == {"latency": 0.0001}
    other = k.fork()
    assert other.driver.runner.base["service"].wrapped.latency == 0.0001
    other.close()
    k.close()


@pytest.mark.parametrize("options, words", [
    ({"latenci": 1}, "options of the service adapter 'toy': unknown setting 'latenci'; did you mean 'latency'"),
    ({"latency": "long"}, "latency = 'long'"),
    ({"api_key": "fw-secret-123456"}, "api_key: a secret is not given as an option"),
])  # fmt: skip
def test_wrong_options_are_refused_before_any_work(options, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        Kitchen("sft", backend="toy", backend_options=options, **SMALL)
    assert words in str(error.value) and "fw-secret" not in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["--backend.latency", "0.001"], ["--backend.latency=0.001"], ["-p", "backend.latency", "0.001"]])
def test_an_option_on_the_command_line(words):
    said = CliRunner().invoke(main, ["validate", "sft", "--backend", "toy", *words])
    assert said.exit_code == 0, said.output
    wrong = CliRunner().invoke(main, ["validate", "sft", "--backend", "toy", *[word.replace("latency", "latenzy") for word in words]])
    assert wrong.exit_code and "did you mean 'latency'" in wrong.output + str(wrong.exception)
    assert make_request("sft", {"backend": "toy", "backend.latency": "0.001"}).values["backend_options"] == {"latency": 0.001}


def test_describe_a_backend():
    said = CliRunner().invoke(main, ["describe", "toy"])
    assert said.exit_code == 0 and "bit-equal" in said.output and "latency" in said.output and "cross_entropy" in said.output


class Secretive(AdapterOptions):
    api_key_env: str = "MINE"
    base_url: str | None = None
    token: str | None = None


@given(st.sampled_from(["api_key_env", "base_url", "token"]), st.text(min_size=1).map(lambda text: f"tml-{text}-s3cr3t!"))
def test_what_is_no_name_is_refused_without_being_told(name, value):
    with pytest.raises(ConfigError) as error:
        Secretive(**{name: value})
    assert "s3cr3t" not in str(error.value)


def test_variables_and_modules_of_a_foreign_run_are_named():
    settings = {"backend": "pack.mod:Service", "backend_options": {"api_key_env": "MINE"}, "trackers": ["jsonl", "other:T"], "dataset": "hf:org"}
    assert sorted(named_modules({"settings": settings, "adapters": {"tracker": "third:T", "service": "toy"}})) == ["other", "pack.mod", "third"]
    assert list(named_variables(settings)) == ["$MINE"]


# --- adapters by their address ---


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module of somebody's own with a backend, which leaves a mark when it is imported."""
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "somebackend.py").write_text(textwrap.dedent(f'''
        from pathlib import Path
        from pydantic import Field
        from kitchen.adapters.toy.client import ToyService
        from kitchen.ports.options import AdapterOptions

        Path({str(tmp_path / "imported")!r}).touch()

        class Options(AdapterOptions):
            workers: int = Field(1, ge=1, description="how many")

        class Service(ToyService):
            Options = Options
            def __init__(self, directory=None, workers=1):
                super().__init__(directory)
                self.workers = workers
    '''))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("somebackend", None)


def test_a_backend_by_its_address(package, tmp_path):
    k = Kitchen("sft", backend="somebackend:Service", backend_options={"workers": 2}, **SMALL)
    k.run()
    assert k.driver.runner.base["service"].wrapped.workers == 2 and k.status == "completed"
    folder = k.run_record.path
    k.close()
    (tmp_path / "imported").unlink()
    sys.modules.pop("somebackend")
    assert Kitchen.open(folder).status == "completed", "who has named it once, trusts it"


def test_a_run_from_elsewhere_imports_nothing_untrusted(package, tmp_path, monkeypatch):
    k = Kitchen("sft", backend="somebackend:Service", **SMALL)
    k.run(until=1)
    folder = k.run_record.path
    k.close()
    (tmp_path / "imported").unlink()
    sys.modules.pop("somebackend")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "somebody-else"))
    monkeypatch.delenv("KITCHEN_TRUSTED", raising=False)
    verify = [sys.executable, "-c", "from kitchen.cli.main import main; main()", "verify", str(folder)]
    for act in (lambda: Kitchen.open(folder), lambda: subprocess.run(verify, check=False)):
        try:
            act()
        except NotTrusted as error:
            assert "somebackend" in str(error)
        assert not (tmp_path / "imported").exists()
    with pytest.raises(NotTrusted, match="somebackend"):
        Kitchen.open(folder)
    Kitchen.open(folder, trust=["somebackend"]).close()
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize("backend, error, words", [
    ("somewhere.else:Service", MissingCapability, "No module named 'somewhere'"),
    ("somebackend:Servise", UnknownName, "did you mean 'Service'"),
    ("some backend:Service", InvalidValue, "unknown backend"),
    ("toi", InvalidValue, "did you mean 'toy'"),
])  # fmt: skip
def test_an_address_that_leads_nowhere(package, backend, error, words):
    with pytest.raises(error, match=words):
        Kitchen("sft", backend=backend, **SMALL)


# --- trackers ---


class Telling:
    told: list = []
    closed = 0

    def log(self, event):
        Telling.told.append(event.name)

    def close(self):
        Telling.closed += 1


class Failing(Telling):
    def log(self, event):
        raise ConnectionError("no server")


class Hanging(Telling):
    def log(self, event):
        time.sleep(0.02)


@pytest.fixture
def trackers(monkeypatch):
    Telling.told, Telling.closed = [], 0
    for name in ("Telling", "Failing", "Hanging"):
        monkeypatch.setitem(ADAPTERS["tracker"], name.lower(), f"{__name__}:{name}")


@pytest.mark.parametrize("how", ["setting", "adapter"])
def test_a_tracker_is_told_every_event_in_order(trackers, how):
    given = {"trackers": ["telling"]} if how == "setting" else {"adapters": {"tracker": "telling"}}
    k = Kitchen("sft", backend="toy", **given, **SMALL)
    k.run()
    k.close()
    assert Telling.told == [item.name for item in k.run_record.log.events][: len(Telling.told)] and Telling.closed == 1
    assert Telling.told[0] == "run.spec" and "run.stop" in Telling.told


def test_a_failing_tracker_stops_nothing_and_is_named(trackers):
    plain = Kitchen("sft", backend="toy", **SMALL).run()
    k = Kitchen("sft", backend="toy", trackers=["failing", "telling"], **SMALL).run()
    assert k.status == "completed" and k.digest() == plain.digest()
    said = [(item["tracker"], item["reason"]) for item in k.run_record.log.events.named("tracker.error")]
    assert said[0] == ("failing", "ConnectionError: no server") and said[-1][1].endswith("not told any more") and len(said) == 2
    assert "train.step" in Telling.told
    k.close()
    plain.close()


def test_a_slow_tracker_does_not_hold_the_run(trackers):
    k = Kitchen("sft", backend="toy", trackers=["hanging"], **SMALL)
    began = time.perf_counter()
    k.run(until=2)
    assert k.driver.trackers.threads[0].waiting.qsize() > 0 or time.perf_counter() - began < 60, "it goes on ahead"
    k.driver.trackers.close(0.01)
    k.driver.trackers = None
    k.close()


def test_lines_of_json(tmp_path):
    k = Kitchen("sft", backend="toy", trackers=["jsonl"], tracker_options={"jsonl": {"path": str(tmp_path / "told.jsonl")}}, **SMALL).run()
    k.close()
    lines = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    steps = [line["loss"] for line in lines if line["event"] == "train.step"]
    assert steps == [item["loss"] for item in k.run_record.log.events.named("train.step")]


@pytest.mark.parametrize("given, words", [
    ({"trackers": ["jsonk"]}, "did you mean 'jsonl'"),
    ({"trackers": ["jsonl"], "tracker_options": {"jsonl": {"pat": "x"}}}, "did you mean 'path'"),
])  # fmt: skip
def test_a_tracker_that_is_not_there(given, words):
    with pytest.raises(InvalidValue, match=words):
        Kitchen("sft", backend="toy", **given, **SMALL)


def test_options_of_the_table_are_those_of_the_class():
    assert checked_options("service", "toy", {"latency": 0}) and ToyService(latency=0.0).latency == 0.0 and os.environ["KITCHEN_RUNS"]
