"""NeMo-Aligner's and NeMo's own keys: the one list of those that mean nothing here, and of values spelt differently.

Facts from NeMo-Aligner 0.7 (``examples/nlp/gpt/conf/gpt_dpo.yaml``, ``train_gpt_dpo.py``) and NeMo's
``megatron_gpt_config.yaml``. A key that is in none of these tables and not in the schema is an error.
"""

from __future__ import annotations

from typing import Any

# Accepted whatever they hold, and named in one notice. "x.*" covers everything below x.
IGNORED = frozenset(
    """
    name inference.* hydra.*
    trainer.logger trainer.enable_checkpointing trainer.use_distributed_sampler trainer.replace_sampler_ddp
    trainer.benchmark trainer.enable_progress_bar trainer.enable_model_summary
    exp_manager.create_checkpoint_callback exp_manager.log_step_timing exp_manager.step_timing_kwargs.*
    exp_manager.use_datetime_version exp_manager.log_global_rank_0_only
    exp_manager.checkpoint_callback_params.always_save_nemo
    exp_manager.checkpoint_callback_params.filename exp_manager.checkpoint_callback_params.model_parallel_size
    exp_manager.checkpoint_callback_params.save_best_model exp_manager.checkpoint_callback_params.verbose
    model.mcore_gpt model.megatron_amp_O2 model.transformer_engine model.name model.target model.nemo_version
    model.overwrite_base_config.* model.use_cpu_initialization model.onnx_safe
    model.apex_transformer_log_level model.pre_process model.post_process model.persist_layer_norm
    model.native_amp_init_scale model.native_amp_growth_interval model.hysteresis
    model.grad_allreduce_chunk_size_mb model.grad_div_ar_fusion
    model.gradient_as_bucket_view model.gradient_accumulation_fusion model.bias_activation_fusion
    model.bias_gelu_fusion model.bias_dropout_add_fusion model.masked_softmax_fusion model.apply_rope_fusion
    model.cross_entropy_loss_fusion model.get_attention_mask_from_fusion model.use_flash_attention
    model.apply_query_key_layer_scaling model.attention_softmax_in_fp32 model.sync_batch_comm
    model.batch_p2p_comm model.overlap_p2p_comm model.ub_tp_comm_overlap model.ub_tp_comm_overlap_cfg.*
    model.tp_comm_atomic_ag model.tp_comm_atomic_rs model.nccl_communicator_config_path model.gc_interval
    model.memory_profile.* model.activations_checkpoint_layers_per_pipeline
    model.num_micro_batches_with_partial_activation_checkpoints model.cpu_offloading model.defer_embedding_wgrad_compute
    model.moe_grouped_gemm model.moe_router_dtype model.moe_per_layer_logging
    model.dist_ckpt_format model.dist_ckpt_load_strictness model.dist_ckpt_load_on_device
    model.dist_ckpt_parallel_save model.dist_ckpt_parallel_load model.dist_ckpt_torch_dist_multiproc
    model.dist_ckpt_assume_constant_structure model.dist_ckpt_parallel_dist_opt model.dist_ckpt_parallel_save_within_dp
    model.peft.adapter_tuning.* model.peft.p_tuning.* model.peft.ia3_tuning.*
    model.optim.bucket_cap_mb model.optim.contiguous_grad_buffer model.optim.contiguous_param_buffer
    model.optim.grad_sync_dtype model.optim.param_sync_dtype model.optim.grad_sync_chunk_size
    model.data.splits_string model.data.skip_warmup model.data.index_mapping_dir model.data.dataloader_type
    model.data.validation_drop_last model.data.exchange_indices_distributed model.data.data_prefix.test
    """.split()
)

