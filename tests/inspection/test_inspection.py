"""Views of a run: text of others stays text in all of them, numbers agree with independent computations, pictures stay small."""

import json
import math
import re
import time
from dataclasses import replace
from xml.etree import ElementTree

import mistune
import numpy as np
import pytest
from injection_texts import INJECTIONS, Page, steers
from markdown_it import MarkdownIt

from kitchen.config import ExperimentSpec, show_config
from kitchen.display.figures import Span, TimeShare, time_shares
from kitchen.display.tokens import show_datum, show_trajectory
from kitchen.evaluation import Answer, Question
from kitchen.formatting import PLOTLY_MIME, visible_text
from kitchen.inspection.chat import _top_tokens, chat
from kitchen.inspection.lr_finder import LRRangeTest, lr_find
from kitchen.inspection.profile import Profile
from kitchen.inspection.rows import show_batch, show_results, top_losses
from kitchen.ports.registry import create_adapter
from kitchen.rendering.base import to_datum
from kitchen.rendering.registry import get_renderer
from kitchen.reports.build import show_settings, show_timeline
from kitchen.reports.compare import RunSummary, compare
from kitchen.reports.runs_table import RunRow, _read_run_row, _select_runs
from kitchen.reports.scores import Score, scores_table
from kitchen.session.kitchen import Kitchen
from kitchen.store.index import RunIndex
from kitchen.store.log import EventLog
from kitchen.store.run import Run
from kitchen.telemetry import event
from kitchen.train.preference import Pair
from kitchen.types import (
    AdamParams,
    Completion,
    Cost,
    Message,
    MissingCapability,
    SamplingParams,
    Trajectory,
    Transition,
)
from kitchen.workflows.sft import SftConfig

OURS = {  # every tag that a view may make
    "div", "small", "b", "br", "span", "table", "thead", "tbody", "tr", "th", "td", "code", "details", "summary", "mark",
    "img", "svg", "path", "text", "circle", "rect", "title",
}  # fmt: skip
ATTRIBUTES = {
    "class", "style", "title", "src", "alt", "viewbox",
    "width", "height", "role", "aria-label", "xmlns", "font-family", "font-size", "d",
    "fill", "stroke", "stroke-width", "stroke-opacity", "stroke-linejoin", "stroke-dasharray", "cx", "cy", "r", "x", "y", "rx",
    "text-anchor", "transform",
}  # fmt: skip


def markup(shown):
    """Everything a page would show of a view: HTML, still pictures, the labels of live ones."""
    if hasattr(shown, "_repr_html_"):
        return [shown._repr_html_()]
    bundle = shown._repr_mimebundle_()
    return [bundle["image/svg+xml"], *plotly_words(bundle[PLOTLY_MIME])]


def plotly_words(value):
    """All strings of a plotly figure that are shown; it renders a few HTML tags in them."""
    if isinstance(value, dict):
        skipped = ("template", "bdata", "color", "family", "dtype")
        return [word for key, inner in value.items() if key not in skipped for word in plotly_words(inner)]
    if isinstance(value, list):
        return [word for inner in value for word in plotly_words(inner)]
    return [value] if isinstance(value, str) else []


def check_harmless(shown):
    """No foreign tag or attribute, balanced markup, nothing that steers, in HTML and in text."""
    for text in markup(shown):
        page = Page(text)
        assert page.tags <= OURS and not page.unclosed
        for name, value in page.attributes:
            assert name in ATTRIBUTES, f"attribute {name}={value}"
            assert name != "src" or value.startswith("data:image/svg+xml;base64,"), "images are our own drawings"
            assert not any(map(steers, value or "")), f"{name} steers: {value!r}"
        assert not any(map(steers, text)), [letter for letter in text if steers(letter)]
    assert not any(map(steers, repr(shown))), [letter for letter in repr(shown) if steers(letter)]


@pytest.fixture(scope="module")
def service():
    return create_adapter("service", "toy")


@pytest.fixture(scope="module")
def tokenizer(service):
    return service.get_tokenizer("toy")


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return get_renderer("auto", tokenizer)


@pytest.fixture
def training(service):
    return service.create_training_client("toy", None, 0)


