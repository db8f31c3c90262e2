"""``checkpoint.custom_manager_class``: η beside the weights, and the weights that a resumed run began with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from megatron.bridge.training.checkpointing import (
    CheckpointLoadContext,
    CheckpointSaveContext,
    DefaultCheckpointManager,
)
from megatron.bridge.training.config import CheckpointConfig
from megatron.bridge.training.state import GlobalState
from megatron.bridge.training.utils.checkpoint_utils import (
    checkpoint_exists,
    get_checkpoint_name,
    is_checkpoint_iteration_directory,
)

from nemo_rpo.integrations.em_state import packed, save_state
from nemo_rpo.megatron.frozen_policy import ReferencePolicy

if TYPE_CHECKING:
    from nemo_rpo.integrations.megatron_bridge.step import RPOForwardStep

# Bridge makes the manager out of its own configuration, and shows it and the callbacks the same state.
_MANAGERS: WeakKeyDictionary[GlobalState, RPOCheckpointManager] = WeakKeyDictionary()


def manager_of(state: GlobalState) -> RPOCheckpointManager | None:
    """The manager that loaded the weights of the run; None if another one did."""
    return _MANAGERS.get(state)


class RPOCheckpointManager(DefaultCheckpointManager):
    """Bridge's own manager, with the EM's state in its folders: ``iter_…/rpo_state.json`` has η, its evidence and the
    table of annotators, ``rpo_margins.npy`` beside it the margins of all pairs under ``estimator: buffer``.

    Attributes:
        step: whose η is saved; the callback sets it.
        resumed_from: folder of the checkpoint that a run was resumed from; None for a fresh one.
        start: a holder of the weights that a *resumed* run began with, ``checkpoint.pretrained_checkpoint``'s, until
            the callback has its reference.
    """

    def __init__(self, checkpoint_config: CheckpointConfig) -> None:
        super().__init__(checkpoint_config)
        self.step: RPOForwardStep | None = None
        self.resumed_from: Path | None = None
        self.start: ReferencePolicy | None = None

    def load(self, ctx: CheckpointLoadContext) -> tuple[int, int]:
        """Bridge's. Before trained weights come in, those the run began with do, to be kept in host memory."""
        _MANAGERS[ctx.state] = self
        cfg = self.checkpoint_config
        if cfg.pretrained_checkpoint is not None and checkpoint_exists(cfg.load) and not cfg.finetune:
            self._load_start(ctx)
        found = super().load(ctx)
        if ctx.state.train_state.step > 0:
            direct = is_checkpoint_iteration_directory(cfg.load)
            self.resumed_from = Path(cfg.load if direct else get_checkpoint_name(cfg.load, ctx.state.train_state.step))
        return found

    def _load_start(self, ctx: CheckpointLoadContext) -> None:
        cfg = self.checkpoint_config
        kept = {name: getattr(cfg, name) for name in ("load", "ckpt_step", "finetune")}
        cfg.load, cfg.ckpt_step = None, None
        try:
            super().load(replace(ctx, optimizer=None, opt_param_scheduler=None))
        finally:
            for name, value in kept.items():
                setattr(cfg, name, value)
        self.start = ReferencePolicy(ctx.model, build_resident=None)

    def reference(
        self, model: list[torch.nn.Module], build_resident: Callable[[], list[torch.nn.Module]] | None
    ) -> ReferencePolicy:
        """The frozen weights: those a resumed run began with, else the ones that ``model`` has now."""
        if self.start is None:
            return ReferencePolicy(model, build_resident)
        if build_resident is None:
            return self.start
        with self.start.active(model):
            return ReferencePolicy(model, build_resident)

    def save(self, ctx: CheckpointSaveContext, callback_manager: Any = None) -> None:
        """Bridge's, then the EM's state by the first rank. Collective, see
        :func:`nemo_rpo.integrations.em_state.packed`.
        """
        super().save(ctx, callback_manager)
        self._save_em(Path(get_checkpoint_name(self.checkpoint_config.save, ctx.state.train_state.step)))

    def save_result(self) -> None:
        """The EM's state after the run's end, in the folder of the checkpoints; where the run saves none, nothing.

        Collective, as :meth:`save`.
        """
        if self.checkpoint_config.save is not None:
            self._save_em(Path(self.checkpoint_config.save))

    def _save_em(self, folder: Path) -> None:
        step = self.step
        if step is not None and step.rpo.enabled:
            saved = packed(step.em, step.annotators, step.data)
            if dist.get_rank() == 0:
                save_state(folder, saved)
