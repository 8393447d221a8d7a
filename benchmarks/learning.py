"""What every recipe teaches the embedded model, with several seeds: python benchmarks/learning.py [RECIPE …] [--seeds 3]

Prints one line for each recipe and seed: what was measured on held-out data before and after, with 95 % intervals, what a teacher
reaches where there is one, and the seconds it took with its notebook left aside.
"""

import argparse
import tempfile
import time
from pathlib import Path

from kitchen.recipes.registry import RECIPES
from kitchen.reports.scores import scores
from kitchen.session.kitchen import Kitchen

SKIPPED = {"pretrain"}  # makes the embedded model: minutes


def line(recipe: str, seed: int, folder: Path) -> str:
    """Run a recipe with its defaults; what it taught."""
    started = time.perf_counter()
    k = Kitchen(recipe, run_dir=folder / f"{recipe}-{seed}", seed=seed, device="cpu")
    k.run().close()
    seconds = time.perf_counter() - started
    found = [one for one in scores(k.run_record.log.active_events) if one.unit == "share"]
    told = [
        f"{one.name} {one.value_text(False)} → {one.value_text(True)} {one.change_text} [{one.note}]" for one in found
    ]
    return f"{recipe:20} seed {seed}  {seconds:5.0f} s  " + "; ".join(told)


def main() -> None:
    """Every recipe with every seed."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("recipes", nargs="*", default=[name for name in RECIPES if name not in SKIPPED])
    words.add_argument("--seeds", type=int, default=3)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for recipe in asked.recipes:
            for seed in range(asked.seeds):
                print(line(recipe, seed, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