# Accepted (and named with the above) while they hold one of these values; another value would train something else.
ONLY_WITH: dict[str, tuple[tuple[Any, ...], str]] = {
    "restore_from_path": ((None,), "set pretrained_checkpoint.restore_from_path"),
    "trainer.accumulate_grad_batches": ((1,), "model.global_batch_size decides how often gradients are accumulated"),
    "trainer.gradient_clip_val": ((None,), "set trainer.dpo.gradient_clip_val"),
    "exp_manager.resume_from_checkpoint": ((None,), "set exp_manager.explicit_log_dir to the run to resume"),
    "model.resume_from_checkpoint": ((None,), "set exp_manager.explicit_log_dir to the run to resume"),
    "model.peft.restore_from_ckpt.checkpoint_dir": ((None,), "set model.peft.restore_from_path"),
    "model.peft.restore_from_ckpt.checkpoint_name": ((None,), "set model.peft.restore_from_path"),
    "model.peft.lora_tuning.row_init_method": (("zero",), "an adapter starts at its base"),
    "model.peft.lora_tuning.layer_selection": ((None,), "every layer has its adapters"),
    "model.peft.lora_tuning.weight_tying": ((False,), "every layer has its own adapters"),
    "model.peft.lora_tuning.position_embedding_strategy": ((None,), "every layer has its own adapters"),
    "model.fp8": ((False, None), "set model.rpo.logprob_precision"),
    "model.optim.optimizer_cpu_offload": ((False,), "the optimizer's state is sharded over data-parallel ranks"),
    "model.optim.fp8_param_gather": ((False,), "weights are kept, and gathered, in bf16"),
    "model.fp8_params": ((False, None), "weights are kept in bf16: policy and reference take turns in one module"),
    "model.fp32_residual_connection": ((False,), "residuals have the precision of the weights"),
    "model.fp16_lm_cross_entropy": ((False,), "log-probs are computed in fp32"),
    "model.dpo.average_log_probs": ((False,), "set model.dpo.preference_average_log_probs"),
    "model.data.data_impl": (("jsonl", "mmap"), "give the JSONL files themselves"),
    "model.data.reset_position_ids": ((False,), "every response is a sequence of its own"),
    "model.data.reset_attention_mask": ((False,), "every response is a sequence of its own"),
    "model.data.eod_mask_loss": ((False,), "the end-of-text token is part of the response"),
    "model.apply_embedding_scaling": ((False,), "there is no such layer here"),
    "model.rotary_interleaved": ((False,), "rotary pairs are the two halves of a head"),
    "model.seq_len_interpolation_factor": ((None,), "rope scaling comes from the checkpoint's config.json"),
    "model.scale_positional_embedding": ((False,), "rope scaling comes from the checkpoint's config.json"),
    "model.window_size": ((None,), "attention is causal over the whole sequence"),
    "model.transformer_block_type": (("pre_ln",), "blocks are pre-norm"),
    "model.headscale": ((False,), "there is no such layer here"),
    "model.openai_gelu": ((False,), "set model.activation"),
    "model.normalize_attention_scores": ((True,), "attention scores are divided by the root of the head size"),
    "model.do_layer_norm_weight_decay": ((False,), "norms and biases are not decayed"),
    "model.ffn_dropout": ((0,), "set model.hidden_dropout"),
    "model.moe_router_load_balancing": ((None,), "set model.moe_router_load_balancing_type"),
    "model.moe_input_jitter_eps": ((None,), "policy and reference would be routed by different noise"),
    "model.moe_token_dropping": ((False,), "no token is dropped: its log-prob would depend on the others of its batch"),
    "model.moe_expert_capacity_factor": ((None,), "no token is dropped: its log-prob would depend on its batch"),
    "model.pipeline_model_parallel_split_rank": ((0, None), "only decoder models are trained"),
    "model.tokenizer.delimiter": ((None,), "there is no tokenizer of tables here, nor in NeMo 3"),
}

# A second place for one of ours, accepted while the two agree.
MIRRORS = {
    "precision": "trainer.precision",
    "model.precision": "trainer.precision",
    "trainer.max_time": "exp_manager.max_time_per_run",
    "trainer.max_epochs": "trainer.dpo.max_epochs",
    "trainer.max_steps": "trainer.dpo.max_steps",
    # Policy and reference share the batch shape: only then is the margin exactly 0 before the first step.
    "model.dpo.log_prob_forward_micro_batch_size": "model.micro_batch_size",
}

# Spellings of Lightning, NeMo and Megatron for the same thing.
VALUES: dict[str, dict[Any, Any]] = {
    "trainer.precision": {"bf16-mixed": "bf16", "bf16-true": "bf16", "32-true": "32"},
    "trainer.accelerator": {"cuda": "gpu"},
    "model.normalization": {"RMSNorm": "rmsnorm", "LayerNorm": "layernorm"},
    "model.activation": {"fast-swiglu": "swiglu"},
    "model.optim.name": {
        "adamw": "adam",
        "fused_adam": "adam",
        "mcore_distributed_optim": "distributed_fused_adam",
    },
    "model.optim.sched.name": {"cosine": "CosineAnnealing"},
}

# NeMo writes null for "nothing said"; ours then keeps its default.
NULL_IS_DEFAULT = frozenset(
    {
        "exp_manager.exp_dir",
        "exp_manager.wandb_logger_kwargs",
        "exp_manager.summary_writer_kwargs",
        "exp_manager.files_to_copy",
        "model.tokenizer.sentencepiece_legacy",
        "model.data.data_prefix",
        "model.data.pad_length_to_multiple_of",
        "trainer.dpo.limit_train_batches",
        "trainer.dpo.limit_val_batches",
    }
)


def ignored_as(path: str) -> str | None:
    """The entry of :data:`IGNORED` that covers the dotted ``path``, or None."""
    if path in IGNORED:
        return path
    parts = path.split(".")
    prefixes = (".".join(parts[:n]) + ".*" for n in range(1, len(parts) + 1))
    return next((prefix for prefix in prefixes if prefix in IGNORED), None)
