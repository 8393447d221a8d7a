"""Prove adapters whose packages have environments of their own: remote services with their real SDKs against `kitchen serve`, and Ray on a cluster.

    python .ci/services.py [ROW ...] [--folder FOLDER] [--server COMMAND]
    python .ci/services.py --cookbooks    # the notebooks of recipes_nb/cookbooks/, each with its SDK against a server of the toy

Each has an environment of its own, since they exclude each other; it is made once, in the folder, over this environment's packages.
Shown are conformance, and recipes beside the backend itself; for Ray also what tests/services/ray_probe.py shows, and kills.
The last lines are one table. A curve differs by the largest relative difference of a step's loss from that of the same run in this process.
"""

import argparse
import json
import os
import shlex
import site
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEY = "tml-" + "0123456789abcdef" * 2  # of a server that listens on this machine only, for as long as this runs
KEY_VARIABLE = "KITCHEN_SERVICES_KEY"
SDKS = {
    "tinker": "tinker==0.38.0", "fireworks": "fireworks-ai[training-sdk]", "together": "together[tinker]", "ray": "ray==2.60.0",
}  # fmt: skip
BOUND = 1e-4
SMALL: dict[str, Any] = {
    "sft": {"dataset": "builtin:sort[:60]", "epochs": 1, "batch_size": 10, "graded": 2, "held_out": 8, "max_tokens": 4},
    "dpo": {"dataset": "builtin:sort-pairs[:60]", "epochs": 1, "batch_size": 10, "graded": 2, "held_out": 8, "max_tokens": 4},
    "rl_math": {"problems": 8, "batch_size": 4, "group_size": 4, "graded": 2, "max_tokens": 4, "mismatch_alarm": 1.0},
    "distill_on_policy": {
        "problems": 8, "batch_size": 4, "group_size": 2, "graded": 2, "max_tokens": 4, "mismatch_alarm": 1.0,
        "teacher_dataset": "builtin:sort[:40]", "teacher_batch_size": 10,
    },
}  # fmt: skip
COOKBOOKS: dict[str, tuple[str, dict[str, Any]]] = {  # notebook -> SDK, and settings that make it small
    "tinker/sft": ("tinker", {"dataset": "builtin:sort[:96]", "batch_size": 8, "graded": 4, "held_out": 8, "max_tokens": 4}),
    "tinker/dpo": ("tinker", {"dataset": "builtin:sort-pairs[:48]", "batch_size": 8, "graded": 4, "held_out": 8, "max_tokens": 4}),
    "tinker/rl": ("tinker", {"problems": 16, "batch_size": 4, "group_size": 4, "graded": 4, "max_tokens": 4}),
    "modal/sft": ("tinker", {"dataset": "builtin:sort[:96]", "batch_size": 8, "graded": 4, "held_out": 8, "max_tokens": 4}),
    "fireworks/sft": ("fireworks", {"dataset": "builtin:sort[:96]", "batch_size": 8, "held_out": 8}),
}
PRICES = "{prefill: 1.0, sample: 2.0, train: 3.0}"  # nobody's: they prove that money is told


LOOP = "train_sft"


@dataclass(frozen=True)
class Row:
    """A backend of kitchen, over a server's backend."""

    adapter: str  # the SDK, and the name in the port table
    backend: str  # behind the server
    model: str
    # or LOOP: training alone, for a service that samples only from deployments of its own
    recipes: tuple[str, ...] = ("sft", "dpo", "rl_math", "distill_on_policy")
    note: str = ""
    known: tuple[str, ...] = ()  # checks that cannot hold here
    options: tuple[tuple[str, Any], ...] | None = None  # of a backend that needs no server
    programs: tuple[tuple[str, ...], ...] = ()  # of tests/services, which print lines of JSON
    product: bool = False  # whether it is run through the product, too: cooked, rewound, forked, killed
    server: str = "serve"  # or "stand-in": of Together's own operations

    @property
    def name(self) -> str:
        return f"{self.adapter}({self.backend})" if self.options is not None else f"{self.adapter}@{self.server}({self.backend})"


