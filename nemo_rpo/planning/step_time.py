"""Seconds of an optimizer step, from the arithmetic it asks for and the share of the GPU's peak that it gets.

    forward      F = 2 N_layers + 2 N_head + 2 L a c s      FLOPs a token: a multiply-add a weight, and causal attention
                                                            (two products of s/2 keys on average, a·c wide, L layers)
    step         T · [ 3 F + F·(full recomputation) + F·(live reference) + 2 N_head·(chunked head) ]
    seconds      step / (GPUs · peak · MFU) · (1 + (p - 1) / m)  +  3 · 2P / bandwidth·(swapped reference)

Of experts N_layers are the weights that a token meets: 30e9 weights of which 3e9 are active take the time of 3e9 where
every expert gets its share of the tokens. Under LoRA the frozen weights have no gradients, so that 3 F is 2 F, and the
adapters' own products, 6 a weight, come to it; nothing is swapped. T tokens of a global batch, 2 · pairs · s with s
tokens a prompt and response; backward is twice the forward; the pipeline's p - 1 idle slots come on m micro-batches; a
swapped reference moves the GPU's P weights over the bus three times. With T at full length the arithmetic is an upper
bound: packing, or shorter texts, take away in proportion. What GPUs say to each other has no term of its own: it is in
the utilisation, which falls where ranks have few micro-batches, and with experts on several ranks, whose tokens travel
in every layer.
"""

from __future__ import annotations

from nemo_rpo.config.adapters.adapter_size import adapter_weights
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.arithmetic.flops import forward_flops
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron.batch.loss_inputs import StepNeeds
from nemo_rpo.planning.hardware import Hardware
from nemo_rpo.planning.memory import layers_on_a_gpu, stage_layers


def step_seconds(
    cfg: RunConfig, architecture: GPTArchitecture, world_size: int, length: int, hardware: Hardware
) -> float:
    """Of a global batch whose texts, prompt and response together, are ``length`` tokens long."""
    model = cfg.model
    layers, head = forward_flops(architecture, length)
    loss = base_loss(model)
    needs = StepNeeds.of(loss, model)
    live = needs.live_reference
    adapters = adapter_weights(architecture, model.peft)
    flops = ((2 if model.peft.lora else 3) + live + needs.further_forwards) * (layers + head) + 6 * adapters
    if model.activations_checkpoint_granularity == "full":
        recomputed = model.activations_checkpoint_num_layers if model.activations_checkpoint_method == "block" else None
        of_a_stage = architecture.num_layers / model.pipeline_model_parallel_size
        flops += layers * (1 if recomputed is None else min(recomputed / of_a_stage, 1))
    if model.rpo.logprob_head == "chunked":
        flops += head
    tokens = (1 if loss.unpaired else 2) * model.global_batch_size * length
    model_parallel = model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size
    micro_batches = model.global_batch_size * model_parallel / (model.micro_batch_size * world_size)
    idle = (model.pipeline_model_parallel_size - 1) / micro_batches
    seconds = tokens * flops / (world_size * hardware.peak * hardware.utilisation) * (1 + idle)
    if live and model.reference_in_force == "swapped":
        first = stage_layers(architecture.num_layers, model.pipeline_model_parallel_size, 0)
        weights = sum(layers_on_a_gpu(model, architecture, first))
        seconds += 3 * 2 * weights / hardware.host_bandwidth
    return seconds
