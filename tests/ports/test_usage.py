"""Tokens and money: counted as they are, priced as stated, and never more than the budget."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.adapters.toy.client import ToyService
from kitchen.cli.parameters import make_request
from kitchen.ports.spans import observe
from kitchen.ports.usage import TOKEN_KINDS, Meter, RemoteRequest, Usage, check_prices, cost_of, used_tokens
from kitchen.reports.build import costs_are_known, report_notebook, show_costs
from kitchen.session.kitchen import Kitchen
from kitchen.telemetry import MemoryLog
from kitchen.types import (
    AdamParams,
    BudgetReached,
    Datum,
    InvalidValue,
    LoraParams,
    SamplingParams,
    UnknownName,
)

SMALL = {"backend": "toy", "dataset": "builtin:sort[:64]", "batch_size": 8, "graded": 4, "held_out": 8, "max_tokens": 8, "epochs": 1}
PRICES = {"prefill": 1.0, "sample": 4.0, "train": 3.0}


def spent(k):
    """Money by the log alone, from the events' own numbers."""
    calls = [item for item in k.run_record.log.events if item.name in ("port.call", "run.aside")]
    return sum(PRICES[kind] * item.measurements.get(kind, 0) for item in calls for kind in TOKEN_KINDS) / 1e6


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the small run costs without a budget, and the state it ends with."""
    with Kitchen("sft", run_dir=tmp_path_factory.mktemp("whole") / "run", prices=PRICES, **SMALL) as k:
        k.run()
        return k.driver.runner.meter.money, k.driver.digest()


def test_every_verb_counts_what_it_reads_draws_and_learns_from():
    log, data = MemoryLog(), [Datum.from_tokens([5, 6, 7, 8], [0, 1, 1, 1], "one"), Datum.from_tokens([5, 6], [0, 1], "two")]
    service = observe(ToyService(), "service", "toy", log, Meter("toy"))
    training = service.create_training_client("toy", LoraParams(4, 32.0), 0)
    training.forward_backward(data, "cross_entropy").result()
    training.forward(data=data, loss_fn="cross_entropy").result()
    training.forward_backward_custom(data, lambda data, logprobs: (sum(one.sum() for one in logprobs), {})).result()
    training.optim_step(AdamParams(1e-3)).result()
    sampler = training.create_sampling_client()
    drawn = sampler.sample([5, 6, 7], 2, SamplingParams(max_tokens=3, stop=())).result()
    sampler.compute_logprobs([5, 6, 7]).result()
    service.create_sampling_client("toy").compute_topk([5, 6], 2).result()
    count = sum(len(one.tokens) for one in drawn.completions)
    assert used_tokens(log.events) == {"": Usage(prefill=4 + 4 + 3 + 3 + 2, sample=count, train=4 + 4)} and count == 6
    assert service.meter.used == used_tokens(log.events) and not any(service.meter.reserved.values())


def test_what_is_refused_or_fails_costs_as_little_as_was_done():
    log = MemoryLog()
    service = observe(ToyService(), "service", "toy", log, Meter("toy"))
    training = service.create_training_client("toy", LoraParams(4, 32.0), 0)
    for wrong in (3, [], [Datum.from_tokens([5, 10**6], [0, 1], "no such token")]):
        with pytest.raises(InvalidValue):
            training.forward_backward(wrong, "cross_entropy").result()
    assert not service.meter.total.sample and not any(service.meter.reserved.values())


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.floats(0, 1)), max_size=30),
    st.floats(1e-5, 1e-3),
)
@settings(max_examples=60, deadline=None)
def test_no_order_of_requests_exceeds_a_budget(requests, budget):
    meter, under_way = Meter("", PRICES, budget), []
    for prefill, sample, train, share in requests:
        wanted = Usage(prefill, sample, train)
        try:
            meter.ask("", wanted)
        except BudgetReached:
            assert cost_of({"": sum((one for one, _ in under_way), meter.total + wanted)}, PRICES) > budget
        else:
            under_way.append((wanted, Usage(prefill, int(sample * share), train)))
        if share > 0.5 and under_way:
            meter.settle("", *under_way.pop(0))
    for one in under_way:
        meter.settle("", *one)
    assert meter.money is not None and meter.money <= budget * (1 + 1e-8)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.62, 0.97])
def test_a_run_stops_before_its_budget_and_goes_on_with_a_higher_one(tmp_path, whole, share):
    money, digest = whole
    k = Kitchen("sft", run_dir=tmp_path / "run", prices=PRICES, budget=money * share, **SMALL)
    with pytest.raises(BudgetReached, match="set a higher budget, and go on"):
        k.run()
    assert spent(k) <= money * share and spent(k) == pytest.approx(k.driver.runner.meter.money or 0)
    steps = k.driver.last_step
    k.set(budget=money * 2).resume()
    assert k.status == "completed" and k.driver.digest() == digest, "as if there had been no budget"
    assert steps is None or spent(k) <= money * 1.3
    k.close()


def test_a_run_that_stops_on_a_step_does_nothing_twice(tmp_path, whole):
    money, digest = whole
    k = Kitchen("sft", run_dir=tmp_path / "run", prices=PRICES, budget=money * 0.6, **SMALL)
    with pytest.raises(BudgetReached, match="does not allow another step"):
        k.run()
    reached = k.driver.last_step.step
    assert k.status == "running" and k.log[-1].name == "run.pause" and 1 < reached < 8
    k.close()
    assert k.status == "stopped"
    with pytest.raises(BudgetReached), Kitchen.open(k.run_dir) as again:
        again.run()
    with Kitchen.open(k.run_dir, budget=money * 2) as last:
        assert last.driver.last_step.step == reached
        last.run()
        assert last.driver.digest() == digest and spent(last) == pytest.approx(money, rel=1e-9)
        assert last.config.budget == money * 2


def test_in_the_background_it_is_told_when_one_waits(tmp_path, whole):
    money, digest = whole
    k = Kitchen("sft", run_dir=tmp_path / "run", prices=PRICES, budget=money * 0.6, **SMALL)
    with pytest.raises(BudgetReached):
        k.run(wait=False).wait(60)
    assert threading.active_count() and k.driver.runner.error is None
    k.set(budget=money * 2)
    k.resume(wait=False).wait(60)
    assert k.driver.digest() == digest
    k.close()


def test_going_back_gives_no_money_back_and_keeps_the_last_budget(tmp_path, whole):
    money, _ = whole
    k = Kitchen("sft", run_dir=tmp_path / "run", prices=PRICES, budget=money, **SMALL)
    k.run(until=4)
    before = k.driver.runner.meter.money
    k.set(budget=money * 3)
    k.rewind(step=2)
    assert k.driver.runner.meter.money >= before and k.config.budget == k.driver.runner.meter.budget == money * 3
    k.run()
    assert k.driver.runner.meter.money > money and spent(k) == pytest.approx(k.driver.runner.meter.money)
    fork = k.fork(budget=money)
    assert fork.driver.runner.meter.money == 0 and fork.config.budget == money, "a fork has not paid for its parent"
    fork.close()
    k.close()


def test_work_on_a_copy_is_paid_for_by_the_run(tmp_path):
    with Kitchen("sft", run_dir=tmp_path / "run", prices=PRICES, **SMALL) as k:
        k.run(until=2)
        before = k.driver.runner.meter.money
        k.lr_find(steps=10)
        assert k.driver.runner.meter.money > before and spent(k) == pytest.approx(k.driver.runner.meter.money)


def test_rollouts_keep_a_budget_too(tmp_path):
    small = {"backend": "toy", "problems": 16, "batch_size": 4, "group_size": 4, "graded": 4, "max_tokens": 8}
    k = Kitchen("rl_math", run_dir=tmp_path / "run", prices=PRICES, budget=0.012, **small)
    with pytest.raises(BudgetReached):
        k.run()
    assert 0 < spent(k) <= 0.012
    k.set(budget=1.0).resume()
    assert k.status == "completed"
    k.close()


def test_the_plan_is_what_is_used(tmp_path, whole):
    with Kitchen("sft", run_dir=tmp_path / "run", prices=PRICES, **SMALL) as k:
        said = k.plan(measure=False).facts
        used = k.run().driver.runner.meter.total
        assert said["usage"] == f"about {used.train:,} trained, at most {2 * 4 * 8:,} sampled, about {used.prefill:,} read"
        assert said["money"].startswith("about 0.0") and used.sample <= 64


PLAIN = {name: value for name, value in SMALL.items() if name != "backend"}


def test_a_plan_for_a_service_asks_it_for_nothing(monkeypatch):
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    far = {"backend": "tinker", "model": "toy", "backend_options": {"tokenizer_backend": "toy"}}
    said = Kitchen("sft", **PLAIN, **far).plan().facts
    assert said["money"] == "not known: prices of prefill, sample, train are not stated: prices={'prefill': …}"
    assert said["service"] == "tinker; its key is in $TINKER_API_KEY, which is not set yet"
    assert said["time"].startswith("not measured") and said["usage"].startswith("about 3,896 trained")
    assert "not known: prices of sample" in Kitchen("sft", **PLAIN, **far, prices={"train": 1, "prefill": 1}).plan().facts["money"]


@pytest.mark.parametrize(
    "prices,words", [({"trian": 1}, "did you mean 'train'"), ({"train": -1}, "at least 0"), ({"train": True}, "at least 0"),
                     ({"train": "1"}, "at least 0"), ({"m": {"n": {}}}, "no further table")]
)  # fmt: skip
def test_prices_that_are_none_are_refused(prices, words):
    with pytest.raises((InvalidValue, UnknownName), match=words):
        check_prices(prices)
    with pytest.raises(InvalidValue, match=words):
        Kitchen("sft", **SMALL, prices=prices)


@pytest.mark.parametrize("prices", [{}, {"train": 1.0}, {"train": 1.0, "sample": 2.0}])
def test_a_budget_without_prices_is_refused_before_a_run(tmp_path, prices):
    k = Kitchen("sft", run_dir=tmp_path / "run", budget=5.0, prices=prices, **SMALL)
    with pytest.raises(InvalidValue, match="budget=5 needs prices for a million tokens, and has none of"):
        k.run()
    k.close()
    with Kitchen("sft", run_dir=tmp_path / "other", **SMALL) as k, pytest.raises(InvalidValue, match="needs prices"):
        k.run(until="batch").set(budget=1.0)


def test_prices_on_the_command_line():
    given = {"backend": "toy", "prices.train": "0.5", "prices.org/Big-1.5.prefill": "2", "prices": "{sample: 1}"}
    assert make_request("sft", given).values["prices"] == {"sample": 1.0, "train": 0.5, "org/Big-1.5": {"prefill": 2.0}}
    with pytest.raises(InvalidValue, match="did you mean 'train'"):
        make_request("sft", {"backend": "toy", "prices.trian": "0.5"})


def test_reports_tell_tokens_and_money_where_they_are_somebodys(tmp_path):
    with Kitchen("sft", run_dir=tmp_path / "dear", prices={"train": 3.0, "other": {"prefill": 2.0}}, **SMALL) as k:
        shown = repr(show_costs(k.run(until=2).run_record))
        assert "No sum: prices of prefill, sample are not stated." in shown and "bill may differ" in shown
        assert any("Tokens and money" in cell.source for cell in report_notebook(k.run_record).cells)
        assert "no money: prices of" in k.driver.spending_text
    with Kitchen("sft", run_dir=tmp_path / "plain", **SMALL) as k:
        assert "no money is told" in repr(show_costs(k.run(until=2).run_record)) and not costs_are_known(k.run_record)
        assert not any("Tokens and money" in cell.source for cell in report_notebook(k.run_record).cells) and k.driver.spending_text == ""


class FarAway(ToyService):
    """A toy that tells of requests, as a service does."""

    def take_requests(self):
        return [RemoteRequest("sample", "ok" if len(self.told) % 2 else "BackendError", 40, 80, 0.5, 0.25 * len(self.told.append(0) or self.told))]

    told: list = []


def test_requests_of_a_service_are_in_log_and_report(tmp_path):
    with Kitchen("sft", run_dir=tmp_path / "run", **SMALL) as k:
        k.run(until="batch")
        observe(FarAway(), "service", "far", k.run_record.log).create_sampling_client("toy").sample([5], 1, SamplingParams(max_tokens=1)).result()
        asked = list(k.run_record.log.events.named("remote.request"))
        assert len(asked) == 2 and asked[0].measurements == {"sent": 40, "received": 80, "queue": 0.5, "round_trip": 0.25}
        row = next(line for line in repr(show_costs(k.run_record)).splitlines() if line.startswith("sample"))
        assert row.split()[:5] == ["sample", "2", "1", "80", "160"] and row.split()[5:7] == ["500", "ms"] and costs_are_known(k.run_record)


def test_in_this_process_there_is_no_request_to_tell(tmp_path):
    with Kitchen("sft", run_dir=tmp_path / "run", prices=PRICES, **SMALL) as k:
        k.run(until=2)
        assert not list(k.log.named("remote.request"))
        assert "spent, by the prices stated" in repr(k.dashboard(live=False))
