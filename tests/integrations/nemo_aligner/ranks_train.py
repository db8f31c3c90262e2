"""Trains on the ranks it is started on; the first writes what each step has left to the file it is given.

``argv``: the world's folder, the file, and a JSON object: ``runs``, overrides of the recipe (dotted keys) for each of
the runs that follow one another, and ``stock`` for NeMo-Aligner's own class and trainer instead of the package's. Runs
that share a log folder (``exp_manager.explicit_log_dir``, relative to the file's) are a run and its continuation.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from integrations.nemo_aligner import shim

shim.install()

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from paths import ROOT  # noqa: E402

from integrations.nemo_aligner import world  # noqa: E402

sys.path.insert(0, str(ROOT / "examples" / "nemo_aligner"))
import train_gpt_rpo  # noqa: E402


def main() -> None:
    folder, out, spec = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    shim.complete_nemo()
    ranks, found = int(os.environ["WORLD_SIZE"]), []
    for number, overrides in enumerate(spec["runs"]):
        log = out.parent / out.stem / overrides.pop("exp_manager.explicit_log_dir", str(number))
        cfg = OmegaConf.create(world.recipe(folder, log, overrides, ranks))
        found.append(run(cfg, stock=spec["stock"]))
        torch.distributed.barrier()  # the next run may read what the first rank is still writing
    if os.environ["RANK"] == "0":
        out.write_text(json.dumps(found), encoding="utf-8")


def run(cfg: Any, stock: bool) -> dict[str, list]:
    """The metrics of every training and validation step, η after each, and at the end ``settled``; in file order, as
    nothing shuffles the rows.
    """
    found: dict[str, list] = {"train": [], "val": [], "eta": [], "settled": []}
    patches = [mock.patch.object(train_gpt_rpo, "build_dataloader", _in_file_order)]
    patches += [mock.patch.object(train_gpt_rpo.script, "CustomLoggerWrapper", partial(_Recorder, found))]
    if stock:
        patches += _stock_classes()
    finish = train_gpt_rpo.MegatronGPTRPOModel.finish_em_step

    def recorded(model: Any, updated: bool) -> dict[str, float]:
        metrics = finish(model, updated)
        found["eta"].append(model.em.eta.tolist())
        return metrics

    fit = train_gpt_rpo.RPOTrainer.fit

    def fitted(trainer: Any) -> None:
        fit(trainer)
        found["settled"] = trainer.model.em.eta.tolist()

    patches += [mock.patch.object(train_gpt_rpo.MegatronGPTRPOModel, "finish_em_step", recorded)]
    if not stock:
        patches += [mock.patch.object(train_gpt_rpo.RPOTrainer, "fit", fitted)]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        train_gpt_rpo.train(cfg)
    return found


def _in_file_order(**kwargs: Any) -> Any:
    from nemo_aligner.data.nlp.builders import build_dataloader

    return build_dataloader(**kwargs | {"use_random_sampler": False})


class _Recorder:
    """Takes metrics instead of NeMo's loggers."""

    def __init__(self, found: dict[str, list], loggers: Any) -> None:
        self.found = found

    def log_metrics(self, metrics: dict[str, float], step: int | None = None, prefix: str = "") -> None:
        kept = {name: float(value) for name, value in metrics.items() if "time" not in name}
        self.found[prefix.rstrip("/")].append(kept)

    def log_hyperparams(self, params: Any) -> None:
        """Nothing to keep."""

    def finalize(self) -> None:
        """Nothing is open."""


def _stock_classes() -> list[Any]:
    """NeMo-Aligner's own classes under the names that the example uses."""
    from nemo_aligner.algorithms.dpo import DPOTrainer
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

    class Model(MegatronGPTDPOModel):
        rpo = mock.Mock(enabled=False)

    def trainer(labels: Any, **kwargs: Any) -> DPOTrainer:
        return DPOTrainer(**kwargs)

    return [
        mock.patch.object(train_gpt_rpo, "RPOTrainer", trainer),
        mock.patch.object(train_gpt_rpo, "load_from_nemo", partial(_load_as, Model)),
    ]


def _load_as(cls: type, ours: type, *args: Any, **kwargs: Any) -> Any:
    from nemo_aligner.utils.utils import load_from_nemo

    return load_from_nemo(cls, *args, **kwargs)


if __name__ == "__main__":  # checkpoint writers start processes that import this file
    main()
