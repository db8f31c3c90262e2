"""``nemo-rpo rank --robust | --audit | --interval``: second looks at the leaderboard, printed below it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo_rpo.counting import counted
from nemo_rpo.data.files.read import read_records
from nemo_rpo.data.files.write import write_csv
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.errors import ConfigError, DataError, printable
from nemo_rpo.ranking import Comparisons, RankSettings
from nemo_rpo.ranking.audits.audit import Audit, audit_table
from nemo_rpo.ranking.audits.cycles import Cycles
from nemo_rpo.ranking.audits.violations import Violation, Violations
from nemo_rpo.ranking.next_judgements import JudgementPlan, plan_judgements
from nemo_rpo.ranking.second_opinion.robust_table import SecondOpinion, second_opinion
from nemo_rpo.text_table import format_table

_SHOWN = 20
Look = SecondOpinion | Audit | JudgementPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options to the command's parser."""
    group = parser.add_argument_group("second looks")
    add = group.add_argument
    add("--robust", action="store_true", help="rank again without pairs whose results the other pairs contradict")
    help = "pairs and majorities that the scores reverse, and cycles among the majorities"
    add("--audit", action="store_true", help=help)
    help = "numbers of every player, a row each under its name in the column 'player': audit scores linear in these too"
    add("--features", type=Path, metavar="FILE", help=help)
    help = "plan what to have judged next, until no score's interval is wider"
    add("--interval", type=float, metavar="WIDTH", help=help)
    add("--judgements", type=int, metavar="N", help="plan no more than so many")
    add("--judge-next", type=Path, metavar="OUT", help="write the planned pairs to a CSV file")


def check(args: argparse.Namespace) -> None:
    """Raises :class:`ConfigError` for options that need others."""
    for name, needed in (("features", "audit"), ("judgements", "interval"), ("judge_next", "interval")):
        if getattr(args, name) is not None and not getattr(args, needed):
            raise ConfigError(f"--{name.replace('_', '-')} goes with --{needed}")


def looks(args: argparse.Namespace, comparisons: Comparisons, settings: RankSettings) -> dict[str, Look]:
    """What was asked for, by the name that it has in JSON; writes the planned pairs."""
    found: dict[str, Look] = {}
    if args.robust:
        found["second_opinion"] = second_opinion(comparisons, settings)
    if args.audit:
        features, names = _features(args.features) if args.features else (None, [])
        found["audit"] = audit_table(comparisons, settings, features, names)
    if args.interval is not None:
        plan = found["plan"] = plan_judgements(comparisons, settings, args.interval, args.judgements)
        if args.judge_next:
            if not plan.pairs:
                raise ConfigError(f"no interval is wider than {args.interval:g}: there is nothing left to judge")
            rows = [{"model_a": pair.a, "model_b": pair.b, "judgements": pair.judgements} for pair in plan.pairs]
            write_csv(args.judge_next, rows)
    return found


def _features(path: Path) -> tuple[dict[str, list[float]], list[str]]:
    found: dict[str, list[float]] = {}
    names: list[str] = []
    for record in read_records(path):
        if isinstance(record, DataError):
            raise record
        fields = Fields(record)
        names = names or [name for name in record.fields if name != "player"]
        values = [fields.number(name) for name in names]
        if any(value != value for value in values):
            raise fields.error("a number is missing, and every player needs all of them")
        player = str(fields.identity("player", required=True))
        if found.setdefault(player, values) != values:
            raise fields.error(f"'{player}' has other numbers in an earlier row")
    if not names:
        raise DataError(f"{path} has no column of numbers beside 'player'")
    return found, names


def text(look: Look) -> Iterator[str]:
    """The parts of the answer for a terminal."""
    if isinstance(look, SecondOpinion):
        yield from _opinion(look)
    elif isinstance(look, Audit):
        yield from _audit(look)
    else:
        yield from _plan(look)


def _opinion(found: SecondOpinion) -> Iterator[str]:
    excess = f", believed results lie {found.excess:.1f} times as far from strengths as chance has them"
    excess *= found.excess > 1.05
    yield f"second opinion: {len(found.distrusted):,} of {counted(found.entries, 'pair')} contradicted{excess}"
    if not found.distrusted:
        yield "no pair's result is contradicted by the others: the table above stands"
        return
    rows = [
        [f"{e.a} – {e.b}", f"{e.comparisons:,}", f"{e.observed:.3f}", f"{e.believed:.3f}", f"{e.z:+.1f}"]
        for e in found.distrusted[:_SHOWN]
    ]
    header = ["contradicted", "comparisons", "first's share observed", "share believed", "standard errors"]
    yield format_table(header, rows) + _more(len(found.distrusted))
    players = list(zip(found.players, found.ranks, found.plain_ranks, found.scores, strict=True))[:_SHOWN]
    rows = [[name, f"{rank}", f"{plain}", f"{score:+.3f}"] for name, rank, plain, score in players]
    yield format_table(["player", "rank without them", "rank above", "score"], rows) + _more(len(found.players))
    if found.cut_off:
        yield f"warning: without these pairs nothing compares {_names(found.cut_off[:5])} with the others"


