"""Recipes: whole configurations for ``finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.bridge import AutoBridge
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DistributedDataParallelConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)

from nemo_rpo.integrations.megatron_bridge.data import PreferenceDatasetProvider
from nemo_rpo.integrations.megatron_bridge.host import use_rpo


def llama3_8b_rpo_config(
    hf_path: str,
    data_prefix: dict[str, Any],
    train_iters: int,
    folder: str = "results/llama3_8b_rpo",
    tensor_model_parallel_size: int = 2,
    pipeline_model_parallel_size: int = 1,
) -> ConfigContainer:
    """Llama-3 8B Instruct on preference pairs: full fine-tuning in bf16, 128 pairs a step, on 8 or more 80 GB GPUs.

    Batch, lengths and schedule are those of the SimPO recipes, whose data RE-PO uses: 2048 tokens a pair's side, one
    epoch, cosine with a tenth of warm-up, learning rate 3e-7 for DPO with β = .01. The settings of the loss are
    ``RPOForwardStep``'s.

    Args:
        hf_path: a Hugging Face folder: the starting weights, the reference, and the tokenizer.
        data_prefix: ``train`` and, optionally, ``validation``: files of pairs.
        train_iters: optimizer steps; an epoch is the number of pairs // 128.
        folder: of checkpoints and logs; a run that finds its checkpoints there goes on from them.
    """
    model = AutoBridge.from_hf_pretrained(hf_path).to_megatron_provider(load_weights=False)
    model.seq_length = 2048
    model.tensor_model_parallel_size = tensor_model_parallel_size
    model.pipeline_model_parallel_size = pipeline_model_parallel_size
    model.sequence_parallel = tensor_model_parallel_size > 1
    checkpoints = str(Path(folder) / "checkpoints")
    validated = bool(data_prefix.get("validation"))
    return use_rpo(
        ConfigContainer(
            model=model,
            train=TrainingConfig(train_iters=train_iters, global_batch_size=128, micro_batch_size=2),
            validation=ValidationConfig(eval_interval=50 if validated else None, eval_iters=8 if validated else 0),
            optimizer=OptimizerConfig(
                optimizer="adam", lr=3e-7, min_lr=0.0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999, bf16=True,
                clip_grad=1.0, use_distributed_optimizer=True,
            ),
            scheduler=SchedulerConfig(
                lr_decay_style="cosine", lr_warmup_iters=train_iters // 10, lr_decay_iters=train_iters,
                start_weight_decay=0.0, end_weight_decay=0.0, weight_decay_incr_style="constant",
            ),
            ddp=DistributedDataParallelConfig(
                use_distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True,
                grad_reduce_in_fp32=True, check_for_nan_in_grad=True,
            ),
            dataset=PreferenceDatasetProvider(
                data_prefix=data_prefix, seq_length=model.seq_length, use_chat_template=True, invalid_pairs="drop"
            ),
            logger=LoggerConfig(log_interval=1, tensorboard_dir=str(Path(folder) / "tensorboard")),
            tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=hf_path),
            checkpoint=CheckpointConfig(
                pretrained_checkpoint=hf_path, save=checkpoints, load=checkpoints, save_interval=100,
                ckpt_format="torch_dist", fully_parallel_save=True,
            ),
            rng=RNGConfig(seed=1234),
            mixed_precision="bf16_mixed",
        )
    )  # fmt: skip
