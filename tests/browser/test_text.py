"""Rows that try to be more than text, in every live view and in the report: nothing is run, nothing is asked for."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from injection_texts import encodable, write_rows

VIEWS = (
    "k",
    "k.show_batch()",
    "k.peek('conversations').train[:40]",
    "chat = k.chat(); chat.talk(INJECTIONS[0]); chat.talk(INJECTIONS[24]); chat",
    "k.dashboard()",
    "k.run(until=6); k.sample(count=40)",
    "k.run(); k.show_results(count=80)",
    "k.top_losses(count=40)",
    "k.timeline()",
    "import kitchen; kitchen.compare([k])",
    "kitchen.runs()",
    "k.report('hostile.html')",
)
FOREIGN = """() => {
    const found = [];
    for (const area of document.querySelectorAll('.jp-OutputArea, body.kitchen-report')) {
        for (const one of area.querySelectorAll('script, iframe, form, meta, base, object, embed, link, math'))
            found.push(one.outerHTML.slice(0, 200));
        for (const one of area.querySelectorAll('*'))
            for (const attribute of one.attributes)
                if (attribute.name.startsWith('on') || /^\\s*javascript:/i.test(attribute.value))
                    found.push(attribute.name + '=' + attribute.value.slice(0, 200));
    }
    return found;
}"""


def test_hostile_rows_are_text_in_every_view(lab, tab):
    dialogs = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    rows = write_rows(lab.work / "hostile.jsonl", copies=8)
    begin = (
        f"INJECTIONS = {encodable()!r}\nfrom kitchen import Kitchen\n"
        f"k = Kitchen('sft', backend='toy', dataset='file:{rows}', epochs=2, batch_size=16, graded=60, renderer='chatml')\n"
        "k.run(until='baseline')"
    )
    control = "from IPython.display import HTML, display\ndisplay(HTML('<b onclick=\"x\">seen</b>'))"
    tab.open(lab.notebook("hostile.ipynb", begin, *VIEWS, control))
    for number in range(len(VIEWS) + 1):
        cell = tab.run(number)
        assert not cell.locator('[data-mime-type="application/vnd.jupyter.error"]').count(), (begin, *VIEWS)[number]
    for name in ("answers", "settings", "events"):
        tab.page.locator(".jupyter-widget-tab .lm-TabBar-tab").filter(has_text=name).first.click()
        tab.page.wait_for_timeout(600)
        tab.shot(f"hostile-{name}")
    assert tab.page.evaluate(FOREIGN) == [] and dialogs == []
    assert "pwned" not in tab.page.title() and tab.outside == []
    assert tab.errors == []
    tab.run(len(VIEWS) + 1)
    assert tab.page.evaluate(FOREIGN) == ["onclick=x"], "what is foreign would have been seen"


def test_a_report_of_hostile_rows_runs_nothing_and_asks_for_nothing(tmp_path, tab):
    from kitchen import Kitchen

    rows = write_rows(tmp_path / "hostile.jsonl", copies=8)
    with Kitchen(
        "sft", backend="toy", dataset=f"file:{rows}", epochs=1, batch_size=32, graded=60, renderer="chatml"
    ) as k:
        page = k.run().report(tmp_path / "report.html")
    dialogs = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.page.context.set_offline(True)
    tab.page.goto(f"file://{page}")
    tab.until(lambda: tab.page.locator(".js-plotly-plot .main-svg").count() >= 2, 30)
    handlers = """() => [...document.body.querySelectorAll('*')].flatMap(one => [...one.attributes])
        .filter(one => one.name.startsWith('on') || /^\\s*javascript:/i.test(one.value)).map(one => one.name + '=' + one.value)"""
    assert tab.page.evaluate(handlers) == [] and dialogs == [] and tab.outside == [] and tab.errors == []
    assert "pwned" not in tab.page.title()
    assert tab.page.evaluate("document.body.scrollWidth <= window.innerWidth"), "nothing sticks out to the right"
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        tab.page.wait_for_timeout(300)
        tab.shot(f"report-{scheme}")
