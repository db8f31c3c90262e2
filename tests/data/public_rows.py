"""A file of every public layout, made from the field names that its source publishes, and what it says."""

from __future__ import annotations

from typing import Any, NamedTuple

TEXTS = ("Why is the sky blue?", "Because of scattering.", "No idea.")
PROMPT, GOOD, BAD = TEXTS


class Said(NamedTuple):
    """A comparison: texts, votes as (annotator, sign), gold, topic, and details of the first vote."""

    texts: tuple[str, ...]
    votes: tuple[tuple[str | None, int], ...]
    gold: int | None = None
    topic: str | None = None
    details: dict[str, Any] = {}  # noqa: RUF012  read only
    rewards: tuple[float, ...] = ()


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _chosen(*sides: str, kind: str = "pairwise", **more) -> dict[str, Any]:
    """A Label Studio annotation."""
    value = {"selected": sides[0]} if kind == "pairwise" else {"choices": list(sides)}
    return {"result": [{"type": kind, "from_name": "which", "value": value}], **more}


_TASK = {"id": 7, "data": {"prompt": PROMPT, "answer1": GOOD, "answer2": BAD}}
_BATTLE = {"model_a": "m1", "model_b": "m2"} | {
    f"conversation_{side}": [_user(PROMPT), _assistant(text)] for side, text in (("a", GOOD), ("b", BAD))
}
_ARGILLA = {"id": "r1", "prompt": PROMPT, "response_a": GOOD, "response_b": BAD}
_NOON = 1716292800.0  # 2024-05-21 12:00 UTC
_TURN = {"conversation_id": "c1", "interaction_id": "i1", "user_id": "u5", "turn": 0, "user_prompt": PROMPT}
_ALIGNED = {"annotator_id": 88, "assigned_lang": "fr", "first_turn_prompt": PROMPT} | {
    f"first_turn_response_{letter}": text for letter, text in zip("abcd", (BAD, GOOD, "Dust.", "Water."), strict=True)
}
_MESSAGES = (PROMPT, GOOD, BAD)

