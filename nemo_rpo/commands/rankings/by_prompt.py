"""``nemo-rpo rank PROMPTS --by-prompt RUN``: who is best for these prompts, and whom to send each to."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.commands import on_ranks
from nemo_rpo.commands.rankings import picture
from nemo_rpo.counting import counted
from nemo_rpo.data.files.read import as_paths, read_records
from nemo_rpo.data.files.write import record_writer, sink_for, write_csv
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.errors import ConfigError, DataError, printable
from nemo_rpo.launch import start_ranks
from nemo_rpo.ranking import RankSettings
from nemo_rpo.ranking.prompts.leaderboards import PromptBoard, boards, win_rates
from nemo_rpo.ranking.prompts.router import Routing, best_without_prompts, route
from nemo_rpo.sampling.collecting import Prompt, read_prompts
from nemo_rpo.text_table import format_table

_SHOWN = 8  # leaderboards side by side on a terminal; --json and --csv have all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this way's arguments to those of ``rank``."""
    of = parser.add_argument_group("by the prompt")
    help = "a run of p2l_bt, p2l_rao_kupper or p2l_bag, or a checkpoint of it; DATA are then rows with a prompt each"
    of.add_argument("--by-prompt", type=Path, metavar="RUN", help=help)
    of.add_argument("--topic-key", default="topic", metavar="FIELD", help="field with the prompt's topic (topic)")
    help = "file with model and cost a row: route prompts to models"
    of.add_argument("--costs", type=Path, metavar="FILE", help=help)
    help = "mean cost of a prompt that the router must keep within, in the unit of --costs"
    of.add_argument("--budget", type=float, metavar="COST", help=help)
    help = "file to write, a row a prompt: strengths of the models, and with --costs whom it goes to"
    of.add_argument("--out", type=Path, metavar="OUT", help=help)


def check(args: argparse.Namespace) -> None:
    """Raises :class:`ConfigError` for options that need ``--by-prompt``, or each other."""
    for name in ("costs", "budget", "out"):
        if getattr(args, name) is not None and args.by_prompt is None:
            raise ConfigError(f"--{name} goes with --by-prompt RUN")
    if (args.costs is None) != (args.budget is None):
        raise ConfigError("--costs FILE and --budget COST go together")


def run(args: argparse.Namespace, settings: RankSettings) -> int | None:
    """Prints the leaderboards, on the first of the ranks that the run's layout asks for."""
    if args.over_time or args.robust or args.audit or args.interval is not None or args.compare or args.selective:
        raise ConfigError(
            "--by-prompt ranks by a model of the prompt: leave out --over-time, --robust, --audit, --interval, "
            "--selective, --elo and --trueskill"
        )
    if args.out is not None and args.out.exists():  # there is no --overwrite
        raise ConfigError(f"{args.out} exists; name another file")
    if args.out is not None:
        sink_for(args.out)
    prompts = read_prompts(as_paths(args.data, setting="the path", folders=True))
    if not prompts:
        raise DataError(f"{', '.join(args.data)} holds no prompt")
    topics = [_topic(prompt, args.topic_key) for prompt in prompts]
    target = _target(args.by_prompt)
    players = list(target.cfg.model.data.players)
    costs = None if args.costs is None else read_costs(args.costs, players)
    if "RANK" not in os.environ:
        ranks = on_ranks.fewest_ranks(target.cfg)
        on_ranks.check_run(target.cfg, ranks)
        if ranks > 1:
            return start_ranks(ranks, "nemo_rpo.cli", ["rank", *args.given])
    theta = _strengths(target, prompts, players)
    if os.environ.get("RANK", "0") != "0":
        return None
    found = boards(theta, topics, settings)
    value = win_rates(theta)
    routing = None if costs is None else route(value, costs, args.budget)
    if args.out is not None:
        _write(args.out, prompts, topics, players, theta, routing)
    if args.plot:
        from nemo_rpo.report.rendering.ranking_plots import strengths_by_topic

        picture.write(strengths_by_topic(found, players), args.plot)
    if args.csv:
        write_csv(args.csv, [record for board in found for record in _records(board, players)])
    if args.json:
        print(json.dumps(_as_dict(found, players, routing), ensure_ascii=False, indent=1))
        return None
    print(printable(_board_text(found, players)))
    if routing is not None:
        text = _routing_text(routing, players, costs, best_without_prompts(value, costs, args.budget))
        print("\n" + printable(text))
    return None


def read_costs(path: Path, players: Sequence[str]) -> np.ndarray:
    """The cost of each player, float64 [M], from rows with ``model`` (or ``player``) and ``cost``; others are left out.

    Raises:
        DataError: a cost that is missing, negative or said twice.
    """
    found: dict[str, float] = {}
    [path] = as_paths([path], setting="--costs")
    for record in read_records(path):
        if isinstance(record, DataError):
            raise record
        fields = Fields(record)
        name = str(fields.identity("model" if "model" in record.fields else "player", required=True))
        fields.require("cost")
        cost = fields.number("cost")
        if not cost >= 0:
            raise fields.wrong_type("cost", "a number of 0 or more", cost)
        if found.setdefault(name, cost) != cost:
            raise fields.error(f"'{name}' has another cost in an earlier row")
    if missing := [name for name in players if name not in found]:
        raise DataError(f"{path} has no cost of {', '.join(missing)}: give every model one")
    return np.array([found[name] for name in players])


