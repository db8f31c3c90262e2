"""Rounds in a world with a known answer, through ``nemo-rpo iterate``: a tiny policy and twelve judges.

    python -m benchmarks.loop_world re_dpo dpo --seeds 0 1 2 --out runs/loop_world
    python -m benchmarks.loop_world --table --out runs/loop_world --write docs/loop.md

A small Llama is pre-trained on a preference world's language (:mod:`nemo_rpo.world`); its samples are compared by
twelve programs that know the gold quality and say what is true .95 to .15 of the time (three of them a pair). The win
rate is gold's word, over the start. Methods are recipes of :mod:`nemo_rpo.rounds.recipes` with the settings below, and
the worlds of bad judges (mean .43 right) without anchors, with anchors that only test, and with anchors as evidence.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from hashlib import blake2b
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.markdown_table import replace_block, table

ETA = (0.95, 0.92, 0.88, 0.82, 0.75, 0.68, 0.60, 0.50, 0.40, 0.30, 0.20, 0.15)
BAD = (0.95, 0.92, 0.88, 0.80, 0.40, 0.35, 0.30, 0.30, 0.25, 0.20, 0.20, 0.15)
TRAIN = """\
trainer:
  accelerator: cpu
  precision: 32
  dpo: {max_epochs: 2, val_check_interval: 1.0, save_interval: 0}
exp_manager: {checkpoint_callback_params: {save_top_k: 0}}
model:
  micro_batch_size: 64
  global_batch_size: 64
  encoder_seq_length: 24
  dpo: {ref_policy_kl_penalty: 0.5}
  rpo: {reference: resident, sweep: end, record: false, buffer: {refit_every: 10}}
  optim: {lr: 5e-4, weight_decay: 0.0}
  data: {num_workers: 0, pad_length_to_multiple_of: 4}
