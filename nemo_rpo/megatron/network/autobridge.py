"""Any architecture that Megatron-Bridge knows, with this package's head: ``model.provider=megatron_bridge``.

The model is the one that Bridge's provider builds for a Hugging Face folder, its weights are Bridge's import and
export; the run's layout, precision, losses and EM are this package's. GPTModel calls an ``output_processor`` where it
would make logits, and there the output layer, which has become a :class:`ScoringHead`, returns what is requested
instead. The own builder stays for where Bridge is not: it needs Megatron-Core 0.18 or newer, and its layers Transformer
Engine; where that is absent, models of the local layer spec run (docs/megatron_bridge.md says what has run).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import unwrap_model
from torch import Tensor

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.experts.expert_shape import Experts, layer_pattern
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import CheckpointError, ConfigError, first_line
from nemo_rpo.megatron.batch.head_outputs import HeadOutputs, HeadRequest
from nemo_rpo.megatron.batch.responses import ResponseTokens
from nemo_rpo.megatron.batch.segments import Segments
from nemo_rpo.megatron.compat.experts import route_without_transformer_engine
from nemo_rpo.megatron.compat.gpt_model import become
from nemo_rpo.megatron.compat.layer_spec import keep_norm_of_experts, set_part
from nemo_rpo.megatron.cpu.norm import TorchNorm
from nemo_rpo.megatron.network.attention import CausalSDPA
from nemo_rpo.megatron.network.experts import routing_arguments
from nemo_rpo.megatron.network.gpt import ScoringHead

# What the run decides and not the model; the rest of Bridge's provider stays as Bridge made it.
_OF_THE_RUN = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
    "pipeline_model_parallel_layout", "context_parallel_size", "sequence_parallel", "deterministic_mode",
    "params_dtype", "pipeline_dtype", "bf16", "recompute_granularity", "recompute_method", "recompute_num_layers",
    "hidden_dropout", "attention_dropout", "deallocate_pipeline_outputs", "overlap_p2p_comm", "batch_p2p_comm",
    "use_cpu_initialization", "gradient_accumulation_fusion",
)  # fmt: skip
_KERNELS = (
    "apply_rope_fusion", "masked_softmax_fusion", "bias_activation_fusion", "bias_dropout_fusion", "persist_layer_norm",
    "moe_grouped_gemm", "moe_permute_fusion", "moe_router_fusion", "moe_shared_expert_overlap",
    "cross_entropy_loss_fusion",
)  # fmt: skip
_NAMED = 4  # parameters that a message lists


class ScoringModel:
    """Beside the class of a model that Bridge has built: its forward takes what a preference step knows of its batch,
    as :meth:`nemo_rpo.megatron.network.gpt.PreferenceGPT.forward` does.
    """

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        responses: ResponseTokens | None = None,
        segments: Segments | None = None,
        request: HeadRequest | None = None,
    ) -> Tensor | HeadOutputs:
        """The stage's output; on the last stage the head outputs of ``responses``, or logits ``[b, s, V/T]`` without
        them. Collectives: the model's own, and :meth:`ScoringHead.forward`'s.
        """
        assert segments is None, "model.data.packed_sequence is refused with this provider"
        if responses is None:
            return super().forward(input_ids, position_ids, attention_mask)
        processor = partial(_head_outputs, request=request)
        return super().forward(
            input_ids, position_ids, attention_mask, output_processor=processor, output_processor_context=responses
        )

    @property
    def head_weight(self) -> Tensor:
        """``[V/T, h]``, on the last stage."""
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight


def _head_outputs(
    *,
    hidden_states: Tensor,
    output_layer: ScoringHead,
    output_weight: Tensor | None,
    context: ResponseTokens,
    request: HeadRequest | None,
    **_: Any,
) -> HeadOutputs:
    found, _ = output_layer(hidden_states, weight=output_weight, responses=context, request=request)
    return found


def bridge_of(folder: str | Path) -> Any:
    """Bridge's AutoBridge of a Hugging Face folder.

    Raises:
        ConfigError: Megatron-Bridge is not installed, or does not know the architecture.
    """
    if importlib.util.find_spec("megatron.bridge") is None:
        raise ConfigError(
            "model.provider=megatron_bridge needs Megatron-Bridge, which is not installed: pip install "
            "'nemo-rpo[bridge]' (Python 3.12; NVIDIA's NeMo containers bring it), or set model.provider=nemo_rpo"
        )
    from megatron.bridge import AutoBridge

    try:
        return AutoBridge.from_hf_pretrained(str(folder), torch_dtype=torch.float32)
    except (ValueError, OSError, KeyError) as exc:
        raise ConfigError(
            f"model.provider=megatron_bridge: Megatron-Bridge cannot read {folder} ({first_line(exc)})"
        ) from exc


def architecture_from_bridge(folder: str | Path) -> GPTArchitecture:
    """The sizes of the model in a Hugging Face folder, as Bridge's provider has them: what layouts, texts and estimates
    are checked against. What else makes the model up is Bridge's.
    """
    bridge = bridge_of(folder)
    provider = bridge.to_megatron_provider(load_weights=False)
    heads = provider.num_attention_heads
    return GPTArchitecture(
        num_layers=provider.num_layers,
        hidden_size=provider.hidden_size,
        ffn_hidden_size=provider.ffn_hidden_size or 4 * provider.hidden_size,
        num_attention_heads=heads,
        num_query_groups=provider.num_query_groups or heads,
        kv_channels=provider.kv_channels or provider.hidden_size // heads,
        vocab_size=provider.vocab_size,
        max_position_embeddings=provider.seq_length,
        share_embeddings_and_output_weights=provider.share_embeddings_and_output_weights,
        experts=_experts_of(provider),
    )


def _experts_of(provider: Any) -> Experts | None:
    if not provider.num_moe_experts:
        return None
    named = {spec.name: getattr(provider, spec.name) for spec in fields(Experts) if hasattr(provider, spec.name)}
    return Experts(**named | {"moe_layer_freq": layer_pattern(provider.moe_layer_freq, provider.num_layers)})


def bridge_chunks(cfg: RunConfig, config: TransformerConfig, vocab_size: int, te: bool) -> list[torch.nn.Module]:
    """This rank's chunks of the model that Bridge builds for ``pretrained_checkpoint.restore_from_path``, under the
    run's ``config``; ``te``: with its own layer spec, Transformer Engine's, else Megatron's local one.

    Raises:
        ConfigError: no Bridge, or a model whose layers or output layer this package cannot run.
    """
    folder = cfg.pretrained_checkpoint.restore_from_path
    bridge = bridge_of(folder)
    provider = bridge.to_megatron_provider(load_weights=False)
    if not te:
        _check_local(bridge, folder)
    for name in _OF_THE_RUN:
        setattr(provider, name, getattr(config, name))
    provider.fp16, provider.mtp_num_layers, provider.autocast_dtype = False, None, config.params_dtype
    provider.make_vocab_size_divisible_by = cfg.model.make_vocab_size_divisible_by
    provider.expert_model_parallel_size = cfg.model.expert_model_parallel_size
    provider.expert_tensor_parallel_size = cfg.model.expert_tensor_parallel_size
    if provider.num_moe_experts:
        for name, value in routing_arguments(cfg).items():
            setattr(provider, name, value)
    if not te:
        for name in _KERNELS:
            setattr(provider, name, False)
        provider.attention_softmax_in_fp32 = True
        provider.transformer_layer_spec = _local_spec
    provider.finalize()
    chunks = provider.provide_distributed_model(
        wrap_with_ddp=False, use_cpu_initialization=config.use_cpu_initialization
    )
    for chunk in unwrap_model(chunks):
        if chunk.post_process:
            _take_over_head(chunk, vocab_size, cfg.model.rpo.logprob_head)
        become(chunk, type(f"Scoring{type(chunk).__name__}", (ScoringModel, type(chunk)), {}))
    return chunks


def _local_spec(provider: Any, vp_stage: int | None = None) -> Any:
    """Megatron's local layers, with the norms and the attention that this package's own builder gives them."""
    experts = provider.num_moe_experts
    layer = get_gpt_layer_local_spec(
        num_experts=experts, qk_layernorm=provider.qk_layernorm, normalization=provider.normalization
    )
    norms = ["input_layernorm", "pre_mlp_layernorm"]
    if provider.qk_layernorm:
        norms += ["self_attention.q_layernorm", "self_attention.k_layernorm"]
    for norm in norms:
        set_part(layer, norm, TorchNorm)
    if experts:
        route_without_transformer_engine()
        keep_norm_of_experts(layer)
    set_part(layer, "self_attention.core_attention", CausalSDPA)
    layers = get_num_layers_to_build(provider, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=TorchNorm)


# Models that Megatron's local layer spec gives transformers' logits; others want Bridge's own layers.
_LOCAL = frozenset(("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"))


def _check_local(bridge: Any, folder: str) -> None:
    names = set(bridge.hf_pretrained.config.architectures or ())
    experts = _experts_of(bridge.to_megatron_provider(load_weights=False))
    if not names & _LOCAL or (experts is not None and experts.moe_layer_freq != 1):
        raise ConfigError(
            f"model.provider=megatron_bridge: the layers of {', '.join(sorted(names)) or 'the model'} in {folder} are "
            "Transformer Engine's, which is not in use here: train it on a GPU that has it, or, if this package builds "
            "it, set model.provider=nemo_rpo"
        )


def _take_over_head(chunk: torch.nn.Module, vocab_size: int, logprob_head: str) -> None:
    layer = chunk.output_layer
    if type(layer) is not ColumnParallelLinear:
        raise ConfigError(
            f"model.provider=megatron_bridge: the output layer of this model is a {type(layer).__name__}, and "
            "log-probs are made from Megatron-Core's ColumnParallelLinear alone"
        )
    from megatron.bridge.models.conversion.param_mapping import AutoMapping

    ScoringHead.take_over(layer, vocab_size, logprob_head)
    AutoMapping.register_module_type(ScoringHead.__name__, "column")  # for the export


@torch.no_grad()
def load_bridge_weights(chunks: Sequence[torch.nn.Module], folder: str | Path) -> None:
    """Fills ``chunks`` in place by Bridge's import, and looks whether it has filled all of them: parameters are NaN
    before, and one that still has a NaN was never loaded, or is damaged in the folder.

    Collectives: Bridge's own, and two gathers of short objects over the world.

    Raises:
        CheckpointError: on every rank, naming the parameters that were left.
    """
    models, bridge, failure = unwrap_model(list(chunks)), bridge_of(folder), None
    for model in models:
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    # Bridge 0.6 trips over a parameter that it has no mapping for, so that it is asked before it loads.
    known = {id(task.param_weight) for task in bridge.get_conversion_tasks(models) if task is not None}
    left = [name for model in models for name, parameter in model.named_parameters() if id(parameter) not in known]
    if not _anywhere(left):
        try:
            bridge.load_hf_weights(models, allowed_mismatched_params=None)
        except (ValueError, KeyError, OSError, RuntimeError) as exc:
            failure = first_line(exc)
        left = [name for model in models for name, parameter in model.named_parameters() if parameter.isnan().any()]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, (failure, left[:_NAMED], len(left)))
    if failure := next((failed for failed, _, _ in everyones if failed), None):
        raise CheckpointError(f"{folder}: Megatron-Bridge cannot load it ({failure})")
    if any(count for _, _, count in everyones):
        named, count = next((names, count) for _, names, count in everyones if count)
        raise CheckpointError(
            f"{folder}: Megatron-Bridge's import left {count} parameters of this model untouched "
            f"({', '.join(named)}{', …' if count > len(named) else ''}): a run would train on what was never loaded"
        )


def _anywhere(names: Sequence[str]) -> bool:
    """Whether any rank has names. One gather of a short object over the world."""
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, bool(names))
    return any(everyones)


@torch.no_grad()
def export_bridge(chunks: Sequence[torch.nn.Module], source: str | Path, folder: Path) -> None:
    """Writes the model as the Hugging Face folder ``folder`` by Bridge's export, with the configuration and tokenizer
    of ``source``, whole or not at all. Collective over the world.

    Raises:
        CheckpointError: on every rank, where it cannot be written.
    """
    part, failure = folder.with_name(f".{folder.name}.part"), None
    try:
        bridge_of(source).save_hf_pretrained(unwrap_model(list(chunks)), str(part), show_progress=False)
        dist.barrier()
        if dist.get_rank() == 0:
            part.rename(folder)
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as exc:
        failure = first_line(exc)
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, failure)
    if failure := next(filter(None, everyones), None):
        raise CheckpointError(f"{folder}: Megatron-Bridge cannot export the model ({failure})")
