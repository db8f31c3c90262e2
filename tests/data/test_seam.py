"""Texts cut at a seam have the ids of the whole, whatever follows; tokenizers of which that is not known have none."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from nemo_rpo.data.rendering import RawText, render
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.seam import seam_of

from .conftest import TEXT

SPLITS = {
    "gpt2": None,
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "by case": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
PIECES = [
    "a",
    "cat",
    " dog",
    "X",
    " ",
    " ",
    "  ",
    "\n",
    "\n\n",
    "'s",
    "'LL",
    "don't",
    "1",
    "23",
    "456",
    ".",
    "?! ",
    "/",
]
PIECES += [
    "é",
    "e\u0301",
    "\u0301",
    "漢字",
    "ﬁ",
    "Ω",
    "🙂",
    "\u00a0",
    "\u2003",
    "\t",
    "<|end|>",
    "<|end|> ",
    "_x",
    "ſ",
    "K",
]


def bpe(split=None, *, normalizer=None, add_prefix_space=False, added=()):
    """A fast tokenizer of a small byte-level BPE that splits as a family of models does."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=split is None)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        level if split is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    )
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<s>", "<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXT, "don't the dogs' 1234 votes\n\nsay\n a lot"], trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer


def seam(tokenizer):
    return seam_of(SimpleNamespace(backend_tokenizer=tokenizer))


def texts(count, seed=0):
    rng = random.Random(seed)
    return [
        "".join(rng.choices([*PIECES, *TEXT[0].split(), " say", " a lot"], k=rng.randint(2, 25))) for _ in range(count)
    ]


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("family", SPLITS)
def test_both_parts_of_a_text_have_the_ids_of_the_whole_whatever_follows(family, prefix):
    from tokenizers import normalizers

    tokenizer = bpe(SPLITS[family], normalizer=normalizers.NFC() if family == "qwen" else None, add_prefix_space=prefix)
    cut = seam(tokenizer)

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    found = 0
    for text, more in zip(texts(1500), texts(1500, seed=1), strict=True):
        at = cut(text)
        found += at > 0
        assert not at or ids(text[:at]) + ids(text[at:] + more) == ids(text + more), (text, more)
    assert found > 500


@pytest.mark.parametrize("family", SPLITS)
def test_a_seam_changes_no_token_of_a_prompt_or_a_response(family):
    from transformers import PreTrainedTokenizerFast

    with_seam, without = (
        PreferenceTokenizer(PreTrainedTokenizerFast(tokenizer_object=bpe(SPLITS[family]), bos_token="<s>"), False, "x")
        for _ in range(2)
    )
    without._seam = lambda text: 0
    sides = texts(200, seed=2), texts(200, seed=3)
    raw = [RawText("f:1", prompt, (a, b)) for prompt, a, b in zip(texts(200), *sides, strict=True)]
    for one, other in zip(*(render(raw, tokenizer, 512) for tokenizer in (with_seam, without)), strict=True):
        assert one.problem == other.problem
        for a, b in zip((one.prompt, *one.responses), (other.prompt, *other.responses), strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_seam_where_words_may_hang_together():
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers

    text = "many votes say a lot"
    assert seam(bpe())(text) == text.rindex(" ")
    assert seam(bpe(added=["\n\n", "   ", "<|a_b|>"]))(text) > 0
    dropping, other_words = bpe(), bpe()
    dropping.model = models.BPE(dropout=0.1)
    other_words.pre_tokenizer = pre_tokenizers.Metaspace()
    strange = [
        dropping,
        other_words,
        bpe(SPLITS["llama3"].replace(r"\p{L}+", r"\p{L}+ ?")),
        bpe(normalizer=normalizers.Strip()),
        bpe(added=["say a"]),
        bpe(added=[AddedToken("lot", lstrip=True)]),
    ]
    assert [seam(tokenizer)(text) for tokenizer in strange] == [0] * len(strange)
    assert seam_of(SimpleNamespace())(text) == 0
