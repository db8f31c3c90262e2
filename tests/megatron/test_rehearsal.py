"""The GPU path without a GPU: a step with GPU settings on fake tensors neither mixes devices nor waits for one.

The engine's own objects are built and stepped (:mod:`rehearsal_gpu`) on a device whose tensors have no values
(:mod:`fake_gpu`): loading of weights, ``model_input`` and its copy, the reference (swapped through pinned buffers, and
resident), forward, backward, loss, posterior, evidence, its exchange, metrics, gradient norm, clipping, the optimizer's
step, the commit of η, validation.

Not covered: values; Transformer Engine's layers, FP8 and its fused Adam (the local spec and torch's kernel run here);
collectives, which are of one rank; grouped products of experts, and which token goes to which; the order of streams;
refits and sweeps, which wait by nature; what a kernel does with its inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import expert_worlds
import planted_faults
from paths import ROOT, TESTS
from planted_faults import FAULTS

pytestmark = pytest.mark.every_release

EXPERTS = ("experts, one after the other", "experts with adapters")
SCENARIOS = (
    "ema, swapped reference",
    "buffer, packs with shared prompts",
    "all logits, plain optimizer",
    "resident reference, KL",
    "rankings",
    "LoRA, full recompute",
    "reward model",
    *EXPERTS,
)
# The places where the host may wait, at the end of a step: for its figures, and for the gradient norm, which decides.
WAITS = {
    ("forward, backward, exchange", "nemo_rpo/megatron/step/metrics.py"),
    ("optimizer and commit", "nemo_rpo/megatron/compat/megatron_optimizer.py"),
}
# Without Transformer Engine's fused permutation Megatron's own asks the device which tokens an expert has.
WAITS_OF_EXPERTS = ("the host waits for masked_select", "nemo_rpo/megatron/network/precision.py")
Found = dict[str, dict[str, list[tuple[str, str, str]]]]


@pytest.fixture(scope="module")
def found(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Scenario -> stage -> (what, where, code)."""
    out = tmp_path_factory.mktemp("rehearsal")
    script = Path(__file__).with_name("rehearsal_gpu.py")
    paths = os.pathsep.join(map(str, (ROOT, TESTS, script.parent)))
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            str(world),
            str(out),
            str(expert_worlds.make(tmp_path_factory.mktemp("experts"))),
        ],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((out / "found.json").read_text())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_would_break_or_hold_up_a_gpu(found: Found, scenario: str) -> None:
    stages = {name: lines for name, lines in found[scenario].items() if not name.startswith("fault ")}
    assert len(stages) == 5
    surprises = [
        f"{what} at {where}: {code}"
        for stage, lines in stages.items()
        for what, where, code in lines
        if not (scenario in EXPERTS and (what, where.partition(":")[0]) == WAITS_OF_EXPERTS)
        and ((stage, where.partition(":")[0]) not in WAITS or "the host waits for" not in what)
    ]
    assert surprises == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_waits_that_are_meant_are_seen(found: Found, scenario: str) -> None:
    """Else the watch has looked away."""
    seen = {(stage, where.partition(":")[0]) for stage, lines in found[scenario].items() for _, where, _ in lines}
    assert WAITS <= seen


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_by_file_and_line(found: Found, fault) -> None:
    source = Path(planted_faults.__file__)
    line = source.read_text().splitlines().index(f"def {fault.__name__}(loss: Tensor) -> None:") + 2
    where = f"{source.relative_to(ROOT).as_posix()}:{line}"
    said = [what for what, place, _ in found[SCENARIOS[0]][f"fault {fault.__name__}"] if place == where]
    assert any(FAULTS[fault] in what for what in said), found[SCENARIOS[0]][f"fault {fault.__name__}"]
