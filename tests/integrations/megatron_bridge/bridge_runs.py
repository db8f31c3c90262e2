"""Whole ``finetune`` runs of Megatron-Bridge one after the other on the same ranks; each leaves what every step saw.

``argv``: the folder of a :mod:`tiny_world`, the folder to write to, and a JSON object of name → :class:`Run`'s fields.
"""

# ruff: noqa: E402 (what makes Megatron-Bridge run on a CPU comes before its import)
from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bridge_cpu

bridge_cpu.install()

import torch
import torch.distributed as dist
from megatron.bridge import AutoBridge
from megatron.bridge.training import initialize
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DistributedDataParallelConfig,
    DistributedInitConfig,
    LoggerConfig,
    OptimizerConfig,
    RerunStateMachineConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from megatron.bridge.training.finetune import finetune
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

from nemo_rpo.errors import RPOError
from nemo_rpo.integrations.megatron_bridge import PreferenceDatasetProvider, RPOCallback, RPOForwardStep, use_rpo


@dataclass
class Run:
    """One call of ``finetune``.

    Attributes:
        steps: to train, counted from the start of the run that a ``folder`` holds already.
        folder: of checkpoints; two runs that share one are a run and its continuation.
        config: settings of Bridge by their path (``model.pipeline_model_parallel_size``).
        data: fields of the data provider. rpo: the block's; the margin buffer, the default, has runs of its own.
        skipped: a step, from 0, that the optimizer skips.
    """

    steps: int = 4
    folder: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    rpo: dict[str, Any] = field(default_factory=lambda: {"estimator": "ema"})
    skipped: int | None = None


def local_layers(provider: Any) -> Any:
    """As the layers of Transformer Engine, without it."""
    return get_gpt_layer_local_spec(normalization=provider.normalization)


def tiny_model(folder: Path) -> Any:
    """Bridge's provider of the model in a Hugging Face ``folder``, for a CPU."""
    model = AutoBridge.from_hf_pretrained(folder, torch_dtype=torch.float32).to_megatron_provider(load_weights=False)
    model.transformer_layer_spec = local_layers
    model.params_dtype = model.pipeline_dtype = torch.float32
    model.bf16 = model.fp16 = False
    for fusion in ("gradient_accumulation", "bias_activation", "bias_dropout", "masked_softmax", "apply_rope"):
        name = f"{fusion}_fusion"
        assert hasattr(model, name), name
        setattr(model, name, False)
    model.persist_layer_norm = model.cross_entropy_loss_fusion = False
    model.use_cpu_initialization = True
    model.deallocate_pipeline_outputs = False  # gloo may not have read them yet
    model.make_vocab_size_divisible_by = 16
    return model


def configuration(world: Path, out: Path, run: Run) -> ConfigContainer:
    """The engine's ``tiny.yaml`` at a constant learning rate, in Bridge's words, under ``run``'s changes."""
    checkpoints = str(out / run.folder) if run.folder else None
    model = tiny_model(world / "model")
    model.seq_length = 24
    cfg = ConfigContainer(
        model=model,
        train=TrainingConfig(train_iters=run.steps, global_batch_size=16, micro_batch_size=4),
        validation=ValidationConfig(eval_interval=None, eval_iters=0),
        optimizer=OptimizerConfig(
            optimizer="adam", lr=2e-3, min_lr=2e-3, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.98, clip_grad=1.0,
            use_distributed_optimizer=False,
        ),
        scheduler=SchedulerConfig(
            lr_decay_style="constant", lr_warmup_iters=0, lr_decay_iters=100, start_weight_decay=0.1,
            end_weight_decay=0.1, weight_decay_incr_style="constant", override_opt_param_scheduler=True,
        ),
        ddp=DistributedDataParallelConfig(use_distributed_optimizer=False, grad_reduce_in_fp32=True),
        dataset=PreferenceDatasetProvider(
            data_prefix={"train": "train.jsonl"}, tokenizer_folder=str(world / "model"), seq_length=24, seed=5,
            num_workers=0, pin_memory=False, persistent_workers=False,
        ),
        logger=LoggerConfig(log_interval=1, logging_level=40),
        # Bridge tries its tokenizer on words of its own, which the world's does not know.
        tokenizer=TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=model.vocab_size - 1),
        checkpoint=CheckpointConfig(
            pretrained_checkpoint=str(world / "model"), save=checkpoints, load=checkpoints, save_interval=2,
            ckpt_format="torch_dist", async_save=False,
        ),
        dist=DistributedInitConfig(distributed_backend="gloo", use_gloo_process_groups=True, disable_jit_fuser=True),
        rng=RNGConfig(seed=1234),
        rerun_state_machine=RerunStateMachineConfig(rerun_mode="disabled"),
    )  # fmt: skip
    for name, value in run.data.items():
        setattr(cfg.dataset, name, value)
    cfg.dataset.data_prefix = {split: str(world / name) for split, name in cfg.dataset.data_prefix.items()}
    change(cfg, run.config)
    return change(use_rpo(cfg), run.config)  # what it sets may be what a run changes


def change(cfg: ConfigContainer, settings: dict[str, Any]) -> ConfigContainer:
    for path, value in settings.items():
        *sections, name = path.split(".")
        holder = cfg
        for section in sections:
            holder = getattr(holder, section)
        assert hasattr(holder, name), path
        setattr(holder, name, value)
    return cfg


class Recorder(Callback):
    """What is to be seen from outside after each step, on every rank."""

    def __init__(self, step: RPOForwardStep, skipped: int | None) -> None:
        self.step, self.skipped = step, skipped
        self.steps: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []
        self.margins: list[float] = []  # of all ranks' pairs, at the end

    def on_train_start(self, context: CallbackContext) -> None:
        take_step = context.optimizer.step
        train_state = context.state.train_state

        def step_or_skip() -> Any:
            return (False, None, None) if train_state.step == self.skipped else take_step()

        if self.skipped is not None:
            context.optimizer.step = step_or_skip

    def on_train_step_end(self, context: CallbackContext) -> None:
        losses = {name: value.item() for name, value in (context.loss_dict or {}).items()}
        em = self.step.em
        state = {"eta": em.eta.tolist(), "label_counts": em.label_counts.tolist(), "em_step": em.step}
        self.steps.append({**losses, **state, "grad_norm": context.grad_norm, "skipped": context.skipped_iter})

    def on_train_end(self, context: CallbackContext) -> None:
        if "margins" in (state := self.step.em.state_dict()):
            self.margins = state["margins"].tolist()

    def on_eval_end(self, context: CallbackContext) -> None:
        losses = {name: value.item() for name, value in context.total_loss_dict.items()}
        self.validation.append({**losses, "eta": self.step.em.eta.tolist()})


def finetuned(world: Path, out: Path, run: Run) -> dict[str, Any]:
    step = RPOForwardStep(rpo=run.rpo, dpo={"ref_policy_kl_penalty": 0.5})
    seen = Recorder(step, run.skipped)
    try:
        finetune(configuration(world, out, run), step, callbacks=[RPOCallback(step), seen])
    except RPOError as exc:
        return {"error": f"{type(exc).__name__}: {exc}"}
    finally:
        initialize.destroy_global_state()
    return {
        "steps": seen.steps,
        "validation": seen.validation,
        "annotators": step.annotators.ids,
        "settled": step.em.eta.tolist(),
        "margins": seen.margins,
    }


def main() -> None:
    world, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    dist.init_process_group("gloo")
    for name, fields in runs.items():
        found = finetuned(world, out, Run(**fields))
        (out / f"{name}.{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
        dist.barrier()
    dist.destroy_process_group()
