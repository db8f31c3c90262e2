"""Every kind of defect is found, and in its row."""

from __future__ import annotations

import builtins
import shutil
import sys

import pytest

from nemo_rpo.errors import ConfigError
from nemo_rpo.validation import CHECKS, ValidationSettings, validate
from nemo_rpo.validation.findings import OF_ALL_VOTES, Findings
from nemo_rpo.validation.text_report import as_text

from . import planted


def rows_by_kind(findings: Findings) -> dict[str, list[int]]:
    found = {kind: [finding.row for finding in kept] for kind, kept in findings.kept.items()}
    assert {kind: len(rows) for kind, rows in found.items()} == dict(findings.counts)
    # What all votes show together stands in test_together.py.
    return {kind: rows for kind, rows in found.items() if kind not in OF_ALL_VOTES}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    """A tokenizer folder that knows the letters a to h."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def chat(words, tmp_path_factory) -> str:
    """The same with a chat template that takes no tools."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(words, folder, dirs_exist_ok=True)
    each = "{{ raise_exception('no tools') if m.role == 'tool' }}{{ m.content }} "
    (folder / "chat_template.jinja").write_text("{% for m in messages %}" + each + "{% endfor %}")
    return str(folder)


@pytest.mark.parametrize("name", ["VOTES", "LABELS", "TOKENS", "CHAT", "LANGUAGES"])
def test_each_defect_is_found_in_its_row(name, words, chat, tmp_path):
    if name == "VOTES":
        pytest.importorskip("ftfy", reason="mojibake is looked for with ftfy: pip install 'nemo-rpo[data]'")
    lines = getattr(planted, name)
    path = planted.write(tmp_path / "planted.jsonl", [line for line, _ in lines])
    settings = ValidationSettings(min_labels=1)
    if name == "LANGUAGES":
        pytest.importorskip("py3langid", reason="languages are told by py3langid: pip install 'nemo-rpo[data]'")
        settings.languages = True
    if name in ("TOKENS", "CHAT"):
        settings.tokenizer, settings.seq_length = chat if name == "CHAT" else words, 8
    report = validate(path, settings).report
    assert rows_by_kind(report.findings) == planted.expected(lines)
    text = as_text(report)
    for kind, rows in planted.expected(lines).items():
        assert CHECKS[kind].title in text and all(f"{path}:{row}" in text for row in rows)


def test_every_check_is_planted():
    planted_in = (planted.VOTES, planted.LABELS, planted.TOKENS, planted.CHAT, planted.LANGUAGES)
    assert {kind for lines in planted_in for _, found in lines for kind in found} == set(CHECKS) - set(OF_ALL_VOTES)


def test_what_is_said_of_a_contradiction_names_both_places(tmp_path):
    rows = [planted.label("p"), planted.label("q"), planted.label("p", chosen="no", rejected="yes")]
    path = planted.write(tmp_path / "labels.jsonl", rows)
    (finding,) = validate(path, ValidationSettings(min_labels=0)).report.findings.kept["contradiction"]
    assert finding.where == f"{path}:3"
    assert finding.problem == f"annotator 'w1' says the first completion here and otherwise at {path}:1"


def test_unnamed_votes_of_one_row_are_of_several_people(tmp_path):
    cast = [{"vote": "a"}, {"vote": "a"}, {"vote": "b"}]
    path = planted.write(tmp_path / "unnamed.jsonl", [{**planted.pair("p"), "votes": cast}])
    report = validate(path).report
    assert (report.votes["all"], report.annotators, report.warnings) == (3, 0, 0)
    assert (report.agreement.pairs_with_several_votes, report.agreement.not_unanimous) == (1, 1)


def test_examples_are_limited_and_counts_are_not(tmp_path):
    path = planted.write(tmp_path / "empty.jsonl", [planted.pair(f"p{i}", a="") for i in range(30)])
    findings = validate(path, ValidationSettings(examples=4)).report.findings
    assert findings.counts["empty_completion"] == 30 and len(findings.kept["empty_completion"]) == 4


def test_a_check_whose_package_is_missing_is_said_to_be_left_out(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_ftfy(name, *args, **kwargs):
        if name.startswith("ftfy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("ftfy")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_ftfy)
    report = validate(planted.write(tmp_path / "file.jsonl", [planted.pair("p")])).report
    assert report.not_checked == {"mojibake": "needs ftfy; run: pip install 'nemo-rpo[data]'"}
    assert "pip install 'nemo-rpo[data]'" in as_text(report)


def test_settings_that_do_not_fit_together_are_refused(tmp_path):
    path = planted.write(tmp_path / "file.jsonl", [planted.pair("p")])
    with pytest.raises(ConfigError, match="--tokenizer and --seq-length go together"):
        validate(path, ValidationSettings(seq_length=8))
    with pytest.raises(ConfigError, match="--min-labels must be 0 or more"):
        validate(path, ValidationSettings(min_labels=-1))
