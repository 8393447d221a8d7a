"""A server that was killed or stopped: clients go on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from served import KEY, row

from kitchen.serve.engine import ServeLimits
from kitchen.serve.models import ReplayLimits

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


def test_what_no_state_has_is_done_again(serve):
    """A killed server's gradients and steps come back, whether or not their client had heard of them."""
    undisturbed = serve()
    session = undisturbed.session()
    wanted_model = undisturbed.model(session)
    wanted = trained(undisturbed, wanted_model, 1, 6)
    before = serve()
    model = before.model()
    losses = trained(before, model, 1, 2)
    after = serve()  # killed after a step
    losses += trained(after, model, 5, 1)
    given = {"data": [row([5, 6, 7, 8])], "loss_fn": "cross_entropy"}
    asked = after.post("forward_backward", {"model_id": model, "seq_id": 7, "forward_backward_input": given}).json()
    again = serve()  # killed with a gradient, which nobody had fetched
    losses.append(again.retrieve(asked["request_id"]).json()["metrics"]["loss:sum"])
    assert again.retrieve(f"{model}:5").json()["metrics"]  # nor is what was fetched before gone
    assert again.step(model, 8)["metrics"]["grad_norm"] > 0
    losses += trained(again, model, 9, 2)
    assert losses == wanted


def test_a_failed_batch_is_not_forgotten(serve):
    before = serve()
    model = before.model()
    assert before.batch(model, 1, [row([5, 1 << 20, 6], target_tokens=[1, 2, 3], weights=[1, 1, 1])])["category"] == "user"
    assert before.post("optim_step", {"model_id": model, "seq_id": 3, "adam_params": {"learning_rate": "fast"}}).status_code == 422
    after = serve()
    assert "no step was made" in after.step(model, 2)["error"]
    assert "learning_rate" in after.retrieve(f"{model}:3").json()["error"]


def test_requests_wait_across_a_restart_for_the_number_before_them(serve):
    wire = serve()
    straight, shuffled = wire.model(seed=3), wire.model(seed=3)
    wanted = trained(wire, straight, 1, 2)
    given = {"data": [row([5, 6, 7, 8])], "loss_fn": "cross_entropy"}
    for seq in (2, 3):
        body = {"model_id": shuffled, "seq_id": seq}
        told = {"forward_backward_input": given} if seq % 2 else {"adam_params": {"learning_rate": 0.05}}
        wire.post("forward_backward" if seq % 2 else "optim_step", body | told)
    after = serve()
    assert after.batch(shuffled, 1)["metrics"]["loss:sum"] == wanted[0]
    assert after.retrieve(f"{shuffled}:3").json()["metrics"]["loss:sum"] == wanted[1]


@pytest.mark.parametrize("limits", [ReplayLimits(), ReplayLimits(bytes=300)], ids=["replayed", "a state after each step"])
def test_samplers_and_results_come_back(serve, limits):
    before = serve(ServeLimits(replay=limits))
    session = before.session()
    model = before.model(session)
    trained(before, model, 1, 2)
    first = before.batch(model, 5, verb="forward")
    held = before.result("save_weights_for_sampler", {"model_id": model, "seq_id": 6, "sampling_session_seq_id": 0})
    params = {"max_tokens": 12, "stop": [], "temperature": 9}  # without a seed
    asked = {"sampling_session_id": held["sampling_session_id"], "prompt": {"chunks": [{"tokens": [5, 6, 7]}]}, "sampling_params": params}
    drawn = [before.result("asample", {**asked, "seq_id": seq, "prompt_logprobs": True}) for seq in (0, 1)]
    assert drawn[0] != drawn[1]
    trained(before, model, 7, 2)
    base = {"session_id": session, "sampling_session_seq_id": 1, "base_model": "tiny"}
    base = before.post("create_sampling_session", base).json()["sampling_session_id"]
    last = before.batch(model, 11, verb="forward")
    after = serve(ServeLimits(replay=limits))
    lost = after.retrieve(f"{held['sampling_session_id']}:1")
    assert lost.status_code == 410  # its client asks again
    assert [after.result("asample", {**asked, "seq_id": seq, "prompt_logprobs": True}) for seq in (0, 1)] == drawn
    assert after.retrieve(f"{base}:1").status_code == 410
    assert after.retrieve(f"{model}:5").json() == first and after.retrieve(f"{model}:11").json() == last
    assert after.retrieve(f"{model}:0").json()["type"] == "create_model"
    assert after.batch(model, 12, verb="forward")["loss_fn_outputs"] == last["loss_fn_outputs"]
    assert after.post("join_sampling_session", {"sampling_session_id": base}).json()["client_counter"] == 1
    again = serve()
    assert again.post("join_sampling_session", {"sampling_session_id": base}).json()["client_counter"] == 2


