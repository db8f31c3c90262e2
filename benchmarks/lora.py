"""LoRA beside full training: accuracy in the demo's world and on real votes, and peak memory.

    python -m benchmarks.lora world --seeds 0 1 2        # each seed a world of its own; one rank a run
    python -m benchmarks.lora ukp --data UKPCONVARG1 --model STORIES260K   # each seed a split and a draw of votes
    python -m benchmarks.lora memory                     # a fresh Llama of 27M weights, global batches of 8 short pairs

    python -m benchmarks.lora world --seeds 100 --rates 4e-3 1e-2 2e-2   # other rates, on a world that is not reported

LoRA is rank 8, scale 2, beside every layer. Its rates were chosen on seed 100, which is not reported. Peak memory is
the largest resident set of the training process.
``--write docs/lora.md`` puts the table there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.markdown_table import replace_block, table
from nemo_rpo.training.logs.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
LORA = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=8", "model.peft.lora_tuning.alpha=16"]
ONE_RANK = ["model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=1"]
PLAIN = "model.rpo.enabled=false"
_MODEL = """
import sys
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
tokenizer = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/world/model")
shape = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8)
config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)
LlamaForCausalLM(config).save_pretrained(f"{sys.argv[1]}/model")
tokenizer.save_pretrained(f"{sys.argv[1]}/model")
"""
WORLD_RATE, UKP_RATE = 4e-3, 1e-4


def call(*arguments: object) -> None:
    """A command of this Python, from the checkout; its failure is ours."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    said = subprocess.run([sys.executable, *map(str, arguments)], env=environment, stdout=sys.stderr)
    if said.returncode:
        sys.exit(said.returncode)


def train(config: str, run: Path, model: Path, data: Path, overrides: Sequence[str]) -> list[dict]:
    """Metrics of a run that is made where it has not been made already."""
    if not (run / "done.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        places = [
            f"exp_manager.explicit_log_dir={run}",
            f"pretrained_checkpoint.restore_from_path={model}",
            f"model.data.data_prefix.train={data / 'train.jsonl'}",
            f"model.data.data_prefix.validation={data / 'validation.jsonl'}",
        ]
        settings = [*places, *ONE_RANK, *overrides]
        call("-m", "nemo_rpo.cli", "train", "--config-path", ROOT / "conf", "--config-name", config, *settings)
        (run / "done.json").write_text(json.dumps(settings))
    return read_metrics(run)


def accuracy(metrics: list[dict]) -> float:
    return [row for row in metrics if row["split"] == "val"][-1]["acc"]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def world(args: argparse.Namespace) -> str:
    """Accuracy on 2,000 fresh pairs with clean labels."""
    rates = args.rates or [WORLD_RATE]
    methods = {"full, DPO": [PLAIN], "full, RE-DPO": []} if not args.rates else {}
    for rate in rates:
        named = f" at {rate:g}" if args.rates else ""
        adapted = [*LORA, f"model.optim.lr={rate}"]
        methods |= {} if args.rates else {"LoRA, DPO": [*adapted, PLAIN]}
        methods[f"LoRA, RE-DPO{named}"] = adapted
    found: dict[str, list[float]] = {name: [] for name in methods}
    for seed in args.seeds:
        folder = args.out / f"world_{seed}"
        if not (folder / "world" / "truth.json").exists():
            call("-m", "nemo_rpo.world", "--out", folder / "world", "--seed", seed)
        for name, overrides in methods.items():
            run, data = folder / name.replace(" ", "_").replace(",", ""), folder / "world"
            metrics = train("demo", run, data / "model", data, [f"model.seed={seed}", *overrides])
            found[name].append(accuracy(metrics))
            print(seed, name, found[name][-1], file=sys.stderr, flush=True)
    heads = [f"seed {seed}" for seed in args.seeds]
    rows = {name: [*(f"{value:.3f}" for value in values), spread(values)] for name, values in found.items()}
    return table("demo's world", [*heads, "mean ± sd"], rows)


