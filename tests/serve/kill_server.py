"""Kills a server with SIGKILL again and again while a client trains through it, and compares what the client got with an undisturbed server.

A program of its own, started by test_server_kills.py: it imports everything once and forks a child for the client and one for each life of the
server. All servers listen on one socket, so that a client's next try waits for the next life. It prints a JSON summary.

    python tests/serve/kill_server.py FOLDER BACKEND KILLS SEED
"""

import hashlib
import io
import json
import os
import random
import signal
import sys
import tarfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
from served import KEY, open_engine, row

import kitchen.serve.models as models
import kitchen.serve.server as server_module
from kitchen.serve.engine import ServeLimits
from kitchen.serve.keys import KeyRing
from kitchen.serve.models import ReplayLimits
from kitchen.serve.records import Journal
from kitchen.serve.server import KitchenServer, ServeSettings

MODELS = {"toy": "toy", "torch": "builtin:tiny-chat"}
STEPS = 12


def die() -> None:
    """What the machine does to a process it has no memory for."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_journal_write(number: int) -> None:
    """Die when half of what is written is on disk."""
    plain, calls = Journal._append, Counter()

    def append(journal: Journal, content: bytes) -> None:
        calls["n"] += 1
        if calls["n"] == number:
            plain(journal, content[: len(content) // 2])
            die()
        plain(journal, content)

    Journal._append = append


def around(owner, name: str, number: int, after: bool) -> None:
    """Die before or after the so manieth call."""
    plain, calls = getattr(owner, name), Counter()

    def call(*given, **more):
        calls["n"] += 1
        if calls["n"] == number and not after:
            die()
        value = plain(*given, **more)
        if calls["n"] == number:
            die()
        return value

    setattr(owner, name, call)


HOWS = {
    "in a journal write": lambda rng: in_a_journal_write(rng.randrange(1, 20)),
    "before a batch": lambda rng: around(models, "OpenedModel", 1, True)
    if rng.random() < 0.2
    else around(models.OpenedModel, "carry_out", rng.randrange(1, 9), False),
    "after a batch": lambda rng: around(models.OpenedModel, "carry_out", rng.randrange(1, 9), True),
    "after an answer": lambda rng: around(models.Promise, "settle", rng.randrange(1, 12), True),
    "before a rename": lambda rng: around(os, "replace", rng.randrange(1, 6), False),
    "after a rename": lambda rng: around(os, "replace", rng.randrange(1, 6), True),
    "in a save": lambda rng: around(models, "save_state", 1, rng.random() < 0.5),
}


def serve(listening, folder: Path, backend: str, how: str, rng: random.Random) -> None:
    """One life of the server."""
    server_module._listen = lambda host, port: listening
    limits = ServeLimits(replay=ReplayLimits(bytes=6000), session_idle=1e9)  # it saves states for itself, now and then
    engine = open_engine(folder, limits, backend, MODELS[backend])
    if how:
        HOWS[how](rng)
    KitchenServer(engine, KeyRing(folder / "keys.json", {"ann": KEY}), ServeSettings(stop_seconds=1)).run()


class Client:
    """A client that asks again when nobody answers, as the SDK does."""

    def __init__(self, port: int):
        self.base = f"http://127.0.0.1:{port}/api/v1/"

    def post(self, verb: str, body: dict) -> httpx.Response:
        for _ in range(2000):
            try:
                return httpx.post(self.base + verb, json=body, headers={"X-API-Key": KEY}, timeout=30)
            except httpx.TransportError:
                time.sleep(0.002)
        raise AssertionError("no server")

    def result(self, verb: str, body: dict) -> dict:
        while True:
            asked = self.post(verb, body)
            assert asked.status_code == 200, asked.text
            told = self.fetch(asked.json()["request_id"])
            if told is not None:  # else it is gone, and the request is sent again
                return told

    def fetch(self, request_id: str) -> dict | None:
        while True:
            answer = self.post("retrieve_future", {"request_id": request_id})
            if answer.status_code == 410:
                return None
            told = answer.json()
            assert answer.status_code == 200 and "error" not in told, answer.text
            if told.get("type") != "try_again":
                return told


def train(port: int) -> dict:
    """What a client does: steps in pairs, samplers, states, another model that begins from one of them."""
    client, rng, seq = Client(port), random.Random(7), 0
    session = "0123456789abcdef"  # its own number would be another each time, and draws without a seed with it
    made = client.post("create_session", {"tags": [], "sdk_version": "1"})
    session = made.json()["session_id"]
    create = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 2, "seed": 1}}
    model = client.result("create_model", create)["model_id"]
    found = []
    for step in range(STEPS):
        data = [row([rng.randrange(5, 99) for _ in range(6)]) for _ in range(2)]
        given = {"data": data, "loss_fn": "cross_entropy"}
        told = [
            ("forward_backward", {"forward_backward_input": given}),
            ("optim_step", {"adam_params": {"learning_rate": 0.02}}),
        ]
        numbered = [(verb, {"model_id": model, "seq_id": seq + place, **body}) for place, (verb, body) in enumerate(told, 1)]
        asked = [client.post(verb, body) for verb, body in numbered]
        assert all(one.status_code == 200 for one in asked), [one.text for one in asked]
        results = [client.fetch(one.json()["request_id"]) for one in asked]
        found.append([results[0]["metrics"]["loss:sum"], results[1]["metrics"]["grad_norm"]])
        seq += 2
        if step % 3 == 1:
            seq += 1
            body = {"model_id": model, "seq_id": seq, "sampling_session_seq_id": step}
            held = client.result("save_weights_for_sampler", body)["sampling_session_id"]
            params = {"max_tokens": 8, "stop": [], "temperature": 2.0, "seed": 3}
            body = {"sampling_session_id": held, "seq_id": 0, "sampling_params": params, "num_samples": 2}
            prompt = {"chunks": [{"tokens": [5, 6, 7]}]}
            drawn = client.result("asample", {**body, "prompt": prompt, "prompt_logprobs": True})
            found.append([drawn["sequences"], drawn["prompt_logprobs"]])
        if step % 5 == 3:
            seq += 1
            saved = client.result("save_weights", {"model_id": model, "seq_id": seq, "path": f"at-{step}"})["path"]
    load = {"session_id": session, "model_seq_id": 1, "path": saved, "optimizer": True}
    other = client.result("load_weights", load)["model_id"]
    found.append(client.result("forward", {"model_id": other, "seq_id": 1, "forward_input": given})["metrics"]["loss:sum"])
    client.result("save_weights", {"model_id": model, "seq_id": seq + 1, "path": "end"})
    return {"found": found, "digests": digests(client, f"training_runs/{model}/checkpoints/weights/end/archive")}


def digests(client: Client, address: str) -> dict[str, str]:
    """Of the files of a checkpoint."""
    for _ in range(100):
        try:
            content = httpx.get(client.base + address, headers={"X-API-Key": KEY}, timeout=30, follow_redirects=True).content
            break
        except httpx.TransportError:
            time.sleep(0.01)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        opened = {one.name: archive.extractfile(one) for one in archive.getmembers() if one.isfile()}
        return {name: hashlib.sha256(file.read()).hexdigest() for name, file in opened.items() if file is not None}


def fork(work) -> int:
    """A child that does this and ends."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def story(folder: Path, backend: str, kills: int, seed: int) -> tuple[dict, Counter]:
    """What a client found, and how the servers died."""
    folder.mkdir(parents=True)
    listening, rng, hits, result = server_module._listen("127.0.0.1", 0), random.Random(seed), Counter(), folder / "result.json"
    port = listening.getsockname()[1]
    client = fork(lambda: result.write_text(json.dumps(train(port))))
    lives, ended = 0, None
    while ended is None:
        how = list(HOWS)[lives % len(HOWS)] if sum(hits.values()) < kills else ""
        chance = random.Random(rng.random())
        server = fork(lambda how=how, chance=chance: serve(listening, folder, backend, how, chance))
        lives += 1
        while True:
            gone, status = os.wait()
            if gone == client:
                ended = status
                os.kill(server, signal.SIGKILL)
                os.waitpid(server, 0)
                break
            if gone == server:
                assert os.WIFSIGNALED(status), "a server ended by itself"
                hits[how] += 1
                break
    assert ended == 0, "the client failed"
    return json.loads(result.read_text()), hits


def main(folder: Path, backend: str, kills: int, seed: int) -> dict:
    """The summary."""
    if backend == "torch":
        import torch

        import kitchen.adapters.torch.client  # noqa: F401

        torch.set_num_threads(1)
    began = time.process_time()
    whole, _ = story(folder / "whole", backend, 0, seed)
    killed, hits = story(folder / "killed", backend, kills, seed)
    return {
        "backend": backend,
        "kills": hits,
        "equal metrics": whole["found"] == killed["found"],
        "equal digests": whole["digests"] == killed["digests"] and len(whole["digests"]) > 0,
        "first": next((pair for pair in zip(whole["found"], killed["found"], strict=False) if pair[0] != pair[1]), None),
        "steps": STEPS,
        "seconds": round(time.process_time() - began, 1),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))), flush=True)
