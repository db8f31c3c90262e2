"""Files of reference log-probs that are something else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nemo_rpo.errors import ReferencePolicyError
from nemo_rpo.training.reference.file import MadeWith, read

pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
from pyarrow import parquet  # noqa: E402

HASHES = [bytes([i] * 16) for i in range(3)]
GOOD = {
    "pair_id": pyarrow.array(["a", "b", "c"]),
    "content_hash": pyarrow.array(HASHES, pyarrow.binary(16)),
    "ref_chosen_logps": pyarrow.array([-1.0, -2.0, -3.0], pyarrow.float32()),
    "ref_rejected_logps": pyarrow.array([-1.0, -2.0, -3.0], pyarrow.float32()),
}
CACHE = SimpleNamespace(content_hash=np.frombuffer(b"".join(HASHES[::-1]), np.uint8).reshape(3, 16))


def test_rows_are_found_by_their_hash(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table(GOOD), tmp_path / "ref.parquet")
    assert read(tmp_path / "ref.parquet", CACHE, MadeWith({}, {})).chosen.tolist() == [-3, -2, -1]


@pytest.mark.parametrize(
    "changes",
    [
        {"content_hash": pyarrow.array(["x", "y", "z"])},
        {"content_hash": pyarrow.array([b"x", b"y", b"z"])},
        {"content_hash": pyarrow.array([HASHES[0], None, HASHES[2]], pyarrow.binary(16))},
        {"content_hash": pyarrow.array([1, 2, 3])},
        {"ref_chosen_logps": pyarrow.array(["x", "y", "z"])},
        {"ref_chosen_logps": pyarrow.array([-1.0, None, -3.0], pyarrow.float32())},
        {"ref_rejected_logps": pyarrow.array([[1.0], [2.0], [3.0]])},
        {"pair_id": pyarrow.array([1, 2, 3])},
        {"ref_rejected_logps": None},
    ],
)
def test_other_columns_are_named(tmp_path: Path, changes: dict) -> None:
    columns = {name: values for name, values in (GOOD | changes).items() if values is not None}
    parquet.write_table(pyarrow.table(columns), tmp_path / "ref.parquet")
    with pytest.raises(ReferencePolicyError, match=r"ref\.parquet: .*delete it to compute the reference again"):
        read(tmp_path / "ref.parquet", CACHE, MadeWith({}, {}))


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table(GOOD).slice(0, 0), tmp_path / "ref.parquet")
    with pytest.raises(ReferencePolicyError, match="has no rows"):
        read(tmp_path / "ref.parquet", CACHE, MadeWith({}, {}))
