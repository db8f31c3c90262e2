"""``nemo_rpo.RobustLabels``: the label model in the manner of crowd-kit's aggregators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.crowd.long_form import columns_of, vote_table
from nemo_rpo.crowd.reliability import CrowdWarning, Reliability, assess
from nemo_rpo.errors import DataError, missing_extra

if TYPE_CHECKING:
    import pandas as pd

_TASK, _WORKER, _LABEL = "task", "worker", "label"


class RobustLabels:
    """True labels of two classes, and skills of workers, from crowd labels; a drop-in for crowd-kit's aggregators.

    The label model is chosen by evidence: one rate a worker, or one for each class, with the share of the classes
    fitted. Where workers err together it says so (``warnings_``), and falls back on the majority if it must.

    Args:
        good_enough, min_labels: rules of the verdicts in ``result_``.

    Attributes:
        labels_: pandas Series, the likelier label of every task.
        probas_: pandas DataFrame, probabilities of both labels by task.
        skills_: pandas Series, P(label right) by worker.
        warnings_: what may be wrong with them.
        result_: all of it, as :func:`nemo_rpo.estimate_reliability` returns it.

    >>> import pandas as pd
    >>> rows = [(t, w, t % 2) for t in range(30) for w in "abc"] + [(t, "d", 0) for t in range(30)]
    >>> model = RobustLabels().fit(pd.DataFrame(rows, columns=["task", "worker", "label"]))
    >>> model.labels_[:4].tolist(), bool(model.skills_["d"] < model.skills_["a"])
    ([0, 1, 0, 1], True)
    """

    def __init__(
        self, good_enough: float = CrowdSettings.good_enough, min_labels: int = CrowdSettings.min_labels
    ) -> None:
        self.good_enough, self.min_labels = good_enough, min_labels

    labels_: pd.Series
    probas_: pd.DataFrame
    skills_: pd.Series
    warnings_: list[CrowdWarning]
    result_: Reliability

    def fit(self, data: Any, true_labels: Any = None) -> RobustLabels:
        """Fits to rows ``task``, ``worker``, ``label``; a DataFrame, or anything else that is a table.

        Args:
            data: the labels.
            true_labels: known labels by task (a Series or a dict), which count as evidence and judge the result.

        Raises:
            DataError: a column is missing, or there are more than two labels.
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as exc:
            raise missing_extra("pandas", "crowd") from exc
        columns = columns_of(data)
        for name in (_TASK, _WORKER, _LABEL):
            if name not in columns:
                raise DataError(f"there is no column '{name}'; the columns are {', '.join(columns)}")
        known = {} if true_labels is None else dict(true_labels.items())
        labels = pd.unique(pd.Series(columns[_LABEL] + list(known.values()), dtype=object))
        if len(labels) != 2 or pd.isna(labels).any():
            raise DataError(
                f"there must be two different labels, found {len(labels)}: {', '.join(map(str, labels[:5]))}"
            )
        negative, positive = sorted(labels, key=lambda label: (str(type(label)), label))
        tasks, first = columns[_TASK], {}
        for task in tasks:
            first.setdefault(str(task), task)
        votes = {
            "pair": tasks,
            "annotator": columns[_WORKER],
            "vote": [label == positive for label in columns[_LABEL]],
            "gold": [_gold(known, task, positive) for task in tasks],
            "shown_first": ["a"] * len(tasks),  # a class is like a side: workers may lean to it
        }
        settings = CrowdSettings(good_enough=self.good_enough, min_labels=self.min_labels)
        settings.check()
        result = assess(vote_table(votes, {name: name for name in votes}), settings)
        pairs = result.pairs
        index = pd.Index([first[name] for name in pairs["pair"]], name=_TASK)
        p = pairs["first_better"]
        self.probas_ = pd.DataFrame({negative: 1 - p, positive: p}, index=index)
        self.labels_ = pd.Series(np.where(p >= 0.5, positive, negative), index=index, name="agg_label")
        skills = {row.annotator: row.reliability for row in result.annotators}
        self.skills_ = pd.Series(skills, name="skill").rename_axis(_WORKER)
        # Classes have no random order; the share of each is fitted.
        self.warnings_ = [warning for warning in result.warnings if warning.kind != "order_not_random"]
        self.result_ = result
        return self

    def fit_predict(self, data: Any, true_labels: Any = None) -> pd.Series:
        """Fits and returns ``labels_``."""
        return self.fit(data, true_labels).labels_

    def fit_predict_proba(self, data: Any, true_labels: Any = None) -> pd.DataFrame:
        """Fits and returns ``probas_``."""
        return self.fit(data, true_labels).probas_

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, as scikit-learn's ``clone`` asks for them."""
        return {"good_enough": self.good_enough, "min_labels": self.min_labels}

    def set_params(self, **params: Any) -> RobustLabels:
        """Sets arguments of the constructor; raises :class:`DataError` for an unknown one."""
        for name, value in params.items():
            if name not in self.get_params():
                raise DataError(f"RobustLabels has no parameter '{name}'; it has {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self


def _gold(known: dict, task: Any, positive: Any) -> str | None:
    return ("a" if known[task] == positive else "b") if task in known else None
