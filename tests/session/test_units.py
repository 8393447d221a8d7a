"""A loss is never shown without its unit, whatever is trained and wherever it is shown: in nats a token, in nats a pair, in rewards."""

import io
import re

import pytest
from small_settings import SMALL_SETTINGS

import kitchen
from kitchen.diagnostics import Diagnostics
from kitchen.display.progress import _PlainDisplay
from kitchen.formatting import align_columns
from kitchen.reports.build import show_scores
from kitchen.session.kitchen import Kitchen
from kitchen.widgets.panels import RunMonitor, search_events, status_line

UNITS = {  # what is trained -> recipe, settings, unit of its loss by the papers
    "cross-entropy": ("sft", {}, "nats/token"),
    "dpo": ("dpo", {}, "nats/pair"),
    "ipo": ("dpo", {"preference_loss": "ipo_sum"}, "nats²/pair"),
    "kto": ("dpo", {"preference_loss": "kto"}, "1/pair"),
    "Bradley–Terry": ("reward_model", {}, "nats/pair"),
    "rewards": ("rl_math", {"env": "task:parity", "objective": "importance_sampling"}, "reward"),
    "distilled": ("distill_off_policy", {}, "nats/token"),
}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))


def shown_texts(k, stepped):
    """Every text in which a session shows a loss, by where it stands."""
    shown, monitor = io.StringIO(), RunMonitor(k.log)
    display = _PlainDisplay(shown, every=0)
    for item in k.log:
        display.show(item)
    return {
        "card": repr(k), "card, HTML": re.sub(r"<[^>]*>", "", k._repr_html_()), "progress": shown.getvalue(), "k.step": repr(stepped),
        "dashboard": status_line(monitor, "running"), "events": align_columns(search_events(k.log, "train.step", 3)),
        "runs": repr(kitchen.runs()), "scores": repr(show_scores(k.run_record)),
    }  # fmt: skip


@pytest.mark.parametrize("trained", UNITS)
def test_every_loss_has_the_unit_of_its_training(trained):
    recipe, settings, unit = UNITS[trained]
    with Kitchen(recipe, backend="toy", **{**SMALL_SETTINGS[recipe], **settings}) as k:
        stepped = k.step("batch")
        stepped = k.step("batch")
        assert stepped == next(item for item in k.log if item.name == "train.step" and item.step == 2), "shown otherwise, and the same event"
        for place, text in shown_texts(k, stepped).items():
            losses = re.findall(r"(?<!held-out )\bloss[ =]([-\d.,e]+ ?[^\s,]*)", text)
            assert losses or place in ("runs", "scores"), place  # those have a column of their own
            # a held-out loss is always that of the tokens
            assert {one.split()[1] if " " in one else "" for one in losses} <= {unit, "nats/token"}, (place, losses)
        assert f" {unit}" in repr(kitchen.runs()) and unit in repr(stepped)


def test_sentences_about_a_loss_have_its_unit():
    from kitchen.telemetry import event

    for unit in ("nats/token", "nats/pair", "reward"):
        begun = event("train.start", 0, loss="some", unit=unit, steps=200)
        rising = [event("train.step", step, loss=1.0 + step / 50) for step in range(200)]
        flat = [event("train.step", step, loss=2.3) for step in range(150)]
        for story in (rising, flat):
            (said,) = Diagnostics([begun, *story]).warning_texts()
            assert re.search(rf"\d {re.escape(unit)}\b", said)
    held_out = [event("train.evaluate", step, split="test", loss=loss) for step, loss in ((1, 1.0), (2, 3.0))]
    (said,) = Diagnostics([begun, event("train.step", 1, loss=1.0), *held_out]).warning_texts()
    assert "3 nats/token, above its best of 1 nats/token" in said


def test_a_dataset_is_checked_as_the_session_would_read_it(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "1 + 1?", "a": "2", "documents": "of sums"}\n' * 3, "utf-8")
    asked = {"backend": "toy", "columns": {"question": "q", "answer": "a"}, "on_unused": "count", "max_length": 32}
    k = Kitchen("sft", **asked, dataset=f"file:{rows}", batch_size=1)
    found = k.check()
    assert found.ok and found.limit.tokens == 32 and found.train.counts.duplicates == 2 and found.train.read == 3
    assert repr(found) == repr(kitchen.check(f"file:{rows}", **asked))
    assert "<table" in found._repr_html_() and k.status == "new" and not list(tmp_path.glob("runs/*/events.jsonl"))
    with pytest.raises(ValueError, match="trains on no dataset"):
        Kitchen("rl_math", backend="toy").check()
    with pytest.raises(ValueError, match="names no dataset"):
        Kitchen("feedback_loop", backend="toy").check()
