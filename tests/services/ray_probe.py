"""Proves the ray backend on a cluster of several machines, which are processes of this one: a line of JSON for each thing shown.

    python tests/services/ray_probe.py [PART ...]      parts: conformance, product, curves, machines, overlap, doctor

Needs an environment with Ray beside kitchen (`.ci/services.py` makes one). Nothing here is part of the tests of kitchen's own environment.
"""

import json
import os
import signal
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray gives its workers 15, and a busy machine then nothing
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from kitchen.ports.registry import create_adapter
from kitchen.product_checks import product_conformance
from kitchen.testing import conformance
from kitchen.types import AdamParams, Datum, InvalidValue, LoraParams, MissingCapability, SamplingParams

MODEL = "builtin:tiny-chat"
SMALL = {"cpus": 0.25, "threads": 1, "timeout": 120.0}  # four actors may share a core
LORA = LoraParams(rank=4, alpha=8.0)
ADAM = AdamParams(learning_rate=1e-2, eps=1e-3, grad_clip_norm=1.0)
LIMIT = 200.0  # seconds for one result


def tell(probe: str, good: bool, told: str) -> None:
    """One line."""
    print(json.dumps({"probe": probe, "good": bool(good), "told": told}), flush=True)


def batch(seed: int, count: int = 5) -> list[Datum]:
    """Random datums of different lengths, with all that losses of the table ask for."""
    rng = np.random.default_rng(seed)

    def datum(length: int) -> Datum:
        tokens = rng.integers(3, 250, length + 1)
        inputs = {"targets": tokens[1:], "weights": rng.choice([0.5, 1.0], length), "advantages": rng.normal(size=length)}
        return Datum(tokens[:-1], {**inputs, "logprobs": rng.uniform(-6, -5, length)})

    return [datum(int(length)) for length in rng.integers(2, 30, count)]


def curve(client, steps: int = 6) -> np.ndarray:
    """Losses and norms of a few steps, with four losses and batches that have fewer datums than there are workers."""
    found = []
    for step in range(steps):
        one = client.forward_backward(batch(step), ("cross_entropy", "importance_sampling", "ppo", "cispo")[step % 4])
        two = client.forward_backward(batch(20 + step, 1), "cross_entropy")
        update = client.optim_step(ADAM)
        found.append([one.result(LIMIT).loss_sum, two.result(LIMIT).loss_sum, update.result(LIMIT).metrics["grad_norm"]])
    return np.array(found)


def away(one: np.ndarray, two: np.ndarray) -> float:
    """The largest difference, relative where numbers are large."""
    return float((np.abs(one - two) / np.maximum(1, np.abs(one))).max())


@contextmanager
def opened(**options):
    """A service that is closed."""
    service = create_adapter("service", "ray", device="cpu", dtype=options.pop("dtype", "float32"), **{**SMALL, **options})
    try:
        yield service
    finally:
        service.close()


def show_conformance(cluster) -> None:
    """The suite of every backend."""
    for workers, samplers in ((1, 0), (2, 0), (2, 1)):
        with opened(workers=workers, samplers=samplers) as service:
            report = conformance(service, MODEL, timeout=LIMIT)
        failed = "; ".join(f"{one.check} ({one.training}): {one}" for one in report.failures)
        tell(f"conformance, {workers} workers, {samplers} samplers", not report.failures, failed or report.summary)


def show_product(cluster) -> None:
    """Runs of the product."""
    for options in ({"workers": 2}, {"workers": 1, "samplers": 1}):
        report = product_conformance("ray", MODEL, backend_options={**SMALL, **options}, device="cpu", timeout=600.0)
        failed = "; ".join(f"{one.check}: {one}" for one in report.failures)
        tell(f"through the product, {options}", not report.failures, failed or report.summary)


def show_curves(cluster) -> None:
    """Numbers of the torch backend."""
    for dtype, bound in (("float32", 1e-4), ("float64", 1e-12)):
        alone = create_adapter("service", "torch", device="cpu", dtype=dtype)
        for workers in (1, 2, 3):
            with opened(workers=workers, dtype=dtype) as service:
                found = [away(*(curve(one.create_training_client(MODEL, kind, 1)) for one in (alone, service))) for kind in (LORA, None)]
            tell(f"curves, {dtype}, {workers} workers", max(found) < bound, f"LoRA {found[0]:.1e}, full {found[1]:.1e} from the torch backend")


