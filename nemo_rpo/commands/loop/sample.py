"""``nemo-rpo sample``: responses of a policy to prompts, from a server or the engine."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.errors import ConfigError, ServerError

if TYPE_CHECKING:
    from nemo_rpo.sampling.engine_sampler import EngineSampler
    from nemo_rpo.sampling.sampling_settings import SampleSettings
    from nemo_rpo.sampling.server_sampler import ServerSampler

# Options of the command line, by the setting that they override.
_OPTIONS = ("url", "command", "model", "samples", "temperature", "top_p", "max_tokens", "endpoint", "dialect")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    from nemo_rpo.sampling.sampling_settings import SampleSettings

    defaults = SampleSettings()
    add = parser.add_argument
    help = "rows with prompt (a text or messages) and maybe prompt_id: JSONL, JSON, CSV or Parquet"
    add("prompts", nargs="+", type=Path, metavar="PROMPTS", help=help)
    add("--out", type=Path, required=True, metavar="OUT", help="responses.parquet to write")
    add("--url", nargs="+", metavar="URL", help="address of a server, http://host:8000/v1, or several")
    help = "start a server instead: 'vllm serve {model} --port {port}'"
    add("--command", metavar="COMMAND", help=help)
    help = (
        "weights that the server must serve, a Hugging Face folder: {model} in --command, and what the canary reads; "
        "with --engine also a run or one of its checkpoints"
    )
    add("--policy", type=Path, metavar="DIR", help=help)
    add("--model", metavar="NAME", help="what requests call the model (the first that the server lists)")
    add("--samples", type=int, metavar="N", help=f"of each prompt ({defaults.samples})")
    add("--temperature", type=float, metavar="T", help=f"({defaults.temperature})")
    add("--top-p", type=float, metavar="P", help=f"({defaults.top_p})")
    add("--max-tokens", type=int, metavar="N", help=f"longest response ({defaults.max_tokens})")
    add("--endpoint", choices=("auto", "completions", "chat"), help="chat: the server's chat template is used (auto)")
    add("--dialect", choices=("auto", "openai", "transformers"), help="transformers: for transformers serve (auto)")
    add_engine_arguments(parser.add_argument_group("without a server").add_argument)
    add("--config", type=Path, metavar="YAML", help="these settings and more, under the key sample")
    add("--run", default="sample", metavar="NAME", help="name that the seeds come from, with --round (sample)")
    add("--round", type=int, default=0, metavar="N", help="number that the seeds come from (0)")
    parser.description += (
        ". One request a sample, each with its own seed: what was there before a kill, a full disk or a dead server "
        "stays, and the same command asks for the rest. The exit status is 2 while samples are missing."
    )


def add_engine_arguments(add: Callable[..., argparse.Action]) -> None:
    """Adds what the engine's own sampler takes."""
    help = "the engine itself samples from --policy, on ranks of its own, under any layout that text comes from"
    add("--engine", action="store_true", help=help)
    help = "a run's settings, layout included (those of the run that the policy belongs to)"
    add("--engine-config", type=Path, metavar="YAML", help=help)
    help = "settings over these, such as model.tensor_model_parallel_size=2 or trainer.accelerator=cpu"
    add("--set", nargs="+", default=[], metavar="key=value", help=help)
    add("--nproc-per-node", type=int, metavar="N", help="ranks (as many as the settings need)")


def run(args: argparse.Namespace) -> None:
    """Samples, and prints how many there are."""
    from nemo_rpo.data.files.read import as_paths
    from nemo_rpo.data.files.stage import fingerprint
    from nemo_rpo.sampling.collecting import asks_for, collect, read_prompts

    logging.getLogger("httpx2").setLevel(logging.WARNING)
    settings = _settings(args)
    _check(args, settings)
    inputs = (*args.prompts, args.config, args.engine_config)
    check_outputs((args.out,), inputs)
    check_outputs((args.out.with_suffix(".jsonl"),), inputs)  # until all are there, samples stand as lines beside it
    prompts = read_prompts(as_paths(args.prompts, setting="PROMPTS", folders=True))
    asks = asks_for(prompts, settings.samples, args.run, args.round)
    outcome = settings.outcome() | ({"engine": True} if args.engine else {})
    inputs = fingerprint(
        {"settings": outcome, "policy": str(args.policy), "asks": [[a.prompt, a.text, a.seed] for a in asks]}
    )
    with _sampler(args, settings) as sampler:
        if args.policy is not None and not args.out.exists():
            sampler.use(args.policy)
        found = collect(sampler, asks, args.out, inputs, settings.temperature)
    if found.responses and not found.kept:
        raise ServerError(f"{args.out}: {found.as_text()}; mend that, delete the file and sample again")
    print(f"{args.out}: {found.as_text()}")


def _check(args: argparse.Namespace, settings: SampleSettings) -> None:
    if not args.engine:
        for name in ("engine_config", "set", "nproc_per_node"):
            if getattr(args, name):
                raise ConfigError(f"--{name.replace('_', '-')} goes with --engine")
        settings.check()
        if settings.command and args.policy is None:
            raise ConfigError("--command starts a server on weights: name them with --policy")
        return
    if settings.url or settings.command:
        raise ConfigError("--engine samples without a server: leave out its url and command")
    if args.policy is None:
        raise ConfigError("--engine samples from weights: name them with --policy")
    settings.check_samples()


def _sampler(args: argparse.Namespace, settings: SampleSettings) -> EngineSampler | ServerSampler:
    if args.engine:
        from nemo_rpo.sampling.engine_sampler import EngineSampler

        log = args.out.with_name("engine.log")
        return EngineSampler(settings, log, args.engine_config, args.set, args.nproc_per_node)
    from nemo_rpo.sampling.canary import HuggingFaceReference
    from nemo_rpo.sampling.server_sampler import ServerSampler

    reference = None if args.policy is None else HuggingFaceReference()
    return ServerSampler(settings, args.out.with_name("server.log"), reference)


def _settings(args: argparse.Namespace) -> SampleSettings:
    from nemo_rpo.config.from_mapping import read_yaml, settings_of
    from nemo_rpo.sampling.sampling_settings import SampleSettings

    settings = SampleSettings()
    if args.config:
        settings = settings_of(SampleSettings, read_yaml(args.config).get("sample") or {}, "sample")
    given = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    if "url" in given or "command" in given:
        given = {"url": None, "command": None} | given
    return settings_of(SampleSettings, {**vars(settings), **given}, "sample")
