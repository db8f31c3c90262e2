"""Training rows for a judge himself, from what is believed of the pairs that he was, or might have been, shown.

*Verdict rows*: his prompt with the two responses, in both orders; chosen is the word for the response that is believed
to be better, rejected the other one. Trained under the loss ``genrm`` this is the cross-entropy of his verdict,
normalised over the two words, against the belief q, which each row has as ``win_rate``.

*Rationale rows* (STaR-DPO): of the answers sampled from him to one prompt, those that end in the believed verdict are
chosen over those that do not; ``win_rate`` is q again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nemo_rpo.data.files.stage import read_table
from nemo_rpo.data.layouts.every import SYSTEM
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.judging.judges.answer_reader import AnswerReader
from nemo_rpo.judging.judges.chat_prompts import ChatPrompt
from nemo_rpo.judging.judging_settings import ChatJudge, GenerativeJudge
from nemo_rpo.judging.orders import shown
from nemo_rpo.judging.verdicts import FIRST, SECOND

WHOM = "posterior"  # the annotator of the rows
_NO_BELIEF, _EVEN, _UNSURE = "nothing is believed of the pair", "both are as likely", "the belief is not sure enough"
_ONE_KIND = "all its answers are right, or none is"


class Answer(Protocol):
    """A response of :mod:`nemo_rpo.sampling`, as far as it matters here: ``prompt`` is a key of :func:`prompt_rows`."""

    prompt: str
    text: str


class _Question(NamedTuple):
    """A pair in one order, as the judge sees it."""

    key: str
    text: str
    first_better: float | None


@dataclass
class Teaching:
    """A judge who is to be trained, and what is believed of some pairs.

    Args:
        judge: checked; ``prompt``, ``system``, ``words`` and ``pattern`` of it count.
        pairs: in any order.
        p_a: by pair, the probability that response a is better.
        least: leave out pairs whose likelier side has less than this.

    Attributes:
        left_out: by reason, how many pairs in one order.
    """

    judge: ChatJudge | GenerativeJudge
    pairs: Sequence[JudgedPair]
    p_a: Mapping[str, float]
    least: float = 0.5
    left_out: Counter[str] = field(default_factory=Counter)

    def prompt_rows(self) -> Iterator[dict[str, Any]]:
        """What to sample his answers to: ``prompt_id`` (the pair and who stands first) and messages."""
        for question in self._questions():
            messages = [{"role": SYSTEM, "content": self.judge.system}] if self.judge.system else []
            yield {"prompt_id": question.key, "prompt": [*messages, {"role": "user", "content": question.text}]}

    def verdict_rows(self) -> Iterator[dict[str, Any]]:
        """A row a pair and order.

        Raises:
            ConfigError: a judge who reasons before his verdict.
        """
        if self.judge.verdict == "parse":
            raise ConfigError(
                f"judge {self.judge.name} gives reasons before his verdict: set verdict to choice or logprobs, or "
                "train his reasons (--to rationales)"
            )
        for question, said, q in self._believed():
            other = SECOND if said == FIRST else FIRST
            yield self._row(question.key, question, self.judge.words[said], self.judge.words[other], q)

    def rationale_rows(self, answers: Iterable[Answer], most: int) -> Iterator[dict[str, Any]]:
        """At most ``most`` rows a pair and order, from answers whose verdict is read as the judge's own is; one that
        cannot be read, or says a tie, has not reached the verdict.

        Raises:
            ConfigError: a judge who gives no reasons. DataError: no answer is to a prompt of these pairs.
        """
        if self.judge.verdict != "parse":
            raise ConfigError(f"judge {self.judge.name} gives no reasons for his verdict: train it with --to verdicts")
        reader, by_prompt = AnswerReader(self.judge), {}
        for answer in answers:
            texts = by_prompt.setdefault(answer.prompt, {FIRST: [], SECOND: [], None: []})
            said = reader.last(answer.text)
            texts[said if said in texts else None].append(answer.text)
        met = 0
        for question, said, q in self._believed():
            if (texts := by_prompt.get(question.key)) is None:
                continue
            met += 1
            other = SECOND if said == FIRST else FIRST
            rows = list(zip(dict.fromkeys(texts[said]), dict.fromkeys(texts[other] + texts[None]), strict=False))
            self.left_out[_ONE_KIND] += not rows
            for i, (right, wrong) in enumerate(rows[:most]):
                yield self._row(f"{question.key}:{i}", question, right, wrong, q)
        if not met:
            raise DataError("none of the responses is to a prompt of these pairs: sample the rows of --to prompts")

    def _row(self, key: str, question: _Question, chosen: str, rejected: str, q: float) -> dict[str, Any]:
        given = {SYSTEM: self.judge.system} if self.judge.system else {}
        texts = {"prompt": question.text, "chosen": chosen, "rejected": rejected}
        return {"pair_id": key, **texts, "annotator": WHOM, "win_rate": q, **given}

    def _questions(self) -> Iterator[_Question]:
        prompt = ChatPrompt(self.judge)
        for item in shown(self.pairs, self.judge.name, "both", 0):
            p = self.p_a.get(item.pair)
            first = p if p is None or item.shown_first == "a" else 1 - p
            yield _Question(f"{item.pair}:{item.shown_first}", prompt.text(item), first)

    def _believed(self) -> Iterator[tuple[_Question, str, float]]:
        """Each question with the side that is believed to be better, and the probability of that."""
        for question in self._questions():
            p = question.first_better
            why = _NO_BELIEF if p is None else _EVEN if p == 0.5 else _UNSURE if max(p, 1 - p) < self.least else ""
            if why:
                self.left_out[why] += 1
            else:
                yield question, FIRST if p > 0.5 else SECOND, max(p, 1 - p)


def read_beliefs(path: Path, pairs: Sequence[JudgedPair]) -> dict[str, float]:
    """``p_a`` by pair of a ``believed.parquet``, or of the folder of ``nemo-rpo judge`` that holds it. What is gold is
    believed as far as the label model believes it.

    Raises:
        DataError: another file, or one of other pairs.
    """
    path = path / "believed.parquet" if path.is_dir() else path
    rows, _ = read_table(path)
    if rows and not {"pair_id", "p_a"} <= rows[0].keys():
        raise DataError(f"{path} has no columns pair_id and p_a: name the folder that nemo-rpo judge wrote")
    found = {row["pair_id"]: row["p_a"] for row in rows if row["p_a"] is not None}
    if not any(pair.pair_id in found for pair in pairs):
        raise DataError(f"{path} is of other pairs: give the files that were judged")
    return found


def judge_named(name: str | None, blocks: Sequence[Any], path: Path) -> ChatJudge | GenerativeJudge:
    """The language model among the judges of ``path`` that is to be trained: the one called ``name``, or the only one.

    Raises:
        ConfigError: there is none, or several and no name.
    """
    able = [block for block in blocks if isinstance(block, ChatJudge | GenerativeJudge)]
    found = [block for block in able if name in (None, block.name)]
    if not able:
        raise ConfigError(f"{path} has no language model to train: a judge of kind chat or generative")
    if len(found) != 1:
        names = ", ".join(block.name for block in able)
        raise ConfigError(f"name one of the language models in {path} with --judge: {names}")
    return found[0]
