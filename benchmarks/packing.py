"""How many of the tokens that a step runs are padding, by layout of the batch: arithmetic on the lengths of real pairs.

    python -m benchmarks.packing [--write docs/speed.md]

Lengths are those of Anthropic's HH harmless test split under GPT-2's tokenizer, from the folder of public data sets.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from benchmarks.markdown_table import replace_block, table
from nemo_rpo.config.lengths import length_multiple, sequence_multiple
from nemo_rpo.config.schema import ModelConfig
from nemo_rpo.data.batches.packing import Packing
from nemo_rpo.data.batches.padded import padded_length
from nemo_rpo.data.batches.sampler import GlobalBatchSampler, shard
from nemo_rpo.data.formats import read_rows
from nemo_rpo.data.rendering import OK, RawText, render
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec

DATA = Path(os.environ.get("NEMO_RPO_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
SEQ_LENGTH, BATCH, MICRO_BATCH, TENSOR = 1024, 64, 2, 2


def lengths_of(data: Path) -> np.ndarray:
    """Tokens of prompt, chosen and rejected of every pair that fits, int64 ``[n, 3]``."""
    gpt2 = data / "gpt2_tokenizer"
    spec = TokenizerSpec(
        None, False, "megatron", "GPT2BPETokenizer", vocab_file=str(gpt2 / "vocab.json"),
        merge_file=str(gpt2 / "merges.txt"),
    )  # fmt: skip
    tokenizer = PreferenceTokenizer.load(spec)
    rows = read_rows(data / "hh_harmless_test" / "test.jsonl.gz", on_error=lambda bad: None)
    texts = [RawText(row.where, row.prompt, row.responses) for row in rows]
    found = [
        (len(of.prompt), *map(len, of.responses)) for of in render(texts, tokenizer, SEQ_LENGTH) if of.problem == OK
    ]
    lengths = np.array(found)
    return lengths[lengths[:, 0] + lengths[:, 1:].max(1) <= SEQ_LENGTH]


def run_tokens(lengths: np.ndarray, multiple: int, packing: Packing | None) -> int:
    """Tokens that a rank runs in an epoch."""
    sampler, total = GlobalBatchSampler(len(lengths), BATCH, seed=0), 0
    for step in range(sampler.steps_per_epoch):
        batch = sampler.batch(step)
        if packing is None:
            for share in shard(batch, 0, 1, MICRO_BATCH):
                total += 2 * MICRO_BATCH * padded_length(lengths[share], multiple, SEQ_LENGTH)
            continue
        sizes = packing.sizes(lengths[batch])
        total += sum(-(-int(sizes[pack].sum()) // multiple) * multiple for pack in packing.packs(sizes, 0, 1))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="FILE", help="puts the table into the block `packing` of this file")
    args = parser.parse_args()
    lengths = lengths_of(DATA)
    sampler = GlobalBatchSampler(len(lengths), BATCH, seed=0)
    used = np.concatenate([sampler.batch(step) for step in range(sampler.steps_per_epoch)])
    texts = int((2 * lengths[used, :1] + lengths[used, 1:].sum(1, keepdims=True)).sum())
    budget, rows = 2 * MICRO_BATCH * SEQ_LENGTH, {}
    for context in (1, 2, 4, 8):
        model = ModelConfig(context_parallel_size=context, tensor_model_parallel_size=TENSOR, sequence_parallel=True)
        multiple, each = length_multiple(model), sequence_multiple(model)
        ways = (None, Packing(budget, False), Packing(budget, True), Packing(budget, False, sequence_multiple_of=each))
        rows[f"{context}"] = [f"{texts / run_tokens(lengths, multiple, way):.3f}" for way in ways]
    heads = ("padded", "packed", "packed, one prompt", "packed for Transformer Engine")
    said = (
        f"{len(lengths):,} pairs, {texts / len(used) / 2:.0f} tokens a text on average, {TENSOR} tensor-parallel ranks."
    )
    text = f"{said}\n\n{table('context-parallel ranks', heads, rows)}"
    print(text)
    if args.write:
        replace_block(args.write, "packing", text)


if __name__ == "__main__":
    main()
