"""Reference log-probs of all data, for runs that train on it later. Called on every rank."""

from __future__ import annotations

from pathlib import Path

from nemo_rpo.config.load import print_on_first_rank
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.counting import counted
from nemo_rpo.training.process.accelerator import use_accelerator


def score(cfg: RunConfig, per_token: bool) -> None:
    """Writes a file for each split of ``cfg``'s data under the reference's weights, where a run of ``cfg`` looks
    (``model.rpo.reference=cached``), whatever the layouts of the two. Collective over the world.

    ``per_token`` adds the log-probs of each response token, for other programs. Files that are there are replaced.

    Raises:
        RPOError: anything the user can mend.
    """
    use_accelerator(cfg)
    from nemo_rpo.megatron import parallel
    from nemo_rpo.training import data_of_run, setup
    from nemo_rpo.training.reference.source import compute_and_write, reference_files

    cfg.model.rpo.reference = "cached"  # no second copy of the weights: the model's own are the reference's
    device = parallel.initialize(cfg)
    setup.check_start(cfg)
    splits = data_of_run.open_splits(cfg)
    cache = splits["train"].cache
    model = setup.build_model(cfg, setup.architecture_for(cfg, cache), cache, total_steps=1, device=device)
    for name, split, path in reference_files(cfg, splits):
        compute_and_write(path, cfg, model, name, split, per_token)
        print_on_first_rank(_summary(path, len(split.cache)))
    parallel.finalize()


def _summary(path: Path, pairs: int) -> str:
    return f"{path}: reference log-probs of {counted(pairs, 'pair')}"
