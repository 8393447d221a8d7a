"""Whoever has no key gets nothing, whoever has one gets only what is theirs, and nothing that is sent ends a server or hangs a client."""

import json
import random
import socket
import threading
import time

import pytest
from served import KEY, OTHER_KEY, Wire, open_engine, row

from kitchen.serve.engine import ServeLimits
from kitchen.serve.guard import GuardLimits
from kitchen.serve.keys import KeyRing
from kitchen.serve.server import KitchenServer, PatientProtocol, ServeSettings
from kitchen.serve.tinker import training_routes
from kitchen.types import InvalidValue

STRANGER = {"X-API-Key": OTHER_KEY}


def every_address() -> list[tuple[str, str]]:
    """Method and address of each route, with something in the place of its parameters."""
    names = {"{model_id}": "m", "{session_id}": "s", "{sampler_id}": "s", "{kind}": "weights", "{name}": "n"}
    found = []
    for route in training_routes.routes:
        path = route.path
        for name, value in names.items():
            path = path.replace(name, value)
        found += [(method, path) for method in route.methods]
    return found


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-API-Key": ""}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": KEY + "x"}, {"Authorization": "Bearer"}],
)
def test_without_the_key_no_address_says_anything(wire, headers):
    for method, path in [
        *every_address(),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ]:
        answer = wire.client.request(method, path, headers=headers, content=b"{}")
        permitted = path.startswith("/api/v1/download/")  # its permission is in its address
        assert answer.status_code == (422 if permitted else 401), (method, path, answer.text)
    assert wire.client.get("/openapi.json", headers=wire.headers).status_code == 404


def test_another_key_sees_nothing(wire):
    session = wire.session()
    model = wire.model(session)
    wire.batch(model, 1)
    wire.step(model, 2)
    saved, named = (wire.result(verb, {"model_id": model, "seq_id": seq, "path": "a"})["path"]
                    for seq, verb in ((3, "save_weights"), (4, "save_weights_for_sampler")))  # fmt: skip
    held = wire.result(
        "save_weights_for_sampler", {"model_id": model, "seq_id": 5, "sampling_session_seq_id": 0}
    )["sampling_session_id"]
    other = Wire(wire.client, OTHER_KEY)
    mine = other.session()
    prompt = {"prompt": {"chunks": [{"tokens": [5]}]}, "sampling_params": {"max_tokens": 1}}
    given = {"data": [row([5, 6])], "loss_fn": "cross_entropy"}
    attempts = [
        ("get_info", {"model_id": model}),
        ("unload_model", {"model_id": model}),
        ("forward_backward", {"model_id": model, "seq_id": 6, "forward_backward_input": given}),
        ("optim_step", {"model_id": model, "seq_id": 6, "adam_params": {}}),
        ("save_weights", {"model_id": model, "seq_id": 6, "path": "b"}),
        ("save_weights_for_sampler", {"model_id": model, "seq_id": 6, "path": "b"}),
        ("load_weights", {"model_id": model, "seq_id": 6, "path": saved}),
        ("load_weights", {"session_id": mine, "model_seq_id": 0, "path": saved, "optimizer": True}),
        (
            "create_model",
            {"session_id": session, "model_seq_id": 1, "base_model": "tiny", "lora_config": {"rank": 2}},
        ),
        ("create_sampling_session", {"session_id": mine, "sampling_session_seq_id": 0, "model_path": named}),
        (
            "create_sampling_session",
            {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"},
        ),
        ("asample", {**prompt, "sampling_session_id": held, "seq_id": 1}),
        ("asample", {**prompt, "model_path": named}),
        ("join_sampling_session", {"sampling_session_id": held}),
        ("retrieve_future", {"request_id": f"{model}:1"}),
        ("cancel_future", {"request_id": f"{model}:1"}),
        ("session_heartbeat", {"session_id": session}),
        ("weights_info", {"tinker_path": saved}),
        (f"sessions/{session}/finish", {}),
    ]
    for verb, body in attempts:
        assert other.post(verb, body).status_code == 404, verb
    addresses = [
        f"training_runs/{model}",
        f"sessions/{session}",
        f"samplers/{held}",
        f"training_runs/{model}/checkpoints/weights/a/archive",
    ]
    for address in addresses:
        assert wire.client.get(f"/api/v1/{address}", headers=STRANGER).status_code == 404, address
    assert (
        wire.client.delete(
            f"/api/v1/training_runs/{model}/checkpoints/weights/a", headers=STRANGER
        ).status_code
        == 404
    )
    assert wire.client.get("/api/v1/checkpoints", headers=STRANGER).json()["checkpoints"] == []
    assert wire.client.get("/api/v1/training_runs", headers=STRANGER).json()["training_runs"] == []
    assert wire.client.get("/api/v1/sessions", headers=STRANGER).json()["sessions"] == [mine]
    assert "loss:sum" in wire.batch(model, 6)["metrics"]  # and nothing of it has changed


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../a",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".a",
        "a\0",
        "-rf",
        "x" * 129,
        "é",
        "a\n",
        "C:a",
        "",
        "%2e%2e",
    ],
)
def test_names_are_no_paths(wire, tmp_path, name):
    model = wire.model()
    before = sorted(tmp_path.rglob("*"))
    for seq, verb in ((1, "save_weights"), (2, "save_weights_for_sampler")):
        refused = wire.post(verb, {"model_id": model, "seq_id": seq, "path": name})
        assert refused.status_code == 422, refused.text
    for path in (
        f"tinker://{model}/weights/{name}",
        f"tinker://{name}/weights/a",
        f"tinker://{model}/{name}/a",
        name or "x",
    ):
        assert wire.post(
            "load_weights", {"session_id": wire.session(), "model_seq_id": 0, "path": path}
        ).status_code in (404, 422), path
    gone = wire.client.get(
        f"/api/v1/training_runs/{model}/checkpoints/weights/..%2f..%2fkeys", headers=wire.headers
    )
    assert gone.status_code == 404
    assert "loss:sum" in wire.batch(model, 3)["metrics"]  # the numbers of what was refused are taken
    assert [
        path
        for path in sorted(tmp_path.rglob("*"))
        if path not in before and "sessions" not in path.parts and path.suffix != ".jsonl"
    ] == []


