"""NeMo's tokenizers and the package's own give the same ids for the same settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_rpo.data.tokenizers.nemo import NemoTokenizer
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import RPOError
from nemo_rpo.nemo_toolkit import SWITCH

LINES = [
    "which answer is the better one, and who says so?",
    "a tie says nothing; a vote says a little.",
    "once upon a time there was a little cat who liked to play with a red ball in the garden.",
]
TEXTS = [*LINES, "", " ", "two  spaces,\ttabs\nand lines ", "naïve café, 東京 and 🙂", "<s> is text </s>", "xyzzy"]


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    prefix = tmp_path_factory.mktemp("sentencepiece") / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_prefix=str(prefix), vocab_size=90, pad_id=3, byte_fallback=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a chat template and without a pad token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        chat_template="{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("folder")
    fast.save_pretrained(path)
    return path


def both(spec: TokenizerSpec, monkeypatch: pytest.MonkeyPatch) -> list[PreferenceTokenizer]:
    """NeMo's and the package's own."""
    nemos = PreferenceTokenizer.load(spec)
    monkeypatch.setenv(SWITCH, "own")
    return [nemos, PreferenceTokenizer.load(spec)]


def same(nemos: PreferenceTokenizer, own: PreferenceTokenizer) -> None:
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(nemos, name) == getattr(own, name), name
    for prompt in TEXTS:
        for response in TEXTS:
            for found, expected in zip(nemos.render(prompt, response), own.render(prompt, response), strict=True):
                assert found.tolist() == expected.tolist(), (prompt, response)


@pytest.mark.parametrize("library, type", [("sentencepiece", None), ("megatron", "GPTSentencePieceTokenizer")])
def test_sentencepiece(sentencepiece_model: Path, library: str, type: str | None, monkeypatch) -> None:
    nemos, own = both(TokenizerSpec(None, False, library, type, model=str(sentencepiece_model)), monkeypatch)
    assert isinstance(nemos.tokenizer, NemoTokenizer) and not isinstance(own.tokenizer, NemoTokenizer)
    assert len(nemos.render(LINES[0], LINES[1])[1]) > 5
    same(nemos, own)


def test_a_hugging_face_folder(folder: Path, monkeypatch) -> None:
    nemos, own = both(TokenizerSpec(str(folder), False), monkeypatch)
    # NeMo gives it the special tokens that it lacks and that it has a word for: its sign.
    assert nemos.tokenizer.sep_token == "</s>" and own.tokenizer.sep_token is None
    same(nemos, own)


def test_its_chat_template(folder: Path, monkeypatch) -> None:
    for found, expected in zip(
        *(
            tokenizer.render("who says so?", "a tie")
            for tokenizer in both(TokenizerSpec(str(folder), True), monkeypatch)
        ),
        strict=True,
    ):
        assert found.tolist() == expected.tolist()


def test_the_tokenizer_of_a_real_llama(shared_data: Path, monkeypatch) -> None:
    same(*both(TokenizerSpec(str(shared_data / "stories260k" / "hf"), False), monkeypatch))


def test_byte_level_is_nemos_alone(monkeypatch) -> None:
    spec = TokenizerSpec(None, False, "byte-level")
    prompt, response = PreferenceTokenizer.load(spec).render("ab", "é")
    assert bytes(response[:2].tolist()) == "é".encode() and bytes(prompt[-2:].tolist()) == b"ab"
    monkeypatch.setenv(SWITCH, "own")
    with pytest.raises(RPOError, match=r"is a tokenizer of NeMo's own; run: pip install 'nemo-rpo\[nemo\]'"):
        PreferenceTokenizer.load(spec)


def test_what_nemo_cannot_build_is_one_line_with_a_way_out(tmp_path: Path) -> None:
    """GPT-2's files are NeMo's only beside a ``gpt2`` from the hub; the package's own reads them as they are."""
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocabulary.write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}), encoding="utf-8")
    merges.write_text("#version: 0.2\na b\n", encoding="utf-8")
    files = {"vocab_file": str(vocabulary), "merge_file": str(merges)}
    spec = TokenizerSpec(None, False, "megatron", "GPT2BPETokenizer", **files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it is tried for a minute and a half
        with pytest.raises(RPOError) as caught:
            PreferenceTokenizer.load(spec)
    said = str(caught.value)
    assert "\n" not in said and "nemo-toolkit cannot build the tokenizer" in said and f"{SWITCH}=own" in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "own")
        prompt, response = PreferenceTokenizer.load(spec).render("ab", "ba")
    assert prompt.tolist() == [3, 2] and response.tolist() == [1, 0, 3]


def test_the_cache_tells_whose_tokenizer_it_was(folder: Path, monkeypatch) -> None:
    spec = TokenizerSpec(str(folder), False)
    nemos = spec.fingerprint()
    monkeypatch.setenv(SWITCH, "own")
    assert spec.fingerprint() != nemos
