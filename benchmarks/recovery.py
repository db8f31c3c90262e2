"""The embedded demo over several seeds: is RE-DPO above DPO by more than the spread, and are the annotators found?

    python benchmarks/recovery.py --seeds 0 1 2 3 4

Every seed has a world, a pre-training, annotators and an order of pairs of its own (``examples/demo.py``). One rank a
run by default: the engine's figures do not depend on the layout, and one rank is the quickest on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONE_RANK = ["model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=1"]


def run_seed(out: Path, seed: int, overrides: list[str]) -> dict:
    """The record of one seed; an existing one is not made again."""
    folder = out / f"seed_{seed}"
    if not (folder / "demo.json").exists():
        command = [sys.executable, ROOT / "examples/demo.py", "--out", folder, "--seed", seed, *overrides]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "demo.json").read_text())


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/recovery"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", default=ONE_RANK)
    args = parser.parse_args()
    records = [run_seed(args.out, seed, args.overrides) for seed in args.seeds]
    print("| seed | DPO | RE-DPO | largest error of η, closing sweep | running EMA |\n|---|---|---|---|---|")
    for r in records:
        accuracy = f"{r['accuracy']['dpo']:.3f} | {r['accuracy']['re_dpo']:.3f}"
        print(f"| {r['seed']} | {accuracy} | {r['sweep_error']:.3f} | {r['running_error']:.3f} |")
    methods = {name: [r["accuracy"][name] for r in records] for name in ("dpo", "re_dpo")}
    errors = [[r[key] for r in records] for key in ("sweep_error", "running_error")]
    print(f"| mean ± sd | {spread(methods['dpo'])} | {spread(methods['re_dpo'])} | {' | '.join(map(spread, errors))} |")
    gap = statistics.mean(methods["re_dpo"]) - statistics.mean(methods["dpo"])
    print(f"\nRE-DPO is above DPO by {gap:.3f}; every annotator within {max(errors[0]):.3f} of their realised accuracy")


if __name__ == "__main__":
    main()