_NEEDS_DEPLOYMENT = (  # Fireworks samples from deployments of its own, and takes no tinker:// for a state
    "training_starts_at_the_base", "sampler_agrees_with_trainer", "samplers_keep_their_weights", "sampling_is_reproducible",
    "sampling_respects_stops", "export_opens", "exports_keep_their_stops", "mistakes_are_refused", "state_resumes_exactly",
    "state_without_optimizer_forgets", "context_is_honest",
)  # fmt: skip
_NO_INFINITE_SUM = ("clipping_matches_loss_table",)  # whose ratios overflow, which JSON has no word for
ROWS = (
    Row("tinker", "toy", "toy", product=True),
    Row("tinker", "torch", "builtin:tiny-chat"),
    Row("fireworks", "toy", "toy", (LOOP,), "sampling and states need the service itself", _NEEDS_DEPLOYMENT),
    Row(
        "ray", "torch", "builtin:tiny-chat", ("sft", "dpo", "rl_math", "distill_on_policy"),
        options=(("workers", 2), ("samplers", 1), ("cpus", 0.25), ("threads", 1)),
        programs=(
            ("ray_probe.py", "product", "curves", "machines", "overlap", "doctor"),
            *(("kill_workers.py", "ray", victim, "10") for victim in ("worker", "sampler", "driver")),
        ),
    ),
    Row("together", "toy", "toy", (LOOP,), "samples from weights in training only", _NO_INFINITE_SUM, server="stand-in"),
)


def recipe_settings(row: Row, recipe: str) -> dict[str, Any]:
    """Settings of a small run that every service can do."""
    return {"model": row.model, "lora_alpha": 32.0, "lora_rank": 8, "seed": 5, **SMALL.get(recipe, {})}


def curve(recipe: str, backend: str, settings: dict[str, Any], folder: Path) -> list[float]:
    """Losses of a run, step by step."""
    from kitchen.product_checks import losses_of
    from kitchen.session.kitchen import Kitchen

    if recipe == LOOP:
        return loop_curve(backend, settings)
    with Kitchen(recipe, run_dir=folder, backend=backend, **settings) as session:
        session.run()
        return losses_of(session.run_record)


def loop_curve(backend: str, settings: dict[str, Any]) -> list[float]:
    """Losses of fine-tuning on random datums, without a session around it."""
    from kitchen.data.batches import Batches
    from kitchen.ports.registry import create_adapter
    from kitchen.testing import Bench
    from kitchen.train.sft import adam_schedule, train_sft
    from kitchen.types import AdamParams, LoraParams

    service = create_adapter("service", backend, **settings.get("backend_options", {}))
    lora = LoraParams(settings["lora_rank"], settings["lora_alpha"])
    data = Bench(service, settings["model"], lora).data(40)
    batches = Batches(data, batch_size=8, epochs=3, seed=settings["seed"])
    training = service.create_training_client(settings["model"], lora, settings["seed"])
    rates = adam_schedule(AdamParams(1e-2, eps=1e-8, weight_decay=0.01, grad_clip_norm=1.0), len(batches), "cosine", warmup_steps=2)
    return [one["loss"] for one in train_sft(training, batches, rates) if one.name == "train.step"]


def work(row: Row, address: str) -> None:
    """What runs in the environment of an SDK: prints one line of JSON for each thing done."""
    from kitchen.ports.registry import create_adapter
    from kitchen.product_checks import product_conformance
    from kitchen.testing import conformance

    options: dict[str, Any] = {"base_url": address, "api_key_env": KEY_VARIABLE, "tokenizer_backend": row.backend, "timeout": 120.0}
    if row.options is not None:
        options = dict(row.options)
    service = create_adapter("service", row.adapter, **options)
    report = conformance(service, row.model, timeout=150.0)
    service.close()
    found = {one.check: (one.status, str(one)) for one in report.outcomes}
    print(json.dumps({"checks": found}), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kitchen-services-"))
    for recipe in row.recipes:
        try:
            told: Any = curve(recipe, row.adapter, {**recipe_settings(row, recipe), "backend_options": options}, folder / recipe)
        except Exception as error:  # it belongs into the table
            told = f"{type(error).__name__}: {error}"
        print(json.dumps({"recipe": recipe, "losses": told}), flush=True)
    if row.product:  # last: it opens more models than all else
        wanted = {**options, "tolerance": 1e-6}
        report = product_conformance(row.adapter, row.model, timeout=240.0, backend_options=wanted, lora_alpha=32.0)
        print(json.dumps({"product": {one.check: (one.status, str(one)) for one in report.outcomes}}), flush=True)
    os._exit(0)  # threads of some SDKs hold a process


def make_environment(sdk: str, folder: Path) -> Path:
    """Python with an SDK, over the packages of this environment."""
    place, stamp = folder / f"env-{sdk}", folder / f"env-{sdk}" / f"made for {SDKS[sdk].replace('/', '-')}"
    python = place / "bin" / "python"
    if not stamp.exists():
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", SDKS[sdk]], check=True)
        inside = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], check=True, capture_output=True, text=True)
        Path(inside.stdout.strip(), "zz-kitchen.pth").write_text("\n".join(site.getsitepackages()) + "\n")  # last: the SDK's own come first
        stamp.touch()
    return python


