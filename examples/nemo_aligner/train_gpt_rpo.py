"""NeMo-Aligner's DPO recipe with robust losses: its model, data and trainer, with reliabilities of annotators.

    python train_gpt_rpo.py --config-path /opt/NeMo-Aligner/examples/nlp/gpt/conf --config-name gpt_dpo \
        'model.data.data_prefix={train: [train.jsonl], validation: [val.jsonl], test: [val.jsonl]}' …
    python train_gpt_rpo.py model.rpo.base_loss=ipo …

Run it where NeMo-Aligner 0.7's ``train_gpt_dpo.py`` runs, with its settings; the second form reads ``gpt_rpo.yaml``
in ``conf``. Every row of the training data names its annotator in one more field.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch.multiprocessing
from nemo.core.config import hydra_runner
from nemo.utils.exp_manager import exp_manager
from nemo_aligner.algorithms.dpo import dpo_custom_collate
from nemo_aligner.data.nlp.builders import build_dataloader, identity_collate
from nemo_aligner.utils import train_script_utils as script
from nemo_aligner.utils.distributed import Timer
from nemo_aligner.utils.utils import (
    load_and_override_model_config,
    load_from_nemo,
    retrieve_model_state_dict_in_cpu,
)
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_rpo.integrations.em_state import packed, save_state
from nemo_rpo.integrations.nemo_aligner import (
    MegatronGPTRPOModel,
    RPOTrainer,
    annotated_datasets,
    training_labels,
)
from nemo_rpo.integrations.nemo_aligner.aligner_settings import base_loss
from nemo_rpo.launch import run_on_ranks

OmegaConf.register_new_resolver("multiply", lambda x, y: x * y, replace=True)
OmegaConf.register_new_resolver("int_div", lambda x, y: x // y, replace=True)


def train(cfg: DictConfig) -> None:
    # Before the weights are read: a mistake in the settings or in the data costs seconds.
    base_loss(cfg.model)
    labels = training_labels(cfg.model)

    path, rpo = cfg.pretrained_checkpoint.restore_from_path, cfg.model.get("rpo")
    cfg.model = load_and_override_model_config(path, cfg.model)
    with open_dict(cfg.model):
        cfg.model.rpo = rpo  # and not what an earlier run has left in the checkpoint
    trainer = script.resolve_and_create_trainer(cfg, "dpo")
    log_dir = exp_manager(trainer, cfg.exp_manager)
    model = load_from_nemo(MegatronGPTRPOModel, cfg.model, trainer, restore_path=path)
    rpo_trainer = build_rpo_trainer(cfg, trainer, model, labels=labels)
    rpo_trainer.fit()
    if model.rpo.enabled and log_dir is not None:
        saved = packed(model.em, model.labels.annotators, model.labels.fingerprint)  # on every rank
        if trainer.is_global_zero:
            save_state(Path(log_dir), saved)


def build_rpo_trainer(cfg: DictConfig, trainer: Any, model: MegatronGPTRPOModel, **kwargs: Any) -> RPOTrainer:
    """The trainer of a model that holds the weights to start from, standing where ``trainer.ckpt_path`` left off."""
    script.init_peft(model, cfg.model)
    if cfg.model.peft.peft_scheme == "none":
        o2 = cfg.model.get("megatron_amp_O2", False)
        model.ref_policy_state_dict = retrieve_model_state_dict_in_cpu(model, megatron_amp_O2=o2)
    resumed = script.retrieve_custom_trainer_state_dict(trainer)
    script.init_distributed(trainer, model, cfg.model.get("transformer_engine", False))

    data = cfg.model.data
    train_ds, validation_ds, _ = annotated_datasets(
        cfg=cfg.model,
        data_prefix=data.data_prefix,
        data_impl=data.data_impl,
        splits_string=data.splits_string,
        train_valid_test_num_samples=[-cfg.model.global_batch_size] * 3,  # all of each
        seq_length=data.seq_length,
        seed=cfg.model.seed,
        tokenizer=model.tokenizer,
    )
    loader = partial(
        build_dataloader,
        cfg=cfg,
        mbs=cfg.model.micro_batch_size,
        gbs=cfg.model.global_batch_size,
        load_gbs=True,
        collate_fn=identity_collate,
    )
    train_dl = loader(dataset=train_ds, consumed_samples=resumed["consumed_samples"] if resumed else 0)
    validation_dl = loader(dataset=validation_ds, consumed_samples=0, use_random_sampler=False)
    script.init_using_ptl(trainer, model, train_dl, train_ds)
    optimizer, scheduler = script.extract_optimizer_scheduler_from_ptl_model(model)
    checkpoints = script.add_custom_checkpoint_callback(trainer, model)

    packed = data.data_impl == "packed_jsonl"
    masks = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss")
    logger = script.CustomLoggerWrapper(trainer.loggers)
    logger.log_hyperparams(OmegaConf.to_container(cfg))
    found = RPOTrainer(
        cfg=cfg.trainer.dpo,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        train_dataloader=train_dl,
        val_dataloader=validation_dl,
        test_dataloader=None,
        collate_fn=partial(
            train_ds.global_collate_fn if packed else dpo_custom_collate,
            eos_id=model.tokenizer.eos_id,
            **{name: data.get(name, False) for name in masks},
        ),
        logger=logger,
        ckpt_callback=checkpoints,
        run_timer=Timer(cfg.exp_manager.get("max_time_per_run") if cfg.exp_manager else None),
        pad_length_to_multiple_of=data.get("pad_length_to_multiple_of"),
        **kwargs,
    )
    if resumed is not None:
        found.load_state_dict(resumed)
    return found


@hydra_runner(config_path="conf", config_name="gpt_rpo")
def main(cfg: DictConfig) -> None:
    if status := run_on_ranks(partial(train, cfg)):
        sys.exit(status)


if __name__ == "__main__":  # checkpoint writers and data loaders start processes that import this file
    torch.multiprocessing.set_start_method("spawn", force=True)
    main()
