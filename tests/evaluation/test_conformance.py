"Every backend against the conformance suite, and proof that each of its checks can fail."

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from kitchen.adapters.toy.client import ToyService, ToyTrainingClient
from kitchen.adapters.toy.queue import ToyQueue
from kitchen.adapters.toy.sampler import ToySamplingClient
from kitchen.adapters.toy.tokenizer import ToyTokenizer
from kitchen.ports.registry import create_adapter
from kitchen.testing import CHECKS, Bench, ConformanceError, Report, conformance
from kitchen.types import Datum, ForwardBackwardOutput, LoraParams, TopK, UnknownName

SMALL = "toy:hidden=12,context=4,question=6,embedding=6"
KINDS = {"lora": LoraParams(rank=4, alpha=8.0), "full": None}


# --- toy ---


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latency", [0.0, 0.0005])
def test_toy(name, kind, latency):
    CHECKS[name].run(Bench(ToyService(latency=latency), SMALL, KINDS[kind], tolerance=1e-5)).raise_or_skip()


# --- torch: a tiny Llama with a tokenizer of bytes ---


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    "A directory with a random two-layer Llama and a byte-level tokenizer with ChatML's control tokens."
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny-llama")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = ToyTokenizer.chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def torch_service():
    pytest.importorskip("kitchen.adapters.torch.client")
    return create_adapter("service", "torch")


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", KINDS)
def test_torch(name, kind, torch_service, tiny_llama):
    CHECKS[name].run(Bench(torch_service, tiny_llama, KINDS[kind], tolerance=2e-4)).raise_or_skip()


# --- the suite can fail: one broken backend for each check ---


class Broken(ToyTrainingClient):
    "A client with one thing wrong."

    def _run_request(self, data, objective, learn):
        return self.changed(super()._run_request(self.given(data), objective, learn), data)

    def given(self, data):
        return data

    def changed(self, output, data):
        return output


def with_loss(output, loss):
    return ForwardBackwardOutput(output.loss_fn_outputs, {**output.metrics, "loss:sum": loss})


class AveragesTheLoss(Broken):
    def changed(self, output, data):
        return with_loss(output, output.loss_sum / len(data))


class AveragesTheGradient(Broken):
    def _step(self, adam):
        self.learner.gradient = self.learner.gradient / 3
        return super()._step(adam)


class LosesTheLastLogprob(Broken):
    def changed(self, output, data):
        short = tuple({"logprobs": part["logprobs"][:-1]} for part in output.loss_fn_outputs)
        return ForwardBackwardOutput(short, output.metrics)


class SeesItsNeighbour(Broken):
    def given(self, data):
        return [Datum([data[0].tokens[0], *datum.tokens[1:]], datum.loss_fn_inputs) for datum in data]


class SeesTheEnd(Broken):
    def given(self, data):
        return [Datum([datum.tokens[-1], *datum.tokens[1:]], datum.loss_fn_inputs) for datum in data]


class KeepsTheLastGradientOnly(Broken):
    def _run_request(self, data, objective, learn):
        if learn:
            self.learner.gradient = None
        return super()._run_request(data, objective, learn)


class ForwardClearsGradients(Broken):
    def _run_request(self, data, objective, learn):
        output = super()._run_request(data, objective, learn)
        if not learn:
            self.learner.gradient = 0 * self.learner.pending_gradient()
        return output


class KeepsTheGradientAfterTheStep(Broken):
    def _step(self, adam):
        gradient = self.learner.gradient
        output = super()._step(adam)
        self.learner.gradient = gradient
        return output


class ReplacesRateZero(Broken):
    def _step(self, adam):
        return super()._step(replace(adam, learning_rate=adam.learning_rate or 1e-4))


class NeverClips(Broken):
    def _step(self, adam):
        return super()._step(replace(adam, grad_clip_norm=0.0))


class AddsDecayToTheGradient(Broken):
    def _step(self, adam):
        self.learner.gradient = self.learner.pending_gradient() + adam.weight_decay * self.learner.state.values
        return super()._step(replace(adam, weight_decay=0.0))


class Ascends(Broken):
    def _step(self, adam):
        self.learner.gradient = -self.learner.gradient
        return super()._step(adam)


class CustomLossWithTheWrongSign(Broken):
    def forward_backward_custom(self, data, loss_fn):
        def opposite(batch, logprobs):
            value, metrics = loss_fn(batch, logprobs)
            return -value, metrics

        return super().forward_backward_custom(data, opposite)


