"""``nemo-rpo plan``: does a run fit, and how many hours does it take? By formula: no data, no GPU, no weights."""

from __future__ import annotations

import argparse
import copy
from typing import TYPE_CHECKING

from nemo_rpo.config.adapters.adapter_size import adapter_weights
from nemo_rpo.config.experts.expert_shape import check_expert_layout
from nemo_rpo.config.load import load_config
from nemo_rpo.config.validate import validate_config
from nemo_rpo.counting import counted
from nemo_rpo.errors import ConfigError
from nemo_rpo.planning.hardware import MEMORY, Hardware, hardware_named
from nemo_rpo.planning.models import MODELS, architecture_named, total_weights
from nemo_rpo.text_table import format_table
from nemo_rpo.training.schedule import Schedule

if TYPE_CHECKING:
    from nemo_rpo.config.architecture import GPTArchitecture
    from nemo_rpo.config.schema import RunConfig
    from nemo_rpo.planning.card_counts import Size

_GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DIM = "model.peft.lora_tuning.adapter_dim"
_LENGTH = 512  # tokens of a prompt and a response: nearer to chats than the limit is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    add = parser.add_argument
    add("--config-name", "-cn", default="gpt_rpo", help="a YAML file or recipe, with or without .yaml (gpt_rpo)")
    add("--config-path", "-cp", help="its folder (./conf, ., or the checkout's conf)")
    add("--model", required=True, help=f"a Hugging Face folder, or one of {', '.join(MODELS)}")
    add("--pairs", type=int, required=True, metavar="N", help="pairs to train on")
    help = f"tokens of a prompt and a response on average ({_LENGTH}, or the longest allowed)"
    add("--length", type=int, metavar="TOKENS", help=help)
    add("--gpu", default="H100", metavar="KIND", help=f"one of {', '.join(MEMORY)} (H100)")
    help = f"numbers of GPUs to look at ({' '.join(map(str, _GPUS))})"
    add("--gpus", type=int, nargs="+", default=_GPUS, metavar="N", help=help)
    help = (
        "train adapters of this rank instead of all weights, see docs/lora.md (model.peft says which, else all layers)"
    )
    add("--lora-dim", type=int, metavar="R", help=help)
    help = f"share of the peak rate that is reached ({Hardware().utilisation:g}: an assumption, not a measurement)"
    add("--utilisation", type=float, metavar="MFU", help=help)
    add("overrides", nargs="*", metavar="key=value", help="settings that override the file's")


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    from nemo_rpo.planning.card_counts import sizes

    lora = [] if args.lora_dim is None else ["model.peft.peft_scheme=lora", f"{_DIM}={args.lora_dim}"]
    cfg = load_config(args.config_name, [*lora, *args.overrides], args.config_path)
    cfg.model.data.data_prefix.setdefault("train", "train.jsonl")  # not read: whose settings are checked needs a name
    cfg.pretrained_checkpoint.restore_from_path = cfg.pretrained_checkpoint.restore_from_path or args.model
    validate_config(copy.deepcopy(cfg))
    longest = cfg.model.data.seq_length or cfg.model.encoder_seq_length
    length = args.length or min(_LENGTH, longest)
    if args.pairs < 1 or not 1 <= length <= longest or min(args.gpus) < 1:
        raise ConfigError(
            f"--pairs and --gpus must be 1 or more, and --length from 1 to {longest}, the longest allowed"
        )
    architecture, hardware = architecture_named(args.model), hardware_named(args.gpu, args.utilisation)
    check_expert_layout(cfg, architecture)
    batches = args.pairs // cfg.model.global_batch_size
    if not batches:
        raise ConfigError(f"{args.pairs} pairs are no global batch of {cfg.model.global_batch_size}: lower that")
    schedule = Schedule.of(cfg.trainer.dpo, batches)
    found = sizes(cfg, architecture, hardware, args.gpus, length)
    print(
        f"{args.model}, {total_weights(architecture) / 1e9:.3g} billion weights: {counted(args.pairs, 'pair')}, "
        f"{counted(schedule.total_steps, 'step')} of {cfg.model.global_batch_size}, {length} tokens a text, on "
        f"{hardware.name} at {hardware.utilisation:.0%} of {hardware.peak / 1e12:.0f} TFLOP/s."
        f"{_adapters(cfg, architecture)}\n"
        "By formula: nothing here was measured."
    )
    print(as_table(found, schedule.total_steps))
    if fits := [size.gpus for size in found if size.step_seconds]:
        print(of_files(cfg, architecture, fits[0]))
    if not any(size.step_seconds for size in found):
        raise ConfigError(
            "none of these fits: raise model.tensor_model_parallel_size or pipeline_model_parallel_size, set "
            "model.activations_checkpoint_granularity=full, or name other --gpus"
        )


def of_files(cfg: RunConfig, architecture: GPTArchitecture, gpus: int) -> str:
    """A line on checkpoints, exports and host memory."""
    from nemo_rpo.planning.checkpoints import written_bytes

    files = written_bytes(cfg, architecture, gpus)
    return (
        f"A checkpoint is {files.checkpoint / 1e9:.0f} GB, {files.share / 1e9:.1f} of them from a GPU on {gpus}, which "
        f"needs {files.host / 1e9:.1f} GB of host memory; an export gathers {files.export / 1e9:.0f} GB tensor by "
        "tensor."
    )


def _adapters(cfg: RunConfig, architecture: GPTArchitecture) -> str:
    if not cfg.model.peft.lora:
        return ""
    trained = adapter_weights(architecture, cfg.model.peft)
    share = trained / total_weights(architecture)
    return (
        f"\nLoRA of rank {cfg.model.peft.lora_tuning.adapter_dim}: {trained / 1e6:.1f}e6 weights trained ({share:.2%})."
    )


def as_table(found: list[Size], steps: int) -> str:
    """A line a number of GPUs: GB on the fullest, seconds of a step, hours of ``steps``, GPU hours; or why not."""
    rows, others = [], []
    for size in found:
        if size.step_seconds is None:
            others.append(f"  {size.gpus} GPU{'s' * (size.gpus != 1)}: {size.why_not}")
            continue
        hours = size.step_seconds * steps / 3600
        figures = (
            f"{size.memory.total / 1e9:.1f}",
            f"{size.step_seconds:.1f}",
            f"{hours:.2f}",
            f"{hours * size.gpus:.1f}",
        )
        rows.append([f"{size.gpus}", *figures])
    parts = [format_table(["GPUs", "GB", "s a step", "hours", "GPU hours"], rows)] if rows else []
    if others:
        parts.append("does not fit\n" + "\n".join(others))
    return "\n".join(parts)
