"""CPU seconds of everything before the first step: validate, convert and tokenise, beside datasets.map.

    python benchmarks/data_speed.py [TOKENIZER] [--pairs 24000] [--tokenise 6000 24000] [--data train.jsonl]

Without ``--data`` the pairs are made of a vocabulary of 3,000 words, 500 words a pair, every tenth with a letter beyond
ASCII. CPU seconds are those of all processes, user's and system's, by ``os.times``: others at work on the machine cost
them little, and waiting nothing. "json" is a loop of ``json.loads`` and ``json.dumps`` over the lines of the file:
it says how fast the machine is.

With TOKENIZER, the first ``--tokenise`` pairs become tokens in two processes: by this package's cache, and by
``datasets.map`` with the same tokenizer in batches of 1,000, which tokenises prompt, prompt + chosen and prompt +
rejected, as a trainer has to that is to know where the responses begin. Both read the file, start their processes and
write what they found, each in a process of its own. Starting costs seconds, and this package starts more processes: two
numbers of pairs are taken, and the seconds of each further pair are those that count for a large file. "Library" is
the tokenizer alone, in this process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet  # noqa: F401  a second of imports is none of the rows' time

from nemo_rpo.conversion import convert
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.encoder import CHUNK
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.formats import read_rows
from nemo_rpo.data.rendering import RawText
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.validation import validate

WORKERS = 2


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


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = cpu_seconds()
    result = work()
    return cpu_seconds() - began, result


def tokens_by_library(tokenizer: Any, texts: list[RawText]) -> int:
    found = 0
    for chunk in (texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)):
        prompts = tokenizer([text.prompt for text in chunk], add_special_tokens=False)["input_ids"]
        found -= sum(map(len, prompts))
        for side in (0, 1):
            joint = tokenizer([text.prompt + text.responses[side] for text in chunk], add_special_tokens=False)
            found += sum(map(len, joint["input_ids"]))
    return found


def tokens_by_cache(path: Path, tokenizer: str, folder: Path) -> int:
    spec = CacheSpec(path, RowFormat(), TokenizerSpec(tokenizer, False), 1 << 16, True, "error")
    return int(open_cache(spec, folder, num_workers=WORKERS).lengths.sum())


def tokens_by_map(path: Path, tokenizer: str, folder: Path) -> int:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    of = transformers.AutoTokenizer.from_pretrained(tokenizer)

    def tokenise(rows: dict[str, list]) -> dict[str, list]:
        found = {"prompt_ids": of(rows["prompt"], add_special_tokens=False)["input_ids"]}
        for side in ("chosen", "rejected"):
            joint = [prompt + text for prompt, text in zip(rows["prompt"], rows[side], strict=True)]
            ids = of(joint, add_special_tokens=False)["input_ids"]
            found[f"{side}_ids"] = [i[len(p) :] for i, p in zip(ids, found["prompt_ids"], strict=True)]
        return found

    data = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder))
    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    data = data.map(tokenise, batched=True, num_proc=WORKERS, remove_columns=data.column_names)
    return sum(int(pc.sum(pc.list_value_length(data.data.column(name))).as_py()) for name in names)


def in_a_process(way: Callable[..., int], *arguments: Any) -> int:
    """The way in a fresh process: nobody forks what another has imported, and its threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(way, *arguments).result()


def compare_tokenising(path: Path, tokenizer: str, sizes: list[int], folder: Path) -> None:
    """Prints CPU seconds and tokens of each way, of each number of pairs and between the first and the last."""
    ways = {"this package's cache": tokens_by_cache, "datasets.map": tokens_by_map}
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    for pairs in sizes:
        few = folder / f"first{pairs}.jsonl"
        with path.open("rb") as read, few.open("wb") as write:
            write.writelines(itertools.islice(read, pairs))
        for name, way in ways.items():
            place = folder / f"{way.__name__}{pairs}"
            seconds, tokens = timed(lambda way=way, few=few, place=place: in_a_process(way, few, tokenizer, place))
            found[name].append((seconds, tokens))
            print_tokens(f"{name}, {pairs} pairs", seconds, tokens)
    if len(sizes) > 1:
        for name, ((fewer_seconds, fewer_tokens), *_, (seconds, tokens)) in found.items():
            print_tokens(f"{name}, each further", seconds - fewer_seconds, tokens - fewer_tokens)
    loaded = PreferenceTokenizer.load(TokenizerSpec(tokenizer, use_chat_template=False))
    texts = [RawText(row.where, row.prompt, row.responses) for row in read_rows(folder / f"first{sizes[0]}.jsonl")]
    tokens_by_library(loaded.tokenizer, texts[:CHUNK])
    print_tokens("library", *timed(lambda: tokens_by_library(loaded.tokenizer, texts)))


def print_tokens(name: str, seconds: float, tokens: int) -> None:
    print(f"{name:40}{seconds:7.2f} s   {tokens / seconds:10,.0f} tokens/s   {tokens:,} tokens", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?", help="folder of a Hugging Face tokenizer; without one, files only")
    parser.add_argument("--pairs", type=int, default=24_000)
    parser.add_argument(
        "--tokenise", type=int, nargs="+", default=[6_000, 24_000], metavar="PAIRS", help="pairs to turn into tokens"
    )
    parser.add_argument("--data", type=Path, help="rows of plain text instead of made ones")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        path = args.data or Path(folder, "pairs.jsonl")
        if args.data is None:
            write_pairs(path, args.pairs)
        for name, work in {
            "json": lambda: sum(1 for line in path.open(encoding="utf-8") if json.dumps(json.loads(line))),
            "validate": lambda: validate(path).report.rows,
            "convert to JSONL": lambda: convert(path, "votes", Path(folder, "out.jsonl")).rows,
            "convert to Parquet": lambda: convert(path, "votes", Path(folder, "out.parquet")).rows,
        }.items():
            seconds, rows = timed(work)
            of_300k = 3e5 * seconds / rows
            print(f"{name:20}{seconds:7.2f} s   {rows / seconds:10,.0f} rows/s   {of_300k:6.1f} s for 300,000")
        if args.tokenizer is not None:
            compare_tokenising(path, args.tokenizer, args.tokenise, Path(folder))


if __name__ == "__main__":
    main()