@pytest.fixture(scope="module")
def sums(renderer):
    pairs = [(f"{left}+{right}=", str(left + right)) for left in range(9) for right in range(9)]
    talks = ([Message("user", asked), Message("assistant", said)] for asked, said in pairs)
    return [to_datum(renderer, talk, origin=f"sums.jsonl, row {row}") for row, talk in enumerate(talks, start=1)]


# -- text of others ---------------------------------------------------------------------------------


def test_there_are_enough_injection_strings():
    assert len(set(INJECTIONS)) >= 30


@pytest.mark.parametrize("bad", INJECTIONS)
def test_views_of_data_and_models_show_text_as_text(bad, service, training, tokenizer, renderer):
    question = Question(bad, (1,), bad)
    right, wrong = Answer(question, bad, 1.0, "stop"), Answer(question, f"x{bad}y", 0.0, "stop")
    datum = to_datum(renderer, [Message("user", bad), Message("assistant", bad)], origin=bad)
    tokens = tuple(tokenizer.encode(bad))
    said = Completion(tokens, (-1.0,) * len(tokens), "stop")
    episode = Trajectory((Transition(tokens, said, metrics={bad: 1.0}),), metadata={bad: bad})
    talking = chat(training.create_sampling_client(), renderer, bad, SamplingParams(max_tokens=4)).talk(bad)
    talking.exchanges[0] = replace(
        talking.exchanges[0],
        answer=Message(
            "assistant", bad, reasoning_content=bad, tool_calls=({"function": {"name": bad, "arguments": bad}},)
        ),
        completion=said,
    )
    views = [
        show_results([wrong], [right]),
        show_results([right], [wrong]),
        show_batch([datum, Pair(datum, datum)], tokenizer, training, "loss"),
        show_datum(datum, tokenizer),
        show_datum(datum, tokenizer, np.linspace(-1, 1, len(datum)), bad),
        show_trajectory(episode, tokenizer),
        show_trajectory(episode, tokenizer, -0.5),
        show_config(SftConfig(backend="toy", dataset=bad, columns={bad: bad})),
        top_losses(training, [datum], tokenizer),
        talking,
        talking.tokens(),
        scores_table({bad: [Score(bad, bad, 1.0, 2.0, note=bad)], f"{bad}!": [Score(bad, bad, 1.0, 3.0)]}, bad),
        Profile(0.1, (TimeShare(bad, "port", 1, 0.1, 0.1),), (Cost(bad, 1, 0.1),), bad),
    ]
    for shown in views:
        check_harmless(shown)
    assert "mathjax_ignore" in talking._repr_html_(), "formula renderers keep out"


COMMANDS = {
    "\\textbackslash{}": "\\", "\\textasciitilde{}": "~", "\\textasciicircum{}": "^", "\\textless{}": "<", "\\textgreater{}": ">",
    "\\textbar{}": "|", "{\\char34}": '"', "{[}": "[", "{]}": "]", "{*}": "*", "{}": "",
    **{f"\\{letter}": letter for letter in "_&%$#{}"},
}  # fmt: skip


def typeset(text):
    """What LaTeX would set, read letter by letter; anything that is more than text is refused."""
    found = ""
    while text:
        command = next((one for one in COMMANDS if text.startswith(one)), None)
        if command is None:
            assert text[0] not in '\\{}_&%$#^~[]*|<>"\n', f"{text[:20]!r} is not only text"
            assert text[:2] not in ("--", "``", "''", "?`", "!`", ",,"), f"{text[:2]!r} melts into another letter"
        found += text[0] if command is None else COMMANDS[command]
        text = text[len(command or text[0]) :]
    return found


@pytest.mark.parametrize("bad", INJECTIONS)
def test_tables_for_papers_show_text_as_text(bad):
    plain = visible_text(bad).replace("\n", " ").replace("\t", " ")
    table = scores_table({"a": [Score(bad, "share", 0.5, 0.75, note=bad)]}, bad)
    lines = table.to_latex().splitlines()
    (row,) = [line.strip() for line in lines if "75.0" in line]
    cells = re.split(r"(?<!\\) & ", row.removesuffix(r" \\"))
    assert len(cells) == 5 and [typeset(cell) for cell in (cells[0], cells[4])] == [plain, plain]
    assert typeset(lines[2].strip().removeprefix(r"\caption{")[:-1]) == plain and len(lines) == 11
    more = ["table", "url", "strikethrough", "footnotes", "task_lists", "math", "mark"]
    readers = [
        mistune.create_markdown(escape=False, plugins=more),
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).render,
    ]
    for read in readers:
        page = Page(read(table.to_markdown()))
        assert page.tags <= {"p", "table", "thead", "tbody", "tr", "th", "td"} and not page.unclosed, page.tags
        assert {name for name, _ in page.attributes} <= {"style"}
        assert " ".join(page.words.split()).count(" ".join(plain.split())) >= 3, "caption, measure and note"


