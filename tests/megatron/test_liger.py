"""The hand-over of the head to Liger: equal to dense log-probs under random upstream gradients, or refused."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import numpy
from torchrun import run_ranks

from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.logprobs.liger import check_liger

NO_LIGER = "Liger's kernels need liger-kernel and triton: pip install liger-kernel==0.8.5 triton"


def test_without_liger_one_line_says_so() -> None:
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(ConfigError, match="install it, or set"),
    ):
        check_liger(128256, 128256, tensor_parallel=1)


def test_rows_of_padding_are_refused_where_the_kernel_would_count_them() -> None:
    pytest.importorskip("liger_kernel", reason=NO_LIGER)
    check_liger(43, 48, tensor_parallel=1)
    check_liger(48, 48, tensor_parallel=2)
    with pytest.raises(ConfigError, match="gives probability to the 5 rows that pad the vocabulary of 43 over 2"):
        check_liger(43, 48, tensor_parallel=2)


@pytest.mark.distributed
def test_equals_dense_log_probs(tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel", reason=NO_LIGER)
    if importlib.metadata.version("triton") < "3.7" and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
        pytest.skip("Triton's interpreter before 3.7 needs numpy before 2.4")
    run_ranks(Path(__file__).with_name("ranks_liger.py"), 2, tmp_path, env={"TRITON_INTERPRET": "1"}, timeout=500)
    for tensor, runs in ((1, 3), (2, 4)):
        for rank in range(2):
            found = json.loads((tmp_path / f"{tensor}.{rank}.json").read_text())
            assert len(found) == runs
            assert all(value < 1e-5 for differences in found.values() for value in differences.values()), found
