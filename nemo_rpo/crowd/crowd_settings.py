"""Where an annotator stops being trusted, and the only place for such defaults."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_rpo.errors import ConfigError


@dataclass(frozen=True)
class CrowdSettings:
    """The rules of the verdicts; they look at intervals, never at the estimate alone.

    Attributes:
        good_enough: reliability (probability that a label is right) that an annotator is asked for. The whole interval
            above it: trust; the whole interval below it: retrain.
        widest: an interval that holds ``good_enough`` and is wider than this says too little for a verdict.
        min_labels: signed labels below which nothing is said.
        leaning: share of an annotator's labels for the response shown first (or second) above which, with its whole
            interval, he is watched at best.
        drift: fall of reliability from the first half of an annotator's labels to the second (in order of time) above
            which, with its whole interval, he is watched at best.
        errors: standard errors of the intervals of leaning and drift. Many annotators are looked at: 3 gives about
            one false alarm in 400 of them.
        doubtful: labels that are listed as the most doubtful.
    """

    good_enough: float = 0.7
    widest: float = 0.3
    min_labels: int = 12
    leaning: float = 0.6
    drift: float = 0.05
    errors: float = 3.0
    doubtful: int = 20

    def check(self) -> None:
        """Raises :class:`ConfigError` with one line that names the option to change."""
        if not 0.5 <= self.good_enough < 1:
            raise ConfigError(f"--good-enough must be at least 0.5 and below 1, not {self.good_enough:g}")
        for name in ("min_labels", "doubtful"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(self, name)}")


RULES = """\
trust: the whole 95 % interval of the reliability lies above {good_enough:g}. retrain: all of it lies below. watch: it
holds {good_enough:g}, or the annotator follows the position shown or gets worse over time beyond chance. too few labels
to say: fewer than {min_labels} signed labels, or an interval around {good_enough:g} that is wider than {widest:g}."""
