"""A stand-in of a service's SDK: its own types, futures and errors; behind them the toy backend. No network, no package."""

import time
import types
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kitchen.adapters.tinker.client import TinkerService
from kitchen.adapters.tinker.options import TinkerOptions
from kitchen.adapters.toy.client import ToyService
from kitchen.types import AdamParams as OurAdam
from kitchen.types import Datum as OurDatum
from kitchen.types import InvalidValue, LoraParams
from kitchen.types import SamplingParams as OurSampling


class APIStatusError(Exception):
    """An error with a status."""

    def __init__(self, message: str, status_code: int):
        super().__init__(message)
        self.message, self.status_code = message, status_code


class APIConnectionError(Exception):
    """Nobody answered."""


class RequestFailedError(Exception):
    """A request that was taken and failed later."""

    def __init__(self, message: str, category: str):
        super().__init__(message)
        self.message, self.category = message, category


class TensorData:
    """Numbers; made from arrays only."""

    def __init__(self, values: np.ndarray):
        self._values = values

    @classmethod
    def from_numpy(cls, array):
        assert array.dtype in (np.float32, np.int64), array.dtype
        assert np.isfinite(array).all(), "something that is no number is on the wire"
        return cls(array)

    def to_numpy(self):
        return self._values


@dataclass
class ModelInput:
    """A prompt."""

    tokens: list[int]

    @classmethod
    def from_ints(cls, tokens):
        assert all(type(token) is int for token in tokens)
        return cls(list(tokens))


@dataclass
class Datum:
    """A datum of the package."""

    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]


def as_ours(datum: Datum) -> OurDatum:
    """What the server behind the package reads; it tells every log-probability."""
    inputs = {{"target_tokens": "targets"}.get(name, name): value.to_numpy() for name, value in datum.loss_fn_inputs.items()}
    return OurDatum(np.array(datum.model_input.tokens), inputs | {"read_mask": np.ones(len(datum.model_input.tokens))})


@dataclass(kw_only=True)
class AdamParams:
    """No defaults: whoever leaves a number out fails."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float


@dataclass(kw_only=True)
class SamplingParams:
    """No defaults either; a stop is text or ids, never both."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: list

    def __post_init__(self):
        assert len({type(one) for one in self.stop}) <= 1, self.stop


class APIFuture:
    """As the package's: it can be waited for, and gives the plain one."""

    def __init__(self, plain: Future):
        self._plain = plain

    def result(self, timeout=None):
        return self._plain.result(timeout)

    def future(self):
        return self._plain


@dataclass
class Server:
    """What stands at the other end: models, checkpoints, and faults that are to come."""

    toy: ToyService = field(default_factory=ToyService)
    saved: dict[str, tuple[str, str]] = field(default_factory=dict)  # path -> state or folder, model
    faults: dict[str, list] = field(default_factory=dict)  # verb -> errors (or seconds to hang), one for each request; None: no fault
    calls: list[tuple[str, Any]] = field(default_factory=list)
    gradients: int = 0  # batches that were counted
    number: int = 0
    folder: Any = None

    def path(self, kind: str, name: str) -> str:
        self.number += 1
        return f"tinker://run-{self.number}/{kind}/{name}"

    def strike(self, verb: str, told: Any = None) -> None:
        """The fault that is next for a verb."""
        self.calls.append((verb, told))
        fault = self.faults.get(verb, []).pop(0) if self.faults.get(verb) else None
        if isinstance(fault, (int, float)):
            time.sleep(fault)
        elif fault is not None:
            raise fault