def show_machines(cluster) -> None:
    """Workers on several machines, one of which is lost."""
    extra = cluster.add_node(num_cpus=2)
    with opened(workers=2, placement="STRICT_SPREAD") as service, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        client = service.create_training_client(MODEL, LORA, 1)
        calm = create_adapter("service", "procs", device="cpu", ranks=2, threads=1)
        twin = calm.create_training_client(MODEL, LORA, 1)
        places = {node["NodeID"] for node in service.trainers.ranks.ray.nodes() if node["Alive"]}
        curve(client, 3), curve(twin, 3)
        same = client.digest() == twin.digest()
        tell("workers on two machines", len(places) >= 2 and same, f"{len(places)} machines; the bits of two processes of one machine")
        cluster.add_node(num_cpus=2)
        cluster.remove_node(extra, allow_graceful=False)
        began = time.monotonic()
        curve(client, 2), curve(twin, 2)
        tell("a machine is lost", client.digest() == twin.digest(), f"{time.monotonic() - began:.1f} s; {[str(one.message)[:120] for one in heard]}")
        calm.close()


def show_overlap(cluster) -> None:
    """Answers are written while training goes on, and samplers outlive the death of one."""
    with opened(workers=1, samplers=1) as service, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = service.create_training_client(MODEL, LORA, 1)
        sampler = client.create_sampling_client()
        before = sampler.sample([5, 6, 7], 4, SamplingParams(max_tokens=6, seed=3, stop=())).result(LIMIT)
        answers = sampler.sample([5, 6, 7], 64, SamplingParams(max_tokens=200, seed=4, stop=()))
        flush = getattr(sampler, "flush", lambda: None)
        flush()
        steps = 0
        while not answers.done() and steps < 500:
            client.forward_backward(batch(steps), "cross_entropy").result(LIMIT)
            client.optim_step(ADAM).result(LIMIT)
            steps += 1
        answers.result(LIMIT)
        tell("training goes on beside sampling", steps > 1, f"{steps} steps while 64 answers were written")
        os.kill(service.samplers.ranks.pids[0], signal.SIGKILL)
        again = sampler.sample([5, 6, 7], 4, SamplingParams(max_tokens=6, seed=3, stop=())).result(LIMIT)
        tell("a killed sampler", again == before, f"the same answers; {service.recoveries}")


def show_doctor(cluster) -> None:
    """What a cluster lacks."""
    from kitchen.adapters.ray.cluster import examine

    fine = list(examine("cpu", workers=2, cpus=0.5))
    tell("doctor", all(one[1] for one in fine), "; ".join(f"{name}: {what}" for name, _, what in fine))
    short = list(examine("cuda", workers=2))
    tell("doctor: no GPU", not all(one[1] for one in short), "; ".join(what for _, good, what in short if not good))
    try:
        with opened(workers=2, cpus=1000.0) as service:
            service.create_training_client(MODEL, LORA, 1)
        tell("too many CPUs", False, "they were found")
    except MissingCapability as error:
        tell("too many CPUs", "2000 CPU are wanted" in str(error), str(error))
    try:
        with opened(workers=1, address="gcs://10.255.255.1:6379") as service:
            service.create_training_client(MODEL, LORA, 1)
        tell("another cluster", False, "nobody minded")
    except InvalidValue as error:
        tell("another cluster", "not to" in str(error), str(error))


PARTS = {name.removeprefix("show_"): part for name, part in list(globals().items()) if name.startswith("show_")}


def start_cluster():
    """A cluster of one machine, which this process and those that it starts find; Ray gives one 30 s to start, which a busy machine may exceed."""
    from ray.cluster_utils import Cluster

    for tries_left in range(4, -1, -1):
        try:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
            break
        except Exception:  # it has no class of its own
            if not tries_left:
                raise
    os.environ["RAY_ADDRESS"] = cluster.address
    return cluster


def main() -> None:
    """Start a cluster, and show the parts."""
    cluster = start_cluster()
    os.environ.setdefault("KITCHEN_RUNS", tempfile.mkdtemp(prefix="kitchen-ray-"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    try:
        for name in sys.argv[1:] or PARTS:
            began = time.monotonic()
            try:
                PARTS[name](cluster)
            except Exception as error:  # it belongs into the table
                import traceback

                traceback.print_exc()
                tell(name, False, f"{type(error).__name__}: {error}")
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
