"""The embedded example: a model is pre-trained and aligned on preferences of known annotators, with and without RE-PO.

    python examples/demo.py

Writes a preference world with a known answer (``nemo_rpo.world``: gold qualities, twelve annotators from careful to
hostile), pre-trains a small Llama on its language, aligns it twice on the noisy labels with the same settings
(``conf/demo.yaml``: RE-DPO, and plain DPO with ``model.rpo.enabled=false``) through Megatron-Core on four CPU ranks,
TP 2 × PP 2, and prints what each of them learnt beside the truth.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

from nemo_rpo.text_table import format_table
from nemo_rpo.training.logs.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"re_dpo": [], "dpo": ["model.rpo.enabled=false"]}


def run(*arguments: str | Path) -> None:
    """A command of the package, as a user would type it; its failure is ours."""
    status = subprocess.run([sys.executable, "-m", *map(str, arguments)]).returncode
    if status:
        sys.exit(status)


def align(out: Path, method: str, overrides: list[str]) -> float:
    """Trains one method from the pre-trained model; accuracy on fresh pairs with clean labels."""
    folders = {
        "exp_manager.explicit_log_dir": out / method,
        "pretrained_checkpoint.restore_from_path": out / "world/model",
        "model.data.data_prefix.train": out / "world/train.jsonl",
        "model.data.data_prefix.validation": out / "world/validation.jsonl",
    }
    settings = [f"{key}={folder}" for key, folder in folders.items()]
    run("nemo_rpo.cli", "train", "--config-path", ROOT / "conf", "--config-name", "demo", *settings,
        "exp_manager.resume_if_exists=false", *METHODS[method], *overrides)  # fmt: skip
    return [row for row in read_metrics(out / method) if row["split"] == "val"][-1]["acc"]


def reliabilities(out: Path) -> tuple[str, float, float]:
    """The table of truth and estimate, and the largest error of the closing sweep and of the running η."""
    truth = json.loads((out / "world/truth.json").read_text())["annotators"]
    with (out / "re_dpo/annotators.csv").open(newline="") as file:
        estimates = list(csv.DictReader(file))
    rows, closing, running = [], [], []
    for estimate in estimates:
        known = truth[estimate["id"]]
        eta, eta_running = float(estimate["eta"]), float(estimate["eta_running"])
        closing.append(abs(eta - known["realised_accuracy"]))
        running.append(abs(eta_running - known["realised_accuracy"]))
        fitted = f"{eta:.3f} ± {float(estimate['standard_error']):.3f}"
        truths = (f"{known['reliability']:.3f}", f"{known['realised_accuracy']:.3f}")
        rows.append([estimate["id"], estimate["labels"], *truths, fitted, f"{eta_running:.3f}"])
    header = ["annotator", "labels", "true", "realised", "estimated (sweep)", "running (EMA)"]
    return format_table(header, rows), max(closing), max(running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the run (runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the world, the pre-training and the order of pairs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over conf/demo.yaml's")
    args = parser.parse_args()
    began = time.perf_counter()
    run("nemo_rpo.world", "--out", args.out / "world", "--seed", args.seed)
    overrides = [f"model.seed={args.seed}", *args.overrides]
    accuracy = {method: align(args.out, method, overrides) for method in METHODS}
    table, closing, running = reliabilities(args.out)
    print(f"\nReliability of every annotator (realised: the share of right labels they happened to give)\n{table}")
    print(f"largest error against the realised accuracy: closing sweep {closing:.3f}, running EMA {running:.3f}")
    print("\nAccuracy on 2,000 fresh pairs with clean labels")
    print(format_table(["method", "accuracy"], [[name, f"{value:.3f}"] for name, value in accuracy.items()]))
    record = {"seed": args.seed, "accuracy": accuracy, "sweep_error": closing, "running_error": running}
    (args.out / "demo.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
