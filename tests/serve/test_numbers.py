"""What goes over the wire is what an in-process client computes, bit for bit, in both of its forms."""

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from served import row

from kitchen.ports.registry import create_adapter
from kitchen.serve.protobuf import ProtoField, decode_message, encode_message
from kitchen.serve.wire import _SCHEMA
from kitchen.types import AdamParams, Datum, InvalidValue, LoraParams

PROTO = "application/x-protobuf"
CASES = {
    "cross_entropy": ("weights",),
    "importance_sampling": ("logprobs", "advantages"),
    "ppo": ("logprobs", "advantages"),
    "cispo": ("logprobs", "advantages", "clip_low_threshold", "clip_high_threshold"),
    "dro": ("logprobs", "advantages"),
    "gspo": ("logprobs", "advantages", "sequence_ratio_mask"),
}


def random_rows(rng, names):
    """Tokens and inputs of a few datums, as float32."""
    rows = []
    for _ in range(3):
        tokens, targets = (rng.integers(0, 200, int(rng.integers(2, 9))) for _ in range(2))
        targets = rng.integers(0, 200, len(tokens))
        inputs = {
            name: (
                rng.standard_normal(len(tokens)) if name != "logprobs" else -rng.random(len(tokens))
            ).astype(np.float32)
            for name in names
        }
        rows.append((tokens.tolist(), {"target_tokens": targets, **inputs}))
    return rows


def in_process(training, rows, loss):
    """The same batch without a server."""
    data = [
        Datum(np.array(tokens), {"targets": told["target_tokens"], "read_mask": np.ones(len(tokens)),
                                 **{name: values for name, values in told.items() if name != "target_tokens"}})
        for tokens, told in rows
    ]  # fmt: skip
    output = training.forward_backward(data, loss).result()
    training.optim_step(AdamParams(0.05, weight_decay_on="all")).result()
    return output


def as_proto(model, seq, rows, loss):
    """A request in protocol buffers."""

    def tensor(values):
        whole = np.asarray(values)
        kind = np.int64 if whole.dtype.kind == "i" else np.float32
        return {
            "dense": whole.astype(kind).tobytes(),
            "dtype": 2 if kind is np.int64 else 1,
            "shape": list(whole.shape),
        }

    data = [
        {
            "model_input": [{"encoded_text": {"tokens": np.int32(tokens).tobytes()}}],
            "loss_fn_inputs": {name: tensor(one) for name, one in told.items()},
        }
        for tokens, told in rows
    ]
    return encode_message(
        _SCHEMA, "ForwardBackwardRequest", {"model_id": model, "seq_id": seq, "data": data, "loss_fn": loss}
    )


def read_logprobs(content):
    """Log-probabilities of each datum in a protobuf answer, and the loss."""
    message = decode_message(_SCHEMA, "ForwardBackwardOutput", content)
    field = message["loss_fn_outputs"][0]["fields"]["logprobs"]
    ends = np.frombuffer(field["offsets"], np.int64)
    return [
        np.frombuffer(field["data"][start:end], np.float32)
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ], message["metrics"]["loss:sum"]  # noqa: B905


def test_both_forms_equal_the_in_process_client(wire):
    lora = LoraParams(4, 32.0, 0.0, True, True, False)
    training = create_adapter("service", "toy").create_training_client("toy", lora, 11)
    session, rng = wire.session(), np.random.default_rng(3)
    in_json, in_proto = (wire.model(session, number, train_unembed=False) for number in (0, 1))
    for seq, (loss, names) in enumerate(CASES.items()):
        rows = random_rows(rng, names)
        wanted = in_process(training, rows, loss)
        said = wire.batch(in_json, 2 * seq + 1, [row(tokens, **told) for tokens, told in rows], loss=loss)
        body = as_proto(in_proto, 2 * seq + 1, rows, loss)
        asked = wire.client.post(
            "/api/v1/forward_backward", content=body, headers={**wire.headers, "content-type": PROTO}
        )
        answer = wire.retrieve(asked.json()["request_id"], PROTO)
        assert answer.headers["content-type"] == PROTO
        found, loss_sum = read_logprobs(answer.content)
        for one, output, told in zip(found, wanted.loss_fn_outputs, said["loss_fn_outputs"], strict=True):
            there = output["logprobs"].astype(np.float32)
            assert one.tobytes() == there.tobytes() == np.float32(told["logprobs"]["data"]).tobytes()
        assert loss_sum == said["metrics"]["loss:sum"] == wanted.loss_sum
        for model in (in_json, in_proto):
            assert "grad_norm" in wire.step(model, 2 * seq + 2)["metrics"]


def test_weights_of_zero_still_answer_every_log_probability(wire):
    model = wire.model()
    silent = wire.batch(
        model, 1, [row([5, 6, 7], target_tokens=[6, 7, 8], weights=[0.0, 0.0, 0.0])], verb="forward"
    )
    spoken = wire.batch(
        model, 2, [row([5, 6, 7], target_tokens=[6, 7, 8], weights=[1.0, 1.0, 1.0])], verb="forward"
    )
    assert silent["loss_fn_outputs"] == spoken["loss_fn_outputs"] and silent["metrics"]["loss:sum"] == 0
    assert np.isclose(-sum(spoken["loss_fn_outputs"][0]["logprobs"]["data"]), spoken["metrics"]["loss:sum"])


