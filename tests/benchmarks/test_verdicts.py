"""The crowds of benchmarks/verdicts.py: silent where nothing is wrong, heard where something is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import verdicts

from nemo_rpo.crowd.reliability import assess


def test_an_honest_crowd_hears_nothing_and_nobody_good_is_sent_back():
    votes, eta, _ = verdicts.draw(verdicts.HONEST["12 judges who vote on all of 400 pairs, N(1.1, .7²)"], 5)
    found = assess(votes)
    assert not verdicts.said(votes, found)
    by_id = {row.annotator: row.verdict for row in found.annotators}
    said = [by_id[name] for name in votes.annotators.ids]
    assert "trust" in said
    assert not any(verdict == "retrain" for verdict, reliability in zip(said, eta, strict=True) if reliability > 0.7)


@pytest.mark.parametrize("name", ["votes_follow_order", "errors together: all 12 judges, ρ .3"])
def test_a_warning_speaks_on_its_case(name):
    kinds, case = verdicts.WARNINGS[name]
    votes, _, _ = verdicts.draw(replace(case, labels=min(case.labels, 300)), 7)
    assert verdicts.said(votes, assess(votes)) & set(kinds)
