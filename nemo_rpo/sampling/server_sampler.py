"""Samples from OpenAI-compatible servers: one request a sample, each with its own seed."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_rpo.data.rows import Messages
from nemo_rpo.errors import ConfigError, ServerError
from nemo_rpo.sampling.asks import FAILED, LENGTH, STOP, Ask, Response
from nemo_rpo.sampling.canary import Reference, check_weights
from nemo_rpo.sampling.sampling_settings import SampleSettings
from nemo_rpo.serving.servers import Refused, Server, Servers, WrongAnswer, ask_once

_EMPTY = "an empty response"


class ServerSampler:
    """A :class:`nemo_rpo.sampling.asks.Sampler`. Use as a context: it ends the server that it has started.

    Args:
        settings: where the server is and what is asked.
        log: file for the output of a server that is started here.
        reference: tells what log-probs the weights give, for the canary; None leaves it out.
        where: what the settings are called in messages.
    """

    def __init__(
        self, settings: SampleSettings, log: Path, reference: Reference | None = None, where: str = "sample"
    ) -> None:
        settings.check(where)
        self.settings, self.reference, self.where = settings, reference, where
        self.servers = Servers(settings, where, log)

    def __enter__(self) -> ServerSampler:
        return self

    def __exit__(self, *error: object) -> None:
        self.servers.close()

    def use(self, policy: Path) -> None:
        """Samples come from these weights from now on: a server of ours is started anew, others are told by ``reload``
        or are taken at their word. Then the canary sings.

        Raises:
            ServerError: the server does not come up, or serves other weights.
        """
        if self.settings.reload:
            words = [word.replace("{model}", str(policy)) for word in shlex.split(self.settings.reload)]
            try:
                done = subprocess.run(words, capture_output=True, text=True)
            except OSError as exc:
                raise ConfigError(f"{self.where}.reload cannot be run ({words[0]}: {exc.strerror})") from exc
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["without a word"]
                raise ServerError(f"{self.where}.reload ended with status {done.returncode} ({said[0]})")
        self.servers.serve(str(policy))
        if self.reference is not None and self.settings.canary:
            for server in self.servers.connected():
                check_weights(server, policy, self.reference, self.settings)

    def sample(self, asks: Iterable[Ask]) -> Iterator[Response]:
        """See :class:`nemo_rpo.sampling.asks.Sampler`."""
        asks = list(asks)
        if asks and self.settings.is_transformers and self.settings.urls:
            self._settle(asks[0])
        for ask, answer, _ in self.servers.ask(asks, self._request, "samples"):
            if isinstance(answer, Refused):
                answer = Response(ask.prompt, ask.index, ask.seed, "", None, FAILED, error=answer.error)
            yield answer

    def _settle(self, ask: Ask) -> None:
        """Waits for what the servers still write for a killed run.

        ``transformers serve`` has one random generator: a request seeds it as it arrives, and the one before would go
        on drawing from it. It answers one after the other, so that any answer to us comes after those.
        """
        for server in self.servers.connected():
            ask_once(server, lambda server, ask: self._request(server, ask, most=1), ask, self.settings.retries)

    def _request(self, server: Server, ask: Ask, most: int | None = None) -> Response:
        settings, text = self.settings, ask.text
        body: dict[str, Any] = {
            "model": server.model,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": most or settings.max_tokens,
            "seed": ask.seed,
            "extra_body": settings.body(),
        }
        if settings.stop:
            body["stop"] = settings.stop
        chat = not isinstance(text, str) or settings.endpoint == "chat"
        logprobs = settings.logprobs and not settings.is_transformers
        if chat:
            if logprobs:
                body["logprobs"] = True
            answer = server.client.chat.completions.create(messages=_messages(text), **body)
        else:
            if logprobs:
                body["logprobs"] = 1
            answer = server.client.completions.create(prompt=text, **body)
        return _response(ask, answer, chat)


def _messages(text: str | Messages) -> Messages:
    return [{"role": "user", "content": text}] if isinstance(text, str) else text


def _response(ask: Ask, answer: Any, chat: bool) -> Response:
    if not answer.choices:
        raise WrongAnswer("an answer without a choice")
    choice = answer.choices[0]
    text = choice.message.content if chat else choice.text
    if text is None and chat:
        text = ""
    if not isinstance(text, str):
        raise WrongAnswer("an answer without a text")
    finish = {"stop": STOP, "length": LENGTH}.get(choice.finish_reason, FAILED)
    error = None if finish != FAILED else f"it ended by '{choice.finish_reason}'"
    if not text.strip():
        finish, error = FAILED, _EMPTY
    tokens = answer.usage.completion_tokens if answer.usage else None
    return Response(ask.prompt, ask.index, ask.seed, text, tokens, finish, _logprob(choice, chat), error)


def _logprob(choice: Any, chat: bool) -> float | None:
    said = getattr(choice, "logprobs", None)
    if said is None:
        return None
    values = [token.logprob for token in said.content or ()] if chat else list(said.token_logprobs or ())
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None
