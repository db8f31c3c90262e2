"""A run that goes on from an earlier one as the next round of a loop: its reference, its annotators, its distance."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from nemo_rpo.training.logs.metrics import read_metrics

from .runs import World, checkpoints, step

pytestmark = pytest.mark.distributed


def log_probs(folder: Path, rows: list[dict[str, str]], side: str) -> torch.Tensor:
    """Summed log-probs of the responses of ``side`` under a Hugging Face folder, by transformers alone: ``[rows]``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = tokenizer(row[side], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(response).unsqueeze(1)).sum())
    return torch.stack(found)


def held_out(world: World) -> list[dict[str, str]]:
    return [json.loads(line) for line in (world.folder / "validation.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def second(world: World, unbroken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next round: it starts from the first one's policy, and its reference is what that one started from. Killed
    while it saves its last step, and gone on with.
    """
    out = tmp_path_factory.mktemp("second") / "run"
    settings = next_round(world, unbroken)
    stopped = world.train(out, *settings, stop_at=f"kill open .writing-{step(4)}/run.json", check=False)
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr[-2000:]
    said = [line for line in stopped.stderr.splitlines() if "not the start" in line]
    assert len(said) == 1 and said[0].startswith(f"the reference is {world.folder}/model, not the start: ")
    changed = world.train(out, *settings, f"model.rpo.reference_from={unbroken}/hf", check=False)
    assert changed.returncode == 2 and changed.stderr.splitlines()[-1].startswith(
        f"error: {out}/checkpoints/{checkpoints(out)[-1]} was trained against another reference than "
        f"model.rpo.reference_from={unbroken}/hf: set it back, "
    )
    world.train(out, *settings)
    return out


def next_round(world: World, unbroken: Path) -> list[str]:
    return [
        f"pretrained_checkpoint.restore_from_path={unbroken}/hf",
        f"model.rpo.reference_from={world.folder}/model",
        "trainer.dpo.max_steps=4",
    ]


def test_margins_are_relative_to_the_reference_and_not_to_the_start(world: World, unbroken: Path, second: Path) -> None:
    """The last validation, done again by transformers with three folders."""
    last = [row for row in read_metrics(second) if row["split"] == "val"][-1]
    rows = held_out(world)
    for side in ("chosen", "rejected"):
        policy, reference, start = (
            log_probs(folder, rows, side) for folder in (second / "hf", world.folder / "model", unbroken / "hf")
        )
        assert last[f"rewards_{side}_mean"] == pytest.approx((policy - reference).mean().item(), abs=1e-4)
        assert abs((policy - start).mean().item() - last[f"rewards_{side}_mean"]) > 1e-2


def test_a_stop_and_the_place_of_the_reference_change_nothing(
    world: World, unbroken: Path, second: Path, tmp_path: Path
) -> None:
    for where in ("cached", "resident"):
        world.train(tmp_path / where, *next_round(world, unbroken), f"model.rpo.reference={where}")
        found, expected = (read_metrics(run, timing=False) for run in (tmp_path / where, second))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
