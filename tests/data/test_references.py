"""Datasets by name: files of every kind, installed packages, our own tasks, the hub; and what bad ones get."""

import csv
import gzip
import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest

from kitchen.adapters.files.blobs import FileBlobs
from kitchen.adapters.files.datasets import FileDatasets
from kitchen.adapters.files.registry import FileRegistry
from kitchen.adapters.huggingface import HuggingFaceDatasets, HuggingFaceHub, _hub_error
from kitchen.data.batches import Batches, Cursor, StreamBatches
from kitchen.data.formats import parse_rows, parse_stream
from kitchen.data.references import split_kind
from kitchen.ports.registry import create_adapter
from kitchen.types import BackendError, DamagedData, InvalidValue, RowError, UnknownName

ROWS = [{"question": f"{number} + 1, \"quoted\"?\nä", "answer": str(number + 1)} for number in range(30)]  # fmt: skip


def write_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def write_packed_lines(path):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)


def write_array(path):
    path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")


def write_table(path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path):
    import pandas

    pandas.DataFrame(ROWS).to_parquet(path)


WRITERS = {
    ".jsonl": write_lines,
    ".jsonl.gz": write_packed_lines,
    ".json": write_array,
    ".csv": write_table,
    ".parquet": write_parquet,
}


@pytest.fixture(params=WRITERS)
def dataset(request, tmp_path):
    path = tmp_path / f"sums{request.param}"
    WRITERS[request.param](path)
    return path


@pytest.mark.parametrize("store", [FileDatasets, HuggingFaceDatasets])
def test_every_kind_of_file_reads_the_same(dataset, store, tmp_path):
    table = store().load(f"file:{dataset}")
    write_lines(tmp_path / "plain.jsonl")
    assert (
        list(table) == ROWS
        and table.fingerprint() == store().load(str(tmp_path / "plain.jsonl")).fingerprint()
    )
    assert [row for _, row in store().stream(str(dataset))] == ROWS
    some = store().load(f"{dataset}[10:12]")
    assert list(some) == ROWS[10:12] and some.origin(0) == table.origin(10)
    assert str(dataset) in table.origin(0)


def test_streams_and_tables_have_the_same_origins(dataset):
    table = FileDatasets().load(str(dataset))
    assert [one for one, _ in FileDatasets().stream(str(dataset))] == [table.origin(n) for n in range(30)]


def test_a_stream_from_a_file_continues_exactly(dataset):
    def batches(cursor):
        conversations = parse_stream(FileDatasets().stream(str(dataset)))
        return StreamBatches(conversations, batch_size=7, epochs=2, seed=3, buffer=8, cursor=cursor)

    whole, running = list(batches(Cursor())), batches(Cursor())
    for position, batch in enumerate(running, start=1):
        assert batch == whole[position - 1] and list(batches(running.cursor)) == whole[position:]


