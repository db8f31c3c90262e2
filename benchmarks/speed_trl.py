"""One process of ``compare.py``, in the environment that has TRL: prints the time of each step of its DPOTrainer."""

from __future__ import annotations

import argparse
import json
import tempfile

import torch
from datasets import load_dataset
from step_clock import StepClock
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class EndOfStep(TrainerCallback):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.clock.end_of_step()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--data"):
        parser.add_argument(name, required=True)
    for name in ("--steps", "--batch", "--micro-batch", "--threads", "--seq-length"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--precompute", action="store_true")
    parser.add_argument("--operators", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = StepClock(args.operators)
    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(
            output_dir=out, loss_type=["robust"], label_smoothing=0.1, beta=0.1, max_length=args.seq_length,
            precompute_ref_log_probs=args.precompute, per_device_train_batch_size=args.micro_batch,
            gradient_accumulation_steps=args.batch // args.micro_batch, max_steps=args.steps, learning_rate=1e-5,
            train_sampling_strategy="sequential", use_cpu=True, bf16=False, gradient_checkpointing=False,
            logging_strategy="steps", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = DPOTrainer(
            AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
            args=config,
            train_dataset=load_dataset("json", data_files=args.data, split="train").remove_columns("annotator"),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[EndOfStep(clock)],
        )
        trainer.train()
    print(json.dumps(clock.figures()))


if __name__ == "__main__":
    main()
