"""Groups of annotators to compare: those a file names, or bands of reliability."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from nemo_rpo.errors import DataError

_BANDS = ((0.5, "η below .5"), (0.7, "η .5 to .7"), (0.9, "η .7 to .9"), (1.1, "η .9 and above"))
REST = "(no group)"


def bands(eta: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of the groups and, int64 [K], the group of each annotator."""
    edges = np.array([upper for upper, _ in _BANDS[:-1]])
    return [name for _, name in _BANDS], np.searchsorted(edges, eta, side="right")


def read_groups(path: Path, annotators: list[str]) -> tuple[list[str], np.ndarray]:
    """As :func:`bands`, from a CSV file with columns ``annotator`` and ``group``; who is not in it is in ``REST``.

    Raises:
        DataError: no such file, or not these columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"annotator", "group"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path} needs the columns annotator and group; it has {reader.fieldnames}")
            group_of = {row["annotator"]: row["group"] or REST for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DataError(f"{path} cannot be read ({exc})") from exc
    if not group_of.keys() & set(annotators):
        raise DataError(f"{path} names none of the run's annotators ({annotators[0]}, …)")
    named = [group_of.get(name, REST) for name in annotators]
    names = sorted(set(named), key=lambda name: (name == REST, name))
    return names, np.array([names.index(name) for name in named], np.int64)
