"""Megatron-Core's GPTModel, that returns log-probs (or hidden states, KL, rewards) of given tokens instead of logits.

The head is part of the model, so that whatever Megatron hangs on its layers (the wait for gathered weights, tied
embeddings of first and last pipeline stage, precision wrappers) finds it where it looks for it.

Shapes: b rows, s positions (s/T on a rank under sequence parallelism), h hidden size, V padded vocabulary, T
tensor-parallel ranks, n scored tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from nemo_rpo.megatron.batch.head_outputs import HeadOutputs, HeadRequest
from nemo_rpo.megatron.batch.responses import ResponseTokens
from nemo_rpo.megatron.batch.segments import Segments
from nemo_rpo.megatron.compat.gpt_model import become, decoder_output
from nemo_rpo.megatron.compat.main_grad import through_autograd
from nemo_rpo.megatron.logprobs.chunked import linear_logprobs
from nemo_rpo.megatron.logprobs.divergence import linear_kl
from nemo_rpo.megatron.logprobs.from_logits import token_logprobs
from nemo_rpo.megatron.logprobs.liger import liger_logprobs
from nemo_rpo.megatron.network.reward_head import RewardHead


class ScoringHead(ColumnParallelLinear):
    """The output layer: logits, or what is requested of given tokens instead.

    Made of an output layer by :meth:`take_over`.
    """

    vocab_size: int
    logprob_head: str

    @classmethod
    def take_over(cls, layer: ColumnParallelLinear, vocab_size: int, logprob_head: str) -> None:
        """Turns ``layer`` into a ScoringHead. It stays the same object: GPTModel has tied its weight and marked it.

        ``logprob_head`` says by what log-probs are made: ``logits``, all of them, which Megatron's cross entropy reads;
        ``chunked``, :func:`linear_logprobs`; ``liger``, :func:`liger_logprobs`.
        """
        become(layer, cls)
        layer.vocab_size, layer.logprob_head = vocab_size, logprob_head

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        responses: ResponseTokens | None = None,
        request: HeadRequest | None = None,
    ) -> tuple[Tensor | HeadOutputs, Tensor | None]:
        """``input_ [s, b, h]`` -> the head outputs of ``responses``; without them logits ``[s, b, V/T]``.

        Collectives over the tensor-parallel group: those of :func:`linear_logprobs` and :func:`linear_kl`, and, for the
        hidden states, an all-gather forward and a reduce-scatter backward of ``[s, b, h]`` under sequence parallelism,
        else an all-reduce backward of ``[n, h]``.
        """
        if responses is None:
            return super().forward(input_, weight, runtime_gather_output)
        request, found = request or HeadRequest(), HeadOutputs()
        weight = self.weight if weight is None else weight
        through_logits = self.logprob_head == "logits"
        # Megatron's cross entropy refuses an empty batch, which a context-parallel rank may have.
        if request.logps and through_logits and len(responses.index):
            logits, _ = super().forward(input_, weight, runtime_gather_output)
            scored = logits.flatten(0, 1).index_select(0, responses.index)
            found["logps"] = token_logprobs(scored, responses.token, self.vocab_size)
            request = replace(request, logps=False)
        if self.logprob_head == "liger" or (through_logits and not self.gradient_accumulation_fusion):
            # Here autograd delivers the head's gradient; the view hides Megatron's flag, so DDP still adds it to
            # main_grad.
            weight = through_autograd(weight)
        return HeadOutputs(found | self._without_logits(input_, weight, responses, request)), None

    def _without_logits(
        self, input_: Tensor, weight: Tensor, responses: ResponseTokens, request: HeadRequest
    ) -> HeadOutputs:
        """The requested outputs, computed without logits."""
        found = HeadOutputs()
        if not (request.logps or request.hidden or request.kl is not None or request.kl_from is not None):
            return found
        hidden = self._scored(input_, responses)
        group = self.tp_group if self.tp_group.size() > 1 else None
        if request.logps:
            logprobs = liger_logprobs if self.logprob_head == "liger" else linear_logprobs
            found["logps"] = logprobs(hidden, weight, responses.token, self.vocab_size, group)
        if request.kl is not None:
            found["kl"] = linear_kl(hidden, weight, *request.kl, self.vocab_size, group)
        if request.kl_from is not None:
            found["kl_from"] = linear_kl(*request.kl_from, hidden, weight, self.vocab_size, group)
        if request.hidden:
            found["hidden"] = hidden
        return found

    def _scored(self, input_: Tensor, responses: ResponseTokens) -> Tensor:
        """The hidden states ``[n, h]``; each tensor-parallel rank computes a share of their gradient."""
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(input_, group=self.tp_group)
            return hidden.flatten(0, 1).index_select(0, responses.index)
        hidden = input_.flatten(0, 1).index_select(0, responses.index)
        return copy_to_tensor_model_parallel_region(hidden, group=self.tp_group)


class PreferenceGPT(GPTModel):
    """GPTModel whose forward takes what a preference step knows of its batch.

    Args, besides GPTModel's:
        real_vocab_size: tokens of the vocabulary without its padding.
        logprob_head: ``model.rpo.logprob_head``.
        reward_head: what the last stage has beside the output layer; dropped on others. Log-probs then may be asked for
            or not.
        transformer_engine: whether the layers are Transformer Engine's, whose packed attention has a format of its own.
    """

    def __init__(
        self,
        *args: Any,
        real_vocab_size: int,
        logprob_head: str,
        transformer_engine: bool,
        reward_head: RewardHead | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.transformer_engine = transformer_engine
        if self.post_process:
            ScoringHead.take_over(self.output_layer, real_vocab_size, logprob_head)
            if reward_head is not None:
                self.reward_head = reward_head

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        responses: ResponseTokens | None = None,
        segments: Segments | None = None,
        request: HeadRequest | None = None,
    ) -> Tensor | HeadOutputs:
        """The stage's output: hidden states ``[s, b, h]``; on the last stage the head outputs of ``responses``, or
        vocabulary-parallel logits ``[b, s, V/T]`` without them.

        ``input_ids`` and ``position_ids`` are int64 ``[b, s]``; ``segments`` say what a row (b = 1) is packed of.
        """
        packed = segments
        if segments is not None and self.transformer_engine:
            packed = segments.packed_seq_params(input_ids.device)
        hidden = decoder_output(self, input_ids, position_ids, attention_mask, packed)
        if not self.post_process:
            return hidden
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        found, _ = self.output_layer(hidden, weight=weight, responses=responses, request=request)
        if request is not None and request.reward:
            found |= self.reward_head(hidden, responses, self.config.sequence_parallel, self.output_layer.tp_group)
        return found.transpose(0, 1).contiguous() if responses is None else found

    @property
    def head_weight(self) -> Tensor:
        """``[V/T, h]``, on the last stage."""
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
