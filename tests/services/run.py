"""`make services`: the unmodified SDK of Tinker, and programs of its cookbook, against `kitchen serve`; a table of what works.

The SDK excludes packages of kitchen's own environment, so it has one of its own (`--environment`, made if it is not there), which sees
torch, transformers and datasets of this one. The cookbook's programs run unchanged in a folder that stands in for the hub (`local_hub.py`).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
KEY = "tml-" + "k" * 40
SDK = ["tinker==0.38.0"]
COOKBOOK = "tinker-cookbook==0.6.1 chz termcolor blobfile lxml pycryptodomex tiktoken pyrage tml-renderers cloudpickle pylatexenc".split()
STUDENT, TEACHER = "Qwen/Qwen3-8B", "Qwen/Qwen3-32B"
SMALL = ["lora_rank=8", "learning_rate=0.01"]
RECIPES = {  # name -> module, settings, the curve that is shown
    "sl_loop": (
        "recipes.sl_loop",
        ["batch_size=16", "max_steps=12", "save_every=5", *SMALL],
        "train_mean_nll",
    ),
    "rl_loop": (
        "recipes.rl_loop",
        [
            "batch_size=4",
            "group_size=4",
            "max_tokens=24",
            "loss_fn=importance_sampling",
            "max_steps=3",
            "save_every=2",
            *SMALL,
        ],
        "reward/total",
    ),
    "chat_sl": (
        "recipes.chat_sl.train",
        ["dataset=chats.jsonl", "batch_size=32", "max_steps=10", "max_length=512", *SMALL],
        "train_mean_nll",
    ),
    "dpo": (
        "recipes.preference.dpo.train",
        ["batch_size=32", "learning_rate=0.002", "max_length=512", "max_steps=6"],
        "dpo_loss",
    ),
    "distillation": (
        "recipes.distillation.on_policy_distillation",
        [
            f"teacher_model={TEACHER}",
            "dataset=tulu3",
            "groups_per_batch=8",
            "group_size=2",
            "max_tokens=16",
            "max_steps=5",
            *SMALL,
        ],
        "teacher_kl",
    ),
}
ASKS_ABOUT_FOLDERS = ("chat_sl", "dpo", "distillation")


def environment(folder: Path) -> Path:
    """The SDK's own Python, with this one's packages behind its own."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *SDK], check=True)
        subprocess.run([*pip, "--no-deps", *COOKBOOK], check=True)
        site = subprocess.run(
            [str(python), "-c", "import site; print(site.getsitepackages()[0])"],
            capture_output=True,
            text=True,
            check=True,
        )
        Path(site.stdout.strip(), "zz_behind.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        (folder / "done").touch()
    return python


@contextlib.contextmanager
def server(folder: Path, *words: str) -> Iterator[str]:
    """`kitchen serve` with these words; its address."""
    command = [
        sys.executable,
        "-c",
        "from kitchen.cli.main import main; main(prog_name='kitchen')",
        "serve",
        *words,
    ]
    known = {**os.environ, "KITCHEN_SERVE_KEY": KEY, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--port", "0", "--folder", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=known,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        process.wait(60)


def probe(
    python: Path, address: str, backend: str, model: str, name: str, work: Path
) -> list[tuple[str, str, bool, str]]:
    """The rows of the SDK's probes."""
    reference = work / f"{backend}.json"
    subprocess.run([sys.executable, HERE / "reference.py", backend, model, reference], check=True, cwd=ROOT)
    command = [str(python), str(HERE / "tinker_probe.py"), address, KEY, name, str(reference)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=work, env=clean(), timeout=900)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [(f"tinker@serve({backend})", one["probe"], one["good"], one["told"]) for one in told]


def clean(**more: str) -> dict[str, str]:
    """An environment in which only the SDK's own packages are found."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TINKER_TELEMETRY": "0",
        "WANDB_MODE": "disabled",
    }
    return {**kept, **offline, "TINKER_API_KEY": KEY, **more}


def cook(python: Path, address: str, hub: Path, name: str) -> tuple[str, str, bool, str]:
    """The row of one program of the cookbook."""
    module, words, curve = RECIPES[name]
    log = hub / "log" / name
    words = [*words, f"base_url={address}", f"model_name={STUDENT}", f"log_path={log}"]
    words += ["behavior_if_log_dir_exists=delete"] if name in ASKS_ABOUT_FOLDERS else []
    command = [str(python), "-m", f"tinker_cookbook.{module}", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=hub, env=clean(TINKER_BASE_URL=address), timeout=900
    )
    if done.returncode:
        return "cookbook@serve(torch)", name, False, done.stderr.strip().splitlines()[-1][:150]
    rows = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    values = [row[curve] for row in rows if curve in row]
    return (
        "cookbook@serve(torch)",
        name,
        True,
        f"{curve} {values[0]:.3f} to {values[-1]:.3f} in {len(values)} steps",
    )


def main() -> None:
    """Everything, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-services")
    parser.add_argument("--only", default="", help="probes or recipes: only these")
    given = parser.parse_args()
    python, rows = environment(given.environment.absolute()), []
    with tempfile.TemporaryDirectory() as folder:
        work, hub = Path(folder), Path(folder) / "hub"
        subprocess.run([sys.executable, HERE / "local_hub.py", hub], check=True, cwd=ROOT)
        if given.only in ("", "probes"):
            with server(work / "toy", "--backend", "toy", "--model", "tiny=toy") as address:
                rows += probe(python, address, "toy", "toy", "tiny", work)
        models = [word for name in (STUDENT, TEACHER) for word in ("--model", f"{name}={hub / name}")]
        with server(work / "torch", "--backend", "torch", "--backend.device", "cpu", *models) as address:
            rows += (
                probe(python, address, "torch", str(hub / STUDENT), STUDENT, work)
                if given.only in ("", "probes")
                else []
            )
            rows += (
                [cook(python, address, hub, name) for name in RECIPES]
                if given.only in ("", "recipes")
                else []
            )
    for where, what, good, told in rows:
        print(f"{where:<24} {what:<28} {'ok' if good else 'FAILED':<7} {told}")
    sys.exit(any(not good for _, _, good, _ in rows))


if __name__ == "__main__":
    main()