def test_long_cells_and_marks_at_the_beginning(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("\ufefftext\n" + "a" * 200_000 + "\n", encoding="utf-8")
    assert len(FileDatasets().load(str(path))[0]["text"]) == 200_000
    (tmp_path / "mark.jsonl").write_text('\ufeff{"text": "a"}\n', encoding="utf-8")
    assert FileDatasets().load(str(tmp_path / "mark.jsonl")).rows == [{"text": "a"}]


def test_broken_lines_can_be_set_aside(chats):
    path = chats(['{"text": "a"}', '{"text": ', "", "[1]", '{"text": 5}', '{"text": "b"}'])
    table = FileDatasets().load(f"file:{path}")
    with pytest.raises(RowError, match=r"chats.jsonl, row 2: this line is not JSON: .* at column 10"):
        list(table)
    with pytest.raises(RowError, match="row 2"):
        parse_rows(table)
    kept, problems = parse_rows(table, "set_aside")
    assert [one.messages[0].content for one in kept] == ["a", "b"] and len(table) == 3
    assert [one.row for one in problems] == [2, 4, 5] and all(one.source == str(path) for one in problems)
    assert kept[1].origin == f"{path}, row 6"


def test_an_exact_line_is_named_in_every_format(tmp_path):
    (tmp_path / "a.json").write_text('[\n {"text": "a"},\n {"text": }\n]')
    with pytest.raises(RowError, match="a.json, row 3: not JSON: .* at column"):
        FileDatasets().load(str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text('[{"text": "a"}, "b"]')
    with pytest.raises(RowError, match="b.json, row 2: a row must be an object, not str"):
        list(FileDatasets().load(str(tmp_path / "b.json")))
    (tmp_path / "c.csv").write_text('question,answer\n"1\n+ 1",2\n3\n')
    with pytest.raises(RowError, match="c.csv, row 4: the header has 2 columns"):
        list(FileDatasets().load(str(tmp_path / "c.csv")))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jsonl", b"", "empty.jsonl is empty: there are no rows"),
        ("blank.jsonl", b"\n \n", "is empty"),
        ("header.csv", b"question,answer\n", "is empty"),
        ("twice.csv", b"text,text\na,b\n", "names a column twice"),
        ("none.json", b"[]", "is empty"),
        ("object.json", b'{"text": "a"}', "must hold a JSON array of objects, not dict"),
        ("lines.json", b'{"text": "a"}\n{"text": "b"}\n', "name it .jsonl"),
        ("all.jsonl", b"broken\n", "all.jsonl, row 1: this line is not JSON"),
        ("latin.jsonl", '{"text": "ä"}'.encode("latin-1"), "latin.jsonl cannot be read as .jsonl in UTF-8"),
        (
            "torn.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9],
            "torn.jsonl.gz cannot be read as .jsonl.gz",
        ),
        ("fake.jsonl.gz", b'{"text": "a"}\n', "fake.jsonl.gz cannot be read as .jsonl.gz"),
        ("torn.parquet", b"PAR1nothing", "torn.parquet cannot be read as Parquet"),
        ("notes.txt", b"a", "unknown ending of a data file '.txt'"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidValue, match=reason) as caught:
        FileDatasets().load(f"file:{tmp_path / name}")
    assert name in str(caught.value)


def test_a_missing_file_is_answered_with_the_nearest(tmp_path, chats):
    chats([{"text": "a"}], "chats.jsonl")
    with pytest.raises(InvalidValue, match=r"there is no file .*chat.jsonl; did you mean 'chats.jsonl'"):
        FileDatasets().load(f"file:{tmp_path}/chat.jsonl")
    with pytest.raises(InvalidValue, match="there is no file"):
        FileDatasets().stream(f"file:{tmp_path}/nowhere/chat.jsonl")


def test_folders_hold_a_file_a_split(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "validation.csv").write_text("text\nb\n")
    assert FileDatasets().load(f"file:{tmp_path}").rows == [{"text": "a"}]
    assert FileDatasets().load(f"file:{tmp_path}?split=validation", "test").rows == [{"text": "b"}]
    with pytest.raises(UnknownName, match="unknown split 'valid'; did you mean 'validation'"):
        FileDatasets().load(f"file:{tmp_path}", "valid")
    with pytest.raises(InvalidValue, match="a single file has no splits"):
        FileDatasets().load(f"file:{tmp_path}/train.jsonl?split=test")


def test_our_own_tasks():
    train, test = (FileDatasets().load("builtin:sort", split) for split in ("train", "test"))
    asked = [{row["messages"][0]["content"] for row in table} for table in (train, test)]
    assert len(train) == 2048 and asked[1] and not asked[0] & asked[1]
    assert list(FileDatasets().load("builtin:sort[100:103]")) == list(train)[100:103]
    assert FileDatasets().load("builtin:sort").fingerprint() == train.fingerprint()
    assert train.origin(0) == "builtin:sort, row 1"
    for wrong, split, answer in (
        ("sortt", "train", "'sort'"),
        ("sort", "tset", "'test'"),
        ("pretrain", "tran", "'train'"),
    ):
        with pytest.raises(UnknownName, match=f"did you mean {answer}"):
            FileDatasets().load(f"builtin:{wrong}", split)


def test_data_of_a_package_without_importing_it(tmp_path):
    package = tmp_path / "shelf" / "data"
    package.mkdir(parents=True)
    (tmp_path / "shelf" / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "chats.jsonl").write_text('{"text": "a"}\n')
    code = (
        "from kitchen.adapters.files import FileDatasets as store\n"
        "for name in ('shelf/data', 'shelf.data'):\n"
        "    table = store().load(f'package:{name}/chats.jsonl')\n"
        "    print(table.origin(0))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "package:shelf/data/chats.jsonl, row 1",
        "package:shelf.data/chats.jsonl, row 1",
    ], done.stderr
    with pytest.raises(InvalidValue, match="no package 'pytset' is installed here; did you mean 'pytest'"):
        FileDatasets().load("package:pytset/data.jsonl")
    with pytest.raises(InvalidValue, match="there is no file"):
        FileDatasets().load("package:pytest/data.jsonl")


@pytest.mark.skipif(not find_spec("tinker_cookbook"), reason="tinker-cookbook is not installed")
def test_the_cookbooks_conversations():
    table = FileDatasets().load("package:tinker_cookbook/example_data/conversations.jsonl")
    conversations, problems = parse_rows(table)
    assert len(conversations) == 128 and not problems
    assert conversations[0].messages[0].role == "user" and len(Batches(conversations, 32)) == 4


def test_a_hub_is_named_where_one_is_needed():
    with pytest.raises(InvalidValue, match="use the adapter 'huggingface'"):
        create_adapter("datasets", "files").load("hf:org/name")
    assert len(create_adapter("datasets", "huggingface").load("builtin:sort[:5]")) == 5


@pytest.fixture
def hub_folder(tmp_path):
    """A folder as a hub dataset is laid out, with two configurations."""
    folder = tmp_path / "hub"
    for config in ("easy", "hard"):
        (folder / config).mkdir(parents=True)
        write_lines(folder / config / "train.jsonl")
        write_lines(folder / config / "test.jsonl")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: easy\n  data_dir: easy\n- config_name: hard\n  data_dir: hard\n---\n"
    )
    return folder


def test_hub_datasets_in_a_folder(hub_folder):
    store = HuggingFaceDatasets()
    table = store.load(f"hf:{hub_folder}:easy")
    assert list(table) == ROWS and table.origin(4) == f"hf:{hub_folder}:easy, row 5"
    assert list(store.load(f"hf:{hub_folder}:hard?split=test[2:4]")) == ROWS[2:4]
    assert [row for _, row in store.stream(f"hf:{hub_folder}:easy[:3]", "test")] == ROWS[:3]
    with pytest.raises(UnknownName, match="unknown configuration 'esay'; did you mean 'easy'"):
        store.load(f"hf:{hub_folder}:esay")
    with pytest.raises(InvalidValue, match="has several configurations, name one .*: easy, hard"):
        store.load(f"hf:{hub_folder}")
    with pytest.raises(UnknownName, match="unknown split 'tests'; did you mean 'test'"):
        store.load(f"hf:{hub_folder}:easy", "tests")


def test_datasets_saved_to_disk(tmp_path):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:4])}).save_to_disk(
        tmp_path / "both"
    )
    store = HuggingFaceDatasets()
    assert list(store.load(f"hf:{tmp_path}/one")) == ROWS
    assert list(store.load(f"hf:{tmp_path}/both", "test")) == ROWS[:4]
    with pytest.raises(UnknownName, match="did you mean 'test'"):
        store.load(f"hf:{tmp_path}/both", "tets")


