import numpy as np
import pytest

from nemo_rpo.data.annotator_table import Annotator, AnnotatorTable
from nemo_rpo.errors import DataError


def table(**labels):
    return AnnotatorTable.sorted(Annotator(name, count, f"f.jsonl:{count}") for name, count in labels.items())


def test_a_new_table_is_sorted_and_survives_the_disk(tmp_path):
    original = table(zoë=3, adam=5)
    original.save(tmp_path / "annotators.jsonl")
    loaded = AnnotatorTable.load(tmp_path / "annotators.jsonl")
    assert loaded == original
    assert (loaded.ids, loaded.index("zoë"), loaded.labels.tolist()) == (["adam", "zoë"], 1, [5, 3])


def test_extending_leaves_every_known_index_in_place():
    saved = table(b=1, d=2)
    extended = saved.extended(table(a=7, c=8, d=9), allow_new=True)
    assert extended.ids == ["b", "d", "a", "c"]
    assert extended.labels.tolist() == [0, 9, 7, 8]
    assert table(a=7, c=8, d=9).positions(extended).tolist() == [2, 3, 1]


def test_an_annotator_the_run_does_not_know_is_named_with_row_and_option():
    with pytest.raises(
        DataError, match=r"f.jsonl:7: annotator 'a' \(and 1 more\) .*model.data.allow_new_annotators=true"
    ):
        table(b=1).extended(table(a=7, b=1, c=2), allow_new=False)
    assert table(b=1, c=4).extended(table(b=3), allow_new=False).labels.tolist() == [3, 0]


def test_no_id_stands_twice():
    with pytest.raises(DataError, match="twice"):
        AnnotatorTable([Annotator("a", 1, ""), Annotator("a", 2, "")])


def test_positions_into_itself_are_the_identity():
    own = table(a=1, b=1, c=1)
    assert np.array_equal(own.positions(own), np.arange(3))
