"""Back, aside and on: whatever way a run takes, the same state is the same bits, and what went wrong is said."""

import asyncio
import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import LONGEST, until

from kitchen.engine.checkpoints import Snapshot, SnapshotFolder, object_names
from kitchen.engine.workflow import chain, stage
from kitchen.recipes.registry import get_recipe
from kitchen.recipes.reproduce import _RESULT_EVENTS, manifest, reproduce
from kitchen.session.kitchen import Kitchen
from kitchen.store.log import EventLog, LogFailed, RunBusy
from kitchen.store.objects import StateStore
from kitchen.store.run import Run
from kitchen.telemetry import event_content
from kitchen.train.sft import TrainingDiverged
from kitchen.types import DamagedData, InvalidValue, KitchenError, UnknownName
from kitchen.workflows.sft import supervised

pytestmark = pytest.mark.whole_run

SMALL = {
    "backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 2, "batch_size": 16, "held_out": 8, "graded": 4,
    "max_tokens": 8, "lora_dropout": 0.1, "gradient_accumulation_steps": 2,
}  # fmt: skip


def story(k):
    """The metric stream as it stands."""
    return [event_content(item) for item in k.log if item.name in _RESULT_EVENTS]


def ended(k):
    """What must be equal at the end: metrics, state, artifacts."""
    return story(k), k.digest(), [(made.name, made.sha256) for made in k.run_record.artifacts()]


@pytest.fixture
def straight(runs):
    """A run that goes straight to its end."""
    return ended(Kitchen("sft", **SMALL).run())


def threads():
    """Threads of sessions; those of torch clients of other tests linger for two seconds."""
    ours = ("kitchen-sft", "kitchen-snapshot", "kitchen-save_state")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)]


# -- back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0, 1, 3, -1])
def test_rewound_to_any_step_and_on_is_as_never_having_gone(straight, every):
    k = Kitchen("sft", **SMALL, snapshot_every=every).run()
    for step in (8, 3, 7, 1, 5, 0, 2, 6, 4):
        if (k.driver.last_step.step if k.driver.last_step else 0) < step:
            k.run(until=8)
        k.rewind(step=step)
        assert (k.driver.last_step.step if k.driver.last_step else 0) == step
        steps = [item.step for item in k.log if item.name == "train.step"]
        assert steps == list(range(1, step + 1)), "every step stands once"
        if step in (1, 4, 8):
            assert ended(k.run()) == straight
    k.close()
    assert k.run_record.verify() == []


@pytest.mark.parametrize("name", [part.name for part in supervised.parts])
def test_rewound_to_any_stage_and_on_is_as_never_having_gone(straight, name):
    k = Kitchen("sft", **SMALL).run().rewind(stage=name)
    before = list(k.stage_status)[: list(k.stage_status).index(name)]
    assert [stage for stage, status in k.stage_status.items() if status == "done"] == before
    assert ended(k.run()) == straight and k.status == "completed"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_on_torch_too(runs, method):
    settings = {**SMALL, "backend": "torch", "device": "cpu", "method": method, "epochs": 1, "snapshot_every": 2}
    straight = ended(Kitchen("sft", **settings).run())
    k = Kitchen("sft", **settings).run(until=4).rewind(step=1)
    fork = k.run(until=3).fork()
    changed = k.fork(learning_rate=1e-4)
    assert ended(k.run()) == ended(fork.run()) == straight
    assert ended(changed.run()) == ended(Kitchen("sft", **settings).run(until=3).set(learning_rate=1e-4).run()) != straight
    k.rewind(step=3).close()
    assert ended(Kitchen.open(k.run_dir).run()) == straight