def test_an_empty_hub_dataset_and_one_that_is_not_there(hub_folder, tmp_path):
    with pytest.raises(InvalidValue, match="is empty: there are no rows"):
        HuggingFaceDatasets().load(f"hf:{hub_folder}:easy[500:]")
    for missing in ("hf:org/no-such-dataset", f"hf:{tmp_path}/nowhere"):
        with pytest.raises(BackendError, match="offline, a folder") as caught:
            HuggingFaceDatasets().load(missing)
        assert missing in str(caught.value) and "\n" not in str(caught.value)


def test_the_hub_without_a_network(tmp_path):
    with pytest.raises(BackendError, match="cannot fetch 'org/no-such-model' from the hub"):
        HuggingFaceHub().download("org/no-such-model")
    with pytest.raises(BackendError, match="cannot publish to 'org/no-such-model'"):
        HuggingFaceHub().upload(tmp_path, "org/no-such-model", "first")
    with pytest.raises(InvalidValue, match="there is no folder"):
        HuggingFaceHub().upload(tmp_path / "nowhere", "org/model", "first")
    assert "gated" in str(_hub_error("hf:a/b", type("DatasetNotFoundError", (Exception,), {})("no such")))


def test_blobs(tmp_path):
    blobs = FileBlobs(tmp_path / "blobs")
    assert blobs.keys() == [] and not blobs.exists("a")
    blobs.put("run/a.bin", b"1")
    blobs.put("run/a.bin", b"22")
    blobs.put("other", b"")
    assert (
        blobs.get("run/a.bin") == b"22"
        and blobs.keys() == ["other", "run/a.bin"]
        and blobs.keys("ru") == ["run/a.bin"]
    )
    for key in ("../a", "/a", "a/../../b", "", ".", "..", "a//b", "a/", "./a", "x.unfinished"):
        with pytest.raises(InvalidValue, match="is not a key"):
            blobs.put(key, b"")
    for key in ("run", "other/inside"):
        with pytest.raises(InvalidValue, match="cannot be both"):
            blobs.put(key, b"")
    assert blobs.keys() == ["other", "run/a.bin"]


