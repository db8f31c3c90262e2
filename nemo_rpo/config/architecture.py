"""The shape of a GPT model, independent of where it came from (a YAML block, a Hugging Face ``config.json``, a
checkpoint).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from nemo_rpo.config.experts.expert_shape import Experts, experts_from_yaml
from nemo_rpo.config.schema import ModelConfig
from nemo_rpo.errors import ConfigError


@dataclass(frozen=True)
class GPTArchitecture:
    """What has to be known to build the model; sizes are global, before any tensor or pipeline split.

    ``rope_scaling`` holds Llama-3.1's frequency scaling (``factor``, ``low_freq_factor``, ``high_freq_factor``,
    ``original_max_position_embeddings``) or is empty. ``experts`` stand instead of the MLP of their layers, and where
    all layers have some ``ffn_hidden_size`` is theirs; None: there are none. The other defaults are those of
    ``model.*``.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    max_position_embeddings: int
    normalization: str = ModelConfig.normalization
    layernorm_epsilon: float = ModelConfig.layernorm_epsilon
    activation: str = ModelConfig.activation
    bias: bool = ModelConfig.bias
    qkv_bias: bool = ModelConfig.qkv_bias
    qk_layernorm: bool = ModelConfig.qk_layernorm
    position_embedding_type: str = ModelConfig.position_embedding_type
    rotary_base: float = ModelConfig.rotary_base
    rotary_percentage: float = ModelConfig.rotary_percentage
    rope_scaling: dict[str, float] = field(default_factory=dict)
    share_embeddings_and_output_weights: bool = ModelConfig.share_embeddings_and_output_weights
    init_method_std: float = ModelConfig.init_method_std
    experts: Experts | None = None

    def __post_init__(self) -> None:
        if self.experts is not None and self.experts.moe_layer_freq == 1:
            # No layer has the other width, and two files of one model may give it differently.
            object.__setattr__(self, "ffn_hidden_size", self.experts.moe_ffn_hidden_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``run.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTArchitecture:
        """The architecture that :meth:`to_dict` described."""
        experts = values.get("experts")
        return cls(**{**values, "experts": None if experts is None else Experts.from_dict(experts)})

    def differences(self, other: GPTArchitecture) -> Iterator[tuple[str, Any, Any]]:
        """Name and both values of each setting that differs in ``other``; of experts, where both have some, theirs."""
        for setting in fields(self):
            ours, theirs = getattr(self, setting.name), getattr(other, setting.name)
            if isinstance(ours, Experts) and isinstance(theirs, Experts):
                values = ((of.name, getattr(ours, of.name), getattr(theirs, of.name)) for of in fields(Experts))
                yield from (named for named in values if named[1] != named[2])
            elif ours != theirs:
                yield setting.name, ours, theirs

    def check_source(self, described: GPTArchitecture, config: str, source: str, ignored: Collection[str] = ()) -> None:
        """Raises :class:`ConfigError` if ``described``, read from the file ``config`` of this model's ``source``, is
        another architecture; names the first setting that differs and is not ``ignored``.
        """
        for name, ours, theirs in self.differences(described):
            if name not in ignored:
                raise ConfigError(
                    f"the source {config} has {name}={theirs}, the model {name}={ours}; "
                    f"give the {source} that this model came from"
                )

    def check_parallel(self, tensor: int, pipeline: int, virtual: int | None) -> None:
        """Raises :class:`ConfigError` for a size that ``tensor_model_parallel_size`` does not divide, or more stages
        than layers.
        """
        for name in ("num_attention_heads", "num_query_groups", *self._mlp_sizes(), "hidden_size"):
            if getattr(self, name) % tensor:
                raise ConfigError(
                    f"model.tensor_model_parallel_size={tensor} does not divide the model's "
                    f"{name}={getattr(self, name)}; choose a divisor of it"
                )
        stages = pipeline * (virtual or 1)
        if self.num_layers < stages:
            virtually = f" × virtual_pipeline_model_parallel_size={virtual}" if virtual else ""
            what = f"model.pipeline_model_parallel_size={pipeline}{virtually}"
            raise ConfigError(f"{what} makes {stages} stages of the model's num_layers={self.num_layers}; make fewer")

    def has_experts(self, layer: int) -> bool:
        """Whether ``layer``, from 0, has experts instead of one MLP."""
        return self.experts is not None and self.experts.in_layer(layer)

    def _mlp_sizes(self) -> list[str]:
        return [] if all(map(self.has_experts, range(self.num_layers))) else ["ffn_hidden_size"]

    def padded_vocab_size(self, divisible_by: int, tensor: int) -> int:
        """The vocabulary padded to a multiple of ``divisible_by``, the same for every tensor-parallel size so that
        checkpoints reshard.
        """
        padded = -(-self.vocab_size // divisible_by) * divisible_by
        if padded % tensor:
            raise ConfigError(
                f"model.make_vocab_size_divisible_by={divisible_by} pads the vocabulary to {padded}, which "
                f"tensor_model_parallel_size={tensor} does not divide"
            )
        return padded


def architecture_from_yaml(model: Any, vocab_size: int) -> GPTArchitecture:
    """The architecture that ``model.*`` describes, for training from freshly initialised weights.

    Raises :class:`ConfigError` for a missing size.
    """
    for name in ("num_layers", "hidden_size", "num_attention_heads"):
        if getattr(model, name) is None:
            raise ConfigError(
                f"model.{name} is not set; set it, or start from a checkpoint with "
                "pretrained_checkpoint.restore_from_path"
            )
    heads, ffn = model.num_attention_heads, model.ffn_hidden_size or 4 * model.hidden_size
    named = [spec.name for spec in fields(GPTArchitecture) if spec.default is not MISSING and spec.name != "experts"]
    return GPTArchitecture(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=model.num_query_groups or heads,
        kv_channels=model.kv_channels or model.hidden_size // heads,
        vocab_size=vocab_size,
        max_position_embeddings=model.max_position_embeddings or model.encoder_seq_length,
        experts=experts_from_yaml(model, ffn),
        **{name: getattr(model, name) for name in named},
    )
