"""What ``test_example.py`` runs: the configuration that the example builds of its own file, and what it refuses."""

# ruff: noqa: E402 (what makes Megatron-Bridge run on a CPU comes before its import)
from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import bridge_cpu

bridge_cpu.install()

from omegaconf import OmegaConf
from paths import ROOT

from nemo_rpo.errors import RPOError

EXAMPLE = ROOT / "examples" / "megatron_bridge" / "train_rpo.py"


def main(folder: Path) -> None:
    build = runpy.run_path(str(EXAMPLE))["build"]

    def settings(**changes: object) -> dict:
        recipe = OmegaConf.to_container(OmegaConf.load(EXAMPLE.with_name("rpo.yaml")))
        return recipe | {"hf_path": str(folder / "model"), "folder": str(folder / "run")} | changes

    # The overrides are those of examples/slurm/megatron_bridge.sbatch.
    config, step = build(settings(), ["checkpoint.save_interval=50", "train.exit_signal_handler=true"])
    found = {
        "data": config.dataset.data_prefix,
        "annotator_key": step.rpo.annotator_key,
        "save_interval": config.checkpoint.save_interval,
        "signal": [config.train.exit_signal_handler, int(config.train.exit_signal)],
        "manager": config.checkpoint.custom_manager_class,
        "refused": [],
    }
    without_data = settings()
    del without_data["data_prefix"]
    for wrong in (settings(hf_pth="x"), without_data, settings(rpo={"alpa": 0.1})):
        try:
            build(wrong, [])
        except RPOError as exc:
            found["refused"].append(str(exc))
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