EXAMPLES: dict[str, tuple[list[dict[str, Any]], list[Said]]] = {
    "label_studio": (
        [
            _TASK
            | {
                "annotations": [
                    _chosen("left", completed_by=12, lead_time=8.5, created_at="2024-05-21T12:00:00.000000Z"),
                    _chosen("right", completed_by={"id": 13, "email": "b@example.org"}),
                    _chosen("tie", kind="choices", completed_by={"email": "c@example.org"}),
                    _chosen("left", completed_by=14, was_cancelled=True),
                    _chosen("left", completed_by=1, ground_truth=True),
                    {"completed_by": 15, "result": []},
                ],
                "predictions": [{"model_version": "m", "result": []}],
            }
        ],
        [
            Said(
                TEXTS,
                (("12", 1), ("13", -1), ("c@example.org", 0)),
                gold=1,
                details={"shown_first": 1, "seconds": 8.5, "time": _NOON},
            )
        ],
    ),
    "argilla": (
        [
            _ARGILLA
            | {
                "preference.responses": ["response_b", "tie", "response_a"],
                "preference.responses.users": ["u1", "u2", "u3"],
                "preference.responses.status": ["submitted", "submitted", "discarded"],
                "preference.suggestion": "response_a",
                "preference.suggestion.agent": "gpt",
            }
        ],
        [Said(TEXTS, (("u1", -1), ("u2", 0)))],
    ),
    "argilla nested": (
        [
            {
                "id": "r1",
                "fields": {"prompt": PROMPT, "response_a": GOOD, "response_b": BAD},
                "responses": {"preference": [{"user_id": "u1", "value": "response_b"}]},
                "suggestions": {},
            }
        ],
        [Said(TEXTS, (("u1", -1),))],
    ),
    "argilla 1": (
        [
            {
                "prompt": PROMPT,
                "response-1": GOOD,
                "response-2": BAD,
                "ranking": [
                    {
                        "user_id": "u1",
                        "status": "submitted",
                        "value": [{"rank": 2, "value": "response-1"}, {"rank": 1, "value": "response-2"}],
                    },
                    {"user_id": "u2", "status": "draft", "value": None},
                ],
            }
        ],
        [Said(TEXTS, (("u1", -1),))],
    ),
    "argilla 1 of a table": (
        [
            {
                "instruction": PROMPT,
                "response1": GOOD,
                "response2": BAD,
                "label": {"user_id": ["u1", "u2"], "value": ["response1", "2"], "status": ["submitted", "submitted"]},
            }
        ],
        [Said(TEXTS, (("u1", 1), ("u2", -1)))],
    ),
    "prodigy": (
        [
            {
                "text": PROMPT,
                "options": [{"id": "x", "text": GOOD}, {"id": 2, "text": BAD}],
                "accept": [2],
                "answer": "accept",
                "_session_id": "set-ann",
                "_timestamp": _NOON,
            },
            {
                "text": PROMPT + " Say.",
                "options": [{"id": 1, "text": GOOD}, {"id": 2, "text": BAD}],
                "accept": [],
                "answer": "ignore",
                "_session_id": "set-bob",
                "_annotator_id": "bob",
            },
        ],
        [
            Said(TEXTS, (("set-ann", -1),), details={"shown_first": 1, "time": _NOON}),
            Said((PROMPT + " Say.", GOOD, BAD), ()),
        ],
    ),
    "prodigy of three": (
        [
            {
                "prompt": PROMPT,
                "options": [{"id": i, "text": text} for i, text in enumerate((GOOD, BAD, "Dust."))],
                "accept": [1],
                "answer": "accept",
                "_annotator_id": "bob",
            }
        ],
        [Said((PROMPT, GOOD, BAD), (("bob", -1),)), Said((PROMPT, BAD, "Dust."), (("bob", 1),))],
    ),
    "arena": (
        [_BATTLE | {"question_id": "q", "winner": "model_b", "judge": "arena_user_9", "turn": 1, "tstamp": _NOON}],
        [Said(_MESSAGES, (("arena_user_9", -1),), details={"shown_first": 1, "time": _NOON})],
    ),
    "arena 140k": (
        [
            {
                "id": "x",
                "model_a": "m1",
                "model_b": "m2",
                "winner": "both_bad",
                "evaluation_session_id": "s1",
                "evaluation_order": 2,
                "timestamp": "2024-05-21T12:00:00",
            }
            | {
                f"conversation_{side}": [
                    {"role": role, "content": [{"type": "text", "text": text, "image": None}]}
                    for role, text in (("user", PROMPT), ("assistant", answer))
                ]
                for side, answer in (("a", GOOD), ("b", BAD))
            }
        ],
        [Said(_MESSAGES, (("s1", 0),), details={"shown_first": 1, "time": _NOON})],
    ),
    "arena mt_bench": (
        [
            {
                "question_id": 81,
                "winner": "model_a",
                "judge": "author_2",
                "turn": 1,
                "conversation_a": [_user(PROMPT), _assistant(GOOD), _user("More?"), _assistant("Rayleigh.")],
                "conversation_b": [_user(PROMPT), _assistant(BAD), _user("More?"), _assistant("Still none.")],
            }
        ],
        [Said(_MESSAGES, (("author_2", 1),), details={"shown_first": 1})],
    ),
    "community_alignment": (
        [
            _ALIGNED
            | {
                "first_turn_preferred_response": "b",
                "second_turn_prompt": "Sure?",
                "second_turn_response_a": "Yes.",
                "second_turn_response_b": "No.",
                "second_turn_preferred_response": "response_a",
            }
        ],
        [
            Said((PROMPT, BAD, GOOD), (("88", -1),), topic="fr"),
            Said((PROMPT, GOOD, "Dust."), (("88", 1),), topic="fr"),
            Said((PROMPT, GOOD, "Water."), (("88", 1),), topic="fr"),
            Said((PROMPT + GOOD + "Sure?", "Yes.", "No."), (("88", 1),), topic="fr"),
        ],
    ),
    "prism": (
        [
            _TURN | {"within_turn_id": 0, "model_response": BAD, "score": 20, "if_chosen": False},
            _TURN | {"within_turn_id": 1, "model_response": GOOD, "score": 90, "if_chosen": True},
            _TURN | {"turn": 1, "user_prompt": "Sure?", "model_response": "Yes.", "score": 70, "if_chosen": True},
            _TURN | {"turn": 1, "user_prompt": "Sure?", "model_response": "No.", "score": 75, "if_chosen": False},
        ],
        [
            Said((PROMPT, BAD, GOOD), (("u5", -1),), details={"strength": 70.0}, rewards=(20.0, 90.0)),
            Said((PROMPT + GOOD + "Sure?", "Yes.", "No."), (("u5", 1),), rewards=(70.0, 75.0)),
        ],
    ),
    "summarize_from_feedback": (
        [
            {
                "info": {"id": "t3_x", "post": "Long story.", "title": "Help", "subreddit": "advice"},
                "summaries": [{"text": GOOD, "policy": "sup1"}, {"text": BAD, "policy": "ref"}],
                "choice": 1,
                "worker": "wk4",
                "batch": "batch3",
                "extra": {"confidence": 6},
            }
        ],
        [
            Said(
                ("SUBREDDIT: r/advice\nTITLE: Help\nPOST: Long story.\nTL;DR:", GOOD, BAD),
                (("wk4", -1),),
                topic="advice",
                details={"confidence": 6.0},
            )
        ],
    ),
    "coval": (
        [
            {
                "annotator_id": "p3",
                "prompt": PROMPT,
                "responses": [
                    {"label": letter, "text": text} for letter, text in zip("ABC", ("x", GOOD, BAD), strict=True)
                ],
                "ranking": "B>A=C",
            }
        ],
        [
            Said((PROMPT, GOOD, "x"), (("p3", 1),)),
            Said((PROMPT, GOOD, BAD), (("p3", 1),)),
            Said((PROMPT, "x", BAD), (("p3", 0),)),
        ],
    ),
    "coval without ties": (
        [
            {
                "annotator_id": "p3",
                "prompt": PROMPT,
                "responses": [{"response_index": "A", "messages": [_assistant("x")]}]
                + [{"response_index": k, "messages": [_assistant(t)]} for k, t in (("B", GOOD), ("C", BAD))],
                "ranking_personal": "C > B > A",
            }
        ],
        [Said((PROMPT, BAD, GOOD, "x"), (("p3", 1),))],
    ),
    "crowd_kit": (
        [{"worker": "w1", "left": GOOD, "right": BAD, "label": BAD, "prompt": PROMPT, "seconds": 4}],
        [Said(TEXTS, (("w1", -1),), details={"seconds": 4.0})],
    ),
    "distilabel": (
        [
            {
                "instruction": PROMPT,
                "generations": [BAD, GOOD, "unrated"],
                "ratings": [2, 5, None],
                "model_name": "judge-70b",
            }
        ],
        [Said((PROMPT, GOOD, BAD), (("judge-70b", 1),), rewards=(5.0, 2.0))],
    ),
    "distilabel ranks": (
        [{"prompt": PROMPT, "generations": ["x", GOOD, BAD], "rankings": [2, 1, 3], "model_name": "j"}],
        [Said((PROMPT, GOOD, "x", BAD), (("j", 1),))],
    ),
    "alpaca_eval": (
        [
            {
                "instruction": PROMPT,
                "output_1": GOOD,
                "generator_1": "m1",
                "output_2": BAD,
                "generator_2": "m2",
                "annotator": "gpt-4",
                "preference": 1.25,
            }
        ],
        [Said(TEXTS, (("gpt-4", 1),), details={"confidence": 0.5})],
    ),
    "helpsteer3": (
        [
            {
                "domain": "stem",
                "context": [_user(PROMPT)],
                "response1": GOOD,
                "response2": BAD,
                "overall_preference": -2,
                "individual_preference": [{"score": -3, "reasoning": "r"}, {"score": 0}, {"score": 1}],
            }
        ],
        [Said(_MESSAGES, ((None, 1), (None, 0), (None, -1)), topic="stem", details={"strength": 3.0})],
    ),
    "helpsteer2_preference": (
        [{"prompt": PROMPT, "response_1": GOOD, "response_2": BAD, "preference_strength": 2}],
        [Said(TEXTS, ((None, -1),), details={"strength": 2.0})],
    ),
    "helpsteer2": (
        [
            {"prompt": PROMPT, "response": BAD, "helpfulness": 1, "correctness": 1},
            {"prompt": PROMPT, "response": GOOD, "helpfulness": 4, "correctness": 4},
            {"prompt": "Else?", "response": "x", "helpfulness": 3, "correctness": 3},
            {"prompt": "Else?", "response": "y", "helpfulness": 3, "correctness": 2},
        ],
        [
            Said(TEXTS, ((None, 1),), rewards=(4.0, 1.0)),
            Said(("Else?", "x", "y"), ((None, 0),), rewards=(3.0, 3.0)),
        ],
    ),
    "ultrafeedback": (
        [
            {
                "instruction": PROMPT,
                "completions": [
                    {"model": "m", "response": text, "overall_score": score}
                    for text, score in ((BAD, 2.0), (GOOD, 8.5), ("x", 5.0))
                ],
            }
        ],
        [Said((PROMPT, GOOD, "x", BAD), ((None, 1),), rewards=(8.5, 5.0, 2.0))],
    ),
    "nectar": (
        [{"prompt": PROMPT, "answers": [{"answer": BAD, "rank": 2.0}, {"answer": GOOD, "rank": 1.0}]}],
        [Said(TEXTS, ((None, 1),))],
    ),
    "webgpt": (
        [
            {
                "question": {"full_text": PROMPT},
                "answer_0": GOOD,
                "answer_1": BAD,
                "score_0": 0.5,
                "score_1": -0.5,
            }
        ],
        [Said(TEXTS, ((None, 1),), details={"strength": 1.0})],
    ),
    "shp": (
        [
            {
                "history": PROMPT,
                "human_ref_A": GOOD,
                "human_ref_B": BAD,
                "labels": 0,
                "score_ratio": 2.5,
                "domain": "askscience_test",
            }
        ],
        [Said(TEXTS, ((None, -1),), topic="askscience_test", details={"strength": 2.5})],
    ),
    "vote_rows": (
        [
            {
                "pair_id": "p1",
                "prompt": PROMPT,
                "response_a": GOOD,
                "response_b": BAD,
                "vote": "Response B",
                "annotator": "w1",
                "gold": "a",
                "shown_first": "b",
                "confidence": "3",
            }
        ],
        [Said(TEXTS, (("w1", -1),), gold=1, details={"shown_first": -1, "confidence": 3.0})],
    ),
    "vote_rows of mturk": (
        [
            {
                "AssignmentStatus": status,
                "WorkerId": "A1",
                "WorkTimeInSeconds": "31",
                "Input.prompt": PROMPT + status,
                "Input.response_a": GOOD,
                "Input.response_b": BAD,
                "Answer.vote": "a",
            }
            for status in ("Approved", "Rejected")
        ],
        [
            Said((PROMPT + "Approved", GOOD, BAD), (("A1", 1),), details={"seconds": 31.0}),
            Said((PROMPT + "Rejected", GOOD, BAD), ()),
        ],
    ),
    "vote_rows of toloka": (
        [
            {
                "INPUT:prompt": PROMPT,
                "INPUT:left": GOOD,
                "INPUT:right": BAD,
                "OUTPUT:vote": "right",
                "GOLDEN:vote": "left",
                "ASSIGNMENT:worker_id": "t9",
                "ASSIGNMENT:submitted": "2024-05-21T12:00:00",
            }
        ],
        [Said(TEXTS, (("t9", -1),), gold=1, details={"time": _NOON})],
    ),
    "vote_rows of prolific": (
        [{"PROLIFIC_PID": "5f", "prompt": PROMPT, "response_1": GOOD, "response_2": BAD, "vote": "tie"}],
        [Said(TEXTS, (("5f", 0),))],
    ),
}
