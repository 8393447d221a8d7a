"""Ranks are the torch backend: the same numbers however many there are, and when some are killed."""

import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import Pipe

import numpy as np
import pytest
from small_models import SIZES

from kitchen.adapters.procs.rank import serve
from kitchen.adapters.procs.ranks import RankLost
from kitchen.adapters.torch.client import TorchService
from kitchen.losses.token import LOSSES, Loss, cross_entropy
from kitchen.ports.registry import create_adapter
from kitchen.product_checks import PRODUCT_CHECKS, ProductBench
from kitchen.testing import CHECKS, Bench
from kitchen.types import AdamParams, BackendError, Datum, InvalidValue, LoraParams, SamplingParams

LORA = LoraParams(rank=4, alpha=8.0)
ADAM = AdamParams(learning_rate=1e-2, eps=1e-3, grad_clip_norm=1.0)
LONGEST = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a small random Llama and a tokenizer of bytes."""
    import json

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    from kitchen.adapters.toy.tokenizer import ToyTokenizer

    folder = tmp_path_factory.mktemp("small-llama")
    letters = Tokenizer(models.BPE({letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    letters.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"], "chat_template": ToyTokenizer.chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, "pad_token_id": None})).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def services():
    """Services of the module, by their number of ranks; 0 is the torch backend."""
    made = {count: create_adapter("service", "procs", device="cpu", ranks=count, threads=1, timeout=60.0) for count in (1, 2, 3)}
    yield {0: TorchService("cpu"), **made}
    for one in made.values():
        one.close()


def batch(seed, count=5):
    """Random datums of different lengths, with all that losses of the table ask for."""
    rng = np.random.default_rng(seed)

    def datum(length):
        tokens = rng.integers(0, 250, length + 1)
        inputs = {"targets": tokens[1:], "weights": rng.choice([0.5, 1.0], length), "advantages": rng.normal(size=length)}
        return Datum(tokens[:-1], {**inputs, "logprobs": rng.uniform(-6, -5, length)})

    return [datum(int(length)) for length in rng.integers(2, 30, count)]


def pairwise(data, logprobs):
    """A loss of two datums at a time, which no rank could judge by itself."""
    import torch

    margins = torch.stack([one.sum() - two.sum() for one, two in zip(logprobs[::2], logprobs[1::2], strict=False)])
    return -torch.nn.functional.logsigmoid(margins).sum(), {"margin": float(margins.detach().mean())}


def curve(client, steps=range(4)):
    """Losses and norms of a few steps: losses of the table, a batch in two requests, one that has fewer datums than ranks, a custom loss."""
    found = []
    for step in steps:
        one = client.forward_backward(batch(step), ("cross_entropy", "importance_sampling", "ppo", "cispo")[step % 4])
        if step % 2:
            two = client.forward_backward_custom(batch(10 + step, 4), pairwise)
        else:
            two = client.forward_backward(batch(20 + step, 1), "cross_entropy")
        update = client.optim_step(ADAM)
        found.append([one.result(LONGEST).loss_sum, two.result(LONGEST).loss_sum, update.result(LONGEST).metrics["grad_norm"]])
    return np.array(found)


def away(one, two):
    """The largest difference, relative where numbers are large."""
    return (np.abs(one - two) / np.maximum(1, np.abs(one))).max()


# --- the same as one process ---


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [LORA, None, LoraParams(rank=4, alpha=8.0, dropout=0.5)], ids=["lora", "full", "dropout"])
def test_curves_are_those_of_the_torch_backend(services, model, count, kind):
    alone, divided = (services[which].create_training_client(model, kind, 1) for which in (0, count))
    assert away(curve(alone), curve(divided)) < 1e-4


@pytest.mark.parametrize("count", [2, 3])
def test_in_float64_only_the_last_bits_depend_on_the_number_of_ranks(model, count):
    about = {"device": "cpu", "dtype": "float64"}
    alone, divided = TorchService(**about), create_adapter("service", "procs", **about, ranks=count, threads=1)
    for kind in (LORA, None):
        one, two = (curve(each.create_training_client(model, kind, 1), range(6)) for each in (alone, divided))
        assert away(one, two) < 1e-12
    divided.close()


def test_dropped_passes_are_divided_as_one_process_would_have_them(model):
    many = {"device": "cpu", "tokens_at_once": 20}
    alone, divided = TorchService(**many), create_adapter("service", "procs", **many, ranks=2, threads=1)
    kind = LoraParams(rank=4, alpha=8.0, dropout=0.5)
    curves = [curve(one.create_training_client(model, kind, 1), range(2)) for one in (alone, divided)]
    divided.close()
    assert away(*curves) < 1e-4


def test_runs_repeat_bit_by_bit(services, model):
    digests = set()
    for _ in range(2):
        client = services[3].create_training_client(model, LORA, 1)
        curve(client)
        digests.add(client.digest())
    assert len(digests) == 1


def test_a_single_rank_has_the_bits_of_the_torch_backend(services, model):
    digests = set()
    for count in (0, 1):
        client = services[count].create_training_client(model, LORA, 1)
        for step in range(2):
            client.forward_backward(batch(step), "cross_entropy")
            client.optim_step(ADAM).result(LONGEST)
        digests.add(client.digest())
    assert len(digests) == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_answers_are_those_of_one_process(services, model, count):
    said = []
    for which in (0, count):
        sampler = services[which].create_sampling_client(model)
        prompts = [list(range(3, 3 + length)) for length in (4, 9, 6)]
        answers = [sampler.sample(prompt, many, SamplingParams(max_tokens=6)) for prompt, many in zip(prompts, (5, 1, 2), strict=True)]
        scored = [sampler.compute_logprobs(prompt) for prompt in prompts]
        tokens = [[one.tokens for one in answer.result(LONGEST).completions] for answer in answers]
        said.append((tokens, [one.result(LONGEST)[1:] for one in scored], sampler.compute_topk(prompts[0], 3).result(LONGEST).tokens.tolist()))
    assert said[0][0] == said[1][0] and said[0][2] == said[1][2]
    for one, two in zip(said[0][1], said[1][1], strict=True):
        assert one == pytest.approx(two, abs=1e-4)


def test_a_loss_that_only_the_driver_knows(services, model, monkeypatch):
    monkeypatch.setitem(LOSSES, "mine", Loss("mine", lambda *given: cross_entropy(*given), ("weights",), "weights"))
    client = services[2].create_training_client(model, LORA, 1)
    mine = client.forward_backward(batch(0), "mine").result(LONGEST)
    norms = [client.optim_step(AdamParams(learning_rate=0.0)).result(LONGEST).metrics["grad_norm"]]
    known = client.forward_backward(batch(0), "cross_entropy").result(LONGEST)
    norms.append(client.optim_step(AdamParams(learning_rate=0.0)).result(LONGEST).metrics["grad_norm"])
    assert mine.loss_sum == pytest.approx(known.loss_sum, rel=1e-6) and norms[0] == pytest.approx(norms[1], rel=1e-5)


# --- states ---


@pytest.mark.parametrize("kind", [LORA, None], ids=["lora", "full"])
def test_a_state_holds_the_gradient_of_each_rank(services, model, kind):
    client = services[3].create_training_client(model, kind, 1)
    curve(client, range(2))
    client.forward_backward(batch(5), "cross_entropy").result(LONGEST)
    path = client.save_state(f"middle-{kind is None}").result(LONGEST).path
    again = services[3].create_training_client_from_state(path)
    assert again.digest() == client.digest()
    elsewhere = [services[count].create_training_client_from_state(path) for count in (0, 1, 2)]
    norms = [one.optim_step(ADAM).result(LONGEST).metrics["grad_norm"] for one in (client, again, *elsewhere)]
    assert again.digest() == client.digest() and norms == pytest.approx([norms[0]] * 5, rel=1e-5)


# --- ranks that die ---


def story(client, service, meddle=lambda moment: None):
    """What is asked of a client and its samplers, with a moment before each request; the digest at the end and what was said."""
    said = []
    sampler = None
    for step in range(4):
        meddle(("forward", step))
        client.forward_backward(batch(step), "cross_entropy").result(LONGEST)
        meddle(("custom", step))
        client.forward_backward_custom(batch(9, 4), pairwise)
        update = client.optim_step(ADAM)
        meddle(("step", step))
        update.result(LONGEST)
        if step == 1:
            sampler = client.create_sampling_client()
            state = client.save_state("story").result(LONGEST).path
        if step == 2:
            service.delete_state(state)
    meddle(("sample", 4))
    said = sampler.sample([5, 6, 7], 6, SamplingParams(max_tokens=5, seed=3)).result(LONGEST)
    return client.digest(), [one.tokens for one in said.completions]


def kill(service, place):
    """Kill -9 of a rank, and how it is seen."""
    os.kill(service.trainers.ranks.pids[place], signal.SIGKILL)


def test_killed_ranks_leave_no_trace(services, model):
    service = services[2]
    calm = story(service.create_training_client(model, LORA, 1), service)
    moments = [(what, step) for step in range(4) for what in ("forward", "custom", "step")] + [("sample", 4)]
    chance = random.Random(1)
    for moment in chance.sample(moments, int(os.environ.get("KITCHEN_KILLS", 3))):
        before = len(service.recoveries)
        client = service.create_training_client(model, LORA, 1)
        with pytest.warns(RuntimeWarning, match="started again"):
            found = story(client, service, lambda now, moment=moment: now == moment and kill(service, chance.randrange(2)))
        assert found == calm and len(service.recoveries) == before + 1, moment


def test_a_busy_rank_that_is_killed_is_missed_at_once(services, model):
    service = services[2]
    client = service.create_training_client(model, LORA, 1)
    twin = services[2].create_training_client(model, LORA, 1)
    request = client.forward_backward(batch(1, 400), "cross_entropy")
    time.sleep(0.05)
    pid = service.trainers.ranks.pids[1]
    killed = time.monotonic()
    kill(service, 1)
    while service.trainers.ranks.pids[1:2] == [pid]:
        time.sleep(0.001)
    assert time.monotonic() - killed < 1.0
    with pytest.warns(RuntimeWarning, match="rank 1 of 2"):
        request.result(LONGEST)
        client.optim_step(ADAM).result(LONGEST)
        twin.forward_backward(batch(1, 400), "cross_entropy").result(LONGEST)
        twin.optim_step(ADAM).result(LONGEST)
    assert client.digest() == twin.digest()


def test_a_rank_that_hangs_is_replaced(services, model, monkeypatch):
    service = services[2]
    client, twin = (service.create_training_client(model, LORA, 1) for _ in range(2))
    curve(client, range(2))
    with monkeypatch.context() as patch:
        patch.setattr(service.trainers.ranks, "settings", [replace(one, timeout=1.0) for one in service.trainers.ranks.settings])
        os.kill(service.trainers.ranks.pids[0], signal.SIGSTOP)
        with pytest.raises(RankLost, match="rank 0 .* has not answered for 1 s"):
            service.trainers.ranks.call("step", [(client.key, ADAM)] * 2)
    curve(client, range(2, 3))
    curve(twin, range(3))
    assert client.digest() == twin.digest()


def test_a_journal_stays_short(services, model, monkeypatch):
    service = services[2]
    client, twin = (service.create_training_client(model, LORA, 1) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(service.trainers, "limit", 3)
        client.forward_backward(batch(0), "cross_entropy").result(LONGEST)
        sampler = client.create_sampling_client()
        curve(client, range(2))
        kill(service, 0)
    with pytest.warns(RuntimeWarning, match="rank 0 of 2"):
        said = sampler.sample([5, 6, 7], 2, SamplingParams(max_tokens=5, seed=3)).result(LONGEST)
    twin.forward_backward(batch(0), "cross_entropy").result(LONGEST)
    wanted = twin.create_sampling_client().sample([5, 6, 7], 2, SamplingParams(max_tokens=5, seed=3)).result(LONGEST)
    curve(twin, range(2))
    assert client.journal.cut >= 6 and said == wanted and client.digest() == twin.digest()


def test_a_journal_of_a_run_keeps_states_elsewhere_and_its_models_inside(model, tmp_path, monkeypatch):
    """A service of a run takes states of that run only, and what lies there is named from there; neither holds for what only a journal keeps."""
    shutil.copytree(model, tmp_path / "run" / "model")
    pipes = []

    def thread_rank(timeout):
        ours, theirs = Pipe()
        pipes.append(ours)
        threading.Thread(target=serve, args=(theirs,), daemon=True).start()
        return ours

    service = create_adapter("service", "procs", device="cpu", ranks=1, directory=tmp_path / "run" / "states", journal=2, launch=thread_rank)
    client, twin = (service.create_training_client(str(tmp_path / "run" / "model"), LORA, 1) for _ in range(2))
    twin.save_state("own").result(LONGEST)
    for one in (client, twin):
        curve(one, range(1))
    sampler = client.create_sampling_client()
    client.forward_backward(batch(1), "cross_entropy").result(LONGEST)
    assert client.journal.state is not None and not client.journal.state[0].startswith(str(tmp_path))
    pipes[-1].close()
    with pytest.warns(RuntimeWarning, match="started again"):
        assert client.digest() != twin.digest()
    twin.forward_backward(batch(1), "cross_entropy").result(LONGEST)
    assert client.digest() == twin.digest() and sampler.compute_logprobs([5, 6, 7]).result(LONGEST)
    with pytest.raises(InvalidValue, match="does not lie in"):
        service.create_training_client_from_state(client.journal.state[0])
    service.close()


def test_a_journal_begins_with_the_state_that_was_saved_last(services, model):
    service = services[2]
    client = service.create_training_client(model, LORA, 1)
    for step in range(2):
        client.create_sampling_client()  # which nobody keeps
        client.forward_backward(batch(step), "cross_entropy")
        client.optim_step(ADAM).result(LONGEST)
        client.save_state(f"last-{step}").result(LONGEST)
    deadline = time.monotonic() + 30
    while client.journal.cut < 6 and time.monotonic() < deadline:  # the state is there before the journal knows
        time.sleep(0.01)
    assert (client.journal.cut, client.journal.done) == (6, []) and client.journal.state[0].endswith("last-1.json")


def test_what_kills_ranks_each_time_is_an_error(services, model, monkeypatch):
    service = services[2]
    client, twin = (service.create_training_client(model, LORA, 1) for _ in range(2))
    call = service.trainers.ranks.call

    def deadly(verb, arguments):
        if verb == "run" and arguments[0][0] == client.key:
            kill(service, 0)
        return call(verb, arguments)

    with monkeypatch.context() as patch:
        patch.setattr(service.trainers.ranks, "call", deadly)
        with pytest.warns(RuntimeWarning), pytest.raises(BackendError, match="3 times in a row"):
            client.forward_backward(batch(0), "cross_entropy").result(LONGEST)
    assert client.digest() == twin.digest(), "and leaves no trace"


def test_what_some_ranks_refuse_none_has_done(services, model):
    service = services[2]
    client = service.create_training_client(model, LORA, 1)
    client.forward_backward(batch(0), "cross_entropy").result(LONGEST)
    before = client.digest()
    data = batch(0)
    good = [(client.key, data[:2], "cross_entropy", {}, True, (0, 1)), (client.key, data[2:], "no loss", {}, True, (0, 1))]
    with pytest.raises(ValueError, match="no loss"):
        service.trainers.ask("run", good, client.journal)
    assert client.digest() == before


# --- the suites of every backend ---


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("count", "kind"), [(2, LORA), (3, None)], ids=["2-lora", "3-full"])
def test_conformance(services, model, name, count, kind):
    CHECKS[name].run(Bench(services[count], model, kind)).raise_or_skip()


@pytest.mark.parametrize("name", ["run_completes", "rewind_returns"])
def test_through_the_product(name, model, tmp_path):
    bench = ProductBench("procs", model, {"backend_options": {"ranks": 2, "threads": 1}, "device": "cpu"}, folder=tmp_path)
    assert PRODUCT_CHECKS[name].run(bench).raise_for_failure().status == "passed"
    bench.service.close()


def test_ranks_and_devices_must_fit():
    with pytest.raises(InvalidValue, match="3 ranks and 1 devices"):
        create_adapter("service", "procs", ranks=3, devices=["cpu"])
