"""UKPConvArg1: which labels a run believes, against gold labels and an EM without a model."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ukpconvarg1"
CROWD = [f"honest{n}" for n in range(3)] + ["contrary"]


@pytest.fixture(scope="module")
def labels():
    sys.path.insert(0, str(EXAMPLE))
    try:
        import labels

        yield labels
    finally:
        sys.path.remove(str(EXAMPLE))


def record(folder: Path, wrong: set[int] = frozenset(), unseen: set[int] = frozenset(), open_: set[int] = frozenset()):
    """A run's record of 24 pairs, on each of which three workers vote for gold and one against it.

    The last pair has no gold label. Chosen is what most prefer. The run is sure of gold, but for the pairs named.
    """
    pairs, rows = [], []
    for i in range(24):
        gold = "ab"[i % 2]
        votes = {name: gold if name != "contrary" else "ab"["ab".index(gold) - 1] for name in CROWD}
        pairs.append({"pair_id": f"p{i}", "votes": [{"annotator": name, "vote": v} for name, v in votes.items()]})
        pairs[-1]["gold"] = gold if i < 23 else None
        for name, vote in votes.items():
            chosen = 0.5 if i in open_ else 0.1 if i in wrong else 0.9
            w = None if i in unseen else chosen if vote == gold else 1 - chosen
            rows.append({"pair_id": f"p{i}", "annotator": name, "sign": 1 if vote == gold else -1, "w_last": w})
    train, posteriors = folder / "train.jsonl", folder / "posteriors.parquet"
    train.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    pq.write_table(pa.Table.from_pylist(rows), posteriors)
    return posteriors, train


def test_shares_of_gold_labels(labels, tmp_path):
    found = labels.label_accuracy(*record(tmp_path, wrong={0, 1, 23}, unseen={2}, open_={3}))
    assert found["pairs"] == 22  # one has no gold label, one was not seen
    assert found["posterior"] == pytest.approx((22 - 2 - 0.5) / 22)
    assert found["one_coin"] == found["one_coin_fitted"] == found["majority"] == 1.0
    assert found["against"] == {"one_coin": (0, 2), "one_coin_fitted": (0, 2)}  # the undecided pair takes no side


@pytest.mark.parametrize(
    "split, p", [((0, 0), 1), ((5, 5), 1), ((0, 3), 2 / 2**3), ((2, 9), 2 * (1 + 11 + 55) / 2**11)]
)
def test_mcnemar_is_the_sign_test_of_the_pairs_that_differ(labels, split, p):
    assert labels.mcnemar(*split) == labels.mcnemar(*reversed(split)) == pytest.approx(p)
