"""NeMo-RL's DPO recipe with robust losses: its own set-up and its own ``dpo_train``, with four pieces put in between.

    uv run python run_rpo.py --config examples/configs/rpo.yaml key=value …

Run it where NeMo-RL's ``examples/run_dpo.py`` runs (v0.6.0, v0.7.0, main of August 2026), with nemo_rpo installed there
and in the environment of the workers.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial

from nemo_rl.algorithms.dpo import MasterConfig, dpo_train, setup
from nemo_rl.algorithms.utils import get_tokenizer
from nemo_rl.data.utils import setup_preference_data
from nemo_rl.distributed.virtual_cluster import init_ray
from nemo_rl.utils.config import load_config, parse_hydra_overrides
from nemo_rl.utils.logger import get_next_experiment_dir
from omegaconf import OmegaConf

from nemo_rpo.errors import RPOError
from nemo_rpo.integrations.nemo_rl import RobustPolicy, make_loss, preference_collate, preference_processor
from nemo_rpo.integrations.nemo_rl.nemo_rl_settings import entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="a recipe with a dpo.robust block, such as rpo.yaml")
    arguments, overrides = parser.parse_known_args()
    config = load_config(arguments.config)
    if overrides:
        config = parse_hydra_overrides(config, overrides)
    config = MasterConfig(**OmegaConf.to_container(config, resolve=True))
    entry(config, "logger")["log_dir"] = get_next_experiment_dir(entry(config, "logger")["log_dir"])

    tokenizer = get_tokenizer(entry(config, "policy")["tokenizer"])
    train, validation = setup_preference_data(tokenizer, entry(config, "data"))
    # Before the cluster starts: a mistake in the settings or in the data costs seconds.
    loss_fn = make_loss(entry(config, "dpo"), master_config=config, train_dataset=train)
    processor = partial(preference_processor, annotator_key=loss_fn.robust.annotator_key)
    for dataset in (train, *validation.values()):
        dataset.task_data_processors = {
            task: (spec, processor) for task, (spec, _) in dataset.task_data_processors.items()
        }

    init_ray()
    policy, _, train_loader, validation_loaders, _, logger, checkpointer, state, config = setup(
        config, tokenizer, train, validation
    )
    for loader in (train_loader, *validation_loaders.values()):
        loader.collate_fn = partial(preference_collate, **loader.collate_fn.keywords)
    robust = RobustPolicy(
        policy, master_config=config, loss_fn=loss_fn, train_dataloader=train_loader, dpo_save_state=state
    )
    # main's checkpointer finishes in a thread, and is to be closed.
    with checkpointer if hasattr(checkpointer, "__exit__") else contextlib.nullcontext():
        dpo_train(
            robust, train_loader, validation_loaders, tokenizer, loss_fn, config, logger, checkpointer, state
        )  # fmt: skip
    robust.settle()
    if loss_fn.robust.enabled:
        for annotator, eta in sorted(robust.reliabilities.items(), key=lambda item: item[1]):
            print(f"{eta:.3f}  {annotator}")


if __name__ == "__main__":
    try:
        main()
    except RPOError as exc:
        sys.exit(f"run_rpo.py: {exc}")
