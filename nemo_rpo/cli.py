"""The ``nemo-rpo`` command. A subcommand is one line of the table below and one module in ``nemo_rpo.commands``."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from nemo_rpo import __version__
from nemo_rpo.errors import ConfigError
from nemo_rpo.launch import call_and_leave, run_on_ranks

_WIDTH = 100


@dataclass(frozen=True)
class Command:
    """A subcommand; its module is imported when it is called, so that ``--help`` needs none of the heavy packages."""

    summary: str
    module: str
    examples: tuple[str, ...]


COMMANDS = {
    "train": Command(
        "align a model on preference pairs and learn whom to believe",
        "nemo_rpo.commands.train",
        (
            "nemo-rpo train --config-name gpt_rpo --nproc-per-node 8 pretrained_checkpoint.restore_from_path=MODEL "
            "'model.data.data_prefix={train: [train.jsonl], validation: [val.jsonl]}'",
            "torchrun --nproc-per-node 8 examples/train_gpt_rpo.py --config-name gpt_rpo model.rpo.sweep=epoch",
            "nemo-rpo train --config-name mine.yaml --dry-run      # layout, memory, steps, hours; trains nothing",
            "nemo-rpo train --config-name mine.yaml --beside-plain # and the plain loss beside it: did it help?",
        ),
    ),
    "plan": Command(
        "say whether a run fits its GPUs and how many hours it takes, without data or a GPU",
        "nemo_rpo.commands.plan",
        (
            "nemo-rpo plan --config-name llama3_8b_ultrafeedback --model llama3-8b --pairs 60000",
            "nemo-rpo plan --model /models/Qwen3-8B --pairs 20000 --gpu A100 --gpus 8 16 --utilisation 0.35",
        ),
    ),
    "score": Command(
        "compute the reference's log-probs of all data once, for every run that trains on it",
        "nemo_rpo.commands.score",
        (
            "nemo-rpo score --config-name gpt_rpo --nproc-per-node 8 model.rpo.reference_cache=scored "
            "pretrained_checkpoint.restore_from_path=MODEL 'model.data.data_prefix={train: [train.jsonl]}'",
            "nemo-rpo train --config-name gpt_rpo model.rpo.reference=cached model.rpo.reference_cache=scored",
        ),
    ),
    "validate": Command(
        "find what is wrong with a preference file",
        "nemo_rpo.commands.validate",
        (
            "nemo-rpo validate train.jsonl --tokenizer MODEL --seq-length 4096",
            "nemo-rpo validate train.parquet --strict --fix clean.parquet --json > report.json",
        ),
    ),
    "annotators": Command(
        "find careless annotators and doubtful labels, from votes alone",
        "nemo_rpo.commands.annotators",
        (
            "nemo-rpo annotators votes.jsonl",
            "nemo-rpo annotators votes.jsonl --gold gold.csv --html annotators.html --csv annotators.csv",
            "nemo-rpo annotators votes.jsonl --next 200 --next-out tasks.csv",
            "nemo-rpo annotators votes.jsonl --relabelled tasks_answered.csv",
        ),
    ),
    "sample": Command(
        "sample responses of a policy to prompts, from an OpenAI-compatible server or the engine",
        "nemo_rpo.commands.loop.sample",
        (
            "nemo-rpo sample prompts.jsonl --url http://host:8000/v1 --out responses.parquet",
            "nemo-rpo sample prompts.jsonl --command 'vllm serve {model} --port {port}' --policy results/mine/hf "
            "--out responses.parquet",
            "nemo-rpo sample prompts.jsonl --engine --policy results/mine --out responses.parquet",
        ),
    ),
    "judge": Command(
        "have judges compare pairs of responses (LLMs, reward models, programs), and say which of them to believe",
        "nemo_rpo.commands.loop.judge",
        (
            "nemo-rpo judge pairs.jsonl --judges judges.yaml --out judged",
            "nemo-rpo judge pairs.jsonl --judges judges.yaml --out judged --gold gold.csv",
        ),
    ),
    "genrm": Command(
        "write the rows that train a judge himself, from what is believed of judged pairs",
        "nemo_rpo.commands.loop.genrm",
        (
            "nemo-rpo genrm pairs.jsonl --judges judges.yaml --judge mine --believed judged --out verdicts.jsonl",
            "nemo-rpo genrm pairs.jsonl --judges judges.yaml --judge mine --to prompts --out prompts.jsonl",
            "nemo-rpo genrm pairs.jsonl --judges judges.yaml --judge mine --to rationales --believed judged "
            "--responses responses.parquet --out rationales.jsonl",
        ),
    ),
    "convert": Command(
        "write a preference file in another layout or file format",
        "nemo_rpo.commands.convert",
        (
            "nemo-rpo convert multipref.parquet --to votes --out train.jsonl",
            "nemo-rpo convert train.jsonl --to hf --annotator-key worker --out train_dataset",
        ),
    ),
    "iterate": Command(
        "run rounds: sample from the policy, have judges compare, train, measure, and again",
        "nemo_rpo.commands.iterate",
        (
            "nemo-rpo iterate loop.yaml",
            "nemo-rpo iterate loop.yaml rounds=5 train.recipe=inpo stop.kl_to_start=10",
        ),
    ),
    "evaluate": Command(
        "judge a policy on labelled pairs, or let it answer the prompts of a benchmark",
        "nemo_rpo.commands.evaluate",
        (
            "nemo-rpo evaluate results/gpt_rpo test.jsonl --scores rpo.parquet",
            "nemo-rpo evaluate results/gpt_rpo test.jsonl --beside results/gpt_rpo-plain",
            "nemo-rpo evaluate results/dpo test.jsonl --compare rpo.parquet --groups groups.csv --json",
            "nemo-rpo evaluate results/gpt_rpo/hf alpaca_eval.json --generate alpaca_eval --out outputs.json",
        ),
    ),
    "report": Command(
        "show what a run has learnt of its annotators, labels and policy",
        "nemo_rpo.commands.report",
        (
            "nemo-rpo report results/gpt_rpo",
            "nemo-rpo report results/gpt_rpo --groups groups.csv --quotes 50 --out reports/monday",
        ),
    ),
    "export": Command(
        "write doubtful labels, cleaned data, or the weights of annotators from a run",
        "nemo_rpo.commands.export",
        (
            "nemo-rpo export results/gpt_rpo doubtful --limit 500 --out relabel.csv",
            "nemo-rpo export results/gpt_rpo data --relabelled relabel.csv --wrong drop --out clean.jsonl",
            "nemo-rpo export results/gpt_rpo annotators --out weights.csv",
        ),
    ),
    "rank": Command(
        "rank players (models, say) by their wins, losses and ties",
        "nemo_rpo.commands.rank",
        (
            "nemo-rpo rank battles.jsonl --elo --trueskill",
            "nemo-rpo rank prompts.jsonl --by-prompt results/battles --costs costs.csv --budget 0.5",
            "nemo-rpo rank surer.jsonl --selective answers.jsonl",
            "nemo-rpo rank votes.csv --crowd-bt --annotator-key judge --resample annotator --json > ranking.json",
            "nemo-rpo rank battles.jsonl --over-time --slice 7d --plot over_time.svg",
            "nemo-rpo rank battles.jsonl --robust --audit --interval 0.3 --judge-next next.csv",
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status: 0, 2 for a mistake in the command, its settings or its data."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name, *rest = argv or ["--help"]
    if name not in COMMANDS:
        parser = _overview()
        parser.parse_args([name])  # --help and --version end here
        parser.error(f"unknown command {name!r}; there are: {', '.join(COMMANDS)}")
    status = 0

    def body() -> None:
        nonlocal status
        module = importlib.import_module(COMMANDS[name].module)
        parser = _parser(name)
        module.add_arguments(parser)
        parser.description = _folded(parser.description)
        arguments = parser.parse_intermixed_args(rest)
        arguments.given = rest
        status = module.run(arguments) or 0
        _write_output()

    try:
        return run_on_ranks(body) or status
    except BrokenPipeError:  # whoever was reading, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _write_output() -> None:
    """Writes what was printed; without a standard output nothing was."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        why = exc.strerror or exc
        raise ConfigError(f"what was printed cannot be written ({why}); print to another place") from exc


def command_line() -> NoReturn:
    """The program ``nemo-rpo``."""
    call_and_leave(main)


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="nemo-rpo",
        usage="nemo-rpo COMMAND …",
        description="Robust preference optimization on Megatron-Core.",
        epilog=f"commands:\n{commands}\n\n{_examples(*COMMANDS)}\n\nnemo-rpo COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nemo-rpo {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    return parser


def _parser(name: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"nemo-rpo {name}",
        description=COMMANDS[name].summary,
        epilog=_examples(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _folded(text: str) -> str:
    """Paragraphs as lines that fit a terminal; the examples below them stay as they are, to be copied."""
    return "\n\n".join(textwrap.fill(paragraph, _WIDTH) for paragraph in text.split("\n\n"))


def _examples(*names: str) -> str:
    return "\n".join(["examples:", *(f"  {example}" for name in names for example in COMMANDS[name].examples)])


if __name__ == "__main__":
    command_line()
