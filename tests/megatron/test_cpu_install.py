"""Megatron-Core's CPU patches leave the rest of the process whole: transformers builds the same model beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from paths import ROOT

from nemo_rpo.megatron.compat.places import whats_wrong

_SAVE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(LlamaConfig(**sizes, rope_theta=5e5)).save_pretrained(sys.argv[1])
"""
_LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(torch.arange(24).unsqueeze(0)).logits
buffers = {name: buffer.tolist() for name, buffer in model.named_buffers()}
print(json.dumps([buffers, logits.flatten().tolist()]))
"""


def _run(code: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_transformers_after_install_is_transformers(tmp_path: Path) -> None:
    """``install`` first, transformers' first use after it: rotary frequencies and logits to the last bit."""
    _run(_SAVE, tmp_path)
    plain = json.loads(_run(_LOAD, tmp_path))
    beside = json.loads(_run("from nemo_rpo.megatron import cpu\ncpu.install()\n" + _LOAD, tmp_path))
    assert any("inv_freq" in name for name in plain[0]) and beside[0] == plain[0]
    assert beside[1] == pytest.approx(plain[1], abs=1e-5)  # products of layers may go through oneDNN


_MOE = "megatron.core.transformer.moe"
REPLACED = (
    "megatron.core.tensor_parallel.random:_set_cuda_rng_state",
    "megatron.core.tensor_parallel.random:_get_cuda_rng_state",
    f"{_MOE}.token_dispatcher:maybe_move_tensor_to_cpu(tensor, as_numpy, record_stream)",
    f"{_MOE}.token_dispatcher:MoEAlltoAllTokenDispatcher[maybe_move_tensor_to_cpu]",
    # Not replaced, but counted on: of a router, and of the schedule that asks a last stage's output where it is.
    f"{_MOE}.router:TopKRouter[expert_bias]",
    "megatron.core.pipeline_parallel.schedules:forward_step_calc_loss[MoEAuxLossAutoScaler]",
)


@pytest.mark.every_release
@pytest.mark.parametrize("place", REPLACED)
def test_what_is_replaced_is_still_there(place: str) -> None:
    assert whats_wrong(place) is None
