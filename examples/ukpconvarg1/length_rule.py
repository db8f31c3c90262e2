"""The rule to beat: of two arguments, the longer one convinces more.

python length_rule.py --data FOLDER
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from ukp import Pair, read_pairs

from nemo_rpo.errors import RPOError


def longer_wins(pairs: Iterable[Pair]) -> float:
    """Share of the pairs with a gold side on which that side has more characters; equally long ones are left out."""
    right = [
        len(chosen) > len(rejected)
        for chosen, rejected in (pair.responses(pair.gold) for pair in pairs if pair.has_gold_side)
        if len(chosen) != len(rejected)
    ]
    return sum(right) / len(right) if right else float("nan")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of UKPConvArg1")
    try:
        pairs = read_pairs(parser.parse_args(argv).data)
        print(f"the longer argument wins: {longer_wins(pairs):.3f} of the gold pairs")
    except RPOError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
