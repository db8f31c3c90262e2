"""``python -m nemo_rpo.world --out DIR --seed S``: write a preference world (see :mod:`nemo_rpo.world.files`)."""

import argparse
import sys
from pathlib import Path

from nemo_rpo.errors import RPOError
from nemo_rpo.world.files import WorldConfig, write_world
from nemo_rpo.world.simulated_annotators import AnnotatorConfig


def _parser() -> argparse.ArgumentParser:
    world, annotators = WorldConfig(), AnnotatorConfig()
    parser = argparse.ArgumentParser(
        prog="python -m nemo_rpo.world",
        description="Write a preference world: made-up pairs, annotators of known care, a tiny model of its language.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, made if missing")
    parser.add_argument("--seed", type=int, default=world.seed)
    parser.add_argument("--labels", type=int, default=annotators.labels, help="labels each annotator gives")
    parser.add_argument("--labels-per-pair", type=int, default=annotators.labels_per_pair)
    parser.add_argument("--reliabilities", type=float, nargs="+", default=annotators.reliabilities, metavar="ETA")
    parser.add_argument("--min-gap", type=float, default=world.min_gap, help="least quality gap of a pair")
    parser.add_argument("--validation-pairs", type=int, default=world.validation_pairs)
    parser.add_argument("--no-pretrain", action="store_true", help="write the data and the tokenizer, no model")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the world and print the annotators; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        config = WorldConfig(
            seed=args.seed,
            min_gap=args.min_gap,
            validation_pairs=args.validation_pairs,
            annotators=AnnotatorConfig(tuple(args.reliabilities), args.labels, args.labels_per_pair),
            **({"pretrain": None} if args.no_pretrain else {}),
        )
        truth = write_world(args.out, config)
    except RPOError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    right = 100 * truth["label_accuracy"]
    print(f"{args.out}: {config.annotators.pairs} training pairs, {right:.1f} % of the labels right")
    for name, row in truth["annotators"].items():
        eta, realised = row["reliability"], row["realised_accuracy"]
        print(f"  {name}  reliability {eta:.2f}  realised {realised:.3f}  {row['labels']} labels")
    if fit := truth.get("pretraining"):
        print(f"  pre-trained to {fit['loss']:.2f} nats a text; the language's entropy is {fit['entropy']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
