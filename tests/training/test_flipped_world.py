"""The embedded world with a fifth of the labels flipped at random, and one annotator who flips nearly all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nemo_rpo.report.build import build_report
from nemo_rpo.report.rendering.document import Quote, Table
from nemo_rpo.report.run import Run, read_run

from .runs import World

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ADVERSARY = "a08"
SETTINGS = """
trainer: {{accelerator: cpu, precision: 32, dpo: {{max_epochs: 3, val_check_interval: 0, save_interval: 0}}}}
exp_manager: {{name: flipped, checkpoint_callback_params: {{save_hf_on_train_end: false}}}}
pretrained_checkpoint: {{restore_from_path: {folder}/model}}
model:
  micro_batch_size: 64
  global_batch_size: 64
  encoder_seq_length: 16
  dpo: {{ref_policy_kl_penalty: 0.5}}
  rpo: {{sweep: end}}
  optim: {{lr: 4e-3, sched: {{warmup_steps: 10}}}}
  data: {{data_prefix: {{train: {folder}/train.jsonl, validation: {folder}/validation.jsonl}}}}
"""


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Run]:
    from nemo_rpo.world.files import WorldConfig, write_world
    from nemo_rpo.world.simulated_annotators import AnnotatorConfig

    folder = tmp_path_factory.mktemp("flipped")
    annotators = AnnotatorConfig((0.8,) * 7 + (0.1,), 500, 1)
    write_world(folder, WorldConfig(validation_pairs=400, annotators=annotators))
    (folder / "run.yaml").write_text(SETTINGS.format(folder=folder))
    world = World(folder)
    world.train(folder / "run")
    return world, read_run(folder / "run")


def flips(world: World, run: Run) -> np.ndarray:
    """bool, of each label of the record whether it was flipped: whether what it prefers is of lower gold quality."""
    from nemo_rpo.world.language import Language, LanguageConfig

    utility = Language(LanguageConfig(), seed=0).utility

    def quality(row: dict, side: str) -> float:
        style, tokens = (np.array([int(word[1:]) for word in text.split()]) for text in (row["prompt"][:2], row[side]))
        return utility[style, tokens].sum()

    rows = map(json.loads, (world.folder / "train.jsonl").read_text().splitlines())
    wrong = {row["pair_id"]: quality(row, "chosen") < quality(row, "rejected") for row in rows}
    return np.array([wrong[pair] for pair in run.labels.pair_id])


def test_flipped_labels_are_found(flipped: tuple[World, Run]) -> None:
    world, run = flipped
    wrong, doubt = flips(world, run), 1 - run.labels.w_last
    truth = json.loads((world.folder / "truth.json").read_text())
    assert wrong.mean() == pytest.approx(1 - truth["label_accuracy"], abs=1e-9)
    rank = np.argsort(np.argsort(doubt))
    auroc = (rank[wrong].mean() - (wrong.sum() - 1) / 2) / (~wrong).sum()
    assert auroc >= 0.9


def test_the_adversary_is_first(flipped: tuple[World, Run]) -> None:
    run = flipped[1]
    document = build_report(run)
    tables = [b for s in document.sections if s.title == "Annotators" for b in s.blocks if isinstance(b, Table)]
    assert tables[0].rows[0][0] == ADVERSARY and float(tables[0].rows[0][2]) < 0.25 < 0.6 < float(tables[0].rows[1][2])
    quotes = [
        b for s in document.sections if s.title == "Most doubtful labels" for b in s.blocks if isinstance(b, Quote)
    ]
    assert len(quotes) == 20
