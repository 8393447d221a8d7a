"""Declared = emitted = documented, on real runs; every stage and port call is in the log."""

import json
from pathlib import Path

import nbformat
import pytest

from kitchen.session import Kitchen
from kitchen.store import EventLog
from kitchen.telemetry import EVENTS, event_table
from kitchen.workflow import stages

SMALL = {"backend": "toy", "epochs": 1, "batch_size": 16, "held_out": 8, "graded": 4, "max_tokens": 8}


@pytest.fixture
def logs(chats):
    """Events of a run that ends well, of one with a row set aside, and of one that fails."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(40)
    ]
    runs = []
    for settings in (
        {"dataset": f"file:{chats([*rows, {'messages': []}])}", "on_bad_row": "set_aside"},
        {"dataset": "builtin:sort[:64]"},
        {"dataset": "builtin:sort[:64]", "learning_rate": 1e308, "grad_clip_norm": 0.0},
    ):
        k = Kitchen("sft", **SMALL, **settings)
        try:
            k.run()
        except Exception:  # the third fails, on purpose
            assert "1e+308" in json.dumps(k.run_record.spec.config)
        k.close()
        runs.append(k)
    return runs


def test_declared_is_emitted_is_documented(logs):
    emitted = {item.name for k in logs for item in k.log}
    assert emitted == EVENTS.keys(), (
        f"never emitted: {EVENTS.keys() - emitted}; undeclared: {emitted - EVENTS.keys()}"
    )
    for kind in EVENTS.values():
        found = [item for k in logs for item in k.log if item.name == kind.name]
        measured = {name for item in found for name in item.measurements}
        described = {name for item in found for name in item.metadata}
        assert measured == set(kind.measurements), f"{kind.name}: {set(kind.measurements) ^ measured}"
        assert described == set(kind.metadata), f"{kind.name}: {set(kind.metadata) ^ described}"
    assert set(event_table().event) == EVENTS.keys()


def test_every_stage_and_port_call_is_a_span(logs):
    finished = logs[1]
    done = [item["stage"] for item in finished.log if item.name == "stage.stop"]
    assert done == [part.name for part in stages(finished.recipe.workflow)]
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
        assert EventLog.verify(k.run_dir / "events.jsonl") == len(k.log)


def test_the_failed_run_says_so(logs):
    assert [k.status for k in logs] == ["completed", "completed", "failed"]
    assert [item["stage"] for item in logs[2].log if item.name == "stage.error"] == ["train"]


def test_the_page_shows_the_table(logs):
    page = nbformat.read(Path(__file__).parents[1] / "nbs" / "12_telemetry.ipynb", 4)
    assert page.cells[-1].source.endswith("event_table()")
