"""Validation of public sets says what their sources say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from public_sets import pandalm, ukpconvarg1

from nemo_rpo.validation import ValidationReport, ValidationSettings, validate


def report_of(rows, path: Path, settings: ValidationSettings | None = None) -> ValidationReport:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return validate(path, settings).report


def test_the_empty_responses_of_pandalm(shared_data, tmp_path):
    rows = list(pandalm(shared_data / "pandalm_testset"))
    report = report_of(rows, tmp_path / "pandalm.jsonl")
    assert report.findings.counts["empty_completion"] == 54
    first = next(i for i, row in enumerate(rows, 1) if not (row["response_a"].strip() and row["response_b"].strip()))
    assert report.findings.kept["empty_completion"][0].row == first
    assert (report.rows, report.pairs, report.unreadable, report.annotators) == (999, 999, 0, 5)
    assert report.votes == {"all": 4970, "first": 2148, "second": 2351, "ties": 471, "without_annotator": 0}
    assert report.votes_per_pair == {4: 25, 5: 974}
    assert report.labels_per_annotator == {"min": 974, "median": 999, "max": 999}
    assert (report.agreement.pairs_with_several_votes, report.agreement.not_unanimous) == (999, 487)
    # The humans share errors beyond what independent ones would; nothing else is wrong.
    assert report.errors == 54 and report.warnings == report.findings.counts["crowd"]


def test_the_french_answers_of_pandalm(shared_data, tmp_path):
    pytest.importorskip("py3langid", reason="languages are told by py3langid: pip install 'nemo-rpo[data]'")
    rows = [row for row in pandalm(shared_data / "pandalm_testset") if "dent" in row["prompt"].lower()]
    report = report_of(rows, tmp_path / "pandalm.jsonl", ValidationSettings(languages=True))
    found = report.findings.kept["other_language"]
    assert found and all("is fr, the prompt en" in finding.problem for finding in found)
    french = [i for i, row in enumerate(rows, 1) if "médecine" in row["response_a"] + row["response_b"]]
    assert [finding.row for finding in found] == french
    assert set(report.languages) == {"en", "unsure"}


def test_the_crowd_of_ukpconvarg1(shared_data, tmp_path):
    report = report_of(ukpconvarg1(shared_data / "ukpconvarg1"), tmp_path / "ukp.jsonl")
    assert (report.rows, report.pairs, report.unreadable, report.annotators) == (16927, 16927, 0, 3815)
    assert report.votes == {"all": 84445, "first": 32849, "second": 32491, "ties": 19105, "without_annotator": 0}
    assert report.votes_per_pair == {4: 190, 5: 16737}
    assert report.labels_per_annotator == {"min": 1, "median": 6, "max": 4218}
    assert (report.agreement.pairs_with_several_votes, report.agreement.not_unanimous) == (16927, 13598)
    # Nobody votes twice on a pair.
    assert not report.findings.counts["duplicate_vote"] and not report.findings.counts["contradiction"]
    assert report.agreement.alpha == pytest.approx(0.267, abs=5e-4)


def test_the_dialogues_of_hh(shared_data):
    report = validate(shared_data / "hh_harmless_test" / "test.jsonl.gz").report
    assert (report.rows, report.pairs, report.unreadable) == (2312, 2312, 0)
    assert report.findings.counts["later_prompts_differ"] == 2312 - 2307
    assert report.findings.counts["identical_completions"] == 0
    assert report.annotators == 0 and report.votes["without_annotator"] == 2312
