"""``python -m nemo_rpo.planning CONFIG --model MODEL``: does it fit, and how long does a step take?

A row for every number of GPUs on which the recipe's layout holds and a GPU's memory suffices, from one node of eight to
256 GPUs. Formulas: :mod:`nemo_rpo.planning.memory`, :mod:`nemo_rpo.planning.step_time`.
"""

from __future__ import annotations

import argparse
import sys

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.experts.expert_shape import check_expert_layout
from nemo_rpo.config.load import load_config
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.validate import validate_config
from nemo_rpo.errors import ConfigError, RPOError
from nemo_rpo.planning.card_counts import sizes
from nemo_rpo.planning.hardware import Hardware
from nemo_rpo.planning.models import MODELS, architecture_named, total_weights

GPUS = (8, 16, 32, 64, 128, 256)
SHORT = 512  # tokens of a prompt and a response: nearer to chats than the limit is
_COLUMNS = ("weights", "gradients", "optimizer", "reference", "activations", "head")


def estimate(cfg: RunConfig, architecture: GPTArchitecture, hardware: Hardware) -> list[str]:
    """The lines of the table.

    Raises:
        ConfigError: settings that do not fit each other, or no number of GPUs that they fit on.
    """
    validate_config(cfg)
    model = cfg.model
    check_expert_layout(cfg, architecture)
    architecture.check_parallel(
        model.tensor_model_parallel_size, model.pipeline_model_parallel_size, model.virtual_pipeline_model_parallel_size
    )
    full = model.data.seq_length or model.encoder_seq_length
    rows = []
    for long, short in zip(
        *(sizes(cfg, architecture, hardware, GPUS, length) for length in (full, SHORT)), strict=True
    ):
        if long.step_seconds is not None:
            parts = " ".join(f"{getattr(long.memory, name) / 1e9:11.1f}" for name in _COLUMNS)
            seconds = f"{long.step_seconds:8.1f} {short.step_seconds:8.1f}"
            rows.append(f"{long.gpus:4} {parts} {long.memory.total / 1e9:6.1f} {seconds}")
    if not rows:
        raise ConfigError(
            f"the layout fits on none of {', '.join(map(str, GPUS))} {hardware.name}: raise "
            "model.tensor_model_parallel_size or model.pipeline_model_parallel_size"
        )
    header = f"{'GPUs':>4} {' '.join(f'{name:>11}' for name in _COLUMNS)} {'sum':>6} {f's/{full}':>8} {f's/{SHORT}':>8}"
    return [
        f"{total_weights(architecture) / 1e9:.2f}e9 weights; GB on the fullest GPU ({hardware.name}), and seconds of a "
        "step at",
        f"{full} and at {SHORT} tokens a text, at {hardware.utilisation:.0%} of {hardware.peak / 1e12:.0f} TFLOP/s. "
        "By formula (nemo_rpo/planning);",
        "none of it has run on a GPU yet.",
        header,
        *rows,
    ]


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_rpo.planning", description="Does a recipe fit its GPUs, and how long does a step take?"
    )
    parser.add_argument("config", help="a recipe, such as llama3_8b_ultrafeedback")
    parser.add_argument("--model", required=True, help=f"a Hugging Face folder, or one of {', '.join(MODELS)}")
    assumed = Hardware()
    parser.add_argument("--utilisation", type=float, default=assumed.utilisation, help="share of the peak reached")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the recipe's")
    args = parser.parse_intermixed_args(argv)
    try:
        cfg = load_config(args.config, args.overrides)
        start = cfg.pretrained_checkpoint
        start.restore_from_path = start.restore_from_path or args.model  # not read: adapters ask for a base
        lines = estimate(cfg, architecture_named(args.model), Hardware(utilisation=args.utilisation))
    except RPOError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
