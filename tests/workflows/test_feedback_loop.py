"""The feedback loop: triggers against independent computations and simulations, curation, logs, the whole loop on toy."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.adapters.files.datasets import FileDatasets
from kitchen.adapters.files.registry import FileRegistry
from kitchen.adapters.toy.client import ToyService
from kitchen.config import ExperimentSpec
from kitchen.data.formats import parse_rows
from kitchen.drift import (
    Drift,
    Interaction,
    Quality,
    Volume,
    Window,
    _accuracy_drop_bound,
    _even_shares,
    _pool_rare_kinds,
    compare_counts,
    compare_values,
    curate,
    find_leaks,
    held_out_prompts,
    normalize_prompt,
    read_interactions,
    read_window,
    write_examples,
    write_interactions,
)
from kitchen.engine.validation import check_workflow
from kitchen.engine.workflow import Flow
from kitchen.intervals import holm
from kitchen.recipes.registry import get_recipe
from kitchen.session.kitchen import Kitchen
from kitchen.store.run import Run
from kitchen.types import InvalidValue, Message, RowError
from kitchen.workflows.feedback_loop import (
    _LABELS,
    FeedbackConfig,
    HeldOutInteractions,
    export_examples,
    feedback_loop,
)

# -- the tests behind the triggers ---------------------------------------------------------------


def gap(first, second):
    """Largest distance of two empirical distribution functions, from the definition."""
    places = np.concatenate([first, second])
    return max(abs((first <= place).mean() - (second <= place).mean()) for place in places)


def permuted(first, second, times, rng):
    """Share of random relabellings with a gap as large."""
    seen, everything = gap(first, second), np.concatenate([first, second])
    hits = 0
    for _ in range(times):
        mixed = rng.permutation(everything)
        hits += gap(mixed[: len(first)], mixed[len(first) :]) >= seen - 1e-12
    return hits / times


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_distance_of_values_has_the_probability_that_permutations_give(shift):
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=30), rng.normal(shift, size=25)
    found, wanted = compare_values("x", first, second), permuted(first, second, 800, rng)
    assert found.distance == pytest.approx(gap(first, second))
    assert found.p == pytest.approx(wanted, abs=4 * math.sqrt(max(wanted, 0.01) / 800))


def test_ties_make_the_distance_of_values_conservative():
    rng = np.random.default_rng(4)
    first, second = rng.poisson(2, 40).astype(float), rng.poisson(2.6, 40).astype(float)
    assert compare_values("x", first, second).p >= permuted(first, second, 800, rng) - 0.05


def test_large_samples_agree_with_the_limit_law():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=400), rng.normal(0.1, size=300)
    found = compare_values("x", first, second)
    scaled = found.distance * math.sqrt(400 * 300 / 700)
    limit = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 50))
    assert found.p == pytest.approx(limit, rel=0.12)


def test_counts_of_three_kinds_follow_the_closed_form():
    before, now = {"a": 50, "b": 30, "c": 20}, {"a": 30, "b": 40, "c": 30}
    expected = {name: (before[name] + now[name]) / 2 for name in before}
    statistic = sum((side[name] - expected[name]) ** 2 / expected[name] for side in (before, now) for name in before)
    found = compare_counts("tag", before, now)
    assert found.p == pytest.approx(math.exp(-statistic / 2)), "two degrees of freedom"
    assert found.distance == pytest.approx(0.2) and found.test == "chi-squared"


def test_few_counts_are_judged_by_enumeration():
    a, b, c, d = 7, 2, 1, 5
    rows, column, total = (a + b, c + d), a + c, a + b + c + d
    chances = {
        k: math.comb(rows[0], k) * math.comb(rows[1], column - k) / math.comb(total, column)
        for k in range(max(0, column - rows[1]), min(rows[0], column) + 1)
    }
    wanted = sum(chance for chance in chances.values() if chance <= chances[a] * (1 + 1e-9))
    found = compare_counts("tag", {"x": a, "y": b}, {"x": c, "y": d})
    assert found.test == "Fisher" and found.p == pytest.approx(wanted)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=9).filter(
    lambda pairs: all(sum(pair) for pair in pairs) and all(sum(side) for side in zip(*pairs, strict=True))
))  # fmt: skip
def test_pooling_keeps_totals_and_expects_five_or_leaves_two(pairs):
    counts = np.array(pairs, float).T
    table, expected = _pool_rare_kinds(counts)
    assert table.sum(1).tolist() == counts.sum(1).tolist() and expected.sum() == pytest.approx(counts.sum())
    assert expected.min() >= 5 - 1e-9 or table.shape[1] == 2
    again, _ = _pool_rare_kinds(counts[::-1])
    assert sorted(map(tuple, table.T[:, ::-1].tolist())) == sorted(map(tuple, again.T.tolist())), (
        "blind to which side is which"
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_largest_of_the_steps_before(values):
    adjusted = holm(values)
    order = sorted(range(len(values)), key=lambda place: values[place])
    for rank, place in enumerate(order):
        steps = [min(1, (len(values) - before) * values[order[before]]) for before in range(rank + 1)]
        assert adjusted[place] == pytest.approx(max(steps))
    assert all(one >= value for one, value in zip(adjusted, values, strict=True))


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((5, 56), (0, 29), -0.0381, 0.1926)],
)
def test_the_bound_of_a_fall_is_that_of_the_paper(first, second, low, high):
    (a, m), (b, n) = first, second
    assert _accuracy_drop_bound(a / m, m, b / n, n, 0.025) == pytest.approx(low, abs=6e-5)
    assert -_accuracy_drop_bound(b / n, n, a / m, m, 0.025) == pytest.approx(high, abs=6e-5)


# -- false alarms and power ----------------------------------------------------------------------


def drawn(rng, size, shift=0.0, other=0.1, right=0.8):
    tags = rng.choice(["a", "b", "c", "rare"], size=size, p=[0.88 - other, other, 0.1, 0.02])
    measures = {
        "prompt_tokens": tuple(map(float, rng.poisson(9, size))),
        "mean_logprob": tuple(-rng.exponential(1 + shift, size)),
        "answer_tokens": tuple(map(float, rng.integers(1, 4, size))),
    }
    return Window("v", "", size, size, rng.binomial(size, right) / size, measures, {"tag": Counter(map(str, tags))})


@pytest.mark.parametrize(("sizes", "alpha"), [((300, 200), 0.05), ((400, 30), 0.1)])
def test_drift_without_a_change_fires_no_oftener_than_promised(sizes, alpha):
    rng, times, trigger = np.random.default_rng(6), 500, Drift(alpha, least=0.0)
    alarms = sum(trigger(drawn(rng, sizes[0]), drawn(rng, sizes[1])).fired for _ in range(times))
    assert alarms <= times * alpha + 3 * math.sqrt(times * alpha * (1 - alpha))


@pytest.mark.parametrize(("change", "feature"), [({"shift": 0.6}, "mean_logprob"), ({"other": 0.4}, "tag")])
def test_drift_finds_a_shift_and_names_it(change, feature):
    rng = np.random.default_rng(7)
    found = [Drift()(drawn(rng, 400), drawn(rng, 400, **change)) for _ in range(40)]
    assert sum(one.fired for one in found) >= 38
    assert all(one.details[0].feature == feature and feature in one.sentence for one in found if one.fired)


def test_a_difference_too_small_to_matter_does_not_fire_however_sure():
    rng = np.random.default_rng(8)
    before, now = drawn(rng, 20_000), drawn(rng, 20_000, shift=0.1)
    assert Drift(least=0.0)(before, now).fired and not Drift(least=0.1)(before, now).fired


@pytest.mark.parametrize(("size", "recent"), [(200, 200), (1000, 100), (60, 60)])
def test_quality_at_the_margin_fires_about_as_often_as_promised(size, recent):
    rng, times, trigger = np.random.default_rng(9), 3000, Quality(alpha=0.05, margin=0.05)
    windows = ((rng.binomial(size, 0.85) / size, rng.binomial(recent, 0.8) / recent) for _ in range(times))
    fired = sum(
        trigger(Window("v", "", size, size, before), Window("v", "", recent, recent, now)).fired
        for before, now in windows
    )
    assert 0.02 < fired / times < 0.07


def test_quality_finds_a_fall_and_not_a_rise():
    rng = np.random.default_rng(10)
    assert sum(Quality()(drawn(rng, 300), drawn(rng, 300, right=0.65)).fired for _ in range(60)) >= 54
    assert not any(Quality()(drawn(rng, 300), drawn(rng, 300, right=0.9)).fired for _ in range(60))


def test_findings_can_be_told_apart_and_written():
    rng = np.random.default_rng(11)
    for trigger in (Drift(), Quality(), Volume(100)):
        finding = trigger(drawn(rng, 300), drawn(rng, 200))
        assert finding.sentence and finding.reference == 300 and finding.recent == 200
        assert json.loads(json.dumps(asdict(finding)))["trigger"] == finding.trigger


# -- logs ----------------------------------------------------------------------------------------

texts = st.text(max_size=12)
interactions = st.builds(
    lambda number, prompt, *said: Interaction(
        f"i{number}", f"2020-01-01T00:{number // 60:02}:{number % 60:02}", "v", (Message("user", prompt),), *said
    ),
    st.integers(0, 3599), st.sampled_from(["a", "A ", "b", "c", "d", "e"]) | texts, texts,
    st.none() | st.sampled_from([0.0, 0.5, 1.0]), st.none() | texts, st.sampled_from("xyz"),
)  # fmt: skip
logs = st.lists(interactions, max_size=30, unique_by=lambda one: one.id)


@settings(max_examples=60, deadline=None)
@given(logs)
def test_a_log_comes_back_as_it_was_written(tmp_path_factory, log):
    path = tmp_path_factory.mktemp("logs") / "log.jsonl"
    assert read_interactions(write_interactions(log, path)) == (log, [])


GOOD = {"id": "a", "time": "2020-01-01", "model": "v", "prompt": "2 + 3", "answer": "5"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": ', "this line is not JSON"),
        (b"\xff\xfe", "this line is not JSON"),
        (b"[1]", "an interaction must be an object, not list"),
        ({"answer": None}, "field 'answer': must be text, not None"),
        ({"answr": "5"}, "unknown field 'answr'; did you mean 'answer'"),
        ({"grade": 2}, "field 'grade': must lie between 0 and 1"),
        ({"grade": True}, "field 'grade'"),
        ({"grade": float("nan")}, "field 'grade'"),
        ({"correction": 5}, "field 'correction': must be text or null"),
        ({"measures": {"tokens": "many"}}, "field 'measures': must be finite numbers"),
        ({"measures": {"tokens": float("inf")}}, "field 'measures'"),
        ({"time": "yesterday"}, "field 'time': must be a time in ISO 8601"),
        ({"prompt": []}, "there are no messages"),
        ({"prompt": [{"role": "usr", "content": "?"}]}, "did you mean 'user'"),
        (
            {"prompt": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
            "and not the answer itself",
        ),
        ({"id": "first"}, "'first' stands in line 1 already"),
    ],
)
def test_a_broken_line_is_named_with_file_and_number(tmp_path, line, message):
    path = tmp_path / "log.jsonl"
    wrong = line if isinstance(line, bytes) else json.dumps({**GOOD, **line}).encode()
    path.write_bytes(json.dumps({**GOOD, "id": "first"}).encode() + b"\n\n" + wrong + b"\n")
    with pytest.raises(RowError, match=r"log\.jsonl, row 3.*" + message):
        read_interactions(path)
    kept, problems = read_interactions(path, "set_aside")
    assert [one.id for one in kept] == ["first"] and problems[0].row == 3


def test_a_baseline_that_is_none_is_refused(tmp_path):
    for text in ("{", "[]", '{"measures": {"tokens": ["many"]}}', '{"measures": {}, "extra": 1}'):
        (tmp_path / "baseline.json").write_text(text)
        with pytest.raises(InvalidValue, match=r"baseline\.json is no baseline"):
            read_window(tmp_path / "baseline.json")
    with pytest.raises(InvalidValue, match="there is no log"):
        read_interactions(tmp_path / "nowhere.jsonl")


# -- curation ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    logs,
    st.integers(0, 12),
    st.none() | st.integers(1, 5),
    st.sets(st.sampled_from(["user: a", "user: b", "user: c"])),
)
def test_what_is_curated_is_right_once_not_held_out_and_accounted_for(log, limit, per_tag, held):
    found = curate(log, held, limit=limit, per_tag=per_tag)
    by_id = {one.id: one for one in log}
    prompts = [normalize_prompt(one.messages[:-1]) for one in found.examples]
    assert (
        len(set(prompts)) == len(prompts) <= limit
        and not set(prompts) & held
        and not find_leaks(found.examples, held)
    )
    assert len(prompts) + sum(found.left_out.values()) == len(log)
    for one in found.examples:
        source, taught = by_id[one.source], one.messages[-1].content
        assert taught == (source.correction if one.why == "corrected" else source.answer) and taught.strip()
        assert one.why == "corrected" or source.grade == 1 or source.correction is not None
    assert max(Counter(one.tag for one in found.examples).values(), default=0) <= (per_tag or limit)
    times = [by_id[one.source].time for one in found.examples]
    assert times == sorted(times)


@given(st.dictionaries(texts, st.integers(0, 50), max_size=6), st.integers(0, 80))
def test_room_is_shared_evenly_and_used(counts, limit):
    shares = _even_shares(counts, limit)
    assert sum(shares.values()) == min(limit, sum(counts.values())) and shares.keys() == counts.keys()
    short = [share for name, share in shares.items() if share < counts[name]]
    assert not short or max(shares.values()) - min(short) <= 1


@settings(max_examples=60, deadline=None)
@given(logs, st.floats(0.01, 0.99), st.integers(1, 8))
def test_held_out_prompts_are_known_ones_and_never_learnt(log, share, most):
    held = held_out_prompts(log, share, most, seed=1)
    assert held == held_out_prompts(log[::-1], share, most, seed=1) and len(held) <= most
    assert held <= {normalize_prompt(one.messages) for one in log}
    assert not find_leaks(curate(log, held).examples, held)


def test_what_is_exported_is_read_as_chats(tmp_path):
    log = [Interaction(f"i{n}", "2020-01-01", "v", (Message("system", "Add."), Message("user", f"{n} + 1")), "?", 0.0, str(n + 1))
           for n in range(5)]  # fmt: skip
    path = write_examples(curate(log).examples, tmp_path / "curated.jsonl")
    conversations, problems = parse_rows(FileDatasets().load(f"file:{path}"))
    assert not problems and [one.messages[-1].content for one in conversations] == ["1", "2", "3", "4", "5"]
    assert [one.role for one in conversations[0].messages] == ["system", "user", "assistant"]


# -- the loop ------------------------------------------------------------------------------------

SMALL = {
    "backend": "toy", "reference_size": 120, "recent_size": 120, "reference_traffic": {"builtin:parity": 1},
    "recent_traffic": {"builtin:parity": 1, "builtin:count_letters": 1}, "batch_size": 16, "epochs": 4, "held_out": 16,
    "graded": 24, "max_tokens": 8, "warmup_steps": 0,
}  # fmt: skip


@pytest.fixture
def loop(tmp_path):
    """Runs the loop on toy; its events, what it left in the flow, and its artifacts."""

    def go(name, **changed):
        run = Run.create(ExperimentSpec(recipe="feedback_loop", parent=None), tmp_path / name)
        ports = {"service": ToyService(), "datasets": FileDatasets(), "registry": FileRegistry(tmp_path / "registry")}
        values = {"config": FeedbackConfig(**{**SMALL, **changed}), "run": run, **ports}
        events = list(Flow(feedback_loop, values, run.log))
        run.close()
        assert run.verify() == []
        return events, values, run.path / "artifacts"

    return go


def scores(made):
    """What a loop that learnt came to."""
    found = json.loads((made / "results.json").read_text())
    assert found["decision"] == "retrain"
    return found


def test_the_loop_keeps_its_contracts():
    check_workflow(feedback_loop, {"config", "run", "datasets", "service", "registry"}, {"version"})


def test_a_change_leads_to_training_and_to_a_new_baseline(loop):
    events, values, made = loop("changed")
    assert values["fired"] and values["version"] == 1
    found = scores(made)
    for part in (found, found["reference"]):
        assert part["after"]["accuracy"] > part["before"]["accuracy"]
        assert all(
            part[label]["low"] - 1e-12 <= part[label]["accuracy"] <= part[label]["high"] + 1e-12 for label in _LABELS
        )
    learnt = [json.loads(line) for line in (made / "curated.jsonl").read_text().splitlines()]
    prompts = {normalize_prompt([Message("user", one["messages"][0]["content"])]) for one in learnt}
    held_out = values["held_out_interactions"]
    assert not prompts & {normalize_prompt(one.messages) for one in (*held_out.reference, *held_out.recent)}
    sources = {one["source"].partition("-")[0] for one in learnt}
    assert sources == {"reference", "recent"}, "some of the old is learnt again"
    everything, _ = read_interactions(made / "interactions.jsonl")
    assert len(everything) == 240 and {one["source"] for one in learnt} <= {one.id for one in everything}
    assert read_window(made / "baseline.json") == values["new_baseline"] and values["new_baseline"].until == everything[-1].time
    right = [one.grade == 1 for one in everything if one.id.startswith("recent")]
    assert Window.from_interactions(values["traffic"].recent).accuracy == pytest.approx(np.mean(right))


@pytest.mark.parametrize("rehearsal", [0.0, 0.25])
def test_rehearsal_is_a_share_of_what_is_learnt(loop, rehearsal):
    _, values, _ = loop(f"share{rehearsal}", rehearsal=rehearsal)
    old = sum(one.source.startswith("reference") for one in values["examples"])
    assert old == pytest.approx(rehearsal * len(values["examples"]), abs=1)


def test_without_a_change_the_loop_stops_and_the_baseline_stands(loop):
    events, values, made = loop("unchanged", recent_traffic=SMALL["reference_traffic"])
    assert not values["fired"] and "training" not in values and "version" not in values
    assert next(item for item in events if item.name == "feedback.decide")["decision"] == "keep the model"
    assert read_window(made / "baseline.json") == values["baseline_window"]
    assert json.loads((made / "results.json").read_text())["decision"] == "keep the model"
    again, values, _ = loop(
        "again", baseline=str(made / "baseline.json"), recent_traffic=SMALL["reference_traffic"], seed=3
    )
    assert not values["fired"], "the next loop compares with the baseline that stands"


def test_the_whole_loop_raises_few_false_alarms(loop):
    same = {"recent_traffic": SMALL["reference_traffic"], "reference_size": 80, "recent_size": 60, "epochs": 1}
    same["triggers"] = {"drift": {"alpha": 0.05, "least": 0.0}}
    fired = sum(loop(f"seed{seed}", seed=seed, **same)[1]["fired"] for seed in range(20))
    assert fired <= 4, "more would happen in 1 of 400 tries"


def test_a_log_of_the_same_traffic_gives_the_same_loop(loop):
    _, _, served = loop("served")
    _, values, logged = loop("logged", interactions=str(served / "interactions.jsonl"), since="2000-02-01")
    first, second = scores(served), scores(logged)
    assert (first["baseline"].pop("model"), second["baseline"].pop("model")) == ("feedback_loop:1", "feedback_loop:2")
    assert second == first and values["run"].spec.datasets
    assert (logged / "curated.jsonl").read_bytes() == (served / "curated.jsonl").read_bytes()


def test_volume_alone_leads_to_training(loop):
    _, values, _ = loop(
        "enough", recent_traffic=SMALL["reference_traffic"], triggers={"volume": {"least": 120}}, epochs=1
    )
    assert [one.trigger for one in values["findings"]] == ["volume"] and values["version"] == 1


def test_an_examination_that_leaked_is_refused(loop, tmp_path):
    _, values, _ = loop("leak", epochs=1)
    seen = values["traffic"].recent[-1]
    learnt = curate([replace(seen, grade=1.0, correction=None)]).examples
    stage = export_examples(values["config"], FileDatasets(), values["run"], learnt, HeldOutInteractions((), (seen,)))
    with pytest.raises(InvalidValue, match=f"prompts of the examination are among the examples: {seen.id}"):
        list(stage)


def test_a_bad_line_stops_the_loop_or_is_set_aside(loop, tmp_path):
    _, _, made = loop("served", epochs=1)
    log = tmp_path / "log.jsonl"
    log.write_bytes((made / "interactions.jsonl").read_bytes() + b'{"id": 7}\n')
    with pytest.raises(RowError, match=r"log\.jsonl, row 241, field 'time': is missing"):
        loop("stops", interactions=str(log))
    events, _, _ = loop("goes on", interactions=str(log), on_bad_row="set_aside", since="2000-02-01", epochs=1)
    assert [item["row"] for item in events if item.name == "data.set_aside"] == [241]


def test_a_session_goes_back_and_comes_to_the_same_end():
    recipe = replace(get_recipe("sft"), name="feedback_loop", workflow=feedback_loop, config=FeedbackConfig)
    k = Kitchen(recipe, **{**SMALL, "epochs": 1, "snapshot_every": 2})
    first = k.run().run_record.artifacts()
    k.rewind(step=3).run()
    again = {made.name: made.sha256 for made in k.run_record.artifacts()}
    assert again == {made.name: made.sha256 for made in first}
    k.close()


# -- what a model is shown beside messages, and what it cannot read --------------------------------

WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}}


def logged(path, count=40, **beside):
    """A log of corrected interactions of two periods."""
    log = [Interaction(f"i{n}", f"2020-01-{n // 2 + 1:02}", "v", (Message("user", f"How warm is it in {n}?"),), "?", 0.0, f"{n} degrees", **beside)
           for n in range(count)]  # fmt: skip
    return write_interactions(log, path)


def test_tools_and_template_variables_of_traffic_reach_what_is_learnt_and_asked(tmp_path):
    beside = {"tools": (WEATHER,), "chat_template_kwargs": {"enable_thinking": False}}
    path = logged(tmp_path / "log.jsonl", **beside)
    assert read_interactions(path)[0][0].tools == (WEATHER,) and read_interactions(path)[0][0].chat_template_kwargs == {"enable_thinking": False}
    plain = logged(tmp_path / "plain.jsonl")
    assert "tools" not in plain.read_text() and read_interactions(plain)[0][0].tools == ()
    triggers = {"volume": {"least": 5}}
    asked = {**SMALL, "renderer": "qwen3", "triggers": triggers, "batch_size": 4, "max_length": 1024, "epochs": 1, "graded": 4}
    with Kitchen("feedback_loop", **asked, interactions=str(path)) as k:
        k.run()
        rows = [json.loads(line) for line in (k.run_dir / "artifacts" / "curated.jsonl").read_text().splitlines()]
        assert rows and all(row["tools"] == [WEATHER] and row["chat_template_kwargs"] == {"enable_thinking": False} for row in rows)
        splits, tokenizer = k.state["conversations"], k.state["renderer"].tokenizer
        assert all(one.tools == (WEATHER,) for one in (*splits.train, *splits.test))
        for datum in k.state["data"].train:
            assert "weather" in tokenizer.decode(datum.tokens.tolist())
        for question in (*k.state["questions"], *k.state["reference_questions"]):
            assert "weather" in tokenizer.decode(list(question.prompt))
        assert k.run_record.verify() == []
    with pytest.raises(RowError, match="tools"):
        Interaction.from_json({**json.loads(plain.read_text().splitlines()[0]), "tools": [{"name": 3}]})
    with pytest.raises(RowError, match="chat_template_kwargs"):
        Interaction.from_json({**json.loads(plain.read_text().splitlines()[0]), "chat_template_kwargs": ["thinking"]})


def test_traffic_beyond_the_context_is_a_bad_row_before_anything_is_asked(tmp_path, monkeypatch):
    from kitchen.adapters.toy.tokenizer import ToyTokenizer

    monkeypatch.setattr(ToyTokenizer, "model_max_length", 60, raising=False)
    log = [Interaction(f"i{n}", f"2020-01-{n // 2 + 1:02}", "v", (Message("user", "long " * 20 if n in (3, 35) else f"{n}?"),), "?", 0.0, "yes")
           for n in range(40)]  # fmt: skip
    path = write_interactions(log, tmp_path / "log.jsonl")
    asked = {**SMALL, "triggers": {"volume": {"least": 5}}, "batch_size": 4, "epochs": 1, "graded": 4, "interactions": str(path)}
    with Kitchen("feedback_loop", **asked) as k, pytest.raises(RowError, match=r"i3.*more than the 60 tokens that the model reads"):
        k.run()
    with Kitchen("feedback_loop", **asked, on_bad_row="set_aside") as k:
        k.run()
        assert [item["source"].rpartition(" ")[2] for item in k.log.named("data.set_aside")] == ["i3", "i35"] and k.status == "completed"
    rows = tmp_path / "questions.jsonl"
    rows.write_text("".join(json.dumps({"question": "long " * 20 if n == 2 else f"{n}?", "answer": "yes"}) + "\n" for n in range(20)))
    served = {**SMALL, "reference_traffic": {f"file:{rows}": 1.0}, "recent_traffic": {f"file:{rows}": 1.0}}
    with Kitchen("feedback_loop", **served) as k, pytest.raises(RowError, match=r"row 3.*more than the 60 tokens"):
        k.run(until="collect_traffic")
    with Kitchen("feedback_loop", **served, on_bad_row="set_aside") as k:
        k.run(until="collect_traffic")
        assert {item["row"] for item in k.log.named("data.set_aside")} == {3} and len(k.state["traffic"].recent) == 120
