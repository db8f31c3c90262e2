"""Pictures of leaderboards: strengths over time, tables of wins, and plans, in the style of ``plots``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nemo_rpo.ranking.audits.violations import Violations
from nemo_rpo.ranking.next_judgements import JudgementPlan
from nemo_rpo.ranking.over_time.history import History
from nemo_rpo.ranking.pair_table import PairTable
from nemo_rpo.ranking.prompts.leaderboards import PromptBoard
from nemo_rpo.ranking.second_opinion.robust_table import SecondOpinion
from nemo_rpo.report.rendering.plots import BLUE, COLOURS, GREY, RED, STYLES, drawing, short

_LINES = 8  # players with a line of their own
_NAMED = 40  # players up to which a table of wins names them
_DAYS = 10 * 86_400.0  # of seconds, from which ticks leave out the hour
_MARKED = 10  # contradicted pairs that are named


def strengths_over_time(history: History, moment: Callable[[float, float], str]) -> str:
    """Strengths with intervals: of many players the strongest half of those shown, and those that changed most."""
    players = history.players
    if len(players) > _LINES:
        changed = sorted(players, key=lambda player: -abs(player.change))
        players = list(dict.fromkeys([*range(_LINES // 2), *(player.rank - 1 for player in changed)]))[:_LINES]
        players = [history.players[place] for place in sorted(players)]
    with drawing(8.2, 3.8) as (_, axes, drawn):
        for place, player in enumerate(players):
            colour, style = COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]
            axes.fill_between(
                player.time, player.strength_low, player.strength_high, color=colour, alpha=0.13, linewidth=0
            )
            label = f"{short(player.player)}  {player.change:+.2f}"
            axes.plot(player.time, player.strength, color=colour, linestyle=style, linewidth=1.6, label=label)
        axes.xaxis.set_major_locator(_few())
        days = history.width * history.slices > _DAYS

        def tick(value: float, place: int) -> str:
            text = moment(value, history.begin)
            return text.split(" ")[0] if days else text

        axes.xaxis.set_major_formatter(tick)
        axes.set_xlabel("time")
        axes.set_ylabel(f"strength (band: {history.confidence:.0%} interval)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, title="player, change")
    return drawn[0]


def _few() -> object:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)


def believed_shares(found: SecondOpinion) -> str:
    """Every pair's share of wins, as observed against as the others have it."""
    with drawing(5.4, 4.6) as (_, axes, drawn):
        observed, believed = found.shares.T
        axes.plot((0, 1), (0, 1), color="black", linewidth=0.9)
        doubted = found.contradicted
        axes.plot(believed[~doubted], observed[~doubted], "o", color=BLUE, markersize=4, label="believed")
        axes.plot(believed[doubted], observed[doubted], "D", color=RED, markersize=5, label="contradicted")
        for entry in found.distrusted[:_MARKED]:
            name = f"{short(entry.a)} – {short(entry.b)}"
            axes.annotate(
                name, (entry.believed, entry.observed), xytext=(5, 3), textcoords="offset points", fontsize=7.5
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("share of wins that the other pairs foretell")
        axes.set_ylabel("share of wins observed")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # any corner may have a contradicted pair
    return drawn[0]


def strengths_by_topic(boards: Sequence[PromptBoard], players: Sequence[str]) -> str:
    """The models' strengths on all prompts and on each topic, a line a model; the strongest of many."""
    boards = boards[:_NAMED]
    order = np.argsort(-boards[0].score, kind="stable")[:_LINES]
    with drawing(8.2, 3.8) as (_, axes, drawn):
        at = np.arange(len(boards))
        for place, player in enumerate(order.tolist()):
            score = np.array([board.score[player] for board in boards])
            low = np.array([(board.score if board.low is None else board.low)[player] for board in boards])
            high = np.array([(board.score if board.high is None else board.high)[player] for board in boards])
            moved = at + 0.03 * (place - len(order) / 2)
            colour, style = COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]
            bars = np.stack([score - low, high - score]).clip(0)
            axes.errorbar(moved, score, bars, color=colour, linestyle=style, marker="o", markersize=4, linewidth=1.2)
            axes.plot([], [], color=colour, linestyle=style, marker="o", markersize=4, label=short(players[player]))
        axes.set_xticks(at, [short(board.name) for board in boards])
        axes.set_ylabel("strength (bars: interval over prompts)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return drawn[0]


def accuracy_by_coverage(curves: dict[str, np.ndarray]) -> str:
    """Accuracy among the questions that a score is surest of, against how many of them are answered."""
    with drawing(5.8, 3.8) as (_, axes, drawn):
        for place, (name, curve) in enumerate(curves.items()):
            coverage = np.arange(1, len(curve) + 1) / len(curve)
            label = f"{short(name)}  {curve.mean():.3f}"
            axes.plot(coverage, curve, color=COLOURS[place % len(COLOURS)], linestyle=STYLES[place % 4], label=label)
        axes.set_xlabel("share of the questions answered, the surest first")
        axes.set_ylabel("share of them right")
        axes.legend(title="confidence, area")
    return drawn[0]


def wins(table: PairTable, players: list[str], order: list[int], found: Violations) -> str:
    """Share of the row's wins over the column, best player first; reversed majorities have a frame."""
    size = len(players)
    share = np.full((size, size), np.nan)
    share[table.low, table.high] = table.share
    share[table.high, table.low] = 1 - table.share
    place = {players[i]: row for row, i in enumerate(order)}
    with drawing(6.4, 5.2) as (figure, axes, drawn):
        image = axes.imshow(share[np.ix_(order, order)], cmap="PuOr_r", vmin=0, vmax=1)
        for row in found.reversed_majorities:
            at = place[row.loser] - 0.5, place[row.winner] - 0.5
            _frame(axes, at)
        axes.grid(False)
        if size <= _NAMED:
            names = [short(players[i]) for i in order]
            axes.set_xticks(range(size), names, fontsize=7.5, rotation=60, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(size), names, fontsize=7.5)
        axes.set_title(f"framed: {len(found.reversed_majorities)} majorities against the order", fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of wins, row over column")
    return drawn[0]


def _frame(axes: object, at: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(at, 1, 1, fill=False, edgecolor="black", linewidth=2))


def course(plan: JudgementPlan) -> str:
    """How intervals narrow, by the plan and with all pairs alike."""
    spent = [row.judgements for row in plan.course]
    with drawing(6.4, 3.4) as (_, axes, drawn):
        axes.plot(spent, [row.widest for row in plan.course], "o-", color=BLUE, markersize=4, label="by the plan")
        alike = [row.round_robin for row in plan.course]
        axes.plot(spent, alike, "D--", color=RED, markersize=4, label="all pairs alike")
        axes.plot(spent, [row.mean for row in plan.course], ":", color=GREY, label="mean, by the plan")
        axes.axhline(plan.width, color="black", linewidth=0.9)
        axes.set_ylim(0)
        axes.set_xlabel("judgements from here")
        axes.set_ylabel(f"widest {plan.confidence:.0%} interval")
        axes.legend(loc="lower left")
    return drawn[0]
