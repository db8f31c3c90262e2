"""Greedy answers of a checkpoint, under the layout that it was trained in. Called on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from nemo_rpo.data.rows import Messages, Text
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.evaluation.measurements import engine

_ROWS = 16  # answered side by side


@dataclass
class Conversation:
    """What the user says, turn by turn, and what has been answered so far; ``number`` is its place in the file."""

    number: int
    turns: Sequence[str]
    said: list[str]

    def prompt(self) -> Text:
        """Plain text where there is one turn, else messages up to the turn that is to be answered."""
        if len(self.turns) == 1:
            return self.turns[0]
        messages: Messages = []
        for user, assistant in zip(self.turns, self.said, strict=False):
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*messages, {"role": "user", "content": self.turns[len(self.said)]}]


def answer(target: Target, questions: Sequence[Sequence[str]], max_new_tokens: int) -> list[list[str]]:
    """For each question, one answer to each of its turns, the same on every rank.

    A question of several turns, or any question under ``model.tokenizer.use_chat_template``, goes through the chat
    template; else the policy continues the question's text. Data-parallel ranks share the questions; under expert
    parallelism all of them answer all. Every token runs
    the whole prefix again (:mod:`nemo_rpo.megatron.generate`): for sets of hundreds of prompts, not for serving.

    Raises:
        RPOError: weights or a tokenizer that cannot be read, or a prompt that leaves no room for an answer.
    """
    target.cfg.model.context_parallel_size = 1  # no prefix is long enough to split: those ranks answer for themselves
    with engine(target.cfg):
        from megatron.core import parallel_state

        speaker = _Speaker.load(target, max_new_tokens)
        group = parallel_state.get_data_parallel_group()
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        if target.cfg.model.expert_model_parallel_size > 1:  # they exchange tokens, so that each answers all
            rank, ranks, group = 0, 1, None
        mine = [Conversation(i, questions[i], []) for i in range(rank, len(questions), ranks)]
        for turn in range(max(map(len, questions))):
            asked = [conversation for conversation in mine if turn < len(conversation.turns)]
            for start in range(0, len(asked), _ROWS):
                speaker.answer(asked[start : start + _ROWS])
        own = {c.number: c.said for c in mine}
        everyones: list = [own] * ranks
        if group is not None:
            dist.all_gather_object(everyones, own, group=group)
    found = {number: said for theirs in everyones for number, said in theirs.items()}
    return [found[i] for i in range(len(questions))]


@dataclass
class _Speaker:
    """A policy and its tokenizer."""

    chunks: list[torch.nn.Module]
    tokenizer: PreferenceTokenizer
    vocab_size: int
    room: int
    max_new_tokens: int

    @classmethod
    def load(cls, target: Target, max_new_tokens: int) -> _Speaker:
        from nemo_rpo.megatron.network.build import build_model_chunks
        from nemo_rpo.training import setup

        cfg = target.cfg
        base = setup.starting_point(cfg) if cfg.model.peft.lora else target.weights
        architecture = setup.stored_architecture(base)
        chunks = build_model_chunks(architecture, cfg)
        setup.weights_loader(base, architecture)(chunks)
        if cfg.model.peft.lora:
            setup.target_loader(target.weights, architecture, cfg)(chunks)
        room = architecture.max_position_embeddings
        return cls(
            chunks, PreferenceTokenizer.load(setup.tokenizer_spec(cfg)), architecture.vocab_size, room, max_new_tokens
        )

    def answer(self, conversations: Sequence[Conversation]) -> None:
        """Adds the next answer to each, side by side. Collective over the tensor and pipeline groups."""
        from nemo_rpo.megatron.generate import greedy

        prompts = [self._ids(conversation) for conversation in conversations]
        # An empty response tells how responses end: with the template's end of turn, or the tokenizer's own.
        _, ending = self.tokenizer.render(conversations[0].prompt(), "")
        special = set(self.tokenizer.tokenizer.all_special_ids)
        stop = next((int(i) for i in ending if int(i) in special), self.tokenizer.eos_id)
        for conversation, new in zip(
            conversations, greedy(self.chunks, prompts, self.max_new_tokens, stop, self.vocab_size), strict=True
        ):
            kept = new[:-1] if new and new[-1] == stop else new
            conversation.said.append(self.tokenizer.tokenizer.decode(kept, skip_special_tokens=True).strip())

    def _ids(self, conversation: Conversation) -> list[int]:
        ids = self.tokenizer.render(conversation.prompt(), "")[0].tolist()
        if len(ids) + self.max_new_tokens > self.room:
            raise DataError(
                f"prompt {conversation.number + 1} has {len(ids)} tokens, which leaves no {self.max_new_tokens} of the "
                f"model's {self.room} for an answer: lower --max-new-tokens, or leave that prompt out"
            )
        return ids
