"""The page of a round, and the page of the loop."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from nemo_rpo.counting import counted
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ConfigError
from nemo_rpo.report.rendering.document import Block, Document, Figure, Note, Section, Table, Text
from nemo_rpo.report.rendering.html import as_html
from nemo_rpo.report.rendering.plots import BLUE, ORANGE, drawing, short
from nemo_rpo.rounds.believing import JUDGES, RoundBelief
from nemo_rpo.rounds.measuring import Measured, why_stop
from nemo_rpo.rounds.policies import round_folder
from nemo_rpo.rounds.rounds_settings import Plan

PAGE = "report.html"
_LINES = 12  # judges up to which each has a line of its own


def write_round_report(plan: Plan, measured: Measured, belief: RoundBelief) -> Path:
    """``report.html`` of a round: what it came to, what is wrong, and the judges."""
    folder, facts = round_folder(plan.folder, measured.round), belief.facts
    about = [
        ("policy", measured.policy),
        ("pairs judged", f"{facts['pairs']:,}"),
        ("verdicts", f"{facts['verdicts']:,}"),
        *(("fit", _fit(plan, place)) for place in range(1, len(plan.fits) + 1)),
    ]
    sections = [
        Section("What it came to", [Text(_sentence(measured)), *_anchor_notes(plan, facts), *_warnings(facts)]),
        Section("Judges", [_judges(folder)]),
    ]
    return _write(folder / PAGE, Document(f"Round {measured.round}", about, sections))


def write_loop_report(plan: Plan, measured: Sequence[Measured]) -> Path:
    """``report.html`` of the loop: win rate and distance by round, the judges by round, and which policy to take."""
    best = max(measured, key=lambda one: one.win_rate)
    about = [("folder", str(plan.folder)), ("start", plan.online.start), ("pairs", plan.online.pairs)]
    about += [("fit", _fit(plan, place)) for place in range(1, len(plan.fits) + 1)]
    first: list[Block] = [Text(f"The best policy is that of round {best.round}, {best.policy}. {_sentence(best)}")]
    if reason := why_stop(measured, plan.online.stop):
        first.append(Note("The loop has ended", reason))
    judges = {one.round: _reliabilities(round_folder(plan.folder, one.round)) for one in measured}
    sections = [
        Section("What to take", first),
        Section("Rounds", [_rounds(measured), _course(measured)]),
        Section("Judges by round", _by_round(judges)),
    ]
    return _write(plan.folder / PAGE, Document("Rounds", about, sections))


def _fit(plan: Plan, place: int) -> str:
    fit = plan.fits[place - 1]
    loss = fit.loss or "the loss of online.train"
    against = "" if fit.base is None else f", base {fit.base}"
    labels = fit.labels if fit.opponent == "self" else f"{fit.labels} against {fit.opponent}"
    return f"{place}: {loss}, start {fit.start}, reference {fit.reference}{against}, labels: {labels}"


def _sentence(measured: Measured) -> str:
    kl = "" if measured.kl_to_start is None else f", {measured.kl_to_start:.2f} nats a response from it"
    return (
        f"It wins {measured.win_rate:.3f} ({measured.low:.3f}–{measured.high:.3f}) of {measured.prompts:,} held-out "
        f"prompts against the start{kl}."
    )


def _anchor_notes(plan: Plan, facts: dict) -> list[Block]:
    found = facts["anchors"]
    if found is None:
        text = "No anchors tell whether the judges are better than a coin; the win rate is their word too."
        return [Note("Unchecked judges", text, "give 20 to 80 pairs their gold label: online.anchors")]
    right = f"{found['right']:.3f} ({found['low']:.3f}–{found['high']:.3f}) of {found['anchors']:,} held-out anchors"
    return [Note("Anchors", f"What is believed is right on {right}.", good=True)]


def _warnings(facts: dict) -> list[Block]:
    off = [Note("A judge is switched off", line) for line in facts["switched_off"]]
    return off + [Note(one["kind"].replace("_", " ").capitalize(), one["text"]) for one in facts["warnings"]]


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / JUDGES).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _judges(folder: Path) -> Table:
    names = ("verdicts", "unparsed", "ties", "reliability", "low", "high", "alpha", "beta", "delta", "consistent")
    rows = [[row["judge"], *(_cell(row[name]) for name in names), row["verdict"] or "–"] for row in _rows(folder)]
    header = [
        "judge", "verdicts", "unread", "ties", "reliability", "from", "to", "says first | first", "second | second",
        "leans to first", "same twice", "verdict",
    ]  # fmt: skip
    return Table(header, rows, "Reliability is the probability that a vote is right, with its 95 % interval.")


def _cell(value: str) -> str:
    if not value:
        return "–"
    return f"{float(value):.3f}" if "." in value else f"{int(value):,}"


def _reliabilities(folder: Path) -> dict[str, float]:
    return {row["judge"]: float(row["reliability"]) for row in _rows(folder) if row["reliability"]}


def _rounds(measured: Sequence[Measured]) -> Table:
    rows = [
        [
            f"{one.round}",
            f"{one.win_rate:.3f}",
            f"{one.low:.3f}–{one.high:.3f}",
            "–" if one.kl_to_start is None else f"{one.kl_to_start:.2f} ± {one.kl_error or 0:.2f}",
            "–" if one.val_acc is None else f"{one.val_acc:.3f}",
        ]
        for one in measured
    ]
    header = ["round", "wins against the start", "95 %", "KL to the start", "held-out pairs right"]
    return Table(header, rows, "KL in nats a response.")


def _course(measured: Sequence[Measured]) -> Figure:
    rounds = [one.round for one in measured]
    with drawing(8.2, 2.9, columns=2) as (_, (left, right), drawn):
        ends = [one.win_rate - one.low for one in measured], [one.high - one.win_rate for one in measured]
        left.errorbar(rounds, [one.win_rate for one in measured], ends, fmt="o-", color=BLUE, capsize=3)
        left.axhline(0.5, color="black", linewidth=0.9)
        left.set_ylim(0, 1)
        left.set_ylabel("wins against the start")
        known = [one for one in measured if one.kl_to_start is not None]
        right.plot([one.round for one in known], [one.kl_to_start for one in known], "D-", color=ORANGE)
        right.set_ylim(bottom=0)
        right.set_ylabel("KL to the start (nats a response)")
        for axes in (left, right):
            axes.set_xlabel("round")
            axes.set_xticks(rounds)
    return Figure("rounds", drawn[0], "win rate and distance from the start by round", "Lines are 95 % intervals.")


def _by_round(judges: dict[int, dict[str, float]]) -> list[Block]:
    names = list(dict.fromkeys(name for of in judges.values() for name in of))
    rows = [[name, *(f"{of[name]:.3f}" if name in of else "–" for of in judges.values())] for name in names]
    table = Table(["judge", *(f"round {number}" for number in judges)], rows, "Reliability in each round's votes.")
    if not names or len(names) > _LINES:
        return [table, Text(f"{counted(len(names), 'judge')}.")]
    with drawing(8.2, 3.2) as (_, axes, drawn):
        for name in names:
            known = [(number, of[name]) for number, of in judges.items() if name in of]
            axes.plot(*zip(*known, strict=True), "o-", label=short(name), linewidth=1.4)
        axes.axhline(0.5, color="black", linewidth=0.9)
        axes.set_ylim(0, 1)
        axes.set_xticks(list(judges))
        axes.set_xlabel("round")
        axes.set_ylabel("reliability")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return [table, Figure("judges", drawn[0], "reliability of each judge by round")]


def _write(path: Path, document: Document) -> Path:
    with whole_file(path, ConfigError, "make room and run the same command again") as writing:
        writing.write_text(as_html(document), encoding="utf-8")
    return path
