"""A :mod:`tiny_world` whose pairs carry every side column that a loss may ask for, ties, and dialogues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_world
from tiny_world import BAD, GOOD, PLAIN, Numbers

PAIRS, TIES = 32, 4
PLAYERS = PLAIN[2:5]
TEMPLATE = (
    "{% for m in messages %}{{ 'plain0' if m.role == 'user' else 'plain1' }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}plain1 {% endif %}"
)


def rows() -> list[dict[str, Any]]:
    """:func:`tiny_world.rows`, the last of them ties; what is said of a response speaks for the better one."""
    numbers, made = Numbers(21), tiny_world.rows(PAIRS + TIES, seed=20)
    for row in made:
        cast = [vote["vote"] for vote in row["votes"]]
        first = cast.count("a") >= cast.count("b")
        high, low, gap, strength = (float(value) for value in numbers.uniform(4))
        said = {
            "reward_{}": (1 + gap, 0.0),
            "win_rate_{}": (0.6 + 0.3 * high, 0.1 + 0.3 * low),
            "preference_score_{}": (0.5 + high, -0.5 - low),
        }
        for name, (better, worse) in said.items():
            sides = "ab" if name == "reward_{}" else ("chosen", "rejected")
            row |= zip(map(name.format, sides), (better, worse) if first else (worse, better), strict=True)
        row["consensus"] = (0.2 + low) * (1 if first else -1)
        row["strength"] = float(1 + int(3 * strength))
    for row in made[PAIRS:]:
        for vote in row["votes"]:
            vote["vote"] = "tie"
    return made


def dialogues() -> list[dict[str, Any]]:
    """Rows of messages: one to three turns of the assistant, good ones in the chosen completion, bad in the other."""
    numbers, names = Numbers(22), list(tiny_world.RELIABILITY)
    made = []
    for i in range(PAIRS):
        sides = {}
        for side, words in (("chosen", GOOD), ("rejected", BAD)):
            messages = [_message("assistant", numbers, words)]
            for _ in range(numbers.below(3)):
                messages += [_message("user", numbers, PLAIN), _message("assistant", numbers, words)]
            sides[side] = messages
        prompt = [_message("user", numbers, PLAIN)]
        made.append({"prompt": prompt, **sides, "annotator_id": names[i % len(names)]})
    return made


def judged_alone() -> list[dict[str, Any]]:
    """One completion of each pair, which whoever preferred it calls good."""
    made = []
    for i, row in enumerate(tiny_world.rows(PAIRS, seed=24)):
        side = "ab"[i % 2]
        cast = [
            vote | {"vote": "tie" if vote["vote"] == "tie" else "up" if vote["vote"] == side else "down"}
            for vote in row["votes"]
        ]
        made.append({"prompt": row["prompt"], "completion": row[f"response_{side}"], "votes": cast})
    return made


def battles() -> list[dict[str, Any]]:
    """Battles of three models, the good words' prompts being won by another one than the bad words'; some are ties."""
    numbers, made = Numbers(25), []
    for i in range(PAIRS + TIES):
        kind = i % 2
        first, second = ((0, 1), (1, 2), (2, 0))[i % 3]
        better = (first - kind) % 3 < (second - kind) % 3
        winner = ("tie", "both_bad")[kind] if i >= PAIRS else "model_a" if better else "model_b"
        words = " ".join(numbers.words((GOOD, BAD)[kind] + PLAIN, 2 + numbers.below(3))) + " "
        judge = list(tiny_world.RELIABILITY)[i % len(tiny_world.RELIABILITY)]
        named = {"model_a": PLAYERS[first], "model_b": PLAYERS[second], "winner": winner, "annotator_id": judge}
        made.append({"prompt": words, **named})
    return made


def _message(role: str, numbers: Numbers, words: tuple[str, ...]) -> dict[str, str]:
    return {"role": role, "content": " ".join(numbers.words(words + PLAIN[2:], 1 + numbers.below(2)))}


def make(folder: Path) -> Path:
    """``model/`` with a chat template, ``earlier/`` of other weights, ``train.jsonl``, ``dialogues.jsonl``,
    ``rankings.jsonl``, ``battles.jsonl`` and ``judged_alone.jsonl``.
    """
    for name, seed in (("model", 1), ("earlier", 9)):
        tiny_world.write_model(folder / name, seed)
    settings = folder / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": TEMPLATE}))
    tiny_world.write_rows(folder / "train.jsonl", rows())
    tiny_world.write_rows(folder / "dialogues.jsonl", dialogues())
    tiny_world.write_rows(folder / "rankings.jsonl", tiny_world.rankings(PAIRS, seed=23))
    tiny_world.write_rows(folder / "battles.jsonl", battles())
    tiny_world.write_rows(folder / "judged_alone.jsonl", judged_alone())
    return folder
