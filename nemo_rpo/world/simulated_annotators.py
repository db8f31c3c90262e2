"""Pairs of responses with a clear winner, and annotators who name it with known, very different reliability.

Shapes: N pairs, K annotators, L labels a pair, T response length.
"""

from dataclasses import dataclass

import numpy as np

from nemo_rpo.errors import ConfigError
from nemo_rpo.world.language import Language


@dataclass(frozen=True)
class AnnotatorConfig:
    """Who labels, how reliably, and how much.

    Attributes:
        reliabilities: eta_k, the probability that annotator k names the better response; below one half is an
        adversary.
        labels: labels each annotator gives.
        labels_per_pair: different annotators that see one pair.
    """

    reliabilities: tuple[float, ...] = (0.95, 0.92, 0.88, 0.82, 0.75, 0.68, 0.60, 0.50, 0.40, 0.30, 0.20, 0.15)
    labels: int = 1000
    labels_per_pair: int = 1

    def __post_init__(self) -> None:
        outside = [eta for eta in self.reliabilities if not 0.0 <= eta <= 1.0]
        if outside or not self.reliabilities:
            raise ConfigError(f"world: reliabilities must be one or more probabilities, got {outside or 'none'}")
        if not 1 <= self.labels_per_pair <= len(self.reliabilities):
            raise ConfigError(
                f"world: labels_per_pair must lie between 1 and the {len(self.reliabilities)} annotators, "
                f"got {self.labels_per_pair}"
            )
        if self.labels < 1 or self.labels % self.labels_per_pair:
            raise ConfigError(
                f"world: labels ({self.labels}) must be a positive multiple of labels_per_pair ({self.labels_per_pair})"
            )

    @property
    def pairs(self) -> int:
        """Pairs needed to give every annotator exactly ``labels`` of them."""
        return len(self.reliabilities) * self.labels // self.labels_per_pair

    @property
    def ids(self) -> tuple[str, ...]:
        """Annotator ids, which say nothing of the reliability."""
        return tuple(f"a{k + 1:02d}" for k in range(len(self.reliabilities)))


@dataclass(frozen=True)
class Pairs:
    """Noise-free: ``style`` [N], ``better`` and ``worse`` responses [N, T], ``gap`` [N] = Q(better) - Q(worse) > 0."""

    style: np.ndarray
    better: np.ndarray
    worse: np.ndarray
    gap: np.ndarray

    def __len__(self) -> int:
        return len(self.style)


@dataclass(frozen=True)
class Votes:
    """What was recorded: ``annotator`` [N, L] (index), ``correct`` [N, L] (whether the better response was named)."""

    annotator: np.ndarray
    correct: np.ndarray

    def realised_accuracy(self, annotator: int) -> float:
        """Share of the annotator's labels that are right: what an estimate of eta_k can be held against.

        The nominal reliability is not: 500 draws at .75 have a standard deviation of .02 around it.
        """
        return float(self.correct[self.annotator == annotator].mean())


def draw_pairs(language: Language, count: int, min_gap: float, rng: np.random.Generator) -> Pairs:
    """``count`` pairs of responses to one style each, kept if their qualities differ by ``min_gap`` or more.

    Raises:
        ConfigError: fewer than one pair in a thousand is that far apart.
    """
    kept: list[Pairs] = []
    found = drawn = 0
    while found < count:
        style = rng.integers(language.config.styles, size=2 * count)
        one, two = language.respond(style, rng), language.respond(style, rng)
        gap = language.quality(style, one) - language.quality(style, two)
        far = np.abs(gap) >= min_gap
        one_wins = (gap > 0)[far, None]
        better, worse = np.where(one_wins, one[far], two[far]), np.where(one_wins, two[far], one[far])
        kept.append(Pairs(style[far], better, worse, np.abs(gap[far])))
        found, drawn = found + int(far.sum()), drawn + len(style)
        if found * 1000 < drawn:
            raise ConfigError(f"world: min_gap {min_gap} leaves {found} of {drawn} drawn pairs; lower it")
    return Pairs(
        *(np.concatenate([getattr(p, name) for p in kept])[:count] for name in ("style", "better", "worse", "gap"))
    )


def ask(config: AnnotatorConfig, rng: np.random.Generator) -> Votes:
    """The votes of every annotator on ``config.pairs`` pairs.

    Each block of K pairs is dealt by a fresh permutation of the annotators, rotated by one from pair to pair: every
    annotator labels exactly L pairs of a block and no pair twice.
    """
    annotators = len(config.reliabilities)
    blocks = config.pairs // annotators
    order = rng.permuted(np.tile(np.arange(annotators), (blocks, 1)), axis=1)
    seat = (np.arange(annotators)[:, None] + np.arange(config.labels_per_pair)) % annotators
    annotator = order[:, seat].reshape(config.pairs, config.labels_per_pair)
    correct = rng.random(annotator.shape) < np.asarray(config.reliabilities)[annotator]
    return Votes(annotator, correct)
