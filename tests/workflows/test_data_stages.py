"""From a dataset to datums in every workflow: its own test split, what stands on both sides, rows beyond the model, and the same in `check`."""

import json

import pytest
from small_settings import SMALL_SETTINGS

import kitchen
from kitchen import Kitchen
from kitchen.inspection.dataset_check import check
from kitchen.reports.build import show_data
from kitchen.store.run import Run
from kitchen.types import InvalidValue, RowError

SMALL = {"batch_size": 4, "epochs": 1, "graded": 4, "held_out": 4, "max_tokens": 8, "warmup_steps": 0}
CONTEXT = 512  # of the embedded model


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def asked(count, prefix="add"):
    return [{"question": f"{prefix} {number}", "answer": str(number)} for number in range(count)]


def rendered(recipe="sft", **settings):
    k = Kitchen(recipe, **{**SMALL, "backend": "toy", **settings})
    k.run(until="render")
    return k


def told(k, name):
    return list(k.run_record.log.active_events.named(name))


@pytest.mark.parametrize(
    ("test", "train", "source"),
    [
        ("test.jsonl", "train.jsonl", "'test'"),
        ("validation.jsonl", "train.jsonl", "'validation'"),
        ("dev.csv", "train.jsonl", "'dev'"),
        ("test/part.jsonl", "train/part.jsonl", "'test'"),
        ("data/test-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl", "'test'"),
    ],
)
def test_a_folder_keeps_its_own_test(tmp_path, test, train, source):
    write(tmp_path / "mine" / train, asked(24))
    path = tmp_path / "mine" / test
    write(path, asked(6, "HELD"))
    if path.suffix == ".csv":
        path.write_text("question,answer\n" + "".join(f"HELD {number},h\n" for number in range(6)))
    k = rendered(dataset=f"file:{tmp_path / 'mine'}")
    assert len(k.state["conversations"].train) == 24 and all(one.text.startswith("HELD") for one in k.state["questions"])
    (split,) = told(k, "data.split")
    assert split["source"] == f"the dataset's own split {source}" and (split["train"], split["held_out"], split["prompts"]) == (24, 4, 0)
    (counts,) = [item for item in told(k, "data.statistics") if item["split"] == "train"]
    assert (counts["rows"], counts["messages"], counts["duplicates"]) == (24, 48, 0)
    assert "own split" in repr(show_data(k.run_record))
    k.close()


def test_saved_datasets_keep_their_own_test(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(asked(24)), validation=Dataset.from_list(asked(6, "HELD"))).save_to_disk(str(tmp_path / "saved"))
    for scheme in ("hf", "file"):
        k = rendered(dataset=f"{scheme}:{tmp_path / 'saved'}")
        assert len(k.state["conversations"].train) == 24 and all(one.text.startswith("HELD") for one in k.state["questions"])
        assert told(k, "data.split")[0]["source"] == "the dataset's own split 'validation'"
        k.close()
    Dataset.from_list(asked(24)).save_to_disk(str(tmp_path / "one"))
    k = rendered(dataset=f"hf:{tmp_path / 'one'}")
    assert len(k.state["conversations"].train) == 22 and told(k, "data.split")[0]["source"].startswith("a share of 0.1")
    k.close()


def test_a_named_split_and_chosen_rows_have_their_counterpart(tmp_path):
    for name in ("train_sft", "train_gen", "test_sft", "test_gen"):
        write(tmp_path / "mine" / f"{name}.jsonl", asked(24, name))
    k = rendered(dataset=f"file:{tmp_path / 'mine'}?split=train_gen[:12]")
    assert len(k.state["conversations"].train) == 12 and all(one.text.startswith("test_gen") for one in k.state["questions"])
    k.close()
    k = rendered(dataset=f"file:{tmp_path / 'mine'}?split=test_sft")
    assert told(k, "data.split")[0]["source"].startswith("a share of"), "a test that is trained on is no test"
    k.close()


def test_splits_that_nobody_reads_are_named(tmp_path):
    for name in ("train", "extra", "test", "dev"):
        write(tmp_path / "mine" / f"{name}.jsonl", asked(12, name))
    k = rendered(dataset=f"file:{tmp_path / 'mine'}")
    assert told(k, "data.split")[0]["source"] == "the dataset's own split 'test'; not read: dev, extra"
    assert kitchen.check(f"file:{tmp_path / 'mine'}").held_out == told(k, "data.split")[0]["source"]
    k.close()
    for name in ("test", "dev"):
        (tmp_path / "mine" / f"{name}.jsonl").unlink()
    k = rendered(dataset=f"file:{tmp_path / 'mine'}")
    assert told(k, "data.split")[0]["source"].endswith("split by prompt; not read: extra")
    assert kitchen.check(f"file:{tmp_path / 'mine'}").held_out == told(k, "data.split")[0]["source"]
    k.close()


