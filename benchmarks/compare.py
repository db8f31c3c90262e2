"""Steps of preference training beside those of TRL and of supervised fine-tuning: one model, the same pairs, in turn.

    python -m benchmarks.compare                      # all systems; TRL's from .venv-trl (make .venv-trl/.ready)
    python -m benchmarks.compare --scale annotators   # step time against the number of annotators
    python -m benchmarks.compare --scale ranks        # and against data-parallel ranks
    python -m benchmarks.compare --write docs/speed.md    # puts the table into its block

Every round starts each system once, in a process of its own; a figure is the median over rounds of the medians over a
process's steps, the first of which is left out, and a ratio the median of the rounds' ratios, so that a machine that is
busy for a while slows both sides. Processor time does not see how busy it is at all, on one thread. Memory is what the
system's processes hold at most and share with nobody.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.markdown_table import replace_block, table
from benchmarks.process_tree import Ran, run
from benchmarks.speed_world import SEQ_LENGTH, make

BATCH, MICRO_BATCH, STEPS = 8, 4, 4
DATA = Path(os.environ.get("NEMO_RPO_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

CONFIG = f"""
trainer: {{accelerator: cpu, precision: 32, dpo: {{max_steps: {STEPS}}}}}
model:
  global_batch_size: {BATCH}
  micro_batch_size: {MICRO_BATCH}
  encoder_seq_length: {SEQ_LENGTH}
  dpo: {{ref_policy_kl_penalty: 0.1}}
  optim: {{name: adam, lr: 1e-5, sched: {{name: constant, warmup_steps: 0}}}}
"""
RESIDENT, CACHED = "model.rpo.reference=resident", "model.rpo.reference=cached"
PACKED, TWO_PROMPTS = "model.data.packed_sequence=true", "model.data.share_prompts=never"
ONE_PROMPT, SMALL = "model.data.share_prompts=always", f"model.data.packed_sequence_size={2 * SEQ_LENGTH}"
SFT = (
    "model.rpo.enabled=false",
    "model.rpo.base_loss=simpo",
    "model.dpo.preference_loss_weight=0",
    "model.dpo.sft_loss_weight=1",
)
# Name → settings of nemo_rpo; TRL's are in `_command`. A pack is as large as four padded pairs, a small one as one.
SYSTEMS: dict[str, tuple[str, ...]] = {
    "TRL robust DPO, live reference": (),
    "TRL robust DPO, precomputed reference": (),
    "RE-DPO, live reference": (RESIDENT,),
    "RE-DPO, cached reference": (CACHED,),
    "RE-DPO, cached, packed": (CACHED, PACKED, TWO_PROMPTS),
    "RE-DPO, cached, packed, shared prompts": (CACHED, PACKED, ONE_PROMPT),
    "the same in small packs": (CACHED, PACKED, ONE_PROMPT, SMALL),
    "SFT on the same tokens, packed, shared prompts": (*SFT, PACKED, ONE_PROMPT),
}
FILES = {"short prompts": "short_prompts.jsonl", "long prompts": "long_prompts.jsonl"}


@dataclass(frozen=True)
class Setting:
    """Where things are and how much of the machine a process may use."""

    world: Path
    threads: int
    trl_python: Path


def _nemo(setting: Setting, file: str, overrides: Sequence[str], ranks: int = 1, annotators: int = 0) -> list[str]:
    # The module's own file, since the checkout may not be the working directory of a rank.
    worker = [str(Path(__file__).with_name("speed_nemo.py")), "--config", str(setting.world / "speed.yaml")]
    places = [
        f"pretrained_checkpoint.restore_from_path={setting.world / 'model'}",
        f"model.data.data_prefix.train={setting.world / file}",
        f"exp_manager.explicit_log_dir={tempfile.mkdtemp(dir=setting.world)}",
    ]
    worker += ["--steps", str(STEPS), "--threads", str(max(setting.threads // ranks, 1))]
    worker += ["--annotators", str(annotators)] if annotators else []
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, *worker, *places, *overrides]


def _trl(setting: Setting, file: str, precompute: bool) -> list[str]:
    sizes = {"steps": STEPS, "batch": BATCH, "micro-batch": MICRO_BATCH, "threads": setting.threads}
    return [
        *(str(setting.trl_python), str(Path(__file__).with_name("speed_trl.py"))),
        *("--model", str(setting.world / "model"), "--data", str(setting.world / file)),
        *(part for name, value in sizes.items() for part in (f"--{name}", str(value))),
        *("--seq-length", str(SEQ_LENGTH)),
        *(["--precompute"] if precompute else []),
    ]


def _command(setting: Setting, file: str, system: str) -> list[str]:
    if system.startswith("TRL"):
        return _trl(setting, file, precompute="precomputed" in system)
    return _nemo(setting, file, SYSTEMS[system])


Rounds = dict[str, list[Ran]]


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int, threads: int) -> Rounds:
    """Runs every command once a round; names with their answers."""
    found: Rounds = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            found[name].append(run(command, threads))
            wall, cpu = (_seconds(found[name][-1], clock) for clock in ("wall", "cpu"))
            print(f"round {number + 1}: {name}: {wall:.3f} s a step, {cpu:.3f} s of processor", file=sys.stderr)
    return found


def _seconds(ran: Ran, clock: str) -> float:
    return statistics.median(ran.answer[clock])


def _median_seconds(rans: Sequence[Ran], clock: str) -> float:
    return statistics.median(_seconds(ran, clock) for ran in rans)


def _ratio(slow: Sequence[Ran], fast: Sequence[Ran], clock: str) -> float:
    return statistics.median(_seconds(a, clock) / _seconds(b, clock) for a, b in zip(slow, fast, strict=True))


def _median_share(rans: Sequence[Ran]) -> float:
    """Processor time in the EM's own calls over that of the step."""
    shares = [em / cpu for ran in rans for em, cpu in zip(ran.answer["em"], ran.answer["cpu"], strict=True)]
    return statistics.median(shares)


