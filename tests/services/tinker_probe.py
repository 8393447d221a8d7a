"""What the unmodified SDK of Tinker can do with a server: one line of JSON for each probe.

Run in an environment of its own, which has `tinker` and no kitchen: `python tinker_probe.py ADDRESS KEY MODEL REFERENCE`. REFERENCE is a
file of batches and of what an in-process client answered to them (`reference.py` writes it); they are compared bit for bit.
"""

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

os.environ.update(TINKER_TELEMETRY="0", TINKER_LOG="ERROR", TINKER_API_KEY=sys.argv[2])
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import tinker  # noqa: E402

address, key, model, reference_path = sys.argv[1:5]
reference = json.loads(Path(reference_path).read_text())
WAIT = 60.0


def client_of(future):
    """The client that a future of it holds; versions before 0.36 gave the client itself."""
    return future.result(timeout=WAIT) if hasattr(future, "result") else future


def datum(one):
    inputs = {name: tinker.TensorData(data=values, dtype="int64" if name == "target_tokens" else "float32", shape=[len(values)])
              for name, values in one["inputs"].items()}  # fmt: skip
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(one["tokens"]), loss_fn_inputs=inputs)


service = tinker.ServiceClient(base_url=address, api_key=key)
state = {}


def create():
    lora = reference["lora"]
    names = ("rank", "seed", "train_mlp", "train_attn", "train_unembed")
    state["training"] = service.create_lora_training_client(
        model, **{name: lora[name] for name in names}
    ).result(timeout=WAIT)
    return f"model {state['training'].model_id.split(':', 1)[1]}"


def equal_to_in_process():
    training, tokens, losses = state["training"], 0, []
    for step in reference["steps"]:
        batch = [datum(one) for one in step["data"]]
        backward = training.forward_backward(batch, step["loss"], step["settings"] or None)
        stepped = training.optim_step(tinker.AdamParams(**step["adam"]))
        found = backward.result(timeout=WAIT)
        stepped.result(timeout=WAIT)
        for output, wanted in zip(found.loss_fn_outputs, step["logprobs"], strict=True):
            there = np.asarray(output["logprobs"].to_numpy(), np.float32)
            assert there.tobytes() == np.asarray(wanted, np.float32).tobytes(), (step["loss"], there, wanted)
            tokens += len(there)
        assert found.metrics["loss:sum"] == step["loss_sum"], (found.metrics, step["loss_sum"])
        losses.append(found.metrics["loss:sum"])
    return f"{len(losses)} steps, {tokens} tokens equal bit for bit, loss {losses[0]:.4f} to {losses[-1]:.4f}"


def chunks_arrive_in_order():
    training = state["training"]
    before = service.get_server_capabilities()
    one = reference["steps"][0]["data"][:2]
    many = [datum(one[index % 2]) for index in range(2100)]  # three requests, sent side by side
    found = training.forward(many, "cross_entropy").result(timeout=WAIT)
    assert len(found.loss_fn_outputs) == 2100 and before.supported_models
    return "2100 datums in 3 requests"


def custom_loss():
    import torch

    def squares(data, logprobs):
        loss = sum((one**2).sum() for one in logprobs)
        return loss, {"mean": float(loss) / len(data)}

    before = (
        state["training"]
        .forward_backward_custom([datum(one) for one in reference["steps"][0]["data"]], squares)
        .result(timeout=WAIT)
    )
    state["training"].optim_step(tinker.AdamParams(learning_rate=0.01)).result(timeout=WAIT)
    assert torch.__version__ and "loss:sum" in before.metrics, before.metrics
    return f"loss {before.metrics['loss:sum']:.4f}"


def states():
    training = state["training"]
    saved = training.save_state("probe").result(timeout=WAIT)
    batch = [datum(one) for one in reference["steps"][0]["data"]]
    wanted = training.forward(batch, "cross_entropy").result(timeout=WAIT).metrics["loss:sum"]
    again = client_of(service.create_training_client_from_state_with_optimizer(saved.path))
    assert again.forward(batch, "cross_entropy").result(timeout=WAIT).metrics["loss:sum"] == wanted
    training.forward_backward(batch, "cross_entropy")
    training.optim_step(tinker.AdamParams(learning_rate=0.05)).result(timeout=WAIT)
    training.load_state_with_optimizer(saved.path).result(timeout=WAIT)
    assert training.forward(batch, "cross_entropy").result(timeout=WAIT).metrics["loss:sum"] == wanted
    state["saved"] = saved.path
    return saved.path.rsplit("/", 2)[-2]


