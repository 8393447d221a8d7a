"""A server over the toy backend, asked through Starlette's client: no process, no port, no SDK."""

import numpy as np
from fastapi.testclient import TestClient

from kitchen.ports.registry import create_adapter
from kitchen.serve.backend import ServedBackend
from kitchen.serve.engine import ServeEngine

KEY, OTHER_KEY = "tml-" + "a" * 30, "tml-" + "b" * 30


class Wire:
    """A client of the wire with one key."""

    def __init__(self, client: TestClient, key: str = KEY):
        self.client, self.headers = client, {"X-API-Key": key}
        self.engine: ServeEngine = getattr(client.app, "app", client.app).state.engine

    def post(self, verb: str, body=None, **more):
        return self.client.post(f"/api/v1/{verb}", json=body, headers={**self.headers, **more})

    def retrieve(self, request_id: str, accept: str = "application/json"):
        return self.post("retrieve_future", {"request_id": request_id}, Accept=accept)

    def result(self, verb: str, body):
        answer = self.post(verb, body)
        assert answer.status_code == 200, answer.text
        return self.retrieve(answer.json()["request_id"]).json()

    def session(self) -> str:
        return self.post("create_session", {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"}).json()[
            "session_id"
        ]

    def model(self, session: str | None = None, number: int = 0, base: str = "tiny", **lora) -> str:
        config = {"rank": 4, "seed": 11} | lora
        body = {
            "session_id": session or self.session(),
            "model_seq_id": number,
            "base_model": base,
            "lora_config": config,
        }
        return self.result("create_model", body)["model_id"]

    def batch(
        self, model: str, seq: int, rows=None, verb: str = "forward_backward", loss: str = "cross_entropy"
    ):
        given = {"data": rows or [row([5, 6, 7, 8])], "loss_fn": loss}
        key = "forward_input" if verb == "forward" else "forward_backward_input"
        return self.result(verb, {"model_id": model, "seq_id": seq, key: given})

    def step(self, model: str, seq: int, rate: float = 0.05):
        return self.result(
            "optim_step", {"model_id": model, "seq_id": seq, "adam_params": {"learning_rate": rate}}
        )


def row(tokens, **inputs) -> dict:
    """A datum in JSON; without inputs, one that predicts its own next tokens."""
    told = inputs or {"target_tokens": [*tokens[1:], 0], "weights": [1.0] * len(tokens)}
    arrays = {
        name: {
            "data": np.asarray(values).ravel().tolist(),
            "dtype": "int64" if name == "target_tokens" else "float32",
            "shape": list(np.shape(values)),
        }
        for name, values in told.items()
    }
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]},
        "loss_fn_inputs": arrays,
    }


def open_engine(folder, limits=None, backend="toy", model="toy") -> ServeEngine:
    """An engine over a folder, as a server that was started anew has it."""
    service = create_adapter("service", backend, directory=folder / "states")
    return ServeEngine(ServedBackend(service, {"tiny": model}), folder / "serve", limits)
