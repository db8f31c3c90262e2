"""A configuration with the key paths of NeMo-Aligner's ``gpt_dpo.yaml``, written by code."""

from __future__ import annotations

from pathlib import Path

import yaml

# Dotted key → value. Interpolations are the kinds that file uses: absolute, relative, a resolver, inside a text.
SETTINGS = {
    "trainer.num_nodes": 2,
    "trainer.devices": 4,
    "trainer.accelerator": "gpu",
    "trainer.precision": "bf16-mixed",
    "trainer.dpo.max_epochs": 2,
    "trainer.dpo.max_steps": -1,
    "trainer.dpo.val_check_interval": 0.25,
    "trainer.dpo.save_interval": 50,
    "trainer.dpo.limit_train_batches": 1.0,
    "trainer.dpo.limit_val_batches": 8,
    "trainer.dpo.gradient_clip_val": 0.5,
    "trainer.logger": False,
    "trainer.enable_checkpointing": False,
    "trainer.use_distributed_sampler": False,
    "trainer.max_time": "00:03:55:00",
    "trainer.max_epochs": "${.dpo.max_epochs}",
    "trainer.max_steps": "${.dpo.max_steps}",
    "exp_manager.explicit_log_dir": "/results",
    "exp_manager.exp_dir": None,
    "exp_manager.name": "megatron_gpt",
    "exp_manager.max_time_per_run": "${trainer.max_time}",
    "exp_manager.create_wandb_logger": False,
    "exp_manager.wandb_logger_kwargs": {"project": "p", "name": "n"},
    "exp_manager.resume_from_checkpoint": None,
    "exp_manager.resume_if_exists": True,
    "exp_manager.resume_ignore_no_checkpoint": True,
    "exp_manager.create_checkpoint_callback": True,
    "exp_manager.checkpoint_callback_params.monitor": "val_loss",
    "exp_manager.checkpoint_callback_params.save_top_k": 2,
    "exp_manager.checkpoint_callback_params.mode": "min",
    "exp_manager.checkpoint_callback_params.always_save_nemo": False,
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": True,
    "exp_manager.checkpoint_callback_params.filename": "gpt--{${.monitor}:.3f}-{step}",
    "exp_manager.checkpoint_callback_params.model_parallel_size": (
        "${multiply:${model.tensor_model_parallel_size}, ${model.pipeline_model_parallel_size}}"
    ),
    "pretrained_checkpoint.restore_from_path": "model",
    "model.mcore_gpt": True,
    "model.micro_batch_size": 2,
    "model.global_batch_size": 32,
    "model.megatron_amp_O2": True,
    "model.dpo.log_prob_forward_micro_batch_size": "${model.micro_batch_size}",
    "model.dpo.ref_policy_kl_penalty": 0.2,
    "model.dpo.preference_average_log_probs": True,
    "model.dpo.sft_average_log_probs": "${.preference_average_log_probs}",
    "model.dpo.gt_reward_scale": 1.0,
    "model.dpo.preference_loss": "ipo",
    "model.dpo.preference_loss_weight": 1,
    "model.dpo.sft_loss_weight": 0,
    "model.seed": 7,
    "model.peft.peft_scheme": "none",
    "model.peft.restore_from_path": None,
    "model.peft.restore_from_ckpt.checkpoint_dir": None,
    "model.peft.restore_from_ckpt.checkpoint_name": None,
    "model.peft.lora_tuning.target_modules": ["attention_qkv"],
    "model.peft.lora_tuning.adapter_dim": 32,
    "model.optim.name": "distributed_fused_adam",
    "model.optim.bucket_cap_mb": 200,
    "model.optim.overlap_grad_sync": False,
    "model.optim.contiguous_grad_buffer": True,
    "model.optim.lr": 3e-6,
    "model.optim.weight_decay": 0.05,
    "model.optim.betas": [0.9, 0.95],
    "model.optim.sched.name": "CosineAnnealing",
    "model.optim.sched.warmup_steps": 5,
    "model.optim.sched.constant_steps": 100,
    "model.optim.sched.min_lr": 3e-7,
    "model.data.data_impl": "jsonl",
    "model.data.splits_string": None,
    "model.data.seq_length": "${model.encoder_seq_length}",
    "model.data.pad_length_to_multiple_of": None,
    "model.data.skip_warmup": True,
    "model.data.num_workers": 0,
    "model.data.reset_position_ids": False,
    "model.data.reset_attention_mask": False,
    "model.data.eod_mask_loss": False,
    "model.data.index_mapping_dir": None,
    "model.data.data_prefix": {"train": ["t.jsonl"], "validation": ["v.jsonl"], "test": ["v.jsonl"]},
    "model.data.default_chosen_reward": 1.0,
    "model.data.default_rejected_reward": 0.0,
    "model.overwrite_base_config.data.data_prefix": True,
    "precision": "${trainer.precision}",
}


def nested(settings: dict) -> dict:
    """Dotted keys as a tree."""
    tree: dict = {}
    for path, value in settings.items():
        *sections, name = path.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return tree


def flat(tree: dict, prefix: str = "") -> dict:
    """A tree as dotted keys; the files of a data_prefix are one setting, and an empty section is none."""
    settings = {}
    for name, value in tree.items():
        if isinstance(value, dict) and name != "data_prefix":
            settings |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            settings[prefix + name] = value
    return settings


def write_yaml(path: Path, settings: dict, defaults: list | None = None) -> Path:
    tree = nested(settings)
    path.write_text(yaml.safe_dump({"defaults": defaults, **tree} if defaults else tree, sort_keys=False), "utf-8")
    return path
