"""How fast the engine writes: with a key-value cache, and without one, in alternation on one CPU thread.

    python -m benchmarks.generation [--rounds 3] [--write docs/loop.md]

A Llama of random weights (hidden 256, 6 layers, 8 heads on 4 key/value groups, vocabulary 4,096; fp32), 16 prompts of
16 to 24 tokens. CPU seconds of the process. Prints the table of docs/loop.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from nemo_rpo.megatron import cpu

cpu.install()

import torch  # noqa: E402  what makes Megatron-Core run on a CPU comes first

from benchmarks.markdown_table import replace_block, table  # noqa: E402
from nemo_rpo.config.architecture import GPTArchitecture  # noqa: E402
from nemo_rpo.config.schema import RunConfig  # noqa: E402
from nemo_rpo.megatron import parallel  # noqa: E402
from nemo_rpo.megatron.generate.cached import generate  # noqa: E402
from nemo_rpo.megatron.generate.drawing import Drawing  # noqa: E402
from nemo_rpo.megatron.generate.without_cache import greedy  # noqa: E402
from nemo_rpo.megatron.network.build import build_model_chunks  # noqa: E402

ROWS, VOCABULARY, NEW_TOKENS = 16, 4096, (16, 64, 128)


def timed(write: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    write()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cfg = RunConfig()
    cfg.trainer.accelerator, cfg.trainer.precision = "cpu", "32"
    parallel.initialize(cfg)
    chunks = build_model_chunks(_architecture(), cfg)
    numbers = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, VOCABULARY, (16 + row % 9,), generator=numbers).tolist() for row in range(ROWS)]
    lines = {}
    for new in NEW_TOKENS:
        ways = {
            "without a cache": lambda new=new: greedy(chunks, prompts, new, None, VOCABULARY),
            "with a cache": lambda new=new: list(generate(chunks, prompts, new, [], VOCABULARY)),
            "with a cache, drawn, top-p .9": lambda new=new: list(
                generate(chunks, prompts, new, [], VOCABULARY, Drawing(1.0, 0.9), list(range(ROWS)))
            ),
        }
        seconds = {way: [] for way in ways}
        for _ in range(arguments.rounds):  # in alternation: the machine is not ours alone
            for way, write in ways.items():
                seconds[way].append(timed(write))
        slow = min(seconds["without a cache"])
        for way, found in seconds.items():
            lines[f"{new} new tokens, {way}"] = [f"{ROWS * new / min(found):,.0f}", f"{slow / min(found):.1f}×"]
    text = table("16 rows", ["tokens a CPU-s", "pace"], lines)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "generation", text)
    parallel.finalize()


def _architecture() -> GPTArchitecture:
    return GPTArchitecture(
        num_layers=6,
        hidden_size=256,
        ffn_hidden_size=688,
        num_attention_heads=8,
        num_query_groups=4,
        kv_channels=32,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
    )


if __name__ == "__main__":
    main()
