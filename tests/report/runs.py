"""Folders as training leaves them, of a made-up crowd whose every error is known: written by the same writers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nemo_rpo.config.load import config_to_yaml
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.annotator_table import Annotator, AnnotatorTable
from nemo_rpo.em import EMSettings, Votes, full_batch_em, standard_errors
from nemo_rpo.em.record import Trajectory
from nemo_rpo.training.outputs import record
from nemo_rpo.training.outputs.results import write_annotators
from nemo_rpo.training.outputs.summary import AnnotatorRow

STEPS = 40


@dataclass
class Crowd:
    """Pairs as a token cache tells of them, and what is true of each label.

    Attributes:
        sign: [v] what was said, relative to chosen, the response that most labels prefer; right: [v] whether it is so.
    """

    ids: list[str]
    annotators: AnnotatorTable
    pair: np.ndarray
    annotator: np.ndarray
    sign: np.ndarray
    right: np.ndarray
    lengths: np.ndarray
    gold: np.ndarray
    file: str

    def __len__(self) -> int:
        return len(self.ids)

    def all_votes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.pair, self.annotator, self.sign

    @property
    def files(self) -> list[str]:
        return [self.file]

    def all_pair_ids(self) -> tuple[np.ndarray, np.ndarray]:
        text = [name.encode() for name in self.ids]
        return np.frombuffer(b"".join(text), np.uint8), np.cumsum([0, *map(len, text)])

    def all_prompts(self) -> tuple[np.ndarray, np.ndarray]:
        """A prompt of its own for each pair."""
        ends = np.cumsum(self.lengths[:, 0])
        return np.arange(ends[-1], dtype=np.int32), ends - self.lengths[:, 0]

    def all_sources(self) -> np.ndarray:
        return np.stack((np.zeros(len(self), np.int64), np.arange(1, len(self) + 1)), 1)


def make_run(
    folder: Path,
    reliabilities: list[float],
    pairs: int = 400,
    per_pair: int = 3,
    seed: int = 0,
    taste: int = 0,
) -> Crowd:
    """Writes ``folder`` (a run's) and ``folder``'s data beside it; returns the truth.

    The last ``taste`` annotators prefer what the others do not, all alike, on the half of the pairs with even numbers.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    data = folder.with_name(f"{folder.name}.train.jsonl")
    k = len(reliabilities)
    names = [f"w{i:04d}" for i in range(k)]
    better = rng.choice((-1, 1), pairs)  # +1: response_a
    rows, annotator, said_a = [], [], []
    for i in range(pairs):
        who = rng.choice(k, per_pair, replace=False)
        right = rng.random(per_pair) < np.array(reliabilities)[who]
        if i % 2 == 0:
            right = np.where(who >= k - taste, rng.random(per_pair) < 0.05, right)
        said = np.where(right, better[i], -better[i])
        annotator.append(who)
        said_a.append(said)
        texts = [
            " ".join(["word"] * int(n)) + f" {i}{side}" for n, side in zip(rng.integers(1, 30, 2), "ab", strict=True)
        ]
        votes = [{"annotator": names[a], "vote": "a" if s > 0 else "b"} for a, s in zip(who, said, strict=True)]
        rows.append(
            {
                "pair_id": f"p{i}",
                "prompt": f"<b>Question</b> {i}?",
                "response_a": texts[0],
                "response_b": texts[1],
                "votes": votes,
            }
        )
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    crowd = _crowd(rows, names, np.concatenate(annotator), np.concatenate(said_a), better, per_pair, str(data))
    _write(folder, crowd, better, rng, data)
    return crowd


def _crowd(rows, names, annotator, said_a, better, per_pair, file) -> Crowd:
    pairs = len(rows)
    pair = np.repeat(np.arange(pairs), per_pair)
    balance = np.bincount(pair, weights=said_a, minlength=pairs)
    turned = np.where(balance < 0, -1, 1)
    lengths = np.array([[5, len(row["response_a"].split()), len(row["response_b"].split())] for row in rows])
    lengths[turned < 0] = lengths[turned < 0][:, [0, 2, 1]]
    counts = np.bincount(annotator, minlength=len(names))
    table = AnnotatorTable(Annotator(name, int(n), f"{file}:1") for name, n in zip(names, counts, strict=True))
    sign = (said_a * turned[pair]).astype(np.int8)
    return Crowd(
        [row["pair_id"] for row in rows], table, pair, annotator, sign, said_a == better[pair], lengths,
        (better * turned).astype(np.int8), file,
    )  # fmt: skip


def _write(folder: Path, crowd: Crowd, better: np.ndarray, rng: np.random.Generator, data: Path) -> None:
    """A policy that has learnt the truth, with noise; reliabilities fitted to its margins."""
    pairs, k = len(crowd), len(crowd.annotators)
    delta = (crowd.gold * rng.gamma(2.0, 1.0, pairs) + rng.normal(0, 0.7, pairs)).astype(np.float32)
    first = (0.3 * delta + rng.normal(0, 0.3, pairs)).astype(np.float32)
    first[:32] = 0
    per_pair = len(crowd.pair) // pairs
    votes = Votes(
        torch.from_numpy(crowd.annotator.reshape(pairs, per_pair)),
        torch.from_numpy(crowd.sign.reshape(pairs, per_pair)),
    )
    settings = EMSettings()
    eta = full_batch_em(torch.from_numpy(delta), votes, torch.full((k,), 0.9), settings).eta
    errors = standard_errors(torch.from_numpy(delta), votes, eta, settings)
    trajectory = Trajectory(k)
    for step in range(1, STEPS + 1):
        trajectory.pass_by(step, 0.9 + (eta - 0.9) * (1 - 0.9**step))
    trajectory.keep(STEPS, eta)
    rows = [
        AnnotatorRow(a.id, a.labels, float(e), 0.9, float(s), float(e))
        for a, e, s in zip(crowd.annotators.annotators, eta, errors, strict=True)
    ]
    write_annotators(folder, rows)
    record.write_annotators(folder, STEPS, rows, trajectory)
    seen = np.stack((first, np.full(pairs, 0.9, np.float32), delta), 1)
    record.write_posteriors(folder, STEPS, crowd, seen, torch.logit(eta).numpy(), 1.0)
    record.write_validation(folder, STEPS, {"": (crowd, (0.6 * delta).astype(np.float32))})
    cfg = RunConfig()
    cfg.exp_manager.name, cfg.model.data.data_prefix = "made_up", {"train": str(data)}
    (folder / "config.yaml").write_text(config_to_yaml(cfg))
    lines = []
    for step in range(1, STEPS + 1):
        figures = {"loss": 0.7 - 0.005 * step + 0.02 * rng.normal(), "acc": 0.5 + 0.008 * step, "margin": 0.1 * step}
        lines.append({"step": step, "split": "train", **figures})
        if step % 10 == 0:
            lines.append({"step": step, "split": "val", **figures})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
