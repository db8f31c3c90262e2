"""The world's language: styles, their bigram tables, and the quality of a response.

Shapes: S styles, C content tokens, T response length, n texts.
A text is ``bos style sep r_1 .. r_T eos``; its response is a walk through the bigram table of its style,

    P(r_t = j | r_{t-1} = i, style s) = softmax_j(A[s, i, j]),   A ~ N(0, 1),

with one more row of ``A`` for the first token. The gold quality of a response, Q(s, r) = sum_t u[s, r_t], has utilities
u ~ N(0, 1) independent of ``A``: likely text is not better text, so nothing of the preference is known beforehand.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nemo_rpo.errors import ConfigError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SEPARATOR = "sep"
_STREAMS = ("language", "quality", "pretraining", "train", "validation", "annotators")


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream ``name`` of the world ``seed``, independent of the others: one can grow without moving another.

    Raises:
        ValueError: no stream has that name.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _STREAMS.index(name)])))


@dataclass(frozen=True)
class LanguageConfig:
    """Size of the language; its vocabulary is pad, bos, eos, sep, the style and the content tokens (32 by default)."""

    styles: int = 4
    content: int = 24
    length: int = 8

    def __post_init__(self) -> None:
        for name in ("styles", "content", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"world: {name} must be at least 1, got {getattr(self, name)}")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token word; its place is its id."""
        styles = (f"s{i}" for i in range(self.styles))
        content = (f"c{i}" for i in range(self.content))
        return (PAD, BOS, EOS, SEPARATOR, *styles, *content)

    @property
    def text_length(self) -> int:
        """Tokens of a whole text: bos, style, sep, the response, eos."""
        return self.length + 4


class Language:
    """The bigram tables and the gold quality that ``seed`` draws.

    Attributes:
        table: P(next | previous, style) [S, C + 1, C]; the last of the C + 1 rows starts a response.
        utility: u [S, C], quality of one content token.
    """

    def __init__(self, config: LanguageConfig, seed: int) -> None:
        self.config = config
        logits = stream(seed, "language").standard_normal((config.styles, config.content + 1, config.content))
        weights = np.exp(logits)
        self.table = weights / weights.sum(-1, keepdims=True)
        self.utility = stream(seed, "quality").standard_normal((config.styles, config.content))

    @cached_property
    def _cumulative(self) -> np.ndarray:
        cumulative = self.table.cumsum(-1)
        cumulative[..., -1] = 1.0  # rounding may leave the last sum below a uniform draw
        return cumulative

    def respond(self, style: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Responses [n, T], one for each entry of ``style`` [n], as content indices in [0, C)."""
        response = np.empty((len(style), self.config.length), dtype=np.int64)
        previous = np.full(len(style), self.config.content)
        for t in range(self.config.length):
            uniform = rng.random(len(style))
            previous = (uniform[:, None] >= self._cumulative[style, previous]).sum(-1)
            response[:, t] = previous
        return response

    def quality(self, style: np.ndarray, response: np.ndarray) -> np.ndarray:
        """Gold quality Q [n] of ``response`` [n, T] to ``style`` [n]."""
        return self.utility[style[:, None], response].sum(-1)

    def entropy(self) -> float:
        """Entropy of a whole text in nats: the least loss, summed over the tokens after bos, that any model can reach.

        H = ln S + mean_s sum_t sum_i P(r_{t-1} = i | s) H(table[s, i]); sep and eos are certain.
        """
        row_entropy = -(self.table * np.log(self.table)).sum(-1)
        start, rows = self.table[:, -1], self.table[:, :-1]
        total, marginal = row_entropy[:, -1], start
        for _ in range(1, self.config.length):
            total = total + (marginal * row_entropy[:, :-1]).sum(-1)
            marginal = np.einsum("si,sij->sj", marginal, rows)
        return float(np.log(self.config.styles) + total.mean())

    def token_ids(self, style: np.ndarray, response: np.ndarray) -> np.ndarray:
        """Whole texts [n, T + 4] as vocabulary ids."""
        words = self.config.vocabulary
        bos, eos, sep = (np.full((len(style), 1), words.index(word)) for word in (BOS, EOS, SEPARATOR))
        return np.hstack([bos, style[:, None] + words.index("s0"), sep, response + words.index("c0"), eos])

    @staticmethod
    def prompt_text(style: int) -> str:
        """``"s2 sep "``: prompt and response put end to end are the text."""
        return f"s{style} {SEPARATOR} "

    @staticmethod
    def response_text(response: np.ndarray) -> str:
        """``"c4 c17 .. c9"`` for one response [T]."""
        return " ".join(f"c{token}" for token in response)
