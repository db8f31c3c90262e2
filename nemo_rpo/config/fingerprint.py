"""The settings that a resumed run must share with the run it continues."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.types import leaves

# Free to change on resume: where the run stands and what it prints, how work is split over ranks and memory, how long
# it goes on, and paths (the data's own identity is checked by its content).
_FREE = (
    "exp_manager",
    "pretrained_checkpoint",
    "trainer.num_nodes",
    "trainer.devices",
    "trainer.accelerator",
    "trainer.deterministic",
    "trainer.log_every_n_steps",
    "trainer.distributed_timeout_minutes",
    "trainer.dpo.max_epochs",
    "trainer.dpo.max_steps",
    "trainer.dpo.val_check_interval",
    "trainer.dpo.save_interval",
    "trainer.dpo.limit_val_batches",
    "trainer.dpo.max_skipped_steps",
    "model.nsys_profile",
    "model.torch_profile",
    "model.micro_batch_size",
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.virtual_pipeline_model_parallel_size",
    "model.context_parallel_size",
    "model.sequence_parallel",
    "model.expert_model_parallel_size",
    "model.expert_tensor_parallel_size",
    "model.moe_token_dispatcher_type",
    "model.moe_permute_fusion",
    "model.activations_checkpoint_granularity",
    "model.activations_checkpoint_method",
    "model.activations_checkpoint_num_layers",
    "model.rpo.reference",
    "model.rpo.reference_cache",
    "model.rpo.reference_from",
    "model.rpo.previous_iterate",
    "model.rpo.believe_from",
    "model.rpo.kl_to_start",
    "model.rpo.first_policy",
    "model.rpo.stop_kl",
    "model.rpo.step0_tolerance",
    "model.rpo.step0_link_tolerance",
    "model.rpo.allow_asymmetric_precision",
    "model.rpo.logprob_head",
    "model.rpo.record",
    "model.peft.restore_from_path",
    "model.optim.name",
    "model.optim.overlap_grad_sync",
    "model.optim.overlap_param_sync",
    "model.tokenizer.type",
    "model.tokenizer.model",
    "model.tokenizer.vocab_file",
    "model.tokenizer.merge_file",
    "model.tokenizer.trust_remote_code",
    "model.data.data_prefix",
    "model.data.num_workers",
    "model.data.cache_dir",
    "model.data.pad_length_to_multiple_of",
    "model.data.packed_sequence",
    "model.data.packed_sequence_size",
    "model.data.share_prompts",
    "model.data.allow_new_annotators",
)


def config_fingerprint(cfg: RunConfig) -> dict[str, Any]:
    """Dotted key → plain value of every setting that decides what is learnt; equal where one run may continue another.

    Layout, paths and logging are left out, so that a run resumes on another number of ranks and from a moved folder.
    """
    free = tuple(f"{key}." for key in _FREE)
    values = {key: attrgetter(key)(cfg) for key, _ in leaves(RunConfig) if not f"{key}.".startswith(free)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def fingerprint_differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """One phrase per setting that differs; a setting that only one of them knows (another version) is no difference."""
    changed = [key for key in saved if key in current and saved[key] != current[key]]
    return [f"{key} was {saved[key]} and is {current[key]}" for key in changed]