class IgnoresTheSamplingPolicy(Broken):
    def forward_backward(self, data, loss_fn, loss_fn_config=None):
        if loss_fn == "importance_sampling":
            data = [datum.replace(logprobs=np.zeros(len(datum))) for datum in data]
        return super().forward_backward(data, loss_fn, loss_fn_config)


class ForgetsItsBounds(Broken):
    def forward_backward(self, data, loss_fn, loss_fn_config=None):
        return super().forward_backward(data, loss_fn, None)


class KnowsOneBound(Broken):
    "Bounds of each token are dropped."

    def given(self, data):
        bounds = {"clip_low_threshold", "clip_high_threshold"}
        return [
            Datum(one.tokens, {name: values for name, values in one.loss_fn_inputs.items() if name not in bounds}) for one in data
        ]


class AveragesOverTheWholeSequence(Broken):
    "GSPO's ratio is taken over every token, whatever sequence_ratio_mask says."

    def given(self, data):
        return [
            Datum(one.tokens, {name: values for name, values in one.loss_fn_inputs.items() if name != "sequence_ratio_mask"})
            for one in data
        ]


class LearnsTheFirstOfSeveral(Broken):
    "Of several targets at a position only the first has a weight."

    def forward_backward(self, data, loss_fn, loss_fn_config=None):
        data = [one.replace(weights=one.weights * [1, 0, 0]) if one.targets.ndim == 2 else one for one in data]
        return super().forward_backward(data, loss_fn, loss_fn_config)


class StartsElsewhere(Broken):
    pass


class SamplesFromTheBase(Broken):
    def create_sampling_client(self):
        return self.service.create_sampling_client(self.base.name)


class LiveSampler(ToySamplingClient):
    "Looks the weights up when it is asked."

    trainer: ToyTrainingClient

    def _sample(self, *values):
        self.network = self.trainer._network()
        return super()._sample(*values)

    def _logprobs(self, prompt):
        self.network = self.trainer._network()
        return super()._logprobs(prompt)


class SharesItsWeights(Broken):
    def create_sampling_client(self):
        sampler = super().create_sampling_client()
        sampler.__class__, sampler.trainer = LiveSampler, self
        return sampler


class ExportsTheBase(Broken):
    def save_weights(self, path, stop=None, chat_template=None):
        fresh = ToyTrainingClient(self.base, self.lora, self.seed, self.service)
        return fresh.save_weights(path, stop, chat_template)


class ForgetsTheStops(Broken):
    def save_weights(self, path, stop=None, chat_template=None):
        return super().save_weights(path, None, chat_template)


class ForgetsTheOptimizer(Broken):
    def _capture_state(self):
        kept = self.learner.state
        self.learner.state = replace(kept, moment1=0 * kept.moment1)
        content = super()._capture_state()
        self.learner.state = kept
        return content


class SavingDisturbs(Broken):
    def save_state(self, name):
        self.learner.state = replace(self.learner.state, moment1=0 * self.learner.state.moment1)
        return super().save_state(name)


class DropsInForward(Broken):
    def _run_request(self, data, objective, learn):
        if learn:
            return super()._run_request(data, objective, learn)
        before = self.learner.gradient, self.requests
        output = super()._run_request(data, objective, True)
        self.learner.gradient, self.requests = before
        return output


class PlainTimeouts(ToyQueue):
    def submit(self, work):
        class Slow:
            def __init__(self):
                self.value = ThreadPoolExecutor(1).submit(lambda: (time.sleep(0.01), work())[1])

            def result(self, timeout=None):
                return self.value.result(timeout)

            def done(self):
                return self.value.done()

        return Slow()


class RaisesPlainTimeouts(Broken):
    queue_class = PlainTimeouts


class LazyQueue(ToyQueue):
    def submit(self, work):
        class Lazy:
            value = None

            def result(self, timeout=None):
                self.value = self.value or work()
                return self.value

            def done(self):
                return self.value is not None

        return Lazy()


class WorksWhenAsked(Broken):
    queue_class = LazyQueue


class AcceptsAnyLoss(Broken):
    def _submit(self, data, loss_fn, settings, learn):
        known = self.service.capabilities().losses
        return super()._submit(data, loss_fn if loss_fn in known else "cross_entropy", settings, learn)


