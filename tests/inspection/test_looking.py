"""Looking into a session: nothing is disturbed, whatever is looked at and whenever; the same calls show themselves everywhere."""

import os
import re
import threading
from html.parser import HTMLParser

import bleach
import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from bleach._vendor.html5lib.filters import sanitizer
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

import kitchen
from kitchen.data.batches import Batches, StreamBatches
from kitchen.data.references import Stream
from kitchen.display.svg import figure_svg
from kitchen.display.tokens import datum_text_ids
from kitchen.formatting import PLOTLY_MIME
from kitchen.session.kitchen import Kitchen
from kitchen.store.run import Run
from kitchen.types import Datum, InvalidValue, UnknownName

SMALL = {
    "backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 2, "batch_size": 16, "held_out": 8, "graded": 4,
    "max_tokens": 8, "lora_dropout": 0.1,
}  # fmt: skip
ASKING = {  # what may be called while a run goes on
    "check": lambda k: k.check(),
    "show_batch": lambda k: k.show_batch(),
    "show_batch by loss": lambda k: k.show_batch(by="loss"),
    "show_results": lambda k: k.show_results(),
    "top_losses": lambda k: k.top_losses(),
    "chat": lambda k: k.chat(max_tokens=4).talk("Sort: 3 1 2").tokens(),
    "timeline": lambda k: k.timeline(),
    "compare": lambda k: kitchen.compare(k),
    "runs": lambda k: kitchen.runs(),
    "k": lambda k: (k._repr_html_(), k)[1],
    "config": lambda k: k.config,
}
TRYING = {  # what trains, aside
    "lr_find": lambda k: k.lr_find(1e-5, 1.0, steps=10),
    "profile": lambda k: k.profile(),
}


def losses(k):
    return [item["loss"] for item in k.log if item.name == "train.step"]


@pytest.fixture
def undisturbed():
    with Kitchen("sft", **SMALL) as k:
        k.run()
        yield losses(k), k.digest()


def test_whatever_is_looked_at_the_run_stays_the_same(undisturbed):
    with Kitchen("sft", **SMALL) as k:
        k.run(until="baseline")
        for step in range(8):
            state, files = k.digest(), {path.name for path in k.run_dir.iterdir()}
            for name, look in (ASKING | (TRYING if step < 7 else {})).items():
                assert repr(look(k)), name
                assert k.digest() == state, f"{name} at step {step}"
            assert {path.name for path in k.run_dir.iterdir()} == files | {"snapshots"}, (
                "what was set aside is gone"
            )
            k.step("batch")
        with pytest.raises(InvalidValue, match="fewer than two optimizer steps"):
            k.profile()
        k.run()
        assert (losses(k), k.digest()) == undisturbed and k.run_record.verify() == []
        assert k.lr_find(1e-5, 0.1, steps=10).losses.size == 10, (
            "after the last batch the first ones come again"
        )


def test_looking_at_a_run_in_the_background_changes_nothing(undisturbed):
    with Kitchen("sft", **SMALL) as k:
        k.run(until=1)
        looked, errors = [], []

        def look():
            while not looked or k.driver.thread.is_alive():
                for name, view in ASKING.items():
                    try:
                        looked.append((name, repr(view(k))))
                    except Exception as error:  # told by the test
                        errors.append((name, error))

        k.run(wait=False)
        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        k.wait()
        assert not errors and len(looked) >= 2 * len(ASKING)
        assert (losses(k), k.digest()) == undisturbed


def test_what_trains_asks_for_a_pause():
    with Kitchen("sft", **SMALL) as k:
        k.run(until="baseline")
        held = threading.Event()
        k.driver.listeners.append(lambda item: item.name == "train.step" and held.wait(20))
        k.run(wait=False)
        for name, look in TRYING.items():
            with pytest.raises(InvalidValue, match=r"pause\(\) or wait\(\) for it first"):
                look(k)
            assert name
        held.set()
        k.pause()
        assert k.lr_find(1e-5, 0.1, steps=10).losses.size == 10


