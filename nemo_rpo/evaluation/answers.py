"""Answers of a checkpoint to benchmarks, under the layout that it was trained in. Called on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_rpo.data.rows import Messages, Text
from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.evaluation.measurements import engine
from nemo_rpo.evaluation.replicas import Replicas
from nemo_rpo.evaluation.samples import seed_of
from nemo_rpo.evaluation.speaker import Speaker, without_split_positions
from nemo_rpo.evaluation.speaking_settings import SpeakingSettings


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


def answer(
    target: Target, questions: Sequence[Sequence[str]], settings: SpeakingSettings, seed: int = 0
) -> list[list[str]]:
    """For each question, one answer to each of its turns, the same on every rank and under any layout.

    A question of several turns, or any question under ``model.tokenizer.use_chat_template``, goes through the chat
    template; else the policy continues the question's text. Data-parallel ranks share the questions; under expert
    parallelism all of them answer all. What is drawn depends on ``seed``, the question's number and the turn alone.

    Raises:
        RPOError: weights or a tokenizer that cannot be read, or a prompt that leaves no room for an answer.
    """
    without_split_positions(target)
    with engine(target.cfg):
        speaker, replicas = Speaker.load(target, settings), Replicas.here()
        mine = [Conversation(i, questions[i], []) for i in replicas.share(len(questions))]
        for turn in range(max(map(len, questions))):
            asked = [conversation for conversation in mine if turn < len(conversation.turns)]
            if asked:
                _answer(speaker, asked, [seed_of(seed, str(of.number), turn) for of in asked])
        found = replicas.together({c.number: c.said for c in mine})
    return [found[i] for i in range(len(questions))]


def _answer(speaker: Speaker, conversations: Sequence[Conversation], seeds: Sequence[int]) -> None:
    """Adds the next answer to each. Collective over the tensor and pipeline groups."""
    prompts = [_ids(speaker, conversation) for conversation in conversations]
    stop = speaker.end_of(conversations[0].prompt())
    for place, answer in speaker.answers(prompts, stop, seeds):
        conversations[place].said.append(answer.text.strip())


def _ids(speaker: Speaker, conversation: Conversation) -> list[int]:
    ids = speaker.ids(conversation.prompt())
    if not speaker.has_room(ids):
        raise DataError(
            f"prompt {conversation.number + 1} has {len(ids)} tokens, which leaves no "
            f"{speaker.settings.max_new_tokens} of the model's {speaker.positions} for an answer: lower "
            "--max-new-tokens, or leave that prompt out"
        )
    return ids