@pytest.fixture
def hostile_runs(tmp_path):
    """Runs whose recipe, settings, splits, stages and messages are injection strings, and a fork of each."""
    runs = []
    for place, text in enumerate(INJECTIONS):
        bad = text
        spec = ExperimentSpec(recipe=bad, config={"dataset": bad, bad: place}, adapters={bad: bad})
        for name, origin in ((f"run-{place}", None), (f"run-{place}-fork", {"run": f"run-{place}", "step": 1})):
            run = Run.create(spec.replace(parent=origin), tmp_path / name)
            run.log.append(event("run.start", recipe=bad, run_id=name))
            run.log.append(event("port.call", port=bad, adapter=bad, verb=bad, status=bad, seconds=0.01))
            for step in (1, 2):
                run.log.append(event("train.step", step, loss=1.0 / step))
            run.log.append(event("config.edit", setting=bad, before=bad, after=bad, position=[]))
            run.log.append(event("train.evaluate", 2, split=bad, loss=0.5))
            run.log.append(event("evaluate.answers", label=bad, split=bad, metric=bad, accuracy=0.5, count=2))
            run.log.append(event("stage.error", stage=bad, error=bad, seconds=0.02))
            run.log.append(event("run.stop", status=bad, reason=bad, seconds=0.1))
            run.close()
            runs.append(run)
    return runs


def test_views_of_runs_show_text_as_text(hostile_runs, tmp_path):
    for run, fork in zip(hostile_runs[::2], hostile_runs[1::2], strict=True):
        check_harmless(show_timeline(run))
        both = compare([fork])
        assert len(both.summaries) == 2
        check_harmless(both)
        ElementTree.fromstring(both.chart.picture.svg)
        for words in plotly_words(json.loads(both.chart.picture.figure.to_json())):
            assert Page(words).tags <= OURS and not any(map(steers, words))
    check_harmless(compare(hostile_runs))
    index = RunIndex(tmp_path)
    index.rebuild()
    check_harmless(_select_runs(index, count=200))
    check_harmless(_select_runs(index, text=INJECTIONS[0]))


def test_run_names_are_text_too(tmp_path):
    run = Run.create(ExperimentSpec(recipe="sft"), tmp_path / "<img src=x onerror=alert(1)>\u202e")
    run.log.append(event("train.step", 1, loss=1.0))
    check_harmless(compare([run, run]))
    RunIndex(tmp_path).put(run)
    check_harmless(_select_runs(RunIndex(tmp_path)))


# -- the rows with the highest loss -------------------------------------------------------------------


def test_top_losses_agree_with_one_forward_pass_per_row(training, sums, tokenizer):
    weighted = [datum.replace(weights=datum.weights * (1 + place % 3)) for place, datum in enumerate(sums)]
    digest = training.digest()
    found = top_losses(training, weighted, tokenizer, count=81, batch_size=7)
    assert training.digest() == digest, "nothing was trained"
    for row in found.rows:
        alone = training.forward([row.datum], "cross_entropy").result()
        assert row.loss == pytest.approx(alone.loss_sum / row.datum.weights.sum(), rel=1e-5)
        assert np.isnan(row.losses).sum() == (row.datum.weights == 0).sum()
    losses = [row.loss for row in found.rows]
    assert losses == sorted(losses, reverse=True) and len(losses) == 81
    whole = training.forward(weighted, "cross_entropy").result().loss_sum / sum(
        datum.weights.sum() for datum in weighted
    )
    assert found.mean == pytest.approx(whole, rel=1e-5)


def test_a_loss_that_is_no_number_stands_first(training, sums, tokenizer):
    rows = top_losses(training, sums[:5], tokenizer)
    spoilt = [replace(rows.rows[0], loss=math.nan), *rows.rows[1:]]
    shown = replace(rows, rows=tuple(spoilt))
    assert "nan" in repr(shown) and "nan" in shown._repr_html_()


