"""The dashboard without a browser: what stays when it is closed, what it says when something fails, what it does to the run."""

import gc
import threading
from collections import Counter

import numpy as np
import pytest
from injection_texts import INJECTIONS, Page, steers
from waiting import until

import kitchen
from kitchen.diagnostics import Diagnostics
from kitchen.display.figures import moving_average
from kitchen.display.svg import Picture
from kitchen.formatting import decimate
from kitchen.session.kitchen import Kitchen
from kitchen.telemetry import MemoryLog, event
from kitchen.widgets.dashboard import _GONE_STYLE, _OPEN_DASHBOARDS, _PAINTER, Dashboard, _SessionView
from kitchen.widgets.live_figure import _LINE_KINDS, Canvas, _axes_domains
from kitchen.widgets.panels import RunMonitor, _event_row, alarms_html, events_html, tree_html
from kitchen.widgets.samples import sample_events, sample_rounds
from kitchen.widgets.series import _MAX_POINTS, BOARDS, LOSS_SLOT, TrainingCurves, _DecimatedSeries
from kitchen.workflows.base import Splits

SMALL = {
    "backend": "toy",
    "dataset": "builtin:sort[:64]",
    "epochs": 4,
    "batch_size": 16,
    "graded": 4,
    "lora_dropout": 0.1,
}


@pytest.fixture
def k():
    """A session on the toy backend."""
    with Kitchen("sft", **SMALL) as session:
        yield session


def registered():
    """All widgets that are alive."""
    from ipywidgets.widgets import widget

    return set(widget._instances)


def kept_objects():
    """How many objects of each of the classes that a dashboard is made of are alive: counted, since bytes are the process's."""
    gc.collect()
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in map(type, gc.get_objects())
        if str(kind.__module__).split(".")[0] in ("kitchen", "ipywidgets", "plotly", "threading")
    )


# -- nothing stays ---------------------------------------------------------------------------------


def test_ten_dashboards_opened_and_closed_leave_nothing(k):
    k.run(until=3)
    with kitchen.dashboard(k, live=True):
        pass  # what is loaded once is loaded now
    threads, widgets, standing = set(threading.enumerate()), registered(), kept_objects()
    with kitchen.dashboard(k, live=True) as view:
        view.paint(whole=True)
        one = kept_objects() - standing
    for _ in range(10):
        with kitchen.dashboard(k, live=True) as view:
            view.paint(whole=True)
    del view
    assert (
        set(threading.enumerate()) <= threads
        and _PAINTER.thread is None
        and not _PAINTER.dashboards
        and not _OPEN_DASHBOARDS
    )
    assert registered() == widgets and not k.driver.listeners
    # a closed one may live on for a moment, in a thread that is about to end, or in the place of an error that was looked at
    more = {name: count for name, count in (kept_objects() - standing).items() if count >= 10 and count > 2 * one[name]}
    assert not more, f"ten dashboards left {more}"


def test_a_second_dashboard_takes_the_place_of_the_first(k):
    first = kitchen.dashboard(k, live=True)
    second = k.dashboard(live=True)
    assert first.closed and _OPEN_DASHBOARDS[id(k)] is second and len(k.driver.listeners) == 1
    second.close()
    second.close()
    assert "new" in repr(second), "a closed one still says how things stood"


def test_a_fork_gets_a_seat_and_leaves_it(k):
    k.run(until=4)
    with kitchen.dashboard(k, live=True) as view:
        other = k.fork(learning_rate=0.02)
        other.run(until=8)
        view.paint(whole=True)
        assert [seat.session for seat in view.session_views] == [
            k,
            other,
        ] and view.session_choice.layout.display is None
        assert list(view.curves.canvas._trace(1, 0, 0).x) == [4, 5, 6, 7, 8]
        view.select_session(1)
        view.session_view.command_queue.submit_command("pause")
        assert view.session_view.command_queue.wait_until_idle().last_message == "It stands already."
    assert not other.driver.listeners and id(other) not in _OPEN_DASHBOARDS
    other.close()


# -- the run is not disturbed ------------------------------------------------------------------------


def test_a_watched_run_ends_as_one_that_nobody_watches(k):
    with Kitchen("sft", **SMALL) as alone:
        end = alone.run().digest()
    with kitchen.dashboard(k, live=True) as view:
        view.answers_tab.set_interval(3)
        view.session_view.command_queue.submit_command("play")
        view.session_view.command_queue.wait_until_idle()
        k.wait()
    assert k.digest() == end and {item.step for item in k.log if item.name == "sample.answer"} == {
        3,
        6,
        9,
        12,
        15,
    }


