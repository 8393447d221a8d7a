"""The dashboard in JupyterLab: curves that grow, buttons with their effect in the event log, edits, forks, a reloaded page."""

import pytest

from kitchen.store.log import EventLog

LONG = """from kitchen import Kitchen
k = Kitchen('sft', backend='toy', dataset='builtin:sort[:2000]', epochs=400)
k.dashboard()"""
CURVES = """() => [...document.querySelectorAll('.js-plotly-plot')].slice(-1).map(plot => plot.data.map(
    trace => [trace.name, [...(trace.x || [])], [...(trace.y || [])]]))[0]"""
BANNERS = """() => [...document.querySelectorAll('.kitchen-dashboard')].filter(board => board.offsetWidth > 0).map(
    board => getComputedStyle(board, '::before').content)"""
PLOTS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
    points: plot.data.map(trace => trace.x ? trace.x.length : 0), names: plot.data.map(trace => trace.name),
    last: Math.max(...plot.data.map(trace => trace.x && trace.x.length ? trace.x[trace.x.length - 1] : 0)),
    marks: plot.layout.shapes ? plot.layout.shapes.length : 0, width: plot.offsetWidth, runs: plot.data.length / 21 }))"""


class Board:
    """A dashboard in a page, and the log of its run."""

    def __init__(self, tab, lab, cell=0):
        self.tab, self.lab, self.cell = tab, lab, cell

    @property
    def plot(self):
        """What the first figure of the page shows; its points are at least one if it shows anything."""
        found = self.tab.page.evaluate(PLOTS)
        return found[0] if found else {"points": [0], "last": 0, "marks": 0, "width": 0, "runs": 0, "names": []}

    def button(self, name):
        """A button of the dashboard."""
        return self.tab.page.locator("button.jupyter-button:not(.widget-toggle-button)").filter(has_text=name).first

    def click(self, name):
        """Press a button, once it can be pressed."""
        self.tab.until(lambda: self.button(name).is_enabled())
        self.button(name).click()

    def open_tab(self, name):
        """Turn to a tab below the figure."""
        self.tab.page.locator(".jupyter-widget-tab .lm-TabBar-tab").filter(has_text=name).first.click()

    def events(self, which=-1):
        """Events of a run of this session, of the newest by default."""
        runs = sorted((self.lab.folder / "kitchen_runs").glob("*/events.jsonl"), key=lambda path: path.stat().st_ctime)
        return list(EventLog.read(runs[which])) if runs else []

    def has(self, name, **wanted):
        """Whether an event stands in the log of any run."""
        runs = (self.lab.folder / "kitchen_runs").glob("*/events.jsonl")
        return any(
            item.name == name and wanted.items() <= {**item.metadata, **item.measurements, "step": item.step}.items()
            for run in runs
            for item in EventLog.read(run)
        )

    def count(self, name):
        """How many events of a name there are in all logs."""
        runs = (self.lab.folder / "kitchen_runs").glob("*/events.jsonl")
        return sum(item.name == name for run in runs for item in EventLog.read(run))


@pytest.fixture
def board(tab, lab):
    """A dashboard over a long training, which has not begun."""
    for run in (lab.folder / "kitchen_runs").glob("*"):
        run.rename(lab.folder / f"before-{run.name}")
    other = "import time\nfor _ in range(25): time.sleep(0.1)\nprint('free at', k.driver.last_step.step)"
    address = lab.notebook("board.ipynb", LONG, other, "k.dashboard()")
    tab.open(address)
    tab.run(0)
    tab.page.wait_for_selector(".js-plotly-plot .main-svg", timeout=60_000)
    yield Board(tab, lab)
    assert tab.errors == [] and tab.outside == []


def test_curves_grow_and_every_button_has_its_effect(board, tab):
    tab.until(lambda: board.plot["width"] > 700)
    board.click("step")
    tab.until(lambda: board.has("train.step", step=1))
    board.click("play")
    tab.until(lambda: board.plot["last"] > 20)
    cell = tab.run(1, wait=False)
    before, output = board.plot["last"], cell.locator(".jp-OutputArea-output")
    tab.until(lambda: board.plot["last"] > before + 5 and not output.count())
    tab.until(lambda: output.count() and "free at" in output.inner_text())
    board.click("checkpoint")
    tab.until(lambda: tab.page.get_by_text("Kept as snapshot").count())
    kept = board.count("snapshot.save")
    assert kept >= 1
    board.click("ask now")
    tab.until(lambda: board.has("sample.answer"))
    tab.until(lambda: tab.page.get_by_text("0 of 4 right").count() or tab.page.get_by_text("of 4 right").count())
    tab.shot("dashboard-running")
    board.click("pause")
    tab.until(lambda: board.has("run.pause", reason="asked to"))
    tab.until(lambda: board.button("play").is_enabled())

    board.open_tab("settings")
    rate = tab.page.locator(".widget-hbox", has_text="learning_rate").locator("input").last
    rate.fill("-3")
    rate.press("Enter")
    tab.until(lambda: tab.page.get_by_text("greater than 0").count())
    rate.fill("0.0025")
    rate.press("Enter")
    tab.until(lambda: board.has("config.edit", setting="learning_rate", after=0.0025))
    tab.until(lambda: board.plot["marks"] == 1)
    tab.shot("dashboard-settings")

    tab.page.locator("input[type=number]").first.fill("5")
    tab.page.locator("input[type=number]").first.press("Enter")
    board.click("rewind")
    tab.until(lambda: board.has("run.rewind", reason="rewind"))
    tab.until(lambda: board.plot["last"] == 5 and board.plot["marks"] == 0)

    board.click("fork")
    tab.until(lambda: board.has("run.fork"), 20)
    tab.until(lambda: board.plot["runs"] == 2, 20)
    tab.page.locator("button.widget-toggle-button").filter(has_text="fork").click()
    board.open_tab("events")
    tab.page.get_by_placeholder("words that must stand").fill("run.fork")
    tab.until(lambda: tab.page.locator(".widget-html table").filter(has_text="parent=").count())
    board.click("step")
    tab.until(lambda: board.plot["last"] == 6)
    tab.shot("dashboard-fork")
    board.click("stop")
    tab.until(lambda: board.has("run.stop", status="stopped"))
    tab.until(lambda: not board.button("play").is_enabled())


def test_a_reloaded_page_finds_the_dashboard_again_and_says_when_its_kernel_has_gone(board, tab, lab):
    board.click("play")
    tab.until(lambda: board.plot["last"] > 30)
    tab.page.locator(".jp-Notebook").click()
    tab.page.keyboard.press("Control+s")
    tab.page.wait_for_timeout(500)
    tab.page.reload(wait_until="domcontentloaded")
    tab.settle()
    tab.errors.clear()  # what plotly says of a figure that it cannot bring back
    tab.run(2)
    tab.until(lambda: max((plot["last"] for plot in tab.page.evaluate(PLOTS)), default=0) > 60, 40)
    tab.errors[:] = [said for said in tab.errors if said != "no comm channel defined"]  # and says late
    before = max(plot["last"] for plot in tab.page.evaluate(PLOTS))
    tab.until(lambda: max(plot["last"] for plot in tab.page.evaluate(PLOTS)) > before)
    assert not tab.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count()
    tab.shot("dashboard-reloaded")
    board.click("pause")
    tab.until(lambda: board.has("run.pause", reason="asked to"))
    stopped = max(item.step for item in board.events() if item.name == "train.step")

    def ends():
        return {steps[-1] for name, steps, _ in tab.page.evaluate(CURVES) if steps and name != "held out"}

    tab.until(lambda: ends() == {stopped}, 30)  # rows are repainted one after the other
    drawn = tab.page.evaluate(CURVES)
    tab.run(2)  # the same run, drawn afresh from its log
    tab.until(lambda: tab.page.evaluate(CURVES) == drawn, 20)
    assert any(len(steps) > 60 for _, steps, _ in drawn)
    assert not any("kernel has gone" in said for said in tab.page.evaluate(BANNERS))
    lab.kill_kernels()
    tab.until(lambda: any("kernel has gone" in said for said in tab.page.evaluate(BANNERS)), 30)
    assert max(plot["last"] for plot in tab.page.evaluate(PLOTS)) == stopped, "what it showed last"
    tab.errors.clear()  # that the server has no such kernel any more
    tab.shot("dashboard-without-kernel")
