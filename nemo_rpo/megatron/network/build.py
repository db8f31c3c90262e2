"""Builds the GPTModel from an architecture: which layer spec, which fusions, which precision."""

from __future__ import annotations

import importlib.util
import warnings
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "Apex is not installed": `facts` says in plain words what is in use
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_local_spec,
        get_gpt_layer_with_transformer_engine_spec,
    )
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_rpo.config.adapters.targets import targets_in
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.experts.expert_shape import check_expert_layout
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.batch.loss_inputs import StepNeeds
from nemo_rpo.megatron.compat.experts import route_without_transformer_engine
from nemo_rpo.megatron.compat.layer_spec import keep_norm_of_experts, set_module, set_part
from nemo_rpo.megatron.cpu.norm import TorchNorm
from nemo_rpo.megatron.cpu.rotary import RotarySelfAttention
from nemo_rpo.megatron.cpu.swiglu import SwiGLU
from nemo_rpo.megatron.logprobs.liger import check_liger
from nemo_rpo.megatron.network.attention import CausalSDPA, ContextSDPA
from nemo_rpo.megatron.network.autobridge import bridge_chunks
from nemo_rpo.megatron.network.experts import expert_arguments, stage_spec
from nemo_rpo.megatron.network.gpt import PreferenceGPT
from nemo_rpo.megatron.network.lora.attachment import attach
from nemo_rpo.megatron.network.precision import Precision, PrecisionLayer, check_machine, check_sizes, this_machine
from nemo_rpo.megatron.network.reward_head import RewardHead

_DTYPES = {"bf16": torch.bfloat16, "32": torch.float32}
_NORMS = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}


def uses_transformer_engine(cfg: RunConfig) -> bool:
    """TE's layer spec on GPUs that have it; Megatron's local spec with SDPA attention everywhere else."""
    return cfg.trainer.accelerator == "gpu" and importlib.util.find_spec("transformer_engine") is not None


def uses_apex() -> bool:
    """NVIDIA's apex, found by the kernel that Megatron needs from it (PyPI's package of that name is another one)."""
    return importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def kernel_facts(cfg: RunConfig) -> dict[str, str]:
    """What the start-up log says about kernels, in use or not."""
    te, gpu = uses_transformer_engine(cfg), cfg.trainer.accelerator == "gpu"
    return {
        "layer spec": "Transformer Engine" if te else "Megatron local, SDPA attention",
        "fused bias/activation/dropout": "in use" if gpu else "not on a CPU",
        "gradient accumulation fusion": "in use" if gpu and uses_apex() else "not in use (needs NVIDIA apex on a GPU)",
        "log-probs": "policy {}, reference {}".format(*map(partial(_as_run, cfg), cfg.model.rpo.precisions())),
        "optimizer kernel": "Transformer Engine / apex FusedAdam" if te or (gpu and uses_apex()) else "torch AdamW",
    }


def _as_run(cfg: RunConfig, precision: str) -> str:
    return {"32": "fp32"}.get(cfg.trainer.precision, precision)


