"""The session and the workflow it steps through, on the toy backend."""

import signal
import threading

import numpy as np
import pytest

import kitchen
from kitchen.session.kitchen import Kitchen
from kitchen.store.index import RunIndex
from kitchen.types import InvalidValue, KitchenError

SMALL = {
    "backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 2, "batch_size": 16,
    "held_out": 8, "graded": 4, "max_tokens": 8,
}  # fmt: skip


def losses(k):
    return [item["loss"] for item in k.log if item.name == "train.step"]


def test_however_one_steps_the_numbers_are_the_same():
    whole = Kitchen("sft", **SMALL).run()
    by_stage = Kitchen("sft", **SMALL)
    while by_stage.step():
        pass
    by_batch = Kitchen("sft", **SMALL)
    while by_batch.step("batch"):
        pass
    assert losses(whole) == losses(by_stage) == losses(by_batch) and len(losses(whole)) == 8
    exported = [k.run_record.artifacts()[0].sha256 for k in (whole, by_stage, by_batch)]
    assert len(set(exported)) == 1, "same seed, same CPU: same bits"
    assert losses(Kitchen("sft", **{**SMALL, "seed": 1}).run()) != losses(whole)


def test_accumulation_changes_memory_not_numbers():
    whole = losses(Kitchen("sft", **SMALL).run())
    parts = losses(Kitchen("sft", **SMALL, gradient_accumulation_steps=4).run())
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_looking_disturbs_nothing():
    looked_at = Kitchen("sft", **SMALL).run(until="batch")
    for _ in range(3):
        assert (
            repr(looked_at) and looked_at._repr_html_() and looked_at.peek("batch") and len(looked_at.log)
        )
        looked_at.step("batch")
    assert losses(looked_at.run()) == losses(Kitchen("sft", **SMALL).run())


def test_stepping_by_epoch_ends_on_the_epoch():
    k = Kitchen("sft", **SMALL)
    assert k.step("epoch").step == 4 and k.step("epoch").step == 8
    assert k.step("epoch") is None and k.status == "completed"


def test_ctrl_c_ends_on_a_step_boundary_and_the_session_goes_on():
    before = set(threading.enumerate())
    k = Kitchen("sft", **SMALL)
    k.driver.listeners.append(
        lambda item: item.name == "train.step" and item.step == 3 and signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt, match="step boundary"):
        k.run()
    assert k.log[-1].step == 3 and k.status == "running"
    k.run()
    assert k.status == "completed" and losses(k) == losses(Kitchen("sft", **SMALL).run())
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)


def test_a_failed_run_is_marked_and_refuses_to_go_on():
    k = Kitchen("sft", **SMALL, learning_rate=1e308, grad_clip_norm=0.0)
    with pytest.raises(KitchenError, match="lower learning_rate"):
        k.run()
    with pytest.raises(InvalidValue, match="this run failed"):
        k.step()
    assert k.status == "failed" and k.stage_status["train"] == "failed"
    assert RunIndex().rows()[0]["status"] == "failed"


def test_closing_half_way_marks_the_run_stopped():
    with Kitchen("sft", **SMALL) as k:
        k.step("batch")
    assert k.status == "stopped" and RunIndex().rows()[0]["status"] == "stopped"


def test_results_and_lineage_are_there():
    k = Kitchen("sft", **SMALL).run()
    assert {made.name for made in k.run_record.artifacts()} == {
        "adapter",
        "results.json",
    } and k.run_record.verify() == []
    assert set(k.run_record.spec.datasets) == {"builtin:sort[:64]#train", "builtin:sort[:64]#test"}
    assert list(k.metrics.step) == sorted(k.metrics.step) and k.metrics.name.value_counts()["train.step"] == 8
    again = Kitchen("sft", **SMALL).run()
    assert again.state["version"] == k.state["version"] + 1


def test_the_front_door():
    assert kitchen.Kitchen is Kitchen and "Kitchen" in dir(kitchen)
    with pytest.raises(AttributeError, match="Kichen"):
        print(kitchen.Kichen)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"messages": [{"role": "user"'], "row 1"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "row 1"),
        (
            [{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            "did you mean 'user'",
        ),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}], "row 1"),
        ([], "empty|no rows"),
        ([{"colour": "red"}], "row 1"),
    ],
)
def test_a_bad_row_is_named(chats, rows, message):
    path = chats(rows)
    with pytest.raises(KitchenError, match=message) as caught:
        Kitchen("sft", **{**SMALL, "dataset": f"file:{path}"}).run()
    assert path.name in str(caught.value)


def test_columns_may_have_other_names_and_misspelt_ones_are_named(chats):
    path = chats([{"q": f"{n}?", "a": "yes"} for n in range(20)])
    settings = {**SMALL, "dataset": f"file:{path}", "batch_size": 8}
    assert (
        len(
            Kitchen("sft", **settings, columns={"question": "q", "answer": "a"})
            .run(until="load")
            .peek("conversations")
            .train
        )
        == 18
    )
    with pytest.raises(KitchenError, match="unknown column 'qq'; did you mean 'q'"):
        Kitchen("sft", **settings, columns={"question": "qq", "answer": "a"}).run()


def test_a_batch_larger_than_the_data_is_refused_before_training(chats):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    k = Kitchen("sft", **{**SMALL, "dataset": f"file:{chats([row] * 10)}"})
    with pytest.raises(KitchenError, match="use at most 9"):
        k.run()
    assert k.stage_status["open"] == "waiting"


def test_names_of_the_last_version_still_work_and_say_what_they_are_called_now():
    k = Kitchen("sft", **SMALL).run(until=2)
    today = {
        "values": k.driver.values, "position": k.stage_status, "last_step": k.driver.last_step, "run_id": k.run_record.run_id,
        "listeners": k.driver.listeners, "runner": k.driver.runner, "recipe": k.driver.recipe, "run_opened": k.run_record,
    }  # fmt: skip
    for name, value in today.items():
        with pytest.warns(FutureWarning, match=rf"k\.{name} is k\.\w+(\.\w+)? now"):
            assert getattr(k, name) == value
    with pytest.warns(FutureWarning, match="events_to_dataframe"):
        assert len(k.events) == len(k.log)
    with pytest.warns(FutureWarning, match=r"show_samples\(k\.log\)"):
        assert "k.sample()" in k.show_samples(2).text
    with pytest.warns(FutureWarning):
        assert k.validate() is None
    with pytest.warns(FutureWarning, match=r"k\.close now"):
        k.stop()
    assert k.status == "stopped" and not today.keys() & set(dir(k))


def test_a_name_that_a_session_never_had_is_refused_with_the_nearest():
    k = Kitchen("sft", **SMALL)
    with pytest.raises(AttributeError, match="did you mean 'metrics'"):
        k.metrisc  # noqa: B018
    assert not hasattr(k, "_repr_png_") and getattr(k, "nothing_of_the_kind", 7) == 7
