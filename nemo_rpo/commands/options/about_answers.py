"""Options of ``nemo-rpo annotators`` that look at the answers: what labels reward, and what a frozen model knows."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_rpo.commands.row_arguments import row_format
from nemo_rpo.errors import ConfigError
from nemo_rpo.evaluation.probe.probe_settings import ProbeSettings

if TYPE_CHECKING:
    from nemo_rpo.crowd.crowd_settings import CrowdSettings
    from nemo_rpo.crowd.factors.driving import Drivers
    from nemo_rpo.crowd.reliability import Reliability
    from nemo_rpo.data.vote_table import VoteTable
    from nemo_rpo.evaluation.probe.probing import Probe
    from nemo_rpo.evaluation.probe.word_pairs import WordPreference


@dataclass
class AboutAnswers:
    """What was found: drivers of the labels, a probe, its preferences between words; each where it was asked for."""

    drivers: Drivers | None = None
    probe: Probe | None = None
    words: list[WordPreference] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON; empty where nothing was asked for."""
        found: dict[str, Any] = {}
        if self.drivers:
            found["drivers"] = self.drivers.to_dict()
        if self.probe:
            layers = [
                {name: getattr(s, name) for name in ("layer", "accuracy", "low", "high", "gain")}
                for s in self.probe.layers
            ]
            found["probe"] = {"layers": layers, "best": self.probe.best.layer, "believed": self.probe.believed}
        if self.words:
            found["words"] = [asdict(word) for word in self.words]
        return found

    def text(self) -> str:
        """As a person reads it, after a blank line; empty where nothing was asked for."""
        from nemo_rpo.crowd.factors import drivers_text
        from nemo_rpo.evaluation.probe import probe_text

        parts = [drivers_text.as_text(self.drivers)] if self.drivers else []
        parts += [probe_text.as_text(self.probe)] if self.probe else []
        parts += [probe_text.words_text(self.words)] if self.words else []
        return "".join(f"\n\n{part}" for part in parts)


def add_about_answers(parser: argparse.ArgumentParser) -> None:
    """``--factors``, ``--factor-columns``, ``--probe`` and what belongs to it."""
    add, defaults = parser.add_argument, ProbeSettings()
    help = "what the labels reward: length, format, overlap with the prompt; the believed and the distrusted ones"
    add("--factors", action="store_true", help=help)
    help = (
        "further properties of answers: NAME stands for the fields NAME_a and NAME_b, or chosen_NAME and rejected_NAME"
    )
    add("--factor-columns", type=_names, default=[], metavar="NAME,…", help=help)
    help = "Hugging Face folder of a model whose hidden states are probed; its margins count beside the votes"
    add("--probe", type=Path, metavar="MODEL", help=help)
    help = "layers to probe, 0 the embeddings, -1 the last (all)"
    add("--probe-layers", type=_numbers, metavar="N,…", help=help)
    add(
        "--probe-state",
        choices=("mean", "last"),
        help=f"of an answer: mean of its tokens' states, or the last ({defaults.state})",
    )
    add("--probe-kind", choices=("logistic", "lda"), help=f"fit; lda is in closed form ({defaults.kind})")
    help = f"tokens of prompt and answer that the model reads ({defaults.max_tokens})"
    add("--probe-max-tokens", type=int, metavar="N", help=help)
    help = "with --probe: rows of first and second (and template, with {}): which word the probe prefers"
    add("--word-pairs", type=Path, metavar="FILE", help=help)


def check_about_answers(args: argparse.Namespace) -> None:
    """Raises :class:`ConfigError` of options that go with another one."""
    if args.factor_columns and not args.factors:
        raise ConfigError("--factor-columns goes with --factors")
    if args.probe is None:
        for name in ("probe_layers", "probe_state", "probe_kind", "probe_max_tokens", "word_pairs"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} goes with --probe MODEL")
    elif not args.probe.is_dir():
        raise ConfigError(f"--probe: there is no folder {args.probe}")


def asked_for(args: argparse.Namespace) -> bool:
    """Whether the texts are needed."""
    return bool(args.factors or args.probe)


def assess_with_answers(
    table: VoteTable, settings: CrowdSettings, args: argparse.Namespace
) -> tuple[Reliability, AboutAnswers]:
    """The annotators, with a probe's margins beside the votes where one is asked for; and what drives their labels."""
    from nemo_rpo.crowd.reliability import assess

    found = AboutAnswers()
    margin = None
    if args.probe:
        from nemo_rpo.crowd.crowd_fit import fit_crowd
        from nemo_rpo.evaluation.probe.hidden_states import HiddenStates
        from nemo_rpo.evaluation.probe.probe_of_file import probe_file
        from nemo_rpo.evaluation.probe.word_pairs import read_word_pairs, word_preferences

        probing = _probe_settings(args)
        words = read_word_pairs(args.word_pairs) if args.word_pairs else []
        states = HiddenStates(args.probe, probing)
        probed = probe_file(args.data, row_format(args), table, fit_crowd(table), states, probing)
        found.probe, margin = probed.probe, probed.probe.margin
        if words:
            found.words = word_preferences(words, states, probed)
    result = assess(table, settings, margin)
    if args.factors:
        found.drivers = _drivers(table, result, args)
    return result, found


def _drivers(table: VoteTable, result: Reliability, args: argparse.Namespace) -> Drivers:
    from nemo_rpo.crowd.factors.answer_features import FEATURES
    from nemo_rpo.crowd.factors.driving import drivers_of
    from nemo_rpo.crowd.factors.pair_texts import feature_differences, turns

    now = result.fit.table
    x, prompt = feature_differences(args.data, row_format(args), table, columns=args.factor_columns)
    x, signed = x * turns(table, now)[:, None], now.sign != 0
    pair = now.pair[signed]
    oriented = x[pair] * now.sign[signed, None]
    return drivers_of(oriented, [*FEATURES, *args.factor_columns], result.fit.right[signed], pair, prompt[pair])


def _probe_settings(args: argparse.Namespace) -> ProbeSettings:
    named = {"layers": "probe_layers", "state": "probe_state", "kind": "probe_kind", "max_tokens": "probe_max_tokens"}
    given = {name: getattr(args, option) for name, option in named.items() if getattr(args, option) is not None}
    settings = ProbeSettings(**given)
    settings.check()
    return settings


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of layers: 0,3,-1") from None