def test_what_cannot_be_gone_back_to_is_said(runs):
    k = Kitchen("sft", **SMALL).run(until=3)
    for wrong, message in [
        ({"step": 9}, "no step 9 to go back to; steps 0 to 3"),
        ({"stage": "evaluate"}, "'evaluate' has not begun yet"),
        ({"stage": "trian"}, "did you mean 'train'"),
        ({}, "rewind to where"),
        ({"step": 1, "stage": "train"}, "rewind to where"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            k.rewind(**wrong)
    assert k.step("batch").step == 4, "and nothing was disturbed"


# -- aside ----------------------------------------------------------------------------------------


def test_a_fork_without_change_equals_its_parent(straight):
    parent = Kitchen("sft", **SMALL).run(until=3)
    fork = parent.fork()
    assert ended(fork.run()) == ended(parent.run()) == straight
    assert fork.run_record.spec.parent["run"] == parent.run_record.run_id and fork.run_record.spec.parent["step"] == 3
    linked = next(item for item in fork.log if item.name == "run.fork")
    assert linked["parent"] == parent.run_record.run_id and linked["parent_head"] in parent.run_record.log.heads
    for k in (fork, parent):
        k.close()
        assert k.run_record.verify() == [] and EventLog.verify(k.run_dir / "events.jsonl")
    assert (fork.run_dir / "artifacts").is_dir() and fork.run_dir != parent.run_dir


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_changed_fork_equals_a_run_with_that_edit(straight, step):
    parent = Kitchen("sft", **SMALL).run(until=step)
    fork = parent.fork(learning_rate=0.03, weight_decay=0.1)
    edited = Kitchen("sft", **SMALL).run(until=step).set(learning_rate=0.03, weight_decay=0.1)
    assert ended(fork.run()) == ended(edited.run()) != straight
    assert ended(parent.run()) == straight, "the parent goes its own way"


def test_a_fork_of_a_fork_and_of_an_ended_run(straight):
    first = Kitchen("sft", **SMALL).run()
    second = first.fork()
    third = second.rewind(step=2).fork()
    assert ended(third.run()) == straight and third.run_record.spec.parent["run"] == second.run_record.run_id
    first.close()
    assert ended(Kitchen.open(first.run_dir).fork().run()) == straight


def test_settings_whose_work_is_done_are_refused_with_the_way_out(runs):
    k = Kitchen("sft", **SMALL).run(until=2)
    with pytest.raises(InvalidValue, match=r"'lora_rank' was used by stage 'open'.*rewind\(stage='open'\)"):
        k.fork(lora_rank=2)
    with pytest.raises(InvalidValue, match="'lora_rank' cannot be edited while the run is under way"):
        k.set(lora_rank=2)
    with pytest.raises(UnknownName, match="did you mean 'learning_rate'"):
        k.set(lerning_rate=2)
    with pytest.raises(KitchenError, match="learning_rate = -1"):
        k.set(learning_rate=-1, weight_decay=0.5)
    assert k.config.weight_decay == 0.0, "all or none"
    fork = k.rewind(stage="open").fork(lora_rank=2)
    assert fork.run(until="open").state["training"].lora.rank == 2
    assert ended(fork.run()) == ended(Kitchen("sft", **{**SMALL, "lora_rank": 2}).run())


# -- edits and breakpoints ------------------------------------------------------------------------


def test_edits_outlive_rewinds_kills_and_resumes(runs):
    plain = Kitchen("sft", **SMALL).run(until=2).set(learning_rate=0.05).run(until=5).set(grad_clip_norm=0.1)
    expected = ended(plain.run())
    rewound = Kitchen("sft", **SMALL).run(until=2).set(learning_rate=0.05).run(until=5).set(grad_clip_norm=0.1)
    rewound.run(until=7).rewind(step=6)
    assert rewound.config.grad_clip_norm == 0.1 and ended(rewound.run()) == expected
    left = Kitchen("sft", **SMALL, snapshot_every=-1).run(until=2).set(learning_rate=0.05).run(until=5).set(grad_clip_norm=0.1)
    left.run_record.log.close()  # nothing but the log is left, as if the process had been killed
    again = Kitchen.open(left.run_dir)
    assert again.driver.last_step is None and ended(again.run()) == expected, "edits are made again at their steps"


def test_a_replaced_batch_is_recorded_and_repeated(straight):
    def with_another_batch():
        k = Kitchen("sft", **SMALL).run(until=3)
        k.state["batch"] = k.state["batch"][:2]
        return k

    k = with_another_batch()
    expected = ended(k.run())
    steps = [item for item in k.log if item.name == "train.step"]
    assert expected != straight and [item["examples"] for item in steps] == [16, 16, 16, 2, 16, 16, 16, 16]
    other = with_another_batch()
    other.run(until=6).rewind(step=5)
    assert ended(other.run()) == expected
    again = reproduce(manifest(other.run_record))
    assert again.agrees and again.bitwise
    with pytest.raises(UnknownName, match="did you mean 'batches'"):
        k.state["bathces"] = 3
    with pytest.raises(InvalidValue, match="cannot hold"):
        k.state["questions"] = [socket_like]


socket_like = object()


def test_breakpoints_pause_on_a_boundary_and_are_logged(straight):
    k = Kitchen("sft", **SMALL)
    first, second = k.break_before("train"), k.break_when("learning_rate", above=0.0021)
    third = k.break_when(lambda item: item.name == "train.step" and item.step == 2)
    k.run()
    assert k.stage_status["train"] == "running" and k.driver.last_step is None
    assert k.run().driver.last_step.step == 2
    assert k.run().driver.last_step["learning_rate"] > 0.0021 and k.status == "running"
    for one in (first, second, third):
        k.breakpoints.remove(one)
    assert ended(k.run()) == straight
    reasons = [item["reason"] for item in k.log if item.name == "run.pause"]
    assert reasons == ["before train", "a condition", "learning_rate > 0.0021"]
    with pytest.raises(UnknownName, match="did you mean 'evaluate'"):
        k.break_before("evalaute")


def test_a_diverging_run_is_caught_and_saved(runs):
    settings = {**SMALL, "lora_dropout": 0.0, "grad_clip_norm": 0.0, "schedule": "constant", "warmup_steps": 0}
    settings["evaluate_every"] = 100
    k = Kitchen("sft", **settings).run(until=3).set(learning_rate=1e300)
    k.break_when("loss", nan=True)
    k.run()
    assert not math.isfinite(k.driver.last_step["loss"]) and k.status == "running"
    k.breakpoints.clear()
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        k.run()
    assert k.status == "failed"
    with pytest.raises(InvalidValue, match=r"this run failed.*rewind\(step="):
        k.step()
    k.rewind(step=3)
    assert k.config.learning_rate == 0.01 and k.run().status == "completed"
    assert story(k) == story(Kitchen("sft", **settings).run())


# -- stopping and going on ------------------------------------------------------------------------


def test_ctrl_c_ends_on_a_step_boundary_and_leaves_no_thread(straight):
    k = Kitchen("sft", **SMALL, snapshot_every=1)
    k.driver.listeners.append(
        lambda item: item.name == "port.call" and item["verb"] == "optim_step" and len(k.log) > 40 and not pressed
        and (pressed.append(1), signal.raise_signal(signal.SIGINT))
    )  # fmt: skip
    pressed = []
    with pytest.raises(KeyboardInterrupt, match="step boundary"):
        k.run()
    assert k.log[-1].name in ("run.pause", "train.step") and k.driver.runner.flow.at_boundary
    assert ended(k.run()) == straight
    k.close()
    assert threads() == []


def test_in_the_background_inside_an_event_loop(straight):
    async def session():
        k = Kitchen("sft", **SMALL)
        k.run(until=2, wait=False)
        while k.driver.thread.is_alive():
            await asyncio.sleep(0.001)
        assert k.driver.last_step.step == 2
        k.run(wait=False).pause()
        assert k.driver.runner.flow.at_boundary and not k.driver.thread.is_alive()
        k.resume().wait()
        return k

    k = asyncio.run(session())
    assert k.status == "completed" and ended(k) == straight
    k.close()
    assert threads() == []


def test_two_commands_at_once_are_refused(runs):
    k = Kitchen("sft", **{**SMALL, "epochs": 200}).run(until=3).run(wait=False)
    with pytest.raises(InvalidValue, match="goes on in the background"):
        k.step()
    k.set(learning_rate=0.001)  # made at the next boundary
    k.close()
    assert k.status == "stopped" and k.config.learning_rate == 0.001 and threads() == []
    again = Kitchen.open(k.run_dir)
    assert again.driver.last_step.step == k.driver.last_step.step and again.config.learning_rate == 0.001
    again.close()


def test_a_second_writer_is_refused_and_readers_are_not(runs):
    k = Kitchen("sft", **SMALL).run(until=2)
    with pytest.raises(RunBusy, match="is being written by another session"):
        Kitchen.open(k.run_dir)
    code = f"from kitchen.session.kitchen import Kitchen; Kitchen.open({str(k.run_dir)!r})"
    words = [sys.executable, "-c", code]
    other = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert other.returncode and "RunBusy" in other.stderr
    reader = Run(k.run_dir)
    assert reader.status == "running" and len(reader.log.events) == len(k.run_record.log.events)
    assert k.step("batch").step == 3
    k.close()
    Kitchen.open(k.run_dir).close()


def test_resume_from_the_moved_folder_in_another_place(straight, tmp_path):
    k = Kitchen("sft", **SMALL).run(until=5)
    k.close()
    moved = k.run_dir.rename(tmp_path / "elsewhere")
    assert ended(Kitchen.open(moved).run()) == straight


def test_changed_input_is_refused_or_run_again(chats):
    def row(text):
        return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]}

    path = chats([row(f"word {n}") for n in range(40)])
    settings = {**SMALL, "dataset": f"file:{path}", "batch_size": 8}
    k = Kitchen("sft", **settings).run(until=3)
    k.close()
    chats([row(f"word {n}") for n in range(39)] + [row("another")])
    with pytest.raises(KitchenError, match="stage 'load' gives something else than when it ran first"):
        Kitchen.open(k.run_dir)
    again = Kitchen.open(k.run_dir, new_input=True)
    assert again.stage_status["load"] == "waiting"
    assert ended(again.run())[:2] == ended(Kitchen("sft", **settings).run())[:2]