def sampling():
    training = state["training"]
    sampler = client_of(training.save_weights_and_get_sampling_client())
    prompt = tinker.ModelInput.from_ints(reference["steps"][0]["data"][0]["tokens"][:5])
    params = tinker.SamplingParams(max_tokens=6, temperature=0.7, seed=3, stop=[])
    drawn = sampler.sample(prompt, 3, params, include_prompt_logprobs=True, topk_prompt_logprobs=2).result(
        timeout=WAIT
    )
    assert [len(one.tokens) for one in drawn.sequences] == [6, 6, 6] and len(drawn.topk_prompt_logprobs) == 5
    logprobs = sampler.compute_logprobs(prompt).result(timeout=WAIT)
    assert logprobs[0] is None and len(logprobs) == 5 and list(drawn.prompt_logprobs)[1:] == logprobs[1:]
    named = training.save_weights_for_sampler("probe").result(timeout=WAIT).path
    other = client_of(service.create_sampling_client(model_path=named))
    same = other.compute_logprobs(prompt).result(timeout=WAIT)
    worst = max(abs(left - right) for left, right in zip(same[1:], logprobs[1:], strict=True))
    assert worst < 1e-5, worst
    base = (
        client_of(service.create_sampling_client(base_model=model))
        .compute_logprobs(prompt)
        .result(timeout=WAIT)
    )
    assert base[1:] != logprobs[1:]
    copy = (
        tinker.SamplingClient.from_sampler_handle(other.get_sampler_handle())
        if hasattr(other, "get_sampler_handle")
        else other
    )
    assert copy.compute_logprobs(prompt).result(timeout=WAIT) == same
    return f"3 completions, stored weights within {worst:.0e}"


def two_clients():
    other = client_of(service.create_lora_training_client(model, rank=2, seed=5))
    batch = [datum(one) for one in reference["steps"][0]["data"]]
    before = state["training"].forward(batch, "cross_entropy").result(timeout=WAIT).metrics["loss:sum"]
    for _ in range(3):
        other.forward_backward(batch, "cross_entropy")
        other.optim_step(tinker.AdamParams(learning_rate=0.05)).result(timeout=WAIT)
    assert (
        state["training"].forward(batch, "cross_entropy").result(timeout=WAIT).metrics["loss:sum"] == before
    )
    return "one trains, the other stays"


def stranger():
    return tinker.ServiceClient(base_url=address, api_key="tml-" + "w" * 30)


def errors_are_raised_at_once():
    began, raised = time.perf_counter(), []
    spare = client_of(service.create_lora_training_client(model, rank=2, seed=6))
    batch = [datum(one) for one in reference["steps"][0]["data"]]
    wrong = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([10**8]),
        loss_fn_inputs={"target_tokens": [1], "weights": [1.0]},
    )
    attempts = {
        "unknown loss": lambda: spare.forward_backward(batch, "no_such_loss").result(timeout=WAIT),
        "token outside": lambda: spare.forward_backward([wrong], "cross_entropy").result(timeout=WAIT),
        "unknown model": lambda: service.create_lora_training_client("/etc/passwd", rank=2).result(timeout=WAIT),
        "unknown state": lambda: client_of(service.create_training_client_from_state("tinker://no/weights/such")),
        "bad name": lambda: spare.save_state("../up").result(timeout=WAIT),
        "wrong key": lambda: stranger().create_lora_training_client(model).result(timeout=WAIT),
    }  # fmt: skip
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            assert not isinstance(error, TimeoutError), name
            raised.append(type(error).__name__)
        else:
            raise AssertionError(f"{name}: nothing was raised")
    seconds = time.perf_counter() - began
    assert seconds < 20, seconds
    return f"{', '.join(sorted(set(raised)))} in {seconds:.1f} s"


def checkpoints():
    rest = (
        tinker.RestClient(base_url=address, api_key=key)
        if hasattr(tinker, "RestClient")
        else service.create_rest_client()
    )
    listed = rest.list_checkpoints(state["training"].model_id).result(timeout=WAIT).checkpoints
    assert {one.checkpoint_id for one in listed} == {"weights/probe", "sampler_weights/probe"}
    info = rest.get_weights_info_by_tinker_path(state["saved"]).result(timeout=WAIT)
    rest.delete_checkpoint_from_tinker_path(state["saved"]).result(timeout=WAIT)
    runs = rest.list_training_runs().result(timeout=WAIT).training_runs
    left = rest.list_user_checkpoints().result(timeout=WAIT).checkpoints
    assert state["saved"] not in {one.tinker_path for one in left}
    return f"rank {info.lora_rank}, {len(runs)} runs"


def round_trip():
    batch, seconds = [datum(reference["steps"][0]["data"][0])], []
    for _ in range(30):
        began = time.perf_counter()
        state["training"].forward(batch, "cross_entropy").result(timeout=WAIT)
        seconds.append(time.perf_counter() - began)
    return f"forward of one datum {sorted(seconds)[15] * 1000:.0f} ms (median)"


PROBES = (
    create,
    equal_to_in_process,
    chunks_arrive_in_order,
    custom_loss,
    states,
    sampling,
    two_clients,
    errors_are_raised_at_once,
    checkpoints,
    round_trip,
)
for probe in PROBES:
    try:
        told, good = probe(), True
    except Exception as error:
        traceback.print_exc()
        told, good = f"{type(error).__name__}: {str(error)[:200]}", False
    print(json.dumps({"probe": probe.__name__, "good": good, "told": told}), flush=True)
try:
    service.close("success").result(timeout=5)
except Exception as error:
    print(json.dumps({"probe": "close", "good": False, "told": str(error)[:200]}), flush=True)
os._exit(0)
