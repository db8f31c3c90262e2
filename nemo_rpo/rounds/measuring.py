"""How good the policy has become: its samples against the start's, on prompts that are never trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_rpo.data.files.stage import fingerprint
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ConfigError
from nemo_rpo.judging.belief import believe
from nemo_rpo.judging.collecting import Judged
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.rounds.believing import ask_judges, together
from nemo_rpo.rounds.fitting import accuracy, distance
from nemo_rpo.rounds.policies import Policies, fit_folder, round_folder
from nemo_rpo.rounds.rounds_settings import Plan, StopSettings
from nemo_rpo.sampling.collecting import Collected, Prompt

FILE = "evaluation.json"
_95 = 1.959964


@dataclass(frozen=True)
class Measured:
    """What a round has come to. ``evaluation.json``.

    Attributes:
        round: from 1. policy: its weights.
        win_rate, low, high: probability that a response of the policy is better than one of the start's to the same
            prompt, a tie being half, with its 95 % interval over prompts. prompts: how many.
        kl_to_start, kl_error: nats a response, of the last fit's last validation, and its standard error.
        val_acc: how often the last fit prefers the better of held-out pairs.
    """

    round: int
    policy: str
    win_rate: float
    low: float
    high: float
    prompts: int
    kl_to_start: float | None
    kl_error: float | None
    val_acc: float | None


def measure(
    plan: Plan,
    number: int,
    prompts: Sequence[Prompt],
    round_pairs: Sequence[JudgedPair],
    judged: Sequence[Judged],
    inputs: str,
) -> Measured:
    """Samples, asks and writes ``evaluation.json``; what is there of the same inputs is read.

    Args:
        prompts: held out.
        round_pairs, judged: the round's pairs and anchors, and verdicts on them, which tell how far its judges are to
            be believed where they measure themselves.
        inputs: the fingerprint of the last fit.
    """
    folder, policies = round_folder(plan.folder, number), Policies(plan)
    policy = policies.of("this", number)
    start = _start(policies, plan, prompts)
    (folder / "measure").mkdir(parents=True, exist_ok=True)
    ours = policies.sampled(policy, prompts, folder / "measure" / "responses.parquet", 1, "measure", number)
    pairs, same = _against(prompts, ours, start)
    said = ask_judges(plan, plan.measuring, pairs, folder / "measure")
    made_of = fingerprint(
        {
            "fit": inputs,
            "pairs": [[pair.pair_id, pair.a, pair.b] for pair in pairs],
            "same": same,
            "said": [[one.name, one.off, [[v.pair, v.shown_first, v.said] for v in one.verdicts]] for one in said],
        }
    )
    if (folder / FILE).exists():
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if found.pop("inputs") != made_of:
            raise ConfigError(f"{folder / FILE} was made of other samples or verdicts; delete it to measure again")
        return Measured(**found)
    if plan.online.measure.judges:
        wins = _shares(pairs, said)
    else:
        p_a = believe([*round_pairs, *pairs], together(judged, said)).p_a
        wins = [p_a[pair.pair_id] for pair in pairs if pair.pair_id in p_a]
    wins += [0.5] * same
    if not wins:
        raise ConfigError("no held-out prompt has a verdict on the policy and the start: raise online.prompts.held_out")
    mean = math.fsum(wins) / len(wins)
    spread = math.sqrt(math.fsum((win - mean) ** 2 for win in wins) / max(1, len(wins) - 1) / len(wins))
    last = fit_folder(plan.folder, number, len(plan.fits))
    kl, error = distance(last)
    measured = Measured(
        number,
        str(policy),
        mean,
        max(0.0, mean - _95 * spread),
        min(1.0, mean + _95 * spread),
        len(wins),
        _number(kl),
        _number(error),
        _number(accuracy(last)),
    )
    with whole_file(folder / FILE, ConfigError, "make room and run the same command again") as writing:
        writing.write_text(json.dumps(asdict(measured) | {"inputs": made_of}, indent=1) + "\n", encoding="utf-8")
    return measured


def why_stop(measured: Sequence[Measured], stop: StopSettings) -> str | None:
    """Why there is no round after the last of these, None if there is."""
    last, best = measured[-1], max(measured, key=lambda one: one.win_rate)
    kl = last.kl_to_start
    if stop.kl_to_start is not None and kl is not None and kl > stop.kl_to_start:
        return (
            f"the policy is {kl:.3g} nats a response from the start, above online.stop.kl_to_start={stop.kl_to_start:g}"
        )
    if stop.win_rate_drop is not None and last.win_rate < best.win_rate - stop.win_rate_drop:
        return (
            f"the win rate fell from {best.win_rate:.3f} in round {best.round} to {last.win_rate:.3f}, by more than "
            f"online.stop.win_rate_drop={stop.win_rate_drop:g}: the policy to take is {best.policy}"
        )
    return None


def _start(policies: Policies, plan: Plan, prompts: Sequence[Prompt]) -> Collected:
    folder = plan.folder / "start"
    folder.mkdir(parents=True, exist_ok=True)
    return policies.sampled(Path(plan.online.start), prompts, folder / "responses.parquet", 1, "start", 0)


def _against(prompts: Sequence[Prompt], ours: Collected, start: Collected) -> tuple[list[JudgedPair], int]:
    """A pair a prompt, a the policy's response and b the start's, and how many prompts have the same one twice."""
    theirs = {response.prompt: response.text for response in start.kept}
    mine = {response.prompt: response.text for response in ours.kept}
    pairs, same = [], 0
    for prompt in prompts:
        if prompt.key not in theirs or prompt.key not in mine:
            continue
        if theirs[prompt.key] == mine[prompt.key]:
            same += 1
            continue
        texts = (prompt.text, mine[prompt.key], theirs[prompt.key])
        pairs.append(JudgedPair(f"{prompt.key}:measure", *texts, fields=dict(prompt.fields)))
    return pairs, same


def _shares(pairs: Sequence[JudgedPair], judged: Sequence[Judged]) -> list[float]:
    """Of each pair that a judge said something of, the share of votes for a; a tie is half."""
    signs: dict[str, list[int]] = {}
    for one in judged:
        for pair, vote in one.votes().items():
            signs.setdefault(pair, []).append(vote.sign)
    return [0.5 + sum(signs[p.pair_id]) / len(signs[p.pair_id]) / 2 for p in pairs if p.pair_id in signs]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
