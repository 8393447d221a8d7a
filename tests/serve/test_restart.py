"""A server that was killed or stopped: clients go on where a state stands, and are told where none does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from served import KEY, row

from kitchen.serve.engine import ServeLimits

ROOT = Path(__file__).resolve().parents[2]


def trained(wire, model, first, steps):
    """Steps from this number on; the losses."""
    losses = []
    for index in range(steps):
        losses.append(wire.batch(model, first + 2 * index)["metrics"]["loss:sum"])
        assert "grad_norm" in wire.step(model, first + 2 * index + 1)["metrics"]
    return losses


def test_a_client_goes_on_with_the_numbers_it_has(serve):
    undisturbed = serve()
    same = trained(undisturbed, undisturbed.model(), 1, 5)
    before = serve()
    model = before.model()
    losses = trained(before, model, 1, 3)
    saved = before.result("save_weights", {"model_id": model, "seq_id": 7, "path": "three"})["path"]
    after = serve()  # the first is left as a killed one is: nothing of it was closed
    assert (
        after.result("save_weights", {"model_id": model, "seq_id": 7, "path": "three"})["path"] == saved
    )  # sent again: not saved again
    assert after.retrieve(f"{model}:7").json()["path"] == saved
    losses += trained(after, model, 8, 2)
    assert losses == same


def test_unsaved_gradients_that_are_gone_are_named(serve):
    before = serve()
    model = before.model()
    trained(before, model, 1, 2)
    before.result("save_weights", {"model_id": model, "seq_id": 5, "path": "two"})
    wanted = before.batch(model, 6, verb="forward")["metrics"]["loss:sum"]
    before.batch(model, 7)  # of this no state tells
    after = serve()
    for verb, body in (
        ("optim_step", {"adam_params": {}}),
        ("save_weights", {"path": "x"}),
        ("save_weights_for_sampler", {"path": "x"}),
    ):
        failure = after.result(
            verb, {"model_id": model, "seq_id": {"optim_step": 8, "save_weights": 9}.get(verb, 10), **body}
        )
        assert failure["category"] == "server" and "lost" in failure["error"], failure
    again = serve()  # that it is lost is not forgotten either
    assert "lost" in again.batch(model, 11)["error"]
    loaded = again.result(
        "load_weights",
        {"model_id": model, "seq_id": 12, "path": f"tinker://{model}/weights/two", "optimizer": True},
    )
    assert (
        loaded["path"].endswith("two")
        and again.batch(model, 13, verb="forward")["metrics"]["loss:sum"] == wanted
    )
    fresh = again.session()
    body = {
        "session_id": fresh,
        "model_seq_id": 0,
        "path": f"tinker://{model}/weights/two",
        "optimizer": True,
    }
    assert again.result("load_weights", body)["model_id"] == f"{fresh}:train:0"


def test_results_that_went_are_told_apart(serve):
    before = serve()
    session = before.session()
    model = before.model(session)
    before.batch(model, 1, verb="forward")
    held = before.result(
        "save_weights_for_sampler", {"model_id": model, "seq_id": 2, "sampling_session_seq_id": 0}
    )["sampling_session_id"]
    base = before.post(
        "create_sampling_session", {"session_id": session, "sampling_session_seq_id": 1, "base_model": "tiny"}
    ).json()
    after = serve()
    assert "its result is gone" in after.retrieve(f"{model}:1").json()["error"]
    assert "before request 9" in after.retrieve(f"{model}:9").json()["error"]
    assert (
        after.retrieve(f"{held}:1").status_code == 404
        and "not saved by name" in after.retrieve(f"{held}:1").json()["detail"]
    )
    assert after.retrieve(f"{base['sampling_session_id']}:1").status_code == 410  # its client asks again
    assert "loss:sum" in after.batch(model, 3)["metrics"]  # a model that nothing changed is as it was


def test_the_same_request_adds_one_gradient(serve):
    wire = serve()
    once, twice = wire.model(seed=3), wire.model(seed=3)
    for model, times in ((once, 1), (twice, 3)):
        for _ in range(times):
            wire.batch(model, 1)
    assert wire.step(once, 2)["metrics"]["grad_norm"] == wire.step(twice, 2)["metrics"]["grad_norm"]
    clash = wire.post("optim_step", {"model_id": once, "seq_id": 1, "adam_params": {}})
    assert clash.status_code == 400 and "was forward_backward" in clash.json()["detail"]


def test_requests_run_in_the_order_of_their_numbers(serve):
    wire = serve()
    straight, shuffled = wire.model(seed=3), wire.model(seed=3)
    wanted = trained(wire, straight, 1, 3)
    asked = {}
    for seq in (6, 2, 5, 4, 3, 1):
        body = {"model_id": shuffled, "seq_id": seq}
        given = {"forward_backward_input": {"data": [row([5, 6, 7, 8])], "loss_fn": "cross_entropy"}}
        verb = "forward_backward" if seq % 2 else "optim_step"
        asked[seq] = wire.post(
            verb, body | (given if seq % 2 else {"adam_params": {"learning_rate": 0.05}})
        ).json()["request_id"]
    assert [wire.retrieve(asked[seq]).json()["metrics"]["loss:sum"] for seq in (1, 3, 5)] == wanted


def test_samplers_stay_what_they_were(serve):
    wire = serve(limits=ServeLimits(samplers=2))
    session = wire.session()
    model = wire.model(session)

    def score(sampler, seq):
        params = {"max_tokens": 1, "seed": 1}
        body = {
            "sampling_session_id": sampler,
            "seq_id": seq,
            "prompt": {"chunks": [{"tokens": [5, 6, 7]}]},
            "sampling_params": params,
        }
        return wire.result("asample", {**body, "prompt_logprobs": True})["prompt_logprobs"]

    def hold(seq, number):
        return wire.result(
            "save_weights_for_sampler", {"model_id": model, "seq_id": seq, "sampling_session_seq_id": number}
        )["sampling_session_id"]

    first = hold(1, 0)
    before = score(first, 0)
    trained(wire, model, 2, 2)
    second = hold(6, 1)
    assert score(first, 1) == before != score(second, 0)
    hold(7, 2)  # a third: the first is let go
    gone = wire.post(
        "asample",
        {
            "sampling_session_id": first,
            "seq_id": 2,
            "prompt": {"chunks": [{"tokens": [5]}]},
            "sampling_params": {},
        },
    )
    assert gone.status_code == 404 and "newer ones" in gone.json()["detail"]


def test_checkpoints_expire(serve, monkeypatch):
    wire = serve()
    model = wire.model()
    path = wire.result("save_weights", {"model_id": model, "seq_id": 1, "path": "brief", "ttl_seconds": 10})[
        "path"
    ]
    assert wire.post("weights_info", {"tinker_path": path}).json()["base_model"] == "tiny"
    later = time.time() + 11
    monkeypatch.setattr("kitchen.serve.records.time.time", lambda: later)
    assert wire.post("weights_info", {"tinker_path": path}).status_code == 404
    assert wire.client.get("/api/v1/checkpoints", headers=wire.headers).json()["checkpoints"] == []


def started(folder: Path, port: int = 0, *words: str):
    """The command in a process of its own, and its address."""
    command = [
        sys.executable,
        "-c",
        "from kitchen.cli.main import main; main(prog_name='kitchen')",
        "serve",
        "--backend",
        "toy",
        "--model",
        "tiny=toy",
    ]
    environment = {**os.environ, "KITCHEN_SERVE_KEY": KEY, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--folder", str(folder), "--port", str(port), *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdout.readline().startswith("serving")
    return process, process.stdout.readline().split()[1]


class Remote:
    """A client over a real connection."""

    def __init__(self, address: str):
        self.client = httpx.Client(base_url=f"{address}/api/v1/", headers={"X-API-Key": KEY}, timeout=30)

    def result(self, verb: str, body: dict):
        for _ in range(200):  # until it listens
            try:
                asked = self.client.post(verb, json=body).json()
                return (
                    self.client.post("retrieve_future", json=asked).json() if "request_id" in asked else asked
                )
            except httpx.ConnectError:
                time.sleep(0.05)
        raise AssertionError("no server")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_processes_that_are_ended(tmp_path, how):
    process, address = started(tmp_path)
    remote = Remote(address)
    session = remote.result("create_session", {"tags": [], "sdk_version": "1"})["session_id"]
    model = remote.result(
        "create_model",
        {
            "session_id": session,
            "model_seq_id": 0,
            "base_model": "tiny",
            "lora_config": {"rank": 2, "seed": 1},
        },
    )["model_id"]
    given = {"data": [row([5, 6, 7, 8])], "loss_fn": "cross_entropy"}
    remote.result("save_weights", {"model_id": model, "seq_id": 1, "path": "start"})
    remote.result("forward_backward", {"model_id": model, "seq_id": 2, "forward_backward_input": given})
    process.send_signal(how)
    assert process.wait(20) == (-how if how == signal.SIGKILL else 143)
    again, address = started(tmp_path, 0, "--max-hours", "0.001")
    stepped = Remote(address).result(
        "optim_step", {"model_id": model, "seq_id": 3, "adam_params": {"learning_rate": 0.1}}
    )
    if how == signal.SIGKILL:
        assert stepped["category"] == "server" and "lost" in stepped["error"]
    else:  # the gradient was saved before the end
        assert stepped["metrics"]["grad_norm"] > 0
    assert again.wait(30) == 0  # by itself, after its time
