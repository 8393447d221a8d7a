"""What a dashboard costs, and how fast it answers: python benchmarks/dashboard.py [--browser]

In a real kernel, blocks of steps of one training by turns with and without a dashboard (all of its messages are made and
sent): the processor time of each repaint, that of the threads which paint and send, and what the clock says of the steps,
with a 95 % interval, since on a shared machine the clock alone tells one per cent only after very many steps. With
--browser also, in JupyterLab and a headless Chromium: from a click to its event in the log while training runs at full
speed, and how far the page is behind the training when the curves have 100,000 points (the first 100,000 steps are written
into the log by this benchmark; the training goes on from there).
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

COST = """
import json, statistics, threading, time
import psutil
import kitchen
from kitchen.session.kitchen import Kitchen
backend, block, turns = {backend!r}, {block}, {turns}
settings = {{"dataset": "builtin:sort[:6000]", "epochs": 200, "graded": 4, "device": "cpu"}}
k = Kitchen("sft", backend=backend, snapshot_every=-1, evaluate_every=10**6, **settings)
k.run("baseline")
k.run(until=block)

def worked():
    "Seconds of processor time of the threads that paint and send."
    theirs = {{one.native_id for one in threading.enumerate() if one.name in ("kitchen-painter", "IOPub")}}
    return sum(one.user_time + one.system_time for one in psutil.Process().threads() if one.id in theirs)

spent, repaints, shares, rates = {{False: [], True: []}}, [], [], []
for turn in range(turns):
    for shown in ((False, True), (True, False))[turn % 2]:  # so that a machine that grows warm favours neither
        view = kitchen.dashboard(k, live=True) if shown else None
        if view:
            view.curves.canvas.ready = True
            paint = view.paint
            def timed(whole=False):
                began = time.thread_time()
                found = paint(whole)
                repaints.append(time.thread_time() - began)
                return found
            view.paint = timed
        time.sleep(1)
        began, first, known, before = time.perf_counter(), k.driver.last_step.step, len(repaints), worked()
        k.run(until=first + block)
        took = time.perf_counter() - began
        spent[shown].append(took / block)
        if view:
            shares.append((worked() - before) / took)
            rates.append((len(repaints) - known) / took)
            view.close()
k.close()
print(json.dumps({{"without": statistics.median(spent[False]), "with": statistics.median(spent[True]), "repaints": repaints,
                  "ratios": [b / a for a, b in zip(spent[False], spent[True])], "share": statistics.fmean(shares),
                  "rate": statistics.fmean(rates)}}))
"""

WATCH = """
from kitchen import Kitchen
from kitchen.telemetry import event
k = Kitchen('sft', backend='toy', dataset='builtin:sort[:2000]', epochs=4000, snapshot_every=-1, evaluate_every=10**9)
k.run('baseline')
k.step('batch')
told = {{'learning_rate': 0.01, 'grad_norm': 1.0, 'tokens_per_second': 1e5, 'memory': 2e8}}
for step in range(2, {points}):
    k.run_record.log.append(event('train.step', step, loss=5 / (1 + step / 1000), **told))
k.dashboard()
"""


def in_kernel(code: str) -> dict:
    """What a piece of code prints as JSON, run in a kernel of its own."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(ROOT))
    said = []
    try:
        client.execute_interactive(code, timeout=900, output_hook=lambda message: said.append(message["content"]))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    printed = "".join(one.get("text", "") for one in said if one.get("name") == "stdout")
    errors = [one["evalue"] for one in said if "evalue" in one]
    if errors:
        raise SystemExit(f"the kernel failed: {errors[0]}")
    return json.loads(printed.strip().splitlines()[-1])


def interval(values: list[float], rounds: int = 2000) -> tuple[float, float]:
    """In which the median lies, 95 times of a hundred (bootstrap)."""
    chance = random.Random(0)
    found = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(rounds))
    return found[int(0.025 * rounds)], found[int(0.975 * rounds)]