def start_server(command: list[str], row: Row) -> tuple[subprocess.Popen[bytes], str]:
    """A server over a backend, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    states = tempfile.mkdtemp(prefix="kitchen-serve-")
    arguments = ["serve", "--backend", row.backend, "--model", row.model, "--port", str(port), "--folder", states]
    if row.server == "stand-in":
        command, arguments = [sys.executable, f"{ROOT}/tests/services/together_standin.py"], ["--port", str(port)]
    process = subprocess.Popen([*command, *arguments], env={**os.environ, "KITCHEN_SERVE_KEY": KEY})
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/api/v1/healthz", timeout=5)
            return process, address
        except urllib.error.HTTPError:  # it wants a key: it is there
            return process, address
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    process.kill()
    sys.exit(f"the server did not start: {shlex.join([*command, *arguments])} (it needs the extra [serve], or --server)")


def largest_difference(expected: list[float], found: list[float]) -> float:
    """The largest relative difference of two curves; infinite where their lengths differ."""
    if len(expected) != len(found) or not expected:
        return float("inf")
    return max(abs(one - two) / max(1.0, abs(one)) for one, two in zip(expected, found, strict=True))


def lines_of_checks(row: Row, what: str, checks: dict[str, tuple[str, str]], note: str) -> list[tuple[str, str, str, bool]]:
    """The counts of one group of checks, and a line for each that fails and should not."""
    wrong = {name: said for name, (status, said) in checks.items() if status == "failed" and name not in row.known}
    states = [("known to fail" if name in row.known and status == "failed" else status) for name, (status, _) in checks.items()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "known to fail", "skipped") if state in states)
    lines = [(row.name, what, counts + (f" ({note})" if note else ""), not wrong)]
    return lines + [(row.name, name, said[:160], False) for name, said in wrong.items()]


def prove(row: Row, python: Path, command: list[str]) -> list[tuple[str, str, str, bool]]:
    """Lines of the table for one row: what, result, and whether it is as it should be."""
    process, address = start_server(command, row) if row.options is None else (None, "")
    shared = {"JUPYTER_PATH": f"{sys.prefix}/share/jupyter", "RAY_AUTH_MODE": "disabled"}  # templates of pages are this environment's
    environment = {**os.environ, **shared, KEY_VARIABLE: KEY, "TINKER_TELEMETRY": "0", "PYTHONPATH": str(ROOT)}
    try:
        arguments = [str(python), "-W", "ignore", __file__, "--work", row.name, "--address", address]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    finally:
        if process is not None:
            process.terminate()
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not told:
        return [(row.name, "conformance", done.stderr.strip()[-300:] or "nothing was said", False)]
    lines = lines_of_checks(row, "conformance", told[0]["checks"], row.note)
    for one in told[1:]:
        if "product" in one:
            lines += lines_of_checks(row, "in the product", one["product"], "")
            continue
        expected = curve(one["recipe"], row.backend, recipe_settings(row, one["recipe"]), Path(tempfile.mkdtemp()) / one["recipe"])
        if isinstance(one["losses"], str):
            lines.append((row.name, one["recipe"], one["losses"][:160], False))
            continue
        away = largest_difference(expected, one["losses"])
        said = f"{len(expected)} steps, {expected[0]:.4f} to {expected[-1]:.4f}, largest difference {away:.1e}"
        lines.append((row.name, one["recipe"], said, away <= BOUND))
    for program in row.programs:
        lines += run_program(row, python, program, environment)
    return lines


def run_program(row: Row, python: Path, program: tuple[str, ...], environment: dict[str, str]) -> list[tuple[str, str, str, bool]]:
    """Lines of the table for a program of tests/services: a line for each that it prints."""
    arguments = [str(python), "-W", "ignore", str(ROOT / "tests" / "services" / program[0]), *program[1:]]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=3600, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not told or done.returncode:
        return [(row.name, " ".join(program), done.stderr.strip()[-300:] or "nothing was said", False)]
    lines: list[tuple[str, str, str, bool]] = []
    for one in told:
        if "probe" in one:
            lines.append((row.name, one["probe"], one["told"], one["good"]))
        else:  # kills
            same = ("equal metrics", "equal digests", "verified")
            said = f"{one['kills']} kills, {one['recoveries']} recoveries in {one['runs']} runs"
            said += "".join(f", {name}" if one[name] else f", NOT {name}" for name in same)
            lines.append((row.name, f"kill -9 of a {one['victim']}", said, all(one[name] for name in same)))
    return lines


def cook(name: str, python: Path, address: str) -> tuple[str, str, str, bool]:
    """Cook one cookbook against a server; its line of the table."""
    sdk, settings = COOKBOOKS[name]
    variable = {"tinker": "TINKER_API_KEY", "fireworks": "FIREWORKS_API_KEY"}[sdk]
    given = {**settings, "base_url": address, "model": "toy", "tokenizer_backend": "toy", "api_key_env": variable, "timeout": 60.0}
    given |= {} if name.startswith("modal") else {"prices": PRICES}
    folder = Path(tempfile.mkdtemp(prefix="kitchen-cookbook-")) / "run"
    words = [word for key, value in given.items() for word in ("-p", key, str(value))]
    command = [str(python), "-W", "ignore", "-c", "from kitchen.cli.main import main; main()", "cook", f"{ROOT}/recipes_nb/cookbooks/{name}.ipynb"]
    shared = {"JUPYTER_PATH": f"{sys.prefix}/share/jupyter"}  # templates of pages are this environment's
    environment = {**os.environ, **shared, variable: KEY, "TINKER_TELEMETRY": "0", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    done = subprocess.run([*command, "--out", str(folder), *words], env=environment, capture_output=True, text=True, timeout=300, check=False)
    took = time.monotonic() - began
    if done.returncode:
        return (f"cookbooks/{name}", f"{took:.0f} s", (done.stderr or done.stdout).strip()[-400:], False)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    steps = [one["measurements"] for one in lines if one["name"] == "train.step"]
    requests = sum(one["name"] == "remote.request" for one in lines)
    said = f"{len(steps)} steps, loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}, {requests} requests"
    return (f"cookbooks/{name}", f"{took:.0f} s", said, bool(steps) and requests > 0)


def cook_all(names: list[str], folder: Path, command: list[str]) -> list[tuple[str, str, str, bool]]:
    """Cook cookbooks, one after the other, against one server of the toy."""
    pythons = {sdk: make_environment(sdk, folder) for sdk in {COOKBOOKS[name][0] for name in names}}
    process, address = start_server(command, ROWS[0])
    try:
        return [cook(name, pythons[COOKBOOKS[name][0]], address) for name in names]
    finally:
        process.terminate()


def main() -> None:
    """Make environments, start servers, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"which: {', '.join(row.name for row in ROWS)}; of cookbooks {', '.join(COOKBOOKS)}; all")
    parser.add_argument("--folder", type=Path, default=ROOT / ".services", help="where environments are kept")
    parser.add_argument("--server", default="", help="the command that is `kitchen`, where that of this environment has no server")
    parser.add_argument("--cookbooks", action="store_true", help="cook the notebooks of recipes_nb/cookbooks/, and nothing else")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    given = parser.parse_args()
    by_name = {row.name: row for row in ROWS}
    names = list(COOKBOOKS if given.cookbooks else by_name)
    if given.work:
        work(by_name[given.work], given.address)
    unknown = [name for name in given.rows if name not in names]
    if unknown:
        sys.exit(f"no row {unknown[0]!r}; there are {', '.join(names)}")
    command = shlex.split(given.server) or [sys.executable, "-c", "from kitchen.cli.main import main; main()"]
    wanted = given.rows or names
    lines = cook_all(wanted, given.folder, command) if given.cookbooks else []
    for row in [] if given.cookbooks else [by_name[name] for name in wanted]:
        lines += prove(row, make_environment(row.adapter, given.folder), command)
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    for name, what, said, good in lines:
        print(f"{'ok ' if good else 'BAD'}  {name:{widths[0]}}  {what:{widths[1]}}  {said}")
    sys.exit(not all(line[-1] for line in lines))


if __name__ == "__main__":
    main()
