"""The contract between whoever wants samples and whatever makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nemo_rpo.data.rows import Text

STOP, LENGTH, FAILED = "stop", "length", "failed"
# Columns of responses.parquet and their types. A row is named by its prompt and index.
KEYS = ("prompt", "index")
COLUMNS = {
    "prompt": "string",
    "index": "int64",
    "seed": "int64",
    "text": "string",
    "tokens": "int64",
    "finish": "string",
    "logprob": "float64",
    "error": "string",
}


class Ask(NamedTuple):
    """One sample that is wanted.

    Attributes:
        prompt: the prompt's key; of a file without ids the hash of its content.
        text: the prompt itself, a text or messages.
        index: which of the prompt's samples, from 0.
        seed: see :func:`seed_of`.
    """

    prompt: str
    text: Text
    index: int
    seed: int


@dataclass(frozen=True)
class Response:
    """One sample, or the reason why there is none. A row of responses.parquet.

    Attributes:
        prompt, index, seed: of the ask.
        text: what the policy said; empty where it failed.
        tokens: of the response; None where the server does not count them.
        finish: ``stop`` (it ended by itself), ``length`` (cut at the limit: no whole response) or ``failed`` (the
            server refused this ask for good).
        logprob: sum of log-probs of its tokens under the policy, in nats at the sampling temperature the server used;
            None where the server does not say.
        error: what the server said, of a failed one.
    """

    prompt: str
    index: int
    seed: int
    text: str
    tokens: int | None
    finish: str
    logprob: float | None = None
    error: str | None = None

    def row(self) -> dict[str, Any]:
        """As a row of responses.parquet."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Response:
        """From a row of responses.parquet."""
        return cls(**{name: row[name] for name in COLUMNS})


class Sampler(Protocol):
    """What makes samples: a server, or the engine."""

    def use(self, policy: Path) -> None:
        """Samples come from these weights, a Hugging Face folder, from now on."""

    def sample(self, asks: Iterable[Ask]) -> Iterator[Response]:
        """The responses, each as soon as it is there, in any order. The same ask gives the same response.

        Raises:
            RPOError: it cannot go on. What came before is to be kept; only the missing asks need asking again.
        """


def seed_of(run: str, round: int, prompt: str, index: int) -> int:
    """The seed of one sample, below 2³¹; the same whenever, wherever and in whatever order it is asked for.

    >>> seed_of("run", 1, "p", 0) == seed_of("run", 1, "p", 0) != seed_of("run", 1, "p", 1)
    True
    """
    key = f"{run}\0{round}\0{prompt}\0{index}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1
