"""The audit of a policy counts what it says it counts."""

from __future__ import annotations

import numpy as np

from nemo_rpo.evaluation.axioms import audit
from nemo_rpo.evaluation.scores import Scores


def labelled(pairs: list[tuple[list[int], float]]) -> Scores:
    """Scores of pairs with these labels and margins."""
    ids = np.array([f"pair {i}" for i, (signs, _) in enumerate(pairs) for _ in signs], dtype=object)
    sign = np.array([sign for signs, _ in pairs for sign in signs], np.int8)
    delta = np.array([delta for signs, delta in pairs for _ in signs])
    names = np.array([f"w{k}" for signs, _ in pairs for k in range(len(signs))], dtype=object)
    return Scores(ids, names, ids, sign, np.zeros(len(sign), np.int8), delta)


def test_unanimous_pairs_and_majorities_are_counted_by_their_labels():
    found = audit(
        labelled([
            ([1], -9.0),  # alone: no unanimity
            ([1, 1], 2.0), ([-1, -1], 1.5), ([-1, -1], -3.0),
            ([1, 1, 1], -0.5), ([1, 1, -1], -1.0), ([1, -1], 5.0),
            ([1] * 6, 0.0), ([-1] * 7, 4.0),
        ])
    )  # fmt: skip
    rows = {row.votes: (row.pairs, row.reversed) for row in found.rows}
    assert rows == {
        "all 2 labels agree": (3, 1),
        "all 3 labels agree": (1, 1),
        "all of 5 labels or more agree": (2, 1),
        "all agree": (6, 3),
        "a majority": (7, 4),
    }
    assert [row["pair_id"] for row in found.reversed_unanimous] == ["pair 8", "pair 2", "pair 4"]
    assert found.unanimous_reversed == 3 and found.to_dict()["reversed_unanimous"][0]["margin"] == 4.0
    assert "pair 8" in "\n".join(found.text())


def test_labels_alone_have_nothing_to_audit():
    found = audit(labelled([([1], 1.0), ([-1], 1.0)]))
    assert found.rows == [] and list(found.text()) == ["audit: no pair has a majority among two labels or more"]
