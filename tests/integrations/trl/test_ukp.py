"""Real votes: UKPConvArg1's workers on pairs of arguments, four in ten of them turned round."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT
from transformers import AutoTokenizer

from nemo_rpo.integrations.trl import RPOTrainer, preference_dataset

from .world import arguments, logged


def test_eta_tells_inverted_workers_from_honest_ones(shared_data, tmp_path):
    votes, folder = shared_data / "ukpconvarg1", shared_data / "stories260k" / "hf"
    if not votes.is_dir() or not folder.is_dir():
        pytest.skip(f"ukpconvarg1 and stories260k are not in {shared_data}")
    command = [sys.executable, "prepare.py", "--data", votes, "--out", tmp_path, "--tokenizer", folder]
    options = ["--limit-votes", "1200", "--invert", "0.4", "--max-tokens", "112", "--limit-validation", "1"]
    place = {"cwd": ROOT / "examples" / "ukpconvarg1", "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    subprocess.run([*map(str, command), *options], check=True, timeout=120, **place)
    inverted = set(json.loads((tmp_path / "truth.json").read_text())["inverted_workers"])

    args = arguments(
        tmp_path / "run",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=16,
        learning_rate=3e-5,
        optim="adamw_torch",
        beta=0.1,
        max_steps=6,
    )
    trainer = RPOTrainer(
        str(folder),
        args=args,
        train_dataset=preference_dataset(tmp_path / "train.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        rpo={"sweep": "end"},
    )
    trainer.train()
    assert logged(trainer, "em/converged") == [1.0]
    labels = trainer.annotators.labels
    known = [name for name, count in zip(trainer.annotators.ids, labels, strict=True) if count >= 3]
    turned = [trainer.reliabilities[name] for name in known if name in inverted]
    honest = [trainer.reliabilities[name] for name in known if name not in inverted]
    assert min(len(turned), len(honest)) > 15
    right = sum((h > t) + 0.5 * (h == t) for h in honest for t in turned)
    assert right / (len(honest) * len(turned)) > 0.9