class AddsHalfOfAFailure(Broken):
    def forward_backward(self, data, loss_fn, loss_fn_config=None):
        if len(data) > 2:
            super().forward_backward(data[:1], loss_fn)
        return super().forward_backward(data, loss_fn, loss_fn_config)


class HasNoSeed(Broken):
    pass


class BrokenService(ToyService):
    "Opens broken clients."

    broken: type[ToyTrainingClient] = ToyTrainingClient

    def create_training_client(self, model, lora, seed):
        if self.broken is HasNoSeed:
            seed = secrets.randbits(30)
        client = super().create_training_client(model, lora, seed)
        client.__class__ = self.broken
        if self.broken is StartsElsewhere:
            client.learner.state = replace(client.learner.state, values=client.learner.state.values + 0.01)
        if hasattr(self.broken, "queue_class"):
            client.queue.__class__ = self.broken.queue_class
        return client


class AlwaysLoadsTheOptimizer(BrokenService):
    def create_training_client_from_state(self, path, with_optimizer=True):
        return super().create_training_client_from_state(path)


class ForgetsTheDropoutStream(BrokenService):
    def create_training_client_from_state(self, path, with_optimizer=True):
        client = super().create_training_client_from_state(path, with_optimizer)
        client.requests = 0
        return client


class OneSeed(ToySamplingClient):
    def sample(self, prompt, num_samples, sampling_params):
        return super().sample(prompt, num_samples, replace(sampling_params, seed=1))


class LikelyAtAnotherTemperature(ToySamplingClient):
    def _topk(self, prompt, count):
        found = super()._topk(prompt, count)
        return TopK(found.tokens, found.logprobs / 2)


class TellsTokensTwice(ToySamplingClient):
    def sample_telling(self, prompt, num_samples, sampling_params, tell):
        def twice(index, token):
            tell(index, token)
            tell(index, token)

        return super().sample_telling(prompt, num_samples, sampling_params, twice)


class NoStops(ToySamplingClient):
    def sample(self, prompt, num_samples, sampling_params):
        return super().sample(prompt, num_samples, replace(sampling_params, stop=()))


class SamplesBadly(BrokenService):
    sampler: type[ToySamplingClient] = ToySamplingClient

    def create_sampling_client(self, model):
        client = super().create_sampling_client(model)
        client.__class__ = self.sampler
        return client


class ClaimsMoreLosses(BrokenService):
    def capabilities(self):
        claims = super().capabilities()
        return replace(claims, losses=claims.losses | {"hinge"})


class ReadsControlTokens(ToyTokenizer):
    def encode(self, text, control=False):
        return super().encode(text, control=True)


class TrustsWhatPeopleType(BrokenService):
    def get_tokenizer(self, model):
        super().get_tokenizer(model)
        return ReadsControlTokens()


class NamesALimit(BrokenService):
    def get_tokenizer(self, model):
        tokenizer = super().get_tokenizer(model)
        tokenizer.model_max_length = 64  # a longer sequence is taken all the same
        return tokenizer


def opening(client: type[ToyTrainingClient]) -> BrokenService:
    service = BrokenService()
    service.broken = client
    return service


def sampling(client: type[ToySamplingClient]) -> SamplesBadly:
    service = SamplesBadly()
    service.sampler = client
    return service


