"""CPU seconds of everything before the first step: validate, convert and tokenise, beside the tokenizer library alone.

    python benchmarks/data_speed.py [TOKENIZER] [--pairs 20000] [--data train.jsonl]

Without ``--data`` the pairs are made of a vocabulary of 3,000 words, 500 words a pair, every tenth with a letter beyond
ASCII. "Library" is the tokenizer's own batched call for prompt, prompt + chosen and prompt + rejected, which is what
``datasets.map`` spends its time on; one process, no threads. "json" is a plain loop of ``json.loads`` and
``json.dumps`` over the lines of the file: it says how fast the machine is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nemo_rpo.conversion import convert
from nemo_rpo.data.cache.encoder import CHUNK, encode_chunk
from nemo_rpo.data.formats import read_rows
from nemo_rpo.data.rendering import RawText
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.validation import validate


def write_pairs(path: Path, pairs: int) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choice("aeioubcdfglmnprst") for _ in range(rng.randint(2, 9))) for _ in range(3000)]

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    with path.open("w", encoding="utf-8") as file:
        for i in range(pairs):
            last = " café" if i % 10 == 0 else ""
            row = {"prompt": text(120) + last, "chosen": f" {text(200)}", "rejected": f" {text(180)}"}
            file.write(json.dumps(row | {"annotator": f"w{i % 60}"}, ensure_ascii=False) + "\n")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def chunks(items: list, size: int) -> Iterable[list]:
    return (items[i : i + size] for i in range(0, len(items), size))


def tokens_by_library(tokenizer: Any, texts: list[RawText]) -> int:
    found = 0
    for chunk in chunks(texts, CHUNK):
        prompts = tokenizer([text.prompt for text in chunk], add_special_tokens=False)["input_ids"]
        found -= sum(map(len, prompts))
        for side in (0, 1):
            joint = tokenizer([text.prompt + text.responses[side] for text in chunk], add_special_tokens=False)
            found += sum(map(len, joint["input_ids"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?", help="folder of a Hugging Face tokenizer; without one, files only")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--data", type=Path, help="rows of plain text instead of made ones")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        path = args.data or Path(folder, "pairs.jsonl")
        if args.data is None:
            write_pairs(path, args.pairs)
        import pyarrow.parquet  # noqa: F401  a second of imports is none of the rows' time

        for name, work in {
            "json": lambda: sum(1 for line in path.open(encoding="utf-8") if json.dumps(json.loads(line))),
            "validate": lambda: validate(path).report.rows,
            "convert to JSONL": lambda: convert(path, "votes", Path(folder, "out.jsonl")).rows,
            "convert to Parquet": lambda: convert(path, "votes", Path(folder, "out.parquet")).rows,
        }.items():
            seconds, rows = timed(work)
            of_300k = 3e5 * seconds / rows
            print(f"{name:20}{seconds:7.2f} s   {rows / seconds:10,.0f} rows/s   {of_300k:6.1f} s for 300,000")
        if args.tokenizer is None:
            return
        tokenizer = PreferenceTokenizer.load(TokenizerSpec(args.tokenizer, use_chat_template=False))
        rows = itertools.islice(read_rows(path), args.pairs)
        texts = [RawText(row.where, row.prompt, row.responses) for row in rows]
        encode_chunk(texts[:CHUNK], tokenizer, 1 << 20)  # caches of the library are warm for both
        for name, work in {
            "tokenise": lambda: sum(
                int(encode_chunk(chunk, tokenizer, 1 << 20).lengths.sum()) for chunk in chunks(texts, CHUNK)
            ),
            "library": lambda: tokens_by_library(tokenizer.tokenizer, texts),
        }.items():
            seconds, tokens = timed(work)
            print(f"{name:20}{seconds:7.2f} s   {tokens / seconds:10,.0f} tokens/s")


if __name__ == "__main__":
    main()