def test_saving_again_is_saving_once(serve, monkeypatch):
    """A server that dies between saving and noting it finds what it saved."""
    before = serve()
    model = before.model()
    trained(before, model, 1, 1)
    with monkeypatch.context() as patched:
        patched.setattr("kitchen.serve.models.ServedModel._cut", lambda *given: None)
        said = before.result("save_weights", {"model_id": model, "seq_id": 3, "path": "a"})
        named = before.result("save_weights_for_sampler", {"model_id": model, "seq_id": 4, "path": "a"})
    after = serve()
    assert after.retrieve(f"{model}:3").json() == said and after.retrieve(f"{model}:4").json() == named
    assert "there already" in after.result("save_weights", {"model_id": model, "seq_id": 5, "path": "a"})["error"]
    assert len(after.client.get("/api/v1/checkpoints", headers=after.headers).json()["checkpoints"]) == 2


def test_states_go_when_nothing_stands_on_them(serve, tmp_path):
    wire = serve(ServeLimits(replay=ReplayLimits(bytes=300)))
    model = wire.model()

    def stored():
        return sorted(one.name for one in (tmp_path / "states").rglob("*") if one.is_file())

    trained(wire, model, 1, 4)
    wire.batch(model, 9, verb="forward")  # behind the last state of the server's own
    own = stored()
    trained(wire, model, 10, 4)
    wire.batch(model, 18, verb="forward")
    assert len(stored()) == len(own)  # the last one only
    path = wire.result("save_weights", {"model_id": model, "seq_id": 19, "path": "kept"})["path"]
    wire.client.delete(f"/api/v1/training_runs/{model}/checkpoints/weights/kept", headers=wire.headers)
    after = serve()
    assert "loss:sum" in after.batch(model, 20)["metrics"] and path  # the model stands on it still
    after.result("save_weights", {"model_id": model, "seq_id": 21, "path": "next"})
    after.result("forward", {"model_id": model, "seq_id": 22, "forward_input": {"data": [row([5, 6])], "loss_fn": "cross_entropy"}})
    after.engine.tick()
    assert len(stored()) == len(own)
    after.result("unload_model", {"model_id": model})
    assert not list((tmp_path / "serve" / "journals").iterdir())


def test_models_of_ended_sessions_do_not_count(serve):
    wire = serve(ServeLimits(models=2, kept_models=3))
    first = wire.session()
    wire.model(first, 0), wire.model(first, 1)
    full = wire.post("create_model", {"session_id": first, "model_seq_id": 2, "base_model": "tiny"})
    assert full.status_code == 400 and "its limit" in full.json()["detail"]
    assert wire.post(f"sessions/{first}/finish", {}).status_code == 200
    gone = wire.post("optim_step", {"model_id": f"{first}:train:0", "seq_id": 1, "adam_params": {}})
    assert gone.status_code in (404, 410)
    second = wire.session()
    silent = wire.model(second, 0)
    trained(wire, silent, 1, 1)
    wire.engine.seen[second] = 0.0
    os.utime(wire.engine.records._path("sessions", second), (1, 1))  # nothing was heard of it for very long
    third = wire.session()
    wire.model(third, 0), wire.model(third, 1)
    after = serve(ServeLimits(models=2, kept_models=3))  # who comes back goes on
    assert "loss:sum" in after.batch(silent, 3)["metrics"]


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
        stderr=subprocess.PIPE,
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
    waiting = remote.client.post("optim_step", json={"model_id": model, "seq_id": 4, "adam_params": {}}).json()  # for number 3
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(lambda: remote.client.post("retrieve_future", json=waiting).json())
        time.sleep(0.1)
        process.send_signal(how)
        told = poll.result(20) if how == signal.SIGTERM else poll.exception(20)
    assert isinstance(told, httpx.TransportError) or told["type"] == "try_again"
    assert process.stderr is not None and process.stderr.read() in ("", "kitchen: ended by SIGTERM\n")
    assert process.wait(20) == (-how if how == signal.SIGKILL else 143)
    again, address = started(tmp_path, 0, "--max-hours", "0.001")
    stepped = Remote(address).result(
        "optim_step", {"model_id": model, "seq_id": 3, "adam_params": {"learning_rate": 0.1}}
    )
    assert stepped["metrics"]["grad_norm"] > 0  # the gradient was kept, or is made again
    assert again.wait(30) == 0  # by itself, after its time