def test_commands_of_a_dashboard_keep_the_run_exact(k):
    with Kitchen("sft", **SMALL) as alone:
        end = alone.run(until=5).set(learning_rate=2e-3).run().digest()
    with kitchen.dashboard(k, live=True) as view:
        wheel = view.session_view.command_queue
        k.run(until=7)
        wheel.submit_command("checkpoint")
        wheel.submit_command("rewind", step=5)
        wheel.submit_command("edit", learning_rate=2e-3)
        wheel.submit_command("play")
        wheel.wait_until_idle()
        k.wait()
        assert not wheel.failed, wheel.last_message
    assert k.digest() == end


def test_pause_reaches_a_run_at_full_speed(k):
    with kitchen.dashboard(k, live=True) as view:
        view.session_view.command_queue.submit_command("step", unit="stage")
        view.session_view.command_queue.wait_until_idle()
        k.wait()
        k.run(until="baseline")
        view.session_view.command_queue.submit_command("play")
        view.session_view.command_queue.submit_command("pause")
        view.session_view.command_queue.wait_until_idle()
        assert view.session_view.state in ("paused", "completed") and not k.driver.busy


# -- failures ----------------------------------------------------------------------------------------


def test_a_failed_run_is_said_and_can_be_played_again(k, monkeypatch):
    with kitchen.dashboard(k, live=True) as view:
        k.run(until=3)
        k.set(learning_rate=1e308, grad_clip_norm=0.0)
        view.session_view.command_queue.submit_command("play")
        view.session_view.command_queue.wait_until_idle()
        k.driver.thread.join()
        view.paint(whole=True)
        assert view.session_view.state == "failed" and "The run failed" in view.words.alarms.value
        view.session_view.command_queue.submit_command("rewind", step=2)
        view.session_view.command_queue.submit_command("edit", learning_rate=1e-3)
        view.session_view.command_queue.submit_command("play")
        view.session_view.command_queue.wait_until_idle()
        k.wait()
        assert k.status == "completed"


def test_a_view_that_cannot_be_painted_says_so_once(k, monkeypatch):
    view = kitchen.dashboard(k, live=True)
    monkeypatch.setattr(view.curves, "paint", lambda whole, selected: 1 / 0)
    until(lambda: view.error)
    assert (
        "ZeroDivisionError" in view.error
        and "k.dashboard()" in view.words.message_line.value
        and view not in _PAINTER.dashboards
    )
    view.close()
    assert _PAINTER.thread is None


def test_a_command_that_fails_does_not_stop_the_run(k):
    with kitchen.dashboard(k, live=True) as view:
        k.run(until=3)
        view.session_view.command_queue.submit_command("rewind", step=77)
        view.session_view.command_queue.submit_command("fork", lora_rank=3)
        view.session_view.command_queue.wait_until_idle()
        view.paint(whole=True)
        assert (
            view.session_view.command_queue.failed
            and "lora_rank" in view.words.message_line.value
            and k.driver.last_step.step == 3
        )


# -- what is drawn -------------------------------------------------------------------------------------


def test_a_trail_holds_the_extremes_of_every_stretch():
    rng = np.random.default_rng(0)
    values = rng.standard_cauchy(30_011)
    trail = _DecimatedSeries()
    for step, value in enumerate(values):
        trail.add(step, value)
    x, y = trail.points()
    assert len(x) <= _MAX_POINTS and (values[x.astype(int)] == y).all() and x[0] == 0 and x[-1] == 30_010
    for start in range(0, len(values), trail._stretch_length):
        part = values[start : start + trail._stretch_length]
        assert part.min() in y and part.max() in y
    assert y.min() == values.min() and y.max() == values.max()


def test_live_curves_are_those_of_the_report(k):
    k.run()
    phase = TrainingCurves(k.log)._current_phase
    steps = [item for item in k.log if item.name == "train.step"]
    losses = np.array([item["loss"] for item in steps])
    assert list(phase.slot_series[LOSS_SLOT].raw_series.points()[1]) == list(losses)
    assert list(phase.slot_series[LOSS_SLOT].smoothed_series.points()[1]) == list(moving_average(losses))
    held = [item["loss"] for item in k.log if item.name == "train.evaluate"]
    assert list(phase.slot_series[LOSS_SLOT].held_out.points()[1]) == held
    assert len(decimate(np.arange(16.0), losses)[0]) == 16