def systems_table(found: Rounds) -> str:
    """Pairs a second, how many times those of the first system by either clock, and peak memory."""
    first = next(iter(found.values()))
    first_peak = statistics.median(ran.peak_bytes for ran in first)
    rows = {}
    for name, rans in found.items():
        peak = statistics.median(ran.peak_bytes for ran in rans)
        rows[name] = [
            f"{BATCH / _median_seconds(rans, 'wall'):.2f}",
            f"{_ratio(first, rans, 'wall'):.2f}×",
            f"{BATCH / _median_seconds(rans, 'cpu'):.2f}",
            f"{_ratio(first, rans, 'cpu'):.2f}×",
            f"{peak / 2**20:,.0f} MiB",
            f"{peak / first_peak:.2f}×",
        ]
    heads = ["pairs a second", "of the first", "a second of processor", "of the first", "peak memory", "of the first"]
    return table("", heads, rows)


def compare(setting: Setting, rounds: int, only: Sequence[str], operators: bool) -> str:
    """The table of each file's pairs."""
    parts = []
    for title, file in FILES.items():
        commands = {name: _command(setting, file, name) for name in SYSTEMS if any(map(name.count, only))}
        if not setting.trl_python.exists():
            commands = {name: command for name, command in commands.items() if not name.startswith("TRL")}
            print(f"no TRL: {setting.trl_python} does not exist (make .venv-trl/.ready)", file=sys.stderr)
        if operators:
            commands = {name: [*command, "--operators"] for name, command in commands.items()}
        found = in_turn(commands, rounds, setting.threads)
        parts.append(f"{title[0].upper()}{title[1:]}:\n\n{(operators_table if operators else systems_table)(found)}")
    return "\n\n".join(parts)


def operators_table(found: Rounds) -> str:
    """What a step's processor time goes into; the profiler's own share is in the rest."""
    kinds = list(next(iter(found.values()))[0].answer["operators"])
    rows = {
        name: [f"{statistics.median(ran.answer['operators'][kind] for ran in rans):.2f} s" for kind in kinds]
        for name, rans in found.items()
    }
    return table("a step", kinds, rows)


def scale(setting: Setting, rounds: int, by: str) -> str:
    """Step time, and what the EM adds to it, against the number of annotators or of data-parallel ranks."""
    settings = (CACHED, PACKED)
    file = FILES["short prompts"]
    if by == "annotators":
        commands = {"no EM": _nemo(setting, file, (*settings, "model.rpo.enabled=false"))}
        sizes = {f"{10**k:,}": 10**k for k in range(7)}
        commands |= {name: _nemo(setting, file, settings, annotators=size) for name, size in sizes.items()}
        without = dict.fromkeys(sizes, "no EM")
    else:
        commands, without = {}, {}
        for ranks in (1, 2, 4):
            without[str(ranks)] = f"{ranks}, no EM"
            commands[without[str(ranks)]] = _nemo(setting, file, (*settings, "model.rpo.enabled=false"), ranks)
            commands[str(ranks)] = _nemo(setting, file, settings, ranks)
    found = in_turn(commands, rounds, setting.threads)
    rows = {
        name: [
            part
            for clock in ("wall", "cpu")
            for part in (
                f"{1000 * _median_seconds(found[name], clock):,.0f} ms",
                f"{_ratio(found[name], found[plain], clock):.3f}×",
            )
        ]
        + [f"{_median_share(found[name]):.2%}"]
        for name, plain in without.items()
    }
    heads = ["a step", "of one without the EM", "of processor", "of one without the EM", "of it in the EM's calls"]
    return table(by, heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("annotators", "ranks"))
    parser.add_argument("--operators", action="store_true", help="what the processor does in a step, by the profiler")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", default=[""], help="systems whose name has one of these in it")
    parser.add_argument("--trl-python", type=Path, default=Path(".venv-trl/bin/python"))
    parser.add_argument("--write", help="a file with the block 'speed', or that of --scale")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        text = make(world, DATA, BATCH * STEPS)
        (world / "speed.yaml").write_text(CONFIG, encoding="utf-8")
        setting = Setting(world, args.threads, args.trl_python)
        if args.scale:
            found = scale(setting, args.rounds, args.scale)
        else:
            found = compare(setting, args.rounds, args.only, args.operators)
    header = (
        f"Llama of 6M parameters, {text}; {BATCH} pairs a step, fp32, {args.threads} thread(s), "
        f"torch {torch.__version__}; median of {args.rounds} alternating rounds."
    )
    print(f"{header}\n\n{found}")
    if args.write:
        replace_block(args.write, args.scale or ("operators" if args.operators else "speed"), f"{header}\n\n{found}")


if __name__ == "__main__":
    main()
