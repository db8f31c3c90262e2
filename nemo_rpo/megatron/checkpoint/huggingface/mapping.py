"""Which rows of which Hugging Face tensor make up each tensor of Megatron-Core's GPTModel.

A Megatron tensor is named by its *sharded key*, the name it has in a distributed checkpoint (``ShardedTensor.key``):
layers are an axis, not a part of the name, and the local and the Transformer Engine layer spec share the keys. (Where
layers of experts alternate with others Megatron numbers them in the name; :mod:`sharding` takes the number out.) Every
such tensor is a stack of row runs of Hugging Face tensors, columns unchanged:

* ``linear_qkv`` interleaves by query group: the group's n/g query heads, its key head, its value head, d rows each;
* ``linear_fc1`` is all gate rows, then all up rows;
* word embeddings and the output layer are followed by the rows that pad the vocabulary, which are in no run;
* all else is one run, the tensor itself.

Both sides rotate halves of a head, not interleaved pairs, so its rows keep their order. The same runs, read one way,
import; read the other way, they export.

Shapes: n query heads, g query groups, d head size, h hidden size, f MLP size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.megatron.checkpoint.huggingface.expert_mapping import expert_tensors
from nemo_rpo.megatron.checkpoint.huggingface.tensors import EMBEDDING, OUTPUT, MegatronTensor, RowRun

_whole = MegatronTensor.whole


def megatron_tensors(architecture: GPTArchitecture) -> list[MegatronTensor]:
    """Every tensor of the model, from the embeddings to the output layer (absent where it is tied to them)."""
    a = architecture
    whole = [
        _whole(EMBEDDING, None, "model.embed_tokens.weight", a.vocab_size, a.hidden_size),
        *(tensor for layer in range(a.num_layers) for tensor in _layer(a, layer)),
        _whole("decoder.final_layernorm.weight", None, "model.norm.weight", a.hidden_size, None),
    ]
    if not a.share_embeddings_and_output_weights:
        whole.append(_whole(OUTPUT, None, "lm_head.weight", a.vocab_size, a.hidden_size))
    return whole


def hf_shapes(tensors: Iterable[MegatronTensor]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every Hugging Face tensor that ``tensors`` are made of."""
    rows: dict[str, int] = {}
    columns: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        for run in tensor.runs:
            rows[run.name] = rows.get(run.name, 0) + run.length
            columns[run.name] = () if tensor.columns is None else (tensor.columns,)
    return {name: (rows[name], *columns[name]) for name in rows}


def _layer(a: GPTArchitecture, layer: int) -> Iterator[MegatronTensor]:
    hf, key = f"model.layers.{layer}.", "decoder.layers."
    h, f, d = a.hidden_size, a.ffn_hidden_size, a.kv_channels
    attention, mlp = f"{key}self_attention.", f"{key}mlp."
    yield _whole(f"{attention}linear_qkv.layer_norm_weight", layer, f"{hf}input_layernorm.weight", h, None)
    yield MegatronTensor(f"{attention}linear_qkv.weight", layer, _qkv_runs(a, hf, "weight"), h)
    if a.bias or a.qkv_bias:
        yield MegatronTensor(f"{attention}linear_qkv.bias", layer, _qkv_runs(a, hf, "bias"), None)
    if a.qk_layernorm:
        for which in ("q", "k"):
            yield _whole(f"{attention}{which}_layernorm.weight", layer, f"{hf}self_attn.{which}_norm.weight", d, None)
    yield _whole(f"{attention}linear_proj.weight", layer, f"{hf}self_attn.o_proj.weight", h, a.num_attention_heads * d)
    if a.has_experts(layer):
        yield from expert_tensors(a, layer)
        return
    yield _whole(f"{mlp}linear_fc1.layer_norm_weight", layer, f"{hf}post_attention_layernorm.weight", h, None)
    yield MegatronTensor(f"{mlp}linear_fc1.weight", layer, _gate_up_runs(f, hf, "weight"), h)
    yield _whole(f"{mlp}linear_fc2.weight", layer, f"{hf}mlp.down_proj.weight", h, f)
    if a.bias:
        yield _whole(f"{attention}linear_proj.bias", layer, f"{hf}self_attn.o_proj.bias", h, None)
        yield MegatronTensor(f"{mlp}linear_fc1.bias", layer, _gate_up_runs(f, hf, "bias"), None)
        yield _whole(f"{mlp}linear_fc2.bias", layer, f"{hf}mlp.down_proj.bias", h, None)


def _qkv_runs(a: GPTArchitecture, hf: str, kind: str) -> tuple[RowRun, ...]:
    d, q = a.kv_channels, a.num_attention_heads // a.num_query_groups * a.kv_channels
    return tuple(
        RowRun(f"{hf}self_attn.{name}_proj.{kind}", group * rows, rows)
        for group in range(a.num_query_groups)
        for name, rows in (("q", q), ("k", d), ("v", d))
    )


def _gate_up_runs(f: int, hf: str, kind: str) -> tuple[RowRun, ...]:
    return tuple(RowRun(f"{hf}mlp.{name}_proj.{kind}", 0, f) for name in ("gate", "up"))
