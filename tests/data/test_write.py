"""Files appear whole or not at all, in every format; and the formats beside JSONL and Parquet read as they do."""

from __future__ import annotations

import pickle

import pytest

from nemo_rpo.data.files.read import as_paths, read_records
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.formats import read_rows
from nemo_rpo.errors import ConfigError, DataError, RowError


def fields_of(path):
    return [record.fields for record in read_records(path)]


@pytest.mark.parametrize("name", ["rows.parquet", "rows"])
def test_a_field_that_comes_late_is_kept(name, tmp_path):
    if name == "rows":
        pytest.importorskip("datasets", reason="saved data sets need datasets: pip install 'nemo-rpo[data]'")
    rows = [{"n": i, "chat": [{"role": "user", "content": str(i)}]} for i in range(4500)]
    rows[4400] |= {"late": [1.5], "chat": [{"role": "user", "content": "x", "tool": {"id": 7}}]}
    with record_writer(tmp_path / name) as write:
        for row in rows:
            write(row)
    found = fields_of(tmp_path / name)
    assert len(found) == 4500 and found[4400]["late"] == [1.5] and found[0]["late"] is None
    assert found[4400]["chat"] == rows[4400]["chat"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text("old")
    with pytest.raises(RuntimeError), record_writer(out, overwrite=True) as write:
        write({"n": 1})
        raise RuntimeError
    assert out.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.txt", r"must end in \.jsonl, \.jsonl\.gz, \.json, \.parquet, \.csv, or in none"),
        ("there.jsonl", "exists; name another file, or say --overwrite"),
        ("missing/rows.jsonl", "folder .*missing does not exist"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused(name, message, tmp_path):
    (tmp_path / "there.jsonl").write_text("x")
    with pytest.raises(ConfigError, match=message), record_writer(tmp_path / name) as write:
        write({"n": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="is a folder that is no saved Hugging Face data set"):
        with record_writer(tmp_path / "mine", overwrite=True) as write:
            write({"n": 1})


def test_types_that_no_table_holds_are_named(tmp_path):
    with pytest.raises(DataError, match=r"rows do not fit one Parquet table .*write \.jsonl instead"):
        with record_writer(tmp_path / "rows.parquet") as write:
            write({"n": 1})
            write({"n": "one"})
    assert not list(tmp_path.iterdir())


def test_csv_reads_as_rows_of_strings(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,chosen,rejected,annotator\n"Two\nlines?",yes,no,w1\nAgain?,no,yes,\n', encoding="utf-8-sig")
    rows = list(read_rows(path))
    assert [(row.prompt, row.chosen, row.row) for row in rows] == [("Two\nlines?", "yes", 3), ("Again?", "no", 4)]
    assert [row.votes[0].annotator for row in rows] == ["w1", None]


def test_csv_rows_with_too_many_values_are_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected\nq,a,b,c\nq,a,b\n")
    error, record = read_records(path)
    assert isinstance(error, RowError) and str(error) == f"{path}:2: 1 values more than the header has columns"
    assert record.fields == {"prompt": "q", "chosen": "a", "rejected": "b"}


def test_csv_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("prompt,chosen,rejected\nq,\u00e9,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        list(read_records(path))
    path.write_text('prompt,chosen,rejected\nq,"a,b\n')
    with pytest.raises(DataError, match="bad CSV"):
        list(read_records(path))


def test_a_row_error_crosses_processes_whole():
    error = pickle.loads(pickle.dumps(RowError("rows.jsonl", 7, "is bad", "bad_json")))
    assert (str(error), error.row, error.kind) == ("rows.jsonl:7: is bad", 7, "bad_json")


def test_folders_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets", reason="saved data sets need datasets: pip install 'nemo-rpo[data]'")
    rows = [{"prompt": "q", "chosen": f"a{i}", "rejected": "b", "annotator": "w1"} for i in range(600)]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=data, test=data).save_to_disk(str(tmp_path / "many"))
    assert as_paths(tmp_path / "one", folders=True) == [tmp_path / "one"]
    assert fields_of(tmp_path / "one") == rows
    assert fields_of(tmp_path / "many" / "train") == rows
    with pytest.raises(DataError, match=r"holds several splits; name one: .*many/test, .*many/train"):
        as_paths(tmp_path / "many", folders=True)
    with pytest.raises(DataError, match="is no saved Hugging Face data set"):
        as_paths(tmp_path, folders=True)
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        fields_of(tmp_path / "one")
