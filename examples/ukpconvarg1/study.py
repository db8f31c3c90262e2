"""RE-DPO beside plain DPO on real votes: as they are, and with the votes of some workers turned round.

    python study.py --data UKPCONVARG1 --model STORIES260K --out runs/ukpconvarg1

For every setting it prepares the files (``prepare.py``), trains all methods with ``conf/ukpconvarg1.yaml`` through
``nemo-rpo train`` (TP 2 × PP 2 on CPU ranks), and prints two Markdown tables: accuracy on held-out debates against the
gold labels beside the length rule's, with what the reliabilities know of the workers (``competence.py``); and how many
gold labels of the training pairs the posteriors find, beside majority, an EM without a model, and one that is told 40
gold labels (``labels.py``). RE-DPO is the default estimator's; ``ema`` is the paper's, with an exact sweep after
training; ``hot`` is RE-DPO at ten times the rate, a policy that learns too little to be believed (third table, with
what its report says first). A seed draws the votes, the workers to turn round, and the order of the pairs. A run whose
result lies in ``study.json`` already is not run again. ``--full`` adds a run on every vote of every worker, ``--only``
and ``--methods`` leave settings and methods out, and ``--set`` goes to every run: figures do not depend on the layout,
and ``--set model.tensor_model_parallel_size=1 model.pipeline_model_parallel_size=1`` is the quickest on few cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competence import compare, read_annotators
from labels import BASELINES, label_accuracy, mcnemar
from ukp import read_competence

from nemo_rpo.training.logs.metrics import read_metrics

HERE = Path(__file__).resolve().parent
CONF = HERE.parent.parent / "conf"
METHODS = {
    "dpo": ["model.rpo.enabled=false"],
    "ema": ["model.rpo.estimator=ema", "model.rpo.sweep=end"],
    "re_dpo": [],
    "hot": ["model.optim.lr=3e-4"],
}
TRUSTED = ("dpo", "ema", "re_dpo")  # the columns of the first table
MIN_VOTES = 30  # of a worker whose reliability is compared with MACE's


@dataclass(frozen=True)
class Setting:
    """One column of the study: how the votes are read, and how many of them are turned round."""

    name: str
    invert: float
    one_row_per_vote: bool = False
    epochs: int = 2
    all_votes: bool = False


SETTINGS = [
    Setting("grouped", 0.0),
    Setting("grouped, 20 % inverted", 0.2),
    Setting("grouped, 40 % inverted", 0.4),
    Setting("a row a vote", 0.0, one_row_per_vote=True, epochs=1),
]
FULL = Setting("grouped, all workers", 0.0, epochs=1, all_votes=True)


def call(*arguments: str | Path | float) -> None:
    status = subprocess.run([sys.executable, *map(str, arguments)]).returncode
    if status:
        sys.exit(status)


def measure(args: argparse.Namespace, setting: Setting, seed: int, known: dict[str, Any]) -> dict[str, Any]:
    """Prepares, trains the methods that are not ``known`` yet, and collects the figures of one setting."""
    folder = args.out / setting.name.replace(" ", "_").replace(",", "").replace("%", "percent") / f"seed_{seed}"
    options = ["--tokenizer", args.model, "--max-tokens", args.max_tokens, "--invert", setting.invert, "--seed", seed]
    options += ["--limit-validation", args.limit_validation]
    options += [] if setting.all_votes else ["--limit-votes", args.limit_votes]
    options += ["--one-row-per-vote"] if setting.one_row_per_vote else []
    call(HERE / "prepare.py", "--data", args.data, "--out", folder, *options)
    truth = json.loads((folder / "truth.json").read_text())
    figures = known | {"length_rule": truth["longer_wins"]["validation"], "train": truth["train"]}
    labels = figures.setdefault("labels", {})
    for method in args.methods:
        if method in known:
            continue
        run = folder / method
        _train(args, setting, seed, folder, method)
        figures[method] = [row["acc"] for row in read_metrics(run) if row["split"] == "val"]
        if method != "dpo" and not setting.one_row_per_vote:
            labels[method] = label_accuracy(run / "posteriors.parquet", folder / "train.jsonl")
        if method == "re_dpo":
            annotators = read_annotators(run / "annotators.csv")
            figures |= compare(annotators, read_competence(args.data), set(truth["inverted_workers"]), MIN_VOTES)
        if method == "hot":
            figures["hot_says"] = says_first(run)
    return figures


def _train(args: argparse.Namespace, setting: Setting, seed: int, folder: Path, method: str) -> None:
    settings = {
        "exp_manager.explicit_log_dir": folder / method,
        "pretrained_checkpoint.restore_from_path": args.model,
        "model.data.data_prefix.train": folder / "train.jsonl",
        "model.data.data_prefix.validation": folder / "validation.jsonl",
        "model.data.cache_dir": folder / "cache",
        "model.data.group_votes": not setting.one_row_per_vote,
        "model.rpo.reference_cache": folder / "reference",
        "trainer.dpo.max_epochs": setting.epochs,
        "model.seed": 1234 + seed,
        "model.encoder_seq_length": args.max_tokens,
    }
    values = [f"{key}={value}" for key, value in settings.items()]
    values += [*METHODS[method], *args.set]
    call("-m", "nemo_rpo.cli", "train", "--config-path", CONF, "--config-name", "ukpconvarg1", *values)


def says_first(run: Path) -> str:
    """The first line of a run's report."""
    call("-m", "nemo_rpo.cli", "report", run)
    lines = (run / "report.md").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line and not line.startswith(("#", "<", "|"))).removeprefix("- ")


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One line a setting: means over its seeds, with the spread of the accuracies where there are several."""
    columns = "votes seeds epochs pairs signed_votes workers length_rule DPO ema,_swept RE-DPO ρ_with_MACE AUC"
    lines = _header(columns)
    epochs = {setting.name: setting.epochs for setting in (*SETTINGS, FULL)}
    for name, by_seed in results.items():
        runs = [run for run in by_seed.values() if "re_dpo" in run]
        if not runs:
            continue
        mean = {key: statistics.fmean(run[key] for run in runs) for key in ("length_rule", "spearman", "workers")}
        mean |= {key: statistics.fmean(run["train"][key] for run in runs) for key in ("pairs", "signed_votes")}
        voters = statistics.fmean(run["train"]["workers"] for run in runs)
        sizes = [f"{size:,.0f}" for size in (mean["pairs"], mean["signed_votes"], voters)]
        accuracies = [f"{mean['length_rule']:.3f}", *(_accuracy(runs, method) for method in TRUSTED)]
        competence = f"{mean['spearman']:.2f} ({mean['workers']:.0f})"
        cells = [name, str(len(runs)), str(epochs[name]), *sizes, *accuracies, competence, _separation(runs)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def labels_table(results: dict[str, dict[str, dict[str, Any]]], method: str = "re_dpo") -> str:
    """One line a seed, and one for all: shares of gold labels found on the training pairs, and the posteriors of a
    ``method`` against each EM without a model: pairs that only the one finds, pairs that only the other finds,
    McNemar's p.
    """
    name_of = {"re_dpo": "RE-DPO", "hot": "RE-DPO,_rate_×_10"}[method]
    columns = f"votes seed gold_labels ema,_swept {name_of} majority one-coin_EM prior_fitted 40_anchors "
    lines = _header(columns + "against_one-coin against_prior_fitted")
    for name, by_seed in results.items():
        found = {seed: run["labels"] for seed, run in by_seed.items() if method in run.get("labels", {})}
        lines += [_labels_line(name, seed, [labels], method) for seed, labels in found.items()]
        if len(found) > 1:
            lines.append(_labels_line(name, "all", list(found.values()), method))
    return "\n".join(lines)


def _labels_line(name: str, seed: str, runs: list[dict[str, Any]], method: str) -> str:
    ours = [run[method] for run in runs]
    columns = [[run["ema"]["posterior"] for run in runs if "ema" in run]]
    columns += [[run[by] for run in ours] for by in ("posterior", "majority", *BASELINES, "anchors")]
    shares = (f"{statistics.fmean(column):.3f}" if column else "–" for column in columns)
    cells = [name, seed, f"{sum(run['pairs'] for run in ours):,}", *shares]
    for baseline in BASELINES:
        won, lost = (sum(run["against"][baseline][side] for run in ours) for side in (0, 1))
        cells.append(f"{won} : {lost} (p = {mcnemar(won, lost):.2g})")
    return f"| {' | '.join(cells)} |"


def _header(columns: str) -> list[str]:
    return [f"| {columns.replace(' ', ' | ').replace('_', ' ')} |", "|---" * len(columns.split()) + "|"]


def _separation(runs: list[dict[str, Any]]) -> str:
    """Of the seeds in which somebody with so many votes was turned round."""
    runs = [run for run in runs if run["inverted"]]
    if not runs:
        return "–"
    mean = {name: statistics.fmean(run[name] for run in runs) for name in ("auc", "inverted")}
    return f"{mean['auc']:.3f} ({mean['inverted']:.0f})"


def _accuracy(runs: list[dict[str, Any]], method: str) -> str:
    last = [run[method][-1] for run in runs if method in run]
    if not last:
        return "–"
    return f"{statistics.mean(last):.3f}" + (f" ± {statistics.stdev(last):.3f}" if len(last) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of UKPConvArg1")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of the model to align")
    parser.add_argument("--out", type=Path, default=Path("runs/ukpconvarg1"))
    parser.add_argument("--limit-votes", type=int, default=6000)
    parser.add_argument("--limit-validation", type=int, default=800)
    parser.add_argument("--max-tokens", type=int, default=256, help="longer pairs are left out (256)")
    parser.add_argument("--seeds", type=int, default=1, help="of the settings with part of the votes")
    parser.add_argument("--full", action="store_true", help="also train on every vote of every worker")
    names = [setting.name for setting in SETTINGS]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=names,
        metavar="SETTING",
        help="of " + "; ".join(names).replace("%", "%%"),
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="settings of every run")
    args = parser.parse_args()
    record = args.out / "study.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    chosen = [setting for setting in SETTINGS if setting.name in args.only]
    for setting in [*chosen, *([FULL] if args.full else [])]:
        found = results.setdefault(setting.name, {})
        for seed in map(str, range(1 if setting.all_votes else args.seeds)):
            if set(args.methods) - found.get(seed, {}).keys():
                found[seed] = measure(args, setting, int(seed), found.get(seed, {}))
                args.out.mkdir(parents=True, exist_ok=True)
                record.write_text(json.dumps(results, indent=1) + "\n")
            done = {name: runs for name, runs in results.items() if runs}
            print(table(done), labels_table(done), labels_table(done, "hot"), sep="\n\n", flush=True)
            print(*{run["hot_says"] for runs in done.values() for run in runs.values() if "hot_says" in run}, sep="\n")


if __name__ == "__main__":
    main()
