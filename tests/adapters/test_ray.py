"""What of the ray backend needs no Ray: options, sums of resources, the journal over calls of actors. The rest is proven by `make services`."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.adapters.procs.rank import RankSettings
from kitchen.adapters.procs.recovery import JournaledRanks
from kitchen.adapters.ray.actor import RankActor
from kitchen.adapters.ray.cluster import Placement, differing, lacking, pick_device, placements
from kitchen.adapters.ray.options import RayOptions
from kitchen.adapters.ray.ranks import RayRanks, model_files
from kitchen.adapters.torch.client import TorchService
from kitchen.ports.registry import checked_options, create_adapter, examine_adapter
from kitchen.store.trust import named_addresses
from kitchen.types import (
    AdamParams,
    Datum,
    InvalidValue,
    KitchenError,
    LoraParams,
    MissingCapability,
    SamplingParams,
)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": "10.0.0.1:6379"}, "gcs://HOST:PORT"),
        ({"address": "http://10.0.0.1:8265"}, "gcs://HOST:PORT"),
        ({"address": "ray://me:secret@host:1"}, "gcs://HOST:PORT"),
        ({"ranks": 2}, "ranks"),
        ({"worker": 2}, "did you mean 'workers'"),
        ({"workers": 0}, "workers"),
        ({"samplers": -1}, "samplers"),
        ({"cpus": 0}, "cpus"),
        ({"placement": "pack"}, "placement"),
        ({"variables": ["HF_TOKEN=hf_1"]}, "never what they hold"),
        ({"devices": ["cuda:0"]}, "devices"),
    ],
)
def test_options_that_are_refused_are_named(options, words):
    with pytest.raises(KitchenError, match=words.replace("(", r"\(")) as error:
        checked_options("service", "ray", options)
    assert "secret" not in str(error.value) and "hf_1" not in str(error.value)


def test_a_foreign_run_cannot_send_anybody_to_a_cluster_unasked():
    """Whoever connects to a cluster runs its code: an address has a scheme, by which trust finds it."""
    for address in ("ray://evil.example:10001", "gcs://evil.example:6379"):
        assert list(named_addresses({"backend_options": RayOptions(address=address).model_dump()})) == [address]


@pytest.mark.parametrize(
    ("options", "device", "words"),
    [
        ({"gpus": 1}, "cpu", "the device is cpu"),
        ({"sampler_gpus": 1, "samplers": 1}, "cpu", "the device is cpu"),
        ({"gpus": 0}, "cuda", "gpus is 0"),
        ({"gpus": 0.5}, "cuda", "whole ones"),
        ({}, "cuda:1", "Ray decides"),
        ({}, "mps", "Ray decides"),
    ],
)
def test_devices_and_gpus_must_fit(options, device, words):
    with pytest.raises(InvalidValue, match=words):
        placements(RayOptions(**options), device)


@settings(max_examples=60, deadline=None)
@given(
    nodes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=4),
    count=st.integers(1, 5), cpus=st.integers(1, 4), gpus=st.integers(0, 2),
)  # fmt: skip
def test_what_spread_actors_lack_is_what_a_search_does_not_find(nodes, count, cpus, gpus):
    machines = [{"CPU": float(one), "GPU": float(two)} for one, two in nodes]
    bundle = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
    able = sum(one >= cpus and two >= gpus for one, two in nodes)  # each machine takes one at most
    assert (lacking(machines, [bundle] * count, "STRICT_SPREAD") == []) == (able >= count)


def test_auto_is_cuda_where_every_actor_would_have_a_gpu():
    workers, samplers = placements(RayOptions(workers=2, samplers=2, sampler_gpus=0.5))
    assert [pick_device("auto", (workers, samplers), [{"GPU": float(count)}]) for count in (2, 3)] == ["cpu", "cuda"]
    assert pick_device("cpu", (workers, samplers), [{"GPU": 9.0}]) == "cpu" and pick_device("auto", (Placement(1, gpus=0),), [{"GPU": 1.0}]) == "cpu"


def test_versions_that_differ_are_named():
    here = {"python": "3.11.7", "torch": "2.9"}
    assert differing(here, {**here, "numpy": "2"}) == [] and differing(here, {"python": "3.11.7"}) == ["torch is missing, and here 2.9"]


@pytest.mark.parametrize("ask", [lambda: create_adapter("service", "ray"), lambda: list(examine_adapter("service", "ray", {"workers": 3}))])
def test_without_ray_the_remedy_is_named(ask, monkeypatch):
    monkeypatch.setattr("kitchen.adapters.ray.cluster.import_module", lambda name: (_ for _ in ()).throw(ImportError(f"No module named {name!r}")))
    try:
        found = ask()
        assert found[0][:2] == ("ray", False)
        said = found[0][2]
    except MissingCapability as error:
        said = str(error)
    assert "pip install 'crucible-kitchen[ray]'" in said


# --- actors of this process: calls are answered by threads, one for each actor ---


class Local:
    """Ray, as far as asking goes: actors are objects, each with a thread, and an actor that is killed answers no more."""

    exceptions = type("exceptions", (), {"RayActorError": ConnectionError})

    def __init__(self):
        self.made = []

    def start(self, ranks: RayRanks) -> None:
        ranks.starts += 1
        ranks.ray = self
        ranks.actors = [Handle(RankActor("127.0.0.1")) for _ in ranks.settings]
        self.made += ranks.actors
        begun = ranks._gather([one.begin.remote(told) for one, told in zip(ranks.actors, ranks.settings, strict=True)])
        ranks.pids, ranks.nodes = [told["pid"] for _, told in begun], [told["node"] for _, told in begun]

    def put(self, value):
        return value

    def kill(self, actor, no_restart):
        actor.alive = False

    def wait(self, tasks, num_returns, timeout):
        return tasks[:1], tasks[1:]

    def get(self, task):
        return task.result(60)


class Handle:
    """What stands for an actor."""

    def __init__(self, actor):
        self.actor, self.alive, self.thread = actor, True, ThreadPoolExecutor(1)

    def __getattr__(self, name):
        return Method(self, name)


class Method:
    def __init__(self, handle, name, count=1):
        self.handle, self.name, self.count = handle, name, count

    def options(self, num_returns):
        return Method(self.handle, self.name, num_returns)

    def remote(self, *given):
        def work():
            if not self.handle.alive:
                raise ConnectionError("the actor died")
            return getattr(self.handle.actor, self.name)(*given)

        task = self.handle.thread.submit(work)
        return task if self.count == 1 else tuple(self.handle.thread.submit(lambda place=place: task.result()[place]) for place in range(self.count))


def group(local, monkeypatch, name, directory):
    ranks = RayRanks([RankSettings(0, 1, "cpu", "float32", directory, 0, False, 1, 60.0)], Placement(1), "local", lambda: "cpu", name=name)
    monkeypatch.setattr(ranks, "start", lambda: local.start(ranks))
    return ranks


def batch(seed):
    rows = np.random.default_rng(seed).integers(3, 200, (3, 9))
    return [Datum(row[:-1], {"targets": row[1:], "weights": np.ones(8)}) for row in rows]


def test_what_actors_do_and_lose_is_what_the_torch_backend_does(tmp_path, monkeypatch):
    """Trained, saved, exported, handed over to a sampler; a worker and a sampler are lost on the way, which nobody notices but for a warning."""
    from kitchen.adapters.procs.client import RanksService

    local, lora, adam = Local(), LoraParams(rank=4, alpha=8.0), AdamParams(1e-2, eps=1e-3)
    here = TorchService("cpu", directory=tmp_path / "states")
    workers, apart = group(local, monkeypatch, "worker", str(tmp_path / "states")), group(local, monkeypatch, "sampler", str(tmp_path / "states"))
    trainers, samplers = JournaledRanks(workers), JournaledRanks(apart)

    def hand_over(training, model):
        steps, content = trainers.insist(lambda: workers.refer("give_sampler", (training,)))
        return steps, samplers.open("take_sampler", model, content.result(60))[0].key

    service, plain = RanksService(here, trainers, samplers, hand_over), TorchService("cpu")
    one, two = (each.create_training_client("builtin:tiny-chat", lora, 1) for each in (service, plain))
    for step in range(3):
        for each in (one, two):
            each.forward_backward(batch(step), "cross_entropy").result(60)
        if step == 1:
            workers.actors[0].alive = False
        updates = [each.optim_step(adam).result(60).metrics["grad_norm"] for each in (one, two)] if step != 1 else None
        if step == 1:
            with pytest.warns(RuntimeWarning, match="worker 0 of 1 .* has ended; started again"):
                one.optim_step(adam).result(60)
            two.optim_step(adam).result(60)
    assert updates[0] == updates[1]
    state = one.save_state("kept").result(60).path
    again = service.create_training_client_from_state(state)
    assert again.digest() == one.digest() == two.digest()
    drawn = [each.create_sampling_client() for each in (one, two)]
    ask = lambda sampler: sampler.sample([5, 6, 7], 2, SamplingParams(max_tokens=3, seed=2)).result(60)  # noqa: E731
    first = ask(drawn[1])
    assert ask(drawn[0]) == first
    apart.actors[0].alive = False
    with pytest.warns(RuntimeWarning, match="sampler 0 of 1"):
        assert ask(drawn[0]) == first
    folder = one.save_weights(tmp_path / "export").result(60).path
    plainly = two.save_weights(tmp_path / "plainly").result(60).path
    assert [path.name for path in model_files(folder)] == [path.name for path in model_files(plainly)]
    for path in (tmp_path / "export").iterdir():
        assert path.read_bytes() == (tmp_path / "plainly" / path.name).read_bytes(), path
    sent = {}
    monkeypatch.setattr("kitchen.adapters.ray.actor.missing_files", lambda sizes, machine: list(sizes))  # a machine without that folder
    monkeypatch.setattr("kitchen.adapters.ray.actor._write_file", lambda path, content: sent.update({path: content.tobytes()}))
    assert service.create_sampling_client(folder).compute_logprobs([5, 6, 7]).result(60)
    assert sent == {path: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    assert one.adapter_coverage() == two.adapter_coverage()
    service.close()
    assert len(service.recoveries) == 2 and not any(handle.alive for handle in local.made)


def test_a_model_that_is_another_one_elsewhere_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    actor = RankActor("10.0.0.7")
    done, (kind, text) = actor.lacks({str(tmp_path / "config.json"): 7})
    assert not done and kind == "ValueError" and "10.0.0.7" in text and str(tmp_path) in text