def test_losses_are_sums(wire):
    model = wire.model()
    one, two = (wire.batch(model, seq, [row([5, 6, 7, 8])] * seq, verb="forward") for seq in (1, 2))
    assert np.isclose(two["metrics"]["loss:sum"], 2 * one["metrics"]["loss:sum"], rtol=1e-12)


def test_a_table_of_one_column_is_a_vector(wire):
    model = wire.model()
    flat = wire.batch(model, 1, [row([5, 6], target_tokens=[6, 7], weights=[1.0, 2.0])], verb="forward")
    table = wire.batch(
        model, 2, [row([5, 6], target_tokens=[[6], [7]], weights=[[1.0], [2.0]])], verb="forward"
    )
    assert flat["loss_fn_outputs"] == table["loss_fn_outputs"]
    wrong = row([5, 6], target_tokens=[6, 7], logprobs=[[6, 7], [7, 8]], advantages=[1.0, 1.0])
    given = {"data": [wrong], "loss_fn": "ppo"}
    refused = wire.post("forward", {"model_id": model, "seq_id": 3, "forward_input": given})
    assert refused.status_code == 422 and "all else is [T]" in refused.json()["detail"]
    assert "loss:sum" in wire.batch(model, 4, verb="forward")["metrics"]  # number 3 is taken


def test_several_targets_a_position(wire):
    """[T, K] beside [T], in both forms: numbers and shapes are those of K datums of one target."""
    model = wire.model()
    columns = [row([5, 6, 7], target_tokens=[6 + k, 7, 8 - k], weights=[0.5, k, 1.0]) for k in (0, 1)]
    stacked = {name: np.stack([np.asarray(one["loss_fn_inputs"][name]["data"]) for one in columns], 1) for name in ("target_tokens", "weights")}
    apart = wire.batch(model, 1, [columns[0], columns[1], row([5, 6])], verb="forward")
    wide = wire.batch(model, 2, [row([5, 6, 7], **stacked), row([5, 6])], verb="forward")
    assert np.isclose(wide["metrics"]["loss:sum"], apart["metrics"]["loss:sum"], rtol=1e-12)
    told = wide["loss_fn_outputs"][0]["logprobs"]
    assert told["shape"] == [3, 2] and wide["loss_fn_outputs"][1] == apart["loss_fn_outputs"][2]
    each = [one["logprobs"]["data"] for one in apart["loss_fn_outputs"][:2]]
    assert np.allclose(np.reshape(told["data"], (3, 2)), np.stack(each, 1))
    body = as_proto(model, 3, [([5, 6, 7], stacked), ([5, 6], {"target_tokens": [6, 7]})], "cross_entropy")
    asked = wire.client.post("/api/v1/forward_backward", content=body, headers={**wire.headers, "content-type": PROTO})
    message = decode_message(_SCHEMA, "ForwardBackwardOutput", wire.retrieve(asked.json()["request_id"], PROTO).content)
    first, second = message["loss_fn_outputs"]
    assert first["fields"]["logprobs"]["trailing_shape"] == [2] and first["num_datums"] == second["num_datums"] == 1
    assert np.frombuffer(first["fields"]["logprobs"]["data"], np.float32).tolist() == np.float32(told["data"]).tolist()


KINDS = {
    "text": st.text(max_size=9),
    "int": st.integers(-(2**63), 2**63 - 1),
    "bytes": st.binary(max_size=9),
    "bool": st.booleans(),
}
FIELDS = {index: ProtoField(name, name) for index, name in enumerate(KINDS, start=1)}
SCHEMA = {
    "M": {**FIELDS, 15: ProtoField("many", "int", True), 300: ProtoField("map", "map", value_kind="double")}
}
LISTS = st.lists(KINDS["int"], min_size=1, max_size=4)
MAPS = st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional={**KINDS, "many": LISTS, "map": MAPS}))
def test_messages_are_read_as_they_were_written(values):
    assert decode_message(SCHEMA, "M", encode_message(SCHEMA, "M", values)) == values


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error_of_ours(content):
    with contextlib.suppress(InvalidValue):
        decode_message(_SCHEMA, "ForwardBackwardRequest", content)


def test_the_torch_backend_over_the_wire(serve, tmp_path):
    from small_models import SIZES
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "model")
    _write_tokenizer(tmp_path / "model")
    wire = serve(backend="torch", model=str(tmp_path / "model"))
    training = create_adapter("service", "torch").create_training_client(
        str(tmp_path / "model"), LoraParams(4, 32.0), 11
    )
    rng, model = np.random.default_rng(0), wire.model(train_unembed=False)
    for seq, (loss, names) in enumerate(list(CASES.items())[:2]):
        rows = random_rows(rng, names)
        wanted = in_process(training, rows, loss)
        said = wire.batch(model, 2 * seq + 1, [row(tokens, **told) for tokens, told in rows], loss=loss)
        for output, told in zip(wanted.loss_fn_outputs, said["loss_fn_outputs"], strict=True):
            assert (
                output["logprobs"].astype(np.float32).tobytes()
                == np.float32(told["logprobs"]["data"]).tobytes()
            )
        wire.step(model, 2 * seq + 2)


def _write_tokenizer(folder):
    """Bytes, and an end of turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer.add_special_tokens(["<pad>", "<end>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(
        folder
    )
