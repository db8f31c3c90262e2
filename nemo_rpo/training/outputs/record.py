"""The run's record in Parquet: what was made of every label, of every annotator, and of the held-out pairs.

Shapes: n pairs, v votes (signed labels) in the order of the data, K annotators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_rpo.data.annotator_table import VIRTUAL
from nemo_rpo.data.cache.arrow import pair_ids, prompt_names, pyarrow, sources
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import CheckpointError
from nemo_rpo.training.outputs import tastes
from nemo_rpo.training.outputs.results import NO_ROOM, weight_names
from nemo_rpo.training.outputs.summary import AnnotatorRow

if TYPE_CHECKING:
    from nemo_rpo.em.record import Trajectory
    from nemo_rpo.training.outputs.tastes import GroupsSeen

POSTERIORS, ANNOTATORS, VALIDATION = "posteriors.parquet", "annotators.parquet", "validation.parquet"
STEP = "nemo_rpo.step"


def write_posteriors(
    folder: Path,
    step: int,
    cache: PreferenceCache,
    seen: np.ndarray,
    logit_eta: np.ndarray,
    tau: float | np.ndarray,
    evidence: np.ndarray | None = None,
    groups: GroupsSeen | None = None,
) -> None:
    """``posteriors.parquet``, a row a signed label in the order of the data.

    Besides what the label is (:func:`_label_columns`): ``delta_first``, ``delta_last`` (Δ of the pair, chosen over
    rejected, when it was seen first and last, the last time by a sweep where there was one), ``w_first``, ``w_last``
    (probability that this label is right: as the E-step had it at first sight, and of the last Δ under the
    reliabilities of now), ``flipped`` (w_last < ½: the EM believes the opposite). Null where a pair was not seen, or
    its margin was no finite number.

    A run with ``groups`` of taste has a truth of each pair for each of them: ``w_of_group_1``, … (probability that the
    pair's chosen is better for that group, by the last Δ) are there too, ``w_last`` is right for whoever gave the
    label, and ``w_first`` is null where several labels share the pair.

    Args:
        step: optimizer steps done; every file has it in its metadata.
        seen: float32 [n, 3], see :meth:`nemo_rpo.em.record.RecordedReliability.seen`.
        logit_eta: float64 [K], of the reliabilities now.
        tau: temperature of the policy's voice, of all pairs or (without groups) of each [n]; inf where it has none.
        evidence: float [n], what the label model gives chosen in the place of the sum of logit η; None without one.
    """
    pa, _ = pyarrow()
    pair, annotator, sign = cache.all_votes()
    first_delta, first_w, last_delta = seen.T
    last_delta = np.where(np.isfinite(last_delta), last_delta, np.nan)
    if evidence is None:
        evidence = np.bincount(pair, weights=sign * logit_eta[annotator], minlength=len(cache))
    right = _sigmoid(sign * (last_delta.astype(np.float64) / tau + evidence)[pair])
    by_group = {}
    if groups is not None:
        w = _sigmoid(groups.log_odds(pair, annotator, sign, logit_eta, tau))
        right = tastes.right(groups, w, pair, annotator, sign)
        by_group = dict(zip(tastes.group_names(w.shape[1]), w.astype(np.float32)[pair].T, strict=True))
        shared = np.bincount(pair, minlength=len(cache)) > 1
        first_w = np.where(shared, np.nan, first_w)
    columns = {
        **_label_columns(cache, pair, annotator, sign),
        "delta_first": first_delta[pair],
        "w_first": np.where(sign > 0, first_w[pair], 1 - first_w[pair]),
        "delta_last": last_delta[pair],
        "w_last": right.astype(np.float32),
        "flipped": pa.array(right < 0.5, mask=np.isnan(right)),
        **by_group,
    }
    _write(folder / POSTERIORS, step, _table(columns))


def write_annotators(folder: Path, step: int, rows: Sequence[AnnotatorRow], trajectory: Trajectory) -> None:
    """``annotators.parquet``, a row an annotator in the data's order: ``id``, ``labels``, ``eta``, ``standard_error``
    (null where nothing has been fitted), ``eta_running`` (before the last sweep), ``eta_start``, and the way of η over
    the optimizer steps, ``trajectory_steps`` (the same in every row) and ``trajectory_eta`` (NaN before they joined);
    with a label model in force ``skill`` and every further feature by its name, each with ``…_error``; of a run with
    groups of taste ``weight_1``, …, the weight on each.
    """
    pa, _ = pyarrow()
    ways = np.stack([eta.cpu().numpy() for eta in trajectory.eta], 1) if trajectory.steps else np.empty((len(rows), 0))
    columns = {
        "id": [row.annotator for row in rows],
        "labels": np.array([row.labels for row in rows], np.int64),
        "eta": np.array([row.eta for row in rows]),
        "standard_error": np.array([row.standard_error for row in rows]),
        "eta_running": np.array([row.running for row in rows]),
        "eta_start": np.array([row.start for row in rows]),
        **{
            name: np.array([row.weights[g] for row in rows])
            for g, name in enumerate(weight_names(len(rows[0].weights) if rows else 0))
        },
        "trajectory_steps": pa.array([trajectory.steps] * len(rows), pa.list_(pa.int32())),
        "trajectory_eta": pa.array(list(ways.astype(np.float32)), pa.list_(pa.float32())),
    }
    for name in rows[0].coefficients if rows else ():
        known = np.array([row.coefficients[name] for row in rows])
        columns |= {name: known[:, 0], f"{name}_error": known[:, 1]}
    _write(folder / ANNOTATORS, step, _table(columns))


def write_validation(folder: Path, step: int, sets: Mapping[str, tuple[PreferenceCache, np.ndarray]]) -> None:
    """``validation.parquet``, a row a signed label of the held-out pairs that were looked at: what it is
    (:func:`_label_columns`), ``prompt`` (equal for pairs of one prompt), ``gold`` (+1 chosen, -1 rejected, 0 unknown)
    and ``delta`` of the pair at the weights the run ended with. Labels of a pair whose margin is no finite number are
    left out.

    ``sets`` has pairs and their margins, float32 [n] (NaN: not looked at), by the name of the validation set, which is
    in column ``set``; a single set without a name ("") has no such column.
    """
    pa, _ = pyarrow()
    tables = []
    for name, (cache, delta) in sets.items():
        columns = _held_out_columns(cache, delta)
        if name:
            columns["set"] = pa.array([name], pa.string()).take(pa.array(np.zeros(len(columns["pair"]), np.int64)))
        tables.append(_table(columns))
    _write(folder / VALIDATION, step, pa.concat_tables(tables))


def _held_out_columns(cache: PreferenceCache, delta: np.ndarray) -> dict[str, Any]:
    pair, annotator, sign = cache.all_votes()
    looked_at = np.isfinite(delta[pair])
    pair, annotator, sign = pair[looked_at], annotator[looked_at], sign[looked_at]
    of_labels = _label_columns(cache, pair, annotator, sign)
    return {**of_labels, "prompt": prompt_names(cache)[pair], "gold": cache.gold[pair], "delta": delta[pair]}


def _label_columns(cache: PreferenceCache, pair: np.ndarray, annotator: np.ndarray, sign: np.ndarray) -> dict[str, Any]:
    """Which label a row is: ``pair`` (index in the data), ``pair_id``, ``annotator`` (null: without a name, or unknown
    to the run), ``sign`` (+1: the label prefers the pair's chosen response, -1 its rejected one), ``source``
    (``file:row`` that shows the pair first), ``chosen_tokens``, ``rejected_tokens``.

    Of a pair whose labels were grouped, ``chosen`` is the response that most of them prefer.
    """
    pa, _ = pyarrow()
    # One place more than annotators: where a held-out label's annotator has no index, it is K.
    names = pa.array([*(None if name == VIRTUAL else name for name in cache.annotators.ids), None], pa.string())
    lengths = cache.lengths[pair]
    return {
        "pair": pair,
        "pair_id": pair_ids(cache, pair),
        "annotator": names.take(pa.array(annotator)),
        "sign": sign,
        "source": sources(cache, pair),
        "chosen_tokens": lengths[:, 1],
        "rejected_tokens": lengths[:, 2],
    }


def _table(columns: dict[str, Any]) -> Any:
    """NaN becomes null."""
    pa, _ = pyarrow()
    return pa.table(
        {
            name: pa.array(values, from_pandas=True) if isinstance(values, np.ndarray) else values
            for name, values in columns.items()
        }
    )


def _write(path: Path, step: int, table: Any) -> None:
    """Writes the file whole."""
    _, pq = pyarrow()
    with whole_file(path, CheckpointError, NO_ROOM) as writing:
        pq.write_table(table.replace_schema_metadata({STEP: str(step)}), writing, compression="zstd")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN stays NaN, where a pair was not seen
        return np.exp(-np.logaddexp(0, -x))
