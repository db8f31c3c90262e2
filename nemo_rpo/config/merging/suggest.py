"""The known key that a mistyped or foreign one most likely means."""

from __future__ import annotations

import difflib

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.types import leaves

# What other trainers (TRL, torchtitan, Megatron's flags, RE-PO's paper) call settings of ours that are spelt otherwise.
_ELSEWHERE = {
    "beta": "model.dpo.ref_policy_kl_penalty",
    "loss_type": "model.rpo.base_loss",
    "loss": "model.rpo.base_loss",
    "learning_rate": "model.optim.lr",
    "wd": "model.optim.weight_decay",
    "per_device_train_batch_size": "model.micro_batch_size",
    "batch_size": "model.global_batch_size",
    "max_length": "model.encoder_seq_length",
    "seq_len": "model.encoder_seq_length",
    "num_train_epochs": "trainer.dpo.max_epochs",
    "epochs": "trainer.dpo.max_epochs",
    "max_grad_norm": "trainer.dpo.gradient_clip_val",
    "clip_grad": "trainer.dpo.gradient_clip_val",
    "save_steps": "trainer.dpo.save_interval",
    "eval_steps": "trainer.dpo.val_check_interval",
    "output_dir": "exp_manager.explicit_log_dir",
    "tp": "model.tensor_model_parallel_size",
    "pp": "model.pipeline_model_parallel_size",
    "cp": "model.context_parallel_size",
    "eta": "model.rpo.eta_init",
    "eta0": "model.rpo.eta_init",
    "eps": "model.rpo.eta_clamp",
    "tau": "model.rpo.link_tau",
    "train_data": "model.data.data_prefix.train",
}


def nearest_key(path: str) -> str | None:
    """The known key nearest to the dotted ``path``: the same name elsewhere, else the closest spelling, else None."""
    known = [key for key, _ in leaves(RunConfig)]
    known += ["model.data.data_prefix.train", "model.data.data_prefix.validation"]
    section, _, name = path.rpartition(".")

    def closeness(key: str) -> float:
        key_section, _, key_name = key.rpartition(".")
        # The name says more about what was meant than the section it was put in.
        return 2 * _ratio(name, key_name) + _ratio(section, key_section)

    same_name = [key for key in known if key.rpartition(".")[2] == name]
    if same_name:
        return max(same_name, key=closeness)
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    close = [key for key in known if _ratio(name, key.rpartition(".")[2]) >= 0.6 or _ratio(path, key) >= 0.8]
    return max(close, key=closeness, default=None)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
