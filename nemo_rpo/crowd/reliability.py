"""Everything that votes say of a crowd, as one result."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nemo_rpo.counting import counted
from nemo_rpo.crowd.both_ways import labelled_both_ways, words
from nemo_rpo.crowd.by_annotator import AnnotatorQuality, annotator_qualities
from nemo_rpo.crowd.crowd_fit import CrowdFit, fit_crowd
from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.crowd.doubted import DoubtfulLabel, doubtful_labels
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import missing_extra

if TYPE_CHECKING:
    import pandas as pd

Part = Literal["annotators", "labels", "pairs"]


@dataclass(frozen=True)
class CrowdWarning:
    """What may be wrong with the estimates: one word for programs, and sentences for people."""

    kind: str
    text: str


@dataclass(frozen=True)
class JudgedEstimate:
    """A way to the true labels, judged by gold labels that it was not given.

    Attributes:
        name: of the estimate.
        right: share of held-out gold labels that it gets right; ``None`` without enough of them.
        low, high: 95 % interval.
        anchors: gold labels that judged.
        recommended: whether the result uses it.
    """

    name: str
    right: float | None
    low: float | None
    high: float | None
    anchors: int
    recommended: bool


@dataclass(frozen=True, repr=False)
class Reliability:
    """What votes say of a crowd. ``print(result)`` shows it, a notebook draws it as tables.

    Attributes:
        annotators: those to retrain first.
        doubtful: the labels that are most likely wrong, the most doubtful first.
        estimates: ways to the true labels side by side.
        warnings: of the label model, most serious first, and of labels that contradict their annotator's own; empty is
            good news.
        features: what else was looked at (order shown, lengths, …), each with the evidence for it.
        counts: pairs, votes, ties, gold labels, annotators, pairs that one annotator labelled both ways.
        fit: votes, probabilities and the fitted model itself.
    """

    annotators: list[AnnotatorQuality]
    doubtful: list[DoubtfulLabel]
    estimates: list[JudgedEstimate]
    warnings: list[CrowdWarning]
    features: list[str]
    counts: dict[str, int]
    fit: CrowdFit

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Every vote in the order of the data: ``pair``, ``annotator``, ``vote`` (+1 the pair's first response, -1 the
        second, 0 a tie; of pairs that the data names a winner of, in the order of a hash of their texts) and ``right``,
        the probability that it is right (NaN of a tie). Columns [v].
        """
        table = self.fit.table
        return {
            "pair": np.array(table.pair_id, dtype=object)[table.pair],
            "annotator": np.array(table.annotators.ids, dtype=object)[table.annotator],
            "vote": table.sign,
            "right": self.fit.right,
        }

    @property
    def pairs(self) -> dict[str, np.ndarray]:
        """Every pair: ``pair``, ``first_better`` (the probability that its first response is the better one) and
        ``votes`` (signed ones). Columns [n].
        """
        table = self.fit.table
        votes = table.counts()[:, :2].sum(1)
        return {"pair": np.array(table.pair_id, dtype=object), "first_better": self.fit.w, "votes": votes}

    def to_pandas(self, part: Part = "annotators") -> pd.DataFrame:
        """The annotators, the labels or the pairs as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as exc:
            raise missing_extra("pandas", "crowd") from exc
        if part == "annotators":
            return pd.DataFrame([asdict(row) for row in self.annotators])
        return pd.DataFrame(self.labels if part == "labels" else self.pairs)

    def verdicts(self) -> dict[str, int]:
        """Annotators by verdict."""
        return dict(Counter(row.verdict for row in self.annotators))

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON; without the single labels."""
        return {
            "counts": self.counts,
            "verdicts": self.verdicts(),
            "annotators": [asdict(row) for row in self.annotators],
            "doubtful": [asdict(label) for label in self.doubtful],
            "estimates": [asdict(estimate) for estimate in self.estimates],
            "warnings": [asdict(warning) for warning in self.warnings],
            "features": self.features,
            "families": self.fit.families_found(),
        }

    def __str__(self) -> str:
        from nemo_rpo.crowd.wording import as_text

        return as_text(self)

    def __repr__(self) -> str:
        from nemo_rpo.crowd.wording import headline

        return f"<Reliability: {' · '.join(headline(self).splitlines())}>"

    def _repr_html_(self) -> str:
        from nemo_rpo.crowd.wording import as_notebook

        return as_notebook(self)


def assess(table: VoteTable, settings: CrowdSettings | None = None, margin: np.ndarray | None = None) -> Reliability:
    """Fits the label model to the votes and judges annotators and labels by it; ``margin`` as of :func:`fit_crowd`.

    Raises:
        DataError: no vote prefers either response.
    """
    settings = settings or CrowdSettings()
    fit = fit_crowd(table, margin=margin)
    both = labelled_both_ways(table)
    return Reliability(
        annotators=annotator_qualities(fit, settings),
        doubtful=doubtful_labels(fit, settings.doubtful),
        estimates=_estimates(fit),
        warnings=[CrowdWarning(*warned) for warned in fit.warnings] + _contradictions(table, both),
        features=fit.model.reasons(),
        counts={
            "pairs": table.pairs,
            "votes": len(table),
            "ties": int((table.sign == 0).sum()),
            "gold": int((table.gold != 0).sum()),
            "annotators": len(table.annotators),
            "labelled_both_ways": int(both.sum()),
        },
        fit=fit,
    )


def _contradictions(table: VoteTable, both: np.ndarray) -> list[CrowdWarning]:
    if not both.any():
        return []
    text = f"{counted(int(both.sum()), 'pair')} labelled both ways by the same annotator, {words(table, both)}: such "
    return [CrowdWarning("both_ways", text + "labels count as none; ask again, or nemo-rpo validate --fix")]


def _estimates(fit: CrowdFit) -> list[JudgedEstimate]:
    model, found = fit.model, []
    for name in model.estimates:
        recommended = name == model.recommended
        if model.verdict is None:
            found.append(JudgedEstimate(name, None, None, None, 0, recommended))
        else:
            judged = model.verdict.judged[name]
            found.append(JudgedEstimate(name, judged.right, judged.low, judged.high, judged.anchors, recommended))
    return found
