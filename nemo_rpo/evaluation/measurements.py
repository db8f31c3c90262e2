"""The margins of a policy on labelled pairs, through the engine that trained it. Called on every rank."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.evaluation.group_weights import weights_for
from nemo_rpo.evaluation.scores import Scores, scores_of


@contextmanager
def engine(cfg: RunConfig) -> Iterator[torch.device]:
    """Process groups for the layout of ``cfg``; this rank's device. Collective over the world."""
    if cfg.trainer.accelerator == "cpu":
        from nemo_rpo.megatron import cpu

        cpu.install()
    elif not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but this machine has no usable GPU: add trainer.accelerator=cpu")
    from nemo_rpo.megatron import parallel

    device = parallel.initialize(cfg)
    try:
        yield device
    finally:
        parallel.finalize()


def measure(target: Target, group: int | None = None) -> tuple[Scores, str]:
    """Δ of every pair of ``model.data.data_prefix.train`` under the settings' loss, and a sentence on the data; the
    same on every rank.

    A reward model with groups of taste judges as ``group`` (from 1), or as each annotator's own group by the weights
    that the run has learnt; whoever it does not know is an average of them.

    Takes the memory of training, for the engine is built as for it. The tokens go to ``model.data.cache_dir``, or to
    a temporary folder.

    Raises:
        RPOError: weights or data that cannot be read, or do not fit each other.
    """
    cfg = target.cfg
    with engine(cfg) as device, _token_folder(cfg):
        from nemo_rpo.megatron.checkpoint.adapter.description import is_adapter
        from nemo_rpo.training import data_of_run, setup
        from nemo_rpo.training.sweep import margins

        cfg.model.rpo.enabled = cfg.model.rpo.record = False
        if cfg.model.rpo.reference == "cached":
            cfg.model.rpo.reference = "swapped"
        if base_loss(cfg.model).groups > 1:
            cfg.model.data.group_votes = False  # labels on one pair may be of annotators of different groups
        setup.check_start(cfg)
        cache = data_of_run.open_split(cfg, "train")
        architecture = setup.architecture_for(cfg, cache)
        if not is_adapter(target.weights) and setup.stored_architecture(target.weights, cfg) != architecture:
            raise CheckpointError(
                f"{target.weights} has a different architecture from its reference "
                f"{cfg.pretrained_checkpoint.restore_from_path}: name the weights that it was trained from"
            )
        model = setup.build_model(cfg, architecture, cache, 1, device)  # with the reference's weights
        setup.target_loader(target.weights, architecture, cfg)(model.model)
        if model.loss.groups > 1 or group is not None:
            model.em.replace_weights(weights_for(target, model.loss.groups, cache.annotators.ids, group))
        dataset = data_of_run.dataset_of(cfg, cache, shuffle=False)

        def batches() -> Iterator[list]:
            for batch in dataset.batches(range(len(dataset))):
                model.add_ref_policy_logprobs(batch)
                yield batch

        with model.evaluating():
            delta = margins(model, batches()).everywhere(len(cache))
        return scores_of(cache, delta.cpu().numpy()), cache.summary()


@contextmanager
def _token_folder(cfg: RunConfig) -> Iterator[None]:
    from nemo_rpo.training.process.rank0 import on_first_rank

    if cfg.model.data.cache_dir is not None:
        yield
        return
    cfg.model.data.cache_dir = on_first_rank(lambda: tempfile.mkdtemp(prefix="nemo-rpo-tokens-"))
    try:
        yield
    finally:
        shutil.rmtree(Path(cfg.model.data.cache_dir), ignore_errors=True)
