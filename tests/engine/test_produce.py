"""Producer and consumer: really at the same time, the same result whatever the clock says, and nothing left behind."""

import itertools
import json
import random
import threading
import time
from pathlib import Path

import pytest
from waiting import until

from kitchen.adapters.toy.client import ToyService
from kitchen.config import Config, ExperimentSpec
from kitchen.engine.checkpoints import SnapshotPolicy
from kitchen.engine.produce import produce
from kitchen.engine.runner import Runner
from kitchen.engine.validation import check_workflow
from kitchen.engine.workflow import (
    Flow,
    WorkflowError,
    WorkflowPosition,
    chain,
    scope,
    stage,
)
from kitchen.ports.spans import observe
from kitchen.store.objects import decode_value, encode_value
from kitchen.store.run import Run
from kitchen.telemetry import MemoryLog, event, event_content
from kitchen.types import AdamParams, Datum, SamplingParams


class Plan(Config):
    size: int = 3


@stage(gives="total")
def double(size):
    return 2 * size


@pytest.fixture(autouse=True)
def nothing_left():
    threads, processes = set(threading.enumerate()), children()
    yield
    assert not set(threading.enumerate()) - threads and not children() - processes


def children():
    """Processes of this one, those that ended and were not waited for included (where the system tells)."""
    return {one for file in Path("/proc/self/task").glob("*/children") for one in file.read_text().split()}


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
            assert prompts.place == min(6, count + lag), (
                "the cursor stands after the last item that was begun"
            )
            kept = {name: flow.values[name] for name in flow.made}
            again = Flow(
                learning(lag), {**values, **kept, "prompts": Prompts(prompts.place)}, position=flow.position
            )
            again.progress = flow.progress
            list(again)
            assert (
                again.values["trace"] == reference(6, lag)[1]
                and again.values["weight"] == reference(6, lag)[0]
            )
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
        assert [item["item"] for item in items] == list(range(first, 8)) and all(
            item["lag"] <= 3 for item in items
        )


@pytest.mark.parametrize("lag", [0, 1])
def test_producer_and_consumer_overlap_as_far_as_the_lag_allows(lag):
    made, used = [], []

    @stage(gives="rollout")
    def quickly(weight):
        made.append(time.perf_counter())
        return weight

    @stage(gives="weight")
    def train(weight, rollout):
        if lag and len(used) < 5:
            until(lambda: len(made) > len(used) + 1)
        else:
            time.sleep(0.05)  # time enough to make one more, which may not be
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
    return [
        Datum.from_tokens([*prompt, *one.tokens], [0.0] * len(prompt) + [1.0] * len(one.tokens))
        for one in drawn
    ]


@stage(gives="loss")
def train(training, rollout):
    forward, step = training.forward_backward(rollout, "cross_entropy"), training.optim_step(AdamParams(0.01))
    loss = float(forward.result().loss_sum)
    step.result()
    yield event("train.step", step=1, loss=loss)
    return loss


def runner(folder):
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
        resumed.rewind(
            [item.sequence for item in resumed.run.log.active_events if item.name == "train.step"][4] + 1
        )
        assert end(resumed) == whole


# -- in scopes --------------------------------------------------------------------------------------


def test_it_stands_in_scopes_and_the_contract_is_checked():
    rl = scope(
        "rl", learning(1), takes={"jitter": "dice"}, gives={"weight": "policy_weight", "trace": "trace"}
    )
    start = {"policy_weight": 1, "steps": 4, "dice": random.Random(0)}
    workflow = chain("all", rl, scope("more", rl))
    check_workflow(workflow, set(start), {"policy_weight", "trace", "more/policy_weight", "more/trace"})
    flow = Flow(workflow, dict(start))
    labels = {item["part"] for item in flow if item.name == "stream.item"}
    assert labels == {"rl/rl", "more/rl/rl"} and flow.values["trace"] == reference(4, 1)[1]
    with pytest.raises(WorkflowError, match="needs 'stepz'|needs 'steps'"):
        check_workflow(learning(1), {"weight", "jitter", "stepss"}, {"weight", "trace"})
    check_workflow(learning(1), {"weight", "jitter", "steps"}, {"weight", "trace"})
