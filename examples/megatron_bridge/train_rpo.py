"""Trains Llama-3 8B with robust losses in NVIDIA Megatron-Bridge, on a preference file as it is, with one more field:
the annotator.

    torchrun --nproc-per-node 8 train_rpo.py --config rpo.yaml [section.setting=value …]

The file has the arguments of the recipe and the blocks ``rpo`` and ``dpo``; every setting of Bridge can stand behind it
on the command line (``train.micro_batch_size=1``), as in Bridge's own scripts. Run it in an NGC container that has
Megatron-Bridge 0.6, with nemo_rpo installed there.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from typing import Any

from megatron.bridge.training.config import ConfigContainer
from megatron.bridge.training.finetune import finetune
from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides
from omegaconf import OmegaConf

from nemo_rpo.errors import ConfigError, RPOError
from nemo_rpo.integrations.megatron_bridge import RPOCallback, RPOForwardStep, llama3_8b_rpo_config, use_rpo


def build(settings: dict[str, Any], overrides: list[str]) -> tuple[ConfigContainer, RPOForwardStep]:
    """Bridge's configuration and the functor, of what stands in the file and behind it."""
    step = RPOForwardStep(rpo=settings.pop("rpo", None), dpo=settings.pop("dpo", None))
    known = inspect.signature(llama3_8b_rpo_config).parameters
    for name in sorted(settings.keys() - known.keys()):
        raise ConfigError(f"unknown setting '{name}'; known are rpo, dpo, {', '.join(known)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and settings.get(name) is None:
            raise ConfigError(f"the setting '{name}' is missing")
    config = process_config_with_overrides(llama3_8b_rpo_config(**settings), cli_overrides=overrides)
    return use_rpo(config), step  # once more: an override may have added pipeline stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--config", required=True, help="such as rpo.yaml beside this script")
    arguments, overrides = parser.parse_known_args()
    settings = OmegaConf.to_container(OmegaConf.load(arguments.config), resolve=True)
    config, step = build(settings, overrides)
    finetune(config, step, callbacks=[RPOCallback(step)])
    if os.environ.get("RANK", "0") == "0":
        for annotator, eta in sorted(step.reliabilities.items(), key=lambda item: item[1]):
            print(f"{eta:.3f}  {annotator}")


if __name__ == "__main__":
    try:
        main()
    except RPOError as exc:
        sys.exit(f"train_rpo.py: {exc}")
