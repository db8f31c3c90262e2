"""One process of ``gpu.py``: log-probs in FP8 against bf16 on one batch of pairs, and the step-0 law."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_rpo.config.load import load_config
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.validate import validate_config, validate_parallel

if TYPE_CHECKING:
    from nemo_rpo.megatron.model import MegatronGPTRPOModel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    cfg = load_config(str(args.config), args.overrides, notify=lambda text: None)
    validate_config(cfg)
    validate_parallel(cfg, 1)
    print(json.dumps(compare(cfg)))


def compare(cfg: RunConfig) -> dict[str, Any]:
    """The fields of a :class:`~nemo_rpo.training.reference.step0.TokenError`; the largest margin of a policy in the
    run's precision to a reference of the same weights in bf16 (``margin_to_bf16``), and in the same precision
    (``margin_at_step0``), in nats.
    """
    from nemo_rpo.training.process.accelerator import use_accelerator

    use_accelerator(cfg)
    from nemo_rpo.megatron import parallel
    from nemo_rpo.megatron.step.forward import REFERENCE_KEYS
    from nemo_rpo.training import data_of_run, setup
    from nemo_rpo.training.reference.step0 import token_error

    device = parallel.initialize(cfg)
    split = data_of_run.open_splits(cfg)["train"]
    model = setup.build_model(cfg, setup.architecture_for(cfg, split.cache), split.cache, 1, device)
    batch = split.dataset.global_batch(0)
    found = asdict(token_error(model, batch, model.precision.name))
    model.add_ref_policy_logprobs(batch)
    found["margin_at_step0"] = _largest_margin(model, batch)
    with model.precision.switched("bf16"):  # the policy's own weights, which are the reference's still
        exact = model.get_logprob_batch(batch)
    for micro_batch, of in zip(batch, exact, strict=True):
        micro_batch.update(zip(REFERENCE_KEYS, (of["chosen"], of["rejected"]), strict=True))
    found["margin_to_bf16"] = _largest_margin(model, batch)
    parallel.finalize()
    return found


def _largest_margin(model: MegatronGPTRPOModel, batch: list[Any]) -> float:
    """|log π(chosen)/ref(chosen) − log π(rejected)/ref(rejected)| at its largest over the batch."""
    margins = [
        (pairs.policy_chosen - pairs.reference_chosen) - (pairs.policy_rejected - pairs.reference_rejected)
        for pairs in model.get_pair_batch(batch)
    ]
    return max(margin.abs().max().item() for margin in margins)


if __name__ == "__main__":
    main()
