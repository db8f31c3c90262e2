"""From the configuration and the lengths of the data to how pairs are packed."""

from __future__ import annotations

import numpy as np

from nemo_rpo.config.lengths import sequence_multiple
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.batches.packing import Packing, prompts_pay
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.network.build import uses_transformer_engine

# Share of the tokens that one prompt for both responses has to save before `auto` takes it: the second response attends
# under a mask, which costs what a few saved tokens bring.
_LEAST_SAVED = 0.05


def packing_of(cfg: RunConfig, lengths: np.ndarray) -> Packing | None:
    """For pairs of ``lengths [n, 3]`` (prompt, chosen, rejected), or rankings of ``lengths [n, 1+K]``; None where
    ``model.data.packed_sequence`` is off.

    Raises:
        ConfigError: shared prompts with an attention that does not support them, or packs too small for a ranking.
    """
    model, data = cfg.model, cfg.model.data
    if not data.packed_sequence:
        return None
    responses = lengths.shape[1] - 1
    whole = responses * (data.seq_length or model.encoder_seq_length)
    if data.packed_sequence_size is not None and data.packed_sequence_size < whole:
        raise ConfigError(
            f"model.data.packed_sequence_size={data.packed_sequence_size} has no room for all responses of a ranking: "
            f"the data has rankings of up to {responses}, set at least {whole}, or a shorter model.encoder_seq_length"
        )
    return Packing(
        budget=data.packed_sequence_size or whole * model.micro_batch_size,
        share_prompts=_shares_prompts(cfg, lengths),
        sequence_multiple_of=sequence_multiple(model) if uses_transformer_engine(cfg) else 1,
        count_multiple_of=model.pipeline_model_parallel_size if model.virtual_pipeline_model_parallel_size else 1,
        in_step=model.expert_model_parallel_size > 1,
    )


def _shares_prompts(cfg: RunConfig, lengths: np.ndarray) -> bool:
    choice, without = cfg.model.data.share_prompts, uses_transformer_engine(cfg)
    if choice == "always" and without:
        raise ConfigError(
            "model.data.share_prompts=always: Transformer Engine's attention cannot share a prompt; set it to auto"
        )
    return choice == "always" or (choice == "auto" and not without and prompts_pay(lengths, _LEAST_SAVED))
