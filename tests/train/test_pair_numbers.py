"""What is told of pairs means what it says: ties are half, the policy's own preference is its own measure, and units are never mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen import Kitchen, compare
from kitchen.adapters.toy.client import ToyService
from kitchen.data.batches import Batches
from kitchen.data.formats import Preference, parse_row
from kitchen.data.synthetic import preference_pairs
from kitchen.display.figures import loss_figure
from kitchen.losses.policy import OBJECTIVES
from kitchen.losses.preference import (
    PAIR_LOSSES,
    ROUNDING,
    PairLogprobs,
    count_wins,
    get_pair_loss,
    pair_metrics,
)
from kitchen.losses.value import ScalarHead
from kitchen.recipes.reproduce import final_metrics
from kitchen.rendering.registry import get_renderer
from kitchen.reports.scores import scores
from kitchen.telemetry import event, events_to_dataframe, loss_unit, unit_of
from kitchen.train.preference import (
    Pair,
    add_pair_reference_logprobs,
    held_out_pair_loss,
    interleave_pairs,
    kto_loss_factory,
    pair_to_score_query,
    preference_evaluator,
    preference_loss_factory,
    preference_to_pair,
    score_evaluator,
    train_pairs,
)
from kitchen.types import AdamParams, Datum
from kitchen.workflows.rlhf import count_wins as count_wins_of_answers

torch = pytest.importorskip("torch")
from kitchen.adapters.torch.client import TorchService  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["toy", "float32", "bfloat16"])
def start(request):
    """A policy that is its own reference, its pairs, and by how much its number type rounds."""
    model = "toy" if request.param == "toy" else "builtin:tiny-chat"
    service = ToyService() if request.param == "toy" else TorchService(device="cpu", dtype=request.param)
    renderer = get_renderer("auto", service.get_tokenizer(model))
    rows = [parse_row(row, str(place), Preference) for place, row in enumerate(preference_pairs("reworded", 30, seed=0))]
    pairs = [preference_to_pair(renderer, row, 512) for row in rows]
    base = service.create_sampling_client(model)
    return service, model, base, add_pair_reference_logprobs(pairs, base), ROUNDING.get(request.param, ROUNDING["float32"])


@pytest.mark.parametrize("together", [1, 7, 30])
@pytest.mark.parametrize("name", ["dpo", "ipo_mean", "sigmoid_norm", "kto", "apo_zero"])
def test_before_training_every_pair_is_a_tie(start, name, together):
    "Policy and reference are one model: whatever the batch, margins are nothing but rounding, and the accuracy is one half."
    from dataclasses import replace

    service, model, _, pairs, rounding = start
    client = service.create_training_client(model, None, 0)
    loss = replace(get_pair_loss(name), rounding=rounding)
    told = held_out_pair_loss(client, pairs, preference_evaluator(loss), 0, together)
    assert told["accuracy"] == 0.5 and told["ties"] == 1.0
    (seen,) = _policy_preferences(client, pairs)
    assert told["ranking_accuracy"] == pytest.approx(seen["raw"], abs=1e-9 if rounding < 1e-3 else 0.05)
    assert told["ranking_accuracy_per_token"] == pytest.approx(seen["per token"], abs=1e-9 if rounding < 1e-3 else 0.05)
    assert seen["raw"] != 0.5, "the model prefers something before it is trained, and that is what is shown"


def _policy_preferences(client, pairs):
    """Shares of pairs whose chosen answer the policy itself finds likelier, counted by hand."""
    data = interleave_pairs(pairs)
    found = client.forward(data, "cross_entropy").result(60).loss_fn_outputs
    sums = np.array([one["logprobs"][datum.weights != 0].sum(dtype=np.float64) for one, datum in zip(found, data, strict=True)])
    means = sums / [np.count_nonzero(datum.weights) for datum in data]
    yield {"raw": np.mean(sums[::2] > sums[1::2]), "per token": np.mean(means[::2] > means[1::2])}


def test_in_training_too(start):
    "The first `train.pairs` of a loop, in micro-batches and of KTO."
    service, model, base, pairs, rounding = start
    from dataclasses import replace

    for name in ("dpo", "kto"):
        client = service.create_training_client(model, None, 0)
        loss = replace(get_pair_loss(name), rounding=rounding)
        factory = kto_loss_factory(loss, client, base) if name == "kto" else preference_loss_factory(loss)
        told = next(
            item
            for item in train_pairs(client, Batches(pairs, 8, 1, 0), factory, lambda step: AdamParams(0.0), 3, unit=loss.unit)
            if item.name == "train.pairs"
        )
        assert told["accuracy"] == 0.5 and told["ties"] == 1.0, name


def test_scores_that_are_equal_are_half_a_win():
    service = ToyService()
    client = service.create_training_client("toy", None, 0)
    same = Datum.from_tokens([72, 105, 33], [0.0, 0.0, 1.0])
    other = Datum.from_tokens([72, 105, 34], [0.0, 0.0, 1.0])
    head = ScalarHead(65)
    queries = [pair_to_score_query(Pair(one, two), head) for one, two in ((same, same), (same, other), (other, same), (same, same))]
    told = held_out_pair_loss(client, queries, score_evaluator(head), 0)
    assert told["accuracy"] == 0.5 and told["ties"] == 0.5 and "ranking_accuracy" not in told.measurements


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_wins_and_losses_of_any_pairs(values):
    "Wins of one side and of the other are all pairs; ties belong half to each."
    first, second = (torch.tensor(side, dtype=torch.float64) for side in zip(*values, strict=True))
    wins, ties = count_wins(first, second, 1e-6)
    losses, again = count_wins(second, first, 1e-6)
    assert wins + losses == len(values) and ties == again == sum(one == two for one, two in values)
    assert wins == sum(one > two for one, two in values) + ties / 2


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_what_is_a_tie_for_every_loss(name):
    "A difference of rounding is a tie, one of a thousandth of a nat a token is none."
    loss, lengths = get_pair_loss(name), torch.tensor([8, 8, 8])
    apart = torch.tensor([0.0, 2e-6, 0.008])
    base = torch.full((3,), -20.0, dtype=torch.float64)
    told = pair_metrics(PairLogprobs(base + apart, base, base, base, lengths, lengths), loss)
    assert told["ties:sum"] == 2 and told["accuracy:sum"] == 2.0
    assert told["ranking_accuracy:sum"] == told["ranking_accuracy_per_token:sum"] == 2.0


def test_the_change_is_paired():
    "What each pair gave at both looks gives the change, by McNemar's test, and by the bootstrap where ties make it no yes or no."
    service = ToyService()
    client = service.create_training_client("toy", None, 0)
    renderer = get_renderer("auto", service.get_tokenizer("toy"))
    rows = [parse_row(row, str(place), Preference) for place, row in enumerate(preference_pairs("compare", 24, seed=0))]
    pairs = add_pair_reference_logprobs([preference_to_pair(renderer, row, 128) for row in rows], service.create_sampling_client("toy"))
    judge = preference_evaluator(get_pair_loss("dpo"))
    first = held_out_pair_loss(client, pairs, judge, 0, 5)
    list(train_pairs(client, Batches(pairs, 8, 6, 0), preference_loss_factory(get_pair_loss("dpo")), lambda step: AdamParams(3e-3)))
    last = held_out_pair_loss(client, pairs, judge, 18, 7)
    for name, each in (("ranking_accuracy", "ranking_grades"), ("ranking_accuracy_per_token", "token_ranking_grades"), ("accuracy", "grades")):
        values = [float(word) for word in last[each].split()]
        assert last[name] == pytest.approx(sum(values) / len(pairs)) and len(values) == len(pairs)
    told = {one.name: one for one in scores([first, last])}
    assert "McNemar" in told["chosen likelier, per token"].note and told["chosen likelier"].before == first["ranking_accuracy"]
    tie = told["chosen rewarded more than by the reference"]
    assert tie.before == 0.5 and "McNemar" not in tie.note and tie.change is not None


def test_answers_that_are_scored_alike_are_half_a_win():
    "The reward model of rlhf chooses between answers; equal ones, up to rounding, are a tie."
    from types import SimpleNamespace as Bag

    told = {"a": 1.0, "b": 1.0 + 1e-6, "c": 2.0}
    problem = Bag(make=lambda count: [Bag(start=list)])
    answers = [[Bag(text=text) for text in texts] for texts in (("a", "a", "a", "c"), ("a", "b", "c", "a"))]
    (found,) = count_wins_of_answers.function(
        Bag(dtype="float32"), lambda messages, texts: [told[text] for text in texts], Bag(test=[problem] * 4), *answers
    )
    assert found["wins"] == (0.5 + 0.5 + 1 + 0) / 4


# Units


def test_every_loss_has_its_unit():
    assert {name: loss.unit for name, loss in PAIR_LOSSES.items() if loss.unit != "nats/pair"}.keys() == {
        "hinge", "ipo_sum", "ipo_mean", "sppo_hard", "apo_zero", "apo_down", "discopop", "kto",
    }  # fmt: skip
    assert OBJECTIVES["dr_grpo"].unit == "reward" and OBJECTIVES["grpo"].unit == "σ(reward)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each unit, on the toy."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    small = {"backend": "toy", "model": "toy", "graded": 4}
    settings_of = {
        "sft": {"dataset": "builtin:compare[:64]", "batch_size": 16, "epochs": 1, "warmup_steps": 0},
        "dpo": {"dataset": "builtin:compare-pairs[:64]", "batch_size": 16, "held_out": 8, "warmup_steps": 0},
        "rl_math": {"env": "task:compare", "problems": 16, "batch_size": 8, "group_size": 2, "max_tokens": 4, "warmup_steps": 0},
    }
    for recipe, given_settings in settings_of.items():
        k = Kitchen(recipe, run_dir=root / recipe, **small, **given_settings)
        k.run()
        made[recipe] = k
    yield made
    for k in made.values():
        k.close()


UNITS = {"sft": "nats/token", "dpo": "nats/pair", "rl_math": "reward"}


@pytest.mark.parametrize("recipe", UNITS)
def test_a_run_says_the_unit_of_its_loss(runs, recipe):
    k, unit = runs[recipe], UNITS[recipe]
    assert loss_unit(k.log) == unit and final_metrics(k.log)["train.step.loss"]["unit"] == unit
    assert set(k.metrics.loc[k.metrics.name == "train.step", "loss_unit"]) == {unit}
    assert unit in loss_figure(k.log).layout.yaxis.title.text
    assert all(unit in one.unit for one in scores(k.log) if one.name == "training loss")


def test_units_share_no_column_and_no_axis(runs):
    both = compare(*(runs[recipe].run_dir for recipe in UNITS))
    rows = {(name, unit): values for name, unit, values in both.metrics if name == "train.step.loss"}
    assert rows.keys() == {("train.step.loss", unit) for unit in UNITS.values()}
    assert all(sum(np.isfinite(values)) == 1 for values in rows.values())
    assert [chart.y_title if hasattr(chart, "y_title") else chart for chart in both.charts] and len(both.charts) == 3
    text = repr(both) + both._repr_html_()
    assert all(f"loss · train.step ({unit})" in text for unit in UNITS.values() if unit != "reward")


def test_the_table_of_runs_says_each_unit(runs):
    import kitchen

    folder = runs["sft"].run_dir.parent
    table = kitchen.runs(folder=folder)
    assert {row.recipe: row.loss_unit for row in table.rows} == UNITS
    assert all(f"{row.loss} {row.loss_unit}" in repr(table) for row in table.rows)


def test_a_frame_of_events_carries_units():
    told = [
        event("train.start", 0, loss="cross_entropy", unit="nats/token", steps=1), event("train.step", 1, loss=1.0),
        event("train.start", 0, loss="dpo", unit="nats/pair", steps=1), event("train.step", 1, loss=0.7),
        event("train.pairs", 1, split="train", loss=0.7), event("train.evaluate", 1, split="test", loss=2.0),
    ]  # fmt: skip
    table = events_to_dataframe(told)
    assert table.loss_unit[table.loss_unit.notna() & (table.name != "train.start")].tolist() == [
        "nats/token", "nats/pair", "nats/pair", "nats/token",
    ]  # fmt: skip
    assert unit_of("train.step", "loss") == "nats/token" and loss_unit(told[:1]) == "nats/token"
