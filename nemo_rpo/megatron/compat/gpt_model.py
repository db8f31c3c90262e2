"""GPTModel: its output layer becomes ours, and its forward is written out again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_rpo.errors import ReleaseError
from nemo_rpo.megatron.compat.places import reaches

_GPT = "megatron.core.models.gpt.gpt_model:GPTModel"
_ROTARY = "megatron.core.models.common.embeddings.rotary_pos_embedding:RotaryEmbedding"
_BLOCK = "megatron.core.transformer.transformer_block:TransformerBlock"


@reaches(
    f"{_GPT}[output_layer, ColumnParallelLinear, setup_embeddings_and_output_layer]",
    "megatron.core.tensor_parallel:ColumnParallelLinear.forward(input_, weight, runtime_gather_output)",
    "megatron.core.tensor_parallel:ColumnParallelLinear[gradient_accumulation_fusion, sequence_parallel, tp_group]",
)
def become(layer: torch.nn.Module, kind: type[torch.nn.Module]) -> None:
    """Turns the output layer that GPTModel made into one of ``kind``, a subclass; it stays the same object.

    Reason: GPTModel has no argument for the class of its output layer, and once it is built its weight is tied to the
    embedding, marked for the embedding's all-reduce and known to hooks. A new layer would have to repeat all of that.
    Raises :class:`ReleaseError` where the layer is of another class than ``kind`` extends.
    """
    if type(layer) not in kind.__bases__:
        raise ReleaseError(
            f"this release of megatron-core makes GPTModel's output layer a {type(layer).__name__}, which "
            f"{kind.__name__} does not extend: install a supported one"
        )
    layer.__class__ = kind


@reaches(
    f"{_GPT}[embedding, decoder, rotary_pos_emb, position_embedding_type]",
    f"{_GPT}[pre_process, post_process, shared_embedding_or_output_weight]",
    f"{_BLOCK}.forward(hidden_states, attention_mask, rotary_pos_emb, packed_seq_params)",
    f"{_ROTARY}.forward(max_seq_len, packed_seq)",
    f"{_ROTARY}.get_rotary_seq_len(inference_context, transformer, transformer_input, transformer_config)",
    "megatron.core.packed_seq_params:PackedSeqParams(qkv_format, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q)",
)
def decoder_output(
    model: Any, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None, packed: Any, offset: int = 0
) -> Tensor:
    """The hidden states ``[s, b, h]`` of GPTModel's decoder for int64 ``[b, s]``; on the last stage after its norm.

    ``packed`` is a ``PackedSeqParams`` (Transformer Engine's packs), another object that the layers' attention
    understands (of rows whose ``position_ids`` need not be 0, 1, 2, …), or None. ``offset``: positions before the first
    of ``input_ids``, which the layers' attention remembers.

    Reason: GPTModel's forward ends in logits or a loss. It cannot hand tokens to its output layer before 0.18
    (``output_processor``), and rotates every row by positions that count from 0, where branches of one prompt go on
    from the prompt's. Written on the model's parts, which are the same in all supported releases.
    """
    hidden = model.embedding(input_ids=input_ids, position_ids=position_ids) if model.pre_process else None
    return model.decoder(
        hidden_states=hidden,
        attention_mask=attention_mask,
        rotary_pos_emb=_rotary_angles(model, hidden, position_ids, packed, offset),
        packed_seq_params=packed,
    )


def _rotary_angles(
    model: Any, hidden: Tensor | None, position_ids: Tensor, packed: Any, offset: int = 0
) -> Tensor | None:
    """The angles ``[s, 1, 1, d]`` of a row's positions; None where positions are embedded. For Transformer Engine's
    packs those of the longest sequence, along which it counts by itself.
    """
    from megatron.core.packed_seq_params import PackedSeqParams

    if model.position_embedding_type != "rope":
        return None
    if isinstance(packed, PackedSeqParams):
        return model.rotary_pos_emb(packed.max_seqlen_q, packed_seq=True)
    length = model.rotary_pos_emb.get_rotary_seq_len(None, model.decoder, hidden, model.config)
    if packed is None:
        return model.rotary_pos_emb(offset + length)[offset:]
    # All angles, not this context-parallel rank's: it has other positions of a pack than of a row.
    return model.rotary_pos_emb(length, packed_seq=True).index_select(0, position_ids[0])