@pytest.mark.parametrize("recipe", ["dpo", "reward_model", "distill_off_policy"])
def test_a_range_test_learns_as_its_recipe_does(recipe):
    settings = {"backend": "toy", "batch_size": 8, "held_out": 8, "epochs": 1}
    settings |= {"graded": 4, "max_tokens": 8} if recipe != "reward_model" else {}
    data = "builtin:sort[:32]" if recipe == "distill_off_policy" else "builtin:sort-pairs[:32]"
    more = {"teacher_dataset": "builtin:sort[:32]"} if recipe == "distill_off_policy" else {}
    with Kitchen(recipe, dataset=data, **settings, **more) as k:
        k.run(until=2)
        state = k.digest()
        found = k.lr_find(1e-6, 1e-3, steps=10)
        assert np.isfinite(found.losses).all() and k.digest() == state
        first = next(item["loss"] for item in k.log if item.name == "train.step")
        assert found.losses[0] == pytest.approx(first, rel=0.5), "the same loss, on the same scale"
        assert "chosen" in repr(k.show_batch()) or "the teacher's choice" in repr(k.show_batch())
        assert repr(k.top_losses(2)) and "training" in repr(k.profile())


def test_rollouts_are_the_batch_of_a_policy():
    settings = {
        "backend": "toy",
        "problems": 8,
        "batch_size": 4,
        "group_size": 4,
        "graded": 4,
        "max_tokens": 8,
    }
    with Kitchen("rl_math", **settings) as k:
        k.run(until=1)
        state = k.digest()
        assert "rollouts" in repr(k.show_batch()) and "advantage" in k.show_batch()._repr_html_()
        assert "sampling.sample" in repr(k.profile()) and k.digest() == state
        assert k.chat(max_tokens=4).talk("1+1=").exchanges
        with pytest.raises(InvalidValue, match="given by stage 'evaluate'"):
            k.show_results()


def test_the_torch_backend_is_not_disturbed_either():
    with Kitchen("sft", **(SMALL | {"backend": "torch", "model": "", "epochs": 1})) as k:
        k.run(until=2)
        state = k.digest()
        costs = k.profile()
        assert costs.profiler_name == "torch" and any(cost.name.startswith("aten::") for cost in costs.costs)
        assert {one.row for one in costs.shares} >= {"training.forward_backward", "training.optim_step"}
        assert k.lr_find(1e-5, 0.1, steps=10).losses.size == 10 and "mean loss" in repr(k.show_batch())
        assert k.chat(max_tokens=4).talk("hello").exchanges and k.digest() == state


# -- data that is looked at and read at the same time ----------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "stream"])
def test_peeking_from_another_thread_never_disturbs_the_order(kind):
    def batches():
        made = Stream(lambda: range(200), "numbers", 200) if kind == "stream" else range(200)
        return StreamBatches(made, 7, epochs=5, buffer=16) if kind == "stream" else Batches(made, 7, epochs=5)

    expected, read, over = list(batches()), batches(), threading.Event()

    def peek():
        while not over.is_set():
            read.peek()

    threads = [threading.Thread(target=peek) for _ in range(2)]
    for thread in threads:
        thread.start()
    found = list(read)
    over.set()
    for thread in threads:
        thread.join()
    assert found == expected


# -- runs by name --------------------------------------------------------------------------------------------


def test_runs_are_compared_by_whatever_names_them(runs):
    with Kitchen("sft", **SMALL) as k:
        k.run(until=3)
        with k.fork(learning_rate=1e-3) as other:
            other.run(until=5)
            names = [k.run_record.run_id, other.run_record.run_id]
            for given in (
                (k, other),
                ([k, other],),
                (k.run_record.run_id, str(other.run_dir)),
                (k.run_dir, Run(other.run_dir)),
                (other,),
            ):
                assert [story.name for story in kitchen.compare(*given).summaries] == names
            assert kitchen.compare("latest").summaries and {run.run_id for run in kitchen.runs()} == set(
                names
            )
    with pytest.raises(UnknownName, match="unknown run"):
        kitchen.compare("nothing")
    with pytest.raises(InvalidValue, match="has not begun"):
        kitchen.compare(Kitchen("sft", **SMALL))
    assert kitchen.runs(status="stopped", folder=runs) and not kitchen.runs(text="no such text").rows


# -- the same object everywhere ------------------------------------------------------------------------------

