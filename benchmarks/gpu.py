"""Training steps on one GPU: what FP8 does to log-probs, tokens a second, and the share of the card's arithmetic used.

    python -m benchmarks.gpu [--shapes 1B 8B] [--checkpoint FOLDER] [--write docs/speed.md]
    python -m benchmarks.gpu --plan        # what would run; needs no GPU

First, in each FP8 precision that the card has, the log-probs of a batch of pairs against those in bf16: error a token,
margins, and the step-0 law (policy and reference of one precision differ by exactly 0). On fresh weights, whose
predictions are nearly uniform, unless ``--checkpoint`` names a Hugging Face folder.

Then two Llama shapes with fresh weights and a vocabulary of 128,256: bf16 and FP8, log-probs from all logits, by blocks
of the vocabulary or by Liger where it is installed, padded or packed. RE-DPO without a reference's forward (as with a
cached one), and once with a live one. The lengths of prompts and responses are log-normal, up to 2,048 tokens together.
Of the 8B shape, whose optimizer state does not fit on one card, steps end before the optimizer's; its weights, fp32
copies and gradients take 75 GiB.

MFU is that of a run's log: model FLOPs by :mod:`nemo_rpo.config.arithmetic.flops` over the card's dense bf16 rate,
under FP8 too, so that ratios of MFU are ratios of time. Tokens are those of the sequences, not their padding.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.markdown_table import replace_block, table
from benchmarks.process_tree import run
from benchmarks.speed_world import word_tokenizer
from nemo_rpo.config.arithmetic.flops import peak_flops
from nemo_rpo.errors import ConfigError

VOCAB, SEQ_LENGTH, BATCH, STEPS = 128256, 2048, 16, 6
SHAPES = {
    "1B": {"num_layers": 16, "hidden_size": 2048, "ffn_hidden_size": 8192, "num_attention_heads": 32},
    "8B": {"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32},
}
FP8 = ("fp8_tensorwise", "fp8_blockwise")
HEADS = {"all logits": "logits", "blocks": "chunked", "Liger": "liger"}


def ways(precisions: Sequence[str], liger: bool) -> dict[str, tuple[str, ...]]:
    """The settings of each way to make steps, by name, in the order in which they run."""
    found = {}
    heads = [name for name in HEADS if liger or name != "Liger"]
    for precision, head, packed in itertools.product(("bf16", *precisions), heads, (False, True)):
        found[f"{precision}, {head}, {'packed' if packed else 'padded'}"] = (
            f"model.rpo.logprob_precision={precision}",
            f"model.rpo.logprob_head={HEADS[head]}",
            f"model.data.packed_sequence={str(packed).lower()}",
        )
    for precision in ("bf16", *precisions):
        live = ("model.rpo.base_loss=dpo", "model.rpo.reference=resident")
        found[f"{precision}, blocks, packed, live reference"] = (*found[f"{precision}, blocks, packed"], *live)
    return found


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


def sizes_of(shape: str) -> list[str]:
    return [f"model.{key}={value}" for key, value in SHAPES[shape].items()]


def places_in(folder: Path) -> list[str]:
    return [
        f"model.tokenizer.type={folder / 'tokenizer'}",
        f"model.data.data_prefix.train={folder / 'train.jsonl'}",
        f"exp_manager.explicit_log_dir={folder / 'run'}",
    ]


def measure(folder: Path, shape: str, precisions: Sequence[str]) -> str:
    """The table of one shape, a process for each way."""
    rows = {}
    for name, settings in ways(precisions, liger=importlib.util.find_spec("liger_kernel") is not None).items():
        arguments = ["--steps", str(STEPS), "--threads", "4", *(["--no-update"] if shape == "8B" else [])]
        found = _worker("speed_nemo.py", folder, [*arguments, *places_in(folder), *sizes_of(shape), *settings])
        if isinstance(found, str):
            rows[name] = [found, "", ""]
            continue
        rate = statistics.median(n / s for n, s in zip(found["tokens"], found["wall"], strict=True))
        made = statistics.median(flops / s for flops, s in zip(found["flops"], found["wall"], strict=True))
        peak, memory = peak_flops(found["device"]), found["device_bytes"] / 2**30
        share = "unknown" if peak is None else f"{made / peak:.1%}"
        rows[name] = [f"{rate:,.0f}", share, f"{memory:.1f} GiB"]
    return table(shape, ["tokens a second", "MFU", "peak allocated"], rows)


def compare_precisions(folder: Path, checkpoint: str | None, precisions: Sequence[str]) -> str:
    """The table of log-probs in FP8 against bf16, a process for each precision."""
    of_model = [f"pretrained_checkpoint.restore_from_path={checkpoint}", f"model.tokenizer.type={checkpoint}"]
    rows = {}
    for precision in precisions:
        settings = [*places_in(folder), *(of_model if checkpoint else sizes_of("1B")), "model.rpo.base_loss=dpo"]
        found = _worker("gpu_precision.py", folder, [*settings, f"model.rpo.logprob_precision={precision}"])
        columns = ("mean", "largest", "of_a_sum", "margin_to_bf16", "margin_at_step0")
        rows[precision] = [found, *[""] * 4] if isinstance(found, str) else [f"{found[name]:.3g}" for name in columns]
    columns = ["nats a token, mean", "largest", "largest of a response", "largest margin to bf16", "at step 0 (law: 0)"]
    return table(checkpoint or "1B, fresh weights", columns, rows)


def _worker(script: str, folder: Path, arguments: Sequence[str]) -> Any:
    """What the process says; in a word, why it did not, where the card had no room."""
    command = [sys.executable, str(Path(__file__).with_name(script)), "--config", str(folder / "gpu.yaml"), *arguments]
    try:
        return run(command, threads=4).answer
    except SystemExit as failed:
        if "OutOfMemoryError" in str(failed):
            return "out of memory"
        raise


def precisions_here() -> tuple[list[str], list[str]]:
    """The FP8 precisions that this machine has, and why it has not the others."""
    from nemo_rpo.megatron.network.precision import check_machine, this_machine

    able, reasons = [], []
    for precision in FP8:
        try:
            check_machine(precision, this_machine())
            able.append(precision)
        except ConfigError as reason:
            reasons.append(str(reason))
    return able, reasons


def plan(shapes: Sequence[str]) -> str:
    """What would run on a card that has all of it, a line a process."""
    lines = [f"log-probs against bf16: {precision}" for precision in FP8]
    lines += [f"{shape}: {name}" for shape in shapes for name in ways(FP8, liger=True)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--checkpoint", help="a Hugging Face folder to compare precisions on")
    parser.add_argument("--plan", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--write", help="a file with the block 'gpu'")
    args = parser.parse_args()
    if args.plan:
        print(plan(args.shapes))
        return
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu needs a CUDA GPU: this machine has none that torch can use (--plan needs none)"
        )
    precisions, reasons = precisions_here()
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder))
        tables = [compare_precisions(Path(folder), args.checkpoint, precisions)] if precisions else []
        tables += [measure(Path(folder), shape, precisions) for shape in args.shapes]
    facts = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {BATCH} pairs a step."
    found = "\n\n".join([" ".join([facts, *reasons]), *tables])
    print(found)
    if args.write:
        replace_block(args.write, "gpu", found)


if __name__ == "__main__":
    main()