def test_long_rows_are_cut_around_their_hardest_token(training, renderer, tokenizer):
    talk = [Message("user", "x" * 5000), Message("assistant", "y" * 3000)]
    shown = top_losses(training, [to_datum(renderer, talk)] * 8, tokenizer)
    assert len(shown._repr_html_()) < 500_000 and "tokens are not shown" in repr(shown)


# -- the learning-rate range test -----------------------------------------------------------------------


def test_the_steepest_rate_is_found_on_a_known_curve():
    rates = np.geomspace(1e-7, 1, 141)
    for middle in (-5.0, -4.0, -3.0, -2.0):
        exact = 3 - 2 / (1 + np.exp(-5 * (np.log10(rates) - middle)))
        noisy = exact + np.random.default_rng(0).normal(0, 0.02, len(rates))
        for losses in (exact, noisy):
            assert math.log10(LRRangeTest(rates, losses, "").steepest) == pytest.approx(middle, abs=0.2)


def test_a_loss_that_only_scatters_suggests_nothing():
    rates = np.geomspace(1e-7, 1, 100)
    suggested = [
        LRRangeTest(rates, np.random.default_rng(seed).normal(2, 0.3, 100), "").suggestion for seed in range(40)
    ]
    assert suggested.count(None) >= 36
    rising = LRRangeTest(rates, np.linspace(1, 3, 100), "")
    assert rising.suggestion is None and "nothing to suggest" in repr(rising) and not rising._marks


@pytest.mark.parametrize("losses", [[math.nan], [2.0, math.nan], [2.0], [2.0] * 30])
def test_a_test_that_breaks_off_at_once_is_shown_all_the_same(losses):
    shown = LRRangeTest(np.geomspace(1e-6, 1, 30)[: len(losses)], np.array(losses), "stopped")
    still = shown._repr_mimebundle_()["image/svg+xml"]
    ElementTree.fromstring(still)
    assert "nan" not in still and "nothing to suggest" in repr(shown)


def test_lr_find_stops_when_training_diverges_and_leaves_others_alone(service, training, sums):
    digest, opened = training.digest(), []

    def open_client():
        opened.append(service.create_training_client("toy", None, 0))
        return opened[-1]

    found = lr_find(
        open_client, [sums[:40], sums[40:]], lowest=1e-5, highest=1e4, steps=80, adam=AdamParams(eps=1e-8)
    )
    assert (
        len(opened) == 1 and training.digest() == digest and "diverged" in found.end_reason and len(found.rates) < 80
    )
    assert np.allclose(np.diff(np.log(found.rates)), np.log(1e9) / 79), "the same factor each step"
    assert 1e-4 < found.tenth < 0.1 and 1e-4 < found.steepest < 0.3
    bundle = found._repr_mimebundle_()
    assert (
        set(bundle) == {PLOTLY_MIME, "image/svg+xml", "text/plain"}
        and number_in(bundle["text/plain"]) == found.suggestion
    )
    check_harmless(found)


def number_in(text):
    return float(re.search(r"suggestion: ([0-9.e-]+),", text).group(1))


def test_the_suggested_rate_learns_far_better_than_a_thousandth_of_it(service, sums):
    suggestion = lr_find(lambda: service.create_training_client("toy", None, 0), [sums], steps=80).suggestion

    def loss_after(rate):
        training = service.create_training_client("toy", None, 0)
        for _ in range(30):
            training.forward_backward(sums, "cross_entropy").result()
            training.optim_step(AdamParams(rate)).result()
        return training.forward(sums, "cross_entropy").result().loss_sum

    assert loss_after(suggestion) < 0.7 * loss_after(suggestion / 1000)


# -- time, and runs -----------------------------------------------------------------------------------


def test_a_timeline_of_a_hundred_thousand_calls_stays_small(tmp_path):
    run = Run.create(ExperimentSpec(recipe="sft"), tmp_path / "long")
    log = [event("stage.stop", stage=name, seconds=100.0) for name in ("load", "train", "evaluate")]
    log = [replace(item, time=100.0 * place) for place, item in enumerate(log, start=1)]
    for call in range(100_000):
        about = {
            "port": "training",
            "adapter": "toy",
            "verb": f"verb-{call % 12}",
            "status": "ok" if call % 50 else "error",
        }
        log.append(replace(event("port.call", **about, seconds=0.001), time=100 + 0.001 * call))
    run.log.active_events = log
    began = time.thread_time()  # of this thread alone, whatever else the machine does
    shown = show_timeline(run)
    seconds = time.thread_time() - began
    bars = sum(len(trace.x) for trace in shown.figure.data)
    assert bars <= 1050 and len(shown._repr_mimebundle_()["image/svg+xml"]) < 300_000 and seconds < 10
    assert "verb-3" in repr(shown) and "train" in repr(shown)


