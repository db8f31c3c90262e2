"""Language models as judges, on OpenAI-compatible servers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_rpo.judging.judges.answer_reader import AnswerReader
from nemo_rpo.judging.judges.chat_prompts import ChatPrompt
from nemo_rpo.judging.judging_settings import ChatJudge
from nemo_rpo.judging.verdicts import Judge, Said, Shown, Verdict
from nemo_rpo.serving.servers import Refused, Server, Servers, WrongAnswer

_KEPT = 2000  # characters of an answer
_TOP = 20  # tokens whose probabilities are asked for
_SURE = 0.5  # share of the probability that the two words must have together


class LanguageModelJudge(Judge):
    """See :class:`nemo_rpo.judging.verdicts.Judge`.

    Args:
        settings: checked.
        log: file for the output of a server that is started here.
        where: what the settings are called in messages.
    """

    tried = True

    def __init__(self, settings: ChatJudge, log: Path, where: str) -> None:
        self.settings, self.name, self.orders, self.family = settings, settings.name, settings.orders, settings.family
        self.prompt = ChatPrompt(settings)
        self.servers = Servers(settings, where, log)
        self._read = AnswerReader(settings)

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        return {**self.settings.outcome(), "prompt": self.prompt.source}

    def judge(self, shown: Iterable[Shown]) -> Iterator[Verdict]:
        """See :class:`nemo_rpo.judging.verdicts.Judge`."""
        for item, answer, latency in self.servers.ask(shown, self._request, "verdicts"):
            if isinstance(answer, Refused):
                said, p, raw, error = None, None, "", answer.error
            else:
                (said, p, raw), error = answer, None
            yield Verdict(item.pair, self.name, item.shown_first, said, p, raw[:_KEPT], latency, time.time(), error)

    def close(self) -> None:
        """Ends the server that was started for this judge."""
        self.servers.close()

    def _request(self, server: Server, shown: Shown) -> tuple[Said | None, float | None, str]:
        settings = self.settings
        messages = [{"role": "user", "content": self.prompt.text(shown)}]
        if settings.system:
            messages.insert(0, {"role": "system", "content": settings.system})
        extra: dict[str, Any] = {}
        body: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        if settings.verdict == "choice":
            extra = {"structured_outputs": {"choice": list(settings.words.values())}}
        elif settings.verdict == "logprobs":
            body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP}
        answer = server.client.chat.completions.create(
            model=server.model,
            messages=messages,
            **body,
            extra_body={**extra, **settings.body(sample=settings.temperature > 0)},
        )
        if not answer.choices:
            raise WrongAnswer("an answer without a choice")
        choice = answer.choices[0]
        text = choice.message.content or ""
        if settings.verdict == "logprobs":
            return (*self._by_logprobs(choice), text)
        if settings.verdict == "choice":
            return self._read.word(text), None, text
        return self._read.last(text), None, text

    def _by_logprobs(self, choice: Any) -> tuple[Said | None, float | None]:
        """p = P(first) / (P(first) + P(second)) of the first token; None where neither word is likely."""
        if choice.logprobs is None or not choice.logprobs.content:
            raise WrongAnswer("no log-probs, which verdict: logprobs needs")
        chance = dict.fromkeys(self.settings.words, 0.0)
        for token in choice.logprobs.content[0].top_logprobs:
            if said := self._read.word(token.token):
                chance[said] += math.exp(token.logprob)
        both = chance["first"] + chance["second"]
        if both + chance["tie"] < _SURE:
            return None, None
        if chance["tie"] > max(chance["first"], chance["second"]) or not both:
            return "tie", 0.5
        p = chance["first"] / both
        return ("first" if p > 0.5 else "second" if p < 0.5 else "tie"), p
