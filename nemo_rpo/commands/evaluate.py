"""``nemo-rpo evaluate``: how good a checkpoint is, on labelled pairs or for a benchmark with a judge."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.commands.row_arguments import add_row_format, row_format
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.ranks import check_run, fewest_ranks
from nemo_rpo.counting import counted
from nemo_rpo.data.files.read import as_paths
from nemo_rpo.data.files.write import sink_for
from nemo_rpo.errors import ConfigError
from nemo_rpo.evaluation.checkpoint import Target, target_of
from nemo_rpo.evaluation.speaking_settings import SpeakingSettings
from nemo_rpo.launch import start_ranks
from nemo_rpo.text_table import format_table

if TYPE_CHECKING:
    from nemo_rpo.evaluation.judgements import Comparison
    from nemo_rpo.evaluation.scores import Scores

SAMPLES = "samples"
LAYOUTS = ("alpaca_eval", "arena_hard", SAMPLES)
_OWN_REFERENCE = (
    "every margin is 0: the policy is its own reference, so that it is right half of the time whatever it has learnt. "
    "Name the weights that it was trained from with --reference, or judge it, and what it is compared with, by a loss "
    "that has no reference, such as model.dpo.preference_loss=simpo"
)
_RESAMPLES, _SEED, _SHOWN = 1000, 0, 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    add = parser.add_argument
    help = "a run's folder (its export, or last checkpoint), one of its checkpoints, or a Hugging Face folder"
    add("checkpoint", type=Path, metavar="CHECKPOINT", help=help)
    add("data", type=Path, metavar="DATA", help="labelled pairs: a file in any layout; with --generate, prompts")
    help = "settings that override the run's, such as trainer.accelerator=cpu or model.dpo.preference_loss=ipo"
    add("overrides", nargs="*", metavar="key=value", help=help)
    add("--config", type=Path, metavar="YAML", help="settings (those of the run that the checkpoint belongs to)")
    add("--reference", type=Path, metavar="DIR", help="weights that margins are relative to (the run's start)")
    add("--nproc-per-node", type=int, help="ranks to start on this machine (as many as the settings need)")
    judging = parser.add_argument_group("judging")
    add_row_format(judging)
    judging.add_argument(
        "--groups", type=Path, metavar="CSV", help="columns annotator and group: judge these alone too"
    )
    help = "of a reward model with groups of taste (base_loss=pal): judge as this group, not as each annotator's own"
    judging.add_argument("--group", type=int, metavar="G", help=help)
    judging.add_argument("--scores", type=Path, metavar="OUT", help="write the margins of all labels (.parquet)")
    help = "compare with the margins that another evaluation of the same data wrote"
    judging.add_argument("--compare", type=Path, metavar="SCORES", help=help)
    help = "judge this run, checkpoint or Hugging Face folder on the same data too, and compare the two"
    judging.add_argument("--beside", type=Path, metavar="CHECKPOINT", help=help)
    help = f"resamples of the prompts for the intervals ({_RESAMPLES})"
    judging.add_argument("--bootstrap", type=int, default=_RESAMPLES, metavar="B", help=help)
    judging.add_argument("--seed", type=int, default=_SEED, help=f"of the resampling, and of drawn answers ({_SEED})")
    help = "unanimous pairs and majorities that the policy reverses"
    judging.add_argument("--audit", action="store_true", help=help)
    judging.add_argument("--json", action="store_true", help="print the result as JSON")
    answering, settings = parser.add_argument_group("answering"), SpeakingSettings()
    help = "answer the prompts of DATA, in the layout of this benchmark; samples: several of each, with log-probs"
    answering.add_argument("--generate", choices=LAYOUTS, help=help)
    answering.add_argument("--out", type=Path, metavar="OUT", help="file to write the answers to")
    help = f"longest answer ({settings.max_new_tokens})"
    answering.add_argument("--max-new-tokens", type=int, default=settings.max_new_tokens, metavar="N", help=help)
    help = f"what logits are divided by; 0: the likeliest tokens ({settings.temperature:g})"
    answering.add_argument("--temperature", type=float, default=settings.temperature, metavar="T", help=help)
    help = f"draw from the likeliest tokens that have this probability together ({settings.top_p:g})"
    answering.add_argument("--top-p", type=float, default=settings.top_p, metavar="P", help=help)
    answering.add_argument("--samples", type=int, metavar="K", help="of each prompt, with --generate samples (1)")
    help = f"answers at a time, of each replica of the model ({settings.rows})"
    answering.add_argument("--rows", type=int, default=settings.rows, metavar="N", help=help)
    answering.add_argument("--name", help="what the model is called in the answers (CHECKPOINT)")


def run(args: argparse.Namespace) -> int | None:
    """Evaluates on the ranks that there are; starts them first where the settings need several."""
    _check_options(args)
    target = _on_data(args, args.checkpoint)
    beside = _on_data(args, args.beside) if args.beside else None
    if "RANK" not in os.environ:
        ranks = args.nproc_per_node or fewest_ranks(target.cfg)
        check_run(target.cfg, ranks)
        if ranks > 1:
            return start_ranks(ranks, "nemo_rpo.cli", ["evaluate", *args.given])
    else:
        check_run(target.cfg, int(os.environ["WORLD_SIZE"]))
    if args.generate:
        _answer(args, target)
    else:
        _judge(args, target, beside)
    return None


def _on_data(args: argparse.Namespace, checkpoint: Path) -> Target:
    target = target_of(checkpoint, args.config, args.reference, args.overrides, needs_reference=args.generate is None)
    data = target.cfg.model.data
    keys = row_format(args)
    data.layout, data.annotator_key, data.pair_id_key = keys.layout, keys.annotator_key, keys.pair_id_key
    data.data_prefix, data.invalid_pairs = {"train": str(args.data)}, "drop"
    return target


def _check_options(args: argparse.Namespace) -> None:
    as_paths(args.data, setting="DATA", folders=False)
    if args.bootstrap < 1 or args.max_new_tokens < 1:
        raise ConfigError("--bootstrap and --max-new-tokens must be 1 or more")
    if args.rows < 1 or (args.samples is not None and args.samples < 1):
        raise ConfigError("--rows and --samples must be 1 or more")
    if not args.temperature >= 0 or not 0 < args.top_p <= 1:
        raise ConfigError("--temperature must be 0 or more, and --top-p above 0 and at most 1")
    if args.samples is not None and args.generate != SAMPLES:
        raise ConfigError("--samples goes with --generate samples: benchmarks take one answer a prompt")
    if (args.samples or 1) > 1 and args.temperature == 0:
        raise ConfigError("--samples of a prompt are all the same at --temperature 0: set a temperature")
    if bool(args.generate) != bool(args.out):
        raise ConfigError("--generate and --out go together: name a file for the answers")
    check_outputs((args.scores, args.out), (args.data, args.compare, args.groups, args.config))
    if args.generate == SAMPLES:
        sink_for(args.out)
    if args.compare and args.beside:
        raise ConfigError("--compare and --beside both say what to compare with: give one of them")
    if args.compare:
        from nemo_rpo.evaluation.scores import read_scores

        read_scores(args.compare)


def _group_of(args: argparse.Namespace, beside: Target) -> int | None:
    """The group to judge the run beside as: none where it has one truth for all."""
    return args.group if base_loss(beside.cfg.model).groups > 1 else None


def _judge(args: argparse.Namespace, target: Target, beside: Target | None) -> None:
    from nemo_rpo.evaluation.axioms import audit
    from nemo_rpo.evaluation.judgements import compare
    from nemo_rpo.evaluation.measurements import measure
    from nemo_rpo.evaluation.scores import read_scores, write_scores

    scores, summary = measure(target, args.group)
    theirs = None if beside is None else measure(beside, _group_of(args, beside))[0]
    if os.environ.get("RANK", "0") != "0":
        return
    theirs = read_scores(args.compare) if args.compare else theirs
    compared = None if theirs is None else compare(scores, theirs, args.bootstrap, args.seed)
    result, audited = _result(args, target, scores, compared), audit(scores) if args.audit else None
    if theirs is not None and not theirs.delta.any():
        result["notes"].append(f"of {args.compare or args.beside}, {_OWN_REFERENCE}")
    if audited:
        result["audit"] = audited.to_dict()
    if args.scores:
        write_scores(scores, args.scores)
    if args.json:
        print(json.dumps(result, ensure_ascii=False, indent=1))
    else:
        parts = [*_text(result, summary, compared), *(audited.text() if audited else ())]
        print("\n\n".join(parts))


def _result(args: argparse.Namespace, target: Target, scores: Scores, compared: Comparison | None) -> dict[str, Any]:
    from nemo_rpo.evaluation.groups import by_group
    from nemo_rpo.evaluation.judgements import by_annotator, judge

    figures = judge(scores, args.bootstrap, args.seed)
    model = target.cfg.model
    result: dict[str, Any] = {
        "checkpoint": str(target.weights),
        "data": str(args.data),
        "loss": model.rpo.base_loss or model.dpo.preference_loss,
        "labels": len(scores),
        "pairs": len(set(scores.pair_id)),
        "prompts": len(set(scores.prompt)),
        "notes": [_OWN_REFERENCE] if not scores.delta.any() else [],
        **{name: estimate._asdict() for name, estimate in figures.items()},
        "annotators": [
            {"annotator": name, "labels": found.n, "accuracy": found.value, "low": found.low, "high": found.high}
            for name, found in by_annotator(scores)
        ],
    }
    if args.groups:
        result["groups"] = {
            name: {"labels": labels, **{figure: estimate._asdict() for figure, estimate in found.items()}}
            for name, labels, found in by_group(scores, args.groups, args.bootstrap, args.seed)
        }
    if compared:
        differences = {name: estimate._asdict() for name, estimate in compared.differences.items()}
        result["comparison"] = {
            **compared._asdict(),
            "with": str(args.compare or args.beside),
            "differences": differences,
        }
    return result


def _text(result: dict[str, Any], summary: str, compared: Comparison | None) -> Iterator[str]:
    from nemo_rpo.evaluation.judgements import FIGURES

    yield f"{result['checkpoint']} on {result['data']}\n{summary}"
    labels, pairs, prompts = (counted(result[f"{what}s"], what) for what in ("label", "pair", "prompt"))
    counts = f"{labels} of {pairs}, {prompts}"
    yield f"{counts}; link of {result['loss']}"
    yield from (f"note: {note}" for note in result["notes"])
    yield format_table(["", "value", "95 % interval"], [[name, *_interval(result[name])] for name in FIGURES])
    if "groups" in result:
        rows = [
            [name, f"{found['labels']:,}", *(f"{found[f]['value']:.4f}" for f in FIGURES)]
            for name, found in result["groups"].items()
        ]
        yield format_table(["group", "labels", *FIGURES], rows)
    annotators = result["annotators"]
    if len(annotators) > 1:
        rows = [
            [
                row["annotator"] or "(no name)",
                f"{row['labels']:,}",
                f"{row['accuracy']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
            ]
            for row in annotators[:_SHOWN]
        ]
        more = f"\n… {len(annotators) - _SHOWN:,} more" if len(annotators) > _SHOWN else ""
        yield format_table(["annotator", "labels", "policy agrees", "95 % interval"], rows) + more
    if compared:
        comparison = result["comparison"]
        rows = [[name, *_interval(found, "+")] for name, found in comparison["differences"].items()]
        table = format_table([f"less {comparison['with']}", "difference", "95 % interval"], rows)
        yield (
            f"{table}\n{counted(compared.labels, 'label')} of {counted(compared.prompts, 'prompt')}; right where the "
            f"other is not: {compared.won:,}, the other way round: {compared.lost:,}; p = "
            f"{compared.p_value:.4f} (permutation test)"
        )


def _interval(estimate: dict[str, float], sign: str = "") -> list[str]:
    value, low, high = (f"{estimate[part]:{sign}.4f}" for part in ("value", "low", "high"))
    return [value, f"{low} to {high}"]


def _answer(args: argparse.Namespace, target: Target) -> None:
    settings = SpeakingSettings(args.max_new_tokens, args.temperature, args.top_p, args.rows)
    if args.generate == SAMPLES:
        _sample(args, target, settings)
        return
    from nemo_rpo.evaluation.answers import answer
    from nemo_rpo.evaluation.benchmarks import read_questions, write_answers

    questions = read_questions(args.data, args.generate)
    answers = answer(target, [question.turns for question in questions], settings, args.seed)
    if os.environ.get("RANK", "0") == "0":
        name = args.name or args.checkpoint.resolve().name
        write_answers(args.out, args.generate, questions, answers, name)
        print(f"{args.out}: {counted(len(questions), 'answer')}")


def _sample(args: argparse.Namespace, target: Target, settings: SpeakingSettings) -> None:
    from nemo_rpo.data.files.write import record_writer
    from nemo_rpo.evaluation.samples import read_asks, sample

    records = sample(target, read_asks(args.data, args.samples or 1, args.seed), settings)
    if os.environ.get("RANK", "0") == "0":
        with record_writer(args.out, overwrite=True) as write:
            for record in records:
                write(record)
        finished = Counter(record["finish"] for record in records)
        print(
            f"{args.out}: {counted(len(records), 'sample')}, "
            + ", ".join(f"{n:,} {how}" for how, n in finished.items())
        )
