"""The adapter of Tinker's verbs against a stand-in of an SDK: conformance, faults, what is sent."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sdk_standin import APIConnectionError, APIStatusError, RequestFailedError, Server, make_sdk

from kitchen.adapters.tinker.client import BasetenService, FireworksService, TinkerService, TogetherService
from kitchen.adapters.tinker.objects import RemoteReference
from kitchen.adapters.toy.client import ToyService
from kitchen.product_checks import PRODUCT_CHECKS, product_conformance
from kitchen.testing import CHECKS, conformance
from kitchen.types import (
    AdamParams,
    BackendError,
    Datum,
    InvalidValue,
    LoraParams,
    MissingCapability,
    SamplingParams,
)

ELSEWHERE = {"another_process_resumes", "killed_run_goes_on"}  # the stand-in lives in this process
LORA, ADAM = LoraParams(rank=4, alpha=32.0), AdamParams(1e-2, eps=1e-3)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-good")
    monkeypatch.setenv("TOGETHER_API_KEY", "tml-good")
    return Server(ToyService(tmp_path / "states"), folder=tmp_path)


def open_service(server, kind=TinkerService, futures=True, **options):
    return kind(make_sdk(server, futures), tokenizer_backend="toy", **{"timeout": 120.0, **options})


def batch(count=2):
    return [Datum.from_tokens([5 + index, 6, 7, 8], [0, 1, 1, 0.5], f"datum {index}") for index in range(count)]


@pytest.mark.parametrize("kind,futures", [(TinkerService, True), (TogetherService, False)], ids=["futures", "blocking"])
def test_every_check_of_the_port_holds_on_a_stand_in(server, kind, futures):
    report = conformance(open_service(server, kind, futures), "toy").raise_for_failures()
    skipped = {one.check for one in report.outcomes if one.status == "skipped"}
    known = {"dropout_follows_the_seed", "seed_determines_training", "topk_agrees_with_logprobs", "tokens_are_told_as_drawn"}
    of_tinker = {"dro_matches_loss_table", "gspo_matches_loss_table", "several_targets_are_their_sum"}
    assert skipped <= known | (of_tinker if kind is TogetherService else set())
    assert len(report.outcomes) == len(CHECKS)


@pytest.mark.parametrize("check", [name for name in PRODUCT_CHECKS if name not in ELSEWHERE])
def test_the_product_runs_on_it(server, monkeypatch, check):
    monkeypatch.setattr("sdk_standin.SERVER", server)
    options = {"tokenizer_backend": "toy", "tolerance": 1e-6, "timeout": 60.0}
    report = product_conformance("sdk_standin:StandInService", "toy", only=[check], timeout=60, backend_options=options)
    assert report.raise_for_failures().outcomes[0].status == ("skipped" if check == "digest_tells_states_apart" else "passed")


def test_training_is_that_of_the_backend_behind_it(server):
    ours = open_service(server).create_training_client("toy", LORA, 3)
    theirs = ToyService().create_training_client("toy", LORA, 3)
    for _ in range(3):
        losses = [one.forward_backward(batch(), "cross_entropy") for one in (ours, theirs)]
        steps = [one.optim_step(ADAM) for one in (ours, theirs)]
        assert losses[0].result(9).loss_sum == pytest.approx(losses[1].result(9).loss_sum, rel=1e-6)
        assert steps[0].result(9).metrics["grad_norm"] == pytest.approx(steps[1].result(9).metrics["grad_norm"], rel=1e-6)


REFUSED_LORA = [(replace(LORA, alpha=8.0), "set lora_alpha=32"), (replace(LORA, dropout=0.1), "set lora_dropout=0"), (None, "method='lora'")]
REFUSED_SETTINGS = [({"lora_alpha": 64.0}, "lora_alpha=32"), ({"lora_dropout": 0.1}, "lora_dropout=0"), ({"method": "full"}, "method='lora'")]


@pytest.mark.parametrize("lora,remedy", REFUSED_LORA)
def test_what_a_service_cannot_do_is_refused_before_it_is_asked(server, lora, remedy):
    with pytest.raises(MissingCapability, match=remedy):
        open_service(server).create_training_client("toy", lora, 0)
    assert not server.calls


@pytest.mark.parametrize("settings,remedy", REFUSED_SETTINGS)
def test_a_run_is_refused_before_it_begins(tmp_path, settings, remedy):
    from kitchen.session.kitchen import Kitchen

    small = {"backend": "tinker", "model": "toy", "backend_options": {"tokenizer_backend": "toy"}, "dataset": "builtin:sort[:40]"}
    with Kitchen("sft", run_dir=tmp_path / "run", **small, **settings) as session:
        with pytest.raises(MissingCapability, match=remedy):
            session.run()
        assert not list(session.run_record.log.events.named("data.load"))


@pytest.mark.parametrize("wrong", ["weights", "advantages", "logprobs"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_never_sent(server, wrong, value):
    client, loss = open_service(server).create_training_client("toy", LORA, 0), "cross_entropy" if wrong == "weights" else "ppo"
    server.calls.clear()
    given = {"weights": np.ones(3), "advantages": np.ones(3), "logprobs": -np.ones(3)} | {wrong: [1, value, 1]}
    with pytest.raises(InvalidValue, match=str(value)):
        client.forward_backward([batch(1)[0].replace(**given)], loss)
    client.forward_backward(batch(), "cross_entropy").result(9)
    assert [verb for verb, _ in server.calls] == ["forward_backward"]


def test_a_derivative_that_is_no_number_is_never_sent(server):
    client = open_service(server).create_training_client("toy", LORA, 0)
    server.calls.clear()
    future = client.forward_backward_custom(batch(1), lambda data, found: ((found[0] - found[0].detach()).sqrt().sum(), {}))
    with pytest.raises(BackendError, match="the derivative of the loss is (inf|nan); nothing was added"):
        future.result(9)
    assert [verb for verb, _ in server.calls] == ["forward"]
    with pytest.raises(InvalidValue, match="no gradient"):
        client.optim_step(ADAM).result(9)
    client.forward_backward(batch(), "cross_entropy")
    client.optim_step(ADAM).result(9)


@pytest.mark.parametrize(
    "fault,words",
    [
        (APIStatusError("slow down", 429), "answers 429: it takes no more requests for now"),
        (APIStatusError("oops", 500), "answers 500: it has failed"),
        (APIStatusError("who? tml-good", 401), r"the key in \$TINKER_API_KEY is not accepted"),
        (APIConnectionError("reset"), "cannot be reached"),
        (RequestFailedError("the machine is gone", "server"), "the machine is gone"),
        (RuntimeError("Client is poisoned"), "Client is poisoned"),
    ],
    ids=["429", "500", "401", "dropped", "failed later", "poisoned"],
)
@pytest.mark.parametrize("verb", ["forward_backward", "optim_step"])
def test_after_a_failure_no_gradient_is_counted_twice(server, verb, fault, words):
    service = open_service(server)
    client = service.create_training_client("toy", LORA, 0)
    saved = client.save_state("before").result(9)
    server.faults[verb] = [fault]
    forward, step = client.forward_backward(batch(), "cross_entropy"), client.optim_step(ADAM)
    with pytest.raises(BackendError, match=words) as caught:
        forward.result(9)
        step.result(9)
    assert "tml-good" not in str(caught.value)
    for later in (client.forward_backward(batch(), "cross_entropy"), client.optim_step(ADAM), client.save_state("after")):
        with pytest.raises(BackendError, match="whether that gradient was counted is not known; go on from its last saved state"):
            later.result(9)
    again, plain = service.create_training_client_from_state(saved.path), ToyService().create_training_client("toy", LORA, 0)
    for one in (again, plain):
        one.forward_backward(batch(), "cross_entropy").result(9)
        one.optim_step(ADAM).result(9)
    sums = [one.forward(batch(), "cross_entropy").result(9).loss_sum for one in (again, plain)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


@pytest.mark.parametrize("verb", ["forward", "save_state", "sample"])
def test_a_failure_that_changes_nothing_ends_nothing(server, verb):
    client = open_service(server).create_training_client("toy", LORA, 0)
    server.faults[verb] = [APIStatusError("oops", 503)]
    ask = {
        "forward": lambda: client.forward(batch(), "cross_entropy"),
        "save_state": lambda: client.save_state("here"),
        "sample": lambda: client.create_sampling_client().sample([5, 6], 1, SamplingParams(max_tokens=2)),
    }[verb]
    with pytest.raises(BackendError, match="answers 503"):
        ask().result(9)
    ask().result(9)
    client.forward_backward(batch(), "cross_entropy")
    client.optim_step(ADAM).result(9)


@pytest.mark.parametrize("verb", ["forward", "forward_backward", "optim_step"])
def test_every_wait_ends(server, verb):
    client = open_service(server, timeout=0.3).create_training_client("toy", LORA, 0)
    server.faults[verb] = [1.5]
    future = client.optim_step(ADAM) if verb == "optim_step" else getattr(client, verb)(batch(), "cross_entropy")
    with pytest.raises(BackendError, match=rf"{verb}: tinker gave no result in 0\.3 s. Its SDK asks a failing service again"):
        future.result(9)


def test_a_wrong_or_missing_key_is_said_once_and_never_shown(server, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-wrong-0123456789")
    with pytest.raises(BackendError, match=r"answers 401: the key in \$TINKER_API_KEY is not accepted") as caught:
        open_service(server).create_training_client("toy", LORA, 0)
    assert "0123456789" not in str(caught.value)
    monkeypatch.delenv("TINKER_API_KEY")
    with pytest.raises(InvalidValue, match="TINKER_API_KEY, which is not set"):
        open_service(server).create_training_client("toy", LORA, 0)


def test_an_sdk_that_is_missing_names_the_remedy(monkeypatch):
    monkeypatch.setattr("kitchen.adapters.tinker.services.import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name)))
    for kind, extra in ((TinkerService, "tinker"), (FireworksService, "fireworks"), (TogetherService, "together")):
        with pytest.raises(MissingCapability, match=rf"pip install 'crucible-kitchen\[{extra}\]'"):
            kind(tokenizer_backend="toy").create_training_client("toy", LORA, 0)


def test_a_service_named_by_its_class_has_options_of_its_own(server, monkeypatch):
    from kitchen.ports.registry import checked_options

    given = checked_options("service", "kitchen.adapters.tinker.client:BasetenService", {"tokenizer_backend": "toy"})
    monkeypatch.setenv("BASETEN_API_KEY", "tml-good")
    monkeypatch.delenv("TINKER_API_KEY")
    client = BasetenService(make_sdk(server), **given).create_training_client("toy", LORA, 0)
    assert client.forward(batch(), "cross_entropy").result(9).loss_sum > 0


def test_each_request_is_told_with_its_size_and_times(server):
    service = open_service(server)
    client = service.create_training_client("toy", LORA, 0)
    client.forward_backward(batch(), "cross_entropy").result(9)
    client.forward_backward_custom(batch(1), lambda data, found: (found[0].sum(), {})).result(9)
    client.optim_step(ADAM).result(9)
    client.create_sampling_client().sample([5, 6, 7], 2, SamplingParams(max_tokens=2, stop=())).result(9)
    server.faults["forward"] = [APIStatusError("oops", 500)]
    with pytest.raises(BackendError):
        client.forward(batch(), "cross_entropy").result(9)
    told = [(one.verb, one.status, one.sent, one.received) for one in service.take_requests()]
    three = 3 * 3 * 4  # bytes of a datum of three positions: tokens, targets and weights
    assert told == [
        ("create_training_client", "ok", 0, 0), ("forward_backward", "ok", 2 * three, 2 * 3 * 4), ("forward", "ok", three, 3 * 4),
        ("forward_backward_custom", "ok", three, 3 * 4), ("optim_step", "ok", 24, 0), ("create_sampling_client", "ok", 0, 0),
        ("sample", "ok", 3 * 4, 2 * 2 * 2 * 4), ("forward", "APIStatusError", 2 * three, 0),
    ]  # fmt: skip
    assert service.take_requests() == []


def test_ids_end_an_answer_where_the_service_knows_texts_only(server):
    free = open_service(server).create_sampling_client("toy").sample([65, 66], 1, SamplingParams(max_tokens=6, temperature=0.0, stop=())).result(9)
    tokens = free.completions[0].tokens
    training = open_service(server, TogetherService, futures=False).create_training_client("toy", LORA, 0)
    params = SamplingParams(max_tokens=6, temperature=0.0, stop=(tokens[3],))
    cut = training.create_sampling_client().sample([65, 66], 1, params).result(9).completions[0]
    assert cut.tokens == tokens[: tokens.index(tokens[3]) + 1] and cut.stop_reason == "stop"


def test_references_are_the_services_and_say_what_it_does_not(server):
    service = open_service(server)
    client = service.create_training_client("toy", LORA, 0)
    first, second = (client.save_state("the same name").result(9).path for _ in range(2))
    assert first != second and first.startswith("tinker://run-1/weights/the-same-name-")
    plain = RemoteReference.parse(second).path
    assert service.create_training_client_from_state(plain).model == "toy", "a reference from elsewhere, which does not say its model"
    service.delete_state(first)
    service.delete_state(first)
    with pytest.raises(InvalidValue, match="refuses it"):
        service.create_training_client_from_state(first)
    for hostile in ("https://elsewhere/x", "file:///etc/passwd", "tinker://x#model=[]", "x\ny"):
        with pytest.raises(InvalidValue, match="no reference that this backend gave"):
            service.create_training_client_from_state(hostile)


def test_names_of_a_service_stand_beside_those_of_kitchen(server):
    service = open_service(server, service_models={"toy": "toy:seed=1"})
    client = service.create_training_client("toy", LORA, 0)
    assert client.client.model == "toy:seed=1"
    saved = RemoteReference.parse(client.save_state("here").result(9).path)
    assert saved.model == "toy" and service.create_training_client_from_state(saved.path).model == "toy"


def test_stops_of_both_kinds_end_an_answer(server):
    sampler = open_service(server).create_sampling_client("toy")
    free = sampler.sample([65, 66], 1, SamplingParams(max_tokens=6, temperature=0.0, stop=())).result(9).completions[0]
    text = chr(free.tokens[2]) if free.tokens[2] < 128 else None
    mixed = (free.tokens[4], text) if text else (free.tokens[4],)
    cut = sampler.sample([65, 66], 1, SamplingParams(max_tokens=6, temperature=0.0, stop=mixed)).result(9).completions[0]
    wanted = next(index for index, token in enumerate(free.tokens) if token == free.tokens[4] or text and chr(token) == text)
    assert cut.tokens == free.tokens[: wanted + 1] and cut.stop_reason == "stop"


def test_a_service_without_a_sum_has_it_computed(server):
    sdk = make_sdk(server)
    client = TinkerService(sdk, tokenizer_backend="toy").create_training_client("toy", LORA, 0)
    plain, inner = client.forward(batch(), "cross_entropy").result(9).loss_sum, client.client.forward

    def without_metrics(*values):
        found = inner(*values).result()
        found.metrics = {}
        return found

    client.client.forward = without_metrics
    assert client.forward(batch(), "cross_entropy").result(9).loss_sum == pytest.approx(plain, rel=1e-6)
