"""The Python interface: tables of every kind, crowd-kit's names, and an import that costs nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import nemo_rpo
from nemo_rpo.errors import DataError

from . import crowds

pandas = pytest.importorskip("pandas", reason="tables need pandas: pip install 'nemo-rpo[crowd]'")
pyarrow = pytest.importorskip("pyarrow", reason="Arrow tables need pyarrow: pip install 'nemo-rpo[hf]'")


class Stream:
    """A table of another library, as Arrow's PyCapsule interface hands it over."""

    def __init__(self, table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def test_every_kind_of_table_is_the_file(tmp_path):
    lines, truth = crowds.rows(pairs=50)
    for row in lines[:5]:
        row["gold"] = truth[row["pair_id"]]
    votes = [
        vote | {"gold": truth[vote["pair"]] if int(vote["pair"][1:]) < 5 else None} for vote in crowds.long_form(lines)
    ]
    file = nemo_rpo.estimate_reliability(crowds.write(tmp_path / "v.jsonl", lines))
    frame = pandas.DataFrame(votes).rename(columns={"annotator": "who"})
    tables = {
        "rows": nemo_rpo.estimate_reliability(votes),
        "pandas": nemo_rpo.estimate_reliability(frame, annotator="who"),
        "arrow": nemo_rpo.estimate_reliability(pyarrow.Table.from_pylist(votes)),
        "stream": nemo_rpo.estimate_reliability(Stream(pyarrow.Table.from_pylist(votes))),
        "pandas's own types": nemo_rpo.estimate_reliability(frame.convert_dtypes(), annotator="who"),
        "pandas, by its index": nemo_rpo.estimate_reliability(frame.set_index(["pair", "who"]), annotator="who"),
    }
    for name, result in tables.items():
        assert result.annotators == tables["rows"].annotators, name
    # Only the file knows texts (their lengths are looked at too), so the estimates are near, not the same.
    for ours, its in zip(tables["rows"].annotators, file.annotators, strict=True):
        assert (ours.annotator, ours.labels) == (its.annotator, its.labels)
        assert ours.reliability == pytest.approx(its.reliability, abs=1e-6)
    result = tables["pandas"]
    assert len(result.to_pandas()) == len(crowds.CARE)
    assert len(result.to_pandas("labels")) == len(votes) and len(result.to_pandas("pairs")) == 50
    assert "<table>" in result._repr_html_() and "most doubtful labels" in str(result)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"pair": 1, "annotator": "w"}], "no column 'vote'"),
        ([{"pair": 1, "annotator": "w", "vote": "maybe"}], "row 0: 'vote' is 'maybe'"),
        ([{"pair": None, "annotator": "w", "vote": "a"}], "row 0: 'pair' is empty"),
        ([{"pair": 1, "annotator": "w", "vote": v} for v in (1, 0)], "no -1"),
        ([{"pair": 1, "annotator": "w", "vote": "a", "gold": g} for g in "ab"], "opposite gold label"),
        ("votes", "does not exist"),
        (3, "not int"),
    ],
)
def test_what_is_not_understood_names_the_row(rows, message):
    with pytest.raises(DataError, match=message):
        nemo_rpo.estimate_reliability(rows)


def test_crowd_kit_s_names():
    lines, truth = crowds.rows(3, care=[0.95, 0.9, 0.85, 0.8, 0.55, 0.52])
    votes = pandas.DataFrame(crowds.long_form(lines)).rename(
        columns={"pair": "task", "annotator": "worker", "vote": "label"}
    )
    model = nemo_rpo.RobustLabels(good_enough=0.75)
    labels = model.fit_predict(votes)
    assert (labels == pandas.Series(truth)[labels.index]).mean() > 0.93
    np.testing.assert_allclose(model.probas_.sum(axis=1), 1)
    assert list(model.probas_.columns) == ["a", "b"] and (model.probas_["b"] > 0.5).equals(labels == "b")
    assert model.skills_["w0"] > 0.85 > 0.7 > model.skills_["w5"]
    known = {task: truth[task] for task in list(truth)[:30]}
    again = model.fit(votes, true_labels=known)
    assert (again.labels_[list(known)] == pandas.Series(known)).all()
    with pytest.raises(DataError, match="two different labels, found 3"):
        model.fit(votes.assign(label=np.resize(["a", "b", "c"], len(votes))))


def test_it_is_cloned_as_scikit_learn_clones():
    clone = pytest.importorskip("sklearn.base", reason="clone is scikit-learn's: pip install 'nemo-rpo[crowd]'").clone
    assert clone(nemo_rpo.RobustLabels(min_labels=3)).get_params() == {"good_enough": 0.7, "min_labels": 3}


def test_importing_costs_nothing_and_help_says_what_there_is():
    code = (
        "import sys, nemo_rpo; heavy = {'torch', 'numpy', 'pandas'} & set(sys.modules); assert not heavy, heavy;"
        "assert 'estimate_reliability' in dir(nemo_rpo); nemo_rpo.RPOError; print(nemo_rpo.__doc__)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "estimate_reliability" in said and "RobustLabels" in said and "posterior" in said
    assert callable(nemo_rpo.posterior) and callable(nemo_rpo.robust_loss) and nemo_rpo.build_loss("dpo", beta=0.1)


def test_a_stated_probability_is_worth_what_it_has_been_worth() -> None:
    """Judges who say how sure they are, half of them far too sure: better labels than from their sides alone."""
    from benchmarks.soft_verdicts import measure

    found = measure(seed=100, sureness=(1.0, 3.0) * 3)
    accuracy, loss = found["label model, with p"]
    for way in ("majority", "mean of the stated p", "label model, sides alone"):
        assert accuracy > found[way][0] + 0.01 and loss < found[way][1] - 0.02, way


def test_gold_labels_of_pairs_that_nobody_decided():
    """A tie and a gold label: the pair is known, and teaches nothing of whoever called the tie."""
    lines, _ = crowds.rows(pairs=50)
    votes = crowds.long_form(lines)
    bare = nemo_rpo.estimate_reliability(votes)
    ties = [{"pair": f"t{i}", "annotator": votes[0]["annotator"], "vote": "tie", "gold": "a"} for i in range(3)]
    found = nemo_rpo.estimate_reliability(votes + ties)
    for ours, its in zip(found.annotators, bare.annotators, strict=True):
        assert ours.reliability == pytest.approx(its.reliability, abs=0.02)


def test_an_order_that_only_ties_know_is_not_said_to_be_anything():
    votes = [(p, w, "a" if (p + w) % 3 else "b", None) for p in range(20) for w in range(3)]
    votes += [(p, "judge", "tie", "a") for p in range(20)]
    rows = [dict(zip(("pair", "annotator", "vote", "shown_first"), vote, strict=True)) for vote in votes]
    result = nemo_rpo.estimate_reliability(rows)
    assert not [warning for warning in result.warnings if "nan" in warning.text or warning.kind == "order_not_random"]