def _target(path: Path) -> Any:
    from nemo_rpo.config.loss import base_loss
    from nemo_rpo.evaluation.checkpoint import target_of

    target = target_of(path, needs_reference=False)
    loss = base_loss(target.cfg.model)
    if "coefficients" not in loss.needs:
        raise ConfigError(
            f"{path} was trained with the loss '{loss.name}', which ranks no models by the prompt: name a run of "
            "p2l_bt, p2l_rao_kupper or p2l_bag"
        )
    target.cfg.model.data.data_prefix = {"train": str(path)}  # no data of the run's is read
    return target


def _strengths(target: Any, prompts: Sequence[Prompt], players: Sequence[str]) -> np.ndarray:
    from nemo_rpo.data.texts import PromptResponses
    from nemo_rpo.evaluation.rewards import reward_rows

    rows = []
    for place, prompt in enumerate(prompts):
        # The head reads the prompt's last token, before any response; a name stands where battles have one.
        name = players[0] if isinstance(prompt.text, str) else [{"role": "assistant", "content": players[0]}]
        rows.append(PromptResponses("prompts", place + 1, prompt.key, prompt.text, (name,)))
    said = reward_rows(target, rows)
    if (short := next((record["name"] for record in said if record["strengths"] is None), None)) is not None:
        raise DataError(f"prompt '{short}' has no room in the model: set a longer model.encoder_seq_length in the run")
    return np.array([[record["strengths"][name] for name in players] for record in said], dtype=np.float64)


def _topic(prompt: Prompt, key: str) -> str | None:
    value = prompt.fields.get(key)
    return None if value is None or value == "" else str(value)


def _board_text(found: Sequence[PromptBoard], players: Sequence[str]) -> str:
    shown = found[:_SHOWN]
    order = np.argsort(-found[0].score, kind="stable")
    header = ["model", "win rate", *(f"{board.name} ({board.prompts:,})" for board in shown)]
    rows = [[players[a], f"{found[0].win_rate[a]:.3f}", *(_score(board, a) for board in shown)] for a in order.tolist()]
    more = f"\n… {len(found) - _SHOWN:,} more topics: --json or --csv" if len(found) > _SHOWN else ""
    return (
        f"{counted(found[0].prompts, 'prompt')}, {counted(len(players), 'model')}\n\n{format_table(header, rows)}{more}"
    )


def _score(board: PromptBoard, a: int) -> str:
    if board.low is None or board.high is None:
        return f"{board.score[a]:+.3f}"
    return f"{board.score[a]:+.3f} ({board.low[a]:+.3f} to {board.high[a]:+.3f})"


def _routing_text(routing: Routing, players: Sequence[str], costs: np.ndarray, blind: Routing) -> str:
    mean = routing.share.mean(0)
    rows = [[players[a], f"{mean[a]:.3f}", f"{costs[a]:g}"] for a in np.argsort(-mean, kind="stable").tolist()]
    said = (
        f"routed by the prompt: win rate {routing.value:.4f} at a mean cost of {routing.cost:g} a prompt\n"
        f"the same for every prompt: win rate {blind.value:.4f} at {blind.cost:g}\n"
        f"one more unit of cost a prompt would add {routing.price:.4g} to the win rate\n\n"
    )
    return said + format_table(["model", "share of prompts", "cost"], rows)


def _records(board: PromptBoard, players: Sequence[str]) -> Iterator[dict[str, Any]]:
    for a in np.argsort(-board.score, kind="stable").tolist():
        interval = {} if board.low is None else {"low": float(board.low[a]), "high": float(board.high[a])}
        figures = {"score": float(board.score[a]), "win_rate": float(board.win_rate[a])}
        yield {"prompts": board.name, "count": board.prompts, "model": players[a], **figures, **interval}


def _as_dict(found: Sequence[PromptBoard], players: Sequence[str], routing: Routing | None) -> dict[str, Any]:
    said: dict[str, Any] = {"boards": {board.name: list(_records(board, players)) for board in found}}
    if routing is not None:
        share = dict(zip(players, routing.share.mean(0).tolist(), strict=True))
        figures = {"win_rate": routing.value, "cost": routing.cost, "price": routing.price}
        said["routing"] = {**figures, "share": share}
    return said


def _write(
    out: Path,
    prompts: Sequence[Prompt],
    topics: Sequence[str | None],
    players: Sequence[str],
    theta: np.ndarray,
    routing: Routing | None,
) -> None:
    with record_writer(out, False) as write:
        for place, (prompt, topic) in enumerate(zip(prompts, topics, strict=True)):
            best = players[int(theta[place].argmax())]
            goes = {} if routing is None else {"goes_to": players[int(routing.share[place].argmax())]}
            strengths = dict(zip(players, theta[place].tolist(), strict=True))
            write({"prompt_id": prompt.key, "topic": topic, "best": best, **goes, "strengths": strengths})
