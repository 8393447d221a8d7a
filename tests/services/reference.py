"""Batches, and what an in-process client of a backend answers to them: `python reference.py BACKEND MODEL FILE`."""

import json
import sys
from pathlib import Path

import numpy as np

from kitchen.ports.registry import create_adapter
from kitchen.types import AdamParams, Datum, LoraParams

LOSSES = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
    "cispo": {},
}


def random_inputs(
    rng: np.random.Generator, vocabulary: int, loss: str
) -> tuple[list[int], dict[str, list[float]]]:
    """Tokens of a datum and its loss inputs, as the wire names them; float32, so that JSON and bytes hold the same numbers."""
    count = int(rng.integers(3, 12))
    tokens, targets = (rng.integers(0, vocabulary, count).tolist() for _ in range(2))
    if loss == "cross_entropy":
        return tokens, {"target_tokens": targets, "weights": rng.random(count, np.float32).tolist()}
    logprobs = (-3 * rng.random(count, np.float32)).tolist()
    return tokens, {
        "target_tokens": targets,
        "logprobs": logprobs,
        "advantages": rng.standard_normal(count, np.float32).tolist(),
    }


def reference(backend: str, model: str, steps: int = 8) -> dict:
    """Steps of training, and what each gave."""
    service, rng = create_adapter("service", backend), np.random.default_rng(7)
    lora = LoraParams(4, 32.0, 0.0, True, True, backend == "torch")
    training = service.create_training_client(model, lora, 11)
    vocabulary, adam, told = (
        min(len(service.get_tokenizer(model)), 250),
        {"learning_rate": 0.01, "eps": 1e-8, "weight_decay": 0.01},
        [],
    )
    for index in range(steps):
        loss, settings = list(LOSSES.items())[index % len(LOSSES)]
        rows = [random_inputs(rng, vocabulary, loss) for _ in range(5)]
        data = [
            Datum(np.array(tokens), {"targets": np.array(inputs["target_tokens"]), "read_mask": np.ones(len(tokens)),
                                     **{name: np.array(values, np.float32) for name, values in inputs.items() if name != "target_tokens"}})
            for tokens, inputs in rows
        ]  # fmt: skip
        output = training.forward_backward(data, loss, settings or None).result()
        training.optim_step(AdamParams(**adam, weight_decay_on="all")).result()
        told.append({
            "data": [{"tokens": tokens, "inputs": inputs} for tokens, inputs in rows], "loss": loss, "settings": settings, "adam": adam,
            "logprobs": [one["logprobs"].astype(np.float32).tolist() for one in output.loss_fn_outputs], "loss_sum": output.loss_sum,
        })  # fmt: skip
    names = ("rank", "train_mlp", "train_attn", "train_unembed")
    return {"lora": {name: getattr(lora, name) for name in names} | {"seed": 11}, "steps": told}


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(reference(*sys.argv[1:3])))
