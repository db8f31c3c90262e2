"""On disk: the same bytes from the same seed, labels that match the truth, text that the tokenizer round-trips."""

import collections
import json
from pathlib import Path

import pytest

from nemo_rpo.world.__main__ import main
from nemo_rpo.world.files import WorldConfig, write_world
from nemo_rpo.world.language import Language, LanguageConfig
from nemo_rpo.world.simulated_annotators import AnnotatorConfig


def world(out: Path, seed: int = 0, **annotators) -> WorldConfig:
    config = WorldConfig(
        seed=seed, validation_pairs=50, annotators=AnnotatorConfig(**{"labels": 30, **annotators}), pretrain=None
    )
    write_world(out, config)
    return config


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def quality(language: Language, row: dict, side: str) -> float:
    style = int(row["prompt"].split()[0][1:])
    return sum(language.utility[style, int(word[1:])] for word in row[side].split())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("labels_per_pair", [1, 3])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, labels_per_pair):
    world(tmp_path / "one", labels_per_pair=labels_per_pair)
    world(tmp_path / "again", labels_per_pair=labels_per_pair)
    world(tmp_path / "other", seed=1, labels_per_pair=labels_per_pair)
    assert files(tmp_path / "one") == files(tmp_path / "again")
    for name in ("train.jsonl", "validation.jsonl", "truth.json"):
        assert files(tmp_path / "one")[name] != files(tmp_path / "other")[name]


def test_more_labels_leave_the_validation_pairs_alone(tmp_path):
    world(tmp_path / "few", labels=30)
    world(tmp_path / "many", labels=60)
    assert files(tmp_path / "few")["validation.jsonl"] == files(tmp_path / "many")["validation.jsonl"]


def test_single_labels_agree_with_the_recorded_accuracy(tmp_path):
    config = world(tmp_path)
    language = Language(config.language, config.seed)
    right, count = collections.Counter(), collections.Counter()
    for row in rows(tmp_path / "train.jsonl"):
        gap = quality(language, row, "chosen") - quality(language, row, "rejected")
        assert abs(gap) >= config.min_gap - 1e-9
        count[row["annotator"]] += 1
        right[row["annotator"]] += gap > 0
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert len(count) == 12
    for name, recorded in truth["annotators"].items():
        assert recorded["labels"] == count[name] == 30
        assert recorded["realised_accuracy"] == pytest.approx(right[name] / count[name])
    assert truth["label_accuracy"] == pytest.approx(right.total() / count.total())


def test_votes_agree_with_the_recorded_accuracy_and_hide_the_order(tmp_path):
    config = world(tmp_path, labels_per_pair=3)
    language = Language(config.language, config.seed)
    right, a_better = collections.Counter(), 0
    table = rows(tmp_path / "train.jsonl")
    for row in table:
        better = "a" if quality(language, row, "response_a") > quality(language, row, "response_b") else "b"
        a_better += better == "a"
        for vote in row["votes"]:
            right[vote["annotator"]] += vote["vote"] == better
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert len(table) == 120
    assert 0.3 < a_better / len(table) < 0.7
    for name, recorded in truth["annotators"].items():
        assert recorded["realised_accuracy"] == pytest.approx(right[name] / 30)


def test_validation_labels_are_clean(tmp_path):
    config = world(tmp_path)
    language = Language(config.language, config.seed)
    table = rows(tmp_path / "validation.jsonl")
    assert len(table) == 50
    assert (
        min(quality(language, r, "chosen") - quality(language, r, "rejected") for r in table) >= config.min_gap - 1e-9
    )


def test_tokenizer_round_trips_and_has_an_answer_for_unknown_words(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the tokenizer needs the hf extra")
    world(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    row = rows(tmp_path / "train.jsonl")[0]
    words = LanguageConfig().vocabulary
    expected = ["<bos>", *row["prompt"].split(), *row["chosen"].split()]
    ids = tokenizer(row["prompt"] + row["chosen"]).input_ids
    assert ids == [words.index(word) for word in expected]
    assert tokenizer.decode(ids) == " ".join(expected)
    assert tokenizer(row["prompt"]).input_ids + tokenizer(row["chosen"], add_special_tokens=False).input_ids == ids
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 2, 32)
    assert tokenizer("s2 hello").input_ids == [1, words.index("s2"), 0]


def test_the_package_reads_its_own_world(tmp_path):
    """Prompt and response through the reader's tokenizer are the text the model was pre-trained on."""
    pytest.importorskip("transformers", reason="the tokenizer needs the hf extra")
    from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
    from nemo_rpo.data.tokenizers.spec import TokenizerSpec

    world(tmp_path)
    tokenizer = PreferenceTokenizer.load(TokenizerSpec(str(tmp_path / "model"), use_chat_template=False))
    row = rows(tmp_path / "train.jsonl")[0]
    prompt, response = tokenizer.render(row["prompt"], row["rejected"])
    words = LanguageConfig().vocabulary
    assert [words[i] for i in prompt] == ["<bos>", *row["prompt"].split()]
    assert [words[i] for i in response] == [*row["rejected"].split(), "<eos>"]


def test_command_line(tmp_path, capsys):
    assert (
        main(["--out", str(tmp_path), "--seed", "3", "--labels", "10", "--validation-pairs", "5", "--no-pretrain"]) == 0
    )
    assert "120 training pairs" in capsys.readouterr().out
    assert json.loads((tmp_path / "truth.json").read_text())["seed"] == 3
    assert main(["--out", str(tmp_path), "--labels", "0"]) == 2
    assert "labels (0) must be a positive multiple" in capsys.readouterr().err
