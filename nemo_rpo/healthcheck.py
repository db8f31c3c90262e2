"""``python -m nemo_rpo.healthcheck engine | losses``: trains two steps on a CPU, to show that an installation is whole.

``engine`` runs ``nemo-rpo train`` with the recipe ``healthcheck`` on a generated preference world: data, Megatron-Core,
losses, EM, checkpoint and export. ``losses`` takes what a worker of NeMo-RL has, torch alone: the loss that is pickled
to it, on a bigram policy. Neither needs a GPU, a network, or more than a temporary folder.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

_STEPS = 2


def engine() -> str:
    """Trains through the command line as a user would; what to say. Raises :class:`RuntimeError` if it fails."""
    from nemo_rpo.training.logs.metrics import read_metrics
    from nemo_rpo.world.files import WorldConfig, write_world
    from nemo_rpo.world.simulated_annotators import AnnotatorConfig

    # A check inside a job must not take itself for one of its ranks, nor take a core from each of them.
    of_a_job = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in of_a_job}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        world, run = Path(folder, "world"), Path(folder, "run")
        write_world(world, WorldConfig(validation_pairs=1, annotators=AnnotatorConfig((0.9, 0.6), 8, 1), pretrain=None))
        settings = {
            "exp_manager.explicit_log_dir": run,
            "model.tokenizer.type": world / "model",
            "model.data.data_prefix.train": world / "train.jsonl",
        }
        command = [sys.executable, "-m", "nemo_rpo.cli", "train", "--config-name", "healthcheck"]
        command += [f"{name}={path}" for name, path in settings.items()]
        trained = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        if trained.returncode:
            raise RuntimeError(trained.stderr)
        losses = [row["loss"] for row in read_metrics(run) if row["split"] == "train"]
        if len(losses) != _STEPS or not all(map(math.isfinite, losses)):
            raise RuntimeError(f"the steps' losses are {losses}")
        if not (run / "hf" / "model.safetensors").exists():
            raise RuntimeError("the run left no export")
    return f"trained {_STEPS} steps through Megatron-Core, losses {losses[0]:.3f} {losses[1]:.3f}"


def losses() -> str:
    """Trains a bigram table with NeMo-RL's loss; what to say. Raises :class:`RuntimeError` if it fails."""
    import torch

    from nemo_rpo.integrations.nemo_rl.loss import EVIDENCE, LABEL, PAIR, SHARPNESS, VOICE, make_loss

    loss_fn = pickle.loads(pickle.dumps(make_loss({"reference_policy_kl_penalty": 1.0, "robust": {}})))
    generator = torch.Generator().manual_seed(0)
    rows, length, vocabulary = 8, 6, 5
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    policy = torch.zeros(vocabulary, vocabulary, requires_grad=True)
    optimizer = torch.optim.SGD([policy], lr=0.1)

    def next_token_logprobs() -> torch.Tensor:
        return policy.log_softmax(-1)[tokens[:, :-1], tokens[:, 1:]]

    data = {
        "token_mask": torch.ones(rows, length, dtype=torch.int64),
        "sample_mask": torch.ones(rows),
        "reference_policy_logprobs": torch.nn.functional.pad(next_token_logprobs().detach(), (0, 1)),
        EVIDENCE: torch.full((rows,), 2.0),
        LABEL: torch.full((rows,), 2.0).sigmoid(),
        VOICE: torch.ones(rows),
        SHARPNESS: torch.ones(rows),
        PAIR: torch.arange(rows) // 2,
    }
    values = []
    for _ in range(_STEPS):
        loss, _ = loss_fn(next_token_logprobs(), data, torch.tensor(float(rows)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    if not all(map(math.isfinite, values)) or values[1] >= values[0]:
        raise RuntimeError(f"the steps' losses are {values}")
    return f"trained {_STEPS} steps, losses {values[0]:.3f} {values[1]:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Runs one check; returns 0 if it went well and 1, which is Docker's "unhealthy", if it did not."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_rpo.healthcheck",
        description="Train two steps on a CPU, to show that an installation is whole.",
    )
    checks = {"engine": engine, "losses": losses}
    parser.add_argument("what", choices=checks)
    try:
        print(checks[parser.parse_args(argv).what]())
    except Exception as exc:
        print(f"unhealthy: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
