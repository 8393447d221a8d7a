"""Cook recipes, made small, with the `kitchen` command beside this Python: python .ci/cook.py [--backend toy] RECIPE ...

It works in an empty folder, so that what is installed is used and not the checkout, and needs nothing but kitchen itself.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL_SETTINGS = runpy.run_path(str(ROOT / "tests" / "small_settings.py"))["SMALL_SETTINGS"]  # recipe -> settings with which it ends in seconds
AT_ONCE = 2


def cooked(recipe: str, backend: str | None, folder: str) -> str:
    """Cook one recipe; what went wrong, or nothing."""
    out = Path(folder, recipe)
    settings = {**SMALL_SETTINGS[recipe], **({"backend": backend} if backend else {})}
    words = [word for name, value in settings.items() for word in ("-p", name, str(value))]
    command = [str(Path(sys.executable).with_name("kitchen")), "cook", recipe, "--out", str(out), "--quiet", *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    missing = [name for name in ("report.ipynb", "report.html", "artifacts/results.json") if not (out / name).is_file()]
    wrong = done.stdout + done.stderr if done.returncode else missing and f"no {', '.join(missing)}"
    said = "FAILED" if wrong else f"{len(json.loads((out / 'artifacts/results.json').read_text()))} results"
    print(f"{recipe}, {backend or 'torch'}: {said} ({time.perf_counter() - began:.0f} s)", flush=True)
    return f"{recipe}: {wrong}" if wrong else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="cook recipes, made small")
    parser.add_argument("--backend")
    parser.add_argument("recipes", nargs="+", choices=SMALL_SETTINGS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        problems = list(filter(None, pool.map(lambda name: cooked(name, asked.backend, folder), asked.recipes)))
    sys.exit("\n".join(problems) or None)