def test_shares_of_time_agree_with_counting_milliseconds():
    rng = np.random.default_rng(0)
    ports = [
        Span(f"p.{place % 3}", "port", float(rng.integers(0, 900)), float(rng.integers(1, 100)))
        for place in range(30)
    ]
    found = [Span("a", "stage", 0, 400), Span("b", "stage", 600, 400), *ports]
    busy = np.zeros(1000, dtype=bool)
    covered = {row: busy.copy() for row in ("a", "b", "p.0", "p.1", "p.2")}
    for span in found:
        covered[span.row][int(span.start) : int(span.start + span.seconds)] = True
    table = {one.row: one for one in time_shares(found)}
    for row, marks in covered.items():
        assert table[row].seconds + table[row].waiting == marks.sum(), "at work or waiting, while it was open"
        assert table[row].share == pytest.approx(table[row].seconds / 800)
    calls = covered["p.0"] | covered["p.1"] | covered["p.2"]
    anything = calls | covered["a"] | covered["b"]
    assert table["outside ports"].seconds == (anything & ~calls).sum()


def test_a_real_run_and_its_fork_are_told_apart(runs):
    small = {"batch_size": 8, "graded": 4, "held_out": 8, "max_tokens": 8}
    with Kitchen("sft", backend="toy", dataset="builtin:sort[:64]", epochs=2, **small) as k:
        k.run(until=6)
        with k.fork(learning_rate=3e-3) as other:
            other.run()
            k.run()
            both = compare(other)
            assert [story.name for story in both.summaries] == [k.run_record.run_id, other.run_record.run_id], (
                "the parent is found beside it"
            )
            assert "learning_rate" in [row[0] for row in both.differing_settings] or "→ 0.003 from step 7" in repr(
                both
            )
            assert both.summaries[1].fork_step == 6 and both.chart.marks[0].x == 6
            lines = [curve for curve in both.chart.curves if curve.width > 2]
            assert lines[0].x[0] == 1 and lines[1].x[0] == 6
            table = _select_runs(RunIndex(runs))
            assert {row.run_id for row in table.rows} == {k.run_record.run_id, other.run_record.run_id}
            assert {row.steps for row in table.rows} == {k.driver.last_step.step}
            assert len(_select_runs(RunIndex(runs), recipe="sft")) == 2
            assert table[k.run_record.run_id].run_id == k.run_record.run_id
            for shown in (both, table, show_timeline(k.run_record), show_config(k.config)):
                check_harmless(shown)


def test_tables_show_the_settings_in_force(runs):
    small = {"batch_size": 8, "graded": 4, "held_out": 8, "max_tokens": 8}
    with Kitchen("sft", backend="toy", dataset="builtin:sort[:64]", epochs=2, **small) as k:
        k.run(until=3)
        k.set(learning_rate=0.25)
        k.step()
        kept = k.run_record.log.events[-1].sequence + 1
        with k.fork(learning_rate=0.5) as other:
            other.step()
            about = {row.run_id: row.about for row in _select_runs(RunIndex(runs)).rows}
            assert about[k.run_record.run_id].endswith(", 0.25, learning_rate 0.01 → 0.25 at step 3"), about
            assert about[other.run_record.run_id].endswith("learning_rate 0.25 → 0.5 at step 16"), about
            assert other.run_record.settings["learning_rate"] == other.config.learning_rate == 0.5
            assert len(_select_runs(RunIndex(runs), text='"learning_rate": 0.5')) == 1, "search sees them as well"
            assert "0.25" in repr(show_settings(k.run_record)) and "0.5" in repr(show_settings(other.run_record))
        k.set(learning_rate=0.125)
        k.step()
        k.run_record.log.append(event("run.rewind", 4, reason="rewind", keep=kept))
        assert k.run_record.settings["learning_rate"] == 0.25, "an edit that a rewind took back is not in force"
        row = next(row for row in _select_runs(RunIndex(runs)).rows if row.run_id == k.run_record.run_id)
        assert row.about.endswith(", 0.25, learning_rate 0.01 → 0.25 at step 3")


