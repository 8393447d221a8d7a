"""Reports open offline, show what others wrote as text, and hold what a program needs to read back."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from injection_texts import INJECTIONS, encodable, write_rows
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kitchen.config import ExperimentSpec, json_digest
from kitchen.display.diff import results_table
from kitchen.display.figures import loss_figure
from kitchen.formatting import PLOTLY_MIME, decimate, visible_text
from kitchen.recipes.reproduce import manifest
from kitchen.reports.build import read_manifest, write_report
from kitchen.reports.export import MANIFEST_MIME, RESULT_MIME, read_recorded, to_html
from kitchen.session.kitchen import Kitchen
from kitchen.store.files import file_hash
from kitchen.store.log import EventLog
from kitchen.store.run import Run
from kitchen.telemetry import event
from kitchen.types import InvalidValue


class Page(HTMLParser):
    """Tags and attributes of a page, as a browser would meet them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


LOADING = {"src", "href", "srcset", "data", "poster", "action", "background"}


def loads(text):
    """Addresses that a browser would fetch from the network."""
    found = [
        value
        for tag, attributes in Page(text).tags
        for name, value in attributes.items()
        if name in LOADING and tag != "a" and not (value or "").startswith(("data:", "#"))
    ]
    style = " ".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    return found + re.findall(r"@import|url\(\s*['\"]?http", style)


def executable(text):
    """Script elements that a browser would run."""
    return [
        attributes
        for tag, attributes in Page(text).tags
        if tag == "script" and attributes.get("type") != "application/json"
    ]


@pytest.fixture
def hostile_run(tmp_path):
    """A real run on rows that try to break out."""
    path = write_rows(tmp_path / "<b>rows.jsonl", copies=2)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": [{"role": "<script>alert('role')</script>", "content": "x"}]}) + "\n")
    k = Kitchen(
        "sft", backend="toy", dataset=f"file:{path}", on_bad_row="set_aside", epochs=1, batch_size=8, held_out=4, graded=4,
        max_tokens=8,
    )  # fmt: skip
    k.run()
    yield k
    k.close()


def test_the_report_of_a_hostile_dataset_is_text(hostile_run):
    text = hostile_run.report().read_text(encoding="utf-8")
    assert loads(text) == []
    assert len(executable(text)) == 2, "plotly.js and ours"
    assert not [tag for tag, _ in Page(text).tags if tag in ("iframe", "object", "embed", "form")]
    images = [attributes["src"] for tag, attributes in Page(text).tags if tag == "img"]
    assert len(images) == 3 and all(one.startswith("data:image/svg+xml;base64,") for one in images), "our own stills"
    assert not [name for _, attributes in Page(text).tags for name in attributes if name.startswith("on")]
    assert "Set aside: 1" in text and "&lt;script&gt;alert('role')" in text
    assert "\x1b" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert len(re.findall(r"plotly\.js v\d", text)) == 1


def test_scripts_are_named_by_hash_and_nothing_else_may_run_or_connect(hostile_run):
    text = hostile_run.report().read_text(encoding="utf-8")
    policy = next(
        attributes["content"] for tag, attributes in Page(text).tags if attributes.get("http-equiv")
    )
    assert "default-src 'none'" in policy and policy.count("'sha256-") == 2
    assert "unsafe-inline" not in policy.split("script-src")[1] and "http" not in policy


