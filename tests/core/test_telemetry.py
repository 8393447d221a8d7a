"""Declared = emitted = documented, on real runs; every stage and port call is in the log."""

import json
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import nbformat
import pytest
from small_settings import SMALL_SETTINGS

from kitchen.adapters.toy.client import ToyService
from kitchen.config import ExperimentSpec
from kitchen.engine.produce import produce
from kitchen.engine.workflow import Flow, Stage, stages
from kitchen.evaluation import Answer, Question, evaluation_events
from kitchen.ports.registry import ADAPTERS
from kitchen.ports.spans import observe
from kitchen.ports.usage import RemoteRequest
from kitchen.rendering.chat_formats import RoleColonRenderer
from kitchen.rendering.registry import AutoRenderer
from kitchen.session.kitchen import Kitchen
from kitchen.store.log import EventLog
from kitchen.store.run import Run
from kitchen.telemetry import EVENTS, MemoryLog, event_table
from kitchen.types import SamplingParams
from kitchen.workflows.base import adapter_events, renderer_events, save

FAULTY = {"env": "module:faulty_envs:raises", "on_failure": "drop", "baseline": "critic"}
SMALL = {"backend": "toy", "epochs": 1, "batch_size": 16, "held_out": 8, "graded": 4, "max_tokens": 8}


