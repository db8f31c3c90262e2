"""Files in which every defect stands once, and where."""

from __future__ import annotations

import json
from pathlib import Path

Line = dict | str | bytes
A_TURN = "\n\nHuman: hi\n\nAssistant:"


def write(path: Path, lines: list[Line]) -> Path:
    path.write_bytes(b"".join(_bytes(line) + b"\n" for line in lines))
    return path


def _bytes(line: Line) -> bytes:
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)).encode()


def pair(name: str, a: str = "yes", b: str = "no", votes: str = "w1:a", prompt: str | None = None, **more) -> dict:
    """A row of the layout ``votes``; ``votes`` as in ``"w1:a w2:tie"``."""
    cast = [dict(zip(("annotator", "vote"), vote.split(":"), strict=True)) for vote in votes.split()]
    prompt = f"Question {name}?\n" if prompt is None else prompt
    return {"pair_id": name, "prompt": prompt, "response_a": a, "response_b": b, "votes": cast, **more}


def label(prompt: str, chosen: str = "yes", rejected: str = "no", annotator: str | None = "w1") -> dict:
    """A row of the layout ``hf``."""
    named = {} if annotator is None else {"annotator": annotator}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **named}


# Lines, each with the kinds of finding that belong to it.
VOTES: list[tuple[Line, set[str]]] = [
    ({"question": "?", "answer": "!"}, {"unknown_layout"}),
    (pair("good", gold="a"), set()),
    ('{"pair_id": "x", "prompt"', {"bad_json"}),
    (json.dumps(pair("latin", a="caf\u00e9"), ensure_ascii=False).encode("latin-1"), {"bad_encoding"}),
    ({**pair("short"), "response_b": None}, {"bad_field"}),
    (pair("good", a="maybe"), {"pair_id_conflict"}),
    (pair("good", gold="b", votes=""), {"gold_conflict"}),
    (pair("empty", b=" \n"), {"empty_completion"}),
    (pair("identical", b="yes"), {"identical_completions"}),
    (pair("spaces", a="yes or no", b="yes  or no\n"), {"identical_but_for_space"}),
    (pair("silent", prompt=" "), {"empty_prompt"}),
    (pair("lost", a="caf\ufffd"), {"replacement_character"}),
    (pair("bell", b="no\x07"), {"control_character"}),
    (pair("moji", a="It\u00e2\u20ac\u2122s the caf\u00c3\u00a9"), {"mojibake"}),
    (
        pair("again", prompt="Yes or no, what do you say: ", a="Yes or no, what do you say: yes")
        | {"response_b": "Yes or no, what do you say: no"},
        {"prompt_repeated"},
    ),
    (pair("rendered", prompt="<|im_start|>user\nYes or no?<|im_end|>\n"), {"rendered_before"}),
    (pair("dialogue", a=f" Yes.{A_TURN} Sure."), {"later_prompts_differ"}),
    (pair("twice", votes="w1:a w2:b w1:a"), {"duplicate_vote"}),
    (pair("torn", votes="w1:a w2:b w2:a"), {"contradiction"}),
    (pair("drawn", votes="w1:tie w2:tie"), {"no_signed_vote"}),
    (pair("rare", votes="w1:a w3:tie"), {"few_labels"}),
    (pair("good", votes="w2:b"), set()),
]
LABELS: list[tuple[Line, set[str]]] = [
    (label("one"), set()),
    (label("two", annotator=None), {"missing_annotator"}),
    (label("two", chosen="no", rejected="yes", annotator=None), {"missing_annotator", "opposite_unnamed"}),
    (label("three", annotator=" W1"), {"similar_annotators"}),
    (label("", chosen="", rejected=""), {"empty_completion", "empty_prompt", "no_text"}),
    (label(" ", chosen="", rejected=""), {"empty_completion", "empty_prompt", "no_text"}),
    (
        {
            "chosen": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}],
            "rejected": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It."}],
        },
        {"different_prompts"},
    ),
]
# With a tokenizer that splits at white space and knows only the words a, b, c, …, and eight tokens of room.
TOKENS: list[tuple[Line, set[str]]] = [
    (pair("good", prompt="a\n", a="a b", b="c d"), set()),
    (pair("unknown", prompt="a\n", a="omega", b="alpha"), {"identical_tokens"}),
    (pair("long", prompt="a\n", a="a b c d e f g h", b="b"), {"over_long"}),
    (pair("cut", prompt="a b c d e f\n", a="a b", b="b a c"), {"truncated_prompt"}),
    (
        pair("same", prompt="a b c d e\n", a="a b c d e", b="a b c e f"),
        {"truncated_prompt", "identical_after_truncation"},
    ),
    (pair("chat", prompt="a\n") | {"response_a": [{"role": "assistant", "content": "a"}]}, {"no_chat_template"}),
    (pair("more", prompt="a\n") | {"response_a": [{"role": "assistant", "content": "b"}]}, set()),
    (pair("void", prompt="", a="a b", b="b a"), {"empty_prompt", "no_prompt_token"}),
]
# With a chat template that takes no tools.
CHAT: list[tuple[Line, set[str]]] = [
    (pair("tool", prompt="a\n") | {"prompt": [{"role": "tool", "content": "a"}]}, {"not_renderable"}),
    (pair("good", prompt="a\n", a="a", b="b") | {"prompt": [{"role": "user", "content": "a"}]}, set()),
]


# With languages told apart.
LANGUAGES: list[tuple[Line, set[str]]] = [
    (pair("short", prompt="What is the capital of Portugal?\n", a="C'est Lisbonne.", b="It is Lisbon."), set()),
    (
        pair(
            "foreign",
            prompt="Please explain in a few sentences what a dentist does all day, and why that is good for us.\n",
            a="A dentist looks after the teeth of other people, and thereby spares them a great deal of pain.",
            b="Le dentiste soigne les dents de ses patients toute la journée et leur évite bien des douleurs.",
        ),
        {"other_language"},
    ),
]


def expected(planted: list[tuple[Line, set[str]]]) -> dict[str, list[int]]:
    """Kind of finding to line numbers."""
    found: dict[str, list[int]] = {}
    for number, (_, kinds) in enumerate(planted, start=1):
        for kind in kinds:
            found.setdefault(kind, []).append(number)
    return found
