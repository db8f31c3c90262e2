"""Win rates against another policy than the one that wrote the responses: EGPO's look-ahead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nemo_rpo.crowd.win_rates import AgainstPolicy, against_policy
from nemo_rpo.judging.belief import believe
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.rounds.believing import SOFT_TRAIN, SOFT_VALIDATION, RoundBelief, ask_judges, together
from nemo_rpo.rounds.draws import Prompts
from nemo_rpo.rounds.policies import Policies
from nemo_rpo.rounds.rounds_settings import Plan
from nemo_rpo.rounds.training_rows import prompt_of, write_believed_rows


def believe_opponent(
    plan: Plan,
    folder: Path,
    opponent: Path,
    number: int,
    prompts: Prompts,
    pairs: Sequence[JudgedPair],
    anchors: Sequence[JudgedPair],
    belief: RoundBelief,
) -> tuple[Path, Path]:
    """Samples the ``opponent`` once a prompt, has the judges compare each response of ``pairs`` with that sample, and
    writes what is believed of the pairs, with win rates against it, into ``folder``; the two files.

    They follow from the samples and verdicts, which are kept, so they are written anew each time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, validation = folder / SOFT_TRAIN, folder / SOFT_VALIDATION
    every = [*prompts.trained, *prompts.held_out]
    found = Policies(plan).sampled(opponent, every, folder / "responses.parquet", 1, "opponent", number)
    theirs = {response.prompt: response.text for response in found.kept}
    duels: dict[tuple[str, str], JudgedPair] = {}
    for pair in pairs:
        key = prompt_of(pair)
        for side, text in zip(pair.pair_id.rpartition(":")[2].split("-"), (pair.a, pair.b), strict=True):
            if key in theirs and text != theirs[key]:
                name = f"{key}:opponent-{side}"
                duels.setdefault((key, text), JudgedPair(name, pair.prompt, text, theirs[key], fields=pair.fields))
    fought = list(duels.values())
    said = ask_judges(plan, plan.judges, fought, folder)
    if not plan.online.anchors.evidence:
        anchors = [JudgedPair(pair.pair_id, pair.prompt, pair.a, pair.b) for pair in anchors]
    p_a = believe([*pairs, *anchors, *fought], together(belief.judged, said)).p_a
    against = _against(pairs, duels, p_a)
    held_out = {prompt.key for prompt in prompts.held_out}
    for path, wanted in ((train, False), (validation, True)):
        index = [i for i, pair in enumerate(pairs) if (prompt_of(pair) in held_out) == wanted]
        rows = AgainstPolicy(*(of[index] for of in against))
        write_believed_rows(path, [pairs[i] for i in index], belief.p_a, rows)
    return train, validation


def _against(
    pairs: Sequence[JudgedPair], duels: dict[tuple[str, str], JudgedPair], p_a: dict[str, float]
) -> AgainstPolicy:
    """P(y ≻ opponent) of each pair's responses [n, 2]; ½ of one that the opponent says too, or cannot be compared."""
    names = list(duels)
    w = np.array([p_a.get(duels[name].pair_id, np.nan) for name in names], dtype=np.float64)
    found = against_policy([key for key, _ in names], [text for _, text in names], [d.b for d in duels.values()], w)
    place = {name: i for i, name in enumerate(names)}

    def of(column: np.ndarray, nothing: float) -> np.ndarray:
        return np.array(
            [
                [
                    column[place[key], 0] if (key := (prompt_of(pair), text)) in place else nothing
                    for text in (pair.a, pair.b)
                ]
                for pair in pairs
            ],
            dtype=np.float64,
        ).reshape(-1, 2)

    return AgainstPolicy(of(found.win_rate, 0.5), of(found.score, 0.0))