@pytest.fixture
def logs(chats):
    """Sessions: one of plain texts, one with a row set aside, one that ends well, one that fails."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(40)
    ]
    runs, texts = [], Path(tempfile.mkdtemp()) / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{n} and {n + 1}"}) + "\n" for n in range(40)))
    for settings in (
        {"dataset": f"file:{texts}"},
        {"dataset": f"file:{chats([*rows, {'messages': []}])}", "on_bad_row": "set_aside"},
        {"dataset": "builtin:sort[:64]"},
        {"dataset": "builtin:sort[:64]", "learning_rate": 1e308, "grad_clip_norm": 0.0},
    ):
        k = Kitchen("sft", **SMALL, **settings)
        try:
            k.run()
        except Exception:  # the last fails, on purpose
            assert "1e+308" in json.dumps(k.run_record.spec.config)
        k.close()
        runs.append(k)
    return runs


def with_a_history():
    """Events of a run that is paused, edited, rewound, forked, torn, and whose snapshot is damaged."""
    k = Kitchen("sft", **SMALL, dataset="builtin:sort[:64]")
    k.break_before("train")
    k.run().set(learning_rate=1e-3)
    k.state["batch"] = k.state["batch"][:3]
    k.breakpoints.clear()
    k.run(until=3).sample(count=1)
    k.rewind(step=2)
    fork = k.fork(learning_rate=2e-3).run()
    fork.close()
    k.close()
    with (k.run_dir / "events.jsonl").open("a") as file:
        file.write('{"sequence":')
    snapshots = [path for path in (k.run_dir / "snapshots").glob("*.json") if path.stem.isdigit()]
    max(snapshots, key=lambda path: int(path.stem)).write_text("{}")
    again = Kitchen.open(k.run_dir)
    again.close()
    return again.run_record.log.events + fork.run_record.log.events


def with_something_in_the_way():
    """Events of an artifact that was changed by hand and is saved again."""
    run = Run.create(ExperimentSpec(recipe="sft"), Path(tempfile.mkdtemp()) / "run")
    made = run.save_artifact("notes.txt", "text", lambda path: path.write_text("mine"))
    made.path.write_text("somebody's")
    run.save_artifact("notes.txt", "text", lambda path: path.write_text("mine"))
    run.close()
    return list(run.log.events)


class AsksOtherwise(RoleColonRenderer):
    """A format that no chat template writes."""

    def generation_prompt(self, messages, tools=()):
        return [*super().generation_prompt(messages, tools), *self.tokenizer.encode("so")]


def with_a_format_of_its_own():
    """Events of an export of which no chat template is known."""
    k = Kitchen("sft", **SMALL, dataset="builtin:sort[:64]")
    k.run(until="train")
    told = list(save.function(k.config, k.state["training"], AsksOtherwise(k.state["renderer"].tokenizer), k.run_record))
    k.close()
    return told


class Failing:
    """A tracker whose server is away."""

    def log(self, event):
        raise ConnectionError("no server")

    def close(self):
        pass


class OfExperts:
    """A training client of a model whose experts are one tensor, to which no adapter fits."""

    def adapter_coverage(self):
        return {"*.q_proj": 8}, {"*.experts.gate_up_proj": 64}


class FarAway(ToyService):
    """A toy that tells of requests, as a service does."""

    def take_requests(self):
        return [RemoteRequest("sample", sent=4, received=8, queue=0.1, round_trip=0.2)]


def with_a_price():
    """Events of work on a copy of a run that costs money, and of a request to a service."""
    k = Kitchen("sft", **SMALL, dataset="builtin:sort[:64]", prices={"prefill": 1, "sample": 1, "train": 1})
    k.run(until=1)
    k.driver.runner.meter.model = "mine"  # so that the one asked below is another
    with k.driver.throwaway_runner() as spare:
        sampler = spare.base["service"].create_sampling_client("toy")
        sampler.sample([5, 6], 1, SamplingParams(max_tokens=2)).result()
        spare.flow.values["training"].forward_backward(spare.flow.values["batches"].peek(), "cross_entropy").result()
    k.close()
    log = MemoryLog()
    observe(FarAway(), "service", "toy", log).create_sampling_client("toy").sample([5, 6], 1, SamplingParams(max_tokens=2)).result()
    return list(k.run_record.log.events) + log.events


def with_models_and_trackers_of_all_kinds():
    """Events of a service that keeps states, of a tracker that fails, of weights without adapters, of a chat template that refused a conversation."""
    with patch.dict(ADAPTERS["tracker"], failing=f"{__name__}:Failing"):
        settings = {**SMALL, "backend": "remote_backend:RemoteService", "model": "toy", "dataset": "builtin:sort[:64]"}
        k = Kitchen("sft", **settings, trackers=["failing"], snapshot_every=1).run()
        auto = AutoRenderer(k.state["renderer"].tokenizer)
        auto.refused["it shows no tools"] += 1
        k.close()
    return [*k.run_record.log.events, *adapter_events(OfExperts()), *renderer_events(auto)]


def with_failures():
    """Events of stages that fail under each policy, and of a producer and its consumer."""
    tries = Counter()

    def moody(name):
        tries[name] += 1
        if tries[name] == 1:
            raise OSError("away")

    log = MemoryLog()
    flow = Flow(Stage("rolls", lambda: moody("rolls")).with_retry_policy(retries=1, rollback=True), {}, log)
    flow.request_rollback = lambda: None
    parts = (
        flow,
        Flow(Stage("retries", lambda: moody("retries")).with_retry_policy(retries=1, pause=0.001), {}, log),
        Flow(Stage("skips", lambda: 1 / 0, ("a",)).with_retry_policy(skip={"a": None}), {}, log),
        Flow(
            produce(
                "loop", Stage("make", lambda: 3, ("item",)), Stage("use", lambda item: None), "item", 3, lag=1
            ),
            {},
            log,
        ),
    )
    for part in parts:
        with suppress(ZeroDivisionError):
            list(part)
    return log.events


def of_every_method():
    """Events of the recipes that learn otherwise than from answers."""
    methods = [name for name in SMALL_SETTINGS if name not in ("sft", "pretrain")]
    runs = [Kitchen(name, backend="toy", **SMALL_SETTINGS[name]).run() for name in methods]
    runs.append(Kitchen("rl_math", **{**SMALL_SETTINGS["rl_math"], "backend": "toy", **FAULTY}).run())
    return [item for k in runs for item in k.run_record.log.events]


def test_declared_is_emitted_is_documented(logs):
    events = (
        [item for k in logs for item in k.run_record.log.events]
        + with_a_history()
        + with_something_in_the_way()
        + with_failures()
        + with_a_format_of_its_own()
        + with_models_and_trackers_of_all_kinds()
        + with_a_price()
        + of_every_method()
        + [*evaluation_events([Answer(Question("say nothing", (), ""), "so", None, "stop")], "before", "exact_match")]
    )
    emitted = {item.name for item in events}
    assert emitted == EVENTS.keys(), (
        f"never emitted: {EVENTS.keys() - emitted}; undeclared: {emitted - EVENTS.keys()}"
    )
    for kind in EVENTS.values():
        found = [item for item in events if item.name == kind.name]
        measured = {name for item in found for name in item.measurements}
        described = {name for item in found for name in item.metadata}
        assert measured == set(kind.measurements), f"{kind.name}: {set(kind.measurements) ^ measured}"
        assert described == set(kind.metadata), f"{kind.name}: {set(kind.metadata) ^ described}"
    assert set(event_table().event) == EVENTS.keys()


def test_every_stage_and_port_call_is_a_span(logs):
    finished = logs[2]
    done = [item["stage"] for item in finished.log if item.name == "stage.stop"]
    assert done == [part.name for part in stages(finished.driver.recipe.workflow)]
    calls = [(item["port"], item["verb"]) for item in finished.log if item.name == "port.call"]
    steps = sum(item.name == "train.step" for item in finished.log)
    assert (
        calls.count(("training", "forward_backward")) == calls.count(("training", "optim_step")) == steps > 0
    )
    for call in [
        ("datasets", "load"),
        ("service", "create_training_client"),
        ("training", "save_weights"),
        ("training", "save_state"),
        ("sampling", "sample"),
        ("registry", "register"),
    ]:
        assert call in calls, f"{call} is invisible"


def test_the_chain_of_every_run_verifies(logs):
    for k in logs:
        assert EventLog.verify(k.run_dir / "events.jsonl") == len(k.run_record.log.events)


def test_the_failed_run_says_so(logs):
    assert [k.status for k in logs] == ["completed", "completed", "completed", "failed"]
    assert [item["stage"] for item in logs[-1].log if item.name == "stage.error"] == ["train"]


def test_the_page_shows_the_table(logs):
    page = nbformat.read(Path(__file__).parents[2] / "nbs" / "10_core" / "3_telemetry.ipynb", 4)
    assert page.cells[-1].source.endswith("event_table()")
