"""Bytes on the fullest GPU of a run, at micro-batches of full length.

With P weights on the GPU, t tensor-, p pipeline- and d data-parallel ranks (context-parallel ones among them; of
experts, each on one of e ranks and split over t', d is the GPUs by e t' p):

    weights     2 P           bf16                              (4 P in fp32)
    gradients   4 P           fp32, whole on every data-parallel rank
    optimizer  12 P / d       fp32 weights and two moments, sharded by the distributed optimizer (8 P / d in fp32)
    reference   2 P           resident; swapped and cached take none
    activations n_t · m · Σ over the stage's layers of the bytes that a token leaves for the backward pass

n_t tokens a micro-batch, m = min(p - stage, micro-batches) of them in flight (1F1B). A token of one layer leaves what
Korthikanti et al. (arXiv:2205.05198, section 4) count, but with grouped queries, SwiGLU, no dropout, and flash
attention, which keeps none of the s × s scores (their 5as/h); a·c is the width of the queries, g·c of keys and values,
f of the MLP:

    8h              input and output of both norms     / t with sequence parallelism, else on every tensor rank
    4ac + 4gc + 4a  queries, keys, values, attention's output and its log-sum-exp            / t
    6f              gate, up and their product (4f without a gate)                           / t

A layer of E experts, of which a token has k, is as the above with f of the shared expert (0 without one), and

    k (4h t' + 6f) + 8E  what a token brings to its experts and back, inside them, and the router's scores   / t

if every expert gets its share of the tokens. A rank whose experts are liked better has more: nothing is dropped.

Under LoRA gradients and optimizer are those of the adapters alone, whose r numbers between A and B come to the
activations (of an expert's, with each of the k t'/t tokens that it brings); the base stays as it is, and is the
reference without a copy.

Full recomputation leaves 2h a layer (every ``num_layers``-th under ``uniform``), and the layers that are being
recomputed in full once. Selective recomputation repeats the attention's core, whose scores flash attention does not
keep anyway: here it saves nothing. The head's block of fp32 logits (or all logits of a micro-batch, twice) comes on
top, at the last stage. Not counted: CUDA's context, NCCL's buffers and fragmentation; leave them a tenth of the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from nemo_rpo.config.adapters.adapter_size import (
    expert_adapter_activations,
    expert_adapter_weights,
    layer_adapter_activations,
    layer_adapter_weights,
)
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.arithmetic.flops import ExpertLayer, layer_matrix_weights
from nemo_rpo.config.experts.expert_shape import expert_tensor_size
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import ModelConfig, RunConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.logprobs.vocab_chunks import BLOCK_ELEMENTS
from nemo_rpo.planning.models import layer_norm_weights


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, by what they hold."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(getattr(self, part.name) for part in fields(self))


def micro_batch_tokens(model: ModelConfig) -> int:
    """Tokens of a micro-batch at most: both responses of every pair (of a completion judged alone, that one) at full
    length, or a full pack.
    """
    length = model.data.seq_length or model.encoder_seq_length
    pairs = (1 if base_loss(model).unpaired else 2) * model.micro_batch_size * length
    return (model.data.packed_sequence_size or pairs) if model.data.packed_sequence else pairs


def peak_memory(cfg: RunConfig, architecture: GPTArchitecture, world_size: int) -> Memory:
    """That of the pipeline stage that needs most.

    Raises:
        ConfigError: an interleaved pipeline, whose micro-batches in flight are not counted here.
    """
    if cfg.model.virtual_pipeline_model_parallel_size:
        raise ConfigError(
            "memory is not estimated for model.virtual_pipeline_model_parallel_size: leave it out for an estimate"
        )
    stages = range(cfg.model.pipeline_model_parallel_size)
    found = (stage_memory(cfg, architecture, world_size, stage) for stage in stages)
    return max(found, key=lambda memory: memory.total)


def stage_memory(cfg: RunConfig, architecture: GPTArchitecture, world_size: int, stage: int) -> Memory:
    """That of a GPU of one pipeline stage."""
    model, low = cfg.model, cfg.trainer.precision == "bf16"
    tensor, pipeline, context = (
        model.tensor_model_parallel_size,
        model.pipeline_model_parallel_size,
        model.context_parallel_size,
    )
    shards = world_size // (tensor * pipeline)  # of the optimizer: data- and context-parallel ranks
    micro_batches = max(model.global_batch_size * context // (model.micro_batch_size * shards), 1)
    layers = stage_layers(architecture.num_layers, pipeline, stage)
    table = architecture.padded_vocab_size(model.make_vocab_size_divisible_by, tensor) * architecture.hidden_size
    last = stage == pipeline - 1
    tables = (stage == 0) + (last and not (stage == 0 and architecture.share_embeddings_and_output_weights))
    dense, of_experts = layers_on_a_gpu(model, architecture, layers)
    dense += tables * table / tensor + last * architecture.hidden_size
    adapters = sum(layer_adapter_weights(architecture, model.peft, layer, tensor) for layer in layers)
    expert_tensor, expert_ranks = expert_tensor_size(model), model.expert_model_parallel_size
    here = 0 if architecture.experts is None else architecture.experts.num_moe_experts / expert_ranks
    of_adapted = sum(here * expert_adapter_weights(architecture, model.peft, layer, expert_tensor) for layer in layers)
    weights = dense + of_experts + adapters + of_adapted
    if model.peft.lora:
        dense, of_experts = adapters, of_adapted
    trained = dense + of_experts
    distributed = model.optim.name == "distributed_fused_adam"
    expert_shards = world_size // (expert_tensor * expert_ranks * pipeline)
    stepped = dense / shards + of_experts / expert_shards if distributed else trained
    tokens = micro_batch_tokens(model) / context
    in_flight = min(pipeline - stage, micro_batches)
    width = 2 if low else 4
    return Memory(
        weights=width * weights,
        gradients=4 * trained,
        optimizer=(12 if low else 8) * stepped,
        reference=width * weights if model.reference_in_force == "resident" else 0,
        activations=tokens * _layers_bytes(model, architecture, layers, in_flight) * width / 2,
        head=_head_bytes(cfg, table // architecture.hidden_size, architecture, tokens) if last else 0,
    )


def stage_layers(num_layers: int, stages: int, stage: int) -> range:
    """The layers of a pipeline stage; where they do not divide evenly, the first stages have one more."""
    least, more = divmod(num_layers, stages)
    first = stage * least + min(stage, more)
    return range(first, first + least + (stage < more))


def layers_on_a_gpu(model: ModelConfig, architecture: GPTArchitecture, layers: range) -> tuple[float, float]:
    """Weights of ``layers`` on a GPU: those that all data-parallel ranks have, and those of its experts."""
    tensor, of_experts = model.tensor_model_parallel_size, sum(map(architecture.has_experts, layers))
    common = len(layers) * layer_norm_weights(architecture)
    common += (len(layers) - of_experts) * layer_matrix_weights(architecture) / tensor
    if not of_experts:
        return common, 0
    layer = ExpertLayer.of(architecture)
    here = layer.experts * layer.expert / (model.expert_model_parallel_size * expert_tensor_size(model))
    return common + of_experts * (layer.split / tensor + layer.whole), of_experts * here


def _layers_bytes(model: ModelConfig, architecture: GPTArchitecture, layers: range, in_flight: int) -> float:
    """Bytes that one token leaves in all ``layers`` of a stage for ``in_flight`` micro-batches, in bf16."""
    whole = [_layer_bytes(model, architecture, architecture.has_experts(layer)) for layer in layers]
    if model.activations_checkpoint_granularity != "full":
        return in_flight * sum(whole)
    group = min(model.activations_checkpoint_num_layers, len(layers))
    inputs = 2 * architecture.hidden_size / (model.tensor_model_parallel_size if model.sequence_parallel else 1)
    if model.activations_checkpoint_method == "block":  # the first `group` layers, one by one; the others keep all
        return in_flight * (group * inputs + sum(whole[group:])) + max(whole)
    return in_flight * -(-len(layers) // group) * inputs + group * max(whole)


def _layer_bytes(model: ModelConfig, architecture: GPTArchitecture, has_experts: bool) -> float:
    tensor, heads = model.tensor_model_parallel_size, architecture.num_attention_heads
    h, inside = architecture.hidden_size, 6 if architecture.activation == "swiglu" else 4
    norms = 8 * h / (tensor if model.sequence_parallel else 1)
    attention = 4 * (heads + architecture.num_query_groups) * architecture.kv_channels + 4 * heads
    between = 2 * layer_adapter_activations(model.peft, has_experts)
    if not has_experts:
        return norms + (attention + inside * architecture.ffn_hidden_size) / tensor + between
    e = architecture.experts
    brought = 4 * h + 2 * expert_adapter_activations(model.peft)
    chosen = e.moe_router_topk * (brought * expert_tensor_size(model) + inside * e.moe_ffn_hidden_size)
    shared = inside * (e.moe_shared_expert_intermediate_size or 0)
    return norms + (attention + shared + chosen + 8 * e.num_moe_experts) / tensor + between


def _head_bytes(cfg: RunConfig, vocabulary: int, architecture: GPTArchitecture, tokens: float) -> float:
    """The hidden states in the model's precision and their gradient in fp32, and the logits that exist at a time."""
    if cfg.model.rpo.logprob_head == "logits":
        return 2 * 4 * tokens * vocabulary / cfg.model.tensor_model_parallel_size
    block = BLOCK_ELEMENTS["cuda" if cfg.trainer.accelerator == "gpu" else "cpu"]
    logits = min(block, tokens * vocabulary / cfg.model.tensor_model_parallel_size)
    return (2 if cfg.trainer.precision == "bf16" else 4) * tokens * architecture.hidden_size + (
        4 * tokens * architecture.hidden_size + 6 * logits  # the block in bf16, and in fp32
    )