def test_hostile_outputs_of_any_kind_are_text(tmp_path):
    outputs = [
        output
        for bad in encodable()
        for output in (
            new_output("stream", text=bad),
            new_output("display_data", {"text/plain": bad}),
            new_output("display_data", {"text/markdown": bad}),
            new_output("display_data", {"application/javascript": "alert(1)", "text/plain": bad}),
            new_output("display_data", {PLOTLY_MIME: {"data": [{"type": "bar", "name": bad}], "layout": {}}}),
            new_output("error", ename=bad, evalue=bad, traceback=[bad]),
        )
    ]
    document = new_notebook(cells=[new_markdown_cell("# A <b>page</b>"), new_code_cell("1", outputs=outputs)])
    text = to_html(document, tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Page(text).tags
    assert len(executable(text)) == 2 and not [
        tag for tag, _ in tags if tag in ("iframe", "svg", "h1") and tag != "h1"
    ]
    assert sum(tag == "style" for tag, _ in tags) == 1 and sum(tag == "table" for tag, _ in tags) == 0
    assert not [attributes for _, attributes in tags if "onerror" in attributes or "onload" in attributes]
    assert "javascript:" not in [
        value[:11] for _, attributes in tags for value in attributes.values() if value
    ]
    assert len([1 for tag, attributes in tags if attributes.get("class") == "figure"]) == len(INJECTIONS)
    specs = [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    assert [spec["data"][0]["name"] for spec in specs] == encodable()


def test_answers_show_as_text_in_html_and_in_a_terminal():
    rows = [
        {
            "prompt": bad,
            "gold": bad[::-1],
            "before": bad,
            "after": bad[1:],
            "before_correct": False,
            "after_correct": None,
        }
        for bad in [*INJECTIONS, "a\ud800"]
    ]
    view = results_table(rows, count=100)
    tags = {tag for tag, _ in Page(view.html).tags}
    assert tags <= {"div", "small", "table", "thead", "tbody", "tr", "th", "td", "b", "mark", "span"}
    assert not set("\x1b\x07\u202e") & set(repr(view)) and not set("\x1b\x07\u202e") & set(view.html)
    view.html.encode("utf-8")
    assert visible_text("  two\n\tlines ") == "  two\n\tlines ", "white space stays"


def test_figures_of_long_runs_stay_small_and_keep_every_spike():
    rng = np.random.default_rng(0)
    losses = rng.normal(size=200_000)
    losses[[777, 123_456]] = [99.0, -99.0]
    x, y = decimate(np.arange(200_000), losses)
    assert len(x) <= 1000 and {99.0, -99.0} <= set(y.tolist())
    np.testing.assert_array_equal(losses[x], y)
    events = [event("train.step", n, loss=float(losses[n])) for n in range(0, 200_000, 20)]
    assert all(len(trace.x) <= 1000 for trace in loss_figure(events).data)


def test_manifest_round_trip(hostile_run, tmp_path):
    run = hostile_run.run_record
    found = manifest(run)
    assert read_manifest(write_report(run, tmp_path / "report.ipynb")) == found == json.loads(json.dumps(found))
    assert ExperimentSpec(**found["spec"]) == run.spec and found["spec"]["datasets"]
    losses = [
        json.loads(line)["measurements"]["loss"]
        for line in (run.path / "events.jsonl").read_text().splitlines()
        if '"train.step"' in line
    ]
    assert found["losses"] == {"count": len(losses), "sha256": json_digest(losses)}
    last = json.loads((run.path / "events.jsonl").read_text().splitlines()[-1])
    assert found["events"] == {"count": EventLog.verify(run.path / "events.jsonl"), "head": last["hash"]}
    hashes = {made["name"]: made["sha256"] for made in found["artifacts"]}
    assert hashes["results.json"] == file_hash(run.path / "artifacts" / "results.json")
    assert found["metrics"]["train.step.loss"] == {"value": losses[-1], "unit": "nats/token"}
    assert not any("second" in name for name in found["metrics"]), "times never repeat"


def test_two_runs_of_one_spec_differ_in_times_only():
    settings = {
        "backend": "toy",
        "dataset": "builtin:sort[:32]",
        "epochs": 1,
        "batch_size": 8,
        "held_out": 4,
        "graded": 2,
        "max_tokens": 4,
    }
    first, second = (manifest(Kitchen("sft", **settings).run().run_record) for _ in range(2))
    for name in ("spec", "metrics", "losses"):
        assert first[name] == second[name]


def test_record_and_read_back(tmp_path):
    import papermill

    cells = [
        new_code_cell("from kitchen.reports.export import record_values\nimport numpy as np"),
        new_code_cell("record_values(loss=np.float32(0.5), curve=(1, 2), nested={'a': [None, True]})"),
        new_code_cell("record_values(loss=0.25)"),
        new_code_cell("1 / 0"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with pytest.raises(papermill.PapermillExecutionError):
        papermill.execute_notebook(
            new_notebook(cells=cells, metadata={"kernelspec": kernel}),
            str(tmp_path / "out.ipynb"),
            progress_bar=False,
        )
    assert read_recorded(tmp_path / "out.ipynb") == {"loss": 0.25, "curve": [1, 2], "nested": {"a": [None, True]}}
    text = to_html(tmp_path / "out.ipynb", tmp_path / "out.html").read_text()
    assert "<b>FAILED</b>" in text and "ZeroDivisionError" in text and "<details><summary>traceback" in text
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[2].outputs[0].data[RESULT_MIME]


def test_the_built_notebook_runs_again_in_the_runs_folder(hostile_run):
    document = nbformat.read(write_report(hostile_run.run_record, hostile_run.run_dir / "again.ipynb"), 4)
    code = "\n".join(cell.source for cell in document.cells if cell.cell_type == "code")
    subprocess.run([sys.executable, "-c", code], cwd=hostile_run.run_dir, check=True, capture_output=True)
    shown = [output for cell in document.cells for output in cell.get("outputs", [])]
    assert (
        sum(PLOTLY_MIME in one.data for one in shown) == 3
        and sum(MANIFEST_MIME in one.data for one in shown) == 1
    )
    assert len(nbformat.writes(document)) < 300_000


@pytest.mark.parametrize(
    ("status", "word"), [("failed", "FAILED"), ("stopped", "STOPPED"), (None, "RUNNING")]
)
def test_a_run_that_did_not_end_well_says_so_first(tmp_path, status, word):
    run = Run.create(ExperimentSpec(recipe="sft"), tmp_path / "run")
    run.log.append(event("run.start", recipe="sft", run_id="run"))
    if status:
        run.log.append(event("run.stop", status=status, reason="RowError: <row 7>", seconds=1.0))
    text = write_report(run).read_text()
    assert text.index(f"<b>{word}</b>") < text.index("<h1") and ("&lt;row 7&gt;" in text) == bool(status)
    run.close()


def test_a_simulated_run_says_so_first(tmp_path):
    run = Run.create(ExperimentSpec(recipe="sft"), tmp_path / "run")
    run.log.append(event("run.start", recipe="sft", run_id="run"))
    run.log.append(event("artifact.register", model="sft", version=1, sha256="0", simulated=True))
    run.log.append(event("run.stop", status="completed", seconds=1.0))
    assert manifest(run)["simulated"] is True and "<b>SIMULATED</b>" in write_report(run).read_text()
    run.close()


def test_what_is_not_a_notebook_is_refused(tmp_path):
    (tmp_path / "text.ipynb").write_text("not json")
    for name in ("text.ipynb", "missing.ipynb"):
        with pytest.raises(InvalidValue, match=name):
            to_html(tmp_path / name, tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()
