"""``.nemo`` files to and fro between NeMo's own class, here, and the package's engine in its own environment.

``NEMO_RPO_ENGINE_PYTHON`` names that environment's interpreter (the Makefile sets it).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from paths import TESTS
from torchrun import run_ranks
from transformers import LlamaForCausalLM

from . import nemo_forms, world

ENGINE = os.environ.get("NEMO_RPO_ENGINE_PYTHON")
HERE = Path(__file__).parent
NEMO = HERE / "ranks_nemo_files.py"
# Not cli.py itself: beside a script, nemo_rpo/megatron would be found for megatron.
TRAIN = """
    import sys
    from nemo_rpo.cli import main

    if __name__ == "__main__":
        sys.exit(main())
"""
LAYOUTS = {"one": ("tensor", 1), "TP=2": ("tensor", 2), "PP=2": ("pipeline", 2)}

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        ENGINE is None, reason="set NEMO_RPO_ENGINE_PYTHON to the Python of an environment with nemo-rpo[mcore]"
    ),
]


@pytest.fixture(scope="module")
def written(folder: Path) -> Path:
    """The world's folder with a file of each form, as NeMo saves it on two tensor-parallel ranks."""
    run_ranks(NEMO, 2, "write", folder, timeout=300)
    return folder


@pytest.fixture(scope="module")
def exported(written: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The engine's exports on each layout, and the log-probs of NeMo's class that has restored them.

    One rank's are restored on two tensor-parallel ranks, two ranks' on one.
    """
    found = {}
    for name, (axis, ranks) in LAYOUTS.items():
        found[name] = tmp_path_factory.mktemp("exported")
        run_ranks(HERE / "ranks_nemo_engine.py", ranks, written, found[name], axis, python=ENGINE)
    for ranks, names in ((2, ["one"]), (1, ["TP=2", "PP=2"])):
        run_ranks(NEMO, ranks, "restore", *(f for n in names for f in sorted(found[n].glob("*.nemo"))), timeout=300)
    return found


def logprobs(folder: Path, name: str) -> torch.Tensor:
    return torch.load(nemo_forms.expected(folder, name))


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", nemo_forms.FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_engine_gives_nemos_logprobs(layout, name, written, exported):
    same(logprobs(exported[layout], f"{name}.imported"), logprobs(written, name))


@pytest.mark.parametrize("name", nemo_forms.FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nemos_class_restores_what_the_engine_exports(layout, name, written, exported):
    changed = logprobs(exported[layout], f"{name}.changed")
    assert (changed - logprobs(written, name)).abs().max() > 1e-2
    same(logprobs(exported[layout], name), changed)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs of ``nemo-rpo train``: from NeMo's file on two tensor-parallel ranks, and from Hugging Face's."""
    runs = {"nemo": (2, folder / "tiny.nemo"), "hf": (1, folder / "model")}
    found = {name: tmp_path_factory.mktemp(name) / "run" for name in runs}
    for name, (ranks, start) in runs.items():
        settings = {
            "pretrained_checkpoint.restore_from_path": start,
            "model.tensor_model_parallel_size": ranks,
            "model.data.data_prefix.train": folder / "train.jsonl",
            "model.optim.lr": 0.05,
            "model.optim.sched.warmup_steps": 0,
            "trainer.dpo.max_steps": 2,
            "exp_manager.explicit_log_dir": found[name],
            "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": True,
            "exp_manager.checkpoint_callback_params.save_hf_on_train_end": True,
        }
        if name == "hf":  # NeMo, which restores it, asks a tokenizer for its unknown words
            settings["model.tokenizer.type"] = folder / "tokenizer"
        given = [f"{key}={value}" for key, value in settings.items()]
        command = ["train", "--config-path", str(TESTS / "megatron"), "--config-name", "tiny", *given]
        run_ranks(TRAIN, ranks, *command, python=ENGINE)
    run_ranks(NEMO, 1, "restore", *(run / "policy.nemo" for run in found.values()), timeout=300)
    return found


@pytest.mark.parametrize("start", ["nemo", "hf"])
@torch.no_grad()
def test_a_trained_policy_is_the_same_as_nemo_and_as_hugging_face(start, trained, folder):
    token_ids = nemo_forms.tokens(world.VOCABULARY)
    of_hf = [LlamaForCausalLM.from_pretrained(at)(token_ids).logits for at in (trained[start] / "hf", folder / "model")]
    policy, before = (nemo_forms.token_logprobs(logits, token_ids) for logits in of_hf)
    assert (policy - before).abs().max() > 1e-2
    # Two implementations of the forward pass, in fp32.
    torch.testing.assert_close(logprobs(trained[start], "policy"), policy, rtol=0, atol=1e-5)


def test_both_starts_train_alike(trained):
    """NeMo's file and the Hugging Face folder hold the same weights: so do the runs' steps."""
    losses = []
    for run in trained.values():
        steps = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        losses.append([step["loss"] for step in steps if step["split"] == "train"])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