def ukp(args: argparse.Namespace) -> str:
    """Accuracy against the gold labels of 800 held-out pairs, at 40 % of the workers turned round and at none."""
    example = ROOT / "examples" / "ukpconvarg1"
    methods = {} if args.rates else {"full, DPO": [PLAIN], "full, RE-DPO": []}
    for rate in args.rates or [UKP_RATE]:
        named = f" at {rate:g}" if args.rates else ""
        adapted = [*LORA, f"model.optim.lr={rate}"]
        methods |= {f"LoRA, DPO{named}": [*adapted, PLAIN], f"LoRA, RE-DPO{named}": adapted}
    inverted = (0.0, 0.4)
    found: dict[str, list[list[float]]] = {name: [[] for _ in inverted] for name in methods}
    for seed, (column, invert) in itertools.product(args.seeds, enumerate(inverted)):
        folder = args.out / f"ukp_{invert:g}_{seed}"
        if not (folder / "truth.json").exists():
            options = ["--tokenizer", args.model, "--max-tokens", 256, "--invert", invert, "--seed", seed]
            options += ["--limit-validation", 800, "--limit-votes", 6000]
            call(example / "prepare.py", "--data", args.data, "--out", folder, *options)
        for name, overrides in methods.items():
            run = folder / name.replace(" ", "_").replace(",", "")
            shared = [f"model.rpo.reference_cache={folder / 'reference'}", "trainer.dpo.max_epochs=2"]
            shared += ["model.encoder_seq_length=256", f"model.data.cache_dir={folder / 'cache'}", f"model.seed={seed}"]
            found[name][column].append(accuracy(train("ukpconvarg1", run, args.model, folder, [*shared, *overrides])))
            print(seed, invert, name, found[name][column][-1], file=sys.stderr, flush=True)
    rows = {name: [spread(values) for values in columns] for name, columns in found.items()}
    heads = ["votes as they are", "40 % of workers inverted"]
    seeds = "one seed" if len(args.seeds) == 1 else f"{len(args.seeds)} seeds, mean ± sd"
    return table(f"UKPConvArg1, {seeds}", heads, rows)


def memory(args: argparse.Namespace) -> str:
    """Peak resident set of a run of six steps, and what its last checkpoint takes on disk."""
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        call("-m", "nemo_rpo.world", "--out", folder / "world", "--seed", 0)
        call("-c", _MODEL, folder)  # in a process of its own: a run's peak begins with that of who starts it
        short = ["model.global_batch_size=8", "model.micro_batch_size=4", "trainer.dpo.max_steps=6", PLAIN]
        short += [
            "trainer.dpo.val_check_interval=0",
            "exp_manager.checkpoint_callback_params.save_hf_on_train_end=false",
        ]
        methods = {
            "all weights, resident reference": ["model.rpo.reference=resident"],
            "all weights, swapped reference": ["model.rpo.reference=swapped"],
            "all weights, cached reference": ["model.rpo.reference=cached", "model.data.data_prefix.train={few}"],
            "LoRA, adapters switched off": LORA,
        }
        few = folder / "few.jsonl"
        few.write_text("".join((folder / "world" / "train.jsonl").read_text().splitlines(keepends=True)[:64]))
        for name, overrides in methods.items():
            settings = [*short, *(override.format(few=few) for override in overrides)]
            run = folder / name.replace(" ", "_").replace(",", "")
            metrics = train("demo", run, folder / "model", folder / "world", settings)
            peak = max(row["memory/peak_gib"] for row in metrics if "memory/peak_gib" in row) * 2**10
            [last] = (run / "checkpoints").glob("step=*")
            size = sum(path.stat().st_size for path in last.iterdir()) / 2**20
            rows[name] = [f"{peak:,.0f}", f"{size:,.1f}"]
    return table("27M weights, fp32, one CPU rank", ["peak MiB", "checkpoint MiB"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["world", "ukp", "memory"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates of the adapters, to choose one of")
    parser.add_argument("--data", type=Path, help="folder of UKPConvArg1")
    parser.add_argument("--model", type=Path, help="Hugging Face folder of the model to align on it")
    parser.add_argument("--out", type=Path, default=Path("runs/lora"))
    parser.add_argument("--write", metavar="FILE", help="the Markdown file whose block lora_WHAT is replaced")
    args = parser.parse_args()
    text = {"world": world, "ukp": ukp, "memory": memory}[args.what](args)
    print(text)
    if args.write:
        replace_block(args.write, f"lora_{args.what}", text)


if __name__ == "__main__":
    main()