def _pipeline_layout(num_layers: int, stages: int) -> list[list[str]] | None:
    """The layers of each stage where they do not divide evenly: one more in the first ones (the last has the output
    layer).

    None where they do, which Megatron-Core splits by itself.
    """
    if num_layers % stages == 0:
        return None
    layout = [["decoder"] * (num_layers // stages + (stage < num_layers % stages)) for stage in range(stages)]
    return [["embedding", *layout[0]], *layout[1:-1], [*layout[-1], "loss"]]


def transformer_config(architecture: GPTArchitecture, cfg: RunConfig) -> TransformerConfig:
    """Megatron's configuration object for ``architecture`` under the run's layout and precision."""
    model, on_gpu, te = cfg.model, cfg.trainer.accelerator == "gpu", uses_transformer_engine(cfg)
    dtype = _DTYPES[cfg.trainer.precision]
    swiglu = architecture.activation == "swiglu"
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        kv_channels=architecture.kv_channels,
        normalization=_NORMS[architecture.normalization],
        layernorm_epsilon=architecture.layernorm_epsilon,
        gated_linear_unit=swiglu,
        activation_func=F.silu if swiglu else F.gelu,
        add_bias_linear=architecture.bias,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_layernorm,
        init_method_std=architecture.init_method_std,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        attention_softmax_in_fp32=True,
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=model.virtual_pipeline_model_parallel_size,
        pipeline_model_parallel_layout=_pipeline_layout(
            architecture.num_layers,
            model.pipeline_model_parallel_size * (model.virtual_pipeline_model_parallel_size or 1),
        ),
        context_parallel_size=model.context_parallel_size,
        sequence_parallel=model.sequence_parallel,
        deterministic_mode=cfg.trainer.deterministic,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        recompute_granularity=model.activations_checkpoint_granularity,
        recompute_method=model.activations_checkpoint_method,
        recompute_num_layers=model.activations_checkpoint_num_layers,
        use_cpu_initialization=not on_gpu,
        perform_initialization=True,
        # Fusions are CUDA kernels; TE brings its own norm and attention.
        gradient_accumulation_fusion=on_gpu and uses_apex(),
        bias_activation_fusion=on_gpu and (swiglu or architecture.bias),
        use_te_activation_func=swiglu and not on_gpu,  # the local spec's activation is its own module, see _block_spec
        bias_dropout_fusion=on_gpu,
        masked_softmax_fusion=on_gpu,
        apply_rope_fusion=te,
        persist_layer_norm=False,
        # FP8 weights are made anew in each forward: see PrecisionLayer.
        disable_parameter_transpose_cache=te,
        # Freeing a sent activation early is safe on a CUDA stream; gloo may not have read it yet.
        deallocate_pipeline_outputs=on_gpu,
        # With two stages an interleaved schedule sends both ways between one pair of ranks; batched, gloo and NCCL
        # match those messages by order and mix them up. The overlapped exchange keeps each direction apart.
        overlap_p2p_comm=model.virtual_pipeline_model_parallel_size is not None,
        batch_p2p_comm=model.virtual_pipeline_model_parallel_size is None,
        **expert_arguments(architecture, cfg, grouped=te),
    )


def _block_spec(
    config: TransformerConfig, architecture: GPTArchitecture, te: bool, vp_stage: int | None, precision: Precision
) -> Any:
    if not te:
        layer_of = partial(_local_layer, config, architecture, precision)
        return stage_spec(config, architecture, vp_stage, layer_of, TorchNorm)
    layer_of = partial(_transformer_engine_layer, architecture, precision)
    if architecture.experts is None or architecture.experts.moe_layer_freq == 1:
        return layer_of(architecture.experts is not None)
    from megatron.core.extensions.transformer_engine import TENorm

    return stage_spec(config, architecture, vp_stage, layer_of, TENorm)


def _transformer_engine_layer(architecture: GPTArchitecture, precision: Precision, experts: bool) -> Any:
    layer = get_gpt_layer_with_transformer_engine_spec(
        qk_layernorm=architecture.qk_layernorm,
        num_experts=architecture.experts.num_moe_experts if experts else None,
        moe_grouped_gemm=experts,
    )
    set_module(layer, PrecisionLayer, precision=precision)
    return layer


def _local_layer(config: TransformerConfig, architecture: GPTArchitecture, precision: Precision, experts: bool) -> Any:
    count = architecture.experts.num_moe_experts if experts else None
    layer = get_gpt_layer_local_spec(
        num_experts=count, qk_layernorm=architecture.qk_layernorm, normalization=config.normalization
    )
    set_module(layer, PrecisionLayer, precision=precision)
    norms = ["input_layernorm", "pre_mlp_layernorm"]
    if architecture.qk_layernorm:
        norms += ["self_attention.q_layernorm", "self_attention.k_layernorm"]
    for norm in norms:
        set_part(layer, norm, TorchNorm)
    if architecture.position_embedding_type == "rope":
        set_module(layer.submodules.self_attention, RotarySelfAttention)
    if experts:
        route_without_transformer_engine()
        keep_norm_of_experts(layer)
    if config.use_te_activation_func:
        for mlp in ("mlp.experts", "mlp.shared_experts") if experts else ("mlp",):
            set_part(layer, f"{mlp}.activation_func", SwiGLU)
    set_part(layer, "self_attention.core_attention", ContextSDPA if config.context_parallel_size > 1 else CausalSDPA)
    return layer


def _rope_arguments(architecture: GPTArchitecture) -> dict[str, Any]:
    arguments = {"rotary_base": architecture.rotary_base, "rotary_percent": architecture.rotary_percentage}
    scaling = architecture.rope_scaling
    if scaling:
        fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        for name, value in fixed.items():  # Megatron-Core knows Llama-3.1's constants and takes the factor alone
            if scaling.get(name, value) != value:
                raise ConfigError(
                    f"rope_scaling.{name}={scaling[name]} in the checkpoint's config.json is not supported by "
                    f"Megatron-Core (it uses {value})"
                )
        arguments |= {"rope_scaling": True, "rope_scaling_factor": scaling["factor"]}
    return arguments


def build_model_chunks(
    architecture: GPTArchitecture, cfg: RunConfig, precision: Precision | None = None
) -> list[torch.nn.Module]:
    """This rank's GPTModel chunks (one a virtual pipeline stage), on its device and in the run's precision, not yet
    wrapped for data parallelism.

    ``precision``: of their layers, which it can switch later; None: the policy's. Under ``model.peft.peft_scheme=lora``
    adapters stand beside its targets, and all else is frozen but a reward head. Where the run's loss needs outputs of
    a reward head, the last stage has one; where it needs no log-probs, the output layer is not trained.

    Raises :class:`ConfigError` if the layout does not divide the model, or leaves a gradient to wait for that never
    comes; or if FP8 is configured but the card or the model cannot run it. Issues no collective.
    """
    model, needs = cfg.model, StepNeeds.of(base_loss(cfg.model), cfg.model)
    architecture.check_parallel(
        model.tensor_model_parallel_size, model.pipeline_model_parallel_size, model.virtual_pipeline_model_parallel_size
    )
    check_expert_layout(cfg, architecture, training=False)
    vocab = architecture.padded_vocab_size(model.make_vocab_size_divisible_by, model.tensor_model_parallel_size)
    config, te = transformer_config(architecture, cfg), uses_transformer_engine(cfg)
    precision = precision or Precision(model.rpo.logprob_precision)
    for name in set(model.rpo.precisions()) - {"bf16"}:
        check_machine(name, this_machine())
        check_sizes(name, architecture, model.tensor_model_parallel_size)
    if model.rpo.logprob_head == "liger":
        check_liger(architecture.vocab_size, vocab, model.tensor_model_parallel_size)
    if model.provider == "megatron_bridge":
        return bridge_chunks(cfg, config, architecture.vocab_size, te)
    virtual = model.virtual_pipeline_model_parallel_size
    chunks = []
    for stage in range(virtual or 1):
        vp_stage = stage if virtual else None
        chunk = PreferenceGPT(
            real_vocab_size=architecture.vocab_size,
            reward_head=_reward_head(architecture, cfg, needs),
            logprob_head=model.rpo.logprob_head,
            transformer_engine=te,
            config=config,
            transformer_layer_spec=_block_spec(config, architecture, te, vp_stage, precision),
            vocab_size=vocab,
            max_sequence_length=architecture.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            parallel_output=True,
            share_embeddings_and_output_weights=architecture.share_embeddings_and_output_weights,
            position_embedding_type=architecture.position_embedding_type,
            vp_stage=vp_stage,
            **_rope_arguments(architecture),
        )
        if model.peft.lora:
            targets = targets_in(architecture, model.peft.lora_tuning.target_modules)
            attach(chunk, config, model.peft, targets, model.seed)
        elif not needs.logps:
            _leave_output_layer(chunk, cfg)
        if cfg.trainer.accelerator == "gpu":
            chunk.cuda(torch.cuda.current_device())
        chunks.append(Float16Module(config, chunk) if config.bf16 else chunk)
    return chunks


def _reward_head(architecture: GPTArchitecture, cfg: RunConfig, needs: StepNeeds) -> RewardHead | None:
    if not needs.reward_outputs:
        return None
    return RewardHead(architecture.hidden_size, needs.reward_outputs, cfg.model.seed)


def _leave_output_layer(chunk: PreferenceGPT, cfg: RunConfig) -> None:
    """Keeps an output layer that no loss reads out of training: weight decay alone would wear it away."""
    if not chunk.post_process:
        return
    if not chunk.share_embeddings_and_output_weights:
        chunk.output_layer.weight.requires_grad_(False)
    elif not chunk.pre_process and cfg.model.optim.overlap_grad_sync:
        raise ConfigError(
            "model.optim.overlap_grad_sync=true waits on the last pipeline stage for a gradient of the tied output "
            "layer, which a reward model has none of: set it to false"
        )
