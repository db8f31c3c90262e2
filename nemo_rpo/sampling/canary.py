r"""The canary: does a server serve the weights that it was given?

Four texts, in natural language, code, digits and another script, go to the server, which says the log-prob of each
token; a reference computes the same from the weights. Where their mean distance, nats a token, exceeds the tolerance,
the server serves something else: weights that were reloaded by halves (vLLM keeps the old head of a model with tied
embeddings), another checkpoint, another tokenizer.

A server that does not tell log-probs of a prompt (``transformers serve``) is compared by greedy continuations instead:
most of the four must be the same.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nemo_rpo.errors import ServerError
from nemo_rpo.sampling.sampling_settings import SampleSettings
from nemo_rpo.serving.servers import Refused, Server, WrongAnswer, ask_once

log = logging.getLogger(__name__)
TEXTS = (
    "Once upon a time there was a little girl who lived in a house by the sea. One day she",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "1, 2, 3, 5, 8, 13, 21, 34",
    "Il était une fois un roi qui avait trois filles ; la plus jeune",
)
_GREEDY_TOKENS = 16


class Reference(Protocol):
    """What is known of the weights themselves."""

    def logprobs(self, policy: Path, texts: tuple[str, ...]) -> list[list[float]]:
        """Log-prob of every token of each text but the first, given those before it, at temperature 1."""

    def greedy(self, policy: Path, texts: tuple[str, ...], tokens: int) -> list[str]:
        """The most likely continuation of each text, at most so many tokens of it."""


class HuggingFaceReference:
    """The weights read by transformers, on the CPU in float32: for models that fit its memory."""

    def logprobs(self, policy: Path, texts: tuple[str, ...]) -> list[list[float]]:
        """See :class:`Reference`."""
        import torch

        tokenizer, model = self._load(policy)
        found = []
        with torch.no_grad():
            for text in texts:
                ids = tokenizer(text, return_tensors="pt").input_ids
                logprobs = model(ids).logits.float().log_softmax(-1)[:, :-1]
                found.append(logprobs.gather(2, ids[:, 1:, None])[0, :, 0].tolist())
        return found

    def greedy(self, policy: Path, texts: tuple[str, ...], tokens: int) -> list[str]:
        """See :class:`Reference`."""
        tokenizer, model = self._load(policy)
        found = []
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt")
            ids = model.generate(
                inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=tokens, do_sample=False
            )
            found.append(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
        return found

    def _load(self, policy: Path) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
        return AutoTokenizer.from_pretrained(policy), model


def check_weights(server: Server, policy: Path, reference: Reference, settings: SampleSettings) -> None:
    """Returns if the server serves the weights in ``policy``, as far as four texts tell.

    Raises:
        ServerError: it does not.
    """
    served = None if settings.is_transformers else _prompt_logprobs(server, settings)
    if served is None:
        _check_greedy(server, policy, reference, settings)
        return
    known = reference.logprobs(policy, TEXTS)
    for theirs, ours in zip(served, known, strict=True):
        if len(theirs) != len(ours):
            raise ServerError(
                f"{server.url} does not serve {policy}: it has {len(theirs) + 1} tokens in a text that has "
                f"{len(ours) + 1} there, so its tokenizer is another one"
            )
    apart = [abs(a - b) for theirs, ours in zip(served, known, strict=True) for a, b in zip(theirs, ours, strict=True)]
    distance = sum(apart) / len(apart)
    if not distance <= settings.canary:
        raise ServerError(
            f"{server.url} does not serve {policy}: log-probs of four texts are {distance:.3g} nats a token apart "
            f"(canary: {settings.canary:g}); restart the server with these weights (reloading them in place may leave "
            "the old output layer where embeddings are tied)"
        )
    log.info("%s serves %s: log-probs of four texts are %.2g nats a token apart", server.url, policy, distance)


def _prompt_logprobs(server: Server, settings: SampleSettings) -> list[list[float]] | None:
    """As :meth:`Reference.logprobs`; None of a server that does not tell."""
    found = []
    for text in TEXTS:
        values = ask_once(server, partial(_echo, settings=settings), text, settings.retries)
        if isinstance(values, Refused) or not values or values[0] is not None:
            return None  # the first token of a prompt has no log-prob: what begins with one is no echo
        found.append([float("nan") if value is None else value for value in values[1:-1]])
    return found


def _echo(server: Server, text: str, settings: SampleSettings) -> list[float | None] | None:
    """Log-probs of the prompt's tokens, and of one more."""
    asked = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1, "extra_body": settings.extra}
    answer = server.client.completions.create(model=server.model, prompt=text, **asked)
    if not answer.choices:
        raise WrongAnswer("an answer without a choice")
    said = answer.choices[0].logprobs
    return None if said is None else said.token_logprobs


def _continued(server: Server, text: str, settings: SampleSettings) -> str:
    asked = {"max_tokens": _GREEDY_TOKENS, "temperature": 0.0, "extra_body": settings.body(sample=False)}
    answer = server.client.completions.create(model=server.model, prompt=text, **asked)
    if not answer.choices:
        raise WrongAnswer("an answer without a choice")
    return answer.choices[0].text or ""


def _check_greedy(server: Server, policy: Path, reference: Reference, settings: SampleSettings) -> None:
    ours = reference.greedy(policy, TEXTS, _GREEDY_TOKENS)
    theirs = []
    for text in TEXTS:
        said = ask_once(server, partial(_continued, settings=settings), text, settings.retries)
        theirs.append("" if isinstance(said, Refused) else said)
    same = sum(a.strip() == b.strip() for a, b in zip(ours, theirs, strict=True))
    if 2 * same <= len(TEXTS):
        raise ServerError(
            f"{server.url} does not serve {policy}: it continues {same} of {len(TEXTS)} texts as these weights do; "
            "restart the server with them"
        )
    log.info("%s serves %s: it continues %d of %d texts alike", server.url, policy, same, len(TEXTS))
