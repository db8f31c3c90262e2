"""UKPConvArg1 to training files (workers' votes) and validation files (gold pairs of held-out debates).

    python prepare.py --data FOLDER --out OUT --tokenizer MODEL --limit-votes 6000 --invert 0.4

Writes

    train.jsonl       {"pair_id", "prompt", "response_a", "response_b", "votes", "gold"}, a row a pair, or with
                      --one-row-per-vote {"pair_id", "prompt", "chosen", "rejected", "annotator"}
    validation.jsonl  {"pair_id", "prompt", "chosen", "rejected"}, chosen = gold
    truth.json        what was held out, left out and inverted, and what the length rule scores
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import selection
from length_rule import longer_wins
from ukp import Pair, read_pairs

from nemo_rpo.errors import ConfigError, RPOError, missing_extra


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of UKPConvArg1")
    add("--out", type=Path, required=True, help="folder to write, made if missing")
    add("--seed", type=int, default=0, help="for every random choice below")
    add("--held-out", type=int, default=4, help="debate titles held out for validation")
    add("--limit-votes", type=int, help="train on random pairs until they hold this many signed votes (default: all)")
    add("--limit-validation", type=int, help="judge by this many random pairs of the held-out titles (default: all)")
    add("--min-worker-votes", type=int, default=1, help="leave out the votes of workers with fewer signed votes")
    add("--invert", type=float, default=0.0, metavar="SHARE", help="share of the signed training votes to turn round")
    add("--invert-by", choices=("worker", "vote"), default="worker", help="turn whole workers, or single votes")
    add("--one-row-per-vote", action="store_true", help="a row for each signed vote (not tie), not for each pair")
    add("--tokenizer", type=Path, metavar="DIR", help="folder with tokenizer.json: leave out what exceeds --max-tokens")
    add("--max-tokens", type=int, default=512, help="prompt, argument, beginning and end of text together")
    return parser


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Write the files and return what ``truth.json`` holds.

    Raises:
        ConfigError: options that leave nothing, or out of range.
        DataError: the folder is not UKPConvArg1.
    """
    if not 0.0 <= args.invert <= 1.0:
        raise ConfigError(f"--invert must be a share between 0 and 1, got {args.invert}")
    pairs = read_pairs(args.data)
    train, held_out, titles = selection.split_by_title(pairs, args.held_out, args.seed)
    left_out = {"train": Counter(), "validation": Counter()}
    train = selection.drop_rare_workers(train, args.min_worker_votes)
    train = selection.keep(train, left_out["train"], "no signed vote", lambda pair: bool(pair.signed_votes))
    train = _usable(train, left_out["train"], args)
    train = selection.limit(train, args.seed, "training pairs", args.limit_votes, lambda pair: len(pair.signed_votes))
    held_out = selection.keep(held_out, left_out["validation"], "no gold side", lambda pair: pair.has_gold_side)
    held_out = _usable(held_out, left_out["validation"], args)
    held_out = selection.limit(held_out, args.seed, "validation pairs", args.limit_validation, lambda _: 1)
    if not train or not held_out:
        raise ConfigError("no pairs are left to train on or to judge by; relax the options")

    recorded, inverted = train, []
    if args.invert and args.invert_by == "worker":
        recorded, inverted = selection.invert_workers(train, args.invert, args.seed)
    elif args.invert:
        recorded = selection.invert_votes(train, args.invert, args.seed)

    args.out.mkdir(parents=True, exist_ok=True)
    rows = _rows_by_vote(recorded) if args.one_row_per_vote else _rows_by_pair(recorded)
    _write(args.out / "train.jsonl", rows)
    _write(args.out / "validation.jsonl", _gold_rows(held_out))
    truth = {
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "held_out_titles": titles,
        "left_out": {name: dict(counter) for name, counter in left_out.items()},
        "train": _summary(train, recorded),
        "validation": {"pairs": len(held_out)},
        "longer_wins": {"validation": longer_wins(held_out), "all": longer_wins(pairs)},
        "inverted_workers": inverted,
    }
    (args.out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return truth


def _usable(pairs: list[Pair], left_out: Counter, args: argparse.Namespace) -> list[Pair]:
    pairs = selection.keep(pairs, left_out, "identical arguments", lambda pair: pair.response_a != pair.response_b)
    if args.tokenizer is None:
        return pairs
    length = _token_counter(args.tokenizer)

    def fits(pair: Pair) -> bool:
        return all(length(pair.prompt + response) <= args.max_tokens for response in (pair.response_a, pair.response_b))

    return selection.keep(pairs, left_out, f"over {args.max_tokens} tokens", fits)


def _token_counter(folder: Path) -> Callable[[str], int]:
    """Counts the tokens of a text, marks of its beginning and end included; remembers, as arguments recur in pairs."""
    try:
        from tokenizers import Tokenizer
    except ImportError as exc:
        raise missing_extra("tokenizers", "hf") from exc
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give the folder of a Hugging Face tokenizer with --tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    known: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in known:
            known[text] = len(tokenizer.encode(text, add_special_tokens=False).ids) + 2
        return known[text]

    return count


def _rows_by_pair(pairs: list[Pair]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        yield {
            "pair_id": pair.pair_id,
            "prompt": pair.prompt,
            "response_a": pair.response_a,
            "response_b": pair.response_b,
            "votes": [{"annotator": vote.annotator, "vote": vote.vote} for vote in pair.votes],
            "gold": pair.gold or None,
        }


def _rows_by_vote(pairs: list[Pair]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        for vote in pair.signed_votes:
            yield _preference(pair, vote.vote) | {"annotator": vote.annotator}


def _gold_rows(pairs: list[Pair]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        yield _preference(pair, pair.gold)


def _preference(pair: Pair, side: str) -> dict[str, Any]:
    chosen, rejected = pair.responses(side)
    return {"pair_id": pair.pair_id, "prompt": pair.prompt, "chosen": chosen, "rejected": rejected}


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _summary(original: list[Pair], recorded: list[Pair]) -> dict[str, int | float]:
    signed = [vote for pair in recorded for vote in pair.signed_votes]
    before = [vote for pair in original for vote in pair.signed_votes]
    agree = [vote.vote == pair.gold for pair in recorded if pair.has_gold_side for vote in pair.signed_votes]
    return {
        "pairs": len(recorded),
        "signed_votes": len(signed),
        "ties": sum(len(pair.votes) for pair in recorded) - len(signed),
        "workers": len({vote.annotator for vote in signed}),
        "inverted_share": sum(a != b for a, b in zip(before, signed, strict=True)) / len(signed),
        "gold_agreement": sum(agree) / len(agree) if agree else float("nan"),
    }


def report(truth: dict[str, Any]) -> str:
    """What was written, for a person."""
    train, rule, turned = truth["train"], truth["longer_wins"], len(truth["inverted_workers"])
    left_out = [f"{n:,} {why} ({part})" for part, reasons in truth["left_out"].items() for why, n in reasons.items()]
    lines = [
        f"train       {train['pairs']:,} pairs, {train['signed_votes']:,} signed votes of {train['workers']:,} workers "
        f"({train['ties']:,} ties beside them)",
        f"            {train['inverted_share']:.1%} of the votes inverted ({turned:,} whole workers); "
        f"{train['gold_agreement']:.1%} agree with gold",
        f"validation  {truth['validation']['pairs']:,} gold pairs of {len(truth['held_out_titles'])} held-out debates",
        f"left out    {'; '.join(left_out)}",
        f"the longer argument wins: {rule['validation']:.3f} of the validation, {rule['all']:.3f} of all gold pairs",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Prepare the files and print the counts; returns the exit status."""
    try:
        print(report(prepare(parser().parse_args(argv))))
    except RPOError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