def test_a_link_does_not_lead_out_of_the_blobs(tmp_path):
    blobs = FileBlobs(tmp_path / "blobs")
    blobs.put("a", b"1")
    (tmp_path / "blobs" / "out").symlink_to(tmp_path)
    with pytest.raises(InvalidValue, match="inside the store"):
        blobs.put("out/b", b"")


def test_a_full_disk_leaves_no_blob_and_no_version(tmp_path, monkeypatch):
    blobs, registry = FileBlobs(tmp_path / "blobs"), FileRegistry(tmp_path / "registry")
    blobs.put("a", b"old")
    registry.register("sft", {"sha256": "ab"})

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            blobs.put("a", b"new")
        with pytest.raises(OSError, match="No space left"):
            registry.register("sft", {"sha256": "cd"})
    assert blobs.get("a") == b"old" and blobs.keys() == ["a"]
    assert [one["sha256"] for one in registry.versions("sft")] == ["ab"]
    assert registry.register("sft", {"sha256": "ef"}) > 1 and registry.versions("sft")[-1]["sha256"] == "ef"


def test_versions_of_many_writers_are_all_different(tmp_path):
    numbers = []

    def register():
        registry = FileRegistry(tmp_path / "registry")
        numbers.extend(registry.register("org/sft", {"writer": threading.get_ident()}) for _ in range(10))

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 41))
    versions = FileRegistry(tmp_path / "registry").versions("org/sft")
    assert [one["version"] for one in versions] == sorted(numbers)
    assert FileRegistry(tmp_path / "registry").versions("org") == []


def test_an_entry_says_who_and_whether_it_is_simulated(tmp_path):
    registry = FileRegistry(tmp_path)
    registry.register("sft", {"version": 99, "sha256": "ab"})
    registry.register("sft", {"simulated": True})
    first, second = registry.versions("sft")
    assert (first["model"], first["version"], first["simulated"], second["simulated"]) == (
        "sft",
        1,
        False,
        True,
    )
    with pytest.raises(InvalidValue, match="is not a key"):
        registry.register("../sft", {})
    (tmp_path / "sft" / "000001" / "entry.json").write_text("{")
    with pytest.raises(DamagedData, match="000001"):
        registry.versions("sft")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "test") for name in ("test", "TEST", "testSet", "test_data", "holdout", "held_out", "held-out", "HeldOut", "my-testset", "unseen")),
        *((name, "validation") for name in ("dev", "devset", "validSet", "eval", "evalData", "val2")),
        *((name, "train") for name in ("train", "trainSet", "TrainingData", "train1", "train_sft")),
        *((name, "") for name in ("data", "set", "contest", "latest", "device", "held", "trainer", "a")),
    ],
)
def test_the_kind_of_a_split_is_one_of_its_words(name, kind):
    assert split_kind(name) == kind