def _audit(found: Audit) -> Iterator[str]:
    yield f"audit of {counted(found.pairs, 'pair')} that met: {_kept(found.violations)}"
    if found.violations.reversed_majorities:
        yield _violations(found.violations)
    yield _cycles(found.cycles)
    if found.linear is None:
        return
    linear = found.linear
    weights = ", ".join(f"{name} {value:+.4g}" for name, value in zip(linear.features, linear.weights, strict=True))
    yield f"scores linear in features ({weights}): {_kept(linear.violations)}"
    if linear.violations.reversed_majorities:
        yield _violations(linear.violations)
    if not linear.pareto:
        yield "no linear scores keep every unanimous pair; the rule below was not asked to"
    pairs = zip(linear.rule_players, linear.players, strict=True)
    rows = [[f"{rank}", name, likeliest] for rank, (name, likeliest) in enumerate(pairs, 1)][:_SHOWN]
    table = format_table(["rank", "leximax Copeland", "likeliest linear scores"], rows)
    yield table + _more(len(linear.players))
    weights = ", ".join(
        f"{name} {value:+.4g}" for name, value in zip(linear.features, linear.rule_weights, strict=True)
    )
    yield f"leximax Copeland's scores ({weights}): {_kept(linear.rule_violations)}"


def _kept(found: Violations) -> str:
    return (
        f"{len(found.reversed_unanimous):,} of {found.unanimous:,} unanimous reversed, "
        f"{len(found.reversed_majorities):,} of {found.majorities:,} majorities"
    )


def _violations(found: Violations) -> str:
    unanimous = {(row.winner, row.loser) for row in found.reversed_unanimous}
    rows = [_violation(row, (row.winner, row.loser) in unanimous) for row in found.reversed_majorities[:_SHOWN]]
    header = ["reversed", "", "won", "of", "score behind by", "p"]
    return format_table(header, rows) + _more(len(found.reversed_majorities))


def _violation(row: Violation, unanimous: bool) -> list[str]:
    what = "unanimous" if unanimous else "majority"
    name = f"{row.winner} over {row.loser}"
    return [name, what, f"{row.wins:,}", f"{row.comparisons:,}", f"{row.behind:.3f}", f"{row.p_value:.3f}"]


def _cycles(found: Cycles) -> str:
    leader = (
        f"{_names([found.winner])} beats every other by majority"
        if found.winner
        else "nobody beats every other by majority"
    )
    if not found.circles:
        return f"{leader}; majorities run in no circle"
    groups = "; ".join(_names(group[:8]) + " …" * (len(group) > 8) for group in found.circles[:3])
    cost = ""
    if found.weight is not None:
        at_most = "" if found.exact else "at most "
        cost = f"; an order must go against {at_most}{found.weight:,.0f} votes of margin ({found.of_margins:.1%})"
        cost += f", as much as chance makes with p = {found.p_value:.3f}"
    return f"{leader}; majorities run in circles among {groups} ({counted(found.triples, 'circle')} of three){cost}"


def _plan(found: JudgementPlan) -> Iterator[str]:
    if not found.judgements:
        yield f"plan: no {found.confidence:.0%} interval is wider than {found.width:g}: nothing is left to judge"
        return
    yield (
        f"plan: {counted(found.judgements, 'judgement')} for {found.confidence:.0%} intervals no wider than "
        f"{found.width:g}" + ("" if found.reached else " (not reached)")
        + f"; all pairs alike would take {found.round_robin:,}"
    )  # fmt: skip
    rows = [
        [f"{row.judgements:,}", f"{row.widest:.3f}", f"{row.mean:.3f}", f"{row.round_robin:.3f}"]
        for row in found.course
    ]
    yield format_table(["judgements", "widest interval", "mean", "widest, all pairs alike"], rows)
    rows = [[f"{pair.a} – {pair.b}", f"{pair.judgements:,}"] for pair in found.pairs[:_SHOWN]]
    yield format_table(["judge next", "times"], rows) + _more(len(found.pairs))


def _names(players: Sequence[str]) -> str:
    return ", ".join(printable(name, cell=True) for name in players)


def _more(count: int) -> str:
    return f"\n… {count - _SHOWN:,} more" if count > _SHOWN else ""


def to_dict(found: dict[str, Look]) -> dict[str, Any]:
    """As plain data, for JSON."""
    return {name: look.to_dict() for name, look in found.items()}
