"""Training steps on one GPU: tokens a second and how much of the card's arithmetic they use.

    python -m benchmarks.gpu [--shapes 1B 8B] [--write docs/speed.md]

Two Llama shapes with fresh weights in bf16 and a vocabulary of 128,256, RE-DPO without a reference's forward (as with a
cached one): log-probs from all logits or by blocks of the vocabulary, pairs padded or packed. The lengths of prompts
and responses are log-normal, up to 2,048 tokens together. Of the 8B shape, whose optimizer state does not fit on one
card, steps end before the optimizer's.

MFU = tokens/s · 6N / peak: N parameters without the input embedding, 2N operations a token forward and 4N backward (8N
in all where a live reference runs forward too), and attention's own not counted; tokens are those of the sequences, not
their padding; the peak is the card's dense bf16 rate.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.markdown_table import replace_block, table
from benchmarks.process_tree import run
from benchmarks.speed_world import word_tokenizer

# Dense bf16 operations a second, from NVIDIA's data sheets.
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
VOCAB, SEQ_LENGTH, BATCH, STEPS = 128256, 2048, 16, 6
SHAPES = {
    "1B": {"num_layers": 16, "hidden_size": 2048, "ffn_hidden_size": 8192, "num_attention_heads": 32},
    "8B": {"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32},
}
WAYS = {
    "all logits, padded": ("model.rpo.logprob_head=logits",),
    "blocks, padded": (),
    "all logits, packed": ("model.rpo.logprob_head=logits", "model.data.packed_sequence=true"),
    "blocks, packed": ("model.data.packed_sequence=true",),
}
CONFIG = f"""
trainer: {{precision: bf16, dpo: {{max_steps: {STEPS}}}}}
model:
  global_batch_size: {BATCH}
  micro_batch_size: 2
  encoder_seq_length: {SEQ_LENGTH}
  num_query_groups: 8
  rotary_base: 500000
  rpo: {{base_loss: simpo}}
"""


def write_world(folder: Path) -> None:
    """``tokenizer/``, ``train.jsonl`` and ``gpu.yaml``."""
    word_tokenizer(VOCAB).save_pretrained(folder / "tokenizer")
    draw = random.Random(0)

    def text(mean_log: float) -> str:
        # Less than half of the length each, so that a prompt and a response fit.
        length = min(int(draw.lognormvariate(mean_log, 0.6)) + 1, SEQ_LENGTH // 2 - 2)
        return " ".join(f"w{draw.randrange(VOCAB - 3)}" for _ in range(length))

    rows = [
        {"prompt": text(5.0) + "\n", "chosen": text(5.8), "rejected": text(5.8), "annotator": f"a{draw.randrange(99)}"}
        for _ in range(BATCH * STEPS)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "gpu.yaml").write_text(CONFIG, encoding="utf-8")


def measure(folder: Path, shape: str) -> str:
    """The table of one shape, a process for each way."""
    rows = {}
    for name, overrides in WAYS.items():
        worker = [sys.executable, str(Path(__file__).with_name("speed_nemo.py")), "--config", str(folder / "gpu.yaml")]
        worker += ["--steps", str(STEPS), "--threads", "4", *(["--no-update"] if shape == "8B" else [])]
        sizes = [f"model.{key}={value}" for key, value in SHAPES[shape].items()]
        places = [
            f"model.tokenizer.type={folder / 'tokenizer'}",
            f"model.data.data_prefix.train={folder / 'train.jsonl'}",
            f"exp_manager.explicit_log_dir={folder / 'run'}",
        ]
        found = run([*worker, *places, *sizes, *overrides], threads=4).answer
        rate = statistics.median(n / s for n, s in zip(found["tokens"], found["wall"], strict=True))
        used = mfu(rate, found["parameters"], found["device"])
        share, memory = "unknown" if used is None else f"{used:.1%}", found["device_bytes"] / 2**30
        rows[name] = [f"{rate:,.0f}", share, f"{memory:.1f} GiB"]
    return table(shape, ["tokens a second", "MFU (6N)", "peak allocated"], rows)


def mfu(tokens_per_second: float, parameters: int, device: str) -> float | None:
    """Share of the card's dense bf16 rate; None for a card that :data:`PEAK` does not know."""
    peak = next((rate for name, rate in PEAK.items() if name in device), None)
    return None if peak is None else tokens_per_second * 6 * parameters / peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--write", help="a file with the block 'gpu'")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA GPU: this machine has none that torch can use")
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder))
        tables = "\n\n".join(measure(Path(folder), shape) for shape in args.shapes)
    found = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, {BATCH} pairs a step.\n\n{tables}"
    print(found)
    if args.write:
        replace_block(args.write, "gpu", found)


if __name__ == "__main__":
    main()
