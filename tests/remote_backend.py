"""A backend such as a remote service is: states under names of its own, nothing in the run's folder, only the verbs of the ports."""

import json
import tempfile
from pathlib import Path

from kitchen.adapters.toy.client import ToyService
from kitchen.ports.futures import AdapterFuture
from kitchen.ports.protocols import SamplingClient, TrainingClient
from kitchen.ports.registry import port_methods
from kitchen.types import Capabilities, InvalidValue, SavedState

CALLS: list[str] = []  # what was asked of services: verb and reference


def forward_to(port: type) -> type:
    """A class that has a port's verbs, passes them on, and has nothing else."""

    def passing(verb: str):
        return lambda self, *values, **named: getattr(self._inner, verb)(*values, **named)

    def begin(self, inner):
        self._inner = inner

    return type(f"Only{port.__name__}", (), {"__init__": begin, **{verb: passing(verb) for verb in port_methods(port)}})


OnlyTraining, OnlySampling = forward_to(TrainingClient), forward_to(SamplingClient)


class RemoteTraining(OnlyTraining):
    """Saves states under names of the service."""

    def __init__(self, inner, service):
        super().__init__(inner)
        self._service = service

    def save_state(self, name, ttl_seconds=None):
        local, future = self._inner.save_state(f"{name}-{len(CALLS)}").result().path, AdapterFuture("save_state")
        future.run(lambda: SavedState(self._service._keep(name, local, ttl_seconds)))
        return future

    def create_sampling_client(self):
        return OnlySampling(self._inner.create_sampling_client())


class RemoteService:
    """A service whose states lie elsewhere; `folder` stands for its disk, which outlives this process."""

    prefix = "tinker://run-1/weights/"
    down = False  # whether it cannot be reached at the moment
    claims = {"deterministic": True, "full_finetuning": True}

    def __init__(self, folder: str = ""):
        self.folder = Path(folder or tempfile.mkdtemp())
        self._inner = ToyService(self.folder)

    def _listing(self) -> dict:
        path = self.folder / "names.txt"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _keep(self, name, local, ttl):
        reference = f"{self.prefix}{name}-{len(CALLS)}"
        CALLS.append(f"save {reference}" + (f" for {ttl} s" if ttl else ""))
        (self.folder / "names.txt").write_text(json.dumps({**self._listing(), reference: local}))
        return reference

    def kept(self) -> list[str]:
        return sorted(self._listing())

    def capabilities(self):
        return Capabilities(self._inner.capabilities().losses, **self.claims)

    def get_tokenizer(self, model):
        return self._inner.get_tokenizer(model)

    def create_training_client(self, model, lora, seed):
        return RemoteTraining(self._inner.create_training_client(model, lora, seed), self)

    def create_training_client_from_state(self, path, with_optimizer=True):
        CALLS.append(f"open {path}")
        if path not in self._listing():
            raise InvalidValue(f"no state {path!r}; there are {self.kept()}")
        return RemoteTraining(self._inner.create_training_client_from_state(self._listing()[path], with_optimizer), self)

    def create_sampling_client(self, model):
        return OnlySampling(self._inner.create_sampling_client(model))

    def delete_state(self, path):
        if self.down:
            raise ConnectionError("down")
        CALLS.append(f"delete {path}")
        (self.folder / "names.txt").write_text(json.dumps({name: local for name, local in self._listing().items() if name != path}))

    def close(self):
        CALLS.append("close")
