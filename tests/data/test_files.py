"""Files as people have them: packed, split, torn, in large letters; read, or refused with what would be right."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitchen.adapters.files.datasets import FileDatasets
from kitchen.adapters.files.readers import READERS, read_file
from kitchen.adapters.huggingface import HuggingFaceDatasets
from kitchen.data.formats import parse_rows
from kitchen.data.references import DATA_FILE_SUFFIXES, find_test_split, parse_reference
from kitchen.types import InvalidValue, KitchenError, RowError, UnknownName

ROWS = [{"question": f"{number} + 1, \"ä\"?", "answer": str(number + 1)} for number in range(30)]  # fmt: skip
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def table_of(delimiter):
    cells = [["question", "answer"], *([row["question"], row["answer"]] for row in ROWS)]
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) + "\r\n" for line in cells)


def zstandard(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


PACKINGS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}
TEXTS = {".jsonl": LINES, ".ndjson": LINES, ".json": json.dumps(ROWS), ".csv": table_of(","), ".tsv": table_of("\t")}


def write_arrow(path, is_stream):
    table = pa.Table.from_pylist(ROWS)
    with (pa.ipc.new_stream if is_stream else pa.ipc.new_file)(str(path), table.schema) as sink:
        sink.write_table(table)


@pytest.mark.parametrize("ending", TEXTS)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_text_is_read_however_it_is_packed(tmp_path, ending, packing, mark):
    path = tmp_path / f"Rows{ending}{packing}".upper()
    path.write_bytes(PACKINGS[packing]((mark + TEXTS[ending]).encode()))
    assert list(FileDatasets().load(str(path))) == ROWS
    assert [row for _, row in FileDatasets().stream(str(path))] == ROWS
    if ending != ".json":  # lines as Windows writes them, and empty ones among them
        text = TEXTS[ending].replace("\r\n", "\n").replace("\n", "\r\n\r\n")
        path.write_bytes(PACKINGS[packing](text.encode()))
        assert list(FileDatasets().load(str(path))) == ROWS


def test_tables_of_arrow_and_parquet(tmp_path):
    nested = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "meta": {"n": 1}}]}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(nested), tmp_path / "nested.PARQUET")
    (read,) = FileDatasets().load(str(tmp_path / "nested.PARQUET"))
    assert read["messages"][1]["meta"] == {"n": 1}
    write_arrow(tmp_path / "a.arrow", True)
    write_arrow(tmp_path / "b.arrow", False)
    write_arrow(tmp_path / "c.feather", False)
    for name in ("a.arrow", "b.arrow", "c.feather"):
        assert list(FileDatasets().load(str(tmp_path / name))) == ROWS
    assert set(READERS) == set(DATA_FILE_SUFFIXES)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.txt", b"a", "it does not say where a row ends"),
        ("rows.zip", b"PK", "unpack it"),
        ("rows.tar.gz", b"a", "unpack it"),
        ("rows.gz", b"a", "say in the name what is packed"),
        ("sheet.XLSX", b"a", "save the sheet as .csv"),
        ("rows.pkl", b"a", "a pickle runs code"),
        ("rows.parquet.gz", b"a", "Parquet is packed inside"),
        ("rows.lz4", b"a", "pack it with gzip or zstandard"),
        ("utf16.jsonl", '{"text": "a"}'.encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        ("latin.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n', r"\(row 2\); save it as UTF-8"),
        ("torn.jsonl.zst", zstandard(LINES.encode())[:-9], "torn.jsonl.zst cannot be read as .jsonl.zst"),
        ("torn.csv.bz2", bz2.compress(TEXTS[".csv"].encode())[:-9], "torn.csv.bz2 cannot be read as .csv.bz2"),
        ("torn.tsv.xz", lzma.compress(TEXTS[".tsv"].encode())[:-9], "torn.tsv.xz cannot be read as .tsv.xz"),
        ("fake.json.gz", b"[]", "fake.json.gz cannot be read as .json.gz"),
        ("torn.arrow", b"ARROW1nothing", "torn.arrow cannot be read as Arrow"),
        ("lines.json.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'), "name it .jsonl.gz"),
        ("object.json", b'{"data": [{"text": "a"}], "n": 1}', "save the list under 'data' alone"),
        ("semicolons.csv", b"question;answer\na;b\n", "';' seems to divide its cells; save it with commas"),
        ("tabs.csv", b"question\tanswer\na\tb\n", "name it .tsv"),
        ("commas.tsv", b"question,answer\na,b\n", "save it with commas"),
    ],
)
def test_what_cannot_be_read_says_what_would_be_right(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidValue, match=reason) as caught:
        FileDatasets().load(f"file:{tmp_path / name}")
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("open.csv", 'question,answer\na,b\nc,"d\ne,f\n', {3: "unexpected end of data"}),  # would swallow all that follows
        ("marks.csv", 'question,answer\n"a"b,c\nd,e\n', {2: "expected after"}),
        ("cells.tsv", "question\tanswer\na\tb\tc\nd\te\nf\n", {2: "this row has 3", 4: "this row has 1"}),
        ("twice.jsonl", '{"question": "a", "answer": "b"}\n{"question": "a", "question": "c", "answer": "b"}\n', {2: "names 'question' twice"}),
        ("deep.jsonl", '{"messages": [{"role": "user", "role": "tool"}]}\n', {1: "names 'role' twice"}),
        ("twice.json", '[{"text": "a"}, {"text": "a", "text": "b"}]', {2: "names 'text' twice"}),
        ("half.jsonl", '{"text": "\\ud800"}\n', {1: "half of a surrogate pair"}),
    ],
)
def test_a_row_that_would_be_read_wrongly_is_an_error_of_its_own(tmp_path, name, content, bad):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = {number: row for number, row in read_file(tmp_path / name) if isinstance(row, RowError)}
    assert found.keys() == bad.keys()
    for number, error in found.items():
        assert bad[number] in str(error) and str(error).startswith(f"{tmp_path / name}, row {number}")


def lines(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def texts_of(reference, split="train"):
    return [row["text"] for row in FileDatasets().load(f"file:{reference}", split)]


def test_folders_of_many_shapes(tmp_path):
    for number in (1, 2, 10):
        lines(tmp_path / "parts" / f"part_{number}.jsonl", f"p{number}")
    assert texts_of(tmp_path / "parts") == ["p1", "p2", "p10"] and FileDatasets().splits(f"file:{tmp_path / 'parts'}") == []
    table = FileDatasets().load(f"file:{tmp_path / 'parts'}")
    assert table.origin(2) == f"{tmp_path / 'parts' / 'part_10.jsonl'}, row 1"
    assert [row["text"] for row in FileDatasets().load(f"file:{tmp_path / 'parts'}[1:]")] == ["p2", "p10"]
    assert table.split(0.4, 0)[1].origin(0).endswith(", row 1")
    for number in range(2):
        lines(tmp_path / "hub" / "data" / f"train-{number:05}-of-00002.jsonl", f"t{number}")
    lines(tmp_path / "hub" / "data" / "validation-00000-of-00001-0123456789abcdef.jsonl", "v")
    (tmp_path / "hub" / "README.md").write_text("a card")
    assert texts_of(tmp_path / "hub") == ["t0", "t1"] and texts_of(tmp_path / "hub", "validation") == ["v"]
    (tmp_path / "hub" / "data" / "train-00000-of-00002.jsonl").unlink()
    with pytest.raises(InvalidValue, match=r"of the 2 shards of split 'train' \[0\] are missing"):
        texts_of(tmp_path / "hub")
    lines(tmp_path / "inner" / "train" / "a.jsonl", "a")
    lines(tmp_path / "inner" / "Test" / "b.jsonl", "b")
    assert texts_of(tmp_path / "inner") == ["a"] and texts_of(tmp_path / "inner", "test") == ["b"]
    lines(tmp_path / "named" / "gsm8k-train.JSONL", "a")
    lines(tmp_path / "named" / "gsm8k-dev.jsonl", "b")
    assert texts_of(tmp_path / "named") == ["a"] and sorted(FileDatasets().splits(f"file:{tmp_path / 'named'}")) == ["gsm8k-dev", "gsm8k-train"]
    lines(tmp_path / "rest" / "chats.jsonl", "a")
    lines(tmp_path / "rest" / "test.jsonl", "b")
    assert texts_of(tmp_path / "rest") == ["a"], "what is of no split is there to train on, and no test row is"
    assert texts_of(f"{tmp_path / 'rest'}/*.jsonl") == ["a", "b"], "a pattern names its files"
    with pytest.raises(InvalidValue, match="no data file matches"):
        texts_of(f"{tmp_path / 'rest'}/*.csv")


def test_folders_that_could_be_read_in_two_ways_are_refused(tmp_path):
    lines(tmp_path / "two" / "train_sft.jsonl", "a")
    lines(tmp_path / "two" / "train_gen.jsonl", "b")
    with pytest.raises(InvalidValue, match="several of its splits could be 'train': train_gen, train_sft"):
        texts_of(tmp_path / "two")
    assert texts_of(f"{tmp_path / 'two'}?split=train_sft") == ["a"]
    lines(tmp_path / "again" / "train.jsonl", "a")
    (tmp_path / "again" / "train.csv").write_text("text\na\n")
    with pytest.raises(InvalidValue, match=r"more than once \(train.csv, train.jsonl\)"):
        texts_of(tmp_path / "again")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "rows.zip").touch()
    with pytest.raises(InvalidValue, match="holds no data file .*rows.zip"):
        texts_of(tmp_path / "none")
    with pytest.raises(UnknownName, match="unknown split 'test'"):
        texts_of(f"{tmp_path / 'again'}", "test")


def test_what_save_to_disk_left(tmp_path):
    from datasets import Dataset, DatasetDict

    both = DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:3]))
    both.save_to_disk(str(tmp_path / "both"), num_shards={"train": 2, "test": 1})
    Dataset.from_list(ROWS).select([5, 3]).save_to_disk(str(tmp_path / "one"))
    for store, scheme in ((FileDatasets(), "file"), (HuggingFaceDatasets(), "file"), (HuggingFaceDatasets(), "hf")):
        both, one = f"{scheme}:{tmp_path / 'both'}", f"{scheme}:{tmp_path / 'one'}"
        assert list(store.load(both)) == ROWS and list(store.load(both, "test")) == ROWS[:3]
        assert list(store.load(one)) == [ROWS[5], ROWS[3]]
        assert sorted(store.splits(both)) == ["test", "train"] and store.splits(one) == []
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(InvalidValue, match="does not say which files hold the rows"):
        FileDatasets().load(f"file:{tmp_path / 'one'}")


def test_which_split_is_a_test():
    for names, train, test in (
        (["train", "validation", "test"], "train", "test"),
        (["train", "validation_matched", "validation_mismatched"], "train", "validation_matched"),
        (["auxiliary_train", "dev", "test"], "auxiliary_train", "test"),
        (["train_sft", "test_sft", "train_prefs", "test_prefs"], "train_prefs", "test_prefs"),
        (["train", "unsupervised"], "train", None),
        (["test"], "test", None),
        (["contest", "latest"], "contest", None),
        ([], "train", None),
    ):
        assert find_test_split(names, train) == test
    assert parse_reference("./folder") == parse_reference("file:./folder")


BYTES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.text('{}[]":,\\;\t\n\r 1a', max_size=30), max_size=8).map(lambda parts: "\n".join(parts).encode()),
)


@given(BYTES, st.sampled_from([ending for ending in READERS if not ending.endswith((".parquet", ".arrow", ".feather"))]), st.booleans())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_the_errors_are_ours(tmp_path, content, ending, is_packed):
    path = tmp_path / f"any{ending}"
    packing = next((one for one in PACKINGS if one and ending.endswith(one)), "")
    path.write_bytes(PACKINGS[packing](content) if is_packed else content)
    try:
        for number, row in read_file(path):
            assert isinstance(number, int)
            assert isinstance(row, dict) or (row.source, row.row) == (str(path), number)
        parse_rows(FileDatasets().load(str(path)), "set_aside")
    except KitchenError as error:
        assert path.name in str(error) or "column" in str(error)


def damaged(content):
    "Content with some bytes changed, or cut off."
    return st.one_of(
        st.integers(0, len(content)).map(lambda end: content[:end]),
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=6).map(
            lambda changes: bytes(dict(changes).get(place, byte) for place, byte in enumerate(content))
        ),
    )


def table_bytes(kind):
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist([{**row, "turns": [{"role": "user", "n": 1}]} for row in ROWS])
    if kind == ".parquet":
        pyarrow.parquet.write_table(table, sink)
    else:
        with (pa.ipc.new_stream if kind == ".arrow" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".feather"])
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_damage_of_a_table_the_errors_are_ours(tmp_path, ending, data):
    path = tmp_path / f"any{ending}"
    path.write_bytes(data.draw(damaged(table_bytes(ending))))
    try:
        assert all(isinstance(row, dict) for _, row in read_file(path))
    except InvalidValue as error:
        assert path.name in str(error)
