"""What the forks of :mod:`fork_server` find imported beside NeMo-Aligner."""

from __future__ import annotations

from integrations.nemo_aligner import shim

shim.install()

import nemo.collections.nlp.parts.megatron_trainer_builder  # noqa: E402, F401
import nemo_aligner.algorithms.dpo  # noqa: E402
import nemo_aligner.data.nlp.builders  # noqa: E402
import nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model  # noqa: E402
import nemo_aligner.utils.train_script_utils  # noqa: E402, F401

import nemo_rpo.integrations.nemo_aligner  # noqa: E402, F401

shim.complete_nemo()
