"""Whole runs one after the other on the same ranks, as ``nemo-rpo train`` does them; a folder that is there goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine import config, places


def main() -> None:
    """``argv``: the world's folder, the folder to write to, and a JSON list of (name, overrides)."""
    world, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    for name, overrides in runs:
        cfg = config([*places(world, out / name), *overrides])

        from nemo_rpo.megatron import cpu

        cpu.install()
        from nemo_rpo.training.run import train

        train(cfg)


if __name__ == "__main__":
    main()
