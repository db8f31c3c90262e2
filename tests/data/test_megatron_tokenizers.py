"""Tokenizers that NeMo's recipes name by their files: ids as the libraries behind them give, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import RPOError

LINES = ["which answer is the better one, and who says so?", "a tie says nothing; a vote says a little."]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    prefix = tmp_path_factory.mktemp("sentencepiece") / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_prefix=str(prefix), vocab_size=60, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")


@pytest.fixture
def gpt2(tmp_path: Path) -> dict[str, str]:
    """The two files of a GPT-2 tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(LINES * 5, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(tmp_path))
    return {"vocab_file": str(tmp_path / "vocab.json"), "merge_file": str(tmp_path / "merges.txt")}


def refusal(spec: TokenizerSpec) -> str:
    with pytest.raises(RPOError) as caught:
        PreferenceTokenizer.load(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("library, type", [("sentencepiece", None), ("megatron", "GPTSentencePieceTokenizer")])
def test_sentencepiece(pieces: Path, library: str, type: str | None) -> None:
    from sentencepiece import SentencePieceProcessor

    tokenizer = PreferenceTokenizer.load(TokenizerSpec(None, False, library, type, model=str(pieces)))
    itself = SentencePieceProcessor(model_file=str(pieces))
    prompt, response = tokenizer.render(f"{LINES[0]}\n", LINES[1])
    assert prompt.tolist() == [itself.bos_id(), *itself.encode(LINES[0])]  # sentencepiece drops the line break
    assert itself.decode(response[:-1].tolist()) == LINES[1] and response[-1] == itself.eos_id()
    assert tokenizer.vocab_size == itself.get_piece_size()


def test_gpt2_is_the_tokenizer_of_transformers(gpt2: dict[str, str]) -> None:
    from transformers import GPT2TokenizerFast

    tokenizer = PreferenceTokenizer.load(TokenizerSpec(None, False, "megatron", "GPT2BPETokenizer", **gpt2))
    itself = GPT2TokenizerFast(gpt2["vocab_file"], gpt2["merge_file"])
    for text in (*LINES, "two  spaces", "naïve 🙂", "a<|endoftext|>b"):
        assert tokenizer.tokenizer.encode(text, add_special_tokens=False) == itself.encode(text)
    assert (
        tokenizer.bos_id
        == tokenizer.eos_id
        == itself.eos_token_id
        == json.loads(Path(gpt2["vocab_file"]).read_text(encoding="utf-8")).get("<|endoftext|>")
    )


def test_the_fingerprint_follows_the_files(pieces: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.model"
    copy.write_bytes(pieces.read_bytes())
    spec, same = (TokenizerSpec(None, False, "sentencepiece", model=str(path)) for path in (pieces, copy))
    assert spec.fingerprint() == same.fingerprint(), "a copy is the same tokenizer"
    copy.write_bytes(pieces.read_bytes() + b"\n")
    assert spec.fingerprint() != same.fingerprint()
    assert TokenizerSpec(None, False, "megatron", model=str(pieces)).fingerprint() != spec.fingerprint()


def test_what_is_refused(pieces: Path, gpt2: dict[str, str], tmp_path: Path) -> None:
    nemo = "run: pip install 'nemo-rpo[nemo]'"
    assert nemo in refusal(TokenizerSpec(None, False, "tiktoken", vocab_file=gpt2["vocab_file"]))
    assert nemo in refusal(TokenizerSpec(None, False, "megatron", "BertWordPieceCase"))
    assert nemo in refusal(TokenizerSpec(None, False, "sentencepiece", model=str(pieces), sentencepiece_legacy=True))
    assert refusal(TokenizerSpec(None, False, "sentencepiece")).startswith("model.tokenizer.model is not set")
    absent = str(tmp_path / "absent.model")
    said = refusal(TokenizerSpec(None, False, "sentencepiece", model=absent))
    assert said == f"model.tokenizer.model={absent} is no file on this machine"
    said = refusal(TokenizerSpec(None, False, "megatron", "GPT2BPETokenizer", vocab_file=gpt2["vocab_file"]))
    assert said.startswith("model.tokenizer.merge_file is not set")
    said = refusal(TokenizerSpec(None, True, "sentencepiece", model=str(pieces)))
    assert "has no chat template" in said
    (tmp_path / "damaged.model").write_bytes(b"damaged")
    said = refusal(TokenizerSpec(None, False, "sentencepiece", model=str(tmp_path / "damaged.model")))
    assert f"the tokenizer in {tmp_path}/damaged.model cannot be loaded" in said
