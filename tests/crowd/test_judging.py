"""Rows, verdicts and doubtful labels against counts by hand and crowds of known care."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_rpo.crowd.by_annotator import agreement_with_others, annotator_qualities, judge
from nemo_rpo.crowd.crowd_fit import fit_crowd
from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.crowd.reliability import assess
from nemo_rpo.data.vote_ledger import read_votes
from nemo_rpo.errors import DataError
from nemo_rpo.shares import Difference, share

from . import crowds

NONE, STILL = share(0, 0), Difference(np.nan, np.nan, np.nan)
RULES = CrowdSettings()


@pytest.mark.parametrize(
    ("estimate", "labels", "leaning", "drift", "verdict"),
    [
        ((0.9, 0.8, 0.95), 100, NONE, STILL, "trust"),
        ((0.6, 0.5, 0.69), 100, NONE, STILL, "retrain"),
        ((0.69, 0.6, 0.78), 100, NONE, STILL, "watch"),
        ((0.72, 0.5, 0.86), 20, NONE, STILL, "too few labels to say"),
        ((0.9, 0.8, 0.95), 11, NONE, STILL, "too few labels to say"),
        # A point above the bar is no trust, one below no blame: the interval decides.
        ((0.75, 0.69, 0.8), 100, NONE, STILL, "watch"),
        ((0.9, 0.8, 0.95), 200, share(140, 200), STILL, "watch"),
        ((0.9, 0.8, 0.95), 20, share(14, 20), STILL, "trust"),
        ((0.9, 0.8, 0.95), 200, share(60, 200), STILL, "watch"),
        ((0.9, 0.8, 0.95), 200, NONE, Difference(-0.2, -0.3, -0.1), "watch"),
        ((0.9, 0.8, 0.95), 200, NONE, Difference(0.2, 0.1, 0.3), "trust"),
        ((np.nan, np.nan, np.nan), 0, NONE, STILL, "too few labels to say"),
    ],
)
def test_verdicts_are_those_of_the_intervals(estimate, labels, leaning, drift, verdict):
    assert judge(*estimate, labels, leaning, drift, RULES)[0] == verdict


def test_agreement_is_with_most_of_the_others(tmp_path):
    lines = [
        {"prompt": "p", "response_a": "x", "response_b": "y", "votes": [{"annotator": w, "vote": v} for w, v in votes]}
        for votes in ([("ann", "a"), ("bob", "a"), ("cyd", "b")],)
    ]
    table = read_votes(crowds.write(tmp_path / "v.jsonl", lines))
    agreed, compared = agreement_with_others(table)
    # Ann's others say one each way, so do Bob's; Cyd's others say a.
    assert (agreed.tolist(), compared.tolist()) == ([0, 0, 0], [0, 0, 1])


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    lines, truth = crowds.rows(follows={5: 0.6})
    lines.append(lines[3] | {"votes": [lines[3]["votes"][0]] * 2})
    return assess(read_votes(crowds.write(tmp_path_factory.mktemp("crowd") / "votes.jsonl", lines))), lines, truth


def test_the_careless_are_found_and_intervals_hold_the_truth(judged):
    result, _, _ = judged
    by_name = {row.annotator: row for row in result.annotators}
    said = {name: row.verdict for name, row in by_name.items()}
    assert said["w6"] == "retrain" and said["w7"] in ("retrain", "watch")
    assert by_name["w5"].verdict in ("watch", "retrain") and by_name["w5"].says_first_low > 0.6
    held = [by_name[f"w{k}"].low <= care <= by_name[f"w{k}"].high for k, care in enumerate(crowds.CARE) if k != 5]
    assert np.mean(held) >= 6 / 7
    assert by_name[judged[1][3]["votes"][0]["annotator"]].repeats == 2
    assert result.annotators[0].verdict == "retrain" and result.annotators[-1].verdict == "trust"


def test_doubtful_labels_are_mostly_wrong(judged):
    result, lines, truth = judged
    assert len(result.doubtful) == RULES.doubtful
    said = {(row["pair_id"], vote["annotator"]): vote["vote"] for row in lines for vote in row["votes"]}
    wrong = [said[label.pair, label.annotator] != truth[label.pair] for label in result.doubtful]
    assert np.mean(wrong) > 0.9
    assert all(a.right <= b.right for a, b in zip(result.doubtful, result.doubtful[1:], strict=False))
    assert result.doubtful[0].where.endswith(tuple(f":{i}" for i in range(1, len(lines) + 1)))


def test_gold_labels_judge_the_estimates(tmp_path):
    lines, truth = crowds.rows(1)
    for row in lines[:60]:
        row["gold"] = truth[row["pair_id"]]
    result = assess(read_votes(crowds.write(tmp_path / "v.jsonl", lines)))
    names = {estimate.name: estimate for estimate in result.estimates}
    assert {"label model", "majority", "anchor-weighted vote"} <= names.keys()
    assert all(estimate.low < estimate.right <= estimate.high for estimate in names.values())
    assert sum(estimate.recommended for estimate in names.values()) == 1
    assert result.counts["gold"] == 60


def test_votes_without_a_name_are_of_several_people(tmp_path):
    lines, truth = crowds.rows(2, care=[0.8] * 5)
    for row in lines:
        for vote in row["votes"]:
            del vote["annotator"]
    fit = fit_crowd(read_votes(crowds.write(tmp_path / "v.jsonl", lines)))
    right = [(fit.w[i] > 0.5) == (truth[name] == "a") for i, name in enumerate(fit.table.pair_id)]
    assert np.mean(right) > 0.85
    [row] = annotator_qualities(fit)
    assert (row.annotator, row.repeats) == ("all", 0) and abs(row.reliability - 0.8) < 0.08


def test_ties_alone_say_nothing(tmp_path):
    lines, _ = crowds.rows(pairs=3)
    for row in lines:
        for vote in row["votes"]:
            vote["vote"] = "tie"
    with pytest.raises(DataError, match="only ties"):
        assess(read_votes(crowds.write(tmp_path / "v.jsonl", lines)))
