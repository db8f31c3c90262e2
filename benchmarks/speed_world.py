"""What the speed benchmarks train on: a small Llama with fresh weights, and pairs of real or of made-up text.

Real: arguments of UKPConvArg1 under the tokenizer of stories260k, from the folder of public data sets; where that is
absent, the same shapes in words of a made-up language.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SEQ_LENGTH = 512
SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 8}  # 6M


class Vote(NamedTuple):
    prompt: str
    chosen: str
    rejected: str
    annotator: str


def make(folder: Path, data: Path, pairs: int) -> str:
    """Writes ``model/``, ``short_prompts.jsonl`` and ``long_prompts.jsonl`` (half of the tokens are prompts, counting a
    prompt for each response), ``pairs`` rows each, none of which has to be truncated. Returns what the text is.
    """
    real = (data / "ukpconvarg1" / "votes.csv").exists() and (data / "stories260k" / "hf").exists()
    tokenizer = _stories_tokenizer(data) if real else word_tokenizer(503)
    votes = list(_ukp_votes(data / "ukpconvarg1") if real else _made_up_votes(8 * pairs))
    random.Random(0).shuffle(votes)
    _write_model(folder / "model", tokenizer)
    _write(folder / "short_prompts.jsonl", votes, tokenizer, pairs)
    words = " ".join(vote.chosen for vote in votes[:500]).split()
    _write(folder / "long_prompts.jsonl", (_with_long_prompt(vote, words) for vote in votes), tokenizer, pairs)
    return "UKPConvArg1, tokenizer of stories260k" if real else "made-up words"


def _ukp_votes(folder: Path) -> Iterator[Vote]:
    def rows(name: str) -> Iterator[dict[str, Any]]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            yield from (csv.DictReader(file) if name.endswith("csv") else map(json.loads, file))

    topics = {row["topic"]: f"{row['title']}\n{row['stance']}\n" for row in rows("topics.jsonl")}
    texts = {(row["topic"], row["arg"]): row["text"] for row in rows("arguments.jsonl")}
    pairs = {row["item_id"]: row for row in rows("pairs.csv")}
    for row in rows("votes.csv"):
        pair = pairs[row["item_id"]]
        a, b = (texts[pair["topic"], pair[f"arg_{side}"]] for side in "ab")
        if row["vote"] in ("a", "b"):
            yield Vote(topics[pair["topic"]], *((a, b) if row["vote"] == "a" else (b, a)), row["annotator"])


def _made_up_votes(count: int) -> Iterator[Vote]:
    draw = random.Random(1)
    for _ in range(count):
        prompt, chosen, rejected = (
            " ".join(f"w{draw.randrange(500)}" for _ in range(length))
            for length in (draw.randint(8, 20), *(int(draw.lognormvariate(4.7, 0.5)) + 1 for _ in "ab"))
        )
        yield Vote(prompt + "\n", chosen, rejected, f"annotator{draw.randrange(200)}")


def _with_long_prompt(vote: Vote, words: list[str]) -> Vote:
    """Half as many words as both responses have together."""
    length = (len(vote.chosen.split()) + len(vote.rejected.split())) // 2
    start = random.Random(vote.chosen).randrange(max(len(words) - length, 1))
    return vote._replace(prompt=" ".join(words[start : start + length]) + "\n")


def _write(path: Path, votes: Any, tokenizer: Any, pairs: int) -> None:
    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    kept, seen = [], set()
    for vote in votes:
        longest = tokens(vote.prompt) + max(tokens(vote.chosen), tokens(vote.rejected)) + 2
        if longest <= SEQ_LENGTH and vote.chosen != vote.rejected and vote[:3] not in seen:
            seen |= {vote[:3], (vote.prompt, vote.rejected, vote.chosen)}
            kept.append(vote._asdict())
        if len(kept) == pairs:
            break
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _stories_tokenizer(data: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data / "stories260k" / "hf")


def word_tokenizer(count: int) -> Any:
    """Of ``count`` tokens, the words ``w0``, ``w1`` … and three marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(count - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _write_model(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=SEQ_LENGTH, **SHAPE, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.save_pretrained(folder)