@pytest.mark.parametrize("base", ["/etc", "../keys", "", "toy", "init:/etc", "tiny/..", "\0"])
def test_models_are_those_of_the_table(wire, base):
    body = {"session_id": wire.session(), "model_seq_id": 0, "base_model": base, "lora_config": {"rank": 2}}
    assert wire.post("create_model", body).status_code == 422
    assert (
        wire.post(
            "create_sampling_session",
            {"session_id": wire.session(), "sampling_session_seq_id": 0, "base_model": base},
        ).status_code
        == 422
    )


def mutated(rng: random.Random, value):
    """JSON with something in it changed: another type, another size, gone, or far too large."""
    odd = [
        None,
        True,
        -1,
        1 << 70,
        1e308,
        "",
        "x" * 5000,
        [],
        {},
        [[]],
        "NaN",
        {"a": {"b": [1]}},
        [None],
        0.5,
        "\ud800",
    ]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], mutated(rng, value[index]), *value[index + 1 :]]
    return rng.choice(odd)


def test_fuzzed_requests_are_refused_or_taken_and_nothing_dies(serve):
    wire, rng = serve(poll=0.05, limits=ServeLimits(patience=0.0)), random.Random(5)
    session = wire.session()
    model = wire.model(session)
    given = {
        "data": [row([5, 6, 7])],
        "loss_fn": "cross_entropy",
        "loss_fn_config": {"clip_low_threshold": 0.8},
    }
    prompt = {
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5]}]},
        "sampling_params": {"max_tokens": 2, "stop": ["a"]},
        "num_samples": 1,
    }
    good = [
        ("create_session", {"tags": [], "user_metadata": {"a": 1}, "sdk_version": "1"}),
        (
            "create_model",
            {
                "session_id": session,
                "model_seq_id": 7,
                "base_model": "tiny",
                "lora_config": {"rank": 2, "seed": 3},
            },
        ),
        ("forward_backward", {"model_id": model, "seq_id": 1, "forward_backward_input": given}),
        ("forward", {"model_id": model, "seq_id": 1, "forward_input": given}),
        ("optim_step", {"model_id": model, "seq_id": 1, "adam_params": {"learning_rate": 0.1, "beta1": 0.9}}),
        ("save_weights", {"model_id": model, "seq_id": 1, "path": "a", "ttl_seconds": 5000}),
        (
            "load_weights",
            {"model_id": model, "seq_id": 1, "path": f"tinker://{model}/weights/a", "optimizer": True},
        ),
        ("save_weights_for_sampler", {"model_id": model, "seq_id": 1, "sampling_session_seq_id": 1}),
        (
            "create_sampling_session",
            {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"},
        ),
        ("asample", {**prompt, "base_model": "tiny", "prompt_logprobs": True, "topk_prompt_logprobs": 1}),
        ("retrieve_future", {"request_id": f"{model}:1"}),
        ("get_info", {"model_id": model}),
    ]
    statuses = []
    for _ in range(240):
        verb, body = rng.choice(good)
        for _ in range(rng.randrange(1, 3)):
            body = mutated(rng, body)
        text = (
            json.dumps(body).encode()
            if rng.random() < 0.85
            else rng.choice([b"", b"{", b"[" * 50_000, b"\xff\xfe", b"nul", rng.randbytes(300)])
        )
        kind = rng.choice(["application/json"] * 4 + ["application/x-protobuf", "text/plain", ""])
        answer = wire.client.post(
            f"/api/v1/{verb}", content=text, headers={**wire.headers, "content-type": kind}
        )
        statuses.append(answer.status_code)
        assert answer.status_code < 500 and answer.status_code not in (408, 409), (
            verb,
            kind,
            text[:300],
            answer.text,
        )
        assert "Traceback" not in answer.text and len(answer.text) < 20_000
        if answer.status_code == 200 and "request_id" in answer.json():
            assert wire.retrieve(answer.json()["request_id"]).status_code == 200
    assert {200, 404, 422} <= set(statuses)
    fresh = wire.model(session, 99)  # all the same, the server trains
    assert "loss:sum" in wire.batch(fresh, 1)["metrics"] and "grad_norm" in wire.step(fresh, 2)["metrics"]


def test_sizes_and_queues_are_bounded(serve):
    wire = serve(limits=ServeLimits(waiting=4, models=2), guard=GuardLimits(body=20_000))
    assert (
        wire.client.post("/api/v1/forward_backward", content=b"x" * 20_001, headers=wire.headers).status_code
        == 413
    )
    chunks = (b"x" * 1000 for _ in range(30))  # of no length that is told
    assert (
        wire.client.post("/api/v1/forward_backward", content=chunks, headers=wire.headers).status_code == 413
    )
    packed = {**wire.headers, "content-encoding": "zstd"}
    assert wire.client.post("/api/v1/forward_backward", content=b"x", headers=packed).status_code == 415
    session = wire.session()
    model = wire.model(session)
    body = {"model_id": model, "forward_input": {"data": [row([5, 6])], "loss_fn": "cross_entropy"}}
    statuses = [
        wire.post("forward", {**body, "seq_id": seq}).status_code for seq in range(2, 8)
    ]  # number 1 does not come
    assert statuses == [200] * 4 + [429] * 2
    assert wire.post("forward", {**body, "seq_id": 10**6}).status_code == 400
    wire.model(session, 1)
    full = wire.post(
        "create_model",
        {"session_id": session, "model_seq_id": 2, "base_model": "tiny", "lora_config": {"rank": 2}},
    )
    assert full.status_code == 400 and "unload" in full.json()["detail"]


def test_addresses_of_downloads_cannot_be_made_up(wire):
    model = wire.model()
    wire.batch(model, 1), wire.step(model, 2)
    wire.result("save_weights_for_sampler", {"model_id": model, "seq_id": 3, "path": "a"})
    found = wire.client.get(
        f"/api/v1/training_runs/{model}/checkpoints/sampler_weights/a/archive", headers=wire.headers
    )
    assert found.status_code == 302
    there = found.headers["location"]
    assert wire.client.get(there).status_code == 200
    for wrong in (
        there[:-1] + ("0" if there[-1] != "0" else "1"),
        there.replace("until=", "until=9"),
        there.replace("sampler_weights", "weights"),
    ):
        assert wire.client.get(wrong).status_code == 403


@pytest.fixture
def listening(tmp_path, monkeypatch):
    """A server on a port, of little patience."""
    monkeypatch.setattr(PatientProtocol, "head_seconds", 0.2)
    keys = KeyRing(tmp_path / "keys.json", {"ann": KEY})
    server = KitchenServer(
        open_engine(tmp_path),
        keys,
        ServeSettings(port=0, stop_seconds=1),
        limits=GuardLimits(receive_seconds=0.2),
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.server.started:
        time.sleep(0.005)
    yield server
    server.stop()
    thread.join(10)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST /api/v1/forward_back", b""),
        (
            b"POST /api/v1/telemetry HTTP/1.1\r\nhost: x\r\nx-api-key: "
            + KEY.encode()
            + b"\r\ncontent-length: 9\r\n\r\n{",
            b"HTTP/1.1 408",
        ),
        (b"\x16\x03\x01\x00\x00\r\n\r\n", b"HTTP/1.1 400"),
    ],
)
def test_slow_clients_are_let_go(listening, sent, answer):
    with socket.create_connection(listening.socket.getsockname()[:2], timeout=5) as slow:
        slow.sendall(sent)
        told = b""
        while piece := slow.recv(4096):  # ends when the server closes
            told += piece
    assert told.startswith(answer) and (answer or not told)


def test_one_folder_has_one_server(listening, tmp_path):
    with pytest.raises(InvalidValue, match="another server uses"):
        KitchenServer(open_engine(tmp_path), KeyRing(tmp_path / "keys.json"), ServeSettings(port=0))
