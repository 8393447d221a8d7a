"""Concurrent parts: really at the same time, the same result whatever the clock says, and nothing left behind."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kitchen.config import Config, ExperimentSpec
from kitchen.engine.produce import PartFailed, parallel, produce, stream
from kitchen.engine.validation import check_workflow
from kitchen.engine.workflow import (
    Flow,
    RolledBack,
    WorkflowError,
    WorkflowPosition,
    chain,
    loop,
    scope,
    stage,
    when,
)
from kitchen.store.log import EventLog
from kitchen.store.objects import decode_value, encode_value
from kitchen.store.run import Run
from kitchen.telemetry import MemoryLog, event, event_content
from kitchen.types import AdamParams, Datum, SamplingParams

# -- stages, at the top level of a module so that a process finds them ---------------------------------


class Plan(Config):
    size: int = 3


@stage(gives="left")
def sleep_left(size):
    yield event("train.evaluate", loss=1.0)
    time.sleep(0.2)
    yield event("train.evaluate", loss=0.5)
    return size + 1


@stage(gives="right")
def sleep_right(size):
    time.sleep(0.2)
    return size + 2


@stage(gives="answer")
def configured(config):
    print("a print must not get between the messages")
    return (config.size, os.getpid())


@stage(gives="never")
def endless():
    while True:
        time.sleep(0.001)
        yield event("train.evaluate", loss=0.0)


@stage(gives="deaf")
def deaf(folder):
    (folder / "deaf").write_text(str(os.getpid()))
    time.sleep(60)


@stage(gives="broken")
def broken(folder=None):
    while folder and not ((folder / "deaf").exists() and (folder / "deaf").read_text()):
        time.sleep(0.01)
    raise OSError("the disk is gone")


@stage(gives="dead")
def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@stage(gives="odd")
def gives_odd():
    return threading.Lock()


@stage(gives="total")
def double(size):
    return 2 * size


@stage(gives="again", retries=3, rollback=True)
def goes_back():
    raise OSError("not yet")


@pytest.fixture(autouse=True)
def nothing_left():
    threads, processes = set(threading.enumerate()), children()
    yield
    assert not set(threading.enumerate()) - threads and not children() - processes


def children():
    """Processes of this one, those that ended and were not waited for included (where the system tells)."""
    return {one for file in Path("/proc/self/task").glob("*/children") for one in file.read_text().split()}


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# -- parallel ------------------------------------------------------------------------------------------


def test_two_parts_run_at_the_same_time_and_merge(tmp_path):
    log = EventLog(tmp_path / "events.jsonl").claim()
    flow = Flow(chain("all", double, parallel("both", sleep_left, sleep_right)), {"size": 1}, log)
    events, boundaries = [], []
    for item in flow:
        events.append(item)
        boundaries.append(flow.at_boundary)
    marks = [(item.name, item.time) for item in events if item.metadata.get("stage", "").startswith("sleep")]
    begun, over = ([when for name, when in marks if name == one] for one in ("stage.start", "stage.stop"))
    assert max(begun) < min(over), "both had begun before either ended"
    assert flow.values == {"size": 1, "total": 2, "left": 2, "right": 3}
    assert flow.made == {"total": (0,), "left": (1, 0), "right": (1, 1)}
    assert events == list(log.events) and EventLog.verify(log.path) == len(events)
    said = [item["stage"] for item in events if item.name == "stage.stop"]
    assert sorted(said[1:]) == ["sleep_left", "sleep_right"]
    assert boundaries[:2] == [True, True] and boundaries[-1] and not any(boundaries[2:-1])
    assert events[-1]["gives"] == ["left", "right"] and events[-1]["seconds"] >= 0.2
    log.close()


def test_processes_give_the_same_as_threads():
    workflow = [
        scope("room", parallel("both", sleep_left, chain("more", sleep_right, double), processes=one))
        for one in (0, 1)
    ]
    flows = [Flow(one, {"size": 1, "room/size": 5, "unused": object()}, MemoryLog()) for one in workflow]
    told = [sorted(map(event_content, flow), key=repr) for flow in flows]
    for flow in flows:
        flow.values.pop("unused")
    assert (
        flows[0].values
        == flows[1].values
        == {"size": 1, "room/size": 5, "room/left": 6, "room/right": 7, "room/total": 10}
    )
    assert flows[0].made == flows[1].made and flows[0].reads == flows[1].reads
    said = [[(name, about.get("stage"), about.get("gives")) for name, _, _, about in one] for one in told]
    assert said[0] == said[1] and ("stage.stop", "room/double", ["total"]) in said[0]


def test_a_process_gets_the_config_and_says_what_it_read(capfd):
    flow = Flow(parallel("one", configured, processes=True), {"config": Plan(size=7)})
    events = list(flow)
    size, pid = flow.values["answer"]
    assert size == 7 and pid != os.getpid() and flow.reads == {"configured": {"size"}}
    assert next(item for item in events if item.name == "stage.stop")["reads"] == ["size"]
    assert "a print must not" in capfd.readouterr().err


@pytest.mark.parametrize("parts", [("a", "a"), ("a", "loop"), ("when", "a"), ("stream", "a")])
def test_conflicts_are_refused_when_composed(parts):
    make = {"a": lambda: double, "loop": lambda: loop(double, 2), "when": lambda: when("size", double, sleep_left)}
    make["stream"] = lambda: stream("stream", sleep_left, double, "left")
    with pytest.raises(WorkflowError, match="both .* give 'total'; rename one"):
        parallel("both", *(make[part]() for part in parts))


def test_scopes_and_items_of_streams_do_not_conflict():
    parallel("rooms", scope("one", double), scope("two", double))
    parallel("streams", stream("one", sleep_left, double, "left"), stream("two", sleep_left, sleep_right, "left"))


def test_branches_do_not_see_each_other():
    @stage(gives="seen")
    def look(left=None):
        time.sleep(0.3)
        return left

    flow = Flow(parallel("both", sleep_left, look), {"size": 1})
    list(flow)
    assert flow.values["seen"] is None and flow.values["left"] == 2


def test_a_failure_cancels_threads():
    log, began = MemoryLog(), time.perf_counter()
    with pytest.raises(OSError, match="the disk is gone") as caught:
        list(
            Flow(
                parallel("all", endless, parallel("inner", endless.with_name("other", never="more")), broken), {}, log
            )
        )
    assert time.perf_counter() - began < 1 and "in part 'broken' of 'all'" in caught.value.__notes__
    cancelled = [item for item in log.events if item.name == "parallel.cancel"]
    assert [item["part"] for item in cancelled] == ["endless", "inner"] and "the disk is gone" in cancelled[0][
        "cause"
    ]


def test_a_failure_cancels_processes(tmp_path):
    log, began = MemoryLog(), time.perf_counter()
    with pytest.raises(PartFailed, match="OSError: the disk is gone") as caught:
        list(Flow(parallel("all", deaf, broken, processes=True), {"folder": tmp_path}, log))
    assert time.perf_counter() - began < 10, "not as long as the deaf one would sleep"
    assert caught.value.__notes__ == ["in part 'broken' of 'all'"]
    assert [item["part"] for item in log.events if item.name == "parallel.cancel"] == ["deaf"]
    assert gone(int((tmp_path / "deaf").read_text()))


def test_a_killed_process_is_a_failure_that_names_its_part():
    with pytest.raises(PartFailed, match="ended with code -9") as caught:
        list(Flow(parallel("all", dies, processes=True), {}))
    assert caught.value.__notes__ == ["in part 'dies' of 'all'"]


def test_processes_end_when_their_caller_is_killed(tmp_path):
    text = (
        "import pathlib\nimport test_concurrency as stages\n"
        "from kitchen.engine.produce import parallel\nfrom kitchen.engine.workflow import Flow\n"
        f"list(Flow(parallel('all', stages.deaf, processes=True), {{'folder': pathlib.Path({str(tmp_path)!r})}}))"
    )
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    caller = subprocess.Popen([sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 20
    while not (tmp_path / "deaf").exists() or not (tmp_path / "deaf").read_text():
        assert caller.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    while not gone(int((tmp_path / "deaf").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_cannot_go_to_a_process_is_refused_by_name():
    @stage(gives="here")
    def local():
        return 1

    with pytest.raises(WorkflowError, match="stage 'local' cannot run in another process, .*local.* use threads"):
        parallel("all", chain("inner", local), processes=True)
    with pytest.raises(
        WorkflowError, match="value 'size' of type lock cannot be sent to another process .* use threads"
    ):
        list(Flow(parallel("all", double, processes=True), {"size": threading.Lock()}))
    with pytest.raises(PartFailed, match="value 'odd' of type lock cannot be sent"):
        list(Flow(parallel("all", gives_odd, processes=True), {}))


@pytest.mark.parametrize("processes", [False, True])
def test_leaving_in_the_middle_stops_all(processes):
    events = iter(Flow(parallel("all", endless, processes=processes), {}))
    next(events)
    events.close()


@pytest.mark.parametrize("processes", [False, True])
def test_an_interrupt_stops_all(processes):
    log = MemoryLog()
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(Flow(parallel("all", endless, processes=processes), {}, log))
    timer.join()
    assert all(item.name != "parallel.cancel" for item in log.events)


def test_a_branch_may_ask_to_go_back_to_the_last_boundary():
    def back():
        raise RolledBack

    flow = Flow(parallel("all", endless, goes_back), {})
    flow.request_rollback = back
    with pytest.raises(RolledBack):
        list(flow)
    assert flow.attempts == {(1,): 1}


def test_the_listener_holds_the_parts_up():
    @stage(gives="x")
    def many():
        for number in range(100):
            steps.append(number)
            yield event("train.step", step=number)
        return 1

    steps = []
    events = iter(Flow(parallel("all", many), {}))
    next(events)
    time.sleep(0.05)
    assert len(steps) <= 3
    assert len(list(events)) == 102


# -- stream --------------------------------------------------------------------------------------------


def squares(size, begin_late=False):
    @stage(gives="number")
    def with_start(size, start):
        for number in range(start, size):
            drawn.append(number)
            yield number * number

    @stage(gives="number")
    def without(size):
        for number in range(size):
            drawn.append(number)
            yield number * number

    drawn = []
    return (with_start if begin_late else without), drawn


@stage(gives="total")
def add(number, total=0, progress=None):
    for step in range(progress.get("step", 0), 2):
        progress["step"] = step + 1
        yield event("train.step", step=step + 1, loss=number)
    return total * 3 + number


def left_and_entered(workflow, values, **more):
    """Leave at every boundary, enter there with what a snapshot would hold; both halves of the story each time."""
    for stop in itertools.count():
        flow = Flow(workflow, {**values, **more})
        events, before, whole = iter(flow), [], False
        for item in itertools.islice(events, stop + 1):
            before.append(item)
            whole = flow.at_boundary and item.name != "stage.start"
        if len(before) <= stop:
            return
        if not whole:
            events.close()
            continue
        made = {name: flow.values[name] for name in flow.made}
        state = json.dumps([flow.position.to_json(), encode_value(flow.progress), encode_value(made)])
        events.close()
        position, progress, made = json.loads(state)
        again = Flow(
            workflow, {**values, **more, **decode_value(made)}, position=WorkflowPosition.from_json(position)
        )
        again.progress, again.made = decode_value(progress), dict(flow.made)
        yield before, again


def said(events):
    return [event_content(item) for item in events]


@pytest.mark.parametrize("begin_late", [False, True])
@pytest.mark.parametrize("body", [add, chain("body", add, loop(chain("inner", double, double), 2))])
def test_a_stream_entered_at_any_boundary_does_the_rest(begin_late, body):
    source, drawn = squares(4, begin_late)
    workflow = chain("all", double, stream("squares", source, body, "number"), double)
    values = {"size": 4}
    flow = Flow(workflow, dict(values))
    whole, end = said(flow), flow.values
    halves = list(left_and_entered(workflow, values))
    assert len(halves) > 12
    for before, again in halves:
        drawn.clear()
        place = again.position.path[1] if len(again.position.path) > 1 else 0
        # the events of a source that begins anew do not count: it has said that it started
        assert said(before) + said(again) == whole and again.values == end
        if place < 4 and begin_late and drawn:
            assert drawn[0] == place


def test_prefetch_runs_ahead_and_is_bounded():
    most = []

    @stage()
    def slowly(number):
        time.sleep(0.02)
        most.append(len(drawn) - 1 - number**0.5)

    source, drawn = squares(6)
    list(Flow(stream("squares", source, slowly, "number", prefetch=3), {"size": 6}))
    assert max(most) == 3 and most[0] == 3 and most[-1] == 0


def test_prefetching_saves_the_waiting():
    made, used = [], []

    @stage()
    def source():
        for number in range(5):
            made.append(time.perf_counter())
            yield number

    @stage()
    def slow_body(number):
        time.sleep(0.05)
        used.append(time.perf_counter())

    list(Flow(stream("overlap", source, slow_body, "number"), {}))
    assert all(later < done for later, done in zip(made[1:], used, strict=False)), (
        "the next was made before this one was used"
    )


def test_a_source_fails_at_its_item():
    @stage(gives="number")
    def bad():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    log = MemoryLog()
    flow = Flow(stream("squares", bad, add, "number"), {}, log)
    with pytest.raises(OSError, match="gone") as caught:
        list(flow)
    assert caught.value.__notes__ == ["from 'bad', the source of 'squares', at item 2"]
    assert [item["item"] for item in log.events if item.name == "stream.item"] == [0, 1]
    assert log.events[-1].name == "stage.error" and flow.position == WorkflowPosition((2,), "before")


def test_leaving_a_stream_leaves_no_thread():
    source, _ = squares(9)
    for stop in range(8):
        events = iter(Flow(stream("squares", source, add, "number"), {"size": 9}))
        list(itertools.islice(events, stop))
        events.close()

    @stage()
    def bad(number):
        raise OSError("the body fails")

    with pytest.raises(OSError):
        list(Flow(stream("squares", source, bad, "number"), {"size": 9}))


# -- produce -------------------------------------------------------------------------------------------


@stage(gives="sampler")
def freeze(weight):
    return weight


class Prompts:
    """Something with a cursor that the producer moves."""

    def __init__(self, place=0):
        self.place = place

    def next(self):
        self.place += 1
        return self.place


@stage(gives="rollout")
def sample(sampler, number, jitter, prompts=None, config=None):
    time.sleep(jitter.random() * 0.001)
    yield event("train.evaluate", loss=float(number))
    drawn = prompts.next() if prompts else number + 1
    return {"policy": sampler, "number": number, "drawn": drawn, "size": config.size if config else 0}


@stage(gives="weight trace")
def learn(weight, rollout, jitter, trace=()):
    time.sleep(jitter.random() * 0.001)
    new = (31 * weight + 7 * rollout["policy"] + rollout["drawn"] + rollout["size"]) % 10007
    yield event("train.step", step=len(trace) + 1, loss=new)
    return new, [*trace, (rollout["number"], rollout["policy"])]


def reference(items, lag, size=0, every=1):
    """The same in a plain loop."""
    weights, trace = [1], []
    for number in range(items):
        policy = weights[max(0, number // every - lag) * every]
        trace.append((number, policy))
        weights.append((31 * weights[-1] + 7 * policy + number + 1 + size) % 10007)
    return weights[-1], trace


def learning(lag=0, **more):
    return produce("rl", sample, learn, "rollout", "steps", policy=freeze, lag=lag, **more)


@pytest.mark.parametrize("lag", [0, 1, 3, 9])
def test_the_result_does_not_depend_on_the_clock(lag):
    stories = []
    for seed in range(6):
        values = {"weight": 1, "steps": 7, "jitter": random.Random(seed), "config": Plan(size=2)}
        flow = Flow(learning(lag), values, MemoryLog())
        stories.append(said(flow))
        assert (values["weight"], values["trace"]) == reference(7, lag, 2) and "rollout" not in values
        assert flow.reads == {"freeze": set(), "sample": {"size"}, "learn": set()}
    assert all(one == stories[0] for one in stories), "the log is the same too"
    lags = [about["lag"] for name, _, about, _ in stories[0] if name == "stream.item"]
    assert lags == [min(number, lag) for number in range(7)]


@pytest.mark.parametrize("lag", [0, 1, 3, 8])
def test_produce_entered_at_any_boundary_does_exactly_the_rest(lag):
    workflow = chain("all", learning(lag), double)
    for seed in range(2):
        values = {"weight": 1, "steps": 6, "size": 1, "jitter": random.Random(seed)}
        flow = Flow(workflow, dict(values))
        whole, end = said(flow), flow.values
        halves = list(left_and_entered(workflow, values))
        assert len(halves) == 7
        for before, again in halves:
            assert said(before) + said(again) == whole
            assert again.values == end and again.values["trace"] == reference(6, lag)[1]


@pytest.mark.parametrize(("lag", "every"), [(0, 2), (0, 4), (1, 2), (2, 3), (1, 9)])
def test_parts_of_a_batch_share_a_version_and_boundaries_stand_between_batches(lag, every):
    workflow = chain("all", learning(lag, every=every), double)
    for seed in range(3):
        values = {"weight": 1, "steps": 7, "size": 1, "jitter": random.Random(seed)}
        flow = Flow(workflow, dict(values), MemoryLog())
        whole, end = said(flow), flow.values
        assert end["trace"] == reference(7, lag, every=every)[1]
        lags = [about["lag"] for name, _, about, _ in whole if name == "stream.item"]
        assert lags == [min(number // every, lag) for number in range(7)]
        halves = list(left_and_entered(workflow, values))
        assert len(halves) == -(-7 // every) + 1
        for before, again in halves:
            assert said(before) + said(again) == whole and again.values == end


def test_a_part_of_a_batch_is_made_while_the_one_before_is_used():
    """Each waits for the other: the consumer of a part until the next is begun, which a plain loop would never do."""
    begun = [threading.Event() for _ in range(6)]

    @stage(gives="rollout")
    def make(number):
        begun[number].set()
        return number

    @stage()
    def use(rollout):
        if rollout % 3 < 2:
            assert begun[rollout + 1].wait(20), "the next part of the batch is on its way"
        else:
            assert rollout + 1 == 6 or not begun[rollout + 1].is_set(), (
                "the next batch needs the policy that is learnt here"
            )

    list(Flow(produce("rl", make, use, "rollout", 6, every=3), {}))


@pytest.mark.parametrize("lag", [0, 2])
def test_at_a_boundary_nothing_moves(lag):
    prompts, values = Prompts(), {"weight": 1, "steps": 6, "jitter": random.Random(0)}
    flow = Flow(learning(lag), {**values, "prompts": prompts})
    count = 0
    for _ in flow:
        if flow.at_boundary:
            count += 1
            time.sleep(0.01)
            assert prompts.place == min(6, count + lag), "the cursor stands after the last item that was begun"
            kept = {name: flow.values[name] for name in flow.made}
            again = Flow(learning(lag), {**values, **kept, "prompts": Prompts(prompts.place)}, position=flow.position)
            again.progress = flow.progress
            list(again)
            assert again.values["trace"] == reference(6, lag)[1] and again.values["weight"] == reference(6, lag)[0]
    assert count == 6


def test_the_newest_policy_is_never_staler_than_the_bound():
    seen = set()
    for seed in range(24):
        lag = seed % 4
        values = {"weight": 1, "steps": 8, "jitter": random.Random(seed)}
        items = [
            item
            for item in Flow(learning(lag, newest=True, buffer=1 + seed % 3), values)
            if item.name == "stream.item"
        ]
        assert [item["item"] for item in items] == list(range(8))
        assert all(0 <= item["lag"] <= min(lag, item["item"]) for item in items)
        assert all(item["version"] == item["item"] - item["lag"] for item in items)
        seen |= {item["lag"] for item in items}
    assert len(seen) > 1


def test_not_exact_makes_waiting_items_again_within_the_bound():
    values = {"weight": 1, "steps": 8, "jitter": random.Random(0)}
    halves = list(left_and_entered(learning(3, exact=False), values))
    assert len(halves) == 8
    for _, again in halves:
        assert again.progress == {}
        first = again.position.path[0]
        items = [item for item in again if item.name == "stream.item"]
        assert [item["item"] for item in items] == list(range(first, 8)) and all(item["lag"] <= 3 for item in items)


@pytest.mark.parametrize("lag", [0, 1])
def test_producer_and_consumer_overlap_as_far_as_the_lag_allows(lag):
    made, used = [], []

    @stage(gives="rollout")
    def quickly(weight):
        made.append(time.perf_counter())
        return weight

    @stage(gives="weight")
    def train(weight, rollout):
        time.sleep(0.05)
        used.append(time.perf_counter())
        return weight + 1

    list(Flow(produce("rl", quickly, train, "rollout", 6, lag=lag), {"weight": 0}))
    ahead = [later < done for later, done in zip(made[1:], used, strict=False)]
    assert ahead == [bool(lag)] * 5, "the next was made while this one was used, if it may be one version old"


def test_the_buffer_bounds_how_far_the_producer_is_ahead():
    made = []

    @stage(gives="rollout")
    def quick(number):
        made.append(number)
        return number

    @stage()
    def slow(rollout):
        time.sleep(0.005)
        assert max(made) <= rollout + buffer

    for buffer in (1, 2, 4):
        made.clear()
        list(Flow(produce("rl", quick, slow, "rollout", 12, buffer=buffer, lag=9, exact=False), {}))
        assert made == list(range(12))


@pytest.mark.parametrize("lag", [0, 2])
def test_a_producer_fails_at_its_item_and_can_be_taken_up_exactly(lag):
    @stage(gives="rollout")
    def moody(sampler, number, jitter):
        if number == 4 and not mended:
            raise OSError("the sampler is away")
        return {"policy": sampler, "number": number, "drawn": number + 1, "size": 0}

    workflow = produce("rl", moody, learn, "rollout", "steps", policy=freeze, lag=lag)
    mended, log = [], MemoryLog()
    values = {"weight": 1, "steps": 7, "jitter": random.Random(0)}
    flow, state = Flow(workflow, dict(values), log), None
    with pytest.raises(OSError, match="away") as caught:
        for _ in flow:
            if flow.at_boundary:
                state = flow.position, flow.progress, {name: flow.values[name] for name in flow.made}
    assert caught.value.__notes__ == ["from the producer 'moody' of 'rl', at item 4"]
    assert log.events[-1].name == "stage.error" and [one.name for one in log.events].count("stream.item") == 4
    mended.append(True)
    position, progress, made = state
    again = Flow(workflow, {**values, **made}, position=position)
    again.progress = progress
    list(again)
    assert (again.values["weight"], again.values["trace"]) == reference(7, lag)


def test_leaving_a_producer_leaves_no_thread():
    for stop in range(0, 30, 2):
        events = iter(Flow(learning(2), {"weight": 1, "steps": 7, "jitter": random.Random(stop)}))
        list(itertools.islice(events, stop))
        events.close()

    @stage()
    def bad(rollout):
        raise OSError("the consumer fails")

    with pytest.raises(OSError):
        list(
            Flow(
                produce("rl", sample, bad, "rollout", 5, policy=freeze, lag=2),
                {"weight": 1, "jitter": random.Random(0)},
            )
        )


# -- through the runner --


@stage(gives="training", name="open")
def open_toy(service):
    return service.create_training_client("toy:dropout=0.1", None, 0)


@stage(gives="sampler")
def freeze_toy(training):
    return training.create_sampling_client()


@stage(gives="rollout")
def complete(sampler, number):
    time.sleep(random.random() * 0.002)
    prompt = [*f"{number}+1=".encode()]
    drawn = sampler.sample(prompt, 4, SamplingParams(max_tokens=4, seed=number, stop=())).result().completions
    return [Datum.from_tokens([*prompt, *one.tokens], [0.0] * len(prompt) + [1.0] * len(one.tokens)) for one in drawn]


@stage(gives="loss")
def train(training, rollout):
    forward, step = training.forward_backward(rollout, "cross_entropy"), training.optim_step(AdamParams(0.01))
    loss = float(forward.result().loss_sum)
    step.result()
    yield event("train.step", step=1, loss=loss)
    return loss


def runner(folder):
    # imported here, because the processes above import this module and need none of it
    from kitchen.adapters.toy.client import ToyService
    from kitchen.engine.checkpoints import SnapshotPolicy
    from kitchen.engine.runner import Runner
    from kitchen.ports.protocols import observe

    there = (folder / "spec.json").exists()
    run = Run(folder).claim() if there else Run.create(ExperimentSpec(recipe="lesson"), folder)
    if not there:
        run.log.append(event("run.start", recipe="lesson", run_id=folder.name))
    service = observe(ToyService(run.path / "snapshots"), "service", "toy", run.log)
    workflow = chain("rl", open_toy, produce("rl", complete, train, "rollout", 6, policy=freeze_toy, lag=2))
    return Runner(run, workflow, {"config": Plan(), "service": service}, SnapshotPolicy(every=-1))


def end(one):
    """The rest of the run: digest and story."""
    one.advance(lambda item: False)
    told = [
        event_content(item)
        for item in one.run.log.active_events
        if item.name.partition(".")[0] in ("stage", "train", "stream")
    ]
    one.close()
    found = one.digest(), told
    one.run.close()
    return found


def test_training_on_samples_is_resumed_and_rewound_bit_for_bit(tmp_path):
    whole = end(runner(tmp_path / "whole"))
    for number in (0, 2, 5):
        broken_off = runner(tmp_path / f"{number}")
        broken_off.advance(lambda item, number=number: item.name == "stream.item" and item["item"] == number)
        broken_off.snapshot()
        broken_off.advance(lambda item: item.name == "train.step")
        broken_off.close()
        broken_off.run.close()
        resumed = runner(tmp_path / f"{number}")
        resumed.go_back("resume")
        resumed.advance(lambda item: item.name == "stream.item" and item["item"] == 5)
        resumed.rewind([item.sequence for item in resumed.run.log.active_events if item.name == "train.step"][4] + 1)
        assert end(resumed) == whole


# -- all together --------------------------------------------------------------------------------------


def test_they_compose_and_the_contract_is_checked():
    source, _ = squares(3)
    rl = scope("rl", learning(1), takes={"jitter": "dice"}, gives={"weight": "policy_weight", "trace": "trace"})
    both = parallel("both", rl, stream("squares", source, add, "number"))
    start = {"policy_weight": 1, "steps": 4, "size": 3, "dice": random.Random(0)}
    workflow = chain("all", both, scope("more", both))
    check_workflow(
        workflow, set(start), {"policy_weight", "trace", "total", "more/policy_weight", "more/total", "more/trace"}
    )
    flow = Flow(workflow, dict(start))
    labels = {item["part"] for item in flow if item.name == "stream.item"}
    assert labels == {"rl/rl", "squares", "more/rl/rl", "more/squares"}
    assert flow.values["total"] == 7 and flow.values["trace"] == reference(4, 1)[1]
    with pytest.raises(WorkflowError, match="needs 'left', which stage 'sleep_left' gives only later"):
        check_workflow(
            parallel("both", sleep_left, stage(gives="seen")(lambda left: left).with_name("look")),
            {"size"},
            {"left", "seen"},
        )
    with pytest.raises(WorkflowError, match="needs 'stepz'|needs 'steps'"):
        check_workflow(learning(1), {"weight", "jitter", "stepss"}, {"weight", "trace"})
    check_workflow(learning(1), {"weight", "jitter", "steps"}, {"weight", "trace"})