def cost(backend: str, block: int, turns: int) -> str:
    """Lines about one backend."""
    found = in_kernel(COST.format(backend=backend, block=block, turns=turns))
    low, high = interval(found["ratios"])
    repaints = sorted(1000 * one for one in found["repaints"])
    return (
        f"{backend:6} repaint: median {statistics.median(repaints):.2f} ms of kernel time, 90th percentile "
        f"{repaints[int(0.9 * len(repaints))]:.2f} ms; {found['rate']:.1f} a second; painting and sending take "
        f"{100 * found['share']:.2f} % of one processor\n"
        f"       step {1000 * found['without']:.2f} ms without, {1000 * found['with']:.2f} ms with a dashboard: "
        f"{100 * (statistics.median(found['ratios']) - 1):+.1f} % [{100 * (low - 1):+.1f}, {100 * (high - 1):+.1f}] by the clock "
        f"(median of {len(found['ratios'])} pairs of blocks of {block} steps)"
    )


def paused(board: Any, since: float) -> float | None:
    """When the run paused after a moment."""
    found = [item.time for item in board.events()[-40:] if item.name == "run.pause" and item.time > since]
    return found[0] if found else None


def browser(points: int, clicks: int) -> None:
    """Print how fast clicks have their effect, and how far the page is behind."""
    sys.path.insert(0, str(ROOT / "tests" / "browser"))
    from conftest import CHROMIUM, FLAGS, Lab, Tab
    from playwright.sync_api import sync_playwright
    from test_dashboard_in_lab import PLOTS, Board

    lab = Lab(Path(tempfile.mkdtemp()))
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
            tab = Tab(chromium.new_page(viewport={"width": 1280, "height": 1000}))
            tab.open(lab.notebook("watch.ipynb", WATCH.format(points=points)))
            tab.run(0, wait=False)
            tab.page.wait_for_selector(".js-plotly-plot .main-svg", timeout=300_000)
            tab.until(lambda: tab.page.evaluate(PLOTS)[0]["width"] > 700, 60)
            board, took = Board(tab, lab), []
            for _ in range(clicks):
                board.click("play")
                tab.until(lambda: board.button("pause").is_enabled())
                tab.page.wait_for_timeout(400)
                began = time.time()
                board.button("pause").click()
                tab.until(lambda began=began: paused(board, began) is not None)
                took.append(paused(board, began) - began)
            median, longest = statistics.median(took), max(took)
            print(
                f"click on pause to its event in the log: median {median:.2f} s, longest {longest:.2f} s ({clicks} clicks)"
            )
            board.click("play")
            tab.page.wait_for_timeout(3000)
            behind = []
            for _ in range(20):
                step, now = tab.page.evaluate(PLOTS)[0]["last"], time.time()
                times = {item.step: item.time for item in board.events()[-4000:] if item.name == "train.step"}
                behind.append(now - times[step] if step in times else float("nan"))
                tab.page.wait_for_timeout(200)
            shown = tab.page.evaluate(PLOTS)[0]
            print(
                f"page behind the training with {points:,} points in the log ({max(shown['points']):,} of a curve in the page): "
                f"median {statistics.median(behind):.2f} s, longest {max(behind):.2f} s"
            )
            chromium.close()
    finally:
        lab.close()


def main() -> None:
    """Everything that was asked for."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--browser", action="store_true", help="also in JupyterLab and Chromium")
    words.add_argument("--points", type=int, default=100_000)
    words.add_argument("--clicks", type=int, default=10)
    words.add_argument("--turns", type=int, default=24, help="pairs of blocks")
    asked = words.parse_args()
    print(cost("toy", 400, asked.turns), flush=True)
    print(cost("torch", 12, asked.turns), flush=True)
    if asked.browser:
        browser(asked.points, asked.clicks)


if __name__ == "__main__":
    main()
