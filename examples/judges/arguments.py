"""Two programs and a reward model judge arguments; forty gold pairs tell whom to believe; a policy trains on the votes.

    python examples/judges/arguments.py --data UKPCONVARG1 --model STORIES260K --out runs/judges

1. A reward model (``model.rpo.base_loss: bt``) is trained on the votes of workers on some debates.
2. ``nemo-rpo judge`` has it and two programs (``argument_programs.py``) compare pairs of other debates.
3. ``nemo-rpo train`` takes ``votes.jsonl`` as it is.

It prints the table of judges, the accuracy of each judge and of the posteriors on the gold labels that were kept back,
and that of training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from nemo_rpo.data.files.stage import read_table
from nemo_rpo.training.logs.metrics import read_metrics

HERE = Path(__file__).resolve().parent
STUDY = HERE.parent / "ukpconvarg1"
ONE_RANK = ["model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=1"]
JUDGES = """\
judges:
  - {{name: words, kind: program, call: "argument_programs:words"}}
  - {{name: reasons, kind: program, call: "argument_programs:reasons"}}
  - {{name: reward model, kind: reward, run: {run}}}
"""


def call(*arguments: str | Path | float) -> None:
    """A command of this Python; ends with its status where that is not 0."""
    status = subprocess.run([sys.executable, *map(str, arguments)], cwd=HERE).returncode
    if status:
        sys.exit(status)


def train(args: argparse.Namespace, run: Path, data: Path, *overrides: str) -> None:
    """One epoch from the story model, unless the run is there."""
    if (run / "annotators.csv").exists():
        return
    settings = {
        "exp_manager.explicit_log_dir": run,
        "pretrained_checkpoint.restore_from_path": args.model,
        "model.data.data_prefix": f"{{train: [{data}], validation: [{args.out / 'validation.jsonl'}]}}",
        "model.encoder_seq_length": args.max_tokens,
        "trainer.dpo.max_epochs": 1,
    }
    values = [f"{key}={value}" for key, value in settings.items()]
    conf = HERE.parent.parent / "conf"
    call("-m", "nemo_rpo.cli", "train", "--config-path", conf, "--config-name", "ukpconvarg1",
         *ONE_RANK, *values, *overrides)  # fmt: skip


def right(lead: float, gold: str) -> float:
    """1 where a lead of a over b is on the side of the gold label, a half without a lead, else 0."""
    return 0.5 if not lead else float((lead > 0) == (gold == "a"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of UKPConvArg1")
    add("--model", type=Path, required=True, help="folder of the story model")
    add("--out", type=Path, required=True)
    add("--votes", type=int, default=4000, help="that the reward model trains on")
    add("--pairs", type=int, default=800, help="to judge")
    add("--anchors", type=int, default=40, help="of them with a gold label that is told")
    add("--max-tokens", type=int, default=256)
    args = parser.parse_args()
    args.data, args.model, args.out = args.data.resolve(), args.model.resolve(), args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    call(STUDY / "prepare.py", "--data", args.data, "--out", args.out, "--tokenizer", args.model, "--max-tokens",
         args.max_tokens, "--limit-votes", args.votes, "--limit-validation", args.pairs)  # fmt: skip
    reward = args.out / "reward_model"
    train(args, reward, args.out / "train.jsonl", "model.rpo.base_loss=bt", "model.optim.lr=3e-4")

    rows = [json.loads(line) for line in (args.out / "validation.jsonl").open()]
    pairs, gold = args.out / "pairs.jsonl", {}
    with pairs.open("w") as file, (args.out / "gold.csv").open("w") as anchors:
        anchors.write("pair_id,gold\n")
        for i, row in enumerate(rows):
            a, b = (row["chosen"], row["rejected"]) if i % 2 else (row["rejected"], row["chosen"])
            gold[str(row["pair_id"])] = "a" if i % 2 else "b"
            shown = {"pair_id": row["pair_id"], "prompt": row["prompt"], "response_a": a, "response_b": b}
            file.write(json.dumps(shown) + "\n")
            if i < args.anchors:
                anchors.write(f"{row['pair_id']},{gold[str(row['pair_id'])]}\n")
    (args.out / "judges.yaml").write_text(JUDGES.format(run=json.dumps(str(reward))))
    judged = args.out / "judged"
    call("-m", "nemo_rpo.cli", "judge", pairs, "--judges", args.out / "judges.yaml", "--out", judged,
         "--gold", args.out / "gold.csv")  # fmt: skip

    held = {str(row["pair_id"]) for row in rows[args.anchors :]}
    said: dict[str, list[float]] = {}
    lead = dict.fromkeys(held, 0)
    for verdict in read_table(judged / "verdicts.parquet")[0]:
        if (pair := verdict["pair"]) in held:
            vote = {"first": 1, "second": -1}.get(verdict["said"], 0)  # of judges without an order, first is a
            said.setdefault(verdict["judge"], []).append(right(vote, gold[pair]))
            lead[pair] += vote
    believed = [row for row in read_table(judged / "believed.parquet")[0] if row["pair_id"] in held]
    said["majority"] = [right(vote, gold[pair]) for pair, vote in lead.items()]
    said["posteriors"] = [right(row["p_a"] - 0.5, gold[row["pair_id"]]) for row in believed]
    print("\nright on the gold labels that were kept back")
    for name, values in said.items():
        print(f"  {name:14} {sum(values) / len(values):.3f} of {len(values)}")
    train(args, args.out / "policy", judged / "votes.jsonl")
    accuracy = [row["acc"] for row in read_metrics(args.out / "policy") if row["split"] == "val"]
    print(f"\na policy trained on votes.jsonl: {accuracy[-1]:.3f} of the gold pairs that the judges looked at")


if __name__ == "__main__":
    main()
