"""The tensors of NeMo's GPT as this package's mapping knows them: Megatron's own, one run each.

A tensor's name is that of NeMo's unsharded state dict without ``model.``, as the Transformer Engine layer spec has it:
``decoder.layers.3.mlp.linear_fc1.weight``. In a distributed checkpoint the layer is an axis of the sharded key.

Shapes: n query heads, g query groups, d head size, h hidden size, f MLP size, p positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.checkpoint.huggingface.mapping import EMBEDDING, OUTPUT, MegatronTensor, RowRun

LAYERS = "decoder.layers."
_NUMBERED = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def name_of(key: str, layer: int | None) -> str:
    """The name of the tensor with sharded ``key`` in ``layer``."""
    return key if layer is None else f"{LAYERS}{layer}.{key.removeprefix(LAYERS)}"


def key_of(name: str) -> tuple[str, int | None]:
    """The sharded key and the layer of the tensor ``name``."""
    found = _NUMBERED.fullmatch(name)
    return (name, None) if found is None else (LAYERS + found[2], int(found[1]))


def nemo_tensors(architecture: GPTArchitecture) -> list[MegatronTensor]:
    """Every tensor of the model, from the embeddings to the output layer (absent where it is tied to them).

    Raises :class:`ConfigError` for a mixture of experts.
    """
    a = architecture
    if a.experts is not None:
        raise ConfigError("a .nemo has no mixture of experts: export a Hugging Face folder instead")
    found = [_tensor(EMBEDDING, None, a.vocab_size, a.hidden_size)]
    if a.position_embedding_type == "learned_absolute":
        found.append(_tensor("embedding.position_embeddings.weight", None, a.max_position_embeddings, a.hidden_size))
    found += [tensor for layer in range(a.num_layers) for tensor in _layer(a, layer)]
    found += _norm(a, "decoder.final_layernorm.", None, a.hidden_size)
    if not a.share_embeddings_and_output_weights:
        found.append(_tensor(OUTPUT, None, a.vocab_size, a.hidden_size))
    return found


def _layer(a: GPTArchitecture, layer: int) -> Iterator[MegatronTensor]:
    attention, mlp = f"{LAYERS}self_attention.", f"{LAYERS}mlp."
    h, d, inner = a.hidden_size, a.kv_channels, a.num_attention_heads * a.kv_channels
    qkv = inner + 2 * a.num_query_groups * d
    up = a.ffn_hidden_size * (2 if a.activation == "swiglu" else 1)
    yield from _norm(a, f"{attention}linear_qkv.layer_norm_", layer, h)
    yield _tensor(f"{attention}linear_qkv.weight", layer, qkv, h)
    if a.bias or a.qkv_bias:
        yield _tensor(f"{attention}linear_qkv.bias", layer, qkv)
    if a.qk_layernorm:
        for which in ("q", "k"):
            yield from _norm(a, f"{attention}{which}_layernorm.", layer, d)
    yield _tensor(f"{attention}linear_proj.weight", layer, h, inner)
    yield from _norm(a, f"{mlp}linear_fc1.layer_norm_", layer, h)
    yield _tensor(f"{mlp}linear_fc1.weight", layer, up, h)
    yield _tensor(f"{mlp}linear_fc2.weight", layer, h, a.ffn_hidden_size)
    if a.bias:
        yield _tensor(f"{attention}linear_proj.bias", layer, h)
        yield _tensor(f"{mlp}linear_fc1.bias", layer, up)
        yield _tensor(f"{mlp}linear_fc2.bias", layer, h)


def _norm(a: GPTArchitecture, prefix: str, layer: int | None, width: int) -> list[MegatronTensor]:
    kinds = ("weight", "bias") if a.normalization == "layernorm" else ("weight",)
    return [_tensor(prefix + kind, layer, width) for kind in kinds]


def _tensor(key: str, layer: int | None, rows: int, columns: int | None = None) -> MegatronTensor:
    return MegatronTensor(key, layer, (RowRun(name_of(key, layer), 0, rows),), columns)