def test_a_test_dataset_goes_before_all(tmp_path):
    write(tmp_path / "mine" / "train.jsonl", asked(24))
    write(tmp_path / "mine" / "test.jsonl", asked(6, "OWN"))
    other = write(tmp_path / "other.jsonl", [*asked(3, "HELD"), *asked(3)])
    k = rendered(dataset=f"file:{tmp_path / 'mine'}", test_dataset=other, held_out=6, graded=6)
    (split,) = told(k, "data.split")
    assert split["source"] == "test_dataset" and (split["held_out"], split["conversations"], split["prompts"]) == (6, 3, 3)
    k.close()
    only = tmp_path / "only"
    write(only / "train.jsonl", asked(4, "HELD"))
    k = rendered(dataset=f"file:{tmp_path / 'mine'}", test_dataset=f"file:{only}")
    assert told(k, "data.split")[0]["source"] == "test_dataset, split 'train'"
    k.close()


def test_what_belongs_together_stands_on_one_side(tmp_path):
    rows = [{**row, "book": index % 5} for index, row in enumerate(asked(30))]
    k = rendered(dataset=write(tmp_path / "twice.jsonl", rows * 2), held_out=12, graded=12)
    (split,) = told(k, "data.split")
    assert (split["conversations"], split["prompts"]) == (0, 0) and split["source"].endswith("split by prompt")
    assert [item["duplicates"] for item in told(k, "data.statistics")] == [27, 3]
    k.close()
    k = rendered(dataset=write(tmp_path / "books.jsonl", rows), group_column="book", test_fraction=0.2)
    sides = [{row.row["book"] for row in side} for side in (k.state["conversations"].train, k.state["conversations"].test)]
    assert len(sides[1]) == 1 and not sides[0] & sides[1] and told(k, "data.split")[0]["source"].endswith("split by group")
    k.close()
    with pytest.raises(InvalidValue, match="did you mean 'book'"):
        rendered(dataset=str(tmp_path / "books.jsonl"), group_column="boook")


LONG, SHORT = "word " * 700, "word " * 3
BEYOND = {
    "sft": [{"question": f"q {n}", "answer": LONG if n == 17 else SHORT} for n in range(40)],
    "dpo": [{"prompt": f"q {n}", "chosen": LONG if n == 17 else "yes", "rejected": SHORT} for n in range(40)],
    "reward_model": [{"prompt": f"q {n}", "chosen": "yes", "rejected": LONG if n == 17 else SHORT} for n in range(40)],
    "distill_off_policy": [{"question": LONG if n == 17 else f"q {n}", "answer": SHORT} for n in range(40)],
}


@pytest.mark.parametrize("recipe", BEYOND)
def test_a_row_beyond_the_model_is_found_while_rendering(tmp_path, recipe):
    settings = {"dataset": write(tmp_path / "rows.jsonl", BEYOND[recipe]), "backend": "torch", "test_fraction": 0.05}
    stopped = Kitchen(recipe, **SMALL, **settings)
    with pytest.raises(RowError, match=rf"rows.jsonl, row 18.* tokens.* {CONTEXT}|rows.jsonl, row 18.* tokens.* {CONTEXT - 1}") as error:
        stopped.run(until="render")
    assert error.value.row == 18 and not told(stopped, "train.step")
    stopped.close()
    k = rendered(recipe, **settings, on_bad_row="set_aside")
    assert [(one["row"], one["source"]) for one in told(k, "data.set_aside")] == [(18, settings["dataset"])]
    (train,) = [item for item in told(k, "render.data") if item["split"] == "train"]
    assert train["limit"] == CONTEXT and train["set_aside"] == 1 and train["longest"] < 60
    k.close()


def test_a_run_with_a_row_set_aside_ends_well(tmp_path):
    k = Kitchen("sft", **SMALL, dataset=write(tmp_path / "rows.jsonl", BEYOND["sft"]), on_bad_row="set_aside")
    k.run()
    assert k.run_record.status == "completed" and "Set aside: 1" in repr(show_data(k.run_record))
    again = Run(k.run_record.path)  # what was logged of the data can be read back
    assert {"data.split", "data.statistics", "render.data"} <= {item.name for item in again.log.events}
    k.close()


def test_the_smaller_limit_counts_and_cuts_are_counted(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]} for _ in range(20)]
    rows[3]["messages"].append({"role": "user", "content": "thanks " * 40})
    rows = [{**row, "n": index} for index, row in enumerate(rows)]
    k = rendered(dataset=write(tmp_path / "rows.jsonl", rows), max_length=64, test_fraction=0.05)
    cut = {item["split"]: item["cut"] for item in told(k, "render.data")}
    assert sum(cut.values()) == 1 and {item["limit"] for item in told(k, "render.data")} == {64}
    k.close()
    found = check(str(tmp_path / "rows.jsonl"), backend="toy", max_length=64)
    assert found.ok and found.train.cut == 1 and found.limit.tokens == 64