def test_a_glance_sees_what_a_whole_reading_sees(tmp_path):
    run = Run.create(ExperimentSpec(recipe="sft"), tmp_path / "run")
    for step in range(1, 301):
        run.log.append(event("train.step", step, loss=float(step)))
    run.log.append(event("run.rewind", 100, reason="rewind", keep=100))
    for step in range(101, 151):
        run.log.append(event("train.step", step, loss=1000.0 + step))
    index = RunIndex(tmp_path)
    index.put(run)
    found = _read_run_row(index.rows()[0], points=1000)
    standing = [item["loss"] for item in EventLog(run.log.path).active_events if item.name == "train.step"]
    assert isinstance(found, RunRow) and found.losses.tolist() == standing and found.steps == 150
    few = _read_run_row(index.rows()[0], points=10)
    assert len(few.losses) == 10 and few.losses[-1] == standing[-1] and few.losses[0] == standing[0]


def test_a_run_that_is_gone_or_damaged_does_not_hide_the_others(tmp_path):
    for name in ("kept", "gone"):
        run = Run.create(ExperimentSpec(recipe="sft"), tmp_path / name)
        run.log.append(event("train.step", 1, loss=math.nan))
        RunIndex(tmp_path).put(run)
        run.close()
    (tmp_path / "gone" / "events.jsonl").unlink()
    with (tmp_path / "kept" / "events.jsonl").open("a") as file:
        file.write('{"sequence": 7, "torn')
    table = _select_runs(RunIndex(tmp_path))
    assert {row.run_id: row.steps for row in table.rows} == {"kept": 1, "gone": 0} and "×" in repr(table)


def test_comparing_shows_every_setting_that_differs_and_no_other(tmp_path):
    configs = [{"a": 1, "b": [1], "same": "x"}, {"a": 2, "b": [1], "same": "x", "new": None}]
    runs = [
        Run.create(ExperimentSpec(recipe="sft", config=one), tmp_path / str(place))
        for place, one in enumerate(configs)
    ]
    assert compare(runs).differing_settings == [["a", "1", "2"], ["new", "—", "null"]]
    assert RunSummary.from_run(runs[0]).seconds == 0 and "nothing to show yet" in compare(runs).chart.picture.svg


# -- talking --------------------------------------------------------------------------------------------


def test_a_failed_question_leaves_the_conversation_as_it_was(training, renderer):
    talking = chat(training.create_sampling_client(), renderer, sampling_params=SamplingParams(max_tokens=3)).talk(
        "a"
    )
    shown = repr(talking)
    with pytest.raises(ValueError, match="surrogate"):
        talking.talk("\ud800")
    assert repr(talking) == shown
    talking.exchanges[0] = replace(talking.exchanges[0], question="\ud800")
    with pytest.raises(ValueError, match="surrogate"):
        talking.regenerate()
    assert len(talking.exchanges) == 1


def test_tokens_agree_with_the_backends_own_numbers(training, renderer):
    sampler = training.create_sampling_client()
    talking = chat(sampler, renderer, sampling_params=SamplingParams(max_tokens=9, temperature=1.0, seed=3)).talk(
        "hello"
    )
    one = talking.exchanges[0]
    likely = _top_tokens(talking.sampler, one, 259, talking.renderer.tokenizer)
    for place, token in enumerate(one.completion.tokens):
        text = renderer.tokenizer.decode([token], control=True)
        shares = [share for name, share in likely[place] if name == text]
        assert any(share == pytest.approx(math.exp(one.completion.logprobs[place]), rel=1e-4) for share in shares)
        assert sum(share for _, share in likely[place]) == pytest.approx(1, rel=1e-4)


def test_a_backend_without_topk_shows_the_rest(training, renderer):
    class Bare:
        """A sampler that cannot say what else was likely."""

        def __init__(self, inner):
            self.sample = inner.sample

        def compute_topk(self, prompt, count):
            raise MissingCapability("no topk")

    talking = chat(
        Bare(training.create_sampling_client()), renderer, sampling_params=SamplingParams(max_tokens=3)
    ).talk("a")
    assert _top_tokens(talking.sampler, talking.exchanges[0], 2, talking.renderer.tokenizer) == [] and "%" in repr(talking.tokens())
