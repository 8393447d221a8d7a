"""A stand-in of Together's training operations, in REST, over kitchen's toy: `python together_standin.py --port 8000`.

The key is in $KITCHEN_SERVE_KEY. It answers what the `together` package asks for (its OpenAPI types name the paths and fields), one operation
after the other, each done when it is asked for. Of the service's own habits it has those that a client must know: positions of weight 0 are
masked, steps tell no metrics, a sampler draws from the weights published last.
"""

import argparse
import itertools
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request

from kitchen.adapters.toy.client import ToyService
from kitchen.types import AdamParams, Datum, InvalidValue, LoraParams, SamplingParams

LOSSES = {f"LOSS_TYPE_{name.upper()}": name for name in ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")}
NOW = datetime.now(UTC).isoformat()
CLIPS = {"ppo": ("clip_low_threshold", "clip_high_threshold"), "cispo": ("clip_low_threshold", "clip_high_threshold"), "dro": ("beta",)}


class Session:
    """One training session: a client of the toy, its last published sampler, the operations that it has done."""

    def __init__(self, model: str, training, service: ToyService):
        self.model, self.training, self.step, self.done = model, training, 0, {}
        self.sampler = service.create_sampling_client(model)


class StandIn:
    """Machines, sessions and checkpoints of one service."""

    def __init__(self, folder: Path):
        self.service, self.folder, self.number = ToyService(folder), folder, itertools.count(1)
        self.machines: dict[str, str] = {}
        self.sessions: dict[str, Session] = {}
        self.checkpoints: dict[str, tuple[str, str, int]] = {}  # id -> path, model, rank

    def name(self, kind: str) -> str:
        """A new id."""
        return f"{kind}-{next(self.number):06d}"

    def machine(self, name: str, status: str = "READY") -> dict:
        """Model resources, as the service tells them."""
        return {
            "id": name, "base_model": self.machines[name], "compute_config": {"num_generator_replicas": 1}, "created_at": NOW, "created_by": "test",
            "inactive_timeout": 300, "lora_enabled": True, "optimizer_config": {}, "status": f"MODEL_RESOURCES_STATUS_{status}", "status_details": {},
            "updated_at": NOW,
        }  # fmt: skip

    def session(self, name: str, status: str = "RUNNING") -> dict:
        """A session, as the service tells it."""
        state = {"applied_weights_version": 0, "pending_publish": False, "target_weights_version": 0, "trainer_step": self.sessions[name].step}
        return {
            "id": name, "base_model": self.sessions[name].model, "created_at": NOW, "created_by": "test", "inference_checkpoints": [], "metadata": {},
            "model_resources_id": "machine", "policy_state": state, "status": f"TRAINING_SESSION_STATUS_{status}", "step": self.sessions[name].step,
            "training_checkpoints": [], "updated_at": NOW,
        }  # fmt: skip

    def open(self, asked: dict) -> str:
        """A new session, or one that goes on from a checkpoint."""
        model, lora, name = self.machines[asked["model_resources_id"]], asked.get("lora_config") or {}, self.name("session")
        if saved := asked.get("resume_from_checkpoint_id"):
            path = self.checkpoints[saved][0]
            training = self.service.create_training_client_from_state(path, asked.get("load_optimizer", True))
        else:
            rank = LoraParams(lora.get("rank", 16), 32.0, train_unembed=lora.get("train_unembed", True))
            training = self.service.create_training_client(model, rank, int(lora.get("seed") or 0))
        self.sessions[name] = Session(model, training, self.service)
        return name

    def run(self, session: Session, verb: str, asked: dict) -> dict | None:
        """The output of one operation."""
        return getattr(self, f"do_{verb.replace('-', '_')}")(session, asked)

    def do_forward_backward(self, session: Session, asked: dict) -> dict:
        loss = LOSSES[asked["loss"]["type"]]
        settings = next((dict(value) for key, value in asked["loss"].items() if key.endswith("_params")), {})
        data = [datum_of(one) for one in asked["samples"]]
        verb = session.training.forward if asked.get("forward_only") else session.training.forward_backward
        found = verb(data, loss, {key: value for key, value in settings.items() if key in CLIPS.get(loss, ())} or None).result()
        shown = [masked(out["logprobs"], datum) for out, datum in zip(found.loss_fn_outputs, data, strict=True)]
        told = [{"tensors": {"logprobs": {"data": one, "dtype": "float32"}}} for one in shown]
        return {"loss": found.loss_sum, "metrics": {}, "loss_fn_outputs": told if asked.get("return_loss_fn_outputs") else None}

    def do_optim_step(self, session: Session, asked: dict) -> dict:
        session.training.optim_step(AdamParams(**{"grad_clip_norm": 1.0, **asked["adam_params"]}, weight_decay_on="all")).result()
        session.step += 1
        return {"step": session.step}

    def do_weights_sync(self, session: Session, asked: dict) -> dict:
        session.sampler = session.training.create_sampling_client()
        return {"weights_version": session.step}

    def do_training_checkpoint(self, session: Session, asked: dict) -> dict:
        name = self.name("checkpoint")
        self.checkpoints[name] = (session.training.save_state(name).result().path, session.model, 8)
        return {"checkpoint": {"id": name, "created_at": NOW, "step": session.step}}

    def do_inference_checkpoint(self, session: Session, asked: dict) -> dict:
        name = self.name("export")
        session.training.save_weights(self.folder / name).result()
        return {"checkpoint": {"id": name, "created_at": NOW, "step": session.step}}

    def do_sample(self, session: Session, asked: dict) -> dict:
        told = asked.get("sampling_params") or {}
        params = SamplingParams(
            told.get("max_tokens", 16), temperature=told.get("temperature", 1.0), top_k=told.get("top_k", -1), top_p=told.get("top_p", 1.0),
            seed=told.get("seed"), stop=tuple(told["stop"]) if told.get("stop") else None,
        )  # fmt: skip
        return {"results": [self.sampled(session, one, asked, params) for one in asked["model_inputs"]]}

    def sampled(self, session: Session, prompt: dict, asked: dict, params: SamplingParams) -> dict:
        """Answers to one prompt."""
        tokens = tokens_of(prompt)
        drawn = session.sampler.sample(tokens, int(asked.get("num_samples") or 1), params).result().completions
        sequences = [
            {
                "tokens": list(one.tokens), "logprobs": list(one.logprobs), "prompt_cache_hit_tokens": 0,
                "stop_reason": "STOP_REASON_STOP" if one.stop_reason == "stop" else "STOP_REASON_LENGTH",
            }
            for one in drawn
        ]  # fmt: skip
        found = {"policy_segments": [{"start_token": 0, "version": session.step}], "sequences": sequences}
        if asked.get("prompt_logprobs"):
            found["prompt_logprobs"] = [0.0, *session.sampler.compute_logprobs(tokens).result()[1:]]
        return found


def tokens_of(prompt: dict) -> list[int]:
    """Ids of a model input."""
    return [int(token) for chunk in prompt["chunks"] for token in chunk["encoded_text"]["tokens"]]


def datum_of(sample: dict) -> Datum:
    """A sample as a datum."""
    given = {name: np.array(one["data"], np.float32) for name, one in sample["loss_fn_inputs"].items()}
    targets = given.pop("target_tokens").astype(np.int64)
    return Datum(np.array(tokens_of(sample["model_input"]), np.int64), {"targets": targets, **given})


def masked(logprobs: np.ndarray, datum: Datum) -> list[float]:
    """Log-probabilities, 0 where the loss leaves a position out."""
    weights = datum.loss_fn_inputs.get("weights", np.ones(len(datum)))
    return np.where(weights == 0, 0.0, logprobs).tolist()


def make_app(service: StandIn, key: str) -> FastAPI:
    """The routes."""

    def check(request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {key}":
            raise HTTPException(401, "no such key")

    app = FastAPI(dependencies=[Depends(check)])
    base = "/v1/rl/training-sessions"

    @app.post("/v1/rl/model-resources")
    async def create_machine(request: Request):
        name = service.name("machine")
        service.machines[name] = (await request.json())["base_model"]
        return service.machine(name)

    @app.get("/v1/rl/model-resources/{name}")
    def get_machine(name: str):
        return service.machine(name)

    @app.post("/v1/rl/model-resources/{name}/stop")
    def stop_machine(name: str):
        return service.machine(name, "STOPPED")

    @app.post(base)
    async def create_session(request: Request):
        try:
            return service.session(service.open(await request.json()))
        except (InvalidValue, KeyError) as error:
            raise HTTPException(400, str(error)) from None

    @app.get(base + "/{name}")
    def get_session(name: str):
        return service.session(name)

    @app.post(base + "/{name}/stop")
    def stop_session(name: str):
        return service.session(name, "STOPPED")

    @app.get("/v1/rl/checkpoints/{name}")
    def get_checkpoint(name: str):
        if name not in service.checkpoints:
            raise HTTPException(404, f"there is no checkpoint {name}")
        _, model, rank = service.checkpoints[name]
        about = {"id": name, "base_model": model, "created_at": NOW, "session_id": "session", "step": 0, "lora_rank": rank}
        return {**about, "type": "CHECKPOINT_TYPE_TRAINING"}

    @app.post(base + "/{name}/operations/{verb}")
    async def operate(name: str, verb: str, request: Request):
        session, done = service.sessions[name], service.sessions[name].done
        again = request.headers.get("idempotency-key", "")
        if again not in done:
            try:
                asked = json.loads(await request.body() or b"{}")
                found = {"status": "TRAINING_OPERATION_STATUS_COMPLETED", "output": service.run(session, verb, asked)}
                json.dumps(found, allow_nan=False)
            except ValueError as error:  # of kitchen's family, and numbers that JSON does not have
                found = {"status": "TRAINING_OPERATION_STATUS_FAILED", "error": {"code": "invalid", "message": str(error)}}
            done[again] = {"id": service.name("operation"), **found}
        return done[again]

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="together-standin-"))
    uvicorn.run(make_app(StandIn(folder), os.environ["KITCHEN_SERVE_KEY"]), host="127.0.0.1", port=given.port, log_level="warning")
