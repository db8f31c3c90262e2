"""A probe of a preference file: states of its answers, and what their differences say of its pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_rpo.crowd.crowd_fit import CrowdFit
from nemo_rpo.crowd.factors.answer_features import content_of
from nemo_rpo.crowd.factors.linear_bt import covariance
from nemo_rpo.crowd.factors.pair_texts import texts_of_pairs, turns
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.evaluation.probe.hidden_states import HiddenStates
from nemo_rpo.evaluation.probe.probe_settings import ProbeSettings
from nemo_rpo.evaluation.probe.probing import Probe, probe_layers


@dataclass(frozen=True)
class FileProbe:
    """A probe, and the pairs that it was fitted to: differences of the best layer [n, h], truths, who is known, groups.

    ``probe.margin`` is relative to the first response of the table as it was read.
    """

    probe: Probe
    x: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    groups: np.ndarray

    def covariance(self) -> np.ndarray:
        """Of θ of the best layer's fit to all pairs [h, h], pairs of one group hanging together."""
        best, x = self.probe.best.foretold, self.x[self.known] / self.probe.best.foretold.scale
        return covariance(x, best.theta, self.truth[self.known], ridge=best.ridge, groups=self.groups[self.known])


def probe_file(
    paths: Sequence[Path],
    keys: RowFormat,
    table: VoteTable,
    alone: CrowdFit,
    states: HiddenStates,
    settings: ProbeSettings,
) -> FileProbe:
    """Reads the texts again, asks the model about each answer once, and probes every layer.

    Args:
        table: as read from ``paths``. alone: the label model fitted to its votes without any model.

    Raises:
        DataError: the files have changed; fewer than three groups of pairs.
    """
    answers: dict[tuple[str, str], int] = {}
    prompts: dict[str, int] = {}
    sides, prompt = np.empty((table.pairs, 2), dtype=np.int64), np.empty(table.pairs, dtype=np.int64)
    for i, pair in enumerate(texts_of_pairs(paths, keys, table.pairs)):
        asked = content_of(pair.prompt)
        prompt[i] = prompts.setdefault(asked, len(prompts))
        for side, text in enumerate((pair.first, pair.second)):
            sides[i, side] = answers.setdefault((asked, content_of(text)), len(answers))
    groups = prompt if len(prompts) >= settings.held_out.folds else _linked(sides, len(answers))
    of_answer = states.of(list(answers))
    truth = np.where(turns(table, alone.table) > 0, alone.w, 1 - alone.w)
    known = alone.table.counts()[:, :2].sum(1) > 0
    probe = probe_layers(
        (layer[sides[:, 0]] - layer[sides[:, 1]] for layer in of_answer), states.layers, truth, known, groups, settings
    )
    best = of_answer[states.layers.index(probe.best.layer)]
    return FileProbe(probe, best[sides[:, 0]] - best[sides[:, 1]], truth, known, groups)


def _linked(sides: np.ndarray, answers: int) -> np.ndarray:
    """Pairs that share an answer, or are linked by others that do, int64 [n]."""
    parent = np.arange(answers)

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for a, b in sides.tolist():
        parent[root(a)] = root(b)
    return np.array([root(a) for a in sides[:, 0].tolist()], dtype=np.int64)
