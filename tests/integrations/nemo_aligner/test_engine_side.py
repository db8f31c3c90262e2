"""The package's own engine on the rows that NeMo-Aligner's classes are tested with: the figures they have to reach."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from torchrun import run_ranks

from . import world

SCRIPT = """
    import json, sys
    from pathlib import Path
    from integrations.nemo_aligner.make_trajectory import engine_run

    if __name__ == "__main__":
        folder = Path(sys.argv[1])
        (folder / "found.json").write_text(json.dumps(engine_run(folder)))
"""


@pytest.mark.distributed
def test_the_engine_still_runs_this_trajectory(tmp_path):
    run_ranks(SCRIPT, 1, tmp_path)
    found, committed = json.loads((tmp_path / "found.json").read_text()), world.trajectory()
    assert found["annotators"] == committed["annotators"]
    for estimator in ("ema", "buffer"):
        for name, values in committed[estimator].items():
            np.testing.assert_allclose(found[estimator][name], values, rtol=0, atol=1e-6)
