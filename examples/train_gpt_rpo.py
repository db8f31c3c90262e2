"""Trains with the settings of a YAML file and ``key=value`` overrides: the same as ``nemo-rpo train``.

torchrun --nproc-per-node 8 examples/train_gpt_rpo.py --config-name gpt_rpo model.rpo.sweep=epoch
"""

import sys

from nemo_rpo.cli import main
from nemo_rpo.launch import call_and_leave

if __name__ == "__main__":  # checkpoint writers start processes that import this file
    call_and_leave(lambda: main(["train", *sys.argv[1:]]))
