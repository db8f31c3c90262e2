"""Greedy answers of a checkpoint, under the layout that it was trained in. Called on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from nemo_rpo.data.rows import Messages, Text
from nemo_rpo.data.tokenizer import PreferenceTokenizer, TokenizerSpec
from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.evaluation.measure import engine

_ROWS = 16  # answered side by side


def answer(target: Target, questions: Sequence[Sequence[str]], max_new_tokens: int) -> list[list[str]]:
    """For each question, one answer to each of its turns, the same on every rank.

    A question of several turns, or any question under ``model.tokenizer.use_chat_template``, goes through the chat
    template; else the policy continues the question's text. Data-parallel ranks share the questions. Every token runs
    the whole prefix again (:mod:`nemo_rpo.megatron.generate`): for sets of hundreds of prompts, not for serving.

    Raises:
        RPOError: weights or a tokenizer that cannot be read, or a prompt that leaves no room for an answer.
    """
    cfg = target.cfg
    with engine(cfg) as _:
        from megatron.core import parallel_state

        from nemo_rpo.megatron.build import build_model_chunks
        from nemo_rpo.megatron.generate import greedy
        from nemo_rpo.training import setup

        tokenizer = PreferenceTokenizer.load(
            TokenizerSpec(setup.tokenizer_folder(cfg), cfg.model.tokenizer.use_chat_template)
        )
        architecture = setup.stored_architecture(target.weights)
        chunks = build_model_chunks(architecture, cfg)
        setup.weights_loader(target.weights, architecture)(chunks)
        room = architecture.max_position_embeddings

        def complete(prompts: list[list[int]], stop: int | None) -> list[list[int]]:
            return greedy(chunks, prompts, max_new_tokens, stop, architecture.vocab_size)

        group = parallel_state.get_data_parallel_group()
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        mine = list(range(rank, len(questions), ranks))
        answers: dict[int, list[str]] = {i: [] for i in mine}
        for turn in range(max(map(len, questions))):
            asked = [i for i in mine if turn < len(questions[i])]
            for start in range(0, len(asked), _ROWS):
                some = asked[start : start + _ROWS]
                prompts = [_prompt(tokenizer, questions[i], answers[i]) for i in some]
                for i, (ids, _) in zip(some, prompts, strict=True):
                    if len(ids) + max_new_tokens > room:
                        raise DataError(
                            f"prompt {i + 1} has {len(ids)} tokens, which leaves no {max_new_tokens} of the model's "
                            f"{room} for an answer: lower --max-new-tokens, or leave that prompt out"
                        )
                stop = prompts[0][1]
                for i, new in zip(some, complete([ids for ids, _ in prompts], stop), strict=True):
                    kept = new[:-1] if new and new[-1] == stop else new
                    answers[i].append(tokenizer.tokenizer.decode(kept, skip_special_tokens=True).strip())
        everyones: list = [None] * ranks
        dist.all_gather_object(everyones, answers, group=group)
        found = {i: said for theirs in everyones for i, said in theirs.items()}
        return [found[i] for i in range(len(questions))]


def _prompt(tokenizer: PreferenceTokenizer, turns: Sequence[str], said: Sequence[str]) -> tuple[list[int], int | None]:
    """Ids of the conversation so far, up to where the policy is to speak, and the id that ends what it says."""
    prompt: Text = turns[0]
    if len(turns) > 1:
        conversation: Messages = []
        for user, assistant in zip(turns, said, strict=False):
            conversation += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        prompt = [*conversation, {"role": "user", "content": turns[len(said)]}]
    # What stands before a response, and how it ends, is told by an empty one.
    head, response = tokenizer.render(prompt, "")
    special = set(tokenizer.tokenizer.all_special_ids)
    stop = next((int(i) for i in response if int(i) in special), tokenizer.eos_id)
    return head.tolist(), stop
