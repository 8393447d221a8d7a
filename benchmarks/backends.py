"""What a step costs on ranks against one in this process: `python benchmarks/backends.py`; with `--ray`, in actors of Ray, too (needs Ray).

Both backends take the same steps on the same model, in turns, so that a busy machine disturbs all alike. Medians are printed, with the
seconds until the first and the next service of a process are ready, and until all is as before when a rank was killed.
"""

import argparse
import os
import signal
import statistics
import time
import warnings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from kitchen.ports.registry import create_adapter
from kitchen.types import AdamParams, Datum, LoraParams, SamplingParams

ADAM = AdamParams(learning_rate=1e-3)


def random_batch(seed: int, count: int, length: int) -> list[Datum]:
    """Datums of one length."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(3, 200, (count, length + 1))
    return [Datum(row[:-1], {"targets": row[1:], "weights": np.ones(length)}) for row in rows]


def seconds(work) -> float:
    """How long the work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def take_step(client, batch) -> None:
    """One step, waited for."""
    client.forward_backward(batch, "cross_entropy")
    client.optim_step(ADAM).result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:tiny-chat")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--datums", type=int, default=12)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ray", action="store_true", help="actors of Ray as well, and two samplers beside a worker")
    options = parser.parse_args()
    divided = {f"procs, {count} rank{'s' * (count > 1)}": ("procs", {"ranks": count}) for count in options.ranks}
    if options.ray:
        shared = {"cpus": 0.25, "threads": 1}  # actors of all services at once fit into two cores
        divided |= {f"ray, {count} worker{'s' * (count > 1)}": ("ray", {"workers": count, **shared}) for count in options.ranks}
        divided["ray, 1 + 2"] = ("ray", {"workers": 1, "samplers": 2, **shared})
    services = {"torch": create_adapter("service", "torch", device=options.device)}
    clients = {"torch": services["torch"].create_training_client(options.model, LoraParams(), 0)}
    for name, (backend, about) in divided.items():
        services[name] = create_adapter("service", backend, device=options.device, **about)

        def begin(name=name) -> None:
            clients[name] = services[name].create_training_client(options.model, LoraParams(), 0)

        print(f"{name:<16} ready after {seconds(begin):6.2f} s")
    took: dict[str, list[float]] = {name: [] for name in clients}
    for step in range(options.steps):
        batch = random_batch(step, options.datums, options.length)
        for name, client in clients.items():
            took[name].append(seconds(lambda client=client, batch=batch: take_step(client, batch)))
    alone = statistics.median(took["torch"])
    for name, found in took.items():
        median = statistics.median(found)
        print(f"{name:<16} {median * 1e3:8.2f} ms a step: {(median - alone) * 1e3:+.2f} ms, × {median / alone:.2f}")
    for name, client in clients.items():
        handed: list[float] = []
        for _ in range(5):
            began = time.perf_counter()
            sampler = client.create_sampling_client()
            handed.append(time.perf_counter() - began)
        print(f"{name:<16} {statistics.median(handed) * 1e3:8.1f} ms for a sampler over the weights as they are")
        spent = seconds(lambda sampler=sampler: sampler.sample([5, 6, 7], 32, SamplingParams(max_tokens=32, stop=())).result())
        print(f"{name:<16} {spent * 1e3:8.1f} ms for 32 answers of 32 tokens")
    for name, service in services.items():
        if name != "torch":
            calls = [seconds(lambda service=service: service.trainers.ask("drop", [((),)] * len(service.trainers))) for _ in range(200)]
            os.kill(service.trainers.ranks.pids[-1], signal.SIGKILL)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lost = seconds(lambda name=name: take_step(clients[name], random_batch(0, options.datums, options.length)))
            print(f"{name:<16} {statistics.median(calls) * 1e3:8.2f} ms an empty request; {lost:.2f} s for a step with a rank killed before it")
        service.close()


if __name__ == "__main__":
    main()