# -- failures -------------------------------------------------------------------------------------


def failing_once(times):
    """Supervised training whose train stage fails at its fifth step, so many times, and then goes back."""
    left = [times]
    train = next(part for part in supervised.parts if part.name == "train")

    def moody(config, training, batches, data, renderer, progress):
        for item in train.function(config, training, batches, data, renderer, progress):
            yield item
            if item.step == 5 and item.name == "train.step" and left[0]:
                left[0] -= 1
                training.forward_backward(batches.peek(), "cross_entropy").result()  # a trace that must not stay
                raise OSError("the machine hiccuped")
        return len(batches)

    part = replace(train, function=moody).with_retry_policy(retries=2, rollback=True)
    parts = [part if one.name == "train" else one for one in supervised.parts]
    return replace(get_recipe("sft"), workflow=chain("supervised", *parts))


@pytest.mark.parametrize("every", [0, 2])
def test_a_stage_that_goes_back_ends_as_if_it_had_not_failed(straight, every):
    k = Kitchen(failing_once(2), **SMALL, snapshot_every=every).run()
    assert ended(k) == straight
    rolled = [item for item in k.run_record.log.events if item.name == "stage.rollback"]
    assert [item["attempt"] for item in rolled] == [1, 2] and "hiccuped" in rolled[0]["error"]
    with pytest.raises(OSError, match="hiccuped"):
        Kitchen(failing_once(3), **SMALL).run()


