"""Backends with one thing wrong each, connected by their address: what the checks through the product have to find."""

import itertools
import os
import tempfile
from pathlib import Path

from remote_backend import RemoteService

from kitchen.adapters.toy.client import ToyService, ToyTrainingClient
from kitchen.types import FutureTimeout, InvalidValue, SavedState

_FOLDER = Path(os.environ.get("REMOTE_FOLDER") or tempfile.mkdtemp())


class OnDisk(RemoteService):
    """Nothing wrong: a service whose states lie elsewhere, and outlive this process."""

    def __init__(self):
        _FOLDER.mkdir(exist_ok=True)
        super().__init__(str(_FOLDER))


class Client(ToyTrainingClient):
    pass


class Service(ToyService):
    client: type[ToyTrainingClient] = Client

    def create_training_client(self, model, lora, seed):
        client = super().create_training_client(model, lora, seed)
        client.__class__ = self.client
        return client

    def create_training_client_from_state(self, path, with_optimizer=True):
        client = super().create_training_client_from_state(path, with_optimizer)
        client.__class__ = self.client
        return client


def broken(**verbs):
    """A service whose clients have these verbs."""
    return type("Broken", (Service,), {"client": type("BrokenClient", (Client,), verbs)})


ConstantDigest = broken(digest=lambda self: "0" * 64)
_NUMBERS = itertools.count()
RestlessDigest = broken(digest=lambda self: f"{next(_NUMBERS):064}")  # a run that ends says another state each time it is asked


class KeepsEverything(Service):
    """Says that it has deleted, and has not."""

    def delete_state(self, path):
        pass


class PlainTimeout(Client):
    def _submit(self, *values, **named):
        future = super()._submit(*values, **named)

        class Waiting:
            def result(self, timeout=None):
                if timeout is not None and timeout < 1:
                    raise TimeoutError("no KitchenError")
                return future.result()

            def done(self):
                return True

            def add_done_callback(self, callback):
                pass

            def __await__(self):
                return future.__await__()

        return Waiting()


ForgetsToCallBack = type("ForgetsToCallBack", (Service,), {"client": PlainTimeout})
assert issubclass(FutureTimeout, TimeoutError)


class NeedsMore(Service):
    """Has a verb that no port names, and a client that leans on it being called."""

    def get_tokenizer(self, model):
        raise RuntimeError("call connect() first")


class AsksForItsOwn(Service):
    """Works only while somebody looks at an attribute that no port names."""

    @property
    def unnamed(self):
        return 1


class ForgetsTheOptimizer(Service):
    """Opens a state without what Adam remembered."""

    def create_training_client_from_state(self, path, with_optimizer=True):
        return super().create_training_client_from_state(path, with_optimizer=False)


class SharesOneClient(Service):
    """Opens a state into the client that is there already: a fork trains its parent's weights."""

    opened: dict = {}

    def create_training_client_from_state(self, path, with_optimizer=True):
        name = os.path.basename(path)
        if name not in self.opened:
            self.opened[name] = super().create_training_client_from_state(path, with_optimizer)
        return self.opened[name]


class SamplerDisturbs(Client):
    def create_sampling_client(self):
        sampler = super().create_sampling_client()
        if self.learner.state.steps:
            self.learner.state.values[...] = self.learner.state.values * 1.001
        return sampler


SamplingDisturbs = type("SamplingDisturbs", (Service,), {"client": SamplerDisturbs})


class StatesInMemory(Service):
    """Keeps states where no other process finds them."""

    kept: dict = {}

    def create_training_client(self, model, lora, seed):
        return self._named(super().create_training_client(model, lora, seed))

    def create_training_client_from_state(self, path, with_optimizer=True):
        if path not in self.kept:
            raise InvalidValue(f"no state {path!r}")
        return self._named(super().create_training_client_from_state(self.kept[path], with_optimizer))

    def delete_state(self, path):
        self.kept.pop(path, None)

    def _named(self, client):
        save = client.save_state

        def save_state(name, ttl_seconds=None):
            local, reference = save(name).result().path, f"memory://{os.getpid()}/{name}-{len(self.kept)}-{next(_NUMBERS)}"
            self.kept[reference] = local

            class Ready:
                def result(self, timeout=None):
                    return SavedState(reference)

                def done(self):
                    return True

                def add_done_callback(self, callback):
                    callback(self)

            return Ready()

        client.save_state = save_state
        return client


class NeverForgets(StatesInMemory):
    """The same, and nothing is ever deleted."""

    def delete_state(self, path):
        pass
