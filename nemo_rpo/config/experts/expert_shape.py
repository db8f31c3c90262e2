"""The experts of a model, and what can be known to be wrong about a layout before a rank builds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from nemo_rpo.config.experts.expert_settings import ExpertSettings
from nemo_rpo.errors import ConfigError

if TYPE_CHECKING:
    from nemo_rpo.config.architecture import GPTArchitecture
    from nemo_rpo.config.schema import ModelConfig, RunConfig


@dataclass(frozen=True)
class Experts:
    """What the layers of experts are made of, under Megatron's names. A token's output is the sum of its
    ``moe_router_topk`` experts' outputs, weighted by the router's scores, and, where there is one, of the shared
    expert's, whose gate is a sigmoid.

    ``moe_layer_freq`` is 1 where every layer has experts, else 0 or 1 for each layer (:func:`layer_pattern`).
    """

    num_moe_experts: int
    moe_ffn_hidden_size: int
    moe_router_topk: int
    moe_layer_freq: int | tuple[int, ...] = 1
    moe_router_score_function: str = ExpertSettings.moe_router_score_function
    moe_router_pre_softmax: bool = ExpertSettings.moe_router_pre_softmax
    moe_router_enable_expert_bias: bool = ExpertSettings.moe_router_enable_expert_bias
    moe_router_num_groups: int | None = None
    moe_router_group_topk: int | None = None
    moe_router_topk_scaling_factor: float | None = None
    moe_shared_expert_intermediate_size: int | None = None
    moe_shared_expert_gate: bool = ExpertSettings.moe_shared_expert_gate

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experts:
        """From the plain values that JSON keeps."""
        freq = values.get("moe_layer_freq", 1)
        return cls(**{**values, "moe_layer_freq": tuple(freq) if isinstance(freq, list) else freq})

    def in_layer(self, layer: int) -> bool:
        """Whether ``layer``, from 0, has experts."""
        return self.moe_layer_freq == 1 or bool(self.moe_layer_freq[layer])

    def layers(self, num_layers: int) -> int:
        """How many of ``num_layers`` have experts."""
        return sum(map(self.in_layer, range(num_layers)))


def layer_pattern(freq: int | Sequence[int], num_layers: int) -> int | tuple[int, ...]:
    """``moe_layer_freq`` in the one way that :class:`Experts` writes it.

    Raises :class:`ConfigError` for another number of layers than there are.

    >>> layer_pattern(2, 4), layer_pattern([1, 1], 2)
    ((1, 0, 1, 0), 1)
    """
    pattern = [int(layer % freq == 0) for layer in range(num_layers)] if isinstance(freq, int) else list(freq)
    if len(pattern) != num_layers or not any(pattern):
        raise ConfigError(
            f"model.moe_layer_freq={freq} must have a 1 in it, and {num_layers} entries, as many as the model's layers"
        )
    return 1 if all(pattern) else tuple(pattern)


def experts_from_yaml(model: ModelConfig, ffn_hidden_size: int) -> Experts | None:
    """The experts that ``model.*`` describes. Raises :class:`ConfigError` for settings that do not fit each other."""
    if model.num_moe_experts is None:
        return None
    named = {spec.name: getattr(model, spec.name) for spec in fields(Experts)}
    named["moe_ffn_hidden_size"] = model.moe_ffn_hidden_size or ffn_hidden_size
    named["moe_layer_freq"] = layer_pattern(model.moe_layer_freq, model.num_layers)
    experts = Experts(**named)
    check_router(experts, "model.")
    return experts


def check_router(experts: Experts, prefix: str = "") -> None:
    """Raises :class:`ConfigError` for a router that Megatron-Core cannot be told to be; ``prefix`` before its names."""
    count, topk, groups = experts.num_moe_experts, experts.moe_router_topk, experts.moe_router_num_groups
    if topk > count:
        raise ConfigError(f"{prefix}moe_router_topk={topk} is more than {prefix}num_moe_experts={count}")
    if topk == 1 and experts.moe_router_score_function == "softmax" and not experts.moe_router_pre_softmax:
        raise ConfigError(
            f"{prefix}moe_router_topk=1 needs {prefix}moe_router_pre_softmax=true: every score would be 1"
        )
    if experts.moe_router_enable_expert_bias and experts.moe_router_score_function != "sigmoid":
        raise ConfigError(f"{prefix}moe_router_enable_expert_bias=true needs {prefix}moe_router_score_function=sigmoid")
    if (groups is None) != (experts.moe_router_group_topk is None):
        raise ConfigError(f"{prefix}moe_router_num_groups and {prefix}moe_router_group_topk need each other")
    if groups is not None and (count % groups or topk % experts.moe_router_group_topk):
        raise ConfigError(
            f"{prefix}moe_router_num_groups={groups} must divide {prefix}num_moe_experts={count}, and "
            f"{prefix}moe_router_group_topk={experts.moe_router_group_topk} must divide {prefix}moe_router_topk={topk}"
        )


def expert_tensor_size(model: ModelConfig) -> int:
    """Ranks that split each expert."""
    return model.expert_tensor_parallel_size or model.tensor_model_parallel_size


def expert_ranks(model: ModelConfig) -> int:
    """Ranks that hold all experts together, a multiple of which there has to be; 1 without expert parallelism."""
    if model.expert_model_parallel_size == 1:
        return 1
    return expert_tensor_size(model) * model.expert_model_parallel_size * model.pipeline_model_parallel_size


def check_expert_layout(cfg: RunConfig, architecture: GPTArchitecture, training: bool = True) -> None:
    """Raises :class:`ConfigError` where the run's layout, precision or router losses do not go with the experts of
    ``architecture``, or with its having none.
    """
    model, experts = cfg.model, architecture.experts
    if experts is None:
        for name in ("expert_model_parallel_size", "moe_aux_loss_coeff", "moe_z_loss_coeff"):
            if (value := getattr(model, name)) != getattr(ExpertSettings, name):
                raise ConfigError(f"model.{name}={value} needs a mixture of experts, and the model has none: remove it")
        return
    tensor, parallel = expert_tensor_size(model), model.expert_model_parallel_size
    # Megatron-Core refuses it in training alone: each tensor rank would send every token to the experts.
    if training and model.tensor_model_parallel_size > 1 and not model.sequence_parallel:
        raise ConfigError(
            f"model.tensor_model_parallel_size={model.tensor_model_parallel_size} with a mixture of experts needs "
            "model.sequence_parallel=true"
        )
    if experts.num_moe_experts % parallel:
        raise ConfigError(
            f"model.expert_model_parallel_size={parallel} does not divide the model's "
            f"num_moe_experts={experts.num_moe_experts}; choose a divisor of it"
        )
    shared = experts.moe_shared_expert_intermediate_size or 0
    for key, ranks, name, size in (
        ("expert_tensor_parallel_size", tensor, "moe_ffn_hidden_size", experts.moe_ffn_hidden_size),
        ("tensor_model_parallel_size", model.tensor_model_parallel_size, "moe_shared_expert_intermediate_size", shared),
    ):
        if size % ranks:
            raise ConfigError(f"model.{key}={ranks} does not divide the model's {name}={size}; choose a divisor of it")
    if parallel == 1 and tensor != model.tensor_model_parallel_size:
        raise ConfigError(
            f"model.expert_tensor_parallel_size={tensor} is not model.tensor_model_parallel_size="
            f"{model.tensor_model_parallel_size}: that needs model.expert_model_parallel_size above 1"
        )
    if parallel > 1 and tensor > 1 and model.moe_token_dispatcher_type == "alltoall":
        _not_on_a_cpu(
            cfg,
            f"model.expert_tensor_parallel_size={tensor} with model.moe_token_dispatcher_type=alltoall",
            "set the latter to allgather, or the former to 1",
        )
    _check_numbers(cfg, architecture)


def check_fresh_experts(cfg: RunConfig) -> None:
    """Raises :class:`ConfigError` where ranks would begin with the same random experts."""
    if cfg.model.expert_model_parallel_size > 1:
        _not_on_a_cpu(
            cfg,
            f"model.expert_model_parallel_size={cfg.model.expert_model_parallel_size} with fresh weights",
            "every rank would draw the same experts: start from a checkpoint",
        )


def _not_on_a_cpu(cfg: RunConfig, what: str, advice: str) -> None:
    if cfg.trainer.accelerator == "cpu":
        raise ConfigError(f"{what} needs trainer.accelerator=gpu: {advice}")


def _check_numbers(cfg: RunConfig, architecture: GPTArchitecture) -> None:
    """What the numbers of a step would suffer from, and what has no format for experts."""
    model = cfg.model
    precisions = [name for name in model.rpo.precisions() if name != "bf16"]
    if precisions:
        raise ConfigError(
            f"model.rpo.logprob_precision={precisions[0]} does not go with a mixture of experts, whose experts get any "
            "number of tokens: set it to bf16"
        )
    if model.moe_router_bias_update_rate:
        raise ConfigError(
            f"model.moe_router_bias_update_rate={model.moe_router_bias_update_rate:g} would route policy and reference "
            "by different biases: set it to 0"
        )
    if architecture.bias:
        raise ConfigError("model.bias=true does not go with a mixture of experts: set it to false, or qkv_bias=true")
    if cfg.exp_manager.checkpoint_callback_params.save_nemo_on_train_end:
        raise ConfigError(
            "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=true: a .nemo has no mixture of experts; "
            "set save_hf_on_train_end=true instead"
        )