def test_an_error_can_be_resumed_from_the_last_snapshot(straight):
    recipe = failing_once(1)
    workflow = chain("supervised", *(replace(part, retry_policy=supervised.parts[0].retry_policy) for part in recipe.workflow.parts))
    k = Kitchen(replace(recipe, workflow=workflow), **SMALL)
    with pytest.raises(OSError, match="hiccuped"):
        k.run()
    assert k.status == "failed" and ended(k.resume()) == straight and k.status == "completed"


def newest_state(k):
    """Files of the newest snapshot: its manifest, its saved state, the object of the weights."""
    history = SnapshotFolder(Run(k.run_dir))
    manifest_path = history.paths()[0]
    state = history.folder / Snapshot.read(manifest_path).values["training"]["state"]
    weights = next(iter(StateStore.read_listing(state)["packs"].values()))
    return {"manifest": manifest_path, "state": state, "object": history.objects.path(weights)}


@pytest.mark.parametrize("where", ["manifest", "state", "object"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_snapshot_is_found_and_an_earlier_one_used(straight, where, damage):
    k = Kitchen("sft", **SMALL, snapshot_every=2, snapshots_kept=3).run(until=7)
    k.close()
    path = newest_state(k)[where]
    found = bytearray(path.read_bytes())
    found[len(found) // 2] ^= 4
    {"flip": lambda: path.write_bytes(found), "cut": lambda: path.write_bytes(found[:-9]), "remove": path.unlink}[damage]()
    problems = SnapshotFolder(Run(k.run_dir)).problems()
    assert problems
    again = Kitchen.open(k.run_dir)
    said = [item["reason"] for item in again.run_record.log.events if item.name == "snapshot.error"]
    assert said and again.driver.last_step.step == 6, "the one before"
    assert ended(again.run()) == straight


def test_a_torn_log_line_is_mended_and_said(straight):
    k = Kitchen("sft", **SMALL).run(until=4)
    k.close()
    log = k.run_dir / "events.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    with pytest.raises(DamagedData, match="of the 64 that were signed off|its end was removed"):
        Kitchen.open(k.run_dir)  # a run that ended well has no torn line
    (k.run_dir / "seal.json").unlink()  # as a killed process leaves it
    again = Kitchen.open(k.run_dir)
    assert any(item.name == "log.repair" for item in again.run_record.log.events)
    assert ended(again.run()) == straight and EventLog.verify(log)


def test_a_full_disk_during_a_snapshot_does_not_stop_training(straight, monkeypatch):
    def full(path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    k = Kitchen("sft", **SMALL, snapshot_every=1).run(until=2)
    k.driver.runner.history.finish_pending(wait=True)
    with monkeypatch.context() as patched:
        patched.setattr("kitchen.store.objects.write_atomically", full)
        k.run(until=4)
    failed = [item["reason"] for item in k.run_record.log.events if item.name == "snapshot.error"]
    assert failed and "No space left on device" in failed[0] and "earlier ones are intact" in failed[0]
    k.run_record.log.close()  # killed: the snapshots from before the disk was full are whole
    again = Kitchen.open(k.run_dir)
    assert again.driver.last_step.step == 2 and ended(again.run()) == straight


def test_a_full_disk_during_logging_costs_the_event_in_hand(straight, monkeypatch):
    plain, calls = os.write, []
    k = Kitchen("sft", **SMALL, snapshot_every=2).run(until=4)

    def nearly_full(descriptor, content):
        if descriptor != k.run_record.log.file:
            return plain(descriptor, content)
        calls.append(1)
        if len(calls) % 2:
            return plain(descriptor, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    k.driver.runner.history.finish_pending(wait=True)
    before = len(k.run_record.log.events)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", nearly_full)
        with pytest.raises(LogFailed, match="could not be written: No space left.*Everything before it is safe"):
            k.run()
    assert EventLog.verify(k.run_dir / "events.jsonl") == before == len(k.run_record.log.events)
    assert ended(k.resume()) == straight


def test_a_missing_artifact_is_named(runs):
    k = Kitchen("sft", **SMALL).run()
    k.close()
    made = k.run_record.artifacts()[1]
    made.path.unlink()
    assert f"{made.path}: missing" in Run(k.run_dir).verify()


# -- what is kept ---------------------------------------------------------------------------------


def test_the_newest_the_best_and_the_ends_of_stages_are_kept(runs):
    settings = {**SMALL, "epochs": 4, "snapshot_every": 1, "snapshots_kept": 2, "evaluate_every": 1}
    settings["keep_best"] = "min train.evaluate.loss"
    k = Kitchen("sft", **settings).run(until=4).set(learning_rate=0.9)  # from here on it gets worse
    k.run(until=12)
    k.close()
    history = SnapshotFolder(Run(k.run_dir))
    kept = [Snapshot.read(path) for path in history.paths()]
    held_out = {item.step: item["loss"] for item in k.log if item.name == "train.evaluate"}
    inside = [one.step for one in kept if one.position.moment == "inside"]
    assert inside[:2] == [12, 11] and inside[2:] == [min(held_out, key=lambda step: held_out[step])] and inside[2] < 10
    assert len([one for one in kept if one.position.moment == "after"]) == 5, "load, render, batch, open, baseline"
    assert history.objects.names() == object_names(history, kept), "and nothing else is left"
    best = Kitchen.open(k.run_dir).rewind(step=inside[2])
    assert best.driver.last_step.step == inside[2]


def test_equal_tensors_are_stored_once(runs):
    k = Kitchen("sft", **SMALL, method="full").run()
    k.close()
    history = SnapshotFolder(Run(k.run_dir))
    states = {one.values["training"]["state"] for one in map(Snapshot.read, history.paths()) if "training" in one.values}
    assert len(history.paths()) == 10 and len(states) == 2, "before and after training; evaluate, save … change nothing"


# -- reproduction ---------------------------------------------------------------------------------


def test_a_run_with_a_past_is_reproduced(runs):
    k = Kitchen("sft", **SMALL).run(until=2).set(learning_rate=0.04).run(until=6).rewind(step=4)
    k.close()
    k = Kitchen.open(k.run_dir).run(until=5).set(weight_decay=0.2)
    fork = k.fork(grad_clip_norm=0.5).run()
    for one in (k.run(), fork):
        then = manifest(one.run_record)
        again = reproduce(json.loads(json.dumps(then)))
        assert again.agrees and again.bitwise and len(then["edits"]) == (2 if one is k else 3)
        assert {row.difference for row in again.rows if row.name.startswith("train.")} == {"equal"}
    elsewhere = {**then, "spec": {**then["spec"], "environment": {**then["spec"]["environment"], "python": "3.0"}}}
    loose = reproduce(elsewhere)
    assert loose.agrees and not loose.bitwise and "python was 3.0" in loose.standard


def train_in_a_process(path):
    Kitchen("sft", run_dir=path, **SMALL).run(until=6)
    time.sleep(LONGEST)  # until it is killed


def test_killed_mid_run_and_resumed_here(straight, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=train_in_a_process, args=(tmp_path / "run",))
    process.start()
    log = tmp_path / "run" / "events.jsonl"
    until(lambda: log.exists() and log.read_text().count('"train.step"') >= 6, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert Run(tmp_path / "run").status == "interrupted"
    k = Kitchen.open(tmp_path / "run")
    assert ended(k.run()) == straight and k.status == "completed"


@stage(gives="noise")
def another_consumer(config):
    """Draws random numbers of its own."""
    from kitchen.seeding import random_generator

    return random_generator(config.seed, "environment").random(1000).tolist()


def test_another_consumer_of_random_numbers_disturbs_nobody(straight):
    parts = [*supervised.parts[:4], another_consumer, *supervised.parts[4:]]
    recipe = replace(get_recipe("sft"), workflow=chain("supervised", *parts), results=frozenset({"version", "noise"}))
    metrics, _, made = ended(Kitchen(recipe, **SMALL).run())
    assert (metrics, made) == (straight[0], straight[2])