def test_a_rewind_is_told_anew(k):
    seat = _SessionView(k)
    k.run(until=6).rewind(step=4)
    seat.process_events()
    fresh = RunMonitor(k.log)
    assert (
        seat.monitor.curves._current_phase.step == fresh.curves._current_phase.step == 4
        and seat.monitor.stage_status == fresh.stage_status
    )
    seat.stop_listening()


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_axes_of_a_board_do_not_touch(board):
    found = _axes_domains(board)
    for place, one in enumerate(found):
        for other in found[place + 1 :]:
            apart = (
                one.x[1] <= other.x[0]
                or other.x[1] <= one.x[0]
                or one.y[1] <= other.y[0]
                or other.y[1] <= one.y[0]
            )
            assert apart, f"{one} and {other}"


def test_every_trace_of_a_board_stands_on_its_own_axes():
    canvas = Canvas(["one", "two"], BOARDS["policy"])
    for run, slot, line in canvas._trace_keys():
        trace = canvas._trace(run, slot, line)
        number = "" if slot == 0 else str(slot + 1)
        assert (trace.xaxis, trace.yaxis) == (f"x{number}", f"y{number}")
    assert len(canvas.traces) == 2 * canvas._slot_count * len(_LINE_KINDS)


def test_several_phases_are_offered_and_the_last_is_shown():
    with Kitchen("rlhf", backend="toy", **_small_rlhf()) as k:
        k.run()
        with kitchen.dashboard(k, live=True) as view:
            view.paint(whole=True)
            assert (
                len(view.curves.phase.options) == 4
                and view.curves.board.value == "policy"
                and view.curves.phase.layout.display is None
            )
            view.curves.phase.value = 1
            view.paint(whole=True)
            assert view.curves.board.value == "pairs" and len(view.curves.canvas._trace(0, 0, 0).x)


def _small_rlhf():
    from small_settings import SMALL_SETTINGS

    return SMALL_SETTINGS["rlhf"]


# -- where nothing is live -------------------------------------------------------------------------------


def test_elsewhere_a_dashboard_is_a_picture(k, monkeypatch):
    shown = k.dashboard()
    assert isinstance(shown, Picture) and "new" in repr(shown) and not _PAINTER.dashboards
    k.run()
    bundle = k.dashboard()._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
    assert "completed" in bundle["text/plain"] and "learning rate" in bundle["image/svg+xml"]
    monkeypatch.setenv("KITCHEN_HEADLESS", "1")
    assert isinstance(kitchen.dashboard(k), Picture) and not k.driver.listeners


def test_a_dashboard_of_nothing_is_refused():
    for live in (True, False):
        with pytest.raises(ValueError, match="give at least one session"):
            kitchen.dashboard(live=live)


# -- text of others ----------------------------------------------------------------------------------------


def harmless(markup):
    """No script, no foreign tag, nothing that steers."""
    page = Page(markup)
    assert (
        page.tags <= {"div", "small", "b", "br", "span", "table", "tr", "th", "td", "mark"}
        and not page.unclosed
    )
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert not any(map(steers, markup))


@pytest.mark.parametrize("bad", INJECTIONS)
def test_text_of_others_stays_text(bad, k):
    from kitchen.evaluation import Answer, Question

    answer = Answer(Question(bad, (1,), bad), bad + "x", 0.0, bad)
    log = MemoryLog()
    for item in [event("train.alarm", 1, reason=bad, value=1.0, bound=0.5), *sample_events([answer], 1)]:
        log.append(item)
    harmless(sample_rounds(log.events)[0]._repr_html_())
    harmless(events_html([_event_row(item) for item in log.events]))
    harmless(alarms_html(Diagnostics(log.events).warning_texts()))
    harmless(tree_html(k.driver.recipe.workflow, {bad: "running"}))
    with Dashboard(k) as view:
        view.session_view.command_queue.last_message = bad
        view.session_view.monitor.diagnostics.alarms[bad] = bad
        view.session_view.monitor.answers = log.events[1:]
        view.paint(whole=True)
        view.answers_tab.paint()
        words = view.words
        for part in (
            words.head,
            words.progress_line,
            words.alarms,
            words.message_line,
            view.answers_tab.answers,
            words.tree,
        ):
            harmless(part.value.replace(_GONE_STYLE, ""))
    assert Splits([], []) and len(sample_rounds(log.events)) == 1
