"""What a checkpoint costs, with and without the EM's state of a million pairs, on two ranks.

    python -m torch.distributed.run --nproc-per-node 2 benchmarks/save_cost.py [--pairs 1000000] [--rounds 5]

The model is small, so that what is left is the pairs: 4 bytes each of the margin buffer, 12 of the record, in blocks
over the data-parallel ranks. Seconds are a save's from its beginning until its files are on the disk, digests included,
and, under ``asynchronous``, until training may go on; the least of the rounds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from nemo_rpo.config.load import load_config
from nemo_rpo.megatron import cpu

SETTINGS = """
trainer: {{accelerator: cpu, precision: 32, dpo: {{max_steps: 1}}}}
exp_manager: {{explicit_log_dir: {folder}/run}}
pretrained_checkpoint: {{restore_from_path: {folder}/model}}
model:
  global_batch_size: 8
  encoder_seq_length: 16
  data: {{data_prefix: {{train: {folder}/train.jsonl}}}}
"""
ANNOTATORS = 1000


def write_world(folder: Path) -> None:
    from nemo_rpo.world.files import WorldConfig, write_world
    from nemo_rpo.world.pretraining import PretrainConfig
    from nemo_rpo.world.simulated_annotators import AnnotatorConfig

    annotators = AnnotatorConfig((0.95, 0.8, 0.6, 0.2), 12, 1)
    write_world(folder, WorldConfig(validation_pairs=16, annotators=annotators, pretrain=PretrainConfig(steps=1)))
    (folder / "run.yaml").write_text(SETTINGS.format(folder=folder))


def recorded(cfg: Any, pairs: int) -> Any:
    """The estimator of a run on so many pairs, half of them seen."""
    import torch

    from nemo_rpo.em import BufferedReliability, MarginBuffer, PairRecord, RecordedReliability, Votes
    from nemo_rpo.megatron import parallel
    from nemo_rpo.megatron.step.em import COLLECTIVES

    place = parallel.data_parallel_rank(), parallel.data_parallel_size()
    buffer, record = MarginBuffer(pairs, *place), PairRecord(pairs, *place)
    votes = Votes(torch.zeros(len(buffer.margins), 1, dtype=torch.int32), torch.ones(len(buffer.margins), 1))
    em = BufferedReliability(ANNOTATORS, cfg.model.rpo, buffer, votes, COLLECTIVES)
    margins = torch.where(torch.arange(pairs) % 2 == 0, torch.linspace(-5, 5, pairs), torch.nan)
    for block in (buffer, *record.blocks().values()):
        block.load(margins)
    return RecordedReliability(em, record, COLLECTIVES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cpu.install()
    import torch
    import torch.distributed as dist

    from nemo_rpo.config.schema import RunConfig
    from nemo_rpo.em import AnnotatorReliability
    from nemo_rpo.megatron import parallel
    from nemo_rpo.megatron.model import MegatronGPTRPOModel
    from nemo_rpo.training import data_of_run, setup
    from nemo_rpo.training.checkpoints import CheckpointStore

    torch.set_num_threads(1)
    parallel.initialize(_any_config())
    place: list[str] = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(place)
    folder = Path(place[0])
    if dist.get_rank() == 0:
        write_world(folder)
    dist.barrier()
    cfg: RunConfig = load_config(f"{folder}/run.yaml", [], notify=lambda text: None)
    splits = data_of_run.open_splits(cfg)
    cache = splits["train"].cache
    model: MegatronGPTRPOModel = setup.build_model(
        cfg, setup.architecture_for(cfg, cache), cache, 1, torch.device("cpu")
    )
    ways = {
        "without the pairs": AnnotatorReliability(ANNOTATORS, cfg.model.rpo),
        f"{args.pairs:,} pairs": recorded(cfg, args.pairs),
    }

    def save(store: CheckpointStore, step: int) -> tuple[float, float]:
        run = {"step": step, "metrics": {}}
        dist.barrier()
        began = time.perf_counter()
        store.save(model, cache.annotators, run)
        until_training = time.perf_counter() - began
        store.finish(wait=True)
        return until_training, time.perf_counter() - began

    lines = []
    for asynchronous in (False, True):
        cfg.exp_manager.async_save = asynchronous
        cfg.exp_manager.checkpoint_callback_params.save_top_k = 0
        for name, em in ways.items():
            model.em = em
            store = CheckpointStore(folder / f"{name}, {asynchronous}", cfg.exp_manager)
            seconds = [save(store, step) for step in range(1, args.rounds + 2)][1:]  # the first settles who writes what
            held, whole = (min(of) for of in zip(*seconds, strict=True))
            last = store.latest()
            bytes_of = [
                sum(f.stat().st_size for f in last.glob(f"__{rank}_*")) for rank in range(dist.get_world_size())
            ]
            how = "asynchronous" if asynchronous else "at once"
            lines.append(f"{name:20s} {how:13s} {held:8.2f} s {whole:8.2f} s   bytes a rank: {bytes_of}")
    if dist.get_rank() == 0:
        print(f"{'':34s} training  on the disk\n" + "\n".join(lines))
        shutil.rmtree(folder)
    parallel.finalize()


def _any_config() -> Any:
    """Enough of one to start the ranks with."""
    from nemo_rpo.config.schema import RunConfig

    cfg = RunConfig()
    cfg.trainer.accelerator = "cpu"
    return cfg


if __name__ == "__main__":
    main()