@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_a_question_that_leaves_no_room_is_a_bad_row(tmp_path, recipe):
    long = "word " * 499
    rows = [{"question": long, "answer": "a"}] * 4 if recipe == "sft" else [{"prompt": long, "chosen": "a", "rejected": "b"}] * 4
    plain = asked(8) if recipe == "sft" else [{"prompt": row["question"], "chosen": "a", "rejected": "b"} for row in asked(8)]
    write(tmp_path / "mine" / "train.jsonl", plain)
    write(tmp_path / "mine" / "test.jsonl", rows)
    settings = {"dataset": f"file:{tmp_path / 'mine'}", "backend": "torch", "batch_size": 4, "max_tokens": 32}
    until = "render" if recipe == "sft" else "make_questions"
    with pytest.raises(RowError, match=rf"test.jsonl, row 1: a prompt of \d+ tokens and an answer of up to 32 .* more than the {CONTEXT}"):
        Kitchen(recipe, **{**SMALL, **settings}).run(until=until)
    k = Kitchen(recipe, **{**SMALL, **settings}, on_bad_row="set_aside")
    k.run(until=until)
    assert k.state["questions"] == [] and [one["row"] for one in told(k, "data.set_aside")] == [1, 2, 3, 4]
    k.close()


def test_a_problem_that_leaves_no_room_is_refused_before_it_is_played(tmp_path):
    with pytest.raises(InvalidValue, match=rf"task:reworded, split 'train', problem 1 .* but the model reads at most {CONTEXT}; lower max_tokens"):
        Kitchen("rl_math", env="task:reworded", problems=8, batch_size=4, graded=4, max_tokens=CONTEXT, max_length=4096).run(until="make_problems")
    k = Kitchen("rl_math", env="task:reworded", problems=8, batch_size=4, graded=4, max_tokens=8, max_length=4096)
    k.run(until="make_problems")
    from kitchen.workflows.rl import episode_limits

    assert episode_limits(k.config, k.state["renderer"]).tokens == CONTEXT and episode_limits(k.config).tokens == 4096
    k.close()


def test_check_and_training_refuse_the_same_rows(tmp_path):
    rows = [
        *asked(20), {"question": "x"}, {"question": 3, "answer": "a"}, {"question": "q", "answer": "word " * 700}, {"other": 1},
    ]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", rows)
    with open(path, "a") as file:
        file.write("{broken\n")
    found = kitchen.check(path, test_fraction=0.05)
    k = rendered(dataset=path, backend="torch", on_bad_row="set_aside", test_fraction=0.05)
    refused = sorted(one.row for one in found.train.bad_rows)
    assert refused == sorted(one["row"] for one in told(k, "data.set_aside")) == [21, 22, 23, 24, 25]
    assert not found.ok and found.train.read == 25 and sum(found.train.reasons.values()) == 5
    assert found.held_out_rows == len(k.state["conversations"].test)
    page = found.to_json()
    assert page["context"] == CONTEXT and page["train"]["lengths"]["rows"] == 20 and json.dumps(page)
    k.close()


def test_check_of_a_folder_tells_what_stands_on_both_sides(tmp_path):
    write(tmp_path / "mine" / "train.jsonl", [*asked(20), *asked(2)])
    write(tmp_path / "mine" / "test.jsonl", [*asked(3), {"question": "add 5", "answer": "<b>other"}])
    found = check(f"file:{tmp_path / 'mine'}", backend="toy")
    assert found.ok and (found.overlap.conversations, found.overlap.prompts) == (3, 4) and found.splits == ("test", "train")
    assert found.train.counts.duplicates == 2 and found.test is not None and found.test.read == 4
    assert "3 held-out rows are trained on, 4 with their prompt" in repr(found) and "<b>other" not in found._repr_html_()


@pytest.mark.parametrize("phase", ["sft/render", "reward/render"])
def test_phases_obey_what_the_run_says_of_bad_rows(tmp_path, phase):
    answers = [{"question": f"q {n}", "answer": LONG if n == 17 else "five"} for n in range(40)]
    pairs = [{"prompt": f"q {n}", "chosen": LONG if n == 23 else "five", "rejected": "no"} for n in range(40)]
    settings = {
        **SMALL_SETTINGS["rlhf"],
        "sft_dataset": write(tmp_path / "answers.jsonl", answers),
        "pair_dataset": write(tmp_path / "pairs.jsonl", pairs),
        "sft_batch_size": 16,
    }
    k = Kitchen("rlhf", **settings, on_bad_row="set_aside")
    k.run(until=phase)
    assert [one["row"] for one in told(k, "data.set_aside")] == [18, 24][: 1 + phase.startswith("reward")]
    k.close()
    if phase.startswith("sft"):
        with pytest.raises(RowError, match="answers.jsonl, row 18"):
            Kitchen("rlhf", **settings).run(until=phase)