CELLS = [
    "from kitchen import Kitchen, compare, runs\nk = Kitchen('sft', **SMALL)\nk.run(until=3)",
    "k", "k.config", "k.run_record.spec", "k.driver.recipe.workflow", "k.peek('batch')", "k.show_batch(by='loss')", "k.show_results()",
    "k.top_losses(2)", "k.lr_find(1e-5, 1.0, steps=10)", "k.chat(max_tokens=4).talk('Sort: 3 1 2')",
    "k.timeline()", "k.profile(5)", "k.dashboard()", "compare(k)", "runs()",
    "from kitchen.reports.build import show_losses\nshow_losses(k.run_record)", "k.close()",
]  # fmt: skip


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook with every view, executed in a kernel without a person before it."""
    import papermill

    folder = tmp_path_factory.mktemp("everywhere")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_code_cell(f"SMALL = {SMALL!r}"), *map(new_code_cell, CELLS)]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"KITCHEN_HEADLESS": "1", "KITCHEN_RUNS": str(folder / "runs")}.items():
            patched.setenv(name, value)
        papermill.execute_notebook(
            new_notebook(cells=cells, metadata={"kernelspec": kernel}),
            str(folder / "all.ipynb"),
            progress_bar=False,
        )
    return folder / "all.ipynb"


def outputs(notebook):
    return [
        (cell.source, output.data)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]


def test_an_executed_notebook_holds_a_still_view_of_everything(executed):
    notebook = nbformat.read(executed, 4)
    shown = outputs(notebook)
    assert len({source for source, _ in shown}) == len(CELLS) - 1, "each call left something"
    for source, data in shown:
        assert "text/plain" in data and "application/vnd.jupyter.widget-view+json" not in data, source
        assert ("image/svg+xml" in data) == (PLOTLY_MIME in data) and (
            {"text/html", PLOTLY_MIME} & set(data)
        ), source
        words = data["text/plain"]
        assert not re.search(r"<[\w.]+ (object|at) ", words) and len(words) < 8000, f"{source}: {words[:80]}"
    assert sum(PLOTLY_MIME in data for _, data in shown) == 5 and "widgets" not in notebook.metadata
    assert os.path.getsize(executed) < 300_000


def test_plain_nbconvert_shows_every_curve(executed):
    page, _ = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="").from_filename(
        str(executed)
    )
    assert page.count('src="data:image/svg+xml;base64,') >= 4


SVG = {name for space, name in sanitizer.allowed_elements if space == sanitizer.namespaces["svg"]}
KEPT = {name for space, name in sanitizer.allowed_attributes if space is None} - {"style"}


class Shapes(HTMLParser):
    """Elements of a drawing with their attributes, and its words."""

    def __init__(self, text):
        super().__init__()
        self.shapes, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.shapes.append((tag, {name: value for name, value in attributes if name != "xmlns"}))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_data(self, data):
        self.words.append(data)


def test_drawings_survive_what_code_hosts_do_to_them(executed):
    drawings = [
        data["image/svg+xml"] for _, data in outputs(nbformat.read(executed, 4)) if "image/svg+xml" in data
    ]
    assert len(drawings) == 5
    for drawn in drawings:
        cleaned = bleach.clean(drawn, tags=SVG, attributes={tag: sorted(KEPT) for tag in SVG})
        before, after = Shapes(drawn), Shapes(cleaned)
        assert before.shapes == after.shapes and before.words == after.words and len(before.shapes) > 10


def test_a_still_draws_what_plotly_is_told():
    x, y = np.arange(50.0), np.linspace(3, 1, 50)
    figure = go.Figure(
        go.Scatter(x=x, y=y, name="loss", mode="lines"),
        {"margin": {"l": 72, "r": 24, "b": 56}, "height": 300},
    )
    path = next(
        shape["d"]
        for tag, shape in Shapes(figure_svg(figure)).shapes
        if tag == "path" and shape.get("fill") == "none"
    )
    points = np.array([[float(number) for number in pair.split()] for pair in re.split("[ML]", path)[1:]])
    np.testing.assert_allclose(points[:, 0], 72 + x / 49 * (920 - 72 - 24), atol=0.06)
    top, bottom = points[0, 1], points[-1, 1]
    np.testing.assert_allclose(points[:, 1], top + (3 - y) / 2 * (bottom - top), atol=0.06)
    assert 0 < top < bottom < 300 - 56


# -- what is read, and what is asked for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "weights", "shown"),
    [
        ([2, 3, 4], [0, 1, 1], [1, 2, 3, 4]),  # text that is learnt
        ([9, 9, 9], [0, 0, 1], [1, 2, 3, 9]),  # a score, asked for after the last token
        (
            [0, 7, 8],
            [0, 0.5, 0.5],
            [1, 2, 7, 8],
        ),  # another choice of a teacher, the prompt's targets left empty
    ],
)
def test_a_datum_shows_its_text_and_the_targets_that_count(targets, weights, shown):
    assert datum_text_ids(Datum([1, 2, 3], {"targets": targets, "weights": weights})) == shown