BREAKAGES = [
    ("losses_are_sums", lambda: opening(AveragesTheLoss)),
    ("outputs_fit_their_datums", lambda: opening(LosesTheLastLogprob)),
    ("neighbours_are_invisible", lambda: opening(SeesItsNeighbour)),
    ("later_tokens_are_invisible", lambda: opening(SeesTheEnd)),
    ("accumulation_adds", lambda: opening(KeepsTheLastGradientOnly)),
    ("forward_leaves_gradients", lambda: opening(ForwardClearsGradients)),
    ("step_clears_the_gradient", lambda: opening(KeepsTheGradientAfterTheStep)),
    ("rate_zero_keeps_weights", lambda: opening(ReplacesRateZero)),
    ("gradient_is_that_of_the_sum", lambda: opening(AveragesTheGradient)),
    ("clipping_shortens", lambda: opening(NeverClips)),
    ("weight_decay_is_decoupled", lambda: opening(AddsDecayToTheGradient)),
    ("training_learns", lambda: opening(Ascends)),
    ("custom_loss_equals_weights", lambda: opening(CustomLossWithTheWrongSign)),
    ("importance_sampling_on_policy", lambda: opening(IgnoresTheSamplingPolicy)),
    ("clipping_matches_loss_table", lambda: opening(ForgetsItsBounds)),
    ("dro_matches_loss_table", lambda: opening(ForgetsItsBounds)),
    ("gspo_matches_loss_table", lambda: opening(AveragesOverTheWholeSequence)),
    ("clip_bounds_of_each_token", lambda: opening(KnowsOneBound)),
    ("several_targets_are_their_sum", lambda: opening(LearnsTheFirstOfSeveral)),
    ("tokens_are_told_as_drawn", lambda: sampling(TellsTokensTwice)),
    ("topk_agrees_with_logprobs", lambda: sampling(LikelyAtAnotherTemperature)),
    ("training_starts_at_the_base", lambda: opening(StartsElsewhere)),
    ("sampler_agrees_with_trainer", lambda: opening(SamplesFromTheBase)),
    ("samplers_keep_their_weights", lambda: opening(SharesItsWeights)),
    ("sampling_is_reproducible", lambda: sampling(OneSeed)),
    ("sampling_respects_stops", lambda: sampling(NoStops)),
    ("export_opens", lambda: opening(ExportsTheBase)),
    ("exports_keep_their_stops", lambda: opening(ForgetsTheStops)),
    ("state_resumes_exactly", lambda: opening(ForgetsTheOptimizer)),
    ("state_resumes_exactly", lambda: opening(SavingDisturbs)),
    ("state_without_optimizer_forgets", AlwaysLoadsTheOptimizer),
    ("dropout_follows_the_seed", lambda: opening(DropsInForward)),
    ("dropout_follows_the_seed", ForgetsTheDropoutStream),
    ("futures_resolve", lambda: opening(RaisesPlainTimeouts)),
    ("requests_run_in_order", lambda: opening(WorksWhenAsked)),
    ("mistakes_are_refused", lambda: opening(AcceptsAnyLoss)),
    ("failures_leave_no_trace", lambda: opening(AddsHalfOfAFailure)),
    ("capabilities_are_honest", ClaimsMoreLosses),
    ("seed_determines_training", lambda: opening(HasNoSeed)),
    ("tokenizer_is_faithful", TrustsWhatPeopleType),
    ("context_is_honest", NamesALimit),
]


def test_every_check_has_a_breakage():
    assert {name for name, _ in BREAKAGES} == set(CHECKS)


@pytest.mark.parametrize(("name", "service"), BREAKAGES)
def test_a_broken_backend_fails(name, service):
    bench = Bench(service(), SMALL, KINDS["lora"], tolerance=1e-5)
    outcome = CHECKS[name].run(bench)
    assert outcome.status == "failed", str(outcome)
    with pytest.raises(ConformanceError, match=name):
        outcome.raise_or_skip()


def test_full_breakages_are_found_too():
    report = conformance(opening(AveragesTheLoss), SMALL, lora=False, only=["losses_are_sums", "training_learns"])
    assert [outcome.status for outcome in report.outcomes] == ["failed", "passed"]
    assert "expected" in str(report.failures[0]) and "difference" in str(report.failures[0])


def test_unclaimed_capabilities_are_skipped_with_their_reason():
    class Modest(ToyService):
        def capabilities(self):
            claims = super().capabilities()
            return replace(claims, full_finetuning=False, losses=frozenset({"cross_entropy"}), optimizer_state=False)

    report = conformance(Modest(), SMALL)
    skipped = {outcome.check: outcome.reason for outcome in report.outcomes if outcome.status == "skipped"}
    assert {"importance_sampling_on_policy", "state_resumes_exactly"} < skipped.keys()
    assert "optimizer_state" in skipped["state_resumes_exactly"]
    assert [each.check for each in report.failures] == ["capabilities_are_honest"], "it can do more than it claims"
    assert {outcome.training for outcome in report.outcomes} == {"LoRA"}


def test_report_is_readable():
    report = conformance(ToyService(), SMALL, lora=True, only=["losses_are_sums", "state_resumes_exactly"])
    assert isinstance(report, Report) and report.summary.endswith("2 passed, 0 failed, 0 skipped")
    assert "losses_are_sums" in str(report) and report._repr_html_().count("<tr>") == 3
    with pytest.raises(UnknownName, match="did you mean 'state_resumes_exactly'"):
        conformance(ToyService(), SMALL, only=["state_resumes"])