def make_sdk(server: Server, futures: bool = True, key: str = "tml-good") -> types.ModuleType:
    """A module as packages are: with futures, or, as older and blocking ones, with the things themselves."""

    class TrainingClient:
        def __init__(self, inner, model):
            self.inner, self.model, self.pool, self.poisoned = inner, model, ThreadPoolExecutor(1), None

        def _answer(self, verb, work, told=None):
            def run():
                if self.poisoned:
                    raise RuntimeError(f"Client is poisoned: {self.poisoned}")
                server.strike(verb, told)
                try:
                    return work()
                except InvalidValue as error:
                    raise RequestFailedError(str(error), "user") from None

            plain = self.pool.submit(run)
            return APIFuture(plain) if futures else plain.result()

        def _batch(self, verb, data, loss_fn, settings):
            assert all(type(datum) is Datum for datum in data), "a foreign type"
            ours = [as_ours(one) for one in data]

            def work():
                found = getattr(self.inner, verb)(ours, loss_fn, settings).result()
                server.gradients += verb == "forward_backward"
                outputs = [{"logprobs": TensorData(one["logprobs"])} for one in found.loss_fn_outputs]
                return types.SimpleNamespace(loss_fn_outputs=outputs, metrics=dict(found.metrics))

            return self._answer(verb, work, loss_fn)

        def forward_backward(self, data, loss_fn, loss_fn_config=None, return_loss_fn_outputs=None):
            assert futures or return_loss_fn_outputs, "without being asked, Together tells no log-probabilities"
            return self._batch("forward_backward", data, loss_fn, loss_fn_config)

        def forward(self, data, loss_fn, loss_fn_config=None):
            return self._batch("forward", data, loss_fn, loss_fn_config)

        def optim_step(self, adam_params):
            assert type(adam_params) is AdamParams
            adam = OurAdam(**vars(adam_params), weight_decay_on="all")
            return self._answer("optim_step", lambda: types.SimpleNamespace(metrics=dict(self.inner.optim_step(adam).result().metrics)), adam_params)

        def save_state(self, name, ttl_seconds=None):
            def work():
                path = server.path("weights", name)
                server.saved[path] = (self.inner.save_state(path.replace("/", "-").replace(":", "-")).result().path, self.model)
                return types.SimpleNamespace(path=path)

            return self._answer("save_state", work, name)

        def save_weights_for_sampler(self, name):
            def work():
                path = server.path("sampler_weights", name)
                folder = server.folder / f"export-{server.number}"
                server.saved[path] = (self.inner.save_weights(folder).result().path, self.model)
                return types.SimpleNamespace(path=path)

            return self._answer("save_weights_for_sampler", work, name)

        def save_weights_and_get_sampling_client(self, name=None):
            return self._answer("save_weights_and_get_sampling_client", lambda: SamplingClient(self.inner.create_sampling_client()))

        def get_info(self):
            return types.SimpleNamespace(model_data=types.SimpleNamespace(model_name=self.model))

    class SamplingClient:
        def __init__(self, inner):
            self.inner, self.pool = inner, ThreadPoolExecutor(1)

        def _answer(self, verb, work):
            def run():
                server.strike(verb)
                return work()

            plain = self.pool.submit(run)
            return APIFuture(plain) if futures else plain.result()

        def sample(self, prompt, num_samples, sampling_params, include_prompt_logprobs=False, topk_prompt_logprobs=0):
            assert type(prompt) is ModelInput and type(sampling_params) is SamplingParams
            told = {key: value for key, value in vars(sampling_params).items() if key != "stop"}
            ours = OurSampling(**told, stop=tuple(sampling_params.stop))

            def work():
                drawn = self.inner.sample(prompt.tokens, num_samples, ours).result().completions
                rows = None
                if topk_prompt_logprobs:
                    top = self.inner.compute_topk(prompt.tokens[:-1], topk_prompt_logprobs).result()
                    pairs = zip(top.tokens.tolist(), top.logprobs.tolist(), strict=True)
                    rows = [None, *(list(zip(ids, values, strict=True)) for ids, values in pairs)]
                return types.SimpleNamespace(sequences=drawn, topk_prompt_logprobs=rows)

            return self._answer("sample", work)

        def compute_logprobs(self, prompt):
            return self._answer("compute_logprobs", lambda: self.inner.compute_logprobs(prompt.tokens).result())

    class ServiceClient:
        def __init__(self, *, api_key, base_url=None):
            if api_key != key:
                raise APIStatusError(f"invalid key {api_key}", 401)

        def _answer(self, verb, work):
            plain = Future()
            try:
                server.strike(verb)
                plain.set_result(work())
            except InvalidValue as error:
                plain.set_exception(APIStatusError(str(error), 404))
            except Exception as error:
                plain.set_exception(error)
            return APIFuture(plain) if futures else plain.result()

        def create_lora_training_client(self, *, base_model, rank, seed, train_mlp, train_attn, train_unembed):
            lora = LoraParams(rank, 32.0, 0.0, train_attn, train_mlp, train_unembed)
            return self._answer("create", lambda: TrainingClient(server.toy.create_training_client(base_model, lora, seed), base_model))

        def _from_state(self, path, with_optimizer):
            def work():
                if path not in server.saved:
                    raise APIStatusError(f"there is no {path}", 404)
                state, model = server.saved[path]
                return TrainingClient(server.toy.create_training_client_from_state(state, with_optimizer), model)

            return self._answer("from_state", work)

        def create_training_client_from_state(self, path):
            return self._from_state(path, False)

        def create_training_client_from_state_with_optimizer(self, path):
            return self._from_state(path, True)

        def create_sampling_client(self, *, model_path=None, base_model=None):
            where = base_model or server.saved.get(model_path, ("no-such-model", ""))[0]
            return self._answer("create_sampling_client", lambda: SamplingClient(server.toy.create_sampling_client(where)))

        def create_rest_client(self):
            return RestClient()

        def close(self):
            return self._answer("close", lambda: None)

    class RestClient:
        def __init__(self, *, api_key=key, base_url=None):
            assert api_key == key

        def delete_checkpoint_from_tinker_path(self, path):
            plain = Future()
            if server.saved.pop(path, None) is None:
                plain.set_exception(APIStatusError(f"there is no {path}", 404))
            else:
                plain.set_result(None)
            return APIFuture(plain)

    module = types.ModuleType("sdk_standin_module")
    module.ServiceClient = ServiceClient
    if futures:  # older packages have neither, and keep some types elsewhere
        module.RestClient, module.types = RestClient, types.SimpleNamespace(SamplingParams=SamplingParams, TensorData=TensorData)
    else:
        module.SamplingParams, module.TensorData = SamplingParams, TensorData
    module.ModelInput, module.Datum, module.AdamParams = ModelInput, Datum, AdamParams
    return module


SERVER: Server | None = None  # of `StandInService`


class StandInService(TinkerService):
    """Tinker's adapter over the stand-in, as a backend that a run can name: `sdk_standin:StandInService`."""

    Options = TinkerOptions

    def __init__(self, **options):
        assert SERVER is not None, "set by the test"
        super().__init__(make_sdk(SERVER), **options)
