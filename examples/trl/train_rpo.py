"""Trains with robust losses in Hugging Face TRL, on a preference file as it is, with one more field: the annotator.

    accelerate launch examples/trl/train_rpo.py --model_name_or_path Qwen/Qwen3-0.6B --data train.jsonl --output_dir out
    accelerate launch examples/trl/train_rpo.py --config examples/trl/rpo.yaml

Every option of TRL's ``DPOConfig`` can stand on the command line or in the file; the block ``rpo`` has the settings of
this package's ``model.rpo``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer
from trl import DPOConfig, TrlParser

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.errors import ConfigError, RPOError
from nemo_rpo.integrations.trl import RPOTrainer, preference_dataset


@dataclass
class RunArguments:
    model_name_or_path: str = field(metadata={"help": "a model of the Hub, or a folder"})
    data: str = field(metadata={"help": "JSONL or Parquet in the layout of TRL, NeMo-Aligner, NeMo-RL or MultiPref"})
    eval_data: str | None = field(default=None, metadata={"help": "the same, for evaluation"})
    annotator_key: str = field(default="annotator", metadata={"help": "field of the data with the annotator's id"})
    group_votes: bool = field(default=True, metadata={"help": "all labels of a pair share one posterior"})
    rpo: dict[str, Any] | str | None = field(default=None, metadata={"help": "the block, as JSON on the command line"})


def main() -> None:
    run, args = TrlParser((RunArguments, DPOConfig)).parse_args_and_config()
    keys = RowFormat(annotator_key=run.annotator_key)
    trainer = RPOTrainer(
        run.model_name_or_path,
        args=args,
        train_dataset=preference_dataset(run.data, keys, run.group_votes),
        eval_dataset=preference_dataset(run.eval_data, keys, run.group_votes) if run.eval_data else None,
        processing_class=AutoTokenizer.from_pretrained(run.model_name_or_path),
        rpo=settings(run.rpo),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        for annotator, eta in sorted(trainer.reliabilities.items(), key=lambda item: item[1]):
            print(f"{eta:.3f}  {annotator}")


def settings(block: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """The block ``rpo``, a mapping in a file and JSON on the command line."""
    try:
        return json.loads(block) if isinstance(block, str) else block
    except json.JSONDecodeError as exc:
        raise ConfigError(f"--rpo must be JSON, such as '{{\"alpha\": 0.2}}'; {exc}") from exc


if __name__ == "__main__":
    try:
        main()
    except RPOError as exc:
        sys.exit(f"train_rpo.py: {exc}")