"""
# By method: the recipe, or fits of its own; settings of the training; other settings of the loop.
_OFF = ["model.rpo.enabled=false"]
METHODS: dict[str, dict[str, Any]] = {
    "re_dpo": {"recipe": "re_dpo"},
    "dpo": {"recipe": "dpo"},
    "sppo": {"recipe": "sppo", "overrides": ["model.dpo.ref_policy_kl_penalty=0.05"]},
    "re_sppo": {"recipe": "re_sppo", "overrides": ["model.dpo.ref_policy_kl_penalty=0.2"]},
    "dno": {"recipe": "dno", "overrides": ["model.dpo.ref_policy_kl_penalty=0.1"]},
    "gpo": {"recipe": "gpo", "overrides": ["model.dpo.ref_policy_kl_penalty=0.5"]},
    "inpo": {"recipe": "inpo", "overrides": ["model.rpo.loss_options={tau: 0.15}"]},
    "inpo_trap": {
        "fits": [
            {
                "start": "first",
                "reference": "first",
                "base": "last",
                "loss": "inpo",
                "settings": ["model.rpo.objective=weighted", "model.rpo.link_tau=2"],
            }
        ],
        "overrides": ["model.rpo.loss_options={tau: 0.15}"],
    },
    "onpo": {"recipe": "onpo", "overrides": ["model.rpo.loss_options={step_size: 2}"]},
    "egpo": {"recipe": "egpo", "overrides": ["model.dpo.ref_policy_kl_penalty=0.1"]},
    "bad": {"recipe": "re_dpo", "eta": BAD},
    "bad_tested": {"recipe": "re_dpo", "eta": BAD, "anchors": {"per_round": 40, "evidence": False}},
    "bad_anchored": {"recipe": "re_dpo", "eta": BAD, "anchors": {"per_round": 40}},
    "bad_dpo": {"recipe": "dpo", "eta": BAD},
}


@cache
def language(seed: int):
    from nemo_rpo.world import Language, LanguageConfig

    return Language(LanguageConfig(), seed)


def quality(prompt: str, response: str, fields: dict | None = None, *, world: int) -> float:
    """Gold: the utilities of a response's content tokens; any other token costs 2, and so does one beyond the length of
    the language's own texts, or the longest response would be the best.
    """
    tongue, words = language(world), response.split()
    utility, length = tongue.utility[int(prompt.split()[0][1:])], tongue.config.length
    counted = (utility[int(word[1:])] if word[0] == "c" else -2.0 for word in words[:length])
    return sum(counted) - 2.0 * max(0, len(words) - length)


def vote(prompt: str, first: str, second: str, fields: dict, *, world: int, judge: int, eta: float) -> str:
    """A judge who names the better one with probability ``eta``, by a coin that falls alike whenever it is tossed."""
    gap = quality(prompt, first, world=world) - quality(prompt, second, world=world)
    if gap == 0:
        return "tie"
    words = "\0".join([str(world), str(judge), prompt, *sorted((first, second))])
    right = int.from_bytes(blake2b(words.encode(), digest_size=8).digest(), "big") / 2**64 < eta
    return "first" if (gap > 0) == right else "second"


def write_world(out: Path, seed: int, prompts: int, pretraining: int = 400) -> None:
    """Prompts, gold anchors, the settings of the training, and the pre-trained start."""
    from nemo_rpo.world import LanguageConfig
    from nemo_rpo.world.pretraining import PretrainConfig, pretrain
    from nemo_rpo.world.tokenizer import save_tokenizer

    if (out / "done").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    tongue = language(seed)
    save_tokenizer(LanguageConfig(), out / "model")
    pretrain(tongue, PretrainConfig(steps=pretraining), seed, out / "model")
    (out / "train.yaml").write_text(TRAIN)
    rows = [{"prompt_id": f"p{i:05d}", "prompt": tongue.prompt_text(i % 4)} for i in range(prompts)]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng, anchors = np.random.default_rng([seed, 7]), []
    style = np.arange(200) % 4
    a, b = tongue.respond(style, rng), tongue.respond(style, rng)
    gap = tongue.quality(style, a) - tongue.quality(style, b)
    for i in np.flatnonzero(gap):
        sides = {"response_a": tongue.response_text(a[i]), "response_b": tongue.response_text(b[i])}
        gold = "a" if gap[i] > 0 else "b"
        anchors.append({"pair_id": f"g{i}", "prompt": tongue.prompt_text(style[i]), **sides, "gold": gold})
    (out / "anchors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in anchors))
    (out / "done").touch()


def settings(world: Path, folder: Path, method: str, seed: int, pairs: int, held_out: int, rounds: int) -> dict:
    """The block ``online``."""
    of = METHODS[method]
    here = "benchmarks.loop_world"
    judges = [
        {
            "name": f"a{k + 1:02d}",
            "kind": "program",
            "call": f"{here}:vote",
            "of": "pair",
            "arguments": {"world": seed, "judge": k, "eta": eta},
        }
        for k, eta in enumerate(of.get("eta", ETA))
    ]
    gold = {"name": "gold", "kind": "program", "call": f"{here}:quality", "arguments": {"world": seed}}
    anchors = of.get("anchors")
    train = {name: of[name] for name in ("recipe", "fits") if name in of}
    return {
        "folder": str(folder),
        "start": str(world / "model"),
        "rounds": rounds,
        "seed": seed,
        "prompts": {"path": str(world / "prompts.jsonl"), "per_round": pairs, "held_out": held_out},
        "sample": {
            "sampler": "engine",
            "samples": 2,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": 16,
            "rows": 512,
            "logprobs": False,
        },
        "judges": judges,
        "judges_a_pair": 3,
        "measure": {"judges": [gold]},
        "train": {"config": str(world / "train.yaml"), "overrides": of.get("overrides", []), **train},
        "stop": {"win_rate_drop": None},
        **({} if anchors is None else {"anchors": {"path": str(world / "anchors.jsonl"), **anchors}}),
    }


def run(out: Path, method: str, seed: int, pairs: int, held_out: int, rounds: int) -> None:
    """One loop, by the command, in this process; nothing where its end is there."""
    import yaml

    from nemo_rpo.cli import main as nemo_rpo

    world, folder = out / f"world{seed}", out / f"{method}_{seed}"
    if (folder / "status.json").exists():
        return
    write_world(world, seed, pairs + held_out)
    folder.mkdir(exist_ok=True)
    block = settings(world, folder, method, seed, pairs, held_out, rounds)
    (folder / "loop.yaml").write_text(yaml.safe_dump({"online": block}))
    began = time.process_time()
    status = nemo_rpo(["iterate", str(folder / "loop.yaml")])
    print(f"{method} seed {seed}: status {status}, {time.process_time() - began:.0f} CPU s", flush=True)
    (folder / "status.json").write_text(json.dumps({"status": status, "seconds": time.process_time() - began}))


def rounds_of(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("round=*/evaluation.json"))]


def results(out: Path) -> str:
    """A row a method: win rate by round over the seeds that there are, and the last round's distance."""
    rows: dict[str, list[str]] = {}
    for method in METHODS:
        loops = [
            rounds_of(folder) for folder in sorted(out.glob(f"{method}_[0-9]*")) if (folder / "status.json").exists()
        ]
        if not loops:
            continue
        most = max(map(len, loops))
        if most == 0:
            rows[method] = [f"{len(loops)}", "refused", "refused", "refused", "–"]
            continue
        cells = []
        for t in range(3):
            wins = [loop[t]["win_rate"] for loop in loops if len(loop) > t]
            cells.append(_cell(wins, 3))
        kl = [loop[-1]["kl_to_start"] for loop in loops if loop]
        rows[method] = [f"{len(loops)}", *cells, _cell(kl, 1)]
    return table("method", ["seeds", "round 1", "round 2", "round 3", "KL to the start"], rows)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", choices=[*METHODS, []], help="loops to run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", type=int, default=2000, help="prompts a round, a pair each")
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/loop_world"))
    parser.add_argument("--table", action="store_true", help="print the table of what has been run")
    parser.add_argument("--write", help="replace the block in a Markdown file")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for method in args.methods:
            run(args.out, method, seed, args.pairs, args.held_out, args.rounds)
    if args.table or args.write:
        text = results(args.out)
        print(text)
        if args.write:
            replace_block(args.write, "loop world", text)


if __name__ == "__main__":
    main()
